"""Which noise is it? Each noise model fitted to a set of pictures, and what makes the method not apply."""

import dataclasses
import math

import numpy as np
from keras import ops

from ssdn_tf.inference.predictor import SET_PIXELS, plain, together
from ssdn_tf.noise import fitting, registry
from ssdn_tf.noise.levels import LEVELS
from ssdn_tf.noise.prior import Prior

FAMILIES = ("gaussian", "poisson", "poisson_gaussian", "impulse")
CORRELATED = 0.1  # of neighbouring noise, from which on the noise is called correlated
CLIPPED = 0.01  # share of pixels at black or white, from which on the noise is called clipped


@dataclasses.dataclass(frozen=True)
class Fit:
    """One noise model at its best.

    kind: key of `noise.registry.MODELS`.
    parameter: float or tuple.
    error: standard error of each number of the parameter, if the pixels are independent; NaN where the likelihood is
        flat, as where a kind of noise is not there.
    log_likelihood: mean a pixel, in nats.
    """

    kind: str
    parameter: object
    error: tuple
    log_likelihood: float

    def describe(self):
        """ "lam 49.5 +- 0.6, sigma 9.0 +- 0.3"."""
        level = LEVELS[self.kind]
        parts = []
        for number, value, error in zip(level.numbers, level.split(self.parameter), self.error):
            shown = number.to_level(value)
            # With an error as large as itself, it is not there.
            if shown is None or (len(level.numbers) > 1 and (error > value or not value)):
                continue
            # The level of a gain g is 1 / g, with the error of g over g^2.
            error = error / value**2 if number.gain else number.to_level(error)
            parts.append(f"{number.name} {shown:.3g}" + ("" if math.isnan(error) else f" +- {error:.1g}"))
        return ", ".join(parts)


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What is known of the noise of a set.

    fits: a Fit for each of FAMILIES, best first.
    correlation: of the residuals of horizontal and vertical neighbours.
    clipped: shares of the pixels at black and at white.
    channels: for colour, the ratio of the largest to the smallest noise std of a channel; 1 for gray.
    """

    fits: list
    correlation: tuple
    clipped: tuple
    channels: float

    @property
    def best(self):
        return self.fits[0]

    @property
    def is_correlated(self):
        """True if the noise of neighbouring pixels is correlated."""
        # Replaced pixels are so large that they correlate by chance.
        impulses = self.best.kind == "impulse" and self.best.parameter > 0.02
        return max(self.correlation) > CORRELATED and not impulses

    def warnings(self):
        """Sentences about what the method cannot deal with."""
        if self.is_correlated:
            yield (
                "the noise of neighbouring pixels is correlated ({:.2f} horizontally, {:.2f} vertically), so the "
                "method does not apply; raw pictures, before demosaicking, scaling and JPEG, do better."
            ).format(*self.correlation)
        black, white = self.clipped
        # No photons at all are black too.
        if max(0.0 if self.best.kind == "poisson" else black, white) > CLIPPED:
            yield (
                f"{black:.1%} of the pixels are black and {white:.1%} white: noise that is cut off there is not in the "
                "model, and levels are too low."
            )
        if self.channels > 1.5:
            yield f"the noise of the colours differs by a factor of {self.channels:.1f}; one level is found for all."


def diagnose(predictor, pictures):
    """Diagnosis of pictures that were taken alike.

    Args:
        predictor: a Predictor for additive noise.
        pictures: list of float32 [H,W,C] in the unit of the network.
    """
    pixels = [predictor.pixels(picture) for picture in pictures]
    everything = together(pixels, SET_PIXELS)
    fits = [_fit(kind, everything) for kind in FAMILIES]
    fits.sort(key=lambda fit: fit.log_likelihood - fitting.LEAST_GAIN * np.size(fit.parameter), reverse=True)
    correlation = np.mean([_correlation(picture) for picture in pictures], axis=0)
    values = np.concatenate([picture.reshape(-1) for picture in pictures])
    clipped = (float(np.mean(values <= values.min())), float(np.mean(values >= values.max())))
    additive = next(fit for fit in fits if fit.kind != "impulse")
    return Diagnosis(fits, tuple(correlation), clipped, _channel_ratio(everything, additive))


def with_impulses_of(found, predictor, pictures):
    """A Diagnosis whose impulse noise is fitted under another network.

    Replaced pixels among the neighbours mislead a network for additive noise: it calls the noise by its kind, but finds
    a share of 0.08 for 0.05.

    Args:
        found: Diagnosis.
        predictor: a Predictor for impulse noise.
        pictures: as for `diagnose`.
    """
    pixels = [predictor.pixels(picture) for picture in pictures]
    fit = _fit("impulse", together(pixels, SET_PIXELS))
    return dataclasses.replace(found, fits=[fit if other.kind == "impulse" else other for other in found.fits])


def _fit(kind, everything):
    noise = registry.make(kind)
    noisy, mu_x, sigma_x = everything
    parameter, prior = noise.fit_with_prior(noisy, Prior(mu_x, sigma_x))
    parameter = plain(parameter)
    constant = 0.5 * noisy.shape[-1] * math.log(2 * math.pi)

    def log_likelihood(values):
        array = ops.convert_to_tensor(np.reshape(values, (1, 1, 1, -1)), "float64")
        nll = noise.fitted_nll(noisy, prior, array)
        return -float(np.mean(ops.convert_to_numpy(nll))) - constant

    values = np.atleast_1d(parameter).astype(np.float64)
    error = _standard_errors(log_likelihood, values, noisy.shape[2])
    return Fit(kind, parameter, tuple(error), log_likelihood(values))


def _standard_errors(log_likelihood, values, count):
    """Square roots of the diagonal of the inverse information, from second differences."""
    steps = 0.02 * np.maximum(values, 1e-3)
    size = len(values)
    at = lambda *moves: log_likelihood(np.maximum(values + sum(moves, np.zeros(size)), 1e-9))
    middle, hessian = at(), np.empty((size, size))
    for i in range(size):
        e = np.eye(size)[i] * steps
        hessian[i, i] = (at(e) + at(-e) - 2 * middle) / steps[i] ** 2
        for j in range(i):
            f = np.eye(size)[j] * steps
            hessian[i, j] = hessian[j, i] = (at(e, f) + at(-e, -f) - at(e, -f) - at(-e, f)) / (4 * steps[i] * steps[j])
    with np.errstate(invalid="ignore"):
        try:
            return np.sqrt(np.diag(np.linalg.inv(-count * hessian)))
        except np.linalg.LinAlgError:
            return np.full(size, np.nan)


def _correlation(picture):
    """Correlation of neighbouring noise, (horizontal, vertical), from second differences in flat regions.

    In flat regions, second differences along one axis of white noise have a correlation with the same differences one
    pixel aside (across that axis) of 0, and correlated noise has its own there.
    """
    gray = picture.mean(axis=-1) if picture.shape[-1] == 1 else picture[..., 1]
    return _across(gray.T), _across(gray)


def _across(gray):
    """Correlation between the rows above each other of second differences along the rows, in flat regions."""
    if min(gray.shape) < 8:
        return 0.0
    d = gray[:, 2:] - 2 * gray[:, 1:-1] + gray[:, :-2]
    energy = d[1:] ** 2 + d[:-1] ** 2
    flat = energy <= np.median(energy)
    above, below = d[:-1][flat], d[1:][flat]
    most = np.sqrt(np.mean(above**2) * np.mean(below**2))
    return float(np.mean(above * below) / most) if most > 0 else 0.0


def _channel_ratio(everything, fit):
    """How much the std of the noise differs between the colours, beside what a fit of additive noise says of them."""
    noisy, mu_x, sigma_x = everything
    if noisy.shape[-1] == 1:
        return 1.0
    expected = registry.make(fit.kind).variance(Prior(mu_x, sigma_x), np.reshape(fit.parameter, (1, 1, 1, -1)))
    expected = np.broadcast_to(ops.convert_to_numpy(expected), mu_x.shape).mean(axis=(0, 1, 2))
    found = np.mean((noisy - mu_x) ** 2 - np.diagonal(sigma_x, axis1=-2, axis2=-1), axis=(0, 1, 2))
    shares = np.maximum(found, 1e-6) / np.maximum(expected, 1e-6)
    return float(np.sqrt(shares.max() / shares.min()))
