"""Noise parameters by maximum likelihood.

The network gives a prior N(mu_x, sigma_x) at each pixel; with it a noise model gives the density of the noisy pixel.
The result is the parameter at which the noisy pixels of a picture are most likely. It needs no second network and no
training.
"""

import math
from typing import Any, NamedTuple

from keras import ops

from ssdn_tf.noise import linalg
from ssdn_tf.noise.prior import diagonal_matrix

PIXELS = 2**15  # at most, of a picture that a fit reads: chance then moves sigma 25 by about 0.25 %
_STEPS = 4  # of Fisher scoring, on a quarter of the pixels and then as many on all
LEAST_GAIN = 1e-3  # nats a pixel: what chance and small faults of the prior bring is less
_FRACTIONS = (1.0, 0.25)  # of a step that are tried


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


class Fit(NamedTuple):
    """What makes the noisy pixels most likely.

    weights: float [N, 1, 1, P], of the noise.
    scale: float [N, 1, 1, 1, 1], of sigma_x.
    """

    weights: Any
    scale: Any


def variance_weights(residual, sigma_x, basis, ranges, used=None, simplest=False):
    """Weights w and a scale s that maximise the likelihood of residuals ~ N(0, s sigma_x + diag(basis w)).

    A network's sigma_x is some 15 % too large on pictures unlike those of its training. With s = 1 that would be taken
    off the noise. Only pixels with different sigma_x tell the two apart, so a prior holds s at 1 where there are none.

    Fisher scoring, a fixed number of steps, of which the whole, a quarter or nothing is taken, as is best. A weight
    that would leave its range stays at the end of it, and the others are the best beside it.

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
        Fit.
    """
    channels, size = residual.shape[-1], len(ranges)
    count = ops.shape(residual)[0]
    residual = ops.reshape(residual, (count, -1, channels))
    sigma_x = ops.reshape(sigma_x, (count, -1, channels, channels))
    basis = ops.reshape(basis, (count, -1, channels, size))
    share = ops.ones_like(residual[..., 0]) if used is None else ops.cast(ops.reshape(used, (count, -1)), basis.dtype)
    share = share / ops.sum(share, axis=1, keepdims=True)
    pixels = _Pixels(residual, sigma_x, basis, share)
    low, high = (ops.convert_to_tensor(ends, residual.dtype) for ends in zip(*ranges, _SCALES))
    start = ops.concatenate([_by_moments(pixels), ops.ones((count, 1), residual.dtype)], axis=-1)
    start = ops.clip(start, low, high)
    closer = _scored(pixels.thinned(), start, low, high)
    start = ops.where(ops.isfinite(closer), closer, start)  # it is nan if none of every fourth pixel counts
    factors = _scored(pixels, start, low, high)
    if simplest and size == 2:
        factors = _simplest(pixels, factors, low, high)
    return Fit(ops.reshape(factors[:, :-1], (count, 1, 1, size)), ops.reshape(factors[:, -1], (count, 1, 1, 1, 1)))


_SCALES = (0.1, 10.0)
_HOLD = 1e-3  # the prior of s: 1/2 _HOLD (s - 1)^2 nats a pixel


class _Pixels(NamedTuple):
    residual: Any  # [N, M, C]
    sigma_x: Any  # [N, M, C, C]
    basis: Any  # [N, M, C, P]
    share: Any  # [N, M], of a pixel in a mean; they sum to 1

    def thinned(self):
        """Every fourth pixel: they bring the factors close, at a quarter of the work."""
        few = _Pixels(*(array[:, ::4] for array in self))
        return few._replace(share=few.share / ops.sum(few.share, axis=1, keepdims=True))

    def mean(self, values):
        """The mean of [N, M, ...] over the pixels, [N, ...]."""
        share = ops.reshape(self.share, (*ops.shape(self.share), *(1,) * (len(values.shape) - 2)))
        return ops.sum(values * share, axis=1)


def _scored(pixels, start, low, high):
    """The factors [N, P + 1], the weights and the scale, after _STEPS of Fisher scoring."""

    def step(_, factors):
        loss, score, information = _expansion(pixels, factors)
        direction = _direction(score, information, low - factors)
        tried = [ops.clip(factors + fraction * direction, low, high) for fraction in _FRACTIONS]
        losses = ops.stack([*(_loss(pixels, candidate) for candidate in tried), loss], axis=-1)
        best = ops.one_hot(ops.argmin(losses, axis=-1), losses.shape[-1], dtype=start.dtype)
        return ops.sum(ops.stack([*tried, factors], axis=1) * best[..., None], axis=1)

    return ops.fori_loop(0, _STEPS, step, start)


def _simplest(pixels, factors, low, high):
    """The factors [N,3], one of the weights 0 where it makes the pixels hardly more likely.

    What a weight brings is what the Taylor series of the log-likelihood at its maximum says:
    1/2 w_k^2 (I_kk - I_kl^2 / I_ll), the other weight l, and the scale, at their best.
    """
    weights, scale = factors[:, :-1], factors[:, -1:]
    _, score, information = _expansion(pixels, factors)
    _, information = _without_scale(score, information)
    own, cross = ops.diagonal(information, axis1=1, axis2=2), information[:, 0, 1][:, None]
    gains = 0.5 * weights * weights * (own - cross * cross / ops.flip(own, axis=1))
    kept = ops.one_hot(1 - ops.argmin(gains, axis=1), 2, dtype=weights.dtype)
    pick = lambda values: ops.sum(values * kept, axis=1, keepdims=True)
    only = pixels._replace(basis=ops.sum(pixels.basis * kept[:, None, None, :], axis=-1, keepdims=True))
    ends = [ops.concatenate([pick(end[:-1]), ops.ones_like(scale) * end[-1]], axis=-1) for end in (low, high)]
    start = ops.concatenate([pick(weights + cross / own * ops.flip(weights, axis=1)), scale], axis=-1)
    alone = _scored(only, ops.clip(start, *ends), *ends)
    is_little = ops.min(gains, axis=1) < LEAST_GAIN
    return ops.where(is_little[:, None], ops.concatenate([alone[:, :1] * kept, alone[:, 1:]], axis=-1), factors)


def _by_moments(pixels):
    """Where to start: weights with equal shares in the mean square of the residuals, [N,P]."""
    excess = pixels.residual * pixels.residual - ops.diagonal(pixels.sigma_x, axis1=-2, axis2=-1)
    mean = lambda values: ops.mean(pixels.mean(values), axis=1)
    return mean(excess)[:, None] / mean(pixels.basis) / pixels.basis.shape[-1]


def _covariance(pixels, factors):
    """(sigma_y [N,M,C,C], variances of the noise [N,M,C])."""
    variance = ops.sum(pixels.basis * factors[:, None, None, :-1], axis=-1)
    return pixels.sigma_x * factors[:, -1, None, None, None] + diagonal_matrix(variance), variance


def _loss(pixels, factors):
    """The mean of -log p(y), with the prior of s, without the constants, [N]."""
    sigma_y, variance = _covariance(pixels, factors)
    return pixels.mean(linalg.gaussian_nll(pixels.residual, sigma_y, least=variance)) + _hold(factors)


def _hold(factors):
    return 0.5 * _HOLD * (factors[:, -1] - 1.0) ** 2


def _expansion(pixels, factors):
    """`_loss`, [N], the gradient of -`_loss`, [N,P+1], and the Fisher information, [N,P+1,P+1].

    With S = sigma_y and B_k the diagonal matrix of basis k: gradient 1/2 (d^T S^-1 B_k S^-1 d - tr S^-1 B_k),
    information 1/2 tr S^-1 B_k S^-1 B_l. For the scale s, sigma_x takes the place of B_k. As s sigma_x is S minus the
    weighted sum of the B_k, its products follow from the others.
    """
    (sigma_y, variance), basis, channels = _covariance(pixels, factors), pixels.basis, pixels.basis.shape[-2]
    solved, logdet = linalg.solve_and_logdet(sigma_y, pixels.residual, least=variance)
    eye = ops.eye(channels, dtype=solved.dtype)
    inverse, _ = linalg.solve_and_logdet(sigma_y[:, :, None], eye, least=variance[:, :, None])
    fits = pixels.mean(ops.sum((solved * solved)[..., None] * basis, axis=2))
    traces = pixels.mean(ops.sum(ops.diagonal(inverse, axis1=-2, axis2=-1)[..., None] * basis, axis=2))
    columns = ops.sum((inverse * inverse)[..., None] * basis[:, :, None], axis=3)  # [N,M,C,P]
    pairs = pixels.mean(ops.sum(basis[..., :, None] * columns[..., None, :], axis=2))

    weights, scale = factors[:, :-1], factors[:, -1:]
    weighted = lambda values: ops.sum(values * weights, axis=-1, keepdims=True)
    fit = pixels.mean(ops.sum(pixels.residual * solved, axis=-1, keepdims=True))
    cross = (traces - ops.sum(pairs * weights[:, None], axis=-1)) / scale
    own = (channels - weighted(traces) - scale * weighted(cross)) / scale**2
    score = ops.concatenate([fits - traces, (fit - weighted(fits) - channels + weighted(traces)) / scale], axis=-1)
    last_row = ops.concatenate([cross, own], axis=-1)[:, None]
    information = ops.concatenate([ops.concatenate([pairs, cross[..., None]], axis=-1), last_row], axis=1)
    last = ops.one_hot(score.shape[-1] - 1, score.shape[-1], dtype=score.dtype)
    loss = 0.5 * (fit[:, 0] + pixels.mean(logdet)) + _hold(factors)
    return loss, 0.5 * score - _HOLD * (scale - 1.0) * last, 0.5 * information + _HOLD * last * last[:, None]


def _without_scale(score, information):
    """Gradient [N,P] and information [N,P,P] of the weights, the scale at its best."""
    cross, own = information[:, :-1, -1], information[:, -1, -1]
    slope = cross / own[:, None]
    return score[:, :-1] - slope * score[:, -1:], information[:, :-1, :-1] - slope[:, :, None] * cross[:, None]


def _direction(score, information, least):
    """The step of Fisher scoring [N,P+1]; the weights do not go below `least`."""
    weights = _weights_direction(*_without_scale(score, information), least[:, :-1])
    scale = score[:, -1] - ops.sum(information[:, -1, :-1] * weights, axis=-1)
    return ops.concatenate([weights, (scale / information[:, -1, -1])[:, None]], axis=-1)


def _weights_direction(score, information, least):
    if score.shape[-1] == 1:
        return score / information[..., 0]
    a, b, d = information[:, 0, 0], information[:, 0, 1], information[:, 1, 1]
    determinant = ops.maximum(a * d - b * b, 1e-12 * a * d)
    first = (d * score[:, 0] - b * score[:, 1]) / determinant
    second = (a * score[:, 1] - b * score[:, 0]) / determinant
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
