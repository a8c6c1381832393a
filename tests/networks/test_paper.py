"""The blind spot of the whole network, exactly; its size, its start, its refusals.

No output depends on the input at its own pixel: pixel p is replaced by a million (or by
NaN, which any arithmetic passes on), and the output at p must keep its bits. That is done
at all phases of the 32 x 32 grid of poolings and at all borders, for narrow networks,
whose structure is that of the full one; for the full width by gradients that are exactly 0.
"""

import functools
import itertools
import types

import keras
import numpy as np
import pytest
import support
import tensorflow as tf

from ssdn_tf.networks import layers as blindspot
from ssdn_tf.networks import paper
from ssdn_tf.networks.paper import UNet

LAYERS = [*[f"enc_conv{i}" for i in range(7)], *[f"dec_conv{i}{j}" for i in range(1, 6) for j in "ab"]]
POOLS = [f"pool{i}" for i in range(1, 6)]


def network(outputs=3, channels=3, width=4, **kwargs):
    """A blind network whose weights are all random, biases and last layer too."""
    net = UNet(outputs, width=width, **kwargs)
    net.build((None, None, None, channels))
    for variable in net.weights:
        if variable.path.endswith("bias"):
            variable.assign(0.1 * np.random.standard_normal(variable.shape))
    return net


def picture(height, width, channels=3):
    return np.random.uniform(size=(height, width, channels)).astype(np.float32)


def leaking(net, image, positions, value=1e6, how="graph", batch_size=32):
    """(leaks, deaf): the positions whose own output changes with the input there, in any bit;
    and those where not all of the eight neighbours' outputs change, which is the control.
    how: eager, graph or xla."""
    run = net.call if how == "eager" else tf.function(net.call, jit_compile=how == "xla")
    before = run(tf.constant(np.broadcast_to(image, (batch_size, *image.shape)))).numpy()
    np.testing.assert_array_equal(before, np.broadcast_to(before[:1], before.shape))
    before = before[0]
    leaks, deaf = [], []
    for start in range(0, len(positions), batch_size):
        part = positions[start : start + batch_size]
        batch = np.repeat(image[None], batch_size, axis=0)
        for one, position in zip(batch, part):
            one[position] = value
        for after, (i, j) in zip(run(tf.constant(batch)).numpy(), part):
            changed = np.any(after != before, axis=-1)
            around = changed[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            if changed[i, j]:
                leaks.append((i, j))
            if around.sum() != around.size - 1 + changed[i, j]:
                deaf.append((i, j))
    return leaks, deaf


def all_positions(height, width):
    return list(itertools.product(range(height), range(width)))


def border_positions(height, width):
    """The outermost two rows and columns."""
    inside = {(i, j) for i in range(2, height - 2) for j in range(2, width - 2)}
    return [p for p in all_positions(height, width) if p not in inside]


def all_phases(height, width):
    """The 32 x 32 block in the middle, which has one position of every phase."""
    top, left = (height - 32) // 2, (width - 32) // 2
    positions = [(top + i, left + j) for i, j in all_positions(32, 32)]
    assert len({(i % 32, j % 32) for i, j in positions}) == 1024
    return positions


# ---------------------------------------------------------------- the blind spot


@pytest.mark.parametrize("size, channels", [((32, 32), 3), ((32, 32), 1), ((64, 64), 3), ((32, 64), 3)])
def test_no_output_depends_on_its_own_pixel_at_any_phase(size, channels):
    """32 x 32: every position; a square goes through in one call, another shape in two."""
    net = network(channels=channels)
    assert leaking(net, picture(*size, channels), all_phases(*size)) == ([], [])


@pytest.mark.parametrize("size, channels", [((64, 64), 3), ((32, 64), 1), ((64, 32), 3)])
def test_no_output_depends_on_its_own_pixel_at_any_border(size, channels):
    net = network(channels=channels)
    assert leaking(net, picture(*size, channels), border_positions(*size)) == ([], [])


@pytest.mark.parametrize("value", [-1e6, 1e-3, np.inf, np.nan], ids=str)
def test_no_output_depends_on_its_own_pixel_whatever_its_value(value):
    leaks, _ = leaking(network(), picture(32, 32), all_positions(32, 32)[::5], value, "eager")
    assert leaks == []


@pytest.mark.parametrize("channel", range(3))
def test_no_output_depends_on_its_own_pixel_in_another_channel(channel):
    image = picture(32, 32)
    value = np.full(3, 0.5, np.float32)
    value[channel] = 1e6
    assert leaking(network(), image, all_positions(32, 32)[::7], value, "eager") == ([], [])


def test_no_output_depends_on_its_own_pixel_where_the_upsampling_is_plain():
    assert leaking(network(fused=False), picture(32, 32), all_positions(32, 32)) == ([], [])


def test_no_output_depends_on_its_own_pixel_under_xla():
    """Training and inference compile."""
    assert leaking(network(), picture(32, 32), all_positions(32, 32)[::3], how="xla") == ([], [])


@pytest.mark.slow
def test_no_output_depends_on_its_own_pixel_anywhere_in_a_larger_image():
    assert leaking(network(width=2), picture(96, 96), all_positions(96, 96)) == ([], [])


@pytest.mark.slow
def test_no_output_depends_on_its_own_pixel_at_any_phase_under_xla():
    assert leaking(network(), picture(64, 64), all_phases(64, 64), how="xla") == ([], [])


@functools.cache
def full_network(blind=True):
    net = UNet(9, blindspot=blind)
    net.build((None, None, None, 3))
    return net


@functools.cache
def gradient_at(i, j, blind=True):
    """Gradient of a random combination of all output channels at a pixel of a picture, [64, 64, C]."""
    net, noisy = full_network(blind), tf.constant(picture(64, 64)[None])
    with tf.GradientTape() as tape:
        tape.watch(noisy)
        total = tf.reduce_sum(net(noisy)[0, i, j] * np.random.standard_normal(net.outputs))
    return tape.gradient(total, noisy)[0].numpy()


PIXELS = [(0, 0), (0, 63), (63, 0), (63, 63), (0, 30), (17, 0), (31, 32), (32, 31), (45, 20), (50, 63)]


@pytest.mark.parametrize("pixel", PIXELS, ids=str)
def test_the_gradient_at_the_own_pixel_is_exactly_zero_at_full_width(pixel):
    gradient = gradient_at(*pixel)
    assert (gradient[pixel] == 0.0).all()


@pytest.mark.parametrize("pixel", PIXELS, ids=str)
def test_the_blind_spot_is_one_pixel(pixel):
    """The gradient at each of the (up to) eight neighbours is not zero, in any channel."""
    i, j = pixel
    gradient = gradient_at(i, j)
    around = gradient[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
    assert np.count_nonzero(around) == around.size - 3


def test_the_plain_network_does_use_its_own_pixel():
    gradient = gradient_at(31, 32, blind=False)
    assert (gradient[31, 32] != 0).all()


def test_all_of_the_context_is_seen():
    """A 64 x 64 image lies within the receptive field of each of its pixels, except the pixel itself."""
    gradient = gradient_at(31, 32)
    assert np.argwhere(~np.any(gradient != 0, axis=-1)).tolist() == [[31, 32]]


# ---------------------------------------------------------------- a leak would be seen


# At 32 x 32 the coarsest level is one pixel, which has no row below it.
SOME = [(i, (11 * i + 5) % 64) for i in range(1, 64, 4)]


def some_leaks(net):
    return leaking(net, picture(64, 64), SOME, how="eager", batch_size=len(SOME))


def test_the_unchanged_network_has_no_leak_where_the_changed_ones_are_looked_at():
    assert some_leaks(network()) == ([], [])


def test_a_missing_last_shift_is_seen(monkeypatch):
    # Only the network's own; the pooling keeps its shift.
    names = vars(blindspot) | {"shift_down": lambda x: x}
    net = network()
    monkeypatch.setattr(paper, "bs", types.SimpleNamespace(**names))
    assert some_leaks(net)[0] == SOME


@pytest.mark.parametrize("name", LAYERS + POOLS)
def test_one_unshifted_layer_is_seen(name):
    net = network()
    layers = [*net.encoder, *net.pools, *net.decoder_a, *net.decoder_b]
    assert sorted(layer.name for layer in layers) == sorted(LAYERS + POOLS)
    (layer,) = [layer for layer in layers if layer.name == name]
    layer.shifted = False
    assert some_leaks(net)[0]


@pytest.mark.parametrize("k, wrong", [(1, 1), (2, 0), (3, 3), (0, 2)])
def test_one_group_turned_back_wrongly_is_seen(monkeypatch, k, wrong):
    right = blindspot.rot90
    groups = []

    def rot90(x, turns):
        groups.append(turns)
        backwards = len(groups) > 4  # four turns there, then four back
        return right(x, wrong if backwards and turns == -k else turns)

    monkeypatch.setattr(blindspot, "rot90", rot90)
    image = tf.constant(picture(64, 64)[None])
    blindspot.all_rotations(image, lambda x: x)
    assert groups == [0, 1, 2, 3, 0, -1, -2, -3]

    def call(x):
        groups.clear()
        return net_call(x)

    net = network()
    net_call = net.call
    monkeypatch.setattr(net, "call", call)
    assert some_leaks(net)[0]


@pytest.mark.parametrize("level", range(5))
def test_ordinary_phase_kernels_in_one_upsampling_are_seen(monkeypatch, level):
    net = network()
    right = blindspot.UpsampleConv2D._convolve_upsampled

    def ordinary(self, x, kernel):
        if self is not net.decoder_a[level]:
            return right(self, x, kernel)
        return right(types.SimpleNamespace(shifted=False), x, kernel)

    monkeypatch.setattr(blindspot.UpsampleConv2D, "_convolve_upsampled", ordinary)
    assert some_leaks(net)[0]


def test_the_plain_network_leaks_everywhere():
    assert some_leaks(network(blindspot=False)) == (SOME, [])


# ---------------------------------------------------------------- rotations and shapes


@pytest.mark.parametrize("size", [(32, 32), (32, 64)], ids=str)
def test_rotating_the_input_moves_the_branches_by_one(size):
    """Group k of the turned image is group k + 1 of the image, turned. The 1x1 layers then tell them
    apart, so the whole network does not turn with the image."""
    net, image = network(), tf.constant(picture(*size)[None])
    groups = tf.split(blindspot.all_rotations(image, net.trunk), 4, axis=-1)
    turned = tf.split(blindspot.all_rotations(blindspot.rot90(image, 1), net.trunk), 4, axis=-1)
    for k in range(4):
        np.testing.assert_array_equal(turned[k], blindspot.rot90(groups[(k + 1) % 4], 1))
    whole = net(blindspot.rot90(image, 1)) - blindspot.rot90(net(image), 1)
    assert np.abs(whole).max() > 1e-3


def test_the_two_calls_of_other_shapes_give_the_one_call_of_squares():
    net = network(width=48)
    image = picture(64, 64)[None]
    unknown = [tf.TensorSpec((None, None, None, 3), tf.float32)]
    in_two = tf.function(net.call, input_signature=unknown)(image)
    np.testing.assert_allclose(in_two, net(image), rtol=0, atol=1e-6)


def test_images_need_not_be_square():
    """The result is that of four branches, one call each."""
    net = network()
    image = picture(32, 96)[None]
    assert net(image).shape == (1, 32, 96, 3)
    branches = [blindspot.rot90(net.trunk(blindspot.rot90(image, k)), -k) for k in range(4)]
    joined = net.nin_c(net.nin_b(net.nin_a(tf.concat(branches, axis=-1))))
    np.testing.assert_allclose(net(image), joined, rtol=0, atol=1e-6)


@pytest.mark.parametrize("blind", [True, False], ids=["blind", "plain"])
@pytest.mark.parametrize("shape", [(1, 33, 32, 3), (2, 32, 16, 3), (1, 100, 100, 3)], ids=str)
def test_sizes_off_the_grid_are_refused_by_number(blind, shape):
    with pytest.raises(ValueError, match=r"multiples of 32\. Received: shape=") as caught:
        network(blindspot=blind)(np.zeros(shape, np.float32))
    assert str(shape) in str(caught.value)


def test_unknown_sizes_are_accepted_until_they_are_known():
    net = network()
    model = keras.Model(noisy := keras.Input((None, None, 3)), net(noisy))
    assert model.output_shape == (None, None, None, 3)
    with pytest.raises(ValueError, match="multiples of 32"):
        model(np.zeros((1, 40, 32, 3), np.float32))


# ---------------------------------------------------------------- size and start

# (channels, outputs, blind spot): parameters; the paper's networks.
COUNTS = {
    (3, 3, False): 1_102_371,  # n2c, n2n
    (3, 3, True): 1_268_547,  # mean only
    (3, 6, True): 1_268_838,  # diagonal
    (3, 9, True): 1_269_129,  # full covariance
    (1, 1, False): 1_099_585,  # n2c in mono; estimator in mono
    (1, 2, True): 1_265_858,
    (3, 1, False): 1_102_177,  # estimator
}


@pytest.mark.parametrize("key", COUNTS, ids=str)
def test_parameter_counts(key):
    channels, outputs, blind = key
    net = UNet(outputs, blindspot=blind)
    net.build((None, None, None, channels))
    assert net.count_params() == COUNTS[key]


def started(zero_start=False):
    net = UNet(9, zero_start=zero_start)
    net.build((None, None, None, 3))
    return {"/".join(v.path.split("/")[-2:]): v.numpy() for v in net.weights}


def test_weights_start_normal_with_he_variance():
    """Kernels scaled to variance 1 are pooled: 1.27 million numbers show a variance that is off
    by 1 %, and one gain of the last layer (864 numbers) that is off by a factor of 2 (|z| 21)."""
    weights = started()
    scaled = []
    for name, kernel in weights.items():
        if name.endswith("kernel"):
            gain = 1.0 if name.startswith("nin_c") else 2.0
            scaled.append(kernel.astype(np.float64).ravel() * np.sqrt(np.prod(kernel.shape[:-1]) / gain))
    last, everything = scaled[-1], np.concatenate(scaled)
    support.z_test(last**2, 1.0)
    for moment, expected in ((1, 0.0), (2, 1.0), (4, 3.0)):  # the fourth moment of a cut normal is 2.4
        support.z_test(everything**moment, expected)
    # Cut at two standard deviations and rescaled, the largest would be 2.27.
    assert np.abs(everything).max() > 4


def test_each_kernel_starts_with_he_variance():
    for name, kernel in started().items():
        if name.endswith("kernel"):
            fan_in = np.prod(kernel.shape[:-1])
            gain = 1.0 if name.startswith("nin_c") else 2.0
            support.z_test(kernel.ravel().astype(np.float64) ** 2, gain / fan_in)


def test_biases_start_at_zero():
    biases = [value for name, value in started().items() if name.endswith("bias")]
    assert len(biases) == 20
    assert not np.concatenate(biases).any()


def test_only_the_last_layer_of_the_estimator_starts_at_zero():
    weights = started(zero_start=True)
    kernels = {name: value for name, value in weights.items() if name.endswith("kernel")}
    assert [name for name, value in kernels.items() if not value.any()] == ["nin_c/kernel"]


@pytest.mark.parametrize("options", [{}, {"fused": False}, {"blindspot": False, "zero_start": True}], ids=str)
def test_the_network_keeps_the_boring_truths(options):
    support.check_layer(UNet(2, width=2, **options), picture(32, 64)[None], weights=40)


# ---------------------------------------------------------------- precision


def test_bfloat16_is_for_all_but_weights_and_the_last_layer():
    keras.utils.set_random_seed(0)
    network = UNet(9, width=4, dtype="mixed_bfloat16")
    x = np.random.default_rng(0).random((1, 32, 32, 3), dtype=np.float32)
    answer = network(x)
    assert {v.dtype for v in network.trainable_variables} == {"float32"} and answer.dtype == "float32"
    inner = [*network.encoder, *network.pools, *network.decoder_a, *network.decoder_b, network.nin_a, network.nin_b]
    assert {layer.compute_dtype for layer in inner} == {"bfloat16"} and network.nin_c.compute_dtype == "float32"
    # The same function: as far away as 8 bits of mantissa explain, and no nearer.
    keras.utils.set_random_seed(0)
    exact = support.array(UNet(9, width=4)(x))
    apart = np.abs(support.array(answer) - exact).max() / np.abs(exact).max()
    assert 1e-4 < apart < 3e-2


def test_bfloat16_is_blind():
    keras.utils.set_random_seed(0)
    network = UNet(9, width=4, dtype="mixed_bfloat16")
    x = np.random.default_rng(0).random((1, 32, 32, 3), dtype=np.float32)
    y = x.copy()
    y[0, 13, 17] = 1e6
    before, after = support.array(network(x)), support.array(network(y))
    np.testing.assert_array_equal(before[0, 13, 17], after[0, 13, 17])
    assert np.any(before[0, 13, 18] != after[0, 13, 18])
