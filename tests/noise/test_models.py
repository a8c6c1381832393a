"""The noise models against sampling, quadrature, scipy, and the published formulas written out.

References are NumPy float64, one pixel at a time, with explicit inverses.
"""

import itertools
import json
import math

import keras
import numpy as np
import pytest
import scipy.stats
from support import ACCURACY, array, gauss_hermite, gradients, random_prior, tensor, z_test

from ssdn_tf.noise import models
from ssdn_tf.noise.prior import Prior, from_components

SHAPE = (2, 3, 4)
LEVELS = {"gaussian": 0.1, "poisson": 30.0, "impulse": 0.4}  # a new model joins by a line here

every_model = pytest.mark.parametrize("model", [m() for m in models.MODELS.values()], ids=lambda m: m.kind)
every_likelihood = pytest.mark.parametrize(
    "model",
    [*(m() for m in models.MODELS.values()), models.ImpulseNoise("mixture")],
    ids=["gaussian", "poisson", "impulse", "mixture"],
)
every_channel_count = pytest.mark.parametrize("channels", [1, 3])
both_impulse_likelihoods = pytest.mark.parametrize("likelihood", ["moments", "mixture"])


def reference_moments(kind, mu_x, sigma_x, parameter):
    """The table of the method: mean and covariance of the noisy pixel."""
    eye, ones = np.eye(len(mu_x)), np.ones((len(mu_x), len(mu_x)))
    if kind == "gaussian":
        return mu_x, sigma_x + parameter**2 * eye
    if kind == "poisson":
        return mu_x, sigma_x + np.diag(np.maximum(mu_x, 1e-3) / parameter)
    mu_y = parameter / 2 + (1 - parameter) * mu_x
    second = parameter * (ones / 4 + eye / 12) + (1 - parameter) * (sigma_x + np.outer(mu_x, mu_x))
    return mu_y, second - np.outer(mu_y, mu_y)


def reference_prior(kind, mu_x, sigma_x):
    """The impulse model adds 1e-6 to the variances of the prior."""
    return mu_x, sigma_x + (1e-6 if kind == "impulse" else 0.0) * np.eye(len(mu_x))


def reference_nll(kind, y, mu_x, sigma_x, parameter):
    """0.5 d^T sigma_y^-1 d + 0.5 log det sigma_y."""
    mu_y, sigma_y = reference_moments(kind, *reference_prior(kind, mu_x, sigma_x), parameter)
    d = y - mu_y
    return 0.5 * d @ np.linalg.inv(sigma_y) @ d + 0.5 * np.log(np.linalg.det(sigma_y))


def reference_posterior(kind, y, mu_x, sigma_x, parameter, inflation=0.0, floor=0.0):
    """Published: the three-inverse form for additive noise, Bayes' rule for impulse noise."""
    if kind == "impulse":
        mu_x, sigma_x = reference_prior(kind, mu_x, sigma_x)
        d, determinant = y - mu_x, max(np.linalg.det(sigma_x), floor)
        g = np.exp(-0.5 * d @ np.linalg.inv(sigma_x) @ d) / np.sqrt((2 * np.pi) ** len(y) * determinant)
        return (parameter * mu_x + (1 - parameter) * g * y) / (parameter + (1 - parameter) * g)
    sigma_n = reference_moments(kind, mu_x, 0 * sigma_x, parameter)[1] + inflation * np.eye(len(y))
    inverse_x, inverse_n = np.linalg.inv(sigma_x + inflation * np.eye(len(y))), np.linalg.inv(sigma_n)
    return np.linalg.inv(inverse_x + inverse_n) @ (inverse_x @ mu_x + inverse_n @ y)


def pixelwise(function, kind, noisy, mu_x, sigma_x, parameter, **kwargs):
    """A reference applied to every pixel of [N,H,W]; parameter [N,1,1,1]."""
    results = [
        function(kind, noisy[p], mu_x[p], sigma_x[p], parameter[p[0], 0, 0, 0], **kwargs) for p in np.ndindex(SHAPE)
    ]
    return np.reshape(results, (*SHAPE, *np.shape(results[0])))


def case(model, channels, seed=0):
    """noisy in the unit cube, mu_x, sigma_x, and one parameter an image: NumPy."""
    mu_x, sigma_x = random_prior(seed, SHAPE, channels)
    noisy = np.random.default_rng(seed + 100).uniform(0.0, 1.0, (*SHAPE, channels))
    return noisy, mu_x, sigma_x, LEVELS[model.kind] * np.array([1.0, 1.5]).reshape(2, 1, 1, 1)


def call(method, noisy, mu_x, sigma_x, parameter, dtype="float64", **kwargs):
    """A method of a model on NumPy arguments."""
    noisy, mu_x, sigma_x, parameter = (tensor(v, dtype) for v in (noisy, mu_x, sigma_x, parameter))
    return array(method(noisy, Prior(mu_x, sigma_x), parameter, **kwargs))


def one_pixel(mu_x, sigma_x):
    """mu_x [1,1,1,C] and sigma_x [1,1,1,C,C], which broadcast over pictures."""
    return mu_x[None, None, None], sigma_x[None, None, None]


def sampled_pixels(channels, count=500_000, seed=7):
    """One prior, more than six standard deviations inside the unit cube, and draws from it."""
    mu_x, std = np.array([0.4, 0.5, 0.6])[:channels], np.array([0.06, 0.05, 0.04])[:channels]
    sigma_x = np.outer(std, std) * (0.5 + 0.5 * np.eye(channels))
    rng = np.random.default_rng(seed)
    clean = rng.multivariate_normal(mu_x, sigma_x, count, method="cholesky")
    return mu_x, sigma_x, clean.reshape(count, 1, 1, channels).astype(np.float32), rng


# The published formulas.


@every_model
@every_channel_count
def test_marginal_moments_are_the_published_ones(model, channels):
    _, mu_x, sigma_x, parameter = case(model, channels)
    mu_y, sigma_y = model.marginal_moments(Prior(tensor(mu_x), tensor(sigma_x)), tensor(parameter))
    for p in np.ndindex(SHAPE):
        mean, covariance = reference_moments(model.kind, mu_x[p], sigma_x[p], parameter[p[0], 0, 0, 0])
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
        mean, covariance = reference_moments(model.kind, *prior, parameter[p[0], 0, 0, 0])
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
    model = models.MODELS[kind]()
    # A prior with standard deviations of 0.001 to 0.01, where 1e-6 is seen.
    noisy, mu_x, sigma_x, parameter = case(model, 3)
    arguments = noisy, mu_x, sigma_x / 400, parameter
    expected = pixelwise(reference_posterior, kind, *arguments, inflation=1e-6)
    found = call(model.posterior_mean, *arguments, inflation=1e-6)
    np.testing.assert_allclose(found, expected, rtol=1e-7, atol=1e-9)
    assert np.abs(call(model.posterior_mean, *arguments) - expected).max() > 1e-5


@every_channel_count
def test_determinant_floor_is_the_published_one(channels):
    model = models.ImpulseNoise()
    noisy, mu_x, sigma_x, parameter = case(model, channels)
    sigma_x = sigma_x / 1600
    noisy = mu_x + 0.05 * (noisy - 0.5)
    floor = 1e-3 if channels == 1 else 1e-9
    expected = pixelwise(reference_posterior, "impulse", noisy, mu_x, sigma_x, parameter, floor=floor)
    found = call(model.posterior_mean, noisy, mu_x, sigma_x, parameter, determinant_floor=floor)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert np.abs(call(model.posterior_mean, noisy, mu_x, sigma_x, parameter) - expected).max() > 1e-4


def test_poisson_variance_is_bounded_below_in_the_dark():
    model = models.PoissonNoise()
    mu_x = np.array([-0.2, 0.0, 0.5]).reshape(1, 1, 1, 3)
    found = array(model.variance(Prior(tensor(mu_x), None), tensor(np.full((1, 1, 1, 1), 10.0))))
    np.testing.assert_allclose(found.ravel(), [1e-4, 1e-4, 0.05], rtol=1e-12)


def test_noise_std_is_the_published_measure():
    _, mu_x, sigma_x, _ = case(models.GaussianNoise(), 3)
    prior = Prior(tensor(mu_x), tensor(sigma_x))
    parameter = np.array([0.2, 0.4]).reshape(2, 1, 1, 1)
    found = {m: array(models.MODELS[m]().standard_deviation(prior, tensor(parameter))) for m in models.MODELS}
    np.testing.assert_allclose(found["gaussian"], parameter[..., 0], rtol=ACCURACY)
    np.testing.assert_allclose(found["impulse"], parameter[..., 0] * 100 / 255, rtol=1e-12)
    # The arithmetic mean over channels, not the geometric one.
    np.testing.assert_allclose(found["poisson"], np.sqrt(mu_x / parameter).mean(axis=-1), rtol=ACCURACY)


# Sampling: x from the prior, corrupted by the model's own code.


def moment_samples(y, mu_y):
    """[K, C + C * C]: values, then products of the deviations from mu_y, flattened."""
    d = y.reshape(len(y), -1) - mu_y
    return np.concatenate([d, (d[:, :, None] * d[:, None, :]).reshape(len(d), -1)], axis=1)


@every_model
@every_channel_count
def test_marginal_moments_match_corrupted_samples(model, channels):
    # 500,000 samples see an error of 0.7 % of a standard deviation in the mean and of 1 % in
    # a variance.
    mu_x, sigma_x, clean, rng = sampled_pixels(channels)
    level = LEVELS[model.kind]
    noisy = model.corrupt(clean, level, rng).astype(np.float64)
    prior = Prior(*map(tensor, one_pixel(mu_x, sigma_x)))
    mu_y, sigma_y = map(array, model.marginal_moments(prior, tensor(np.full((1, 1, 1, 1), level))))
    expected = np.concatenate([np.zeros(channels), sigma_y.ravel()])
    z_test(moment_samples(noisy, mu_y.ravel()), expected)


def test_one_impulse_mask_per_channel_is_seen_by_the_moments():
    mu_x, sigma_x, clean, rng = sampled_pixels(3)
    wrong = np.where(rng.random(clean.shape) < 0.4, rng.random(clean.shape), clean).astype(np.float64)
    mu_y, sigma_y = reference_moments("impulse", mu_x, sigma_x, 0.4)
    z = z_test(moment_samples(wrong, mu_y), np.concatenate([np.zeros(3), sigma_y.ravel()]), limit=1e3)
    assert np.abs(z).max() > 10


def test_signal_independent_poisson_noise_is_seen_by_the_moments():
    mu_x, sigma_x, clean, rng = sampled_pixels(1)
    wrong = clean + (rng.poisson(15.0, clean.shape) - 15.0) / 30.0 * 1.05
    mu_y, sigma_y = reference_moments("poisson", mu_x, sigma_x, 30.0)
    z = z_test(moment_samples(wrong, mu_y), np.concatenate([np.zeros(1), sigma_y.ravel()]), limit=1e4)
    assert np.abs(z).max() > 10


def orthogonality_samples(model, channels, estimate):
    """Products (x - estimate(y)) h(y), [K, functions * C], for h that the model must be blind to."""
    mu_x, sigma_x, clean, rng = sampled_pixels(channels, count=200_000)
    level = LEVELS[model.kind]
    noisy = model.corrupt(clean, level, rng).astype(np.float64)
    found = estimate(model, noisy, *one_pixel(mu_x, sigma_x), np.full((1, 1, 1, 1), level))
    error = (clean - found).reshape(-1, channels)
    y = noisy.reshape(-1, channels) - mu_x
    h = [np.ones(len(y)), *y.T]
    if model.kind != "poisson":  # there the estimate is only the best one linear in y
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
    arguments = noisy, *one_pixel(mu_x, sigma_x), np.full((1, 1, 1, 1), level)
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


@every_channel_count
def test_gaussian_marginal_nll_matches_monte_carlo(channels):
    # p(y) is the mean of p(y | x) over the prior. 500,000 draws see an error of 1 % in p(y).
    mu_x, sigma_x, clean, _ = sampled_pixels(channels)
    x = clean.reshape(-1, channels).astype(np.float64)
    noisy = mu_x + 0.1
    density = np.prod(scipy.stats.norm.pdf(noisy, x, 0.1), axis=1)
    arguments = noisy.reshape(1, 1, 1, -1), *one_pixel(mu_x, sigma_x), np.full((1, 1, 1, 1), 0.1)
    nll = call(models.GaussianNoise().marginal_nll, *arguments).item()
    z_test(density, np.exp(-nll) / (2 * np.pi) ** (channels / 2))


# Quadrature.


@every_channel_count
def test_gaussian_marginal_nll_and_posterior_mean_match_quadrature(channels):
    model = models.GaussianNoise()
    noisy, mu_x, sigma_x, sigma = case(model, channels)
    noisy = mu_x + 0.4 * (noisy - 0.5)
    nll = call(model.marginal_nll, noisy, mu_x, sigma_x, sigma)
    mean = call(model.posterior_mean, noisy, mu_x, sigma_x, sigma)
    std = call(model.posterior_std, noisy, mu_x, sigma_x, sigma)
    for p in [(0, 0, 0), (0, 2, 1), (1, 1, 3)]:
        x, weights = gauss_hermite(mu_x[p], sigma_x[p], nodes=60)
        s = sigma[p[0], 0, 0, 0]
        weights = weights * np.exp(-0.5 * (((noisy[p] - x) / s) ** 2).sum(axis=1)) / s**channels
        # 60 nodes a channel resolve a likelihood of about the width of the prior to 1e-7.
        assert nll[p] == pytest.approx(-np.log(weights.sum()), abs=1e-6)
        np.testing.assert_allclose(mean[p], weights @ x / weights.sum(), atol=1e-6)
        variance = weights @ (x - mean[p]) ** 2 / weights.sum()
        np.testing.assert_allclose(std[p], np.sqrt(variance), atol=1e-6)


@every_channel_count
def test_poisson_posterior_std_is_the_gaussian_one_at_the_variance_of_mu_x(channels):
    noisy, mu_x, sigma_x, lam = case(models.PoissonNoise(), channels)
    found = call(models.PoissonNoise().posterior_std, noisy, mu_x, sigma_x, lam)
    for p in np.ndindex(SHAPE):
        sigma_n = np.diag(mu_x[p] / lam[p[0], 0, 0, 0])
        expected = np.linalg.inv(np.linalg.inv(sigma_x[p]) + np.linalg.inv(sigma_n))
        np.testing.assert_allclose(found[p], np.sqrt(np.diag(expected)), rtol=1e-9)


def poisson_posterior_error(lam):
    """RMS of (ours - exact posterior mean) over photon counts, in exact posterior stds; and the
    ratio of our posterior std to the exact one (RMS over counts). Mono."""
    mu, std = 0.5, 0.1
    x = np.linspace(mu - 5 * std + 1e-6, mu + 6 * std, 2_001)
    p_x = scipy.stats.norm.pdf(x, mu, std)
    counts = np.arange(0, int(2 * lam) + 20)
    joint = scipy.stats.poisson.pmf(counts[:, None], lam * x) * (p_x / p_x.sum())
    p_k = joint.sum(axis=1)
    counts, joint, p_k = counts[p_k > 1e-12], joint[p_k > 1e-12], p_k[p_k > 1e-12]
    exact = joint @ x / p_k
    variance = joint @ x**2 / p_k - exact**2
    prior = one_pixel(np.array([mu]), np.array([[std**2]]))
    y = (counts / lam).reshape(1, 1, -1, 1)
    lam = np.full((1, 1, 1, 1), lam)
    ours = call(models.PoissonNoise().posterior_mean, y, *prior, lam).ravel()
    std = call(models.PoissonNoise().posterior_std, y, *prior, lam).item()  # the same for every count
    return np.sqrt(p_k @ (ours - exact) ** 2 / (p_k @ variance)), std / np.sqrt(p_k @ variance)


@pytest.mark.parametrize("lam, stated", [(5.0, 0.025), (30.0, 0.09), (50.0, 0.105), (500.0, 0.08)])
def test_poisson_posterior_error_is_the_stated_part_of_the_posterior_std(lam, stated):
    # Against exact quadrature, for a prior of 0.5 +- 0.1. Few photons: little is learned from
    # them either way; very many: their distribution is nearly Gaussian. Computed: 0.0246,
    # 0.0874, 0.1040, 0.0779; pinned from both sides, so that an exact or a worse one shows.
    error, ratio = poisson_posterior_error(lam)
    assert 0.95 * stated < error < stated
    # Our std is the root mean square error of our mean; the exact one's is smaller by that part.
    assert ratio == pytest.approx(np.sqrt(1 + error**2), rel=1e-3)


# The exact impulse likelihood.


@every_channel_count
def test_mixture_likelihood_matches_brute_force(channels):
    model = models.ImpulseNoise("mixture")
    noisy, mu_x, sigma_x, alpha = case(model, channels)
    found = call(model.marginal_nll, noisy, mu_x, sigma_x, alpha)
    for p in np.ndindex(SHAPE):
        normal = scipy.stats.multivariate_normal(*reference_prior("impulse", mu_x[p], sigma_x[p]))
        a = alpha[p[0], 0, 0, 0]
        expected = -np.log(a + (1 - a) * normal.pdf(noisy[p])) - channels / 2 * np.log(2 * np.pi)
        assert found[p] == pytest.approx(expected, rel=ACCURACY, abs=ACCURACY)


def mass_in_the_cube(model, channels, alpha=0.4):
    """Integral of exp(-nll) / (2 pi)^(C/2) over [0, 1]^C by Gauss-Legendre."""
    mu_x, sigma_x, _, _ = sampled_pixels(channels, count=1)
    nodes, weights = np.polynomial.legendre.leggauss(48)
    nodes, weights = 0.5 + 0.5 * nodes, 0.5 * weights
    y = np.stack(np.meshgrid(*[nodes] * channels, indexing="ij"), axis=-1).reshape(1, 1, -1, channels)
    w = np.prod(np.stack(np.meshgrid(*[weights] * channels, indexing="ij"), axis=-1), axis=-1).ravel()
    nll = call(model.marginal_nll, y, *one_pixel(mu_x, sigma_x), np.full((1, 1, 1, 1), alpha)).ravel()
    return w @ np.exp(-nll) / (2 * np.pi) ** (channels / 2)


@every_channel_count
def test_mixture_likelihood_integrates_to_one_over_the_unit_cube(channels):
    # The prior leaves less than 1e-9 outside; the quadrature is good to 1e-6.
    assert mass_in_the_cube(models.ImpulseNoise("mixture"), channels) == pytest.approx(1.0, abs=1e-5)


@every_channel_count
def test_moments_likelihood_spills_out_of_the_unit_cube(channels):
    assert mass_in_the_cube(models.ImpulseNoise("moments"), channels) < 0.99


@every_channel_count
@both_impulse_likelihoods
def test_impulse_posterior_mean_matches_brute_force_bayes(channels, likelihood):
    model = models.ImpulseNoise(likelihood)
    noisy, mu_x, sigma_x, alpha = case(model, channels)
    found = call(model.posterior_mean, noisy, mu_x, sigma_x, alpha)
    std = call(model.posterior_std, noisy, mu_x, sigma_x, alpha)
    kept = 0.0
    for p in np.ndindex(SHAPE):
        normal = scipy.stats.multivariate_normal(*reference_prior("impulse", mu_x[p], sigma_x[p]))
        a = alpha[p[0], 0, 0, 0]
        # P(replaced | y): the uniform density is 1 in the unit cube.
        replaced = a / (a + (1 - a) * normal.pdf(noisy[p]))
        np.testing.assert_allclose(found[p], replaced * mu_x[p] + (1 - replaced) * noisy[p], rtol=1e-9)
        # Moments of the mixture of an atom at y and the prior.
        variance = np.diag(reference_prior("impulse", mu_x[p], sigma_x[p])[1])
        second = replaced * (variance + mu_x[p] ** 2) + (1 - replaced) * noisy[p] ** 2
        np.testing.assert_allclose(std[p], np.sqrt(second - found[p] ** 2), rtol=1e-6)
        kept = max(kept, 1 - replaced)
    assert kept > 0.5  # the case has pixels of both kinds


# Limits.


def test_no_noise_returns_the_observation():
    for kind, level in (("gaussian", 1e-7), ("poisson", 1e12), ("impulse", 0.0)):
        model = models.MODELS[kind]()
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


def test_posterior_std_keeps_its_accuracy_beside_a_hundred_thousand_times_larger_noise():
    """And a smaller one; a difference of covariances would lose ten digits."""
    for sigma_x, sigma in ((1e-10, 1.0), (1.0, 1e-5)):
        arguments = (
            np.zeros((1, 1, 1, 1)),
            np.zeros((1, 1, 1, 1)),
            np.full((1, 1, 1, 1, 1), sigma_x),
            np.full(4 * (1,), sigma),
        )
        found = call(models.GaussianNoise().posterior_std, *arguments, dtype="float32").item()
        assert found == pytest.approx(min(math.sqrt(sigma_x), sigma), rel=1e-6)


def test_posterior_std_at_the_ends_of_alpha():
    noisy, mu_x, sigma_x, alpha = case(models.ImpulseNoise(), 3)
    assert (call(models.ImpulseNoise().posterior_std, noisy, mu_x, sigma_x, 0 * alpha) == 0).all()
    found = call(models.ImpulseNoise().posterior_std, noisy, mu_x, sigma_x, np.ones_like(alpha))
    np.testing.assert_allclose(found**2, np.diagonal(sigma_x, axis1=-2, axis2=-1) + 1e-6, rtol=1e-12)


def test_infinite_noise_returns_mu_x():
    for model, level in ((models.GaussianNoise(), 1e6), (models.PoissonNoise(), 1e-12)):
        noisy, mu_x, sigma_x, parameter = case(model, 3)
        found = call(model.posterior_mean, noisy, mu_x, sigma_x, np.full_like(parameter, level))
        np.testing.assert_allclose(found, mu_x, atol=1e-10)


@every_channel_count
@both_impulse_likelihoods
def test_alpha_zero_is_the_prior_itself(channels, likelihood):
    model = models.ImpulseNoise(likelihood)
    noisy, mu_x, sigma_x, alpha = case(model, channels)
    found = call(model.marginal_nll, noisy, mu_x, sigma_x, 0 * alpha)
    for p in np.ndindex(SHAPE):
        normal = scipy.stats.multivariate_normal(*reference_prior("impulse", mu_x[p], sigma_x[p]))
        expected = -normal.logpdf(noisy[p]) - channels / 2 * np.log(2 * np.pi)
        assert found[p] == pytest.approx(expected, rel=ACCURACY, abs=ACCURACY)
    np.testing.assert_allclose(call(model.posterior_mean, noisy, mu_x, sigma_x, 0 * alpha), noisy, atol=1e-15)


@every_channel_count
def test_alpha_one_says_nothing_about_the_pixel(channels):
    model = models.ImpulseNoise("mixture")
    noisy, mu_x, sigma_x, alpha = case(model, channels)
    ones = np.ones_like(alpha)
    assert (call(model.posterior_mean, noisy, mu_x, sigma_x, ones) == mu_x).all()
    # Density 1 everywhere in the cube, less the constant.
    found = call(model.marginal_nll, noisy, mu_x, sigma_x, ones)
    np.testing.assert_allclose(found, -channels / 2 * math.log(2 * math.pi), rtol=ACCURACY)
    moments = call(models.ImpulseNoise().marginal_nll, noisy, mu_x, sigma_x, ones)
    expected = 0.5 * 12 * ((noisy - 0.5) ** 2).sum(axis=-1) - channels / 2 * math.log(12)
    np.testing.assert_allclose(moments, expected, rtol=1e-11)


@every_channel_count
@both_impulse_likelihoods
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
@pytest.mark.parametrize("std", [0.0, 0.1])
@pytest.mark.parametrize("y", [0.0, 0.5, 1.0])
def test_extreme_known_alpha_gives_finite_values_and_gradients(channels, likelihood, dtype, alpha, std, y):
    # The network's gradient, that is; alpha itself is given, no weight depends on it.
    model = models.ImpulseNoise(likelihood)
    outputs = np.full((1, 1, 1, channels + channels * (channels + 1) // 2), std)
    outputs[..., :channels] = 0.5
    noisy, given = tensor(np.full((1, 1, 1, channels), y), dtype), tensor(np.full((1, 1, 1, 1), alpha), dtype)

    def nll(outputs):
        return model.marginal_nll(noisy, from_components(outputs, channels), given)

    def posterior(outputs):
        return model.posterior_mean(noisy, from_components(outputs, channels), given)

    for function in (nll, posterior):
        assert np.isfinite(array(function(tensor(outputs, dtype)))).all()
        (found,) = gradients(function, tensor(outputs, dtype))
        assert np.isfinite(found).all()


@every_likelihood
@every_channel_count
@pytest.mark.parametrize("raw", [-30.0, 0.0, 3.0, 20.0])
def test_learned_parameters_have_finite_gradients_in_float32(model, channels, raw):
    noisy, mu_x, sigma_x, _ = case(model, channels)
    noisy, mu_x, sigma_x = (tensor(v, "float32") for v in (noisy, mu_x, sigma_x))

    def nll(raw):
        return model.marginal_nll(noisy, Prior(mu_x, sigma_x), model.constrain(raw))

    (found,) = gradients(nll, tensor(np.full((1, 1, 1, 1), raw), "float32"))
    assert np.isfinite(found).all()
    assert found != 0.0


# Corruption.


def test_poisson_samples_have_the_mean_and_variance_of_two_intensities():
    # 500,000 samples a level see 0.4 % of the mean of the dark one, 1.2 % of its variance.
    level = np.array([0.1, 0.8])
    clean = np.broadcast_to(level.reshape(1, 1, 2, 1), (500_000, 1, 2, 1)).astype(np.float32)
    noisy = models.PoissonNoise().corrupt(clean, 30.0, np.random.default_rng(11))
    noisy = noisy.reshape(-1, 2).astype(np.float64)
    z_test(np.concatenate([noisy, (noisy - level) ** 2], axis=1), np.concatenate([level, level / 30.0]))


@every_channel_count
def test_poisson_values_are_photon_counts(channels):
    clean = np.random.default_rng(12).random((2, 8, 8, channels), dtype=np.float32)
    lam = np.array([7.3, 41.0]).reshape(2, 1, 1, 1)
    photons = models.PoissonNoise().corrupt(clean, lam, np.random.default_rng(13)).astype(np.float64) * lam
    # Float32 values: each is off by half a unit in the last place.
    np.testing.assert_allclose(photons, np.round(photons), rtol=1e-7, atol=0)
    assert photons.max() > 20


@every_channel_count
def test_gaussian_samples_have_the_given_std_and_are_not_clipped(channels):
    clean = np.zeros((500_000, 1, 1, channels), np.float32)
    clean[::2] = 1.0
    noisy = models.GaussianNoise().corrupt(clean, 0.1, np.random.default_rng(14)).astype(np.float64)
    assert noisy.min() < -0.3 and noisy.max() > 1.3
    # Sees 0.07 % of the range in the mean and 1 % of the variance.
    expected = np.concatenate([np.zeros(channels), 0.01 * np.eye(channels).ravel()])
    z_test(moment_samples(noisy - clean, 0.0), expected)


@every_channel_count
def test_impulse_replaces_whole_pixels_with_uniform_colours(channels):
    clean = np.full((500_000, 1, 1, channels), 2.0, np.float32)  # no uniform draw is 2
    noisy = models.ImpulseNoise().corrupt(clean, 0.3, np.random.default_rng(15)).reshape(-1, channels)
    replaced = noisy != 2.0
    assert (replaced.all(axis=1) == replaced.any(axis=1)).all()
    replaced = replaced[:, 0]
    z_test(replaced, 0.3)  # sees 0.3 percentage points
    colours = noisy[replaced].astype(np.float64)
    assert colours.min() >= 0.0 and colours.max() < 1.0
    # Moments of independent uniforms; sees 0.4 % of the range.
    z_test(moment_samples(colours, 0.5), np.concatenate([np.zeros(channels), np.eye(channels).ravel() / 12]))


def test_alpha_zero_replaces_nothing_and_alpha_one_everything():
    clean = np.full((1, 100, 100, 3), 2.0, np.float32)
    rng = np.random.default_rng(16)
    assert (models.ImpulseNoise().corrupt(clean, 0.0, rng) == clean).all()
    assert (models.ImpulseNoise().corrupt(clean, 1.0, rng) < 1.0).all()


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
    levels = {"gaussian": (0.01, 0.1), "poisson": (500.0, 5.0), "impulse": (0.05, 0.9)}[model.kind]
    clean = np.full((2, 64, 64, 3), 0.5, np.float32)
    noisy = model.corrupt(clean, np.array(levels).reshape(2, 1, 1, 1), np.random.default_rng(18))
    first, second = ((noisy - clean) ** 2).mean(axis=(1, 2, 3))
    assert second > 5 * first


# Parameters: known, learned, estimated.


def test_known_sigma_is_bounded_below_and_the_others_pass():
    parameter = tensor(np.array([0.0, 5e-4, 0.5]).reshape(3, 1, 1, 1))
    found = {kind: array(models.MODELS[kind]().bound_known(parameter)).ravel() for kind in models.MODELS}
    assert found["gaussian"].tolist() == [1e-3, 1e-3, 0.5]
    assert found["poisson"].tolist() == found["impulse"].tolist() == [0.0, 5e-4, 0.5]


def test_constrained_parameter_starts_at_five_levels():
    start = math.log1p(math.exp(-4.0)) + 1e-3
    assert 255 * start == pytest.approx(4.88, abs=0.005)
    found = {kind: array(models.MODELS[kind]().constrain(tensor(0.0))) for kind in models.MODELS}
    assert found["gaussian"] == pytest.approx(start, rel=1e-14)
    assert found["impulse"] == pytest.approx(start, rel=1e-14)
    assert found["poisson"] == pytest.approx(1 / start, rel=1e-14)


@every_model
def test_constrained_parameter_is_legal_for_any_number(model):
    found = array(model.constrain(tensor(np.linspace(-100.0, 30.0, 1_000), "float32")))
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
    model = models.MODELS[kind]()
    for value in values:
        found = array(model.constrain(tensor(model.unconstrain(value))))
        # softplus near its exponential end loses the digits that 1e-3 hides.
        assert found == pytest.approx(value, rel=1e-12)


@every_model
def test_unconstrain_takes_a_parameter_at_the_edge_to_the_nearest_legal_one(model):
    edge = {"gaussian": 0.0, "poisson": 1e9, "impulse": 0.0}[model.kind]
    found = array(model.constrain(tensor(model.unconstrain(edge))))
    assert found == pytest.approx(1000.0 if model.kind == "poisson" else 1e-3, rel=2e-5)


def test_learned_alpha_never_reaches_one_and_keeps_a_gradient():
    # Up to raw 30 in float32, where 1 - 0.001 / (1 + t) and 1 are two numbers; in float64 on.
    for dtype, most in (("float32", 30.0), ("float64", 1e6)):
        raw = np.concatenate([[4.6, 5.0], np.geomspace(6.0, most, 20)])
        found = array(models.ImpulseNoise().constrain(tensor(raw, dtype)))
        assert (found > 0.999).all() and (found < 1.0).all()
        (slope,) = gradients(models.ImpulseNoise().constrain, tensor(raw, dtype))
        assert np.isfinite(slope).all() and (slope > 0.0).all()


def test_learned_alpha_is_the_published_map_below_the_knee_and_smooth_at_it():
    raw = np.linspace(-10.0, 4.5, 200)
    published = models.GaussianNoise().constrain(tensor(raw))
    assert (array(published) < 0.999).all()
    assert (array(models.ImpulseNoise().constrain(tensor(raw))) == array(published)).all()
    knee = models.ImpulseNoise().unconstrain(0.999)
    sides = tensor([knee - 1e-9, knee + 1e-9])
    below, above = array(models.ImpulseNoise().constrain(sides))
    # A step at the knee would be as large as what lies above it, 1e-3.
    assert 0.0 < above - below < 3e-9
    (slope,) = gradients(models.ImpulseNoise().constrain, sides)
    assert slope[1] == pytest.approx(slope[0], rel=1e-5)


def synthetic_crops(channels, size=128, count=4):
    """Shaded discs on a shaded ground: smooth regions with edges, values in [0.1, 0.9]."""
    rng = np.random.default_rng(20)
    v, u = np.mgrid[:size, :size] / size
    crops = np.empty((count, size, size, channels))
    for i, c in np.ndindex(count, channels):
        crops[i, ..., c] = 0.4 + 0.2 * np.sin(2 * u + rng.uniform(0, 6)) * np.cos(2 * v + rng.uniform(0, 6))
    for i in range(count):
        for _ in range(6):
            y, x = rng.uniform(0, 1, 2)
            inside = (u - x) ** 2 + (v - y) ** 2 < rng.uniform(0.05, 0.2) ** 2
            crops[i][inside] += rng.uniform(-0.1, 0.3, channels)
    return crops.clip(0.1, 0.9).astype(np.float32)


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
    model = models.MODELS[kind]()
    noisy = model.corrupt(synthetic_crops(channels), level, np.random.default_rng(21))
    found = model.estimate(noisy)
    print(f"estimated {found:.4f} for {level:.4f}")
    assert level / factor < found < level * factor


@every_model
def test_estimates_take_crops_of_odd_sizes(model):
    crops = synthetic_crops(3)[:, :127, :125]
    found = model.estimate(model.corrupt(crops, LEVELS[model.kind], np.random.default_rng(22)))
    assert LEVELS[model.kind] / 1.5 < found < LEVELS[model.kind] * 1.5


# Numbers and objects.


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


def test_likelihoods_are_told_apart_by_equality_and_others_are_refused():
    assert models.ImpulseNoise() == models.ImpulseNoise("moments") != models.ImpulseNoise("mixture")
    with pytest.raises(ValueError, match="must be one of .* Received: exact"):
        models.ImpulseNoise("exact")


@every_likelihood
def test_noise_models_cannot_be_changed(model):
    with pytest.raises(AttributeError):
        model.likelihood = "other"


@pytest.mark.parametrize("model, parameter", [(models.PoissonNoise(), 0.001), (models.GaussianNoise(), 1500.0),
                                              (models.ImpulseNoise(), 0.9995)])  # fmt: skip
def test_unconstrain_inverts_constrain_at_the_far_ends(model, parameter):
    raw = keras.ops.convert_to_tensor(model.unconstrain(parameter), dtype="float64")
    assert float(model.constrain(raw)) == pytest.approx(parameter, rel=1e-6)


def test_a_learned_alpha_is_below_one_in_float32_however_large_the_raw_number():
    assert float(models.ImpulseNoise().constrain(keras.ops.convert_to_tensor(1e6, dtype="float32"))) < 1.0
    with pytest.raises(ValueError, match="stays below"):
        models.ImpulseNoise().unconstrain(1.0)


@pytest.mark.parametrize("model", [models.GaussianNoise(), models.PoissonNoise()])
def test_an_estimate_on_flat_pictures_is_a_place_to_start_from(model):
    raw = model.unconstrain(model.estimate(np.full((2, 8, 8, 3), 0.5)))
    assert -6 < raw < 6  # where the softplus still has a slope


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.8])
def test_the_estimate_of_alpha_counts_chance(channels, alpha):
    clean = np.full((8, 64, 64, channels), 0.4, np.float32)
    noisy = models.ImpulseNoise().corrupt(clean, alpha, np.random.default_rng(0))
    # 32,000 pairs; in mono a replaced pixel is also close to the flat value by chance.
    assert models.ImpulseNoise().estimate(noisy) == pytest.approx(alpha, abs=0.08)


def test_the_combined_likelihood_is_the_mean_of_both():
    prior = Prior(*[tensor(part) for part in random_prior(3, (2, 4, 4), 3)])
    noisy, alpha = tensor(np.random.default_rng(0).random((2, 4, 4, 3))), tensor(np.full((1, 1, 1, 1), 0.5))
    values = {name: array(models.ImpulseNoise(name).marginal_nll(noisy, prior, alpha)) for name in models.LIKELIHOODS}
    assert np.abs(values["moments"] - values["mixture"]).max() > 0.1
    np.testing.assert_allclose(values["combined"], (values["moments"] + values["mixture"]) / 2, rtol=1e-6)
