"""Symmetric positive definite matrices of size 1 or 3, one a pixel, in closed form.

A batched library call (Cholesky, inverse) on 65,536 matrices of 3x3 costs three to
ten times as much as the same algebra written out, and some of them do not compile
under XLA. Both functions work from the factors A = L D L^T, L unit lower triangular:
no square root, no inverse of an inverse, finite gradients wherever A is definite.
"""

from keras import ops


def solve_and_logdet(a, b):
    """Solution of `a x = b` and log-determinant of `a`.

    Args:
        a: float [..., C, C], symmetric positive definite, C = 1 or 3. Only the upper
            triangle is read.
        b: float [..., C].

    Returns:
        x: [..., C], and the log-determinant [...] (leading axes broadcast).

    Raises:
        ValueError: C is neither 1 nor 3.
    """
    channels = a.shape[-1]
    if channels == 1:
        return b / a[..., 0], ops.log(a[..., 0, 0])
    if channels != 3:
        raise ValueError(f"linalg handles 1 or 3 channels. Received: a.shape={a.shape}")
    a01, a02, a12 = a[..., 0, 1], a[..., 0, 2], a[..., 1, 2]
    # A = L D L^T
    d0 = a[..., 0, 0]
    l10, l20 = a01 / d0, a02 / d0
    d1 = a[..., 1, 1] - l10 * a01
    e12 = a12 - l20 * a01
    l21 = e12 / d1
    d2 = a[..., 2, 2] - l20 * a02 - l21 * e12
    # L z = b, then L^T x = D^-1 z
    z0 = b[..., 0]
    z1 = b[..., 1] - l10 * z0
    z2 = b[..., 2] - l20 * z0 - l21 * z1
    x2 = z2 / d2
    x1 = z1 / d1 - l21 * x2
    x0 = z0 / d0 - l10 * x1 - l20 * x2
    return ops.stack([x0, x1, x2], axis=-1), ops.log(d0) + ops.log(d1) + ops.log(d2)


def matvec(a, b):
    """Product `a b` of [..., C, C] with [..., C]; the sum is written by broadcasting."""
    return ops.sum(a * b[..., None, :], axis=-1)
