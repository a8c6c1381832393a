"""Loss layers, and the layer that brings the noisy pixel back in.

A loss layer returns its loss map and adds the mean of it to the losses of the model;
the map must be an output of the model, else Keras leaves the layer out.
"""

import keras
from keras import ops

from ssdn_tf.denoisers.noise_layer import AlgebraLayer
from ssdn_tf.noise.prior import Prior


@keras.saving.register_keras_serializable("ssdn_tf")
class MarginalLikelihood(AlgebraLayer):
    """Training loss: scale * marginal_nll - regularization * noise std.

    Where the noise parameter is learned, what the network cannot predict may be noise or detail; the likelihood alone
    cannot tell. The second term prefers noise. Where the parameter is known, its weight is 0.

    Args:
        noise: a NoiseModel.
        regularization: weight of the noise std (0.1 as published, for learned parameters
            of Gaussian and Poisson noise).
        scale: of the likelihood; published are 1, and 2 for impulse noise and for mono.

    Call arguments: noisy [N,H,W,C], mu_x [N,H,W,C], sigma_x [N,H,W,C,C], parameter [N|1,1,1,P].
    Output shape: [N,H,W], the loss in nats; its mean is added to the losses.
    Reference: Laine et al. 2019, equations 3 to 7.
    """

    def __init__(self, noise, regularization=0.0, scale=1.0, **kwargs):
        super().__init__(noise, **kwargs)
        self.regularization = regularization
        self.scale = scale

    def call(self, noisy, mu_x, sigma_x, parameter):
        prior = Prior(mu_x, sigma_x)
        loss = self.scale * self.noise.marginal_nll(noisy, prior, parameter)
        if self.regularization:
            std = self.noise.standard_deviation(prior, parameter)
            loss = loss - self.regularization * std
        self.add_loss(ops.mean(loss))
        return loss

    def compute_output_shape(self, noisy_shape, mu_x_shape, sigma_x_shape, parameter_shape):
        return noisy_shape[:-1]

    def get_config(self):
        return super().get_config() | {"regularization": self.regularization, "scale": self.scale}


@keras.saving.register_keras_serializable("ssdn_tf")
class PosteriorMean(AlgebraLayer):
    """E[x | y, context], [N,H,W,C] float32: the denoised image. Call arguments as MarginalLikelihood."""

    def call(self, noisy, mu_x, sigma_x, parameter):
        mean = self.noise.posterior_mean(noisy, Prior(mu_x, sigma_x), parameter)
        return ops.cast(mean, "float32")

    def compute_output_spec(self, noisy, mu_x, sigma_x, parameter):
        return keras.KerasTensor(noisy.shape, "float32")


@keras.saving.register_keras_serializable("ssdn_tf")
class PosteriorStd(PosteriorMean):
    """Standard deviation of p(x | y, context), [N,H,W,C] float32. Call arguments as MarginalLikelihood."""

    def call(self, noisy, mu_x, sigma_x, parameter):
        std = self.noise.posterior_std(noisy, Prior(mu_x, sigma_x), parameter)
        return ops.cast(std, "float32")


@keras.saving.register_keras_serializable("ssdn_tf")
class LpLoss(keras.layers.Layer):
    """Loss of the baselines: d^2, or (|d| + 1e-8)^p with the exponent p as an input.

    Call arguments: predicted and target [N,H,W,C], exponent [N,1,1,1] or None for d^2.
    Output shape: [N,H,W,C]; its mean is added to the losses.
    Reference: Lehtinen et al., Noise2Noise, 2018 (the annealed exponent).
    """

    def call(self, predicted, target, exponent=None):
        d = predicted - target
        loss = d * d if exponent is None else ops.power(ops.abs(d) + 1e-8, exponent)
        self.add_loss(ops.mean(loss))
        return loss

    def compute_output_shape(self, predicted_shape, target_shape, exponent_shape=None):
        return predicted_shape
