"""Poisson noise: its variance, its posterior against quadrature, its samples, and the estimate of lam."""

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
    reference_moments,
    sampled_pixels,
)
from support import array, tensor, z_test

from ssdn_tf.noise import haar
from ssdn_tf.noise.levels import LEVELS
from ssdn_tf.noise.poisson import PoissonNoise
from ssdn_tf.noise.prior import Prior


def test_poisson_variance_is_bounded_below_in_the_dark():
    model = PoissonNoise()
    mu_x = np.array([-0.2, 0.0, 0.5]).reshape(1, 1, 1, 3)
    found = array(model.variance(Prior(tensor(mu_x), None), tensor(np.full((1, 1, 1, 1), 10.0))))
    np.testing.assert_allclose(found.ravel(), [1e-4, 1e-4, 0.05], rtol=1e-12)


def test_signal_independent_poisson_noise_is_seen_by_the_moments():
    mu_x, sigma_x, clean, rng = sampled_pixels(1)
    wrong = clean + (rng.poisson(15.0, clean.shape) - 15.0) / 30.0 * 1.05
    mu_y, sigma_y = reference_moments("poisson", mu_x, sigma_x, 30.0)
    z = z_test(moment_samples(wrong, mu_y), np.concatenate([np.zeros(1), sigma_y.ravel()]), limit=1e4)
    assert np.abs(z).max() > 10


@every_channel_count
def test_poisson_posterior_std_is_the_gaussian_one_at_the_variance_of_mu_x(channels):
    noisy, mu_x, sigma_x, lam = case(PoissonNoise(), channels)
    found = call(PoissonNoise().posterior_std, noisy, mu_x, sigma_x, lam)
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
    ours = call(PoissonNoise().posterior_mean, y, *prior, lam).ravel()
    std = call(PoissonNoise().posterior_std, y, *prior, lam).item()  # the same for every count
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


def test_poisson_samples_have_the_mean_and_variance_of_two_intensities():
    # 500,000 samples a level see 0.4 % of the mean of the dark one, 1.2 % of its variance.
    level = np.array([0.1, 0.8])
    clean = np.broadcast_to(level.reshape(1, 1, 2, 1), (500_000, 1, 2, 1)).astype(np.float32)
    noisy = PoissonNoise().corrupt(clean, 30.0, np.random.default_rng(11))
    noisy = noisy.reshape(-1, 2).astype(np.float64)
    z_test(np.concatenate([noisy, (noisy - level) ** 2], axis=1), np.concatenate([level, level / 30.0]))


@every_channel_count
def test_poisson_values_are_photon_counts(channels):
    clean = np.random.default_rng(12).random((2, 8, 8, channels), dtype=np.float32)
    lam = np.array([7.3, 41.0]).reshape(2, 1, 1, 1)
    photons = PoissonNoise().corrupt(clean, lam, np.random.default_rng(13)).astype(np.float64) * lam
    # Float32 values: each is off by half a unit in the last place.
    np.testing.assert_allclose(photons, np.round(photons), rtol=1e-7, atol=0)
    assert photons.max() > 20


# The estimate of lam.


@pytest.mark.parametrize("lam", [2.0, 5.0, 10.0, 30.0, 100.0, 200.0])
@pytest.mark.parametrize("level", [0.02, 0.04, 0.1, 0.3, 0.9])
def test_lam_is_estimated_at_every_brightness(level, lam):
    # 12,288 blocks; the darkest have 0.16 photons each, so chance is about 2 % there, and 1 % elsewhere.
    noisy = PoissonNoise().corrupt(np.full((4, 64, 64, 3), level), lam, np.random.default_rng(3))
    assert PoissonNoise().estimate(noisy) == pytest.approx(lam, rel=0.06)


def median_estimate(crops):
    """The median of squared details over means, which is 0 in the dark."""
    mean = np.maximum(haar.mean(crops), 1.0 / 255)
    return 0.4549 / max(np.median(haar.diagonal(crops) ** 2 / mean), 0.4549 / 500)


def textured(scale):
    """Pictures [3,128,128,3] in [0, scale], with texture and edges: waves up to the finest, bricks, 1/f noise."""
    rng = np.random.default_rng(4)
    v, u = np.mgrid[:128, :128]
    waves = 0.5 + 0.1 * np.sin(u * v / 60) + 0.1 * np.cos(u / 2 + v / 3)
    bricks = 0.3 + 0.4 * ((u + 16 * (v // 8 % 2)) % 32 > 2) * (v % 8 > 0)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(128), np.fft.fftfreq(128)))
    spectrum = np.fft.fft2(rng.standard_normal((128, 128))) / np.maximum(frequency, 1 / 128)
    cloud = np.real(np.fft.ifft2(spectrum))
    cloud = 0.5 + 0.15 * cloud / cloud.std()
    return scale * np.stack([waves, bricks, cloud]).clip(0.02, 1.0)[..., None] * np.array([1.0, 0.8, 0.6])


@pytest.mark.parametrize("scale", [1.0, 0.1])
@pytest.mark.parametrize("lam", [5.0, 30.0, 100.0, 200.0])
def test_the_estimate_is_no_worse_on_textures_than_the_median(scale, lam):
    # 36,864 blocks: chance is about 1 % of each estimate.
    for clean in textured(scale):
        noisy = PoissonNoise().corrupt(clean[None], lam, np.random.default_rng(5))
        ours, median = (abs(np.log(estimate(noisy) / lam)) for estimate in (PoissonNoise().estimate, median_estimate))
        assert ours < median + 0.03


def test_the_median_fails_on_dark_pictures():
    noisy = PoissonNoise().corrupt(np.full((4, 64, 64, 3), 0.04), 5.0, np.random.default_rng(3))
    assert median_estimate(noisy) == pytest.approx(500)


def test_black_pictures_have_an_estimate_too():
    assert PoissonNoise().estimate(np.zeros((1, 32, 32, 3), np.float32)) == 500


def test_numpy_draws_at_the_highest_legal_lam_and_the_lowest():
    clean = np.ones((1, 8, 8, 3), np.float32)
    level = LEVELS["poisson"]
    for lam in (level.low, level.high):
        assert np.isfinite(PoissonNoise().corrupt(clean, lam, np.random.default_rng(6))).all()
    with pytest.raises(ValueError):
        PoissonNoise().corrupt(clean, 1e25, np.random.default_rng(6))
    with pytest.raises(ValueError, match="expected a number between .* received 1e[+]25"):
        level.check(1e25)


# The posterior std.


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_posterior_is_finite_for_singular_priors_at_the_highest_lam_in_the_dark(dtype):
    # Colours that vary together, as in a gray picture: the pivots of sigma_x + sigma_n are 1e-9 beside 0.01.
    colours = np.random.default_rng(7).uniform(0.3, 1.0, (1, 20, 20, 3))
    colours[0, 0] = 1.0
    sigma_x = 0.01 * colours[..., :, None] * colours[..., None, :]
    mu_x = np.zeros((1, 20, 20, 3))
    arguments = 0.1 * colours, mu_x, sigma_x, np.full((1, 1, 1, 1), 1e6)
    std = call(PoissonNoise().posterior_std, *arguments, dtype=dtype)
    assert np.isfinite(std).all()
    assert (std <= np.sqrt(1e-9) * (1 + 1e-6)).all() and (std >= 0).all()
    assert np.isfinite(call(PoissonNoise().posterior_mean, *arguments, dtype=dtype)).all()
    if dtype == "float64":
        # The exact one, from sigma_x = v v^T: n v_c^2 / (n + |v|^2).
        v = 0.1 * colours
        exact = np.sqrt(1e-9 * v**2 / (1e-9 + (v**2).sum(axis=-1, keepdims=True)))
        np.testing.assert_allclose(std, exact, rtol=1e-6)
