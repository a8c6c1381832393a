"""Poisson-Gaussian noise: its limits are Gaussian and Poisson noise, exactly; quadrature for the posterior."""

import numpy as np
import pytest
import scipy.stats
from noise_cases import as_batch, call, case, every_channel_count, synthetic_crops

from ssdn_tf.noise.prior import Prior
from ssdn_tf.noise.registry import MODELS

GAUSSIAN, POISSON, BOTH = (MODELS[kind]() for kind in ("gaussian", "poisson", "poisson_gaussian"))
LIMITS = {"gaussian": (GAUSSIAN, 0.1, (0.0, 0.1)), "poisson": (POISSON, 16.0, (1 / 16, 0.0))}
every_limit = pytest.mark.parametrize("model, parameter, pair", LIMITS.values(), ids=LIMITS)


@every_limit
@every_channel_count
@pytest.mark.parametrize("method", ["marginal_nll", "posterior_mean", "posterior_std"])
def test_gaussian_and_poisson_noise_are_the_limits(model, parameter, pair, channels, method):
    noisy, mu_x, sigma_x, _ = case(model, channels)
    expected = call(getattr(model, method), noisy, mu_x, sigma_x, as_batch(parameter))
    found = call(getattr(BOTH, method), noisy, mu_x, sigma_x, as_batch(pair))
    np.testing.assert_allclose(found, expected, rtol=1e-14, atol=1e-15)
    # The negative control: a little of the other noise changes the result.
    more = call(getattr(BOTH, method), noisy, mu_x, sigma_x, as_batch(np.add(pair, 1e-3)))
    assert np.abs(more - expected).max() > 1e-6


@every_limit
def test_the_noise_that_is_drawn_is_that_of_the_limits_too(model, parameter, pair):
    clean = np.random.default_rng(3).random((16, 16, 3), dtype=np.float32)
    expected = model.corrupt(clean, parameter, np.random.default_rng(4))
    np.testing.assert_allclose(BOTH.corrupt(clean, pair, np.random.default_rng(4)), expected, rtol=1e-6)


def test_no_noise_leaves_the_picture_alone():
    clean = np.random.default_rng(3).random((16, 16, 3), dtype=np.float32)
    assert (BOTH.corrupt(clean, (0.0, 0.0), np.random.default_rng(4)) == clean).all()


def test_a_learned_level_can_be_low():
    """The gain is a variance: at 1e-3, the least of a learned std, the noise would be 6/255 in the middle."""
    for pair, raw in {(1e-6, 1e-3): (-50.0, -50.0), (2e-5, 3e-3): BOTH.unconstrain((2e-5, 3e-3))}.items():
        assert np.asarray(BOTH.constrain(np.float64(raw))) == pytest.approx(pair, rel=1e-6)


def test_a_known_readout_is_bounded_only_where_there_is_no_gain():
    given = np.array([[0.0, 0.0], [0.0, 0.2], [0.01, 0.0]]).reshape(3, 1, 1, 2)
    found = np.asarray(BOTH.bound_known(given)).reshape(3, 2)
    np.testing.assert_allclose(found, [[0.0, 1e-3], [0.0, 0.2], [0.01, 0.0]])


def ground(variance, channels, count=8192):
    """(noisy, Prior) of pixels from 0.06 to 0.9 with a given variance of the noise, as a function of x."""
    rng = np.random.default_rng(5)
    mu_x = rng.uniform(0.06, 0.9, (1, 1, count, channels))
    clean = mu_x + 0.02 * rng.standard_normal(mu_x.shape)
    noisy = clean + np.sqrt(np.maximum(variance(clean), 0)) * rng.standard_normal(mu_x.shape)
    return noisy, Prior(mu_x, np.broadcast_to(0.02**2 * np.eye(channels), (*mu_x.shape, channels)))


@every_channel_count
@pytest.mark.parametrize("gain, black", [(1 / 30, 0.05), (1 / 8, 0.04)])
def test_the_black_level_is_found_where_photon_noise_ends_above_zero(gain, black, channels):
    noisy, prior = ground(lambda x: gain * (x - black), channels)
    assert BOTH.black_level(noisy, prior) == pytest.approx(black, abs=0.01)


@pytest.mark.parametrize(
    "variance",
    [lambda x: x / 30, lambda x: 0.1**2, lambda x: (x - 0.05) / 30 + 0.05**2, lambda x: 0.0 * x, lambda x: x / 1e6],
    ids=["black is 0", "readout alone", "more readout than offset", "none", "hardly any"],
)
def test_there_is_no_black_level_elsewhere(variance):
    assert BOTH.black_level(*ground(variance, 3)) < 0.004


@pytest.mark.parametrize("lam, readout, most", [(30.0, 0.05, 0.1), (200.0, 0.03, 0.06), (5.0, 0.2, 0.1)])
def test_the_posterior_mean_is_close_to_quadrature(lam, readout, most):
    """The density of y is a sum over photon counts of Gaussians; x ~ N(0.5, 0.1^2) on a grid of 2,001 points.

    The stated error is in posterior standard deviations, averaged over y."""
    x = np.linspace(0.02, 1.1, 2001)
    prior = scipy.stats.norm(0.5, 0.1).pdf(x)
    counts = np.arange(int(lam * 1.1 + 12 * np.sqrt(lam * 1.1)) + 1)
    photons = scipy.stats.poisson.pmf(counts, lam * x[:, None])
    y = np.linspace(0.1, 0.9, 33)
    density = scipy.stats.norm(counts / lam, readout).pdf(y[:, None])
    joint = prior[:, None] * (photons @ density.T)
    exact = (x @ joint) / joint.sum(axis=0)
    std = np.sqrt((x**2 @ joint) / joint.sum(axis=0) - exact**2)
    arguments = y.reshape(1, 1, -1, 1), np.full((1, 1, 33, 1), 0.5), np.full((1, 1, 33, 1, 1), 0.01)
    found = call(BOTH.posterior_mean, *arguments, as_batch((1 / lam, readout))).ravel()
    weight = joint.sum(axis=0) / joint.sum()
    error = weight @ np.abs(found - exact) / (weight @ std)
    print(f"lam {lam:g}, readout {readout}: off by {error:.1%} of the posterior std")
    assert error < most
    # The negative control: without the readout noise the error is larger.
    without = call(BOTH.posterior_mean, *arguments, as_batch((1 / lam, 0.0))).ravel()
    assert weight @ np.abs(without - exact) / (weight @ std) > 1.5 * error


@pytest.mark.parametrize("pair", [(1 / 20, 0.0), (0.0, 0.1), (1 / 50, 0.05)])
@every_channel_count
def test_the_estimate_is_a_place_to_start_from(pair, channels):
    noisy = BOTH.corrupt(synthetic_crops(channels), pair, np.random.default_rng(5))
    found = BOTH.estimate(noisy)
    # The variances at mid-gray agree within 30 %, whichever of the two numbers has them.
    variance = [gain * 0.5 + readout**2 for gain, readout in (found, pair)]
    print(pair, found)
    assert variance[1] / 1.3 < variance[0] < variance[1] * 1.3
