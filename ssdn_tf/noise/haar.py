"""Haar wavelets of noisy pictures, for estimates of the noise level. NumPy.

In a flat region the diagonal detail of a 2x2 block is noise alone, with the variance of one pixel.
"""

import numpy as np


def diagonal(crops):
    """Diagonal detail (a - b - c + d) / 2 of each 2x2 block: [N,H,W,C] to [N,H/2,W/2,C], odd borders left out."""
    a, b, c, d = _blocks(crops)
    return 0.5 * (a - b - c + d)


def mean(crops):
    """Mean of each 2x2 block; shapes as in `diagonal`."""
    return sum(_blocks(crops)) / 4.0


def _blocks(crops):
    """The four pixels of each 2x2 block, [N,H/2,W/2,C] each."""
    crops = np.asarray(crops)
    crops = crops[:, : crops.shape[1] // 2 * 2, : crops.shape[2] // 2 * 2]
    return [crops[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
