"""Noise parameters by maximum likelihood.

The network gives a prior N(mu_x, sigma_x) at each pixel; with it a noise model gives the density of the noisy pixel.
The result is the parameter at which the noisy pixels of a picture are most likely. It needs no second network and no
training.
"""

import math

from keras import ops

from ssdn_tf.noise import linalg

PIXELS = 2**13  # of a picture that a fit reads: chance moves sigma 25 by about 0.5 %
STEPS = 8
_STEPS_ALONE = 3  # from close to the optimum
LEAST_GAIN = 1e-3  # nats a pixel: what chance and small faults of the prior bring is less
_FRACTIONS = (1.0, 0.25, 0.0)  # of a step that are tried


def thin(*arrays):
    """At most about PIXELS pixels of each picture, on a regular grid: each [N,H,W,...] to [N,n,1,...]."""
    height, width = ops.shape(arrays[0])[1:3]
    if isinstance(height, int) and isinstance(width, int):
        step = math.ceil(math.sqrt(height * width / PIXELS)) | 1
    else:
        pixels = ops.cast(height, "float32") * ops.cast(width, "float32")
        step = ops.cast(ops.ceil(ops.sqrt(pixels / PIXELS)), "int32")
        step = 2 * (step // 2) + 1
    # An odd step meets all phases of the network's grid.
    count = ops.shape(arrays[0])[0]
    return tuple(ops.reshape(a[:, ::step, ::step], (count, -1, 1, *a.shape[3:])) for a in arrays)


def is_lit(mu_x):
    """Which pixels a fit reads, [..., C] to bool [...]: those where the prior mean of each channel is at least 0.05.

    Near black, mu_x can come out below 0. The variance of photon noise, which is proportional to mu_x, is then far too
    small, and a few such pixels would decide the fit. The choice looks at the prior only, not at the noisy pixel, so it
    does not bias the result. If fewer than a tenth of the pixels remain, all are read.
    """
    lit = ops.all(mu_x >= _LEAST_LIT, axis=-1)
    share = ops.mean(ops.cast(lit, mu_x.dtype), axis=tuple(range(1, len(lit.shape))), keepdims=True)
    return ops.logical_or(lit, share < 0.1)


_LEAST_LIT = 0.05


def variance_weights(residual, sigma_x, basis, ranges, used=None, simplest=False):
    """Weights w that maximise the likelihood of residuals ~ N(0, sigma_x + diag(basis w)).

    Fisher scoring, a fixed number of steps, each of which is shortened until it helps. A weight that would leave its
    range stays at the end of it, and the other one is the best beside it.

    Two kinds of noise always fit a little better than one. With `simplest`, the one that makes the pixels more likely
    by less than LEAST_GAIN gets the weight 0, and the other one is the best alone.

    Args:
        residual: float [N, H, W, C], y - mu_x.
        sigma_x: float [N, H, W, C, C].
        basis: float [N, H, W, C, P], at least 0; P = 1 or 2.
        ranges: (lowest, highest) for each weight, above 0.
        used: bool [N, H, W], which pixels count; default all.
        simplest: for P = 2, leave out what hardly helps.

    Returns:
        float [N, 1, 1, P].
    """
    channels, size = residual.shape[-1], len(ranges)
    count = ops.shape(residual)[0]
    residual = ops.reshape(residual, (count, -1, channels))
    sigma_x = ops.reshape(sigma_x, (count, -1, channels, channels))
    basis = ops.reshape(basis, (count, -1, channels, size))
    if used is not None:
        # What is left out adds a constant to the likelihood.
        used = ops.reshape(used, (count, -1, 1))
        residual = ops.where(used, residual, 1.0)
        sigma_x = ops.where(used[..., None], sigma_x, ops.eye(channels, dtype=sigma_x.dtype))
        basis = ops.where(used[..., None], basis, 0.0)
    low, high = (ops.convert_to_tensor(ends, residual.dtype) for ends in zip(*ranges))
    start = ops.clip(_by_moments(residual, sigma_x, basis), low, high)
    weights = _scored(residual, sigma_x, basis, start, low, high, STEPS)
    if simplest and size == 2:
        share = 1.0 if used is None else ops.mean(ops.cast(used, residual.dtype), axis=(1, 2))
        weights = _simplest(residual, sigma_x, basis, weights, low, high, share)
    return ops.reshape(weights, (count, 1, 1, size))


def _scored(residual, sigma_x, basis, start, low, high, steps):
    """The weights [N,P] after some steps of Fisher scoring."""

    def step(_, weights):
        score, information = _derivatives(residual, sigma_x, basis, weights)
        direction = _direction(score, information, weights, low)
        tried = [ops.clip(weights + fraction * direction, low, high) for fraction in _FRACTIONS]
        nll = ops.stack([_nll(residual, sigma_x, basis, candidate) for candidate in tried], axis=-1)
        best = ops.one_hot(ops.argmin(nll, axis=-1), len(tried), dtype=residual.dtype)
        return ops.sum(ops.stack(tried, axis=1) * best[..., None], axis=1)

    return ops.fori_loop(0, steps, step, start)


def _simplest(residual, sigma_x, basis, weights, low, high, share):
    """The weights [N,2], one of them 0 where it makes the used share of the pixels hardly more likely.

    What a weight brings is what the Taylor series of the log-likelihood at its maximum says:
    1/2 w_k^2 (I_kk - I_kl^2 / I_ll), the other weight l at its best.
    """
    _, information = _derivatives(residual, sigma_x, basis, weights)
    own, cross = ops.diagonal(information, axis1=1, axis2=2), information[:, 0, 1][:, None]
    gains = 0.5 * weights * weights * (own - cross * cross / ops.flip(own, axis=1))
    kept = ops.one_hot(1 - ops.argmin(gains, axis=1), 2, dtype=weights.dtype)
    pick = lambda values: ops.sum(values * kept, axis=1, keepdims=True)
    only = ops.sum(basis * kept[:, None, None, :], axis=-1, keepdims=True)
    start = pick(weights + cross / own * ops.flip(weights, axis=1))
    alone = _scored(residual, sigma_x, only, start, pick(low), pick(high), _STEPS_ALONE)
    is_little = ops.min(gains, axis=1) < LEAST_GAIN * share
    return ops.where(is_little[:, None], alone * kept, weights)


def _by_moments(residual, sigma_x, basis):
    """Where to start: the weights, each taken alone, that give the residuals their mean square, [N,P]."""
    excess = residual * residual - ops.diagonal(sigma_x, axis1=-2, axis2=-1)
    return ops.mean(excess, axis=(1, 2))[:, None] / ops.mean(basis, axis=(1, 2)) / basis.shape[-1]


def _covariance(sigma_x, basis, weights):
    """(sigma_y [N,M,C,C], variances of the noise [N,M,C])."""
    variance = ops.sum(basis * weights[:, None, None, :], axis=-1)
    return sigma_x + variance[..., None] * ops.eye(sigma_x.shape[-1], dtype=sigma_x.dtype), variance


def _nll(residual, sigma_x, basis, weights):
    sigma_y, variance = _covariance(sigma_x, basis, weights)
    return ops.mean(linalg.gaussian_nll(residual, sigma_y, least=variance), axis=-1)


def _derivatives(residual, sigma_x, basis, weights):
    """Gradient of the mean log-likelihood [N,P] and its Fisher information [N,P,P].

    With B_k the diagonal matrix of basis k and S = sigma_y:
    gradient 1/2 (d^T S^-1 B_k S^-1 d - tr S^-1 B_k), information 1/2 tr S^-1 B_k S^-1 B_l.
    """
    sigma_y, variance = _covariance(sigma_x, basis, weights)
    solved, _ = linalg.solve_and_logdet(sigma_y, residual, least=variance)
    eye = ops.eye(residual.shape[-1], dtype=residual.dtype)
    inverse, _ = linalg.solve_and_logdet(sigma_y[:, :, None], eye, least=variance[:, :, None])
    excess = solved * solved - ops.diagonal(inverse, axis1=-2, axis2=-1)
    score = 0.5 * ops.mean(ops.sum(basis * excess[..., None], axis=2), axis=1)
    weighted = ops.sum((inverse * inverse)[..., None] * basis[:, :, None], axis=3)  # [N,M,C,P]
    information = 0.5 * ops.mean(ops.sum(basis[..., :, None] * weighted[..., None, :], axis=2), axis=1)
    return score, information


def _direction(score, information, weights, low):
    """The step of Fisher scoring [N,P], within the lower bounds."""
    if weights.shape[-1] == 1:
        return score / information[..., 0]
    a, b, d = information[:, 0, 0], information[:, 0, 1], information[:, 1, 1]
    determinant = ops.maximum(a * d - b * b, 1e-12 * a * d)
    first = (d * score[:, 0] - b * score[:, 1]) / determinant
    second = (a * score[:, 1] - b * score[:, 0]) / determinant
    least = low - weights
    first_ends, second_ends = first < least[:, 0], second < least[:, 1]
    end_first = ops.where(second_ends, (score[:, 0] - b * least[:, 1]) / a, first)
    end_second = ops.where(first_ends, (score[:, 1] - b * least[:, 0]) / d, second)
    return ops.stack([ops.maximum(end_first, least[:, 0]), ops.maximum(end_second, least[:, 1])], axis=-1)


def mixture_share(log_ratio):
    """The share alpha that maximises the mean of log(alpha + (1 - alpha) g).

    That is concave in alpha, and its slope has the sign of (mean probability of a replaced pixel) - alpha, so
    bisection finds the maximum.

    Args:
        log_ratio: float [N, M], log g.

    Returns:
        float [N], within 1e-4 and 1 - 1e-4.
    """

    def step(_, ends):
        low, high = ends
        middle = 0.5 * (low + high)
        replaced = ops.mean(ops.sigmoid(ops.log(middle / (1.0 - middle))[:, None] - log_ratio), axis=1)
        rises = replaced > middle
        return ops.where(rises, middle, low), ops.where(rises, high, middle)

    zeros = ops.zeros_like(log_ratio[:, 0])
    low, high = ops.fori_loop(0, _BISECTIONS, step, (zeros + 1e-4, zeros + (1.0 - 1e-4)))
    return 0.5 * (low + high)


_BISECTIONS = 30
