"""The layers that see no row below, each against nested loops or a plainer form.

Sums and products of small integers are exact in float32 in any order, so two ways of
computing the same convolution must agree to the bit; random numbers then show that the
rounding of the usual case is small.
"""

import itertools

import keras
import numpy as np
import pytest
import support
import tensorflow as tf

from ssdn_tf.networks import layers as blindspot
from ssdn_tf.networks.layers import Convolution, Pooling, UpsampleConvolution

ORDINARY_AND_SHIFTED = pytest.mark.parametrize("shifted", [False, True], ids=["ordinary", "shifted"])


def integers(*shape, most=5):
    return np.random.randint(-most, most + 1, shape).astype(np.float32)


def normal(*shape):
    return np.random.standard_normal(shape).astype(np.float32)


def loop_convolution(x, kernel, shifted):
    """[N,H,W,C] with [k,k,C,F]: a zero border, k // 2 wide; shifted as published, that is
    k // 2 rows of zeros on top, an ordinary convolution, as many rows dropped below."""
    half = len(kernel) // 2
    n, height, width, _ = x.shape
    if shifted:
        x = np.pad(x, [(0, 0), (half, 0), (0, 0), (0, 0)])
    padded = np.pad(x.astype(np.float64), [(0, 0), (half, half), (half, half), (0, 0)])
    result = np.zeros((n, x.shape[1], width, kernel.shape[-1]))
    for image, i, j in itertools.product(range(n), range(x.shape[1]), range(width)):
        patch = padded[image, i : i + len(kernel), j : j + len(kernel)]
        result[image, i, j] = np.einsum("abc,abcf->f", patch, kernel)
    return result[:, :height]


def loop_pool(x, shifted):
    if shifted:
        x = np.concatenate([np.zeros_like(x[:, :1]), x[:, :-1]], axis=1)
    n, height, width, channels = x.shape
    result = np.zeros((n, height // 2, width // 2, channels), x.dtype)
    for i, j in itertools.product(range(height // 2), range(width // 2)):
        result[:, i, j] = x[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max(axis=(1, 2))
    return result


class PlainUpsampleConvolution(UpsampleConvolution):
    """The reference: upsample, concatenate, convolve."""

    def call(self, low, skip):
        up = keras.ops.repeat(keras.ops.repeat(low, 2, axis=1), 2, axis=2)
        return self._activate(self._convolve(keras.ops.concatenate([up, skip], axis=-1), self.kernel))


def fused_and_plain(shifted, dtype="float32", low=3, skip=2, filters=4):
    """Two UpsampleConvolution with the same weights."""
    layers = []
    for kind in (UpsampleConvolution, PlainUpsampleConvolution):
        layer = kind(filters, shifted=shifted, dtype=dtype)
        layer.build((None, None, None, low), (None, None, None, skip))
        layers.append(layer)
    layers[0].set_weights([integers(*w.shape) for w in layers[0].weights])
    layers[1].set_weights(layers[0].get_weights())
    return layers


def forward_and_gradients(layer, *inputs):
    """Outputs, gradients of a weighted sum of them for the inputs and the weights; NumPy."""
    inputs = [tf.constant(x) for x in inputs]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        output = layer(*inputs)
        total = tf.reduce_sum(output * np.arange(output.shape[2] * output.shape[3]).reshape(output.shape[2:]))
    gradients = tape.gradient(total, [*inputs, *[w.value for w in layer.weights]])
    return [tensor.numpy() for tensor in (output, *gradients)]


def rows_that_matter(layer, *inputs):
    """bool [output row, input row] for each input: is any gradient different from zero?"""
    inputs = [tf.constant(x) for x in inputs]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(inputs)
        rows = [tf.reduce_sum(row * normal(*row.shape)) for row in tf.unstack(layer(*inputs), axis=1)]
    return [np.stack([np.any(tape.gradient(row, x) != 0, axis=(0, 2, 3)) for row in rows]) for x in inputs]


# ---------------------------------------------------------------- convolution


@ORDINARY_AND_SHIFTED
@pytest.mark.parametrize("size", [1, 3])
def test_convolution_matches_nested_loops_exactly(shifted, size):
    layer = Convolution(4, kernel_size=size, shifted=shifted, slope=None)
    x, kernel, bias = integers(2, 6, 5, 3), integers(size, size, 3, 4), integers(4)
    layer.build(x.shape)
    layer.set_weights([kernel, bias])
    np.testing.assert_array_equal(layer(x), loop_convolution(x, kernel, shifted) + bias)


def test_the_activation_is_a_leaky_relu_of_slope_one_tenth():
    layer = Convolution(1, kernel_size=1)
    layer.build((None, None, None, 1))
    layer.set_weights([np.ones((1, 1, 1, 1)), np.zeros(1)])
    x = np.array([-3.0, -1.0, 0.0, 2.0], np.float32).reshape(1, 2, 2, 1)
    np.testing.assert_array_equal(layer(x), np.where(x < 0, np.float32(0.1) * x, x))


def test_shifted_convolution_sees_its_row_and_two_above_and_nothing_else():
    (seen,) = rows_that_matter(Convolution(4, shifted=True), normal(1, 7, 5, 3))
    i, row = np.indices(seen.shape)
    np.testing.assert_array_equal(seen, (row <= i) & (row >= i - 2))


def test_ordinary_convolution_sees_the_row_below():
    (seen,) = rows_that_matter(Convolution(4), normal(1, 7, 5, 3))
    i, row = np.indices(seen.shape)
    np.testing.assert_array_equal(seen, abs(row - i) <= 1)


# ---------------------------------------------------------------- pooling and shifting


def test_shift_down_moves_by_one_row():
    x = integers(2, 4, 3, 2)
    shifted = np.asarray(blindspot.shift_down(x))
    np.testing.assert_array_equal(shifted[:, 0], 0)
    np.testing.assert_array_equal(shifted[:, 1:], x[:, :-1])


@ORDINARY_AND_SHIFTED
def test_pooling_matches_nested_loops_exactly(shifted):
    x = normal(2, 6, 8, 3)
    np.testing.assert_array_equal(Pooling(shifted)(x), loop_pool(x, shifted))


@ORDINARY_AND_SHIFTED
def test_pooling_gives_the_picture_of_its_docstring(shifted):
    column = np.float32([1, 2, 3, 4]).reshape(1, 4, 1, 1).repeat(2, axis=2)
    assert np.asarray(Pooling(shifted)(column)).ravel().tolist() == ([1, 3] if shifted else [2, 4])


@ORDINARY_AND_SHIFTED
def test_only_shifted_pooling_sees_no_row_below_its_first(shifted):
    """Output row i of a pooling comes to lie on rows 2i and 2i + 1 when it is upsampled."""
    seen = np.zeros((4, 8), bool)
    for _ in range(8):  # a gradient shows only the pixel that is the largest
        seen |= rows_that_matter(Pooling(shifted), normal(1, 8, 16, 3))[0]
    i, row = np.indices(seen.shape)
    first = 2 * i - (1 if shifted else 0)
    np.testing.assert_array_equal(seen, (row == first) | (row == first + 1))


# ---------------------------------------------------------------- upsampling and convolution in one


@ORDINARY_AND_SHIFTED
@pytest.mark.parametrize("size", [(3, 4), (1, 1), (5, 2)], ids=str)
def test_fused_upsampling_equals_the_plain_form_exactly_on_integers(shifted, size):
    fused, plain = fused_and_plain(shifted)
    for layer in (fused, plain):
        layer.slope = None  # 0.1 is no dyadic fraction
    height, width = size
    low, skip = integers(2, height, width, 3), integers(2, 2 * height, 2 * width, 2)
    results = zip(forward_and_gradients(fused, low, skip), forward_and_gradients(plain, low, skip))
    for ours, expected in results:
        np.testing.assert_array_equal(ours, expected)


@ORDINARY_AND_SHIFTED
def test_plain_upsampling_matches_nested_loops_exactly(shifted):
    _, plain = fused_and_plain(shifted)
    plain.slope = None
    low, skip = integers(2, 3, 4, 3), integers(2, 6, 8, 2)
    x = np.concatenate([np.kron(low, np.ones((1, 2, 2, 1))), skip], axis=-1)
    kernel, bias = plain.get_weights()
    np.testing.assert_array_equal(plain(low, skip), loop_convolution(x, kernel, shifted) + bias)


@ORDINARY_AND_SHIFTED
@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-5), ("float64", 1e-13)])
def test_fused_upsampling_equals_the_plain_form_within_rounding(shifted, dtype, tolerance):
    """Relative to the largest value of each tensor; float32 rounds at 6e-8, sums have 864 terms."""
    fused, plain = fused_and_plain(shifted, dtype, low=96, skip=48, filters=96)
    fused.set_weights([np.random.standard_normal(w.shape) for w in fused.weights])
    plain.set_weights(fused.get_weights())
    low, skip = normal(2, 8, 6, 96).astype(dtype), normal(2, 16, 12, 48).astype(dtype)
    results = zip(forward_and_gradients(fused, low, skip), forward_and_gradients(plain, low, skip))
    for ours, expected in results:
        assert ours.dtype == expected.dtype == dtype
        assert np.abs(ours - expected).max() <= tolerance * np.abs(expected).max()


def test_the_phase_kernels_of_the_other_kind_are_seen(monkeypatch):
    fused, plain = fused_and_plain(shifted=True)
    low, skip = normal(1, 4, 4, 3), normal(1, 8, 8, 2)
    assert np.abs(fused(low, skip) - plain(low, skip)).max() < 1e-4
    right = UpsampleConvolution._convolve_upsampled

    def rows_swapped(self, x, kernel):
        up = right(self, x, kernel)
        n, height, width, filters = up.shape
        return tf.reshape(tf.reshape(up, (n, -1, 2, width, filters))[:, :, ::-1], (n, height, width, filters))

    monkeypatch.setattr(UpsampleConvolution, "_convolve_upsampled", rows_swapped)
    assert np.abs(fused(low, skip) - plain(low, skip)).max() > 1


@pytest.mark.parametrize("kind", [UpsampleConvolution, PlainUpsampleConvolution])
def test_shifted_upsampling_sees_no_row_below(kind):
    """Of the skip rows i - 2 to i; of `low`, whose row m comes to lie on rows 2m and 2m + 1, those there."""
    layer = kind(4, shifted=True)
    low, skip = rows_that_matter(layer, normal(1, 4, 3, 3), normal(1, 8, 6, 2))
    i, row = np.indices(skip.shape)
    np.testing.assert_array_equal(skip, (row <= i) & (row >= i - 2))
    i, row = np.indices(low.shape)
    np.testing.assert_array_equal(low, (row <= i // 2) & (row >= (i - 2) // 2))


# ---------------------------------------------------------------- rotations


@pytest.mark.parametrize("k", range(-4, 8))
def test_rot90_is_that_of_numpy(k):
    x = np.arange(2 * 3 * 4 * 2, dtype=np.float32).reshape(2, 3, 4, 2)
    np.testing.assert_array_equal(blindspot.rot90(x, k), np.rot90(x, k, axes=(1, 2)))


@pytest.mark.parametrize("size", [(4, 4), (2, 4), (6, 2)], ids=str)
def test_rotating_and_back_gives_four_times_the_input(size):
    x = np.arange(2 * size[0] * size[1] * 3, dtype=np.float32).reshape(2, *size, 3)
    for together in (False, True)[: 2 if size[0] == size[1] else 1]:
        result = blindspot.all_rotations(tf.constant(x), lambda y: y, together)
        np.testing.assert_array_equal(result, [x] * 4)


@pytest.mark.parametrize("size, together", [((4, 4), True), ((4, 4), False), ((2, 4), False)], ids=str)
def test_the_groups_are_the_four_directions_in_order(size, together):
    """A shift down, between rotation and its reverse: the values come from above, right, below and left.

    numpy.rot90 turns counterclockwise, so the right-hand side of the image comes on top first.
    """
    x = 1 + np.arange(np.prod(size), dtype=np.float32).reshape(1, *size, 1)
    result = np.concatenate(blindspot.all_rotations(tf.constant(x), blindspot.shift_down, together), axis=-1)[0]
    padded = np.pad(x[0, :, :, 0], 1)
    above, right = padded[:-2, 1:-1], padded[1:-1, 2:]
    below, left = padded[2:, 1:-1], padded[1:-1, :-2]
    np.testing.assert_array_equal(result, np.stack([above, right, below, left], axis=-1))


def test_one_call_gives_the_same_as_four():
    x = normal(2, 8, 8, 3)
    calls, layer = [], Convolution(4, shifted=True)

    def trunk(y):
        calls.append(y.shape[0])
        return blindspot.shift_down(layer(y))

    layer.build(x.shape)
    results = [blindspot.all_rotations(x, trunk, together) for together in (True, False)]
    assert calls == [8, 2, 2, 2, 2]
    np.testing.assert_allclose(*results, rtol=0, atol=1e-6)


@pytest.mark.parametrize("count", [1, 4, 8])
def test_bands_of_rows_give_the_same_as_the_whole(count):
    branches = [normal(2, 8, 12, 3) for _ in range(4)]
    heights = []

    def weighted(x):
        heights.append(x.shape[1])
        return tf.reduce_sum(x * np.arange(12, dtype=np.float32), axis=-1, keepdims=True)

    result = blindspot.in_bands(weighted, branches, count)
    assert heights == [8 // count] * count
    np.testing.assert_allclose(result, weighted(np.concatenate(branches, axis=-1)), rtol=1e-6)


# ---------------------------------------------------------------- the boring truths


@ORDINARY_AND_SHIFTED
@pytest.mark.parametrize("size, slope", [(3, 0.1), (1, None)])
def test_convolution_keeps_the_boring_truths(shifted, size, slope):
    layer = Convolution(4, kernel_size=size, shifted=shifted, slope=slope, gain=1.0)
    support.check_layer(layer, normal(2, 6, 5, 3), weights=2)


@ORDINARY_AND_SHIFTED
def test_upsampling_keeps_the_boring_truths(shifted):
    layer = UpsampleConvolution(4, shifted=shifted)
    support.check_layer(layer, normal(2, 3, 2, 3), normal(2, 6, 4, 2), weights=2)


@ORDINARY_AND_SHIFTED
def test_pooling_keeps_the_boring_truths(shifted):
    support.check_layer(Pooling(shifted), normal(2, 4, 6, 3))


def test_pooling_promises_unknown_sizes_as_unknown():
    assert Pooling(True).compute_output_shape((None, None, 8, 3)) == (None, None, 4, 3)
    symbol = keras.KerasTensor((None, None, None, 3))
    assert Pooling(True)(symbol).shape == (None, None, None, 3)


# ---------------------------------------------------------------- how the weights start


def test_kernels_start_from_draws_of_numpy():
    """So that every backend starts from the same bits; their variance: test_networks.py."""
    start = blindspot.NumpyNormal(2.0, seed=7)
    draw = np.random.default_rng(7).standard_normal((3, 3, 5, 4), dtype=np.float32)
    np.testing.assert_array_equal(support.array(start((3, 3, 5, 4))), np.float32((2.0 / 45) ** 0.5) * draw)
    again = blindspot.NumpyNormal.from_config(start.get_config())
    np.testing.assert_array_equal(support.array(again((3, 3, 5, 4))), support.array(start((3, 3, 5, 4))))


def test_the_seed_of_keras_decides_how_kernels_start():
    def kernels(seed):
        keras.utils.set_random_seed(seed)
        layers = [Convolution(4), Convolution(4)]
        for layer in layers:
            layer.build((None, None, None, 4))
        return [support.array(layer.kernel) for layer in layers]

    first, second = kernels(0)
    np.testing.assert_array_equal(kernels(0), [first, second])
    assert np.all(first != second) and np.all(first != kernels(1)[0])


def test_the_derivative_of_the_leaky_relu_at_zero_is_its_slope():
    x = tf.constant([-2.0, 0.0, 3.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = blindspot.leaky_relu(x, 0.1)
    np.testing.assert_array_equal(y, np.float32([-0.2, 0.0, 3.0]))
    np.testing.assert_array_equal(tape.gradient(y, x), np.float32([0.1, 0.1, 1.0]))
