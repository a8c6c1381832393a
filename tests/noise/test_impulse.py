"""Impulse noise: the exact likelihood, the ends of alpha, and the map of a learned alpha."""

import math

import keras
import numpy as np
import pytest
import scipy.stats
from noise_cases import (
    SHAPE,
    call,
    case,
    every_channel_count,
    moment_samples,
    one_pixel,
    pixelwise,
    reference_moments,
    reference_posterior,
    reference_prior,
    sampled_pixels,
)
from support import ACCURACY, array, gradients, random_prior, tensor, z_test

from ssdn_tf.noise.gaussian import GaussianNoise
from ssdn_tf.noise.impulse import LIKELIHOODS, ImpulseNoise
from ssdn_tf.noise.prior import Prior, from_components

both_impulse_likelihoods = pytest.mark.parametrize("likelihood", ["moments", "mixture"])


@every_channel_count
def test_determinant_floor_is_the_published_one(channels):
    model = ImpulseNoise()
    noisy, mu_x, sigma_x, parameter = case(model, channels)
    sigma_x = sigma_x / 1600
    noisy = mu_x + 0.05 * (noisy - 0.5)
    floor = 1e-3 if channels == 1 else 1e-9
    expected = pixelwise(reference_posterior, "impulse", noisy, mu_x, sigma_x, parameter, floor=floor)
    found = call(model.posterior_mean, noisy, mu_x, sigma_x, parameter, determinant_floor=floor)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert np.abs(call(model.posterior_mean, noisy, mu_x, sigma_x, parameter) - expected).max() > 1e-4


def test_one_impulse_mask_per_channel_is_seen_by_the_moments():
    mu_x, sigma_x, clean, rng = sampled_pixels(3)
    wrong = np.where(rng.random(clean.shape) < 0.4, rng.random(clean.shape), clean).astype(np.float64)
    mu_y, sigma_y = reference_moments("impulse", mu_x, sigma_x, 0.4)
    z = z_test(moment_samples(wrong, mu_y), np.concatenate([np.zeros(3), sigma_y.ravel()]), limit=1e3)
    assert np.abs(z).max() > 10


@every_channel_count
def test_mixture_likelihood_matches_brute_force(channels):
    model = ImpulseNoise("mixture")
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
    assert mass_in_the_cube(ImpulseNoise("mixture"), channels) == pytest.approx(1.0, abs=1e-5)


@every_channel_count
def test_moments_likelihood_spills_out_of_the_unit_cube(channels):
    assert mass_in_the_cube(ImpulseNoise("moments"), channels) < 0.99


@every_channel_count
@both_impulse_likelihoods
def test_impulse_posterior_mean_matches_brute_force_bayes(channels, likelihood):
    model = ImpulseNoise(likelihood)
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


def test_posterior_std_at_the_ends_of_alpha():
    noisy, mu_x, sigma_x, alpha = case(ImpulseNoise(), 3)
    assert (call(ImpulseNoise().posterior_std, noisy, mu_x, sigma_x, 0 * alpha) == 0).all()
    found = call(ImpulseNoise().posterior_std, noisy, mu_x, sigma_x, np.ones_like(alpha))
    np.testing.assert_allclose(found**2, np.diagonal(sigma_x, axis1=-2, axis2=-1) + 1e-6, rtol=1e-12)


@every_channel_count
@both_impulse_likelihoods
def test_alpha_zero_is_the_prior_itself(channels, likelihood):
    model = ImpulseNoise(likelihood)
    noisy, mu_x, sigma_x, alpha = case(model, channels)
    found = call(model.marginal_nll, noisy, mu_x, sigma_x, 0 * alpha)
    for p in np.ndindex(SHAPE):
        normal = scipy.stats.multivariate_normal(*reference_prior("impulse", mu_x[p], sigma_x[p]))
        expected = -normal.logpdf(noisy[p]) - channels / 2 * np.log(2 * np.pi)
        assert found[p] == pytest.approx(expected, rel=ACCURACY, abs=ACCURACY)
    np.testing.assert_allclose(call(model.posterior_mean, noisy, mu_x, sigma_x, 0 * alpha), noisy, atol=1e-15)


@every_channel_count
def test_alpha_one_says_nothing_about_the_pixel(channels):
    model = ImpulseNoise("mixture")
    noisy, mu_x, sigma_x, alpha = case(model, channels)
    ones = np.ones_like(alpha)
    assert (call(model.posterior_mean, noisy, mu_x, sigma_x, ones) == mu_x).all()
    # Density 1 everywhere in the cube, less the constant.
    found = call(model.marginal_nll, noisy, mu_x, sigma_x, ones)
    np.testing.assert_allclose(found, -channels / 2 * math.log(2 * math.pi), rtol=ACCURACY)
    moments = call(ImpulseNoise().marginal_nll, noisy, mu_x, sigma_x, ones)
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
    model = ImpulseNoise(likelihood)
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


@every_channel_count
def test_impulse_replaces_whole_pixels_with_uniform_colours(channels):
    clean = np.full((500_000, 1, 1, channels), 2.0, np.float32)  # no uniform draw is 2
    noisy = ImpulseNoise().corrupt(clean, 0.3, np.random.default_rng(15)).reshape(-1, channels)
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
    assert (ImpulseNoise().corrupt(clean, 0.0, rng) == clean).all()
    assert (ImpulseNoise().corrupt(clean, 1.0, rng) < 1.0).all()


def test_learned_alpha_never_reaches_one_and_keeps_a_gradient():
    # Up to raw 30 in float32, where 1 - 0.001 / (1 + t) and 1 are two numbers; in float64 on.
    for dtype, most in (("float32", 30.0), ("float64", 1e6)):
        raw = np.concatenate([[4.6, 5.0], np.geomspace(6.0, most, 20)])
        found = array(ImpulseNoise().constrain(tensor(raw, dtype)))
        assert (found > 0.999).all() and (found < 1.0).all()
        (slope,) = gradients(ImpulseNoise().constrain, tensor(raw, dtype))
        assert np.isfinite(slope).all() and (slope > 0.0).all()


def test_learned_alpha_is_the_published_map_below_the_knee_and_smooth_at_it():
    raw = np.linspace(-10.0, 4.5, 200)
    published = GaussianNoise().constrain(tensor(raw))
    assert (array(published) < 0.999).all()
    assert (array(ImpulseNoise().constrain(tensor(raw))) == array(published)).all()
    knee = ImpulseNoise().unconstrain(0.999)
    sides = tensor([knee - 1e-9, knee + 1e-9])
    below, above = array(ImpulseNoise().constrain(sides))
    # A step at the knee would be as large as what lies above it, 1e-3.
    assert 0.0 < above - below < 3e-9
    (slope,) = gradients(ImpulseNoise().constrain, sides)
    assert slope[1] == pytest.approx(slope[0], rel=1e-5)


def test_likelihoods_are_told_apart_by_equality_and_others_are_refused():
    assert ImpulseNoise() == ImpulseNoise("moments") != ImpulseNoise("mixture")
    with pytest.raises(ValueError, match="must be one of .* Received: exact"):
        ImpulseNoise("exact")


def test_a_learned_alpha_is_below_one_in_float32_however_large_the_raw_number():
    assert float(ImpulseNoise().constrain(keras.ops.convert_to_tensor(1e6, dtype="float32"))) < 1.0
    start = ImpulseNoise().constrain(tensor([ImpulseNoise().unconstrain(alpha) for alpha in (0.5, 0.9999995, 1.0)]))
    np.testing.assert_allclose(array(start), [0.5, 1 - 2e-6, 1 - 2e-6], rtol=1e-9)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.8])
def test_the_estimate_of_alpha_counts_chance(channels, alpha):
    clean = np.full((8, 64, 64, channels), 0.4, np.float32)
    noisy = ImpulseNoise().corrupt(clean, alpha, np.random.default_rng(0))
    # 32,000 pairs; in mono a replaced pixel is also close to the flat value by chance.
    assert ImpulseNoise().estimate(noisy) == pytest.approx(alpha, abs=0.08)


def test_the_combined_likelihood_is_the_mean_of_both():
    prior = Prior(*[tensor(part) for part in random_prior(3, (2, 4, 4), 3)])
    noisy, alpha = tensor(np.random.default_rng(0).random((2, 4, 4, 3))), tensor(np.full((1, 1, 1, 1), 0.5))
    values = {name: array(ImpulseNoise(name).marginal_nll(noisy, prior, alpha)) for name in LIKELIHOODS}
    assert np.abs(values["moments"] - values["mixture"]).max() > 0.1
    np.testing.assert_allclose(values["combined"], (values["moments"] + values["mixture"]) / 2, rtol=1e-6)
