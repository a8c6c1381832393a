"""Poisson-Gaussian noise: photon noise and readout noise together, and the mixture of all additive noises."""

import dataclasses
import functools

import keras
import numpy as np
import scipy.optimize
from keras import ops

from ssdn_tf.noise import fitting, haar
from ssdn_tf.noise.levels import LEVELS
from ssdn_tf.noise.model import MINIMUM, AdditiveNoise
from ssdn_tf.noise.poisson import PoissonNoise
from ssdn_tf.noise.prior import Prior


@keras.saving.register_keras_serializable("ssdn_tf")
@dataclasses.dataclass(frozen=True)
class PoissonGaussianNoise(AdditiveNoise):
    """y = gain Poisson(x / gain) + readout n, n standard normal, not clipped.

    The parameter holds two numbers, (gain, readout): the gain is 1 / lam, lam the number of photons at white, and the
    readout the std of the Gaussian part in units of [0, 1]. Gain 0 is Gaussian noise, readout 0 Poisson noise; both
    agree with `GaussianNoise` and `PoissonNoise` exactly, the drawn noise included.

    Approximation: that of `PoissonNoise`, a Gaussian of variance gain max(mu_x, 1e-3) + readout^2.
    """

    level = LEVELS["poisson_gaussian"]
    least = (MINIMUM**2, MINIMUM)  # the gain is a variance

    def corrupt(self, clean, parameter, rng):
        """Noisy copy, float32. clean: [..., H, W, C] in [0, 1]; parameter: two numbers, or [N, 1, 1, 2]."""
        parameter = np.asarray(parameter, np.float64)
        gain, readout = parameter[..., :1], parameter[..., 1:]
        noisy = np.asarray(clean, np.float32)
        if (gain > 0).any():
            photons = rng.poisson(np.where(gain > 0, clean / np.maximum(gain, 1e-9), 0.0))
            noisy = np.where(gain > 0, photons * gain, noisy).astype(np.float32)
        if (readout > 0).any():
            noisy = noisy + readout.astype(np.float32) * rng.standard_normal(clean.shape, dtype=np.float32)
        return noisy

    def variance(self, prior, parameter):
        """gain max(mu_x, 1e-3) + readout^2, [N,H,W,C]."""
        gain, readout = parameter[..., :1], parameter[..., 1:]
        return gain * ops.maximum(prior.mu_x, MINIMUM) + readout * readout

    def bound_known(self, parameter):
        """A known readout is bounded below by 1e-3 where the gain is 0, so that sigma_y is definite."""
        gain, readout = parameter[..., :1], parameter[..., 1:]
        readout = ops.where(gain > 0, readout, ops.maximum(readout, MINIMUM))
        return ops.concatenate([gain, readout], axis=-1)

    def basis(self, prior):
        mean = ops.maximum(prior.mu_x, MINIMUM)
        return ops.stack([mean, ops.ones_like(mean)], axis=-1)

    def from_weights(self, weights):
        """The weights are (gain, readout^2)."""
        return ops.concatenate([weights[..., :1], ops.sqrt(weights[..., 1:])], axis=-1)

    def black_level(self, noisy, prior):
        """The intensity at which the noise ends, by maximum likelihood; 0 where black is 0 or readout noise is left.

        The offset of a camera, or a stretched contrast, makes the variance gain (mu_x - black) + readout^2. The
        likelihood depends on readout^2 - gain black alone, so only one of the two can be told: readout noise where
        that is positive, a black level where it is negative.

        Args:
            noisy: float [1, 1, n, C].
            prior: Prior at each pixel.

        Returns:
            float, 0 or above, at most what 99 % of mu_x exceed. It is 0 too where a black level makes the pixels more
            likely by less than 1e-3 nats, which small faults of the prior do, and where there is hardly any noise.
        """
        parameter, _ = self.fit_with_prior(noisy, prior, everything=True)
        gain, readout = (float(number) for number in parameter[0, 0, 0])
        if gain < _LEAST_STD**2 or readout > 2 * MINIMUM:
            return 0.0
        nll = functools.partial(_photon_nll, noisy, prior)
        highest = float(np.quantile(ops.convert_to_numpy(prior.mu_x), 0.01))
        found = scipy.optimize.minimize_scalar(nll, bounds=(0.0, max(highest, MINIMUM)), options={"xatol": 1e-3})
        return float(found.x) if found.fun < nll(0.0) - fitting.LEAST_GAIN else 0.0

    def estimate(self, crops):
        """Rough (gain, readout) of noisy crops [N,H,W,C]: a line through the noise variances at 16 brightnesses.

        The variance at a brightness is that of the diagonal Haar details there, (median |d| / 0.6745)^2. Texture
        makes both too large. The gain is from 1e-6 to 0.2, the readout at least 1e-3.
        """
        mean, detail = (np.ravel(f(np.asarray(crops, np.float64))) for f in (haar.mean, haar.diagonal))
        order = np.argsort(mean)
        groups = [group for group in np.array_split(order, 16) if group.size]
        level = np.array([mean[group].mean() for group in groups])
        variance = np.array([(np.median(np.abs(detail[group])) / 0.6745) ** 2 for group in groups])
        gain, square = _line(np.maximum(level, MINIMUM), variance)
        return float(np.clip(gain, MINIMUM**2, 0.2)), float(max(square, MINIMUM**2) ** 0.5)


@keras.saving.register_keras_serializable("ssdn_tf")
@dataclasses.dataclass(frozen=True)
class AnyAdditiveNoise(PoissonGaussianNoise):
    """The same noise; only the levels differ that a training draws, see `noise.levels.AdditiveLevels`."""

    level = LEVELS["additive"]


_LEAST_STD = 1 / 255  # of photon noise at white


def _photon_nll(noisy, prior, black):
    """Mean negative log-likelihood of photon noise above a black level, at the best gain."""
    photons, noisy, prior = PoissonNoise(), noisy - black, Prior(prior.mu_x - black, prior.sigma_x)
    parameter, prior = photons.fit_with_prior(noisy, prior, everything=True)
    return float(ops.mean(photons.marginal_nll(noisy, prior, parameter)))


def _line(x, y):
    """(slope, offset), both at least 0, that fit y best, with errors counted relative to y."""
    weight = 1.0 / np.maximum(y, 1e-8)
    columns = np.stack([x, np.ones_like(x)], axis=-1) * weight[:, None]
    return scipy.optimize.nnls(columns, y * weight)[0]
