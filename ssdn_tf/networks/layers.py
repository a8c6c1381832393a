"""Layers whose output at a pixel depends on the rows above it and its own row, never below.

Four such half-plane networks, one a rotation of the image, see between them every
direction. A last shift by one row takes the pixel's own row away from each, so that
no output depends on the noisy value of its own pixel: the blind spot. The half-planes
of the four rotations cover everything else.

A 3x3 convolution reads, for output row i (kernel height 3, offset by one row):

    ordinary   rows i-1  i  i+1        shifted   rows i-2  i-1  i

A pooled row of an ordinary 2x2 pooling reads rows 2i, 2i+1. Upsampled again, row 2i
would know row 2i+1, which lies below it. Shifted down by one row first:

    ordinary   rows 2i, 2i+1           shifted   rows 2i-1, 2i

Reference: Laine et al. 2019, section 2 and figure 2.
"""

import contextlib
import math
import random

import keras
import numpy as np
from keras import ops


def shift_down(x):
    """Moves [N,H,W,C] down by one row: a zero row enters on top, the last one is dropped."""
    n, height, width, channels = ops.shape(x)
    # Not x[:, :-1], whose gradient is slow where XLA does not compile it.
    kept = ops.slice(x, (0, 0, 0, 0), (n, height - 1, width, channels))
    return ops.pad(kept, [[0, 0], [1, 0], [0, 0], [0, 0]])


def rot90(x, k):
    """`numpy.rot90(x, k)` on the axes H, W of [N,H,W,C]."""
    k %= 4
    if k == 0:
        return x
    if k == 2:
        return ops.flip(x, axis=(1, 2))
    transposed = ops.transpose(x, (0, 2, 1, 3))
    return ops.flip(transposed, axis=1 if k == 1 else 2)


def all_rotations(x, trunk, together):
    """Applies `trunk` to the image rotated by 0, 90, 180 and 270 degrees, and rotates back.

    Args:
        x: [N, H, W, C].
        trunk: function [M, H, W, C] -> [M, H, W, F], for both orientations.
        together: in one call, which squares can take; else in four, one after the other, so that the memory of one
            serves the next. The results are the same.

    Returns:
        Four [N, H, W, F], in the order 0, 90, 180, 270.
    """
    if together:
        parts = ops.split(trunk(ops.concatenate([rot90(x, k) for k in range(4)], axis=0)), 4, axis=0)
        return [rot90(part, -k) for k, part in enumerate(parts)]
    branches = []
    for k in range(4):
        with after(branches[-1:]):
            branches.append(rot90(trunk(rot90(x, k)), -k))
    return branches


def in_bands(function, branches, count):
    """A function of single pixels on the branches side by side, which takes less memory by bands of rows in turn.

    Args:
        function: [N, h, W, 4 F] -> [N, h, W, G], for any h.
        branches: list of [N, H, W, F].
        count: of bands; H is a multiple of it.

    Returns:
        [N, H, W, G].
    """
    if count == 1:
        return function(ops.concatenate(branches, axis=-1))
    results = []
    for band in zip(*(ops.split(branch, count, axis=1) for branch in branches)):
        with after(results[-1:]):
            results.append(function(ops.concatenate(band, axis=-1)))
    return ops.concatenate(results, axis=1)


def after(tensors):
    """A context: what is computed within waits for the tensors, so that memory for both is not needed at once.

    It does nothing under JAX, where XLA finds an order by itself.
    """
    if keras.backend.backend() != "tensorflow":
        return contextlib.nullcontext()
    import tensorflow as tf

    return tf.control_dependencies(tensors)


def on_grid(function, x, grid):
    """function(x) for any height and width, where the function needs multiples of `grid`.

    Zeros fill the image up at the bottom and on the right, as convolutions pad it on all sides; the result is cropped.
    (A reflection would show pixels near the border their own noise.)

    Args:
        function: [N, H, W, C] -> [N, H, W, F].
        x: [N, H, W, C].
        grid: a power of two.
    """
    height, width = ops.shape(x)[1:3]
    bottom, right = -height % grid, -width % grid
    if isinstance(bottom, int) and isinstance(right, int) and bottom == right == 0:
        return function(x)
    return function(ops.pad(x, [[0, 0], [0, bottom], [0, right], [0, 0]]))[:, :height, :width]


def neighbours(x):
    """The eight pixels around each pixel, row by row, zero beyond the border: [N,H,W,C] to [N,H,W,8C]."""
    height, width = ops.shape(x)[1:3]
    x = ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
    around = [(i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)]
    return ops.concatenate([x[:, i : i + height, j : j + width] for i, j in around], axis=-1)


def mean_of_neighbours(x):
    """Mean of the eight pixels around each pixel, of fewer at the border: [N,H,W,C] to [N,H,W,C].

    The pixel itself takes no part, not even in a sum that it is later subtracted from, so the result is blind to it.
    """
    return _sum_of_neighbours(x) / ops.maximum(_sum_of_neighbours(ops.ones_like(x[:1, :, :, :1])), 1.0)


def _sum_of_neighbours(x):
    x = ops.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
    sides = x[:, :, :-2] + x[:, :, 2:]
    rows = sides + x[:, :, 1:-1]
    return rows[:, :-2] + rows[:, 2:] + sides[:, 1:-1]


def _larger(a, b):
    return ops.where(a >= b, a, b)


def leaky_relu(x, slope):
    """x where it is positive, else slope x; its derivative at 0 is `slope` on every backend.

    JAX's own has derivative 1 there. That counts at the start of a training: biases are zero, so
    where a kernel reads nothing but padding (deep levels of small crops), its output is exactly 0.
    """
    if keras.backend.backend() == "jax":
        return ops.where(x > 0, x, slope * x)
    return ops.leaky_relu(x, negative_slope=slope)


@keras.saving.register_keras_serializable("ssdn_tf")
class NumpyNormal(keras.initializers.Initializer):
    """Normal, not truncated, with variance gain / fan_in, for kernels [..., channels, filters].

    Keras's own draws come from the generator of the backend. These are the same on each of
    them, bit for bit, after `keras.utils.set_random_seed`.

    Args:
        gain: numerator of the variance.
        seed: of the draw; None takes one, here and now, from the generator that
            `keras.utils.set_random_seed` seeds, as Keras does.
    """

    def __init__(self, gain, seed=None):
        self.gain = gain
        self.seed = random.randint(1, 10**9) if seed is None else seed

    def __call__(self, shape, dtype="float32"):
        std = math.sqrt(self.gain / math.prod(shape[:-1]))
        draw = np.random.default_rng(self.seed).standard_normal(shape, dtype=np.float32)
        return ops.convert_to_tensor(np.float32(std) * draw, dtype=dtype)

    def get_config(self):
        return {"gain": self.gain, "seed": self.seed}


@keras.saving.register_keras_serializable("ssdn_tf")
class Convolution(keras.layers.Layer):
    """3x3 or 1x1 convolution with bias and optional leaky ReLU, ordinary or shifted.

    Args:
        filters: number of outputs.
        kernel_size: 3 or 1.
        shifted: read no row below the output's (see the head of this module).
        slope: of the leaky ReLU for negative values; None for no activation.
        gain: the weights start normal (not truncated) with variance gain / fan_in.

    Input shape: [N, H, W, C]. Output shape: [N, H, W, filters].
    """

    def __init__(self, filters, kernel_size=3, shifted=False, slope=0.1, gain=2.0, **kwargs):
        super().__init__(**kwargs)
        self.filters = filters
        self.kernel_size = kernel_size
        self.shifted = shifted
        self.slope = slope
        self.gain = gain

    def build(self, input_shape):
        self._add_weights(input_shape[-1])

    def _add_weights(self, channels):
        shape = (self.kernel_size, self.kernel_size, channels, self.filters)
        start = "zeros"
        if self.gain:
            start = NumpyNormal(self.gain)
        self.kernel = self.add_weight(name="kernel", shape=shape, initializer=start)
        self.bias = self.add_weight(name="bias", shape=(self.filters,), initializer="zeros")

    def call(self, x, training=False):
        if training and self.kernel_size == 1:  # a product of matrices, whose gradient is faster where XLA compiles it
            return self._activate(ops.tensordot(x, self.kernel[0, 0], axes=1))
        return self._activate(self._convolve(x, self.kernel))

    def _convolve(self, x, kernel):
        if self.kernel_size == 1 or not self.shifted:
            return ops.conv(x, kernel, padding="same", data_format="channels_last")
        x = ops.pad(x, [[0, 0], [2, 0], [1, 1], [0, 0]])
        return ops.conv(x, kernel, padding="valid", data_format="channels_last")

    def _activate(self, x):
        x = x + self.bias
        return x if self.slope is None else leaky_relu(x, self.slope)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.filters)

    def get_config(self):
        return super().get_config() | {
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "shifted": self.shifted,
            "slope": self.slope,
            "gain": self.gain,
        }


@keras.saving.register_keras_serializable("ssdn_tf")
class UpsampleConvolution(Convolution):
    """3x3 convolution of [nearest x2 upsampling of `low`, `skip`], without upsampling.

    After a nearest-neighbour upsampling, a 3x3 kernel reads only 2x2 different pixels,
    so the part that acts on `low` is four 2x2 convolutions at the low resolution, one a
    phase (row parity p, column parity q): 4/9 of the work, and the upsampled tensor is
    never written. The kernel is the one of the plain form, [3, 3, low + skip, filters].

    Args:
        As in Convolution.

    Input shape: low [N, H, W, A], skip [N, 2H, 2W, B]. Output shape: [N, 2H, 2W, filters].
    """

    def build(self, low_shape, skip_shape):
        self._add_weights(low_shape[-1] + skip_shape[-1])

    def call(self, low, skip):
        low_kernel, skip_kernel = ops.split(ops.convert_to_tensor(self.kernel), [low.shape[-1]], axis=2)
        up = self._convolve_upsampled(low, low_kernel)
        # The skip is ready early; convolved then, its result would only take up memory until it is needed.
        with after([up]):
            across = self._convolve(skip, skip_kernel)
        return self._activate(up + across)

    def _convolve_upsampled(self, x, kernel):
        """The phases of the upsampled convolution, interleaved: [N,H,W,A] -> [N,2H,2W,filters].

        Which low row a kernel row falls on, and so which are added up, by row parity:

            ordinary   p = 0: 0 | 1+2 on rows i-1, i     p = 1: 0+1 | 2 on rows i, i+1
            shifted    p = 0: 0+1 | 2 on rows i-1, i     p = 1: 0 | 1+2 on rows i-1, i

        Both parities of the shifted form read the same rows, so they are one convolution with twice the filters.
        (Unstacked, as the gradient of a slice is slow where XLA does not compile it.)
        """
        first, second = (lambda a, b, c: (a, b + c)), (lambda a, b, c: (a + b, c))
        parts, rows = (second, first) if self.shifted else (first, second), ops.unstack(kernel, 3)
        row_kernels = [ops.stack(part(*rows)) for part in parts]
        row_pads = [(1, 0), (0, 1)]
        if self.shifted:
            row_kernels, row_pads = [ops.concatenate(row_kernels, axis=-1)], row_pads[:1]
        columns = []
        for part, column_pad in ((first, (1, 0)), (second, (0, 1))):
            rows = []
            for row_kernel, row_pad in zip(row_kernels, row_pads):
                phase_kernel = ops.stack(part(*ops.unstack(row_kernel, 3, axis=1)), axis=1)
                padded = ops.pad(x, [[0, 0], row_pad, column_pad, [0, 0]])
                rows.append(ops.conv(padded, phase_kernel, padding="valid", data_format="channels_last"))
            columns.append(ops.concatenate(rows, axis=-1))
        stacked = ops.stack(columns, axis=3)  # [N, H, W, column parity, row parity and filters]
        n, height, width, filters = *ops.shape(x)[:3], kernel.shape[-1]
        stacked = ops.reshape(stacked, (n, height, width, 2, 2, filters))
        return ops.reshape(ops.transpose(stacked, (0, 1, 4, 2, 3, 5)), (n, 2 * height, 2 * width, filters))

    def compute_output_shape(self, low_shape, skip_shape):
        return (*skip_shape[:-1], self.filters)


@keras.saving.register_keras_serializable("ssdn_tf")
class Pooling(keras.layers.Layer):
    """2x2 maximum, of the image or (shifted) of the image moved down by one row.

    A column of four rows, pooled in rows only for the picture:

        1 2 3 4   ordinary -> 2 4     shifted -> 0 1 2 3 -> 1 3

    Input shape: [N, H, W, C], H and W even. Output shape: [N, H/2, W/2, C].
    """

    def __init__(self, shifted=False, **kwargs):
        super().__init__(**kwargs)
        self.shifted = shifted

    def call(self, x, training=False):
        if self.shifted:
            x = shift_down(x)
        if training:  # the same, faster where XLA compiles it; the gradient goes to the first of equal values here too
            n, height, width, channels = ops.shape(x)
            x = _larger(*ops.split(ops.reshape(x, (n, height, width // 2, 2 * channels)), 2, axis=3))
            x = _larger(*ops.split(ops.reshape(x, (n, height // 2, width * channels)), 2, axis=2))
            return ops.reshape(x, (n, height // 2, width // 2, channels))
        return ops.max_pool(x, 2, 2, padding="valid", data_format="channels_last")

    def compute_output_shape(self, input_shape):
        n, height, width, channels = input_shape
        return (n, height and height // 2, width and width // 2, channels)

    def get_config(self):
        return super().get_config() | {"shifted": self.shifted}
