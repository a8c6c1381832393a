"""Image quality as the paper measures it. NumPy only."""

import math

import numpy as np

from ssdn_tf.data.images import to_uint8
from ssdn_tf.errors import UserError

_SSIM_WINDOW = 11


def psnr(a, b):
    """Peak signal-to-noise ratio in dB of two images in [0, 1], over all channels.

    Both are rounded to 8 bits first (clip(255 a + 0.5, 0, 255), truncated), the peak is
    255; the mean is taken in float64. Equal images give inf, images with NaN give NaN.

    Args:
        a, b: float [..., H, W, C], of one shape.

    Raises:
        ValueError: the shapes differ.
    """
    if np.shape(a) != np.shape(b):
        raise ValueError(f"psnr expects images of one shape. Received: {np.shape(a)} and {np.shape(b)}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.nan
    error = to_uint8(a).astype(np.float64) - to_uint8(b)
    mse = np.mean(error * error)
    return float(np.inf) if mse == 0 else float(10.0 * np.log10(255.0**2 / mse))


def check_size(name, size):
    """Raises UserError for a picture whose size, (height, width), is less than the window of SSIM."""
    if min(size) < _SSIM_WINDOW:
        side = _SSIM_WINDOW
        raise UserError(f"{name}: expected at least {side}x{side} pixels for SSIM, received {size[1]}x{size[0]}.")


def ssim(a, b):
    """Structural similarity of two images [H, W, C] in [0, 1], after rounding to 8 bits.

    Wang et al. 2004: Gaussian window of std 1.5, population covariance; mean over channels.

    Raises:
        UserError: the picture is smaller than the window of 11x11.
    """
    check_size("picture", np.shape(a)[:2])
    from skimage.metrics import structural_similarity

    return float(
        structural_similarity(
            to_uint8(a),
            to_uint8(b),
            data_range=255,
            channel_axis=-1,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )
