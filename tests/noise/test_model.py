"""What holds for every noise model: sampling, the published formulas written out, limits, serialization."""

import itertools
import json
import math

import keras
import numpy as np
import pytest
import scipy.stats
from noise_cases import (
    LEVELS,
    SHAPE,
    as_batch,
    call,
    case,
    every_channel_count,
    every_likelihood,
    every_model,
    moment_samples,
    one_pixel,
    pixelwise,
    plain,
    reference_moments,
    reference_nll,
    reference_posterior,
    reference_prior,
    sampled_pixels,
    synthetic_crops,
)
from support import ACCURACY, array, gradients, tensor, z_test

from ssdn_tf.noise.gaussian import GaussianNoise
from ssdn_tf.noise.impulse import ImpulseNoise
from ssdn_tf.noise.poisson import PoissonNoise
from ssdn_tf.noise.prior import Prior
from ssdn_tf.noise.registry import MODELS


@every_model
@every_channel_count
def test_marginal_moments_are_the_published_ones(model, channels):
    _, mu_x, sigma_x, parameter = case(model, channels)
    mu_y, sigma_y = model.marginal_moments(Prior(tensor(mu_x), tensor(sigma_x)), tensor(parameter))
    for p in np.ndindex(SHAPE):
        mean, covariance = reference_moments(model.kind, mu_x[p], sigma_x[p], plain(parameter[p[0]]))
        np.testing.assert_allclose(array(mu_y)[p], mean, rtol=1e-12)
        np.testing.assert_allclose(array(sigma_y)[p], covariance, rtol=1e-11, atol=1e-15)


@every_model
@every_channel_count
def test_marginal_nll_is_the_published_one(model, channels):
    arguments = case(model, channels)
    expected = pixelwise(reference_nll, model.kind, *arguments)
    # Condition numbers here reach 1e3: explicit inverses in float64 lose 1e-13 times that.
    np.testing.assert_allclose(call(model.marginal_nll, *arguments), expected, rtol=1e-9, atol=1e-9)


@every_model
@every_channel_count
def test_marginal_nll_is_that_of_scipy_less_the_constant(model, channels):
    noisy, mu_x, sigma_x, parameter = case(model, channels)
    found = call(model.marginal_nll, noisy, mu_x, sigma_x, parameter)
    for p in np.ndindex(SHAPE):
        prior = reference_prior(model.kind, mu_x[p], sigma_x[p])
        mean, covariance = reference_moments(model.kind, *prior, plain(parameter[p[0]]))
        log_density = scipy.stats.multivariate_normal(mean, covariance).logpdf(noisy[p])
        expected = -log_density - channels / 2 * math.log(2 * math.pi)
        assert found[p] == pytest.approx(expected, rel=1e-9, abs=1e-9)


@every_model
@every_channel_count
def test_posterior_mean_is_the_published_one(model, channels):
    arguments = case(model, channels)
    expected = pixelwise(reference_posterior, model.kind, *arguments)
    np.testing.assert_allclose(call(model.posterior_mean, *arguments), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["gaussian", "poisson"])
def test_inflation_is_the_one_of_the_published_three_inverse_form(kind):
    model = MODELS[kind]()
    # A prior with standard deviations of 0.001 to 0.01, where 1e-6 is seen.
    noisy, mu_x, sigma_x, parameter = case(model, 3)
    arguments = noisy, mu_x, sigma_x / 400, parameter
    expected = pixelwise(reference_posterior, kind, *arguments, inflation=1e-6)
    found = call(model.posterior_mean, *arguments, inflation=1e-6)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)
    assert np.abs(call(model.posterior_mean, *arguments) - expected).max() > 1e-5


def test_noise_std_is_the_published_measure():
    _, mu_x, sigma_x, _ = case(GaussianNoise(), 3)
    prior = Prior(tensor(mu_x), tensor(sigma_x))
    parameter = np.array([0.2, 0.4]).reshape(2, 1, 1, 1)
    kinds = ("gaussian", "poisson", "impulse")
    found = {m: array(MODELS[m]().standard_deviation(prior, tensor(parameter))) for m in kinds}
    np.testing.assert_allclose(found["gaussian"], parameter[..., 0], rtol=ACCURACY)
    np.testing.assert_allclose(found["impulse"], parameter[..., 0] * 100 / 255, rtol=1e-12)
    # The arithmetic mean over channels, not the geometric one.
    np.testing.assert_allclose(found["poisson"], np.sqrt(mu_x / parameter).mean(axis=-1), rtol=ACCURACY)


@every_model
@every_channel_count
def test_marginal_moments_match_corrupted_samples(model, channels):
    # 500,000 samples see an error of 0.7 % of a standard deviation in the mean and of 1 % in
    # a variance.
    mu_x, sigma_x, clean, rng = sampled_pixels(channels)
    level = LEVELS[model.kind]
    noisy = model.corrupt(clean, level, rng).astype(np.float64)
    prior = Prior(*map(tensor, one_pixel(mu_x, sigma_x)))
    mu_y, sigma_y = map(array, model.marginal_moments(prior, tensor(as_batch(level))))
    expected = np.concatenate([np.zeros(channels), sigma_y.ravel()])
    z_test(moment_samples(noisy, mu_y.ravel()), expected)


def orthogonality_samples(model, channels, estimate):
    """Products (x - estimate(y)) h(y), [K, functions * C], for h that the model must be blind to."""
    mu_x, sigma_x, clean, rng = sampled_pixels(channels, count=200_000)
    level = LEVELS[model.kind]
    noisy = model.corrupt(clean, level, rng).astype(np.float64)
    found = estimate(model, noisy, *one_pixel(mu_x, sigma_x), as_batch(level))
    error = (clean - found).reshape(-1, channels)
    y = noisy.reshape(-1, channels) - mu_x
    h = [np.ones(len(y)), *y.T]
    if model.kind in ("gaussian", "impulse"):  # for the others the estimate is only the best one linear in y
        pairs = itertools.combinations_with_replacement(range(channels), 2)
        h += [y[:, i] * y[:, j] for i, j in pairs]
    return (error[:, :, None] * np.stack(h, axis=-1)[:, None, :]).reshape(len(y), -1)


@every_model
@every_channel_count
def test_posterior_mean_error_is_orthogonal_to_the_observation(model, channels):
    # E[(x - xhat(y)) h(y)] = 0 for every h is what "conditional mean" means. 200,000 samples
    # see a part of the error of 1.1 % of its standard deviation that depends on y through h.
    samples = orthogonality_samples(model, channels, lambda m, *a: call(m.posterior_mean, *a))
    z_test(samples, 0.0)


@every_model
@every_channel_count
def test_the_prior_mean_alone_is_not_orthogonal_to_the_observation(model, channels):
    samples = orthogonality_samples(model, channels, lambda m, y, mu_x, *rest: mu_x)
    assert np.abs(z_test(samples, 0.0, limit=1e4)).max() > 50


def squared_error_samples(model, channels, std):
    """(x - posterior mean)^2 - std^2 for sampled pairs, [K, C]: 0 on average, as that is what the std means.

    So for Poisson noise too: the mean squared error of the best linear estimate is the stated one."""
    mu_x, sigma_x, clean, rng = sampled_pixels(channels)
    level = LEVELS[model.kind]
    noisy = model.corrupt(clean, level, rng)
    arguments = noisy, *one_pixel(mu_x, sigma_x), as_batch(level)
    error = clean - call(model.posterior_mean, *arguments)
    return (error**2 - std(model, arguments) ** 2).reshape(-1, channels)


@every_model
@every_channel_count
def test_posterior_std_is_that_of_the_error(model, channels):
    # 500,000 pixels see an error of 1 % in the variance.
    z_test(squared_error_samples(model, channels, lambda m, arguments: call(m.posterior_std, *arguments)), 0.0)


@every_model
@every_channel_count
def test_the_prior_std_is_not_that_of_the_error(model, channels):
    def prior_std(_, arguments):
        return np.sqrt(np.diagonal(arguments[2], axis1=-2, axis2=-1))

    assert np.abs(z_test(squared_error_samples(model, channels, prior_std), 0.0, limit=1e4)).max() > 50


def test_no_noise_returns_the_observation():
    for kind, level in (("gaussian", 1e-7), ("poisson", 1e12), ("impulse", 0.0)):
        model = MODELS[kind]()
        noisy, mu_x, sigma_x, parameter = case(model, 3)
        found = call(model.posterior_mean, noisy, mu_x, sigma_x, np.full_like(parameter, level))
        # The variance of the noise, 1e-14 and 1e-12, against the least one of the prior, about 1e-4.
        np.testing.assert_allclose(found, noisy, atol=1e-7)


@every_model
@every_channel_count
def test_sure_prior_returns_mu_x(model, channels):
    noisy, mu_x, sigma_x, parameter = case(model, channels)
    found = call(model.posterior_mean, noisy, mu_x, 0 * sigma_x, parameter)
    if model.kind != "impulse":
        assert (found == mu_x).all()
    else:  # there a sure prior is one of standard deviation 0.001
        far = np.abs(noisy - mu_x).max(axis=-1) > 0.05
        assert far.mean() > 0.5 and (found == mu_x)[far].all()


def test_infinite_noise_returns_mu_x():
    for model, level in ((GaussianNoise(), 1e6), (PoissonNoise(), 1e-12)):
        noisy, mu_x, sigma_x, parameter = case(model, 3)
        found = call(model.posterior_mean, noisy, mu_x, sigma_x, np.full_like(parameter, level))
        np.testing.assert_allclose(found, mu_x, atol=1e-10)


@every_likelihood
@every_channel_count
@pytest.mark.parametrize("raw", [-30.0, 0.0, 3.0, 20.0])
def test_learned_parameters_have_finite_gradients_in_float32(model, channels, raw):
    noisy, mu_x, sigma_x, _ = case(model, channels)
    noisy, mu_x, sigma_x = (tensor(v, "float32") for v in (noisy, mu_x, sigma_x))

    def nll(raw):
        return model.marginal_nll(noisy, Prior(mu_x, sigma_x), model.constrain(raw))

    (found,) = gradients(nll, tensor(np.full((1, 1, 1, model.parameter_size), raw), "float32"))
    assert np.isfinite(found).all()
    assert (found != 0.0).all()


@every_model
@every_channel_count
def test_corruption_is_float32_a_function_of_the_generator_and_leaves_the_clean_image_alone(model, channels):
    clean = np.random.default_rng(17).random((2, 16, 16, channels), dtype=np.float32)
    before = clean.copy()
    level = LEVELS[model.kind]
    first, again, other = (model.corrupt(clean, level, np.random.default_rng(s)) for s in (1, 1, 2))
    assert first.dtype == np.float32 and first.shape == clean.shape
    assert (first == again).all() and (first != other).any() and (first != clean).any()
    assert (clean == before).all()


@every_model
def test_each_image_has_its_own_level(model):
    # The mean square of the noise tells the images apart: 4,096 pixels, 10 % off at most by chance.
    levels = {
        "gaussian": (0.01, 0.1),
        "poisson": (500.0, 5.0),
        "impulse": (0.05, 0.9),
        "poisson_gaussian": ((0.001, 0.02), (0.05, 0.1)),
    }[model.kind]
    clean = np.full((2, 64, 64, 3), 0.5, np.float32)
    noisy = model.corrupt(clean, np.array(levels).reshape(2, 1, 1, -1), np.random.default_rng(18))
    first, second = ((noisy - clean) ** 2).mean(axis=(1, 2, 3))
    assert second > 5 * first


def test_known_sigma_is_bounded_below_and_the_others_pass():
    parameter = tensor(np.array([0.0, 5e-4, 0.5]).reshape(3, 1, 1, 1))
    kinds = ("gaussian", "poisson", "impulse")
    found = {kind: array(MODELS[kind]().bound_known(parameter)).ravel() for kind in kinds}
    assert found["gaussian"].tolist() == [1e-3, 1e-3, 0.5]
    assert found["poisson"].tolist() == found["impulse"].tolist() == [0.0, 5e-4, 0.5]


def test_constrained_parameter_starts_at_five_levels():
    start = math.log1p(math.exp(-4.0)) + 1e-3
    assert 255 * start == pytest.approx(4.88, abs=0.005)
    found = {kind: array(MODELS[kind]().constrain(tensor(0.0))) for kind in MODELS}
    assert found["gaussian"] == pytest.approx(start, rel=1e-14)
    assert found["impulse"] == pytest.approx(start, rel=1e-14)
    assert found["poisson"] == pytest.approx(1 / start, rel=1e-14)


@every_model
def test_constrained_parameter_is_legal_for_any_number(model):
    found = array(model.constrain(tensor(np.linspace(-100.0, 30.0, 1_000)[:, None], "float32")))
    assert np.isfinite(found).all() and (found > 0).all()
    if model.kind == "impulse":
        assert (found < 1.0).all()


@pytest.mark.parametrize(
    "kind, values",
    [
        ("gaussian", [0.002, 0.1, 1.0, 5.0]),
        ("poisson", [0.5, 5.0, 30.0, 500.0]),
        ("impulse", [0.002, 0.1, 0.5, 0.998]),
    ],
)
def test_unconstrain_inverts_constrain(kind, values):
    model = MODELS[kind]()
    for value in values:
        found = array(model.constrain(tensor(model.unconstrain(value))))
        # softplus near its exponential end loses the digits that 1e-3 hides.
        assert found == pytest.approx(value, rel=1e-12)


@every_model
def test_unconstrain_takes_a_parameter_at_the_edge_to_the_nearest_legal_one(model):
    edge = {"gaussian": 0.0, "poisson": 1e9, "impulse": 0.0, "poisson_gaussian": (0.0, 0.0)}[model.kind]
    found = array(model.constrain(tensor(model.unconstrain(edge))))
    nearest = {"poisson": 1000.0, "poisson_gaussian": (1e-6, 1e-3)}.get(model.kind, 1e-3)
    assert found == pytest.approx(nearest, rel=2e-5)


@every_channel_count
@pytest.mark.parametrize(
    "kind, level, factor",
    [
        ("gaussian", 5 / 255, 1.05),
        ("gaussian", 25 / 255, 1.05),
        ("gaussian", 50 / 255, 1.05),
        ("poisson", 5.0, 1.3),
        ("poisson", 30.0, 1.3),
        ("poisson", 50.0, 1.3),
        ("impulse", 0.1, 1.5),
        ("impulse", 0.5, 1.5),
        ("impulse", 0.8, 1.6),  # in mono a replaced pixel is close to its neighbour one time in five
    ],
)
def test_estimates_land_within_a_factor_on_synthetic_crops(kind, level, factor, channels):
    # 65,536 or more 2x2 blocks: chance moves a median by less than 1 %; the rest is bias.
    model = MODELS[kind]()
    noisy = model.corrupt(synthetic_crops(channels), level, np.random.default_rng(21))
    found = model.estimate(noisy)
    print(f"estimated {found:.4f} for {level:.4f}")
    assert level / factor < found < level * factor


@every_model
def test_estimates_take_crops_of_odd_sizes(model):
    crops = synthetic_crops(3)[:, :127, :125]
    found = model.estimate(model.corrupt(crops, LEVELS[model.kind], np.random.default_rng(22)))
    ratio = np.array(found) / LEVELS[model.kind]
    assert (1 / 1.5 < ratio).all() and (ratio < 1.5).all()


@every_likelihood
@every_channel_count
def test_float32_agrees_with_float64(model, channels):
    arguments = case(model, channels)
    for method in (model.marginal_nll, model.posterior_mean):
        wide, narrow = call(method, *arguments), call(method, *arguments, dtype="float32")
        assert narrow.dtype == np.float32
        # Condition numbers reach 1e3 and the quadratic form 100: 6e-8 * 1e3, with a margin.
        np.testing.assert_allclose(narrow, wide, rtol=2e-4, atol=2e-4)


@every_likelihood
def test_noise_model_survives_serialization(model):
    text = json.dumps(keras.saving.serialize_keras_object(model))
    again = keras.saving.deserialize_keras_object(json.loads(text))
    assert type(again) is type(model) and again == model


@every_likelihood
def test_noise_models_cannot_be_changed(model):
    with pytest.raises(AttributeError):
        model.likelihood = "other"


@pytest.mark.parametrize("model, parameter", [(PoissonNoise(), 0.001), (GaussianNoise(), 1500.0),
                                              (ImpulseNoise(), 0.9995)])  # fmt: skip
def test_unconstrain_inverts_constrain_at_the_far_ends(model, parameter):
    raw = keras.ops.convert_to_tensor(model.unconstrain(parameter), dtype="float64")
    assert float(model.constrain(raw)) == pytest.approx(parameter, rel=1e-6)


@pytest.mark.parametrize("model", [GaussianNoise(), PoissonNoise()])
def test_an_estimate_on_flat_pictures_is_a_place_to_start_from(model):
    raw = model.unconstrain(model.estimate(np.full((2, 8, 8, 3), 0.5)))
    assert -6 < raw < 6  # where the softplus still has a slope
