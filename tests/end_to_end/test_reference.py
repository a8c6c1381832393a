"""The published graph's numbers on weights from a recipe (reference/values.npz), for twelve configurations.

What is computed in which precision, there and here: the network (components, and the
per-image estimate of the noise parameter) is float32; the algebra behind it (sigma_x, the
marginal likelihood, the posterior mean) is float64. So mu_x differs by a few roundings of
the convolutions' sums, which come in another order; the loss and the posterior mean add
nothing of their own, but enlarge that difference where sigma_y is small. The noise
parameter is float32 in both. The references are stored as float32, the loss as float64.

That limits the comparison in three places, where the tolerance says so. prior_std_out is the
sixth root of a determinant that cancels. The impulse posterior weighs a pixel by a density
whose covariance may be nearly singular: the same network in float64 differs from the stored
values by up to 1.4e-5, ours in float32 by up to 5e-5, at 9 of 6144 elements above 1e-5. And
the arithmetic mean in the Poisson regulariser moves the loss by 5e-5 at most.

The published posterior mean has 1e-6 added to sigma_x and to sigma_n (in colour), or the
determinant of sigma_x floored at 1e-9 (impulse); ours has these as arguments, off by default.
"""

import dataclasses
import functools
import json
import pathlib
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from ssdn_tf.denoisers import models
from ssdn_tf.denoisers.experiments import Experiment
from ssdn_tf.inference import published
from ssdn_tf.noise import prior
from ssdn_tf.noise.impulse import ImpulseNoise
from ssdn_tf.noise.linalg import gaussian_nll
from ssdn_tf.noise.poisson import PoissonNoise

VALUES = np.load(pathlib.Path(__file__).parents[1] / "reference" / "values.npz")
META = json.loads(str(VALUES["meta"]))

CONFIGURATIONS = {
    "gauss_blindspot_known_rgb": Experiment("gaussian"),
    "gauss_blindspot_global_rgb_diag": Experiment("gaussian", parameter_source="global", diagonal=True),
    "gauss_blindspot_per_image_rgb": Experiment("gaussian", parameter_source="per_image"),
    "gauss_blindspot_known_mono": Experiment("gaussian", channels=1),
    "poisson_blindspot_known_rgb": Experiment("poisson"),
    "poisson_blindspot_per_image_rgb": Experiment("poisson", parameter_source="per_image"),
    "poisson_blindspot_per_image_mono": Experiment("poisson", parameter_source="per_image", channels=1),
    "impulse_blindspot_known_rgb": Experiment("impulse"),
    "impulse_blindspot_global_rgb": Experiment("impulse", parameter_source="global"),
    "gauss_n2c_none_rgb": Experiment("gaussian", pipeline="n2c", parameter_source=None),
    "impulse_n2n_none_rgb": Experiment("impulse", pipeline="n2n", parameter_source=None),
    "gauss_blindspot_mean_none_rgb": Experiment("gaussian", pipeline="mean", parameter_source=None),
}
BAYESIAN = [name for name, experiment in CONFIGURATIONS.items() if experiment.pipeline == "blindspot"]


@dataclasses.dataclass
class Case:
    """One configuration rebuilt. weights: in the order of the reference, by its names.

    What several tests look at is computed once; `new_loss` and `new_answer` compute again.
    """

    name: str
    experiment: Experiment
    denoiser: models.Denoiser
    weights: dict
    inputs: dict

    def reference(self, key):
        return VALUES[f"{self.name}/{key}"]

    @property
    def given(self):
        """What the inference model takes."""
        return {key: self.inputs[key] for key in self.denoiser.inference.input}

    def new_loss(self):
        return self.denoiser.training(self.inputs)

    def new_answer(self):
        return self.denoiser.inference(self.given)

    loss = functools.cached_property(new_loss)
    answer = functools.cached_property(new_answer)

    @functools.cached_property
    def prior_and_parameter(self):
        """(Prior, parameter) as float64, before anything is done with them."""
        training = self.denoiser.training
        tensors = (*training.get_layer("prior").output, training.get_layer("parameter").output)
        mu_x, sigma_x, parameter = keras.Model(training.input, tensors)(self.inputs)
        return prior.Prior(_double(mu_x), _double(sigma_x)), _double(parameter)


def _double(x):
    return tf.cast(x, "float64")


def recipe(name, shape, channels):
    """The value of a variable of the reference (PAPER.md, section 9)."""
    random = np.random.RandomState((zlib.crc32(name.encode()) + META["seed"]) % 2**32)
    if name == "noise_data":
        return np.full(shape, 1.3)
    if name.endswith("/b"):
        value = random.randn(*shape) * 0.05
        if name == "nin_c/b":
            value += np.where(np.arange(shape[0]) < channels, 0.5, 0.1)
        return value
    value = random.randn(*shape) * 0.8 * np.sqrt(2) / np.sqrt(np.prod(shape[:-1]))
    return value * 0.3 if name == "param_estimation_net/nin_c/W" else value


def rebuild(name):
    experiment = CONFIGURATIONS[name]
    denoiser = models.build(experiment)
    ours = {published.published_name(v.path): v for v in denoiser.training.trainable_variables}
    weights = {}
    for listed in META["variables"][name]:
        variable = ours[listed["name"]]
        assert list(variable.shape) == listed["shape"]
        variable.assign(recipe(listed["name"], listed["shape"], experiment.channels).astype(np.float32))
        weights[listed["name"]] = variable
    assert len(weights) == len(ours)
    inputs = {"noisy": VALUES[f"{name}/noisy"]}
    if experiment.pipeline == "blindspot":
        inputs["noise_parameter"] = VALUES[f"{name}/noise_parameter"].reshape(-1, 1, 1, 1)
    else:
        inputs["target"] = VALUES[f"{name}/target"]
    if models.anneals(experiment):
        inputs["exponent"] = np.full((len(inputs["noisy"]), 1, 1, 1), META["l_exponent"], np.float32)
    return Case(name, experiment, denoiser, weights, inputs)


@pytest.fixture(scope="module")
def rebuilt():
    """Cases by name, each built once."""
    cases = {}

    def get(name):
        if name not in cases:
            cases[name] = rebuild(name)
        return cases[name]

    return get


def mu_x_error(case, answer):
    mu_x = answer["mu_x"] if "mu_x" in answer else answer["denoised"]
    return np.abs(mu_x - case.reference("mu_x")).max()


def loss_error(case, loss):
    """Largest |a - b| / (1 + |b|): loss values cross zero."""
    expected = case.reference("loss")
    actual = np.asarray(loss).reshape(expected.shape)
    return (np.abs(actual - expected) / (1.0 + np.abs(expected))).max()


def loss_tolerance(case):
    return 1e-3 if case.experiment.noise == "impulse" else 1e-4


def published_noise_std(model, effective, parameter):
    """`noise_std_out`: as our regulariser's, but for Poisson the geometric mean over channels."""
    if model.kind == "poisson":
        return tf.exp(tf.reduce_mean(0.5 * tf.math.log(model.variance(effective, parameter)), axis=-1))
    return model.standard_deviation(effective, parameter)


def test_the_twelve_configurations_are_those_of_the_file():
    assert set(CONFIGURATIONS) == set(META["variables"])


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_precision_is_as_stated(rebuilt, name):
    case = rebuilt(name)
    network_dtypes = {variable.dtype for variable in case.weights.values()}
    assert network_dtypes == {"float32"}
    assert case.denoiser.training.get_layer("unet").compute_dtype == "float32"
    if case.experiment.pipeline == "blindspot":
        assert case.loss.dtype == "float64"


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_mu_x_is_the_published(rebuilt, name):
    case = rebuilt(name)
    assert mu_x_error(case, case.answer) <= 1e-5


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_element_of_the_loss_is_the_published(rebuilt, name):
    case = rebuilt(name)
    assert loss_error(case, case.loss) <= loss_tolerance(case)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_gradient_norms_are_the_published_within_one_per_cent(rebuilt, name):
    case = rebuilt(name)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(_double(case.new_loss()))
    gradients = tape.gradient(loss, [variable.value for variable in case.weights.values()])
    norms = np.array([tf.norm(gradient) for gradient in gradients])
    np.testing.assert_allclose(norms, case.reference("gradient_norms"), rtol=1e-2)


@pytest.mark.parametrize("name", BAYESIAN)
def test_posterior_mean_with_the_published_inflation_is_the_published(rebuilt, name):
    case = rebuilt(name)
    model = models.noise_model(case.experiment)
    if case.experiment.noise == "impulse":
        published = {"determinant_floor": 1e-9}
    else:
        published = {"inflation": 1e-6 if case.experiment.channels == 3 else 0.0}
    mean = model.posterior_mean(_double(case.inputs["noisy"]), *case.prior_and_parameter, **published)
    error = np.abs(mean - case.reference("posterior_mean"))
    if case.experiment.noise == "impulse":  # see the head of this module
        assert np.mean(error > 1e-5) <= 0.005
        assert error.max() <= 1e-4
    else:
        assert error.max() <= 1e-5


@pytest.mark.parametrize("name", BAYESIAN)
def test_the_denoised_image_is_within_two_thousandths_of_the_published(rebuilt, name):
    case = rebuilt(name)
    assert np.abs(case.answer["denoised"] - case.reference("posterior_mean")).max() <= 2e-3


@pytest.mark.parametrize("name", BAYESIAN)
def test_prior_std_is_the_published(rebuilt, name):
    case = rebuilt(name)
    effective = models.noise_model(case.experiment).effective_prior(case.prior_and_parameter[0])
    power = 2 * case.experiment.channels
    ours = np.maximum(np.linalg.det(np.asarray(effective.sigma_x, np.float64)), 0.0) ** (1 / power)
    expected = case.reference("prior_std_out")
    # A determinant is exact relative to the product of the diagonal (Hadamard's bound).
    bound = np.prod(np.diagonal(effective.sigma_x, axis1=-2, axis2=-1), axis=-1)
    determinant_agrees = np.abs(ours**power - expected.astype(np.float64) ** power) <= 1e-5 * bound
    assert ((np.abs(ours - expected) <= 1e-5) | determinant_agrees).all()


@pytest.mark.parametrize("name", BAYESIAN)
def test_the_reported_prior_std_has_the_published_determinant(rebuilt, name):
    """Published is det(sigma_x)^(1 / 2C), reported the std of each channel: Hadamard's bound joins them."""
    case = rebuilt(name)
    product = np.prod(np.asarray(case.answer["prior_std"], np.float64), axis=-1)
    ours, published = product ** (1 / case.experiment.channels), case.reference("prior_std_out")
    assert (published <= ours + 1e-5).all()
    if case.experiment.channels == 1 or case.experiment.diagonal:
        np.testing.assert_allclose(ours, published, atol=1e-5)


@pytest.mark.parametrize("name", BAYESIAN)
def test_noise_std_is_the_published(rebuilt, name):
    case = rebuilt(name)
    model = models.noise_model(case.experiment)
    ours = published_noise_std(model, *case.prior_and_parameter)
    np.testing.assert_allclose(ours, case.reference("noise_std_out"), rtol=1e-4)


@pytest.mark.parametrize("name", BAYESIAN)
def test_the_reported_noise_parameter_is_the_published(rebuilt, name):
    case = rebuilt(name)
    reported = np.asarray(case.answer["noise_parameter"], np.float64)
    expected = case.reference("noise_std_out")
    if case.experiment.noise == "gaussian":
        np.testing.assert_allclose(reported[..., 0], expected, rtol=1e-5)
    elif case.experiment.noise == "impulse":
        np.testing.assert_allclose(reported[..., 0] * 100 / 255, expected, rtol=1e-5)
    else:
        # std = sqrt(geometric mean of max(mu_x, 1e-3) / lam)
        signal = np.maximum(np.asarray(case.reference("mu_x"), np.float64), 1e-3)
        std = np.sqrt(np.exp(np.log(signal).mean(axis=-1)) / reported[..., 0])
        np.testing.assert_allclose(std, expected, rtol=1e-4)


# ---------------------------------------------------------------- the comparison can fail


def test_a_factor_of_two_on_any_weight_is_seen(rebuilt):
    case = rebuilt("gauss_blindspot_known_rgb")
    for name, variable in case.weights.items():
        before = variable.numpy()
        variable.assign(before * 2)
        try:
            loss = loss_error(case, case.new_loss())
            assert loss > loss_tolerance(case), f"{name}: {loss}"
        finally:
            variable.assign(before)
    assert loss_error(case, case.new_loss()) <= loss_tolerance(case)


def test_a_kernel_upside_down_is_seen(rebuilt):
    case = rebuilt("gauss_n2c_none_rgb")
    kernel = case.weights["enc_conv3/W"]
    before = kernel.numpy()
    kernel.assign(before[::-1])
    try:
        assert mu_x_error(case, case.new_answer()) > 1e-3
    finally:
        kernel.assign(before)


def test_the_poisson_regulariser_takes_the_arithmetic_mean(rebuilt):
    case = rebuilt("poisson_blindspot_per_image_rgb")
    model = PoissonNoise()
    effective, parameter = case.prior_and_parameter
    nll = model.marginal_nll(_double(case.inputs["noisy"]), effective, parameter)
    arithmetic = nll - 0.1 * model.standard_deviation(effective, parameter)
    geometric = nll - 0.1 * published_noise_std(model, effective, parameter)
    # The step from one to the other, as a direction: how far along it is the reference?
    step = (geometric - arithmetic).numpy()
    share = np.sum((case.reference("loss") - arithmetic) * step) / np.sum(step * step)
    assert abs(share) < 0.1  # 0: arithmetic, 1: geometric


def test_the_missing_inflation_of_the_posterior_is_seen(rebuilt):
    case = rebuilt("gauss_blindspot_per_image_rgb")
    assert np.abs(case.answer["denoised"] - case.reference("posterior_mean")).max() > 1e-4


def test_the_missing_variance_of_the_impulse_prior_is_seen(rebuilt):
    case = rebuilt("impulse_blindspot_global_rgb")
    model = ImpulseNoise()
    bare, alpha = case.prior_and_parameter
    mu_y, sigma_y = model.marginal_moments(bare, alpha)
    loss = 2.0 * gaussian_nll(_double(case.inputs["noisy"]) - mu_y, sigma_y)
    assert loss_error(case, loss) > loss_tolerance(case)
