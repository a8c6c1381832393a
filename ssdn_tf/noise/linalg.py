"""Symmetric positive definite matrices of size 1 or 3, one a pixel, in closed form.

Written out, the algebra of 65,536 matrices of 3x3 takes a third to a tenth of the time of a batched library call
(Cholesky, inverse), and it compiles under XLA, which some of those calls do not. `solve_and_logdet` factors
A = L D L^T with L unit lower triangular: it needs no square root and no inverse, and its gradients are finite wherever
A is positive definite.
"""

from keras import ops


def solve_and_logdet(a, b, least=None):
    """Solution of `a x = b` and log-determinant of `a`.

    Args:
        a: float [..., C, C], symmetric positive definite, C = 1 or 3. Only the upper
            triangle is read.
        b: float [..., C].
        least: float [..., C], lower bounds of the entries of D, or None. Where `a` is a covariance plus
            diag(n), they are n; rounding in float32 can bring them below 0.

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
    d1 = _at_least(a[..., 1, 1] - l10 * a01, least, 1)
    e12 = a12 - l20 * a01
    l21 = e12 / d1
    d2 = _at_least(a[..., 2, 2] - l20 * a02 - l21 * e12, least, 2)
    # L z = b, then L^T x = D^-1 z
    z0 = b[..., 0]
    z1 = b[..., 1] - l10 * z0
    z2 = b[..., 2] - l20 * z0 - l21 * z1
    x2 = z2 / d2
    x1 = z1 / d1 - l21 * x2
    x0 = z0 / d0 - l10 * x1 - l20 * x2
    return ops.stack([x0, x1, x2], axis=-1), ops.log(d0) + ops.log(d1) + ops.log(d2)


def _at_least(pivot, least, i):
    return pivot if least is None else ops.maximum(pivot, least[..., i])


def conditional_variance(sigma, noise):
    """Variance of each channel of x ~ N(0, sigma), given the values of the other channels plus noise.

        s_c = sigma_cc - sigma_co (sigma_oo + diag(noise_o))^-1 sigma_oc,   o: the other channels

    Args:
        sigma: float [..., C, C], symmetric positive semidefinite, C = 1 or 3.
        noise: float [..., C], variances above 0.

    Returns:
        float [..., C], at least 0.
    """
    if sigma.shape[-1] == 1:
        return sigma[..., 0]
    found = []
    for c in range(3):
        i, j = (c + 1) % 3, (c + 2) % 3
        u, v = sigma[..., c, i], sigma[..., c, j]
        d_i = sigma[..., i, i] + noise[..., i]
        factor = sigma[..., i, j] / d_i
        d_j = ops.maximum(sigma[..., j, j] + noise[..., j] - factor * sigma[..., i, j], noise[..., j])
        v = v - factor * u
        found.append(sigma[..., c, c] - u * u / d_i - v * v / d_j)
    return ops.maximum(ops.stack(found, axis=-1), 0.0)


def gaussian_nll(d, sigma, least=None):
    """0.5 (d^T sigma^-1 d + log det sigma), [...], for d [..., C] and sigma [..., C, C]; least as above."""
    x, logdet = solve_and_logdet(sigma, d, least)
    return 0.5 * (ops.sum(d * x, axis=-1) + logdet)


def matvec(a, b):
    """Product `a b` of [..., C, C] with [..., C]; the sum is written by broadcasting."""
    return ops.sum(a * b[..., None, :], axis=-1)
