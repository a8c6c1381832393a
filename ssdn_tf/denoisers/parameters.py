"""Where the noise parameter comes from: it is given, one unknown number for all, or one number for each picture.

The layers are called as `layer(noisy, noise_parameter)` with [N,H,W,C] and [N,1,1,1] and return a parameter
[N or 1, 1, 1, 1] in the unit of the noise model. The learned ones ignore the given value.

Reference: Laine et al. 2019, section 4.
"""

import keras
from keras import ops

from ssdn_tf.denoisers.noise_layer import NoiseLayer
from ssdn_tf.networks.unet import UNet


@keras.saving.register_keras_serializable("ssdn_tf")
class KnownParameter(NoiseLayer):
    """The given parameter, bounded below where the noise model needs it (sigma >= 1e-3)."""

    def call(self, noisy, noise_parameter):
        return self.noise.bound_known(noise_parameter)

    def compute_output_shape(self, noisy_shape, noise_parameter_shape):
        return noise_parameter_shape


@keras.saving.register_keras_serializable("ssdn_tf")
class GlobalParameter(NoiseLayer):
    """One number for the data set: constrain(rate * weight), where rate * weight begins at `start`.

    Adam moves a weight by about one learning rate in each step, whatever its gradient. A number that begins far
    from its value needs a larger step: `rate` multiplies the speed of this number alone. Published: start 0, rate 1.
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
class PerImageParameter(NoiseLayer):
    """One number for each picture: constrain(spatial mean of a plain U-Net with one output).

    The weights of the U-Net's last layer begin at zero and its bias at `start`, so all pictures begin with the same
    number; without that the estimate fails to converge. Published: start 0.

    Args:
        noise: a NoiseModel.
        start: raw number at which all pictures begin.
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

    def compute_output_shape(self, noisy_shape, noise_parameter_shape):
        return (noisy_shape[0], 1, 1, 1)

    def get_config(self):
        return super().get_config() | {"start": self.start, "network": self.settings}
