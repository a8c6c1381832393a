"""Gaussian noise against quadrature and samples."""

import math

import numpy as np
import pytest
import scipy.stats
from noise_cases import call, case, every_channel_count, moment_samples, one_pixel, sampled_pixels
from support import gauss_hermite, z_test

from ssdn_tf.noise.gaussian import GaussianNoise


@every_channel_count
def test_gaussian_marginal_nll_matches_monte_carlo(channels):
    # p(y) is the mean of p(y | x) over the prior. 500,000 draws see an error of 1 % in p(y).
    mu_x, sigma_x, clean, _ = sampled_pixels(channels)
    x = clean.reshape(-1, channels).astype(np.float64)
    noisy = mu_x + 0.1
    density = np.prod(scipy.stats.norm.pdf(noisy, x, 0.1), axis=1)
    arguments = noisy.reshape(1, 1, 1, -1), *one_pixel(mu_x, sigma_x), np.full((1, 1, 1, 1), 0.1)
    nll = call(GaussianNoise().marginal_nll, *arguments).item()
    z_test(density, np.exp(-nll) / (2 * np.pi) ** (channels / 2))


@every_channel_count
def test_gaussian_marginal_nll_and_posterior_mean_match_quadrature(channels):
    model = GaussianNoise()
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


def test_posterior_std_keeps_its_accuracy_beside_a_hundred_thousand_times_larger_noise():
    """And a smaller one; a difference of covariances would lose ten digits."""
    for sigma_x, sigma in ((1e-10, 1.0), (1.0, 1e-5)):
        arguments = (
            np.zeros((1, 1, 1, 1)),
            np.zeros((1, 1, 1, 1)),
            np.full((1, 1, 1, 1, 1), sigma_x),
            np.full(4 * (1,), sigma),
        )
        found = call(GaussianNoise().posterior_std, *arguments, dtype="float32").item()
        assert found == pytest.approx(min(math.sqrt(sigma_x), sigma), rel=1e-6)


@every_channel_count
def test_gaussian_samples_have_the_given_std_and_are_not_clipped(channels):
    clean = np.zeros((500_000, 1, 1, channels), np.float32)
    clean[::2] = 1.0
    noisy = GaussianNoise().corrupt(clean, 0.1, np.random.default_rng(14)).astype(np.float64)
    assert noisy.min() < -0.3 and noisy.max() > 1.3
    # Sees 0.07 % of the range in the mean and 1 % of the variance.
    expected = np.concatenate([np.zeros(channels), 0.01 * np.eye(channels).ravel()])
    z_test(moment_samples(noisy - clean, 0.0), expected)


def test_posterior_std_loses_in_float32_what_its_docstring_says_and_no_more():
    """Near-singular full covariances: about max(sigma_x) / n times the rounding of sigma_x."""
    rng = np.random.default_rng(8)
    q = np.linalg.qr(rng.standard_normal((1, 50, 50, 3, 3)))[0]
    for ratio, limit in ((1e-1, 2e-6), (1e-3, 4e-3)):
        root = q * (0.1 * np.array([1.0, ratio, ratio]))
        sigma_x = root @ np.swapaxes(root, -1, -2)
        arguments = np.zeros((1, 50, 50, 3)), np.zeros((1, 50, 50, 3)), sigma_x, np.full((1, 1, 1, 1), 1e-3)
        wide, narrow = (call(GaussianNoise().posterior_std, *arguments, dtype=d) for d in ("float64", "float32"))
        error = np.abs(narrow / wide - 1).max()
        print(f"largest relative error {error:.1e} at a ratio of {ratio}")
        assert error < limit
