"""Both optimizers: a non-finite gradient changes nothing; Adam is Keras's to the bit; Muon orthogonalizes; averages."""

import keras
import numpy as np
import pytest
import support
import tensorflow as tf

from ssdn_tf.denoisers import models
from ssdn_tf.denoisers.experiments import Experiment
from ssdn_tf.training.optimizers import SkippingAdam, SkippingMuon
from ssdn_tf.training.schedules import RampUpRampDown

SETTINGS = {"beta_1": 0.9, "beta_2": 0.99, "epsilon": 1e-8}
SHAPES = [(3, 3, 2, 4), (4,), (1, 1, 1, 1)]


def schedule():
    return RampUpRampDown(peak=3e-4, stages=[(40, 4, 1.0)])


def variables():
    values = [np.random.default_rng(1).standard_normal(shape).astype(np.float32) for shape in SHAPES]
    return [keras.Variable(value, name=f"v{i}") for i, value in enumerate(values)]


def gradients(step):
    rng = np.random.default_rng((2, step))
    return [tf.constant(rng.standard_normal(shape).astype(np.float32)) for shape in SHAPES]


def spoilt(step, which, value):
    """Gradients with one bad number, in the tensor `which`."""
    result = [np.array(g) for g in gradients(step)]
    result[which].flat[-1] = value
    return [tf.constant(g) for g in result]


def started(optimizer, steps=3):
    """(optimizer, weights) after some ordinary steps."""
    weights = variables()
    for step in range(steps):
        optimizer.apply(gradients(step), weights)
    return optimizer, weights


def state(optimizer, weights):
    """Weights, moments; without the counters."""
    return copies([*weights, *optimizer._momentums, *optimizer._velocities])


def copies(variables):
    return [v.numpy().copy() for v in variables]


def assert_equal(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("rate", [1e-2, schedule()], ids=["constant", "schedule"])
def test_finite_steps_are_those_of_adam_to_the_bit(rate):
    ours, our_weights = started(SkippingAdam(rate, **SETTINGS), 10)
    adam, weights = started(keras.optimizers.Adam(rate, **SETTINGS), 10)
    assert_equal(state(ours, our_weights), state(adam, weights))
    assert int(ours.iterations) == int(adam.iterations) == 10
    assert int(ours.skipped) == int(ours.skipped_in_a_row) == 0


def test_finite_steps_change_every_weight():
    """So that "leaves it alone" below says something."""
    _, before = started(SkippingAdam(1e-2, **SETTINGS), 0)
    _, after = started(SkippingAdam(1e-2, **SETTINGS), 1)
    for a, b in zip(before, after):
        assert np.all(a.numpy() != b.numpy())


@pytest.mark.parametrize("which", range(len(SHAPES)))
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
def test_one_bad_number_leaves_weights_and_moments_alone(which, value):
    optimizer, weights = started(SkippingAdam(1e-2, **SETTINGS))
    before = state(optimizer, weights)
    optimizer.apply(spoilt(3, which, value), weights)
    assert_equal(state(optimizer, weights), before)
    assert int(optimizer.skipped) == int(optimizer.skipped_in_a_row) == 1


def test_a_bad_first_step_leaves_weights_and_moments_alone():
    weights = variables()
    before = copies(weights)
    optimizer = SkippingAdam(1e-2, **SETTINGS)
    optimizer.apply(spoilt(0, 0, np.nan), weights)
    after = state(optimizer, weights)
    assert_equal(after[: len(before)], before)
    assert not any(moment.any() for moment in after[len(before) :])


def test_adam_itself_does_not_survive_a_bad_number():
    adam, weights = started(keras.optimizers.Adam(1e-2, **SETTINGS))
    adam.apply(spoilt(3, 0, np.nan), weights)
    assert np.isnan(weights[0].numpy()).any()


def test_a_skipped_step_counts_for_the_schedule_and_the_bias_correction():
    """After it, all is as in Adam whose moments have not decayed, one step later."""
    ours, our_weights = started(SkippingAdam(schedule(), **SETTINGS))
    ours.apply(spoilt(3, 1, np.inf), our_weights)
    assert int(ours.iterations) == 4
    ours.apply(gradients(4), our_weights)
    adam, weights = started(keras.optimizers.Adam(schedule(), **SETTINGS))
    adam.iterations.assign(4)
    adam.apply(gradients(4), weights)
    assert_equal(state(ours, our_weights), state(adam, weights))


def test_skips_are_counted_in_all_and_in_a_row():
    optimizer, weights = started(SkippingAdam(1e-2, **SETTINGS))
    counts = []
    for step, good in enumerate([0, 0, 1, 0, 1, 1, 0, 0, 0]):
        optimizer.apply(gradients(step) if good else spoilt(step, step % 3, np.nan), weights)
        counts.append((int(optimizer.skipped), int(optimizer.skipped_in_a_row)))
    assert counts == [(1, 1), (2, 2), (2, 0), (3, 1), (3, 0), (3, 0), (4, 1), (5, 2), (6, 3)]


def test_a_gradient_of_huge_but_finite_numbers_is_applied():
    """Only what has no finite length is skipped, as 1e30, whose square would overflow in the second moment."""
    ours, our_weights = started(SkippingAdam(1e-2, **SETTINGS))
    adam, weights = started(keras.optimizers.Adam(1e-2, **SETTINGS))
    for optimizer, mine in ((ours, our_weights), (adam, weights)):
        optimizer.apply(spoilt(3, 0, 1e18), mine)
    assert_equal(state(ours, our_weights), state(adam, weights))
    assert int(ours.skipped) == 0
    before = state(ours, our_weights)
    ours.apply(spoilt(4, 0, 1e30), our_weights)
    assert_equal(state(ours, our_weights), before)
    assert int(ours.skipped) == 1


def test_the_counters_are_variables_that_a_checkpoint_can_hold():
    optimizer, _ = started(SkippingAdam(1e-2, **SETTINGS))
    paths = [v.path for v in optimizer.variables]
    assert len(set(paths)) == len(paths)
    assert sum(path.endswith(("/skipped", "/skipped_in_a_row")) for path in paths) == 2


def test_the_optimizer_survives_serialization():
    optimizer = SkippingAdam(schedule(), **SETTINGS)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    assert type(copy) is SkippingAdam
    assert copy.get_config() == optimizer.get_config()


# ---------------------------------------------------------------- inside fit


class States(keras.callbacks.Callback):
    """Weights and moments after each step of a fit."""

    def __init__(self):
        super().__init__()
        self.after = []

    def on_train_batch_end(self, batch, logs=None):
        self.after.append(state(self.model.optimizer, self.model.weights))


def fitted(optimizer, batches, jit, callbacks=()):
    """Final weights of a line fitted to batches of (x, y)."""
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Dense(2, kernel_initializer="ones", name="dense")(inputs))
    model.compile(optimizer, loss="mse", jit_compile=jit)
    batches = tf.data.Dataset.from_tensor_slices(batches)
    model.fit(batches, epochs=1, verbose=0, shuffle=False, callbacks=list(callbacks))
    return copies(model.weights)


def line_batches(bad=()):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((6, 8, 4)).astype(np.float32)
    y = rng.standard_normal((6, 8, 2)).astype(np.float32)
    for step, value in bad:
        x[step, 3, 1] = value
    return x, y


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_bad_batches_are_skipped_and_counted_inside_fit(jit):
    optimizer = SkippingAdam(1e-2, **SETTINGS)
    weights = fitted(optimizer, line_batches(bad=[(1, np.nan), (4, np.inf), (5, np.nan)]), jit)
    assert all(np.isfinite(w).all() for w in weights)
    assert (int(optimizer.iterations), int(optimizer.skipped), int(optimizer.skipped_in_a_row)) == (6, 3, 2)


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_a_bad_batch_in_the_middle_of_a_fit_leaves_weights_and_moments_alone(jit):
    states = States()
    bad = [(2, np.nan), (4, np.inf)]
    fitted(SkippingAdam(1e-2, **SETTINGS), line_batches(bad), jit, [states])
    for step in range(1, 6):
        before, after = states.after[step - 1 : step + 1]
        if step in (2, 4):
            assert_equal(after, before)
        else:
            assert all(np.any(a != b) for a, b in zip(after, before))


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_a_fit_of_bad_batches_only_leaves_the_start(jit):
    optimizer = SkippingAdam(1e-2, **SETTINGS)
    kernel, bias = fitted(optimizer, line_batches(bad=[(step, np.nan) for step in range(6)]), jit)
    assert (kernel == 1).all() and (bias == 0).all()
    assert int(optimizer.skipped_in_a_row) == 6


@pytest.mark.parametrize("jit", [False, True], ids=["graph", "xla"])
def test_a_fit_of_good_batches_is_that_of_adam(jit):
    """XLA may fuse the two programs otherwise, hence not to the bit there."""
    ours = fitted(SkippingAdam(1e-2, **SETTINGS), line_batches(), jit)
    adam = fitted(keras.optimizers.Adam(1e-2, **SETTINGS), line_batches(), jit)
    for a, b in zip(ours, adam):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 if jit else 0)


# ---------------------------------------------------------------- Muon

KERNELS = [(3, 3, 8, 4), (2, 2, 4, 32), (1, 1, 16, 16)]  # tall, wide, square matrices


def kernels():
    values = [np.random.default_rng(1).standard_normal(shape).astype(np.float32) for shape in KERNELS]
    return [keras.Variable(value, name=f"k{i}") for i, value in enumerate(values)]


def kernel_gradients(step):
    rng = np.random.default_rng((3, step))
    return [tf.constant(rng.standard_normal(shape).astype(np.float32)) for shape in KERNELS]


def orthogonal_factor(matrix):
    u, _, v = np.linalg.svd(matrix, full_matrices=False)
    return u @ v


def test_the_step_of_a_kernel_is_near_the_orthogonal_factor_of_the_nesterov_momentum():
    """Against an SVD. Five Newton-Schulz steps bring singular values to within 0.68 and 1.13, not to 1."""
    optimizer, weights = SkippingMuon(0.01), kernels()
    momenta = [np.zeros(shape) for shape in KERNELS]
    for step in range(3):
        before, gradients = copies(weights), [g.numpy() for g in kernel_gradients(step)]
        optimizer.apply(kernel_gradients(step), weights)
        momenta = [0.95 * m + g for m, g in zip(momenta, gradients)]
        for shape, m, g, old, new in zip(KERNELS, momenta, gradients, before, copies(weights)):
            side = (-1, shape[-1])
            expected = orthogonal_factor((g + 0.95 * m).reshape(side))
            scale = 0.01 * 0.2 * np.sqrt(max(expected.shape))
            moved = (old - new).reshape(side) / scale
            # The same singular vectors: what the SVD's factor turns the step into is symmetric and near 1.
            turned = expected.T @ moved if expected.shape[0] >= expected.shape[1] else moved @ expected.T
            np.testing.assert_allclose(turned, turned.T, atol=2e-3)
            singular = np.linalg.svd(moved, compute_uv=False)
            assert 0.65 < singular.min() and singular.max() < 1.25, singular


def test_the_step_of_adam_is_not_orthogonal():
    """Control of the comparison with the SVD."""
    optimizer, weights = SkippingAdam(0.01, **SETTINGS), kernels()
    before = copies(weights)
    optimizer.apply(kernel_gradients(0), weights)
    moved = (before[2] - weights[2].numpy()).reshape(16, 16)
    singular = np.linalg.svd(moved, compute_uv=False)
    assert singular.max() / singular.min() > 10


def test_convolution_kernels_get_muon_and_all_else_gets_adam():
    denoiser = models.build(support.narrow(Experiment(network="compact", parameter_source="global"), 4))
    last = [network.last.kernel.path for network in models.networks(denoiser)]
    optimizer = SkippingMuon(1e-3, exclude_layers=last)
    optimizer.build(denoiser.training.trainable_variables)
    by_adam = [v.path for v in denoiser.training.trainable_variables if optimizer._should_use_adamw(v)]
    others = [v.path for v in denoiser.training.trainable_variables if v.path not in by_adam]
    kernels = {v.path for v in denoiser.training.trainable_variables if v.path.endswith("kernel")}
    assert {p for p in by_adam if p in kernels} == {"unet/enc_conv0/kernel", "unet/nin_d/kernel"}
    assert set(others) == kernels - set(by_adam) and len(others) == 13
    assert "parameter/noise_data" in by_adam
    # Only Adam has second moments.
    assert sum(v is not None for v in optimizer.adam_velocities) == len(by_adam)


def test_what_gets_muon_decays_and_nothing_else_does():
    found = {}
    for decay in (None, 0.5):
        optimizer, weights = SkippingMuon(0.01, weight_decay=decay), [*kernels(), *variables()]
        before = copies(weights)
        optimizer.apply([*kernel_gradients(0), *gradients(0)], weights)
        found[decay] = copies(weights)
    count = len(KERNELS)
    for old, without, decayed in list(zip(before, *found.values()))[:count]:
        np.testing.assert_allclose(decayed, without - 0.5 * 0.01 * old, rtol=1e-4, atol=1e-6)
        assert np.abs(decayed - without).max() > 1e-3
    assert_equal(found[0.5][count:], found[None][count:])


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=str)
def test_a_bad_number_leaves_weights_and_moments_of_muon_alone(value):
    optimizer, weights = SkippingMuon(1e-2, weight_decay=0.1), [*kernels(), *variables()]
    for step in range(2):
        optimizer.apply([*kernel_gradients(step), *gradients(step)], weights)
    moments = [m for m in (*optimizer.momentums, *optimizer.adam_velocities) if m is not None]
    before = copies([*weights, *moments])
    optimizer.apply([*kernel_gradients(2), *spoilt(2, 1, value)], weights)
    assert_equal(copies([*weights, *moments]), before)
    assert int(optimizer.skipped) == 1
    optimizer.apply([*kernel_gradients(3), *gradients(3)], weights)
    assert all(np.any(a != b) for a, b in zip(copies([*weights, *moments]), before))


def test_muon_survives_serialization():
    optimizer = SkippingMuon(schedule(), exclude_layers=["nin_d"], global_clipnorm=5.0, use_ema=True, ema_momentum=0.9)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    assert type(copy) is SkippingMuon and copy.get_config() == optimizer.get_config()


# ---------------------------------------------------------------- averages


@pytest.mark.parametrize("kind", [SkippingAdam, SkippingMuon])
def test_averages_are_those_written_out_and_leave_the_training_alone(kind):
    plain, averaging = kind(1e-2), kind(1e-2, use_ema=True, ema_momentum=0.5)
    plain_weights, weights = variables(), variables()
    averages = copies(weights)
    for step in range(12):
        plain.apply(gradients(step), plain_weights)
        averaging.apply(gradients(step), weights)
        momentum = min(0.5, (1 + step) / (10 + step)) if step else 0.0
        averages = [momentum * a + (1 - momentum) * w for a, w in zip(averages, copies(weights))]
    assert_equal(copies(weights), copies(plain_weights))
    for average, expected in zip(averaging.averages, averages, strict=True):
        np.testing.assert_allclose(average.numpy(), expected, rtol=0, atol=1e-6)
    assert plain.averages == []


def test_the_end_of_a_fit_keeps_the_weights():
    """Keras would replace them by their averages, although training may go on."""
    optimizer = SkippingAdam(1e-2, use_ema=True, ema_momentum=0.9, **SETTINGS)
    weights = fitted(optimizer, line_batches(), False)
    assert_equal(weights, fitted(SkippingAdam(1e-2, **SETTINGS), line_batches(), False))
    assert any(np.any(a.numpy() != w) for a, w in zip(optimizer.averages, weights))
