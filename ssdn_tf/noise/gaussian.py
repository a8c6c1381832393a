"""Gaussian noise: y = x + sigma n."""

import dataclasses

import keras
import numpy as np
from keras import ops

from ssdn_tf.noise import haar
from ssdn_tf.noise.levels import LEVELS
from ssdn_tf.noise.model import MINIMUM, AdditiveNoise


@keras.saving.register_keras_serializable("ssdn_tf")
@dataclasses.dataclass(frozen=True)
class GaussianNoise(AdditiveNoise):
    """y = x + sigma n, n standard normal, not clipped; sigma in units of [0, 1] (25 means 25/255)."""

    level = LEVELS["gaussian"]

    def corrupt(self, clean, sigma, rng):
        """Noisy copy, float32, not clipped. clean: [..., H, W, C] in [0, 1]; rng: np.random.Generator."""
        noise = rng.standard_normal(clean.shape, dtype=np.float32)
        return np.asarray(clean, np.float32) + np.asarray(sigma, np.float32) * noise

    def variance(self, prior, sigma):
        """sigma^2, [N,1,1,C]."""
        return ops.broadcast_to(sigma * sigma, ops.shape(sigma)[:-1] + (prior.mu_x.shape[-1],))

    def basis(self, prior):
        return ops.ones_like(prior.mu_x)[..., None]

    def from_weights(self, weights):
        """The weight is sigma^2."""
        return ops.sqrt(weights)

    def bound_known(self, sigma):
        """A known sigma is bounded below by 1e-3, so that sigma_y is definite."""
        return ops.maximum(sigma, MINIMUM)

    def estimate(self, crops):
        """Robust sigma of noisy crops [N,H,W,C]: median |diagonal Haar detail| / 0.6745 (Donoho and Johnstone 1994).

        Texture makes it a few per cent too large. At least 1/255: artwork or a clipped background would give 0.
        """
        return max(float(np.median(np.abs(haar.diagonal(crops))) / 0.6745), 1.0 / 255)
