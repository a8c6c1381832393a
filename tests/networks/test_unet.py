"""The blind spot of whole networks, exactly; their sizes, their start, their reach.

No output depends on the input at its own pixel: pixel p is replaced by a million (or by
NaN, which any arithmetic passes on), and the output at p must keep its bits. That is done
at all phases of the grid of poolings (32 x 32, or 8 x 8 in the compact network) and at all borders, for narrow
networks, whose structure is that of the full one; for the full width by gradients that are exactly 0.
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
from ssdn_tf.networks import unet
from ssdn_tf.networks.designs import DESIGNS
from ssdn_tf.networks.unet import UNet


def layer_names(levels):
    decoder = [f"dec_conv{i}{j}" for i in range(1, levels + 1) for j in "ab"]
    pools = [f"pool{i}" for i in range(1, levels + 1)]
    return [*[f"enc_conv{i}" for i in range(levels + 2)], *decoder, *pools]


BOTH = pytest.mark.parametrize("design", ["paper", "compact"])
BOTH_FORMS = pytest.mark.parametrize("training", [False, True], ids=["denoising", "training"])


def network(design="paper", outputs=3, channels=3, width=None, **kwargs):
    """A narrow blind network whose weights are all random, biases and last layer too."""
    net = UNet(outputs, design, width=width or {"paper": 4, "compact": 2}[design], **kwargs)
    net.build((None, None, None, channels))
    for variable in net.weights:
        if variable.path.endswith("bias"):
            variable.assign(0.1 * np.random.standard_normal(variable.shape))
    return net


def picture(height, width, channels=3):
    return np.random.uniform(size=(height, width, channels)).astype(np.float32)


@functools.cache
def shared(design="paper", channels=3):
    """A network for tests that leave it as it is, so that it is traced once for each size."""
    return network(design, channels=channels)


@functools.cache
def traced(net, training, xla):
    return tf.function(functools.partial(net, training=training), jit_compile=xla)


def leaking(net, image, positions, value=1e6, training=False, how="graph", batch_size=32):
    """(leaks, deaf): the positions whose own output changes with the input there, in any bit;
    and those where not all of the eight neighbours' outputs change, which is the control.
    how: eager, graph or xla."""
    run = functools.partial(net, training=training) if how == "eager" else traced(net, training, how == "xla")
    before = run(tf.constant(np.broadcast_to(image, (batch_size, *image.shape)))).numpy()
    # Each place of a batch is compared with itself: on some CPUs, XLA rounds differently at the end of a batch.
    np.testing.assert_allclose(before, np.broadcast_to(before[:1], before.shape), rtol=0, atol=1e-5)
    leaks, deaf = [], []
    for start in range(0, len(positions), batch_size):
        part = positions[start : start + batch_size]
        batch = np.repeat(image[None], batch_size, axis=0)
        for one, position in zip(batch, part):
            one[position] = value
        for after, there, (i, j) in zip(run(tf.constant(batch)).numpy(), before, part):
            changed = np.any(after != there, axis=-1)
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


def all_phases(height, width, grid=32):
    """The block in the middle that has one position of every phase of the grid."""
    top, left = (height - grid) // 2, (width - grid) // 2
    positions = [(top + i, left + j) for i, j in all_positions(grid, grid)]
    assert len({(i % grid, j % grid) for i, j in positions}) == grid**2
    return positions


# ---------------------------------------------------------------- the blind spot


@BOTH
@pytest.mark.parametrize(
    "size, channels, training",
    [
        ((32, 32), 3, False), ((32, 32), 3, True), ((32, 32), 1, False), ((32, 32), 1, True), ((32, 64), 3, False),
        pytest.param((64, 64), 3, False, marks=pytest.mark.slow),
        pytest.param((64, 64), 3, True, marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_no_output_depends_on_its_own_pixel_at_any_phase(design, size, channels, training):
    positions = all_phases(*size, DESIGNS[design].grid)
    assert leaking(shared(design, channels), picture(*size, channels), positions, training=training) == ([], [])


@BOTH
@pytest.mark.parametrize("size, channels", [((33, 37), 3), ((9, 23), 1), ((1, 5), 3), ((2, 2), 1)])
def test_no_output_depends_on_its_own_pixel_at_odd_sizes(design, size, channels):
    """In the largest at every third position, which is in each row and in each column."""
    positions = all_positions(*size)[:: 3 if size == (33, 37) else 1]
    assert leaking(shared(design, channels), picture(*size, channels), positions) == ([], [])


@BOTH
@pytest.mark.parametrize(
    "size, channels, training", [((64, 64), 3, False), ((64, 64), 3, True), ((32, 64), 1, False), ((64, 32), 3, False)]
)
def test_no_output_depends_on_its_own_pixel_at_any_border(design, size, channels, training):
    positions = border_positions(*size)
    assert leaking(shared(design, channels), picture(*size, channels), positions, training=training) == ([], [])


@BOTH
@BOTH_FORMS
@pytest.mark.parametrize("value", [-1e6, 1e-3, np.inf, np.nan], ids=str)
def test_no_output_depends_on_its_own_pixel_whatever_its_value(design, training, value):
    leaks, _ = leaking(shared(design), picture(32, 32), all_positions(32, 32)[::5], value, training)
    assert leaks == []


@BOTH
@pytest.mark.parametrize("channel", range(3))
def test_no_output_depends_on_its_own_pixel_in_another_channel(design, channel):
    image = picture(32, 32)
    value = np.full(3, 0.5, np.float32)
    value[channel] = 1e6
    assert leaking(shared(design), image, all_positions(32, 32)[::7], value) == ([], [])


@BOTH
@BOTH_FORMS
def test_no_output_depends_on_its_own_pixel_under_xla(design, training):
    """Training is compiled, denoising can be."""
    positions = all_positions(32, 32)[::3]
    assert leaking(shared(design), picture(32, 32), positions, training=training, how="xla") == ([], [])


@pytest.mark.slow
def test_no_output_depends_on_its_own_pixel_anywhere_in_a_larger_image():
    assert leaking(network(width=2), picture(96, 96), all_positions(96, 96)) == ([], [])


@pytest.mark.slow
def test_no_output_depends_on_its_own_pixel_at_any_phase_under_xla():
    assert leaking(network(), picture(64, 64), all_phases(64, 64), training=True, how="xla") == ([], [])


@functools.cache
def full_network(design="paper", blind=True):
    net = UNet(9, design, blindspot=blind)
    net.build((None, None, None, 3))
    return net


@functools.cache
def gradient_at(i, j, design="paper", training=True, blind=True):
    """Gradient of a random combination of all output channels at a pixel of a picture, [64, 64, C]."""
    net, noisy = full_network(design, blind), tf.constant(picture(64, 64)[None])
    with tf.GradientTape() as tape:
        tape.watch(noisy)
        total = tf.reduce_sum(net(noisy, training=training)[0, i, j] * np.random.standard_normal(net.outputs))
    return tape.gradient(total, noisy)[0].numpy()


PIXELS = [(0, 0), (63, 63), (0, 30), (17, 0), (31, 32), (45, 20)]


@BOTH
@BOTH_FORMS
@pytest.mark.parametrize("pixel", PIXELS, ids=str)
def test_the_gradient_at_the_own_pixel_is_exactly_zero_at_full_width(design, training, pixel):
    gradient = gradient_at(*pixel, design, training)
    assert (gradient[pixel] == 0.0).all()


@BOTH
@pytest.mark.parametrize("pixel", PIXELS, ids=str)
def test_the_blind_spot_is_one_pixel(design, pixel):
    """The gradient at each of the (up to) eight neighbours is not zero, in any channel."""
    i, j = pixel
    gradient = gradient_at(i, j, design)
    around = gradient[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
    assert np.count_nonzero(around) == around.size - 3


@BOTH
def test_the_plain_network_does_use_its_own_pixel(design):
    gradient = gradient_at(31, 32, design, blind=False)
    assert (gradient[31, 32] != 0).all()


@BOTH
def test_all_of_the_context_is_seen(design):
    """A 64 x 64 image lies within the receptive field of each of its pixels, except the pixel itself."""
    gradient = gradient_at(31, 32, design)
    assert np.argwhere(~np.any(gradient != 0, axis=-1)).tolist() == [[31, 32]]


# ---------------------------------------------------------------- a leak would be seen


# At 32 x 32 the coarsest level is one pixel, which has no row below it.
SOME = [(i, (11 * i + 5) % 64) for i in range(1, 64, 8)]


def some_leaks(net, training=False):
    return leaking(net, picture(64, 64), SOME, training=training, how="eager", batch_size=len(SOME))


@BOTH
@BOTH_FORMS
def test_the_unchanged_network_has_no_leak_where_the_changed_ones_are_looked_at(design, training):
    assert some_leaks(network(design), training) == ([], [])


@BOTH
def test_a_missing_last_shift_is_seen(monkeypatch, design):
    # Only the network's own; the pooling keeps its shift.
    names = vars(blindspot) | {"shift_down": lambda x: x}
    net = network(design)
    monkeypatch.setattr(unet, "layers", types.SimpleNamespace(**names))
    assert some_leaks(net)[0] == SOME


@pytest.mark.parametrize(
    "design, name", [(d, n) for d, levels in (("paper", 5), ("compact", 3)) for n in layer_names(levels)]
)
def test_one_unshifted_layer_is_seen(design, name):
    net = network(design)
    layers = [*net.encoder, *net.pools, *net.decoder_a, *net.decoder_b]
    assert sorted(layer.name for layer in layers) == sorted(layer_names(len(net.pools)))
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
    blindspot.all_rotations(image, lambda x: x, together=True)
    assert groups == [0, 1, 2, 3, 0, -1, -2, -3]

    def call(x, training):
        groups.clear()
        return net_call(x, training)

    net = network()
    net_call = net.call
    monkeypatch.setattr(net, "call", call)
    assert some_leaks(net, training=True)[0]


@pytest.mark.parametrize("level", range(5))
def test_ordinary_phase_kernels_in_one_upsampling_are_seen(monkeypatch, level):
    net = network()
    right = blindspot.UpsampleConvolution._convolve_upsampled

    def ordinary(self, x, kernel):
        if self is not net.decoder_a[level]:
            return right(self, x, kernel)
        return right(types.SimpleNamespace(shifted=False), x, kernel)

    monkeypatch.setattr(blindspot.UpsampleConvolution, "_convolve_upsampled", ordinary)
    assert some_leaks(net)[0]


@BOTH
@pytest.mark.parametrize(
    "name, leaking_form",
    [
        ("mean_of_neighbours", lambda x: tf.nn.avg_pool2d(x, 3, 1, "SAME")),
        ("neighbours", lambda x: tf.repeat(x, 8, axis=-1)),
    ],
)
def test_the_own_pixel_among_its_neighbours_is_seen(monkeypatch, design, name, leaking_form):
    """Of the average that the compact network adds, and of what its 1x1 layers see; the paper's network has neither."""
    net = network(design)
    monkeypatch.setattr(blindspot, name, leaking_form)
    assert bool(some_leaks(net)[0]) == (design == "compact")


@BOTH
def test_the_plain_network_leaks_everywhere(design):
    assert some_leaks(network(design, blindspot=False)) == (SOME, [])


# ---------------------------------------------------------------- rotations and shapes


@pytest.mark.parametrize("size", [(32, 32), (32, 64)], ids=str)
def test_rotating_the_input_moves_the_branches_by_one(size):
    """Group k of the turned image is group k + 1 of the image, turned. The 1x1 layers then tell them
    apart, so the whole network does not turn with the image."""
    net, image = network(), tf.constant(picture(*size)[None])
    together = size[0] == size[1]
    groups = blindspot.all_rotations(image, net.trunk, together)
    turned = blindspot.all_rotations(blindspot.rot90(image, 1), net.trunk, together)
    for k in range(4):
        np.testing.assert_array_equal(turned[k], blindspot.rot90(groups[(k + 1) % 4], 1))
    whole = net(blindspot.rot90(image, 1)) - blindspot.rot90(net(image), 1)
    assert np.abs(whole).max() > 1e-3


@BOTH
@pytest.mark.parametrize("blind", [True, False], ids=["blind", "plain"])
def test_the_forms_for_training_and_denoising_are_the_same_function(design, blind):
    """Outputs and gradients, up to rounding. Half of the picture is constant: there, values that are pooled are equal,
    and the same one must get the gradient."""
    net = network(design, width=DESIGNS[design].width, blindspot=blind)
    image = picture(64, 64)
    image[:, 32:] = 0.3
    found = []
    for training in (False, True):
        with tf.GradientTape() as tape:
            outputs = net(image[None], training=training)
            loss = tf.reduce_mean(outputs**2)
        found.append([outputs, *tape.gradient(loss, net.trainable_variables)])
    for denoising, training in zip(*found):
        np.testing.assert_allclose(training, denoising, rtol=0, atol=1e-5 * np.abs(denoising).max())


def test_images_need_not_be_square():
    """The result is that of four branches, one call each."""
    net = network()
    image = picture(32, 96)[None]
    assert net(image).shape == (1, 32, 96, 3)
    branches = [blindspot.rot90(net.trunk(blindspot.rot90(image, k)), -k) for k in range(4)]
    joined = net.last(net.head[1](net.head[0](tf.concat(branches, axis=-1))))
    np.testing.assert_allclose(net(image), joined, rtol=0, atol=3e-6)


@BOTH
@pytest.mark.parametrize("blind", [True, False], ids=["blind", "plain"])
def test_sizes_off_the_grid_are_filled_with_what_lies_beyond_a_border(design, blind):
    """Zeros, or middle gray where the network subtracts 0.5; known and unknown sizes alike."""
    net, image = network(design, blindspot=blind), picture(33, 41)[None]
    fill = 0.5 if design == "compact" else 0.0
    rows, columns = {"paper": (64, 64), "compact": (40, 48)}[design]
    filled = np.pad(image, [(0, 0), (0, rows - 33), (0, columns - 41), (0, 0)], constant_values=fill)
    expected = np.asarray(net(filled))[:, :33, :41]
    got = np.asarray(net(image))
    # The last row and column have neighbours in the filled picture, and none beyond the border of the other.
    inner = (slice(None), slice(0, 32), slice(0, 40)) if design == "compact" else slice(None)
    np.testing.assert_allclose(got[inner], expected[inner], rtol=0, atol=1e-5)
    unknown = tf.function(net, input_signature=[tf.TensorSpec((None, None, None, 3), tf.float32)])
    np.testing.assert_allclose(unknown(image), got, rtol=0, atol=1e-5)


def test_neighbours_are_the_eight_around_each_pixel_row_by_row():
    x = np.arange(1, 13, dtype=np.float32).reshape(1, 3, 4, 1)
    found = np.asarray(blindspot.neighbours(np.concatenate([x, -x], axis=-1)))
    np.testing.assert_array_equal(found[0, 1, 1, ::2], [1, 2, 3, 5, 7, 9, 10, 11])
    np.testing.assert_array_equal(found[0, 0, 3, ::2], [0, 0, 0, 3, 0, 7, 8, 0])
    np.testing.assert_array_equal(found[..., 1::2], -found[..., ::2])


def test_the_mean_of_neighbours_counts_those_that_exist():
    x = np.arange(12, dtype=np.float32).reshape(1, 3, 4, 1)
    mean = np.asarray(blindspot.mean_of_neighbours(x))[0, :, :, 0]
    assert mean[0, 0] == np.float32((1 + 4 + 5) / 3)
    assert mean[0, 1] == np.float32((0 + 2 + 4 + 5 + 6) / 5)
    assert mean[1, 1] == np.float32((0 + 1 + 2 + 4 + 6 + 8 + 9 + 10) / 8)
    assert np.asarray(blindspot.mean_of_neighbours(np.ones((1, 1, 1, 3), np.float32))).tolist() == [[[[0, 0, 0]]]]


def test_models_of_unknown_sizes_promise_them_as_unknown():
    net = network()
    model = keras.Model(noisy := keras.Input((None, None, 3)), net(noisy))
    assert model.output_shape == (None, None, None, 3)
    assert model(np.zeros((1, 40, 33, 3), np.float32)).shape == (1, 40, 33, 3)


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
COUNTS = {("paper", *key): count for key, count in COUNTS.items()}
COUNTS |= {("compact", 3, 9, True): 337_065, ("compact", 3, 3, False): 298_595, ("compact", 1, 2, True): 333_698}


@pytest.mark.parametrize("key", COUNTS, ids=str)
def test_parameter_counts(key):
    design, channels, outputs, blind = key
    net = UNet(outputs, design, blindspot=blind)
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


@BOTH
@pytest.mark.parametrize("options", [{}, {"blindspot": False, "zero_start": True}], ids=str)
def test_the_network_keeps_the_boring_truths(design, options):
    net = UNet(3, design, width=2, **options)
    weights = 2 * (len(net.encoder) + 2 * len(net.pools) + len(net.head) + 1)
    support.check_layer(net, picture(32, 64)[None], weights=weights)


def test_the_compact_network_starts_near_the_mean_of_neighbours():
    """Its last layer starts small, so a training starts from a prediction that makes sense."""
    image = picture(64, 64)[None]
    net = UNet(9, "compact")
    means = np.asarray(net(image))[..., :3]
    assert np.abs(means - blindspot.mean_of_neighbours(image)).mean() < 0.05
    assert np.abs(means - image).mean() > 0.1


# ---------------------------------------------------------------- reach


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("blind", [True, False], ids=["blind", "plain"])
def test_the_reach_is_as_stated(design, blind):
    """How many rows above and below a pixel its value reaches, over all positions on the grid.

    With positive weights and no biases, whatever depends on the only bright pixel is positive.
    """
    net, grid = UNet(2, design, blindspot=blind, width=1), DESIGNS[design].grid
    net.build((None, None, None, 1))
    for weight in net.weights:
        weight.assign(np.full(weight.shape, weight.name == "kernel") / np.prod(weight.shape[:3]))
    position = 384 + np.arange(grid)
    pictures = np.full((grid, 768, 32, 1), 0.5 if DESIGNS[design].residual else 0.0, np.float32)
    pictures[np.arange(grid), position, 16] = 1e20  # so that a thin share does not vanish
    # The second output: the compact network adds the mean of the neighbours to the first.
    reached = np.asarray(net(pictures))[..., 1].any(axis=2)
    first, last = reached.argmax(axis=1), 767 - reached[:, ::-1].argmax(axis=1)
    stated = DESIGNS[design].reach(blind)
    assert max(max(position - first), max(last - position)) == stated


# ---------------------------------------------------------------- precision


def test_bfloat16_is_for_all_but_weights_and_the_last_layer():
    keras.utils.set_random_seed(0)
    network = UNet(9, width=4, dtype="mixed_bfloat16")
    x = np.random.default_rng(0).random((1, 32, 32, 3), dtype=np.float32)
    answer = network(x)
    assert {v.dtype for v in network.trainable_variables} == {"float32"} and answer.dtype == "float32"
    inner = [*network.encoder, *network.pools, *network.decoder_a, *network.decoder_b, *network.head]
    assert {layer.compute_dtype for layer in inner} == {"bfloat16"} and network.last.compute_dtype == "float32"
    # The same function: as far away as 8 bits of mantissa explain, and no nearer.
    keras.utils.set_random_seed(0)
    exact = support.array(UNet(9, width=4)(x))
    apart = np.abs(support.array(answer) - exact).max() / np.abs(exact).max()
    assert 1e-4 < apart < 3e-2


@BOTH
@BOTH_FORMS
def test_no_output_depends_on_its_own_pixel_at_any_phase_in_bfloat16(design, training):
    net, positions = network(design, dtype="mixed_bfloat16"), all_phases(32, 32, DESIGNS[design].grid)
    assert leaking(net, picture(32, 32), positions, training=training) == ([], [])


def test_the_mean_of_neighbours_is_not_rounded_to_bfloat16():
    """A network whose last layer is zero predicts this mean; rounded, it would differ by up to 2e-3."""
    net, x = network("compact", dtype="mixed_bfloat16"), picture(32, 32)[None]
    for variable in net.last.weights:
        variable.assign(np.zeros(variable.shape))
    mean = support.array(blindspot.mean_of_neighbours(x))
    np.testing.assert_array_equal(support.array(net(x)), mean)
    rounded = support.array(blindspot.mean_of_neighbours(keras.ops.cast(x, "bfloat16")))
    assert 1e-4 < np.abs(rounded - mean).max() < 1e-2
