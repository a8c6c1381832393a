"""The loss layers and the posterior mean, with the arithmetic written out."""

import math

import keras
import numpy as np
import pytest
from support import ACCURACY, array, check_layer, gradients, narrow, random_prior, tensor

from ssdn_tf.denoisers import experiments, losses, models, noise_layer
from ssdn_tf.noise import registry
from ssdn_tf.noise.gaussian import GaussianNoise
from ssdn_tf.noise.impulse import ImpulseNoise

SHAPE = (2, 3, 4)
PARAMETERS = {"gaussian": 0.1, "poisson": 30.0, "impulse": 0.4, "poisson_gaussian": (0.02, 0.1)}

every_model = pytest.mark.parametrize("model", [registry.make(kind) for kind in PARAMETERS], ids=PARAMETERS)
every_channel_count = pytest.mark.parametrize("channels", [1, 3])
wide = pytest.mark.skipif(noise_layer.algebra_dtype() != "float64", reason="JAX without JAX_ENABLE_X64")


def reference_nll(y, mu, sigma):
    """0.5 d^T sigma^-1 d + 0.5 log det sigma of one pixel."""
    d = np.float64(y) - mu
    return 0.5 * d @ np.linalg.inv(sigma) @ d + 0.5 * np.linalg.slogdet(sigma)[1]


def gaussian_reference(noisy, mu_x, sigma_x, sigma):
    """[N,H,W] for Gaussian noise of one sigma."""
    sigma_y = sigma_x + np.float64(sigma) ** 2 * np.eye(noisy.shape[-1])
    values = [reference_nll(noisy[p], mu_x[p], sigma_y[p]) for p in np.ndindex(SHAPE)]
    return np.reshape(values, SHAPE)


def case(channels, level):
    """noisy and mu_x float32, as a network gives them, sigma_x float64, one parameter: NumPy."""
    mu_x, sigma_x = random_prior(0, SHAPE, channels)
    noisy = np.random.default_rng(1).random((*SHAPE, channels), dtype=np.float32)
    return noisy, mu_x.astype(np.float32), sigma_x, np.broadcast_to(np.float32(level), (2, 1, 1, np.size(level)))


def call(layer, *arguments):
    return array(layer(*[tensor(value, value.dtype) for value in arguments]))


@every_model
@every_channel_count
@wide
def test_layers_keep_the_boring_truths(model, channels):
    arguments = case(channels, PARAMETERS[model.kind])
    layer = losses.MarginalLikelihood(model, regularization=0.1, scale=2.0)
    (loss,) = check_layer(layer, *arguments, losses=1)
    assert loss.shape == SHAPE and loss.dtype == np.float64
    (mean,) = check_layer(losses.PosteriorMean(model), *arguments)
    assert mean.shape == (*SHAPE, channels) and mean.dtype == np.float32
    (std,) = check_layer(losses.PosteriorStd(model), *arguments)
    assert std.shape == (*SHAPE, channels) and std.dtype == np.float32


def test_lp_loss_keeps_the_boring_truths():
    predicted, target = np.random.default_rng(2).random((2, *SHAPE, 3), dtype=np.float32)
    check_layer(losses.LpLoss(), predicted, target, losses=1)
    check_layer(losses.LpLoss(), predicted, target, np.full((2, 1, 1, 1), 0.5, np.float32), losses=1)


@every_channel_count
@wide
def test_marginal_likelihood_adds_its_mean(channels):
    arguments = case(channels, 0.1)
    layer = losses.MarginalLikelihood(GaussianNoise())
    found = call(layer, *arguments)
    expected = gaussian_reference(*arguments[:3], np.float32(0.1))
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)
    (added,) = layer.losses
    assert array(added) == pytest.approx(expected.mean(), rel=ACCURACY)


def test_marginal_likelihood_of_numbers_for_the_head():
    # d = 0.6 - 0.5, sigma_y = 0.06 + 0.2^2 = 0.1: 0.5 (0.01 / 0.1 + log 0.1), twice that,
    # and 0.1 * 0.2 off.
    noisy, mu_x, sigma = (np.full((1, 1, 1, 1), value) for value in (0.6, 0.5, 0.2))
    layer = losses.MarginalLikelihood(GaussianNoise(), regularization=0.1, scale=2.0)
    found = call(layer, noisy, mu_x, np.full((1, 1, 1, 1, 1), 0.06), sigma)
    assert found.item() == pytest.approx(2 * 0.5 * (0.1 + math.log(0.1)) - 0.1 * 0.2, rel=1e-5)


@every_channel_count
@pytest.mark.parametrize("kind", ["gaussian", "poisson"])
@wide
def test_learned_noise_is_rewarded(channels, kind):
    model = registry.make(kind)
    arguments = case(channels, PARAMETERS[kind])
    plain = call(losses.MarginalLikelihood(model), *arguments)
    rewarded = call(losses.MarginalLikelihood(model, regularization=0.1), *arguments)
    if kind == "gaussian":
        std = np.full(SHAPE, np.float64(np.float32(0.1)))
    else:
        std = np.sqrt(arguments[1].astype(np.float64) / 30.0).mean(axis=-1)
    np.testing.assert_allclose(plain - rewarded, 0.1 * std, rtol=ACCURACY)


@pytest.mark.parametrize(
    "kind, channels, source, scale, regularization",
    [
        ("gaussian", 3, "known", 1.0, 0.0),
        ("gaussian", 3, "global", 1.0, 0.1),
        ("gaussian", 1, "known", 2.0, 0.0),
        ("gaussian", 1, "per_image", 2.0, 0.1),
        ("poisson", 3, "per_image", 1.0, 0.1),
        ("poisson", 1, "global", 2.0, 0.1),
        ("impulse", 3, "known", 2.0, 0.0),
        ("impulse", 3, "global", 2.0, 0.0),
        ("impulse", 1, "per_image", 2.0, 0.0),
    ],
)
def test_models_weigh_likelihood_and_reward_as_published(kind, channels, source, scale, regularization):
    experiment = experiments.Experiment(kind, 1.0, 1.0, parameter_source=source, channels=channels)
    layer = models.build(narrow(experiment, 2)).training.get_layer("loss")
    assert (layer.scale, layer.regularization) == (scale, regularization)


def sharp_prior():
    """sigma_x with std 0.1 along gray only, beside sigma 1e-3: condition number 3e4."""
    noisy, mu_x, _, sigma = case(3, 1e-3)
    return noisy, mu_x, np.broadcast_to(0.01 * np.ones((3, 3)), (*SHAPE, 3, 3)).copy(), sigma


@wide
def test_loss_is_accurate_for_a_sure_prior_beside_a_low_noise():
    arguments = sharp_prior()
    expected = gaussian_reference(*arguments[:3], arguments[3][0, 0, 0, 0])
    found = call(losses.MarginalLikelihood(GaussianNoise()), *arguments)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_the_same_loss_in_float32_is_not_accurate():
    arguments = sharp_prior()
    expected = gaussian_reference(*arguments[:3], arguments[3][0, 0, 0, 0])
    found = call(losses.MarginalLikelihood(GaussianNoise(), dtype="float32"), *arguments)
    assert not np.allclose(found, expected, rtol=1e-4)


def test_true_sigma_minimises_the_expected_nll():
    # Noisy values alone decide. 100,000 colours: by the Fisher information the least of the
    # sample has a standard error of 0.16 % of sigma; the grid is 5 % wide.
    true, sigma_x = 0.1, 0.05**2 * (0.5 + 0.5 * np.eye(3))
    rng = np.random.default_rng(3)
    clean = rng.multivariate_normal([0.5] * 3, sigma_x, (1, 100, 1000), method="cholesky").astype(np.float32)
    noisy = GaussianNoise().corrupt(clean, true, rng)
    prior = np.full((1, 1, 1, 3), 0.5), sigma_x.reshape(1, 1, 1, 3, 3)
    layer = losses.MarginalLikelihood(GaussianNoise())
    grid = true * 1.05 ** np.arange(-4, 5)
    found = [call(layer, noisy, *prior, np.full((1, 1, 1, 1), sigma)).mean() for sigma in grid]
    assert np.argmin(found) == 4


def test_true_alpha_minimises_the_exact_nll():
    # As above for the mixture; the grid of alpha is 0.04 wide, the standard error 0.002.
    rng = np.random.default_rng(4)
    clean = rng.normal(0.5, 0.05, (1, 100, 1000, 3)).astype(np.float32)
    noisy = ImpulseNoise().corrupt(clean, 0.4, rng)
    prior = np.full((1, 1, 1, 3), 0.5), (0.05**2 * np.eye(3)).reshape(1, 1, 1, 3, 3)
    layer = losses.MarginalLikelihood(ImpulseNoise("mixture"))
    grid = 0.4 + 0.04 * np.arange(-4, 5)
    found = [call(layer, noisy, *prior, np.full((1, 1, 1, 1), alpha)).mean() for alpha in grid]
    assert np.argmin(found) == 4


@every_channel_count
@wide
def test_posterior_mean_weighs_prior_and_observation_and_adds_no_loss(channels):
    noisy, mu_x, _, sigma = case(channels, 0.1)
    # Variances 0.03 and 0.01: three quarters of the way to the observation.
    sigma_x = np.broadcast_to(0.03 * np.eye(channels), (*SHAPE, channels, channels)).copy()
    layer = losses.PosteriorMean(GaussianNoise())
    found = call(layer, noisy, mu_x, sigma_x, sigma)
    np.testing.assert_allclose(found, 0.25 * mu_x + 0.75 * noisy, atol=1e-7)
    assert layer.losses == []


def test_squared_loss_adds_its_mean():
    layer = losses.LpLoss()
    found = call(layer, np.float32([[1.0, 2.0]]), np.float32([[1.5, 0.0]]))
    assert found.tolist() == [[0.25, 4.0]]
    assert array(layer.losses[0]) == 2.125


def test_exponent_is_taken_per_image():
    predicted = np.full((3, 1, 1, 1), 0.25, np.float32)
    exponent = np.float32([2.0, 1.0, 0.5]).reshape(3, 1, 1, 1)
    layer = losses.LpLoss()
    found = call(layer, predicted, np.zeros_like(predicted), exponent)
    # (|d| + 1e-8)^p; 1e-8 is below float32's resolution at 0.25.
    np.testing.assert_allclose(found.ravel(), [0.0625, 0.25, 0.5], rtol=1e-6)
    assert array(layer.losses[0]) == pytest.approx((0.0625 + 0.25 + 0.5) / 3, rel=1e-6)


def test_lp_loss_has_the_published_offset():
    # (0 + 1e-8)^0.5
    same = np.full((1, 2, 2, 3), 0.5, np.float32)
    found = call(losses.LpLoss(), same, same, np.full((1, 1, 1, 1), 0.5, np.float32))
    np.testing.assert_allclose(found, 1e-4, rtol=1e-5)


@pytest.mark.parametrize("exponent", [2.0, 1.0, 0.5])
def test_lp_gradient_is_finite_where_the_prediction_is_the_target(exponent):
    same = tensor(np.full((1, 2, 2, 3), 0.5), "float32")
    exponent = tensor(np.full((1, 1, 1, 1), exponent), "float32")
    (found,) = gradients(lambda predicted: losses.LpLoss()(predicted, same, exponent), same)
    assert np.isfinite(found).all()


@wide
def test_algebra_is_in_float64():
    assert noise_layer.algebra_dtype() == "float64"
    assert losses.MarginalLikelihood(GaussianNoise()).compute_dtype == "float64"
    assert losses.PosteriorMean(GaussianNoise()).compute_dtype == "float64"


def test_a_model_with_the_loss_map_as_output_trains_and_one_without_it_holds_no_loss():
    noisy, target = keras.Input((2, 2, 1)), keras.Input((2, 2, 1))
    predicted = keras.layers.Dense(1, kernel_initializer="zeros")(noisy)
    loss = losses.LpLoss()(predicted, target)
    training, inference = keras.Model([noisy, target], loss), keras.Model(noisy, predicted)
    training.compile(keras.optimizers.SGD(0.5))
    data = np.ones((1, 2, 2, 1), np.float32)
    history = training.fit([data, 3 * data], epochs=1, verbose=0).history["loss"]
    assert history == [9.0]  # (0 - 3)^2
    # Gradient of (w + b - 3)^2 at 0 is -6 for both: each moves by 3.
    assert (array(inference(data)) == 6.0).all()
    assert inference.losses == []
