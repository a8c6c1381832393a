"""Where the noise parameter comes from: given, one number, one a picture."""

import keras
import numpy as np
import pytest
from support import array, check_layer, tensor, weight_gradients

from ssdn_tf.denoisers import parameters
from ssdn_tf.noise.gaussian import GaussianNoise
from ssdn_tf.noise.registry import MODELS

# `additive` has the formulas of poisson_gaussian.
_MODELS = [model() for kind, model in MODELS.items() if kind != "additive"]
every_model = pytest.mark.parametrize("model", _MODELS, ids=lambda m: m.kind)
every_channel_count = pytest.mark.parametrize("channels", [1, 3])

WEIGHTS_OF_THE_ESTIMATOR = 40  # 17 + 3 convolutions, a kernel and a bias each


def inputs(channels=3, level=0.3, size=1):
    """Two different noisy pictures, and a parameter of `size` numbers for each."""
    noisy = np.random.default_rng(0).random((2, 32, 64, channels), dtype=np.float32)
    noisy[1] *= 0.2
    return noisy, np.full((2, 1, 1, size), level, np.float32)


def call(layer, noisy, given):
    return array(layer(tensor(noisy, "float32"), tensor(given, "float32")))


@every_model
@every_channel_count
@pytest.mark.parametrize(
    "source, options, weights",
    [
        ("KnownParameter", {}, 0),
        ("GlobalParameter", {}, 1),
        ("GlobalParameter", {"start": 1.5, "rate": 10.0}, 1),
        ("PerImageParameter", {"start": 1.5, "network": {"width": 2}}, WEIGHTS_OF_THE_ESTIMATOR),
    ],
)
def test_layers_keep_the_boring_truths(model, channels, source, options, weights):
    layer = getattr(parameters, source)(model, **options)
    size = model.parameter_size
    (parameter,) = check_layer(layer, *inputs(channels, size=size), weights=weights)
    assert parameter.shape == ((1, 1, 1, size) if source == "GlobalParameter" else (2, 1, 1, size))


@every_model
def test_known_is_the_given_parameter(model):
    noisy, given = inputs(size=model.parameter_size)
    given[1] = 0.7
    assert (call(parameters.KnownParameter(model), noisy, given) == given).all()


def test_known_is_bounded_below():
    noisy, given = inputs(level=1e-4)
    found = call(parameters.KnownParameter(GaussianNoise()), noisy, given)
    assert (found == np.float32(1e-3)).all()


@every_model
def test_global_is_one_trainable_parameter(model):
    layer = parameters.GlobalParameter(model)
    found = call(layer, *inputs())
    (weight,) = layer.trainable_weights
    assert weight.shape == (1, 1, 1, model.parameter_size) and (array(weight + 0.0) == 0.0).all()
    published = 4.88 / 255  # softplus(-4) + 1e-3
    # The gain of Poisson-Gaussian noise, which is not the paper's, may be as low as 1e-6.
    start = {"poisson": 1 / published, "poisson_gaussian": (published - 1e-3, published)}.get(model.kind, published)
    np.testing.assert_allclose(found, np.reshape(start, (1, 1, 1, -1)), rtol=1e-3)


@every_model
def test_learned_parameters_ignore_the_given_one_and_known_does_not(model):
    for layer, ignores in (
        (parameters.KnownParameter(model), False),
        (parameters.GlobalParameter(model), True),
        (parameters.PerImageParameter(model, network={"width": 4}), True),
    ):
        low, high = (call(layer, *inputs(level=level, size=model.parameter_size)) for level in (0.1, 0.9))
        assert (low == high).all() == ignores


@every_model
@pytest.mark.parametrize("level", [0.1, 0.5])
def test_learned_parameters_start_at_the_wanted_level(model, level):
    level = level if model.parameter_size == 1 else (level, 0.2)
    start = model.unconstrain(level)
    for layer in (
        parameters.GlobalParameter(model, start),
        parameters.GlobalParameter(model, start, rate=30.0),
        parameters.PerImageParameter(model, start, {"width": 4}),
    ):
        found = call(layer, *inputs())
        np.testing.assert_allclose(found, np.broadcast_to(level, found.shape), rtol=1e-5)  # float32


def test_rate_multiplies_the_speed_of_the_global_number():
    slow = parameters.GlobalParameter(GaussianNoise(), 1.5)
    fast = parameters.GlobalParameter(GaussianNoise(), 1.5, rate=10.0)
    found = []
    for layer in (slow, fast):
        before = call(layer, *inputs())
        # A step of Adam moves the weight by about its learning rate.
        layer.raw.assign(layer.raw + 1e-3)
        found.append((call(layer, *inputs()) - before).item())
    assert found[1] == pytest.approx(10 * found[0], rel=0.02)


@every_model
@every_channel_count
def test_per_image_starts_equal_for_all_images(model, channels):
    layer = parameters.PerImageParameter(model, network={"width": 4})
    found = call(layer, *inputs(channels))
    assert (found[0] == found[1]).all()
    layer.network.last.kernel.assign(np.ones(layer.network.last.kernel.shape))
    found = call(layer, *inputs(channels))
    assert (found[0] != found[1]).all()


def test_per_image_parameter_of_a_picture_does_not_depend_on_its_neighbours():
    layer = parameters.PerImageParameter(GaussianNoise(), network={"width": 4})
    noisy, given = inputs()
    call(layer, noisy, given)
    layer.network.last.kernel.assign(np.ones(layer.network.last.kernel.shape))
    both = call(layer, noisy, given)
    for i in range(2):
        # Another batch size may order the sums in another way: float32 rounding.
        np.testing.assert_allclose(call(layer, noisy[i : i + 1], given[:1]), both[i : i + 1], rtol=1e-5)


def test_per_image_can_leave_its_start():
    # Kernel zero: only the last layer has a gradient at first, and it must have one.
    layer = parameters.PerImageParameter(GaussianNoise(), network={"width": 4})
    noisy, given = (tensor(value, "float32") for value in inputs())
    layer(noisy, given)
    found = dict(zip([w.path for w in layer.trainable_weights], weight_gradients(layer, noisy, given)))
    moving = [path for path, gradient in found.items() if (gradient != 0).any()]
    assert len(found) == WEIGHTS_OF_THE_ESTIMATOR
    assert all("nin_c" in path for path in moving) and len(moving) == 2


@pytest.mark.parametrize("channels, count", [(3, 1_102_177), (1, 1_099_585)])
def test_estimator_has_the_published_number_of_parameters(channels, count):
    layer = parameters.PerImageParameter(GaussianNoise())
    layer.build((None, 32, 32, channels), (None, 1, 1, 1))
    assert layer.count_params() == count


def test_every_source_is_tested_here():
    classes = [value for value in vars(parameters).values() if isinstance(value, type)]
    layers = [value for value in classes if issubclass(value, keras.layers.Layer)]
    sources = {value.__name__ for value in layers if value.__module__ == parameters.__name__}
    assert sources == {"KnownParameter", "GlobalParameter", "PerImageParameter", "FittedParameter"}


def test_fitted_is_the_fit_to_some_pixels_and_has_no_weights():
    rng = np.random.default_rng(5)
    layer = parameters.FittedParameter(GaussianNoise())
    mu_x = np.full((2, 40, 50, 3), 0.5)
    sigma = np.array([0.05, 0.2]).reshape(2, 1, 1, 1)
    noisy, sigma_x = mu_x + sigma * rng.standard_normal(mu_x.shape), np.zeros((2, 40, 50, 3, 3))
    found = array(layer(*map(tensor, (noisy, mu_x, sigma_x))))
    assert found.shape == (2, 1, 1, 1) and not layer.weights
    np.testing.assert_allclose(found, sigma, rtol=0.03)  # 6,000 values see 3 %
