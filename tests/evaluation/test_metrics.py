"""PSNR and SSIM as the paper measures them: after rounding to 8 bits."""

import pathlib

import numpy as np
import pytest
import scipy.ndimage

from ssdn_tf.errors import UserError
from ssdn_tf.evaluation import metrics

REFERENCE = pathlib.Path(__file__).parents[1] / "reference" / "values.npz"


def picture(seed=0, shape=(23, 31, 3)):
    return np.random.default_rng(seed).random(shape, dtype=np.float32)


def flat(level, shape=(4, 5, 3)):
    return np.full(shape, level / 255.0, np.float32)


def reference_ssim(a, b):
    """Wang et al. 2004 for 8-bit arrays [H,W,C]: windows of std 1.5 and radius 5 that fit inside."""
    values = []
    for channel in range(a.shape[-1]):
        x, y = a[..., channel].astype(np.float64), b[..., channel].astype(np.float64)

        def mean(v):
            return scipy.ndimage.gaussian_filter(v, 1.5, radius=5)[5:-5, 5:-5]

        var_x, var_y = mean(x * x) - mean(x) ** 2, mean(y * y) - mean(y) ** 2
        covariance = mean(x * y) - mean(x) * mean(y)
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        light = (2 * mean(x) * mean(y) + c1) / (mean(x) ** 2 + mean(y) ** 2 + c1)
        values.append(np.mean(light * (2 * covariance + c2) / (var_x + var_y + c2)))
    return np.mean(values)


def test_psnr_matches_the_published_evaluation():
    """The published source's value for the pair in reference/values.npz (its arithmetic is float32)."""
    with np.load(REFERENCE) as values:
        a, b, expected = (values[f"psnr/{key}"] for key in ("a", "b", "value"))
    assert metrics.psnr(a, b) == pytest.approx(float(expected), abs=1e-3)


@pytest.mark.parametrize("a, b, expected", [(100, 110, 28.130804), (0, 255, 0.0), (255, 0, 0.0), (7, 8, 48.130804)])
def test_psnr_of_known_error(a, b, expected):
    # 20 log10(255 / |a - b|); differences of both signs, beyond what 8 bits hold.
    assert metrics.psnr(flat(a), flat(b)) == pytest.approx(expected, abs=1e-6)


def test_psnr_of_equal_images_is_infinite():
    assert metrics.psnr(picture(), picture()) == np.inf


def test_psnr_quantises_and_clips():
    assert metrics.psnr(flat(100), flat(100.4)) == np.inf
    assert metrics.psnr(flat(100), flat(100.6)) == pytest.approx(48.130804, abs=1e-6)
    assert metrics.psnr(flat(255), flat(400)) == np.inf
    assert metrics.psnr(flat(0), flat(-100)) == np.inf


def test_psnr_is_over_all_channels():
    other = flat(100)
    other[..., 1] = 110 / 255
    # A third of the squared error: 10 log10(3) more.
    assert metrics.psnr(flat(100), other) == pytest.approx(28.130804 + 4.771213, abs=1e-6)


def test_psnr_is_symmetric():
    assert metrics.psnr(picture(1), picture(2)) == metrics.psnr(picture(2), picture(1))


def test_psnr_takes_the_mean_in_float64():
    # One pixel of 4 million differs by 1: float32 sums of squares this long lose digits.
    a, b = np.zeros((2000, 2000, 1), np.float32), np.zeros((2000, 2000, 1), np.float32)
    b[0, 0] = 1 / 255
    assert metrics.psnr(a, b) == pytest.approx(10 * np.log10(255**2 * 4e6), abs=1e-9)


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_matches_the_written_out_definition(channels):
    a = picture(3, (32, 40, channels))
    b = np.clip(a + 0.1 * (picture(4, (32, 40, channels)) - 0.5), 0, 1).astype(np.float32)
    expected = reference_ssim(*(np.floor(255 * v.astype(np.float64) + 0.5).astype(np.uint8) for v in (a, b)))
    assert 0.5 < expected < 0.999
    assert metrics.ssim(a, b) == pytest.approx(expected, abs=1e-6)


def test_ssim_of_equal_images_is_one_and_quantises():
    a = flat(100, (16, 16, 3))
    assert metrics.ssim(a, a) == 1.0
    assert metrics.ssim(a, flat(100.4, (16, 16, 3))) == 1.0
    assert metrics.ssim(picture(), 1 - picture()) < 0.0


def test_an_image_with_nan_has_no_psnr():
    image = np.zeros((4, 4, 3))
    assert np.isnan(metrics.psnr(np.full((4, 4, 3), np.nan), image)) and metrics.psnr(image, image) == np.inf


def test_images_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match="one shape"):
        metrics.psnr(np.zeros((4, 4, 3)), np.zeros((4, 4, 1)))


@pytest.mark.parametrize("shape", [(10, 20, 3), (20, 10, 1)])
def test_ssim_refuses_pictures_below_its_window(shape):
    with pytest.raises(UserError, match=f"at least 11x11 pixels for SSIM, received {shape[1]}x{shape[0]}"):
        metrics.ssim(np.zeros(shape), np.zeros(shape))
    assert metrics.ssim(np.zeros((11, 11, 3)), np.zeros((11, 11, 3))) == 1.0
