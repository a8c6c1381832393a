"""The U-Nets, with and without a blind spot; `designs` has their sizes."""

import functools
import string

import keras
from keras import ops

from ssdn_tf.networks import layers
from ssdn_tf.networks.designs import DESIGNS

_BANDS = 8  # of rows, in which the 1x1 convolutions take turns: their many features need the most memory


@keras.saving.register_keras_serializable("ssdn_tf")
class UNet(keras.layers.Layer):
    """U-Net with leaky ReLU 0.1 and no normalisation.

    With a blind spot, four rotations of the image share one trunk of shifted layers, are shifted by one row,
    rotated back and joined by 1x1 convolutions; then no output depends on the input at its own pixel. Without,
    it is an ordinary U-Net.

    Args:
        outputs: number of output channels.
        network: a key of `designs.DESIGNS`.
        blindspot: see above.
        width: features of the first convolution; all others scale with it. None: the design's own.
        zero_start: the last layer starts at zero (for the estimator of noise parameters).
        dtype: a policy such as "mixed_bfloat16" holds for all but the last layer.

    Called with `training`, it computes the same in another order: faster where XLA compiles it, in more memory, for
    squares only.

    Input shape: [N, H, W, C], any H and W. Output shape: [N, H, W, outputs].
    Reference: Laine et al. 2019, section 2 and supplement, table 1.
    """

    def __init__(self, outputs, network="paper", blindspot=True, width=None, zero_start=False, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.outputs = outputs
        self.network = network
        self.blindspot = blindspot
        self.design = design = DESIGNS[network]
        self.width = width or design.width
        self.zero_start = zero_start
        self.residual = design.residual and not zero_start
        self.sees_neighbours = design.residual and blindspot
        settings = {"dtype": self.dtype_policy}
        shifted = settings | {"shifted": blindspot}
        features = [self.width * n for n in (1, *design.encoder, design.bottom)]
        self.encoder = [layers.Convolution(n, name=f"enc_conv{i}", **shifted) for i, n in enumerate(features)]
        levels = range(len(design.encoder), 0, -1)
        self.pools = [layers.Pooling(name=f"pool{i}", **shifted) for i in reversed(levels)]
        decoder = {level: self.width * design.decoder[level - 1] for level in levels}
        self.decoder_a = [layers.UpsampleConvolution(n, name=f"dec_conv{i}a", **shifted) for i, n in decoder.items()]
        self.decoder_b = [layers.Convolution(n, name=f"dec_conv{i}b", **shifted) for i, n in decoder.items()]
        head = [self.width * n for n in (design.head if blindspot else design.plain_head)]
        names = [f"nin_{letter}" for letter in string.ascii_lowercase]
        self.head = [layers.Convolution(n, kernel_size=1, name=name, **settings) for n, name in zip(head, names)]
        gain = 0.0 if zero_start else 0.01 if design.residual else 1.0
        # Outputs are float32, whatever the network computes in.
        last = {"kernel_size": 1, "slope": None, "gain": gain, "dtype": self.variable_dtype}
        self.last = layers.Convolution(outputs, name=names[len(head)], **last)

    def build(self, input_shape):
        channels = input_shape[-1]
        image = (None, None, None, channels)
        skips, shape = [image], image
        for layer in self.encoder:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
            skips.append(shape)
        # The skip of a level is what enters its first convolution: the image, or what the level above pooled.
        skips = [image, *skips[2:-2]]
        for first, second, skip in zip(self.decoder_a, self.decoder_b, reversed(skips)):
            first.build(shape, skip)
            shape = first.compute_output_shape(shape, skip)
            second.build(shape)
        features = shape[-1] * (4 if self.blindspot else 1) + (8 * channels if self.sees_neighbours else 0)
        shape = (*shape[:-1], features)
        for layer in [*self.head, self.last]:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)

    def trunk(self, x):
        """Encoder and decoder, [N,H,W,C] -> [N,H,W,F]."""
        skips = [x]
        x = self.encoder[0](x)
        for convolve, pool in zip(self.encoder[1:], self.pools):
            x = pool(convolve(x))
            skips.append(x)
        x = self.encoder[-1](x)
        for first, second, skip in zip(self.decoder_a, self.decoder_b, reversed(skips[:-1])):
            x = second(first(x, skip))
        # The last shift hides the pixel's own row.
        return layers.shift_down(x) if self.blindspot else x

    def call(self, x, training=False):
        forward = functools.partial(self._forward, training=training)
        image = ops.cast(x - 0.5 if self.design.residual else x, self.compute_dtype)
        outputs = layers.on_grid(forward, image, self.design.grid)
        if not self.residual:
            return outputs
        average = ops.cast(layers.mean_of_neighbours(x), outputs.dtype)
        channels = x.shape[-1]
        return ops.concatenate([outputs[..., :channels] + average, outputs[..., channels:]], axis=-1)

    def _forward(self, x, training):
        branches = layers.all_rotations(x, self.trunk, together=training) if self.blindspot else [self.trunk(x)]
        if self.sees_neighbours:
            with layers.after(branches):  # computed earlier, they would only take up memory
                branches.append(layers.neighbours(x))
        return layers.in_bands(self._join, branches, 1 if training else min(self.design.grid, _BANDS))

    def _join(self, x):
        for layer in self.head:
            x = layer(x)
        return self.last(x)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.outputs)

    def get_config(self):
        return super().get_config() | {
            "outputs": self.outputs,
            "network": self.network,
            "blindspot": self.blindspot,
            "width": self.width,
            "zero_start": self.zero_start,
        }
