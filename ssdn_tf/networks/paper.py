"""The U-Net of the paper, with and without a blind spot."""

import keras

from ssdn_tf.networks import layers as bs

GRID = 32  # height and width must be multiples: five poolings
_LEVELS = 5


@keras.saving.register_keras_serializable("ssdn_tf")
class UNet(keras.layers.Layer):
    """Five-level U-Net: 48 features down, 96 up, leaky ReLU 0.1, no normalisation.

    With a blind spot, four rotations of the image share one trunk of shifted layers,
    are shifted by one row, rotated back and joined by 1x1 convolutions; then no output
    depends on the input at its own pixel. Without, it is an ordinary U-Net.

    Args:
        outputs: number of output channels.
        blindspot: see above.
        width: features of the encoder; the decoder has twice as many.
        zero_start: the last layer starts at zero (the estimator of noise parameters).
        fused: see `blindspot.UpsampleConv2D`.
        dtype: a policy such as "mixed_bfloat16" holds for all but the last layer.

    Input shape: [N, H, W, C], H and W multiples of 32. Output shape: [N, H, W, outputs].
    Reference: Laine et al. 2019, supplement, table 1.
    """

    def __init__(self, outputs, blindspot=True, width=48, zero_start=False, fused=True, **kwargs):
        super().__init__(**kwargs)
        self.outputs = outputs
        self.blindspot = blindspot
        self.width = width
        self.zero_start = zero_start
        self.fused = fused
        shifted = {"shifted": blindspot, "dtype": self.dtype_policy}
        up = 2 * width
        self.encoder = [bs.Conv2D(width, name=f"enc_conv{i}", **shifted) for i in range(_LEVELS + 2)]
        self.pools = [bs.MaxPool2D(name=f"pool{i + 1}", **shifted) for i in range(_LEVELS)]
        levels = range(_LEVELS, 0, -1)
        self.decoder_a = [bs.UpsampleConv2D(up, fused, name=f"dec_conv{i}a", **shifted) for i in levels]
        self.decoder_b = [bs.Conv2D(up, name=f"dec_conv{i}b", **shifted) for i in levels]
        joined = 4 * up if blindspot else up
        self.nin_a = bs.Conv2D(joined, kernel_size=1, name="nin_a", dtype=self.dtype_policy)
        self.nin_b = bs.Conv2D(up, kernel_size=1, name="nin_b", dtype=self.dtype_policy)
        # What a network says is float32 or better, whatever it is computed in.
        last = {"slope": None, "gain": 0.0 if zero_start else 1.0, "dtype": self.variable_dtype}
        self.nin_c = bs.Conv2D(outputs, kernel_size=1, name="nin_c", **last)

    def build(self, input_shape):
        channels, width = input_shape[-1], self.width
        for i, layer in enumerate(self.encoder):
            layer.build((None, None, None, channels if i == 0 else width))
        low = width
        for first, second in zip(self.decoder_a, self.decoder_b):
            skip = channels if first is self.decoder_a[-1] else width
            first.build((None, None, None, low), (None, None, None, skip))
            second.build((None, None, None, 2 * width))
            low = 2 * width
        self.nin_a.build((None, None, None, self.nin_a.filters if self.blindspot else low))
        self.nin_b.build((None, None, None, self.nin_a.filters))
        self.nin_c.build((None, None, None, self.nin_b.filters))

    def trunk(self, x):
        """Encoder and decoder, [N,H,W,C] -> [N,H,W,96]."""
        skips = [x]
        x = self.encoder[0](x)
        for convolve, pool in zip(self.encoder[1:], self.pools):
            x = pool(convolve(x))
            skips.append(x)
        x = self.encoder[-1](x)
        for first, second, skip in zip(self.decoder_a, self.decoder_b, reversed(skips[:-1])):
            x = second(first(x, skip))
        # The last shift takes the pixel's own row out of view.
        return bs.shift_down(x) if self.blindspot else x

    def call(self, x):
        check_grid(x.shape)
        x = bs.all_rotations(x, self.trunk) if self.blindspot else self.trunk(x)
        return self.nin_c(self.nin_b(self.nin_a(x)))

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.outputs)

    def get_config(self):
        return super().get_config() | {
            "outputs": self.outputs,
            "blindspot": self.blindspot,
            "width": self.width,
            "zero_start": self.zero_start,
            "fused": self.fused,
        }


def check_grid(shape):
    """Raises ValueError where a known height or width is not a multiple of 32."""
    for size in shape[1:3]:
        if isinstance(size, int) and size % GRID:
            raise ValueError(
                f"the network takes heights and widths that are multiples of {GRID}. Received: shape={tuple(shape)}"
            )
