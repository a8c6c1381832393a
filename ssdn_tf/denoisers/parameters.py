"""Where the noise parameter comes from: given, one unknown number, or one a picture.

Each layer is called as `layer(noisy, noise_parameter)` with [N,H,W,C] and [N,1,1,1] and
returns a parameter [N or 1, 1, 1, 1] in the unit of the noise model. The learned ones
ignore the given value.

Reference: Laine et al. 2019, section 4.
"""

import keras
from keras import ops

from ssdn_tf.networks.unet import UNet


@keras.saving.register_keras_serializable("ssdn_tf")
class KnownParameter(keras.layers.Layer):
    """The given parameter, bounded below where the model needs it (sigma >= 1e-3)."""

    def __init__(self, noise, **kwargs):
        super().__init__(**kwargs)
        self.noise = noise

    def call(self, noisy, noise_parameter):
        return self.noise.bound_known(noise_parameter)

    def compute_output_shape(self, noisy_shape, noise_parameter_shape):
        return noise_parameter_shape

    def get_config(self):
        return super().get_config() | {"noise": keras.saving.serialize_keras_object(self.noise)}

    @classmethod
    def from_config(cls, config):
        noise = keras.saving.deserialize_keras_object(config["noise"])
        return cls(**config | {"noise": noise})


@keras.saving.register_keras_serializable("ssdn_tf")
class GlobalParameter(KnownParameter):
    """One number for the data set: constrain(rate * weight), with rate * weight = start at first.

    Adam moves a weight by about one learning rate a step whatever its gradient, so a
    number that has a long way to go needs more than the network's rate: `rate`
    multiplies the speed of this number alone. Published: start 0, rate 1.
    """

    def __init__(self, noise, start=0.0, rate=1.0, **kwargs):
        super().__init__(noise, **kwargs)
        self.start = start
        self.rate = rate

    def build(self, noisy_shape, noise_parameter_shape):
        start = keras.initializers.Constant(self.start / self.rate)
        self.raw = self.add_weight(name="noise_data", shape=(1, 1, 1, 1), initializer=start)

    def call(self, noisy, noise_parameter):
        return self.noise.constrain(self.rate * self.raw)

    def compute_output_shape(self, noisy_shape, noise_parameter_shape):
        return (1, 1, 1, 1)

    def get_config(self):
        return super().get_config() | {"start": self.start, "rate": self.rate}


@keras.saving.register_keras_serializable("ssdn_tf")
class PerImageParameter(KnownParameter):
    """One number a picture: constrain(spatial mean of a plain U-Net with one output).

    The weights of the U-Net's last layer start at zero and its bias at `start`, so all
    pictures start equal; without that the estimate fails to converge. Published: start 0.

    Args:
        noise: a NoiseModel.
        start: raw number that all images start from.
        network: arguments of `unet.UNet`: network, width, dtype. The estimator is of the same design as the
            denoiser, without a blind spot.
    """

    def __init__(self, noise, start=0.0, network=None, **kwargs):
        super().__init__(noise, **kwargs)
        self.start = start
        self.settings = dict(network or {})
        self.network = UNet(1, blindspot=False, zero_start=True, name="param_estimation_net", **self.settings)

    def build(self, noisy_shape, noise_parameter_shape):
        self.network.build(noisy_shape)
        self.network.last.bias.assign([self.start])

    def call(self, noisy, noise_parameter):
        raw = ops.mean(self.network(noisy), axis=(1, 2), keepdims=True)
        return self.noise.constrain(raw)

    def get_config(self):
        return super().get_config() | {"start": self.start, "network": self.settings}
