import sys

import numpy as np
import pytest

from ssdn_tf.errors import UserError
from ssdn_tf.evaluation import baselines, metrics

SIGMA = 25 / 255


def smooth(height, width, channels):
    """Float32 [H,W,C] in [0.2, 0.8]: waves, another one in each channel."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / (13 + c)) * np.cos(y / (17 - c)) for c in range(channels)]
    return (0.5 + 0.3 * np.stack(waves, axis=-1)).astype(np.float32)


def with_noise(clean):
    rng = np.random.default_rng(0)
    return clean + rng.normal(0, SIGMA, clean.shape).astype(np.float32)


def gain(clean, sigma=SIGMA):
    """What CBM3D adds to the PSNR, in dB."""
    noisy = with_noise(clean)
    denoised = baselines.cbm3d(noisy, sigma)
    assert denoised.shape == clean.shape and denoised.dtype == np.float32
    return metrics.psnr(denoised, clean) - metrics.psnr(noisy, clean)


@pytest.fixture
def installed():
    pytest.importorskip("bm3d")


@pytest.mark.parametrize("channels", [1, 3])
def test_it_gains_more_than_5_db_on_a_picture_that_is_not_square(channels, installed):
    assert gain(smooth(40, 56, channels)) > 5


def test_it_gains_little_with_a_wrong_sigma(installed):
    assert gain(smooth(40, 56, 1), sigma=SIGMA / 10) < 1


# bm3d refuses sides below 8 and crashes on 8x8.
@pytest.mark.parametrize("shape", [(1, 1, 1), (8, 8, 1), (8, 8, 3), (5, 20, 3)])
def test_small_pictures_work(shape, installed):
    noisy = with_noise(smooth(*shape))
    denoised = baselines.cbm3d(noisy, SIGMA)
    assert denoised.shape == shape and np.isfinite(denoised).all()


def test_values_outside_0_to_1_are_not_clipped(installed):
    clean = smooth(32, 32, 1)
    noisy = with_noise(clean)
    there = baselines.cbm3d(noisy, SIGMA)
    lifted = baselines.cbm3d(noisy + np.float32(2), SIGMA)
    np.testing.assert_allclose(lifted - 2, there, atol=2e-3)


def test_the_picture_given_stays_as_it_was(installed):
    noisy = with_noise(smooth(16, 16, 3))
    before = noisy.copy()
    baselines.cbm3d(noisy, SIGMA)
    np.testing.assert_array_equal(noisy, before)


@pytest.mark.parametrize("value", [np.nan, 0.5])
def test_a_picture_it_would_turn_into_nan_is_an_error(value, installed):
    with pytest.raises(UserError, match="expected finite pixels with noise in each channel"):
        baselines.cbm3d(np.full((16, 16, 3), value, np.float32), SIGMA)


@pytest.mark.parametrize("shape", [(16, 16), (16, 16, 2), (0, 16, 3)])
def test_another_shape_is_an_error(shape):
    with pytest.raises(ValueError, match="must be"):
        baselines.cbm3d(np.zeros(shape, np.float32), SIGMA)


def test_without_the_package_the_error_says_how_to_get_it_and_what_its_licence_allows(monkeypatch):
    monkeypatch.setitem(sys.modules, "bm3d", None)
    with pytest.raises(UserError) as caught:
        baselines.cbm3d(np.zeros((16, 16, 3), np.float32), SIGMA)
    assert 'pip install "ssdn_tf[bm3d]"' in str(caught.value)
    assert "non-commercial use only" in str(caught.value)


@pytest.mark.parametrize("name", ["nlm", "wavelet", "median"])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_others_gain_too(name, channels):
    clean = smooth(64, 80, channels)
    noisy = with_noise(clean)
    denoised = baselines.BASELINES[name](noisy, SIGMA)
    assert denoised.shape == clean.shape and denoised.dtype == np.float32
    assert metrics.psnr(denoised, clean) - metrics.psnr(noisy, clean) > 5
    if name != "median":
        weak = baselines.BASELINES[name](noisy, SIGMA / 10)  # control: the std matters
        assert metrics.psnr(weak, clean) - metrics.psnr(noisy, clean) < 2
