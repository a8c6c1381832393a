"""From an experiment to Keras models: the one place where networks and noise meet."""

import dataclasses
from typing import NamedTuple

import keras
from keras import ops

from ssdn_tf.denoisers import losses, noise_layer, parameters
from ssdn_tf.networks.unet import UNet
from ssdn_tf.noise import prior, registry


class Denoiser(NamedTuple):
    """Two models over the same weights.

    training: dict of samples (see `data.Samples`) -> loss map; the loss is added inside.
    inference: {"noisy": [N,H,W,C]} and, for a known parameter, "noise_parameter"
        [N,1,1,P] -> dict with "denoised" and, where the pipeline has them, "mu_x",
        "prior_std", "posterior_std" (all [N,H,W,C]) and "noise_parameter" [N or 1, 1, 1, P].
    """

    training: keras.Model
    inference: keras.Model


@keras.saving.register_keras_serializable("ssdn_tf")
class GaussianPrior(keras.layers.Layer):
    """Network components [N,H,W,K] -> mu_x [N,H,W,C], sigma_x [N,H,W,C,C]; see `prior.from_components`."""

    def __init__(self, channels, diagonal=False, **kwargs):
        kwargs.setdefault("dtype", noise_layer.algebra_dtype())
        super().__init__(**kwargs)
        self.channels = channels
        self.diagonal = diagonal

    def call(self, components):
        return tuple(prior.from_components(components, self.channels, self.diagonal))

    def compute_output_shape(self, input_shape):
        mean = (*input_shape[:-1], self.channels)
        return mean, (*mean, self.channels)

    def get_config(self):
        return super().get_config() | {"channels": self.channels, "diagonal": self.diagonal}


@keras.saving.register_keras_serializable("ssdn_tf")
class PriorStd(noise_layer.AlgebraLayer):
    """Standard deviation of p(x | context) in each channel, as the noise model uses that prior.

    Call arguments: mu_x [N,H,W,C], sigma_x [N,H,W,C,C]. Output: float32 [N,H,W,C].
    """

    def call(self, mu_x, sigma_x):
        return ops.cast(self.noise.prior_std(prior.Prior(mu_x, sigma_x)), "float32")

    def compute_output_spec(self, mu_x, sigma_x):
        return keras.KerasTensor(mu_x.shape, "float32")


def noise_model(experiment):
    """The NoiseModel of an experiment; its options are the experiment's fields of the same names."""
    options = dataclasses.fields(registry.MODELS[experiment.noise])
    return registry.make(experiment.noise, **{field.name: getattr(experiment, field.name) for field in options})


def build(experiment, *, start=0.0, rate=1.0, precision="float32"):
    """Models of an experiment, with fresh weights (seed them with `keras.utils.set_random_seed`).

    Args:
        experiment: an `experiments.Experiment`.
        start, rate: of a learned noise parameter; see `parameters.GlobalParameter`.
        precision: "float32", or "bfloat16" for the arithmetic of the networks but for their last layer.
            Weights, sums of gradients, and all that follows the network stay as they are.

    Returns:
        Denoiser.
    """
    policy = "mixed_bfloat16" if precision == "bfloat16" else precision
    network = {"network": experiment.network, "width": experiment.width, "dtype": policy}
    if experiment.pipeline == "blindspot":
        return _bayesian(experiment, start, rate, network)
    return _regression(experiment, network)


def _bayesian(experiment, start, rate, network):
    channels, model = experiment.channels, noise_model(experiment)
    source = experiment.parameter_source
    noisy = keras.Input((None, None, channels), name="noisy")
    given = keras.Input((1, 1, model.parameter_size), name="noise_parameter")
    outputs = prior.component_count(channels, experiment.diagonal)
    components = UNet(outputs, blindspot=True, name="unet", **network)(noisy)
    mu_x, sigma_x = GaussianPrior(channels, experiment.diagonal, name="prior")(components)
    if source == "known":
        parameter = parameters.KnownParameter(model, name="parameter")(noisy, given)
    elif source == "global":
        parameter = parameters.GlobalParameter(model, start, rate, name="parameter")(noisy, given)
    elif source == "fitted":
        parameter = parameters.FittedParameter(model, name="parameter")(noisy, mu_x, sigma_x)
    else:
        layer = parameters.PerImageParameter(model, start, network, name="parameter")
        parameter = layer(noisy, given)
    scale = 2.0 if channels == 1 else model.loss_scale
    regularization = model.regularization if source in ("global", "per_image") else 0.0
    loss = losses.MarginalLikelihood(model, regularization, scale, name="loss")
    posterior = (noisy, mu_x, sigma_x, parameter)
    inputs = {"noisy": noisy, "noise_parameter": given}
    results = {
        "denoised": losses.PosteriorMean(model, name="denoised")(*posterior),
        "mu_x": ops.cast(mu_x, "float32"),
        "prior_std": PriorStd(model, name="prior_std")(mu_x, sigma_x),
        "posterior_std": losses.PosteriorStd(model, name="posterior_std")(*posterior),
        "noise_parameter": parameter,
    }
    return Denoiser(
        keras.Model(inputs, loss(*posterior), name="training"),
        keras.Model(inputs, results, name="inference"),
    )


def _regression(experiment, network):
    channels = experiment.channels
    noisy = keras.Input((None, None, channels), name="noisy")
    target = keras.Input((None, None, channels), name="target")
    predicted = UNet(channels, blindspot=experiment.blindspot, name="unet", **network)(noisy)
    samples = {"noisy": noisy, "target": target}
    exponent = None
    if anneals(experiment):
        exponent = samples["exponent"] = keras.Input((1, 1, 1), name="exponent")
    loss = losses.LpLoss(name="loss")(predicted, target, exponent)
    return Denoiser(
        keras.Model(samples, loss, name="training"),
        keras.Model({"noisy": noisy}, {"denoised": predicted}, name="inference"),
    )


def networks(denoiser):
    """The U-Nets of a Denoiser: the denoiser's own and, for a level per image, the estimator."""
    found = [(layer, getattr(layer, "network", None)) for layer in denoiser.training.layers]
    return [network for pair in found for network in pair if isinstance(network, UNet)]


def anneals(experiment):
    """True where the loss is the annealed Lp: impulse noise in the target."""
    return experiment.noise == "impulse" and experiment.pipeline in ("n2n", "mean")
