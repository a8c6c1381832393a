"""Other denoisers, to compare with: functions of a picture and the std of its noise."""

import numpy as np

from ssdn_tf.errors import UserError, optional

# bm3d matches blocks of 8x8: it refuses smaller pictures and crashes (4.0.3) on one of exactly 8x8.
_LEAST_SIDE = 16


def cbm3d(noisy, sigma):
    """CBM3D (BM3D for one channel), as the optional package `bm3d` computes it; slow.

    Reference: Dabov et al., Color image denoising via sparse 3D collaborative filtering with
    grouping constraint in luminance-chrominance space, ICIP 2007.

    Args:
        noisy: float32 [H,W,3] or [H,W,1], in [0, 1] plus noise that is independent between pixels and
            between channels; not clipped. Any H, W >= 1.
        sigma: standard deviation of the noise, in the same unit; 25 means 25/255.

    Returns:
        float32, the shape of `noisy`, not clipped.

    Raises:
        UserError: `bm3d` is not installed (its licence is for non-commercial use only), or it cannot denoise the
            picture: values that are not finite, or a channel without noise.
        ValueError: another shape.
    """
    if noisy.ndim != 3 or noisy.shape[-1] not in (1, 3) or not noisy.size:
        raise ValueError(f"noisy must be [H, W, 1 or 3]. Received: noisy.shape={noisy.shape}")
    bm3d = package()
    height, width = noisy.shape[:2]
    missing = [(0, max(0, _LEAST_SIDE - side)) for side in (height, width)]
    padded = np.pad(noisy.astype(np.float64), (*missing, (0, 0)), mode="symmetric")
    # A channel (or a difference of channels) without contrast is divided by its range, 0.
    with np.errstate(divide="ignore", invalid="ignore"):
        if noisy.shape[-1] == 3:
            denoised = bm3d.bm3d_rgb(padded, float(sigma))
        else:
            denoised = bm3d.bm3d(padded[..., 0], float(sigma))[..., None]
    if not np.isfinite(denoised).all():
        raise UserError("CBM3D: expected finite pixels with noise in each channel, received a picture without.")
    return denoised[:height, :width].astype(np.float32)


def non_local_means(noisy, sigma):
    """Non-local means of scikit-image: patches of 5x5, distances up to 6, h = 0.8 sigma.

    Reference: Buades et al., A non-local algorithm for image denoising, CVPR 2005.

    Args and result: as `cbm3d`.
    """
    from skimage.restoration import denoise_nl_means

    denoised = denoise_nl_means(
        noisy.astype(np.float64), patch_size=5, patch_distance=6, h=0.8 * sigma, sigma=sigma, channel_axis=-1
    )
    return denoised.reshape(noisy.shape).astype(np.float32)


def wavelet(noisy, sigma):
    """Wavelet shrinkage of scikit-image, BayesShrink, in YCbCr for colour.

    Reference: Chang et al., Adaptive wavelet thresholding for image denoising and compression, 2000.

    Args and result: as `cbm3d`.

    Raises:
        UserError: PyWavelets is not installed.
    """
    with optional("wavelet needs PyWavelets", "wavelet"):
        import pywt  # noqa: F401
    from skimage.restoration import denoise_wavelet

    denoised = denoise_wavelet(
        noisy.astype(np.float64), sigma=sigma, convert2ycbcr=noisy.shape[-1] == 3, rescale_sigma=True, channel_axis=-1
    )
    return denoised.reshape(noisy.shape).astype(np.float32)


def median(noisy, sigma=None):
    """The median of 5x5 pixels in each channel; it needs no sigma."""
    from scipy.ndimage import median_filter

    return median_filter(noisy, size=(5, 5, 1), mode="reflect")


def package():
    """The module bm3d.

    Raises:
        UserError: it is not installed.
    """
    with optional("CBM3D needs the package bm3d", "bm3d", "; its licence is for non-commercial use only"):
        import bm3d
    return bm3d


BASELINES = {"cbm3d": cbm3d, "nlm": non_local_means, "wavelet": wavelet, "median": median}
