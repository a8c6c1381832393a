"""Poisson noise: y = Poisson(lam x) / lam."""

import dataclasses
import math

import keras
import numpy as np
from keras import ops

from ssdn_tf.noise import haar
from ssdn_tf.noise.levels import LEVELS
from ssdn_tf.noise.model import MINIMUM, AdditiveNoise


@keras.saving.register_keras_serializable("ssdn_tf")
@dataclasses.dataclass(frozen=True)
class PoissonNoise(AdditiveNoise):
    """y = Poisson(lam x) / lam; lam is the number of photons at white.

    Approximation, as published: p(y | x) is replaced by a Gaussian of variance max(mu_x, 1e-3) / lam. The first two
    moments of y are right (where mu_x >= 1e-3). Compared with quadrature for a prior of 0.5 +- 0.1, the posterior
    mean is off by 2.5 % of the posterior's std at lam 5, 9 % at 30 and 10 % at 50 (tests/noise/test_poisson.py).
    """

    level = LEVELS["poisson"]

    def corrupt(self, clean, lam, rng):
        """Noisy copy, float32, photon counts / lam. clean: [..., H, W, C] in [0, 1]."""
        lam = np.asarray(lam, np.float64)
        return (rng.poisson(lam * clean) / lam).astype(np.float32)

    def variance(self, prior, lam):
        """max(mu_x, 1e-3) / lam, [N,H,W,C]."""
        return ops.maximum(prior.mu_x, MINIMUM) / lam

    def basis(self, prior):
        return ops.maximum(prior.mu_x, MINIMUM)[..., None]

    def from_weights(self, weights):
        """The weight is 1 / lam."""
        return 1.0 / weights

    def weight_range(self):
        return [(MINIMUM**2, 1.0 / self.level.low)]

    def constrain(self, raw):
        """The learned number is 1 / lam."""
        return 1.0 / super().constrain(raw)

    def unconstrain(self, parameter):
        return super().unconstrain(1.0 / float(parameter))

    def estimate(self, crops):
        """Robust lam of noisy crops [N,H,W,C], at most 500, as a learned lam stays below 1000.

        In a flat 2x2 block, each of its k photons adds to the diagonal Haar detail d or subtracts from it, with equal
        probability. So lam d^2 / m = s^2 / k, where m = k / (4 lam) is the mean of the block and s the sum of k random
        signs. The mean of s^2 / k is 1 at any brightness, in very dark pictures too. Edges raise d^2, so values
        above 1 count as 1. The result is the lam at which the mean of min(lam d^2 / m, 1) over all blocks with
        photons has the value that k random signs give. In pictures with much texture it is too small, by a quarter at
        lam 200.
        """
        mean = haar.mean(np.asarray(crops, np.float64))
        lit = mean > 0
        mean, squares = mean[lit], haar.diagonal(np.asarray(crops, np.float64))[lit] ** 2
        if not mean.size:
            return _HIGHEST_ESTIMATE
        counts = np.arange(1, len(_EXPECTED) + 1)

        def excess(lam):
            expected = np.interp(4 * lam * mean, counts, _EXPECTED)
            return np.mean(np.minimum(lam * squares / mean, 1.0) - expected)

        low, high = LEVELS["poisson"].low, _HIGHEST_ESTIMATE
        for _ in range(20):  # bisection of log lam: 2e-5 at the end
            middle = math.sqrt(low * high)
            low, high = (low, middle) if excess(middle) > 0 else (middle, high)
        return high


def _expected(most=64):
    """Means of min(s^2 / k, 1) for s the sum of k random signs, k = 1 ... most; then the limit, for s normal."""
    means = []
    for k in range(1, most + 1):
        weights = np.array([math.comb(k, i) for i in range(k + 1)], np.float64) / 2.0**k
        means.append(weights @ np.minimum(np.arange(-k, k + 1, 2.0) ** 2 / k, 1.0))
    return np.array([*means, 1.0 - math.sqrt(2.0 / (math.pi * math.e))])


_HIGHEST_ESTIMATE = 500.0
_EXPECTED = _expected()
