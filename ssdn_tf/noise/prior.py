"""The Gaussian that the network predicts for a clean colour: p(x | context) = N(mu_x, sigma_x)."""

from typing import Any, NamedTuple

from keras import ops


class Prior(NamedTuple):
    """Mean and covariance of the clean colour at each pixel.

    mu_x: float [N, H, W, C], intensities, nominally in [0, 1].
    sigma_x: float [N, H, W, C, C], a covariance (intensity squared), symmetric,
        positive semidefinite, possibly singular.
    """

    mu_x: Any
    sigma_x: Any


def component_count(channels, diagonal=False):
    """Number of network outputs: C means, then C (diagonal) or C(C+1)/2 components."""
    return channels + (channels if diagonal else channels * (channels + 1) // 2)


def from_components(components, channels, diagonal=False):
    """Prior from the outputs of the network.

    sigma_x = A A^T, where A is upper triangular and filled row by row with the
    components (a0 a1 a2 / a3 a4 / a5 in colour). Any real components are legal.
    Diagonal: sigma_x = diag(a^2).

    Args:
        components: float [N, H, W, component_count(channels, diagonal)].
        channels: 1 or 3.
        diagonal: no correlation between channels.

    Returns:
        Prior with mu_x [N, H, W, C] and sigma_x [N, H, W, C, C].
    """
    mu_x, a = components[..., :channels], components[..., channels:]
    if diagonal or channels == 1:
        return Prior(mu_x, diagonal_matrix(a * a))
    a0, a1, a2, a3, a4, a5 = [a[..., i] for i in range(6)]
    c00 = a0 * a0 + a1 * a1 + a2 * a2
    c01 = a1 * a3 + a2 * a4
    c02 = a2 * a5
    c11 = a3 * a3 + a4 * a4
    c12 = a4 * a5
    c22 = a5 * a5
    rows = [[c00, c01, c02], [c01, c11, c12], [c02, c12, c22]]
    return Prior(mu_x, ops.stack([ops.stack(row, axis=-1) for row in rows], axis=-2))


def diagonal_matrix(values):
    """[..., C] to [..., C, C] with the values on the diagonal and exact zeros elsewhere."""
    return values[..., None] * ops.eye(values.shape[-1], dtype=values.dtype)
