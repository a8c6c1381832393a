"""Impulse noise: with probability alpha, a pixel is replaced by a random colour."""

import dataclasses
import math

import keras
import numpy as np
from keras import ops

from ssdn_tf.noise import fitting, linalg
from ssdn_tf.noise.levels import LEVELS, LIKELIHOODS
from ssdn_tf.noise.model import NoiseModel
from ssdn_tf.noise.prior import Prior

_PRIOR_VARIANCE = 1e-6  # added to sigma_x throughout the impulse model, as published
_ALPHA_KNEE, _ALPHA_END = 0.999, 1.0 - 1e-6  # above the knee, the learned alpha bends towards the end


@keras.saving.register_keras_serializable("ssdn_tf")
@dataclasses.dataclass(frozen=True)
class ImpulseNoise(NoiseModel):
    """With probability alpha, the whole pixel is replaced by a uniform draw from [0, 1]^C: one mask for all channels.

    likelihood: "moments", the published training loss (a Gaussian with the first two
        moments of y); "mixture", the exact density alpha + (1 - alpha) N(y; mu_x, sigma_x)
        for y in [0, 1]^C; or "combined", the mean of the two negative log-likelihoods.

    The exact density learns faster, but has almost no gradient where mu_x is far off: all pixels look replaced
    there. The moments always have one, if a weak one.

    Throughout this model, sigma_x stands for the network's covariance plus 1e-6 I, as published
    (`effective_prior`).
    """

    likelihood: str = "moments"

    level = LEVELS["impulse"]
    loss_scale = 2.0
    regularization = 0.0

    def __post_init__(self):
        if self.likelihood not in LIKELIHOODS:
            raise ValueError(f"likelihood must be one of {LIKELIHOODS}. Received: {self.likelihood}")

    def corrupt(self, clean, alpha, rng):
        """Noisy copy, float32; one mask for all channels. clean: [..., H, W, C] in [0, 1]."""
        replaced = rng.random(clean.shape[:-1] + (1,), dtype=np.float32) < alpha
        return np.where(replaced, rng.random(clean.shape, dtype=np.float32), np.asarray(clean, np.float32))

    def constrain(self, raw):
        """The published map up to 0.999; beyond, it bends towards 1 - 1e-6, with a continuous slope.

        Alpha must stay below 1: log(1 - alpha) has no gradient there.
        """
        value = super().constrain(raw)
        room = _ALPHA_END - _ALPHA_KNEE
        over = ops.maximum(value - _ALPHA_KNEE, 0.0) / room
        return ops.where(value < _ALPHA_KNEE, value, _ALPHA_END - room / (1.0 + over))

    def unconstrain(self, parameter):
        """Inverse of `constrain`, for alpha below 1 - 1e-6; a larger one counts as 1 - 2e-6."""
        room = _ALPHA_END - _ALPHA_KNEE
        parameter = min(parameter, _ALPHA_END - 1e-6)
        if parameter > _ALPHA_KNEE:
            parameter = _ALPHA_KNEE + room * (room / (_ALPHA_END - parameter) - 1.0)
        return super().unconstrain(parameter)

    def effective_prior(self, prior):
        """The prior with 1e-6 added to the variances: sigma_x + 1e-6 I."""
        channels = prior.mu_x.shape[-1]
        eye = ops.eye(channels, dtype=prior.sigma_x.dtype)
        return Prior(prior.mu_x, prior.sigma_x + _PRIOR_VARIANCE * eye)

    def marginal_moments(self, prior, alpha):
        """mu_y = alpha/2 + (1-alpha) mu_x, and
        sigma_y = alpha (1/4 + I/12) + (1-alpha)(sigma_x + mu_x mu_x^T) - mu_y mu_y^T."""
        mu_x, sigma_x = prior
        mu_y = 0.5 * alpha + (1.0 - alpha) * mu_x
        eye = ops.eye(mu_x.shape[-1], dtype=mu_x.dtype)
        alpha = alpha[..., None]
        uniform = alpha * (0.25 + eye / 12.0)
        return mu_y, uniform + (1.0 - alpha) * (sigma_x + _outer(mu_x)) - _outer(mu_y)

    def marginal_nll(self, noisy, prior, parameter):
        """Negative log-likelihood of a noisy pixel, [N,H,W] in nats without the constant 0.5 C log(2 pi).

        moments: as NoiseModel.marginal_nll. mixture, exact for y in [0, 1]^C:

            -log(alpha + (1-alpha) N(y; mu_x, sigma_x))

        combined: the mean of the two. Arguments as NoiseModel.marginal_nll.
        """
        if self.likelihood == "moments":
            return super().marginal_nll(noisy, prior, parameter)
        if self.likelihood == "combined":
            moments = super().marginal_nll(noisy, prior, parameter)
            return 0.5 * (moments + self._mixture_nll(noisy, prior, parameter))
        return self._mixture_nll(noisy, prior, parameter)

    def fitted_nll(self, noisy, prior, parameter):
        """That of the mixture, whatever the likelihood of the training is."""
        return self._mixture_nll(noisy, prior, parameter)

    def _mixture_nll(self, noisy, prior, parameter):
        log_clean, log_impulse = self._log_joint(noisy, self.effective_prior(prior), parameter)
        constant = 0.5 * noisy.shape[-1] * math.log(2.0 * math.pi)
        return -ops.logaddexp(log_clean, log_impulse) - constant

    def posterior_mean(self, noisy, prior, parameter, determinant_floor=0.0):
        """Mean of p(x | y, context), exact for y in [0, 1]^C.

            (alpha mu_x + (1-alpha) g y) / (alpha + (1-alpha) g),   g = N(y; mu_x, sigma_x)

        Args:
            noisy, prior, parameter: as in `marginal_nll`.
            determinant_floor: lower bound of det sigma_x inside g. The published source uses 1e-9 (a std of
                8/255 in each channel), which makes g wrong where the prior is narrower than that.

        Returns:
            float [N, H, W, C].
        """
        kept = self._kept(noisy, self.effective_prior(prior), parameter, determinant_floor)
        return prior.mu_x + kept * (noisy - prior.mu_x)

    def posterior_std(self, noisy, prior, parameter):
        """Standard deviation of p(x | y, context) in each channel, exact for y in [0, 1]^C.

        The posterior is a mixture: y itself with the probability k that the pixel was kept,
        N(mu_x, sigma_x) otherwise. Its variance in a channel is
        (1 - k) (sigma_x)_cc + k (1 - k) (y - mu_x)^2.

        No floor: pixels that were certainly kept have a std near 0. See AdditiveNoise.posterior_std on what a small
        value is worth.

        Args:
            noisy, prior, parameter: as in `marginal_nll`.

        Returns:
            float [N, H, W, C].
        """
        effective = self.effective_prior(prior)
        kept = self._kept(noisy, effective, parameter)
        d = noisy - prior.mu_x
        within = ops.diagonal(effective.sigma_x, axis1=-2, axis2=-1)
        return ops.sqrt((1.0 - kept) * (within + kept * d * d))

    def _kept(self, noisy, effective, alpha, determinant_floor=0.0):
        """Probability that a pixel was not replaced, [N,H,W,1]."""
        log_clean, log_impulse = self._log_joint(noisy, effective, alpha, determinant_floor)
        return ops.sigmoid(log_clean - log_impulse)[..., None]

    def fit(self, noisy, prior):
        """Maximum-likelihood alpha of each picture under the exact mixture: [N,1,1,1]. See `noise.fitting`."""
        half = ops.full((1, 1, 1, 1), 0.5, dtype=prior.mu_x.dtype)
        log_clean, log_impulse = self._log_joint(noisy, self.effective_prior(prior), half)
        log_ratio = ops.reshape(log_clean - log_impulse, (ops.shape(noisy)[0], -1))
        return ops.reshape(fitting.mixture_share(log_ratio), (-1, 1, 1, 1))

    def standard_deviation(self, prior, alpha):
        """The published measure of the noise, alpha 100/255: [N,1,1]."""
        return alpha[..., 0] * (100.0 / 255.0)

    def estimate(self, crops):
        """Rough alpha of noisy crops [N,H,W,C], between 0.01 and 0.9.

        Two neighbours are both kept with the probability q = (1 - alpha)^2, and then close to each other; the other
        pairs are close by chance.
        """
        close = (np.abs(np.diff(crops, axis=2)).max(axis=-1) < 0.1).mean()
        chance = 0.19 ** crops.shape[-1]  # |u - v| < 0.1 for uniform u, v
        q = max((close - chance) / (1.0 - chance), 0.0)
        return float(np.clip(1.0 - np.sqrt(q), 0.01, 0.9))

    def _log_joint(self, noisy, prior, alpha, determinant_floor=0.0):
        """Logarithms of (1 - alpha) N(y; mu_x, sigma_x) and of alpha, both [N,H,W] or broadcastable."""
        d = noisy - prior.mu_x
        x, logdet = linalg.solve_and_logdet(prior.sigma_x, d)
        if determinant_floor:
            logdet = ops.maximum(logdet, math.log(determinant_floor))
        channels = noisy.shape[-1]
        log_g = -0.5 * (ops.sum(d * x, axis=-1) + logdet + channels * math.log(2.0 * math.pi))
        alpha = alpha[..., 0]
        # For alpha 0 or 1, one side is -inf, which logaddexp and the sigmoid accept.
        return ops.log(1.0 - alpha) + log_g, ops.log(alpha) + ops.zeros_like(log_g)


def _outer(v):
    return v[..., :, None] * v[..., None, :]
