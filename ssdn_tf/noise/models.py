"""The noise models: how a clean colour becomes a noisy one, and what that implies.

Notation of the paper: y is the noisy value, x the clean one. `sigma_x`, `sigma_n` and
`sigma_y` are covariance matrices (capital sigma in the paper), `sigma` is a standard
deviation, `lam` the number of photons at white, `alpha` a probability.

A model is a frozen dataclass without state: the noise parameter is always an argument,
because it can be data, a weight or the output of a network. The likelihoods use
`keras.ops`; `corrupt` and `estimate` are NumPy.

    model      corruption                                    parameter, legal range
    gaussian   y = x + sigma n, not clipped                  sigma >= 0, in units of [0, 1]
    poisson    y = Poisson(lam x) / lam                      lam > 0
    impulse    with probability alpha the whole pixel is     0 <= alpha <= 1
               replaced by a uniform draw from [0, 1]^C

Training maximises the density of y under a Gaussian with the first two moments of y,
for all three models; so a model states its moments, and `marginal_nll` is written once.

Reference: Laine et al., High-Quality Self-Supervised Deep Image Denoising, NeurIPS 2019,
section 3 and its supplement.
"""

import dataclasses
import math

import keras
import numpy as np
from keras import ops

from ssdn_tf.noise import linalg
from ssdn_tf.noise.prior import Prior, diagonal_matrix

_MINIMUM = 1e-3  # of a learned parameter, of a known sigma, and of mu_x inside the Poisson variance
LIKELIHOODS = ("moments", "mixture", "combined")  # of impulse noise
_IMPULSE_VARIANCE = 1e-6  # added to sigma_x throughout the impulse model, as published
_ALPHA_KNEE, _ALPHA_END = 0.999, 1.0 - 1e-6  # above the knee the learned alpha bends, towards the end


class NoiseModel:
    """What the three models share. Shapes: noisy and mu_x [N,H,W,C], sigma_x [N,H,W,C,C],
    parameter [N,1,1,1] or [1,1,1,1]."""

    kind = ""
    loss_scale = 1.0  # published weight of the negative log-likelihood in colour
    regularization = 0.1  # published weight of the noise std when the parameter is learned

    def get_config(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def effective_prior(self, prior):
        """The prior that the likelihood and the posterior use."""
        return prior

    def marginal_nll(self, noisy, prior, parameter):
        """Negative log-likelihood of a noisy pixel under the Gaussian of its two moments.

            0.5 (d^T sigma_y^-1 d + log det sigma_y),   d = y - mu_y

        Args:
            noisy: float [N, H, W, C].
            prior: Prior at each pixel.
            parameter: float [N or 1, 1, 1, 1], in the unit of the model.

        Returns:
            float [N, H, W], nats, without the constant 0.5 C log(2 pi).
        """
        mu_y, sigma_y = self.marginal_moments(self.effective_prior(prior), parameter)
        return gaussian_nll(noisy - mu_y, sigma_y)

    def constrain(self, raw):
        """Legal parameter from an unconstrained number: softplus(raw - 4) + 1e-3.

        Starts at 4.88/255 for raw = 0; the offset keeps the noise small at first.
        """
        return ops.softplus(raw - 4.0) + _MINIMUM

    def unconstrain(self, parameter):
        """The number that `constrain` maps to a parameter (a float above 1e-3)."""
        value = max(float(parameter) - _MINIMUM, 1e-8)
        return value + math.log(-math.expm1(-value)) + 4.0


class AdditiveNoise(NoiseModel):
    """y = x + n with a covariance sigma_n: what the Gaussian and the Poisson model share."""

    def marginal_moments(self, prior, parameter):
        """Mean mu_x [N,H,W,C] and covariance sigma_x + sigma_n [N,H,W,C,C] of the noisy pixel."""
        return prior.mu_x, prior.sigma_x + diagonal_matrix(self.variance(prior, parameter))

    def posterior_mean(self, noisy, prior, parameter, inflation=0.0):
        """Mean of p(x | y, context) in gain form.

            mu_x + sigma_x (sigma_x + sigma_n)^-1 (y - mu_x)

        One solve, defined for a singular sigma_x, accurate in float32.

        Args:
            noisy, prior, parameter: as in `marginal_nll`.
            inflation: added to the diagonals of sigma_x and of sigma_n. The published
                source computes with 1e-6 in colour, which moves the result by up to
                1.6e-3 at sigma 0.018; the default is the exact form.

        Returns:
            float [N, H, W, C].

        Approximation: exact for Gaussian noise; for Poisson noise the best estimate
        that is linear in y, with the noise variance taken at mu_x.
        """
        extra = inflation * ops.eye(noisy.shape[-1], dtype=prior.sigma_x.dtype)
        sigma_x = prior.sigma_x + extra
        sigma_y = sigma_x + diagonal_matrix(self.variance(prior, parameter)) + extra
        gain, _ = linalg.solve_and_logdet(sigma_y, noisy - prior.mu_x)
        return prior.mu_x + linalg.matvec(sigma_x, gain)

    def posterior_std(self, noisy, prior, parameter):
        """Standard deviation of p(x | y, context) in each channel.

            sqrt of the diagonal of  sigma_x (sigma_x + sigma_n)^-1 sigma_n

        As sigma_n is diagonal, no difference of large numbers is needed: the result keeps
        its relative accuracy for any ratio of the two.

        Args:
            noisy: not read; the uncertainty of a Gaussian depends on the context alone.
            prior, parameter: as in `marginal_nll`.

        Returns:
            float [N, H, W, C].

        Approximation: as `posterior_mean`.
        """
        variance = self.variance(prior, parameter)
        sigma_y = prior.sigma_x + diagonal_matrix(variance)
        channels = prior.mu_x.shape[-1]
        gains = [linalg.solve_and_logdet(sigma_y, prior.sigma_x[..., i])[0][..., i] for i in range(channels)]
        return ops.sqrt(ops.maximum(ops.stack(gains, axis=-1) * variance, 0.0))

    def standard_deviation(self, prior, parameter):
        """Noise std, arithmetic mean over channels: [N,H,W], or [N,1,1] where it is one number."""
        return ops.mean(ops.sqrt(self.variance(prior, parameter)), axis=-1)


@keras.saving.register_keras_serializable("ssdn_tf")
@dataclasses.dataclass(frozen=True)
class GaussianNoise(AdditiveNoise):
    """y = x + sigma n, n standard normal; sigma in units of [0, 1] (25 means 25/255)."""

    kind = "gaussian"

    def corrupt(self, clean, sigma, rng):
        """Noisy copy, float32, not clipped. clean: [..., H, W, C] in [0, 1]; rng: np.random.Generator."""
        noise = rng.standard_normal(clean.shape, dtype=np.float32)
        return np.asarray(clean, np.float32) + np.asarray(sigma, np.float32) * noise

    def variance(self, prior, sigma):
        return ops.broadcast_to(sigma * sigma, ops.shape(sigma)[:-1] + (prior.mu_x.shape[-1],))

    def bound_known(self, sigma):
        """A known sigma is bounded below by 1e-3, so that sigma_y is definite."""
        return ops.maximum(sigma, _MINIMUM)

    def estimate(self, crops):
        """Robust sigma of noisy crops [N,H,W,C]: median |diagonal Haar detail| / 0.6745
        (Donoho and Johnstone 1994). Texture makes it too large by some per cent. At least
        1/255, as flat artwork or a clipped background would give 0."""
        return max(float(np.median(np.abs(_haar_diagonal(crops))) / 0.6745), 1.0 / 255)


@keras.saving.register_keras_serializable("ssdn_tf")
@dataclasses.dataclass(frozen=True)
class PoissonNoise(AdditiveNoise):
    """y = Poisson(lam x) / lam; lam is the number of photons at white.

    Approximation: the moments are right, but p(y | x) is replaced by a Gaussian whose
    variance is max(mu_x, 1e-3) / lam, as published. Against quadrature, for a prior 0.5 +- 0.1, the
    posterior mean is off by 2.5 % of the posterior's std at lam 5, 9 % at 30, 10 % at 50 (test_noise).
    """

    kind = "poisson"

    def corrupt(self, clean, lam, rng):
        """Noisy copy, float32, photon counts / lam. clean: [..., H, W, C] in [0, 1]."""
        lam = np.asarray(lam, np.float64)
        return (rng.poisson(lam * clean) / lam).astype(np.float32)

    def variance(self, prior, lam):
        return ops.maximum(prior.mu_x, _MINIMUM) / lam

    def bound_known(self, lam):
        return lam

    def constrain(self, raw):
        """The learned number is 1 / lam."""
        return 1.0 / super().constrain(raw)

    def unconstrain(self, parameter):
        return super().unconstrain(1.0 / float(parameter))

    def estimate(self, crops):
        """Robust lam of noisy crops [N,H,W,C]: local mean over the median of squared Haar
        details, whose distribution in flat regions is chi-squared with one degree. At most 500,
        as a learned lam stays below 1000."""
        mean = np.maximum(_haar_mean(crops), 1.0 / 255)
        return float(0.4549 / max(np.median(_haar_diagonal(crops) ** 2 / mean), 0.4549 / 500))


@keras.saving.register_keras_serializable("ssdn_tf")
@dataclasses.dataclass(frozen=True)
class ImpulseNoise(NoiseModel):
    """With probability alpha, the whole pixel is replaced by a uniform draw from [0, 1]^C.

    likelihood: "moments", the published training loss (a Gaussian with the first two
        moments of y); "mixture", the exact density alpha + (1 - alpha) N(y; mu_x, sigma_x)
        for y in [0, 1]^C; or "combined", the mean of the two negative log-likelihoods.

    The exact one learns faster, but is blind to what it takes for replaced: where mu_x is far off, all
    pixels look replaced and nothing pulls it back. The moments always pull, if weakly.
    """

    likelihood: str = "moments"

    kind = "impulse"
    loss_scale = 2.0
    regularization = 0.0

    def __post_init__(self):
        if self.likelihood not in LIKELIHOODS:
            raise ValueError(f"likelihood must be one of {LIKELIHOODS}. Received: {self.likelihood}")

    def corrupt(self, clean, alpha, rng):
        """Noisy copy, float32; one mask for all channels. clean: [..., H, W, C] in [0, 1]."""
        replaced = rng.random(clean.shape[:-1] + (1,), dtype=np.float32) < alpha
        return np.where(replaced, rng.random(clean.shape, dtype=np.float32), np.asarray(clean, np.float32))

    def bound_known(self, alpha):
        return alpha

    def constrain(self, raw):
        """The published map below 0.999; above, it bends (slope 1 at the knee) towards 1 - 1e-6,
        because the formulas end at 1."""
        value = super().constrain(raw)
        room = _ALPHA_END - _ALPHA_KNEE
        over = ops.maximum(value - _ALPHA_KNEE, 0.0) / room
        return ops.where(value < _ALPHA_KNEE, value, _ALPHA_END - room / (1.0 + over))

    def unconstrain(self, parameter):
        """As in NoiseModel, for alpha below 1 - 1e-6."""
        room = _ALPHA_END - _ALPHA_KNEE
        if parameter >= _ALPHA_END:
            raise ValueError(f"a learned alpha stays below {_ALPHA_END}. Received: {parameter}")
        if parameter > _ALPHA_KNEE:
            parameter = _ALPHA_KNEE + room * (room / (_ALPHA_END - parameter) - 1.0)
        return super().unconstrain(parameter)

    def effective_prior(self, prior):
        channels = prior.mu_x.shape[-1]
        eye = ops.eye(channels, dtype=prior.sigma_x.dtype)
        return Prior(prior.mu_x, prior.sigma_x + _IMPULSE_VARIANCE * eye)

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
        """As in NoiseModel for "moments"; for "mixture" the exact value, less the same constant."""
        if self.likelihood == "moments":
            return super().marginal_nll(noisy, prior, parameter)
        if self.likelihood == "combined":
            moments = super().marginal_nll(noisy, prior, parameter)
            return 0.5 * (moments + self._mixture_nll(noisy, prior, parameter))
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
            determinant_floor: lower bound of det sigma_x inside g. The published source
                uses 1e-9 (std 8/255 a channel), which mis-scores pixels that the network
                is sure of.

        Returns:
            float [N, H, W, C].
        """
        kept = self._kept(noisy, self.effective_prior(prior), parameter, determinant_floor)
        return prior.mu_x + kept * (noisy - prior.mu_x)

    def posterior_std(self, noisy, prior, parameter):
        """Standard deviation of p(x | y, context) in each channel, exact for y in [0, 1]^C.

        The posterior is a mixture: y itself with the probability k that the pixel was kept,
        N(mu_x, sigma_x) otherwise. Its variance in a channel is
        (1 - k) sigma_x_cc + k (1 - k) (y - mu_x)^2.

        Args and Returns: float, as `posterior_mean`.
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

    def standard_deviation(self, prior, alpha):
        """Published measure of the noise: alpha 100/255, [N,1,1]."""
        return alpha[..., 0] * (100.0 / 255.0)

    def estimate(self, crops):
        """Rough alpha of noisy crops [N,H,W,C]: two neighbours are both clean, and then
        close, with probability q = (1 - alpha)^2; others are close by chance."""
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
        # alpha 0 or 1 gives -inf on one side, which logaddexp and the sigmoid accept.
        return ops.log(1.0 - alpha) + log_g, ops.log(alpha) + ops.zeros_like(log_g)


MODELS = {"gaussian": GaussianNoise, "poisson": PoissonNoise, "impulse": ImpulseNoise}


def gaussian_nll(d, sigma):
    """0.5 (d^T sigma^-1 d + log det sigma), [...], for d [..., C] and sigma [..., C, C]."""
    x, logdet = linalg.solve_and_logdet(sigma, d)
    return 0.5 * (ops.sum(d * x, axis=-1) + logdet)


def _outer(v):
    return v[..., :, None] * v[..., None, :]


def _quads(crops):
    """The four pixels of each 2x2 block, [N,H/2,W/2,C] each."""
    crops = np.asarray(crops)
    crops = crops[:, : crops.shape[1] // 2 * 2, : crops.shape[2] // 2 * 2]
    return [crops[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]


def _haar_diagonal(crops):
    a, b, c, d = _quads(crops)
    return 0.5 * (a - b - c + d)


def _haar_mean(crops):
    return sum(_quads(crops)) / 4.0
