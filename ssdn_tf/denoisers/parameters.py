"""Where the noise parameter comes from: it is given, one unknown for all, one for each picture, or fitted.

The layers are called as `layer(noisy, noise_parameter)` with [N,H,W,C] and [N,1,1,P] and return a parameter
[N or 1, 1, 1, P] in the unit of the noise model. The learned ones ignore the given value. FittedParameter is called
with the prior instead.

Reference: Laine et al. 2019, section 4.
"""

import keras
import numpy as np
from keras import ops

from ssdn_tf.denoisers.noise_layer import AlgebraLayer, NoiseLayer
from ssdn_tf.networks.unet import UNet
from ssdn_tf.noise import fitting
from ssdn_tf.noise.prior import Prior


@keras.saving.register_keras_serializable("ssdn_tf")
class KnownParameter(NoiseLayer):
    """The given parameter, bounded below where the noise model needs it (sigma >= 1e-3)."""

    def call(self, noisy, noise_parameter):
        return self.noise.bound_known(noise_parameter)

    def compute_output_shape(self, noisy_shape, noise_parameter_shape):
        return noise_parameter_shape


@keras.saving.register_keras_serializable("ssdn_tf")
class GlobalParameter(NoiseLayer):
    """One parameter for the data set: constrain(rate * weight), where rate * weight begins at `start`.

    Adam moves a weight by about one learning rate in each step, whatever its gradient. A number that begins far
    from its value needs a larger step: `rate` multiplies the speed of this number alone. Published: start 0, rate 1.
    """

    def __init__(self, noise, start=0.0, rate=1.0, **kwargs):
        super().__init__(noise, **kwargs)
        self.start = start
        self.rate = rate

    def build(self, noisy_shape, noise_parameter_shape):
        size = self.noise.parameter_size
        self.raw = self.add_weight(name="noise_data", shape=(1, 1, 1, size), initializer="zeros")
        self.raw.assign(np.broadcast_to(np.asarray(self.start) / self.rate, self.raw.shape))

    def call(self, noisy, noise_parameter):
        return self.noise.constrain(self.rate * self.raw)

    def compute_output_shape(self, noisy_shape, noise_parameter_shape):
        return (1, 1, 1, self.noise.parameter_size)

    def get_config(self):
        return super().get_config() | {"start": self.start, "rate": self.rate}


@keras.saving.register_keras_serializable("ssdn_tf")
class PerImageParameter(NoiseLayer):
    """One parameter for each picture: constrain(spatial mean of a plain U-Net).

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
        size = noise.parameter_size
        self.network = UNet(size, blindspot=False, zero_start=True, name="param_estimation_net", **self.settings)

    def build(self, noisy_shape, noise_parameter_shape):
        self.network.build(noisy_shape)
        self.network.last.bias.assign(np.broadcast_to(self.start, (self.noise.parameter_size,)))

    def call(self, noisy, noise_parameter):
        # The mean over neighbouring values in memory: over others, float32 loses 1e-4 in a small picture.
        raw = ops.mean(ops.transpose(self.network(noisy), (0, 3, 1, 2)), axis=(2, 3))
        return self.noise.constrain(raw[:, None, None, :])

    def compute_output_shape(self, noisy_shape, noise_parameter_shape):
        return (noisy_shape[0], 1, 1, self.noise.parameter_size)

    def get_config(self):
        return super().get_config() | {"start": self.start, "network": self.settings}


@keras.saving.register_keras_serializable("ssdn_tf")
class FittedParameter(AlgebraLayer):
    """The parameter at which the pixels of a picture are most likely, given what the network says of them.

    It has no weights, and gives no gradient. It reads at most some 30,000 pixels of each picture; see `noise.fitting`.

    Call arguments: noisy, mu_x [N,H,W,C], sigma_x [N,H,W,C,C]. Output: [N,1,1,P].
    """

    def call(self, noisy, mu_x, sigma_x):
        noisy, mu_x, sigma_x = (ops.stop_gradient(v) for v in fitting.thin(noisy, mu_x, sigma_x))
        return ops.cast(self.noise.fit(noisy, Prior(mu_x, sigma_x)), "float32")

    def compute_output_spec(self, noisy, mu_x, sigma_x):
        return keras.KerasTensor((noisy.shape[0], 1, 1, self.noise.parameter_size), "float32")
