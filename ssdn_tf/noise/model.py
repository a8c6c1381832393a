"""What all noise models share.

Notation of the paper: y is the noisy value, x the clean one. `sigma_x`, `sigma_n` and `sigma_y` are covariance
matrices (capital sigma in the paper); `sigma` is a standard deviation, `lam` the number of photons at white,
`alpha` a probability.

A noise model is a frozen dataclass without state: the noise parameter is always an argument, because it can be
data, a weight or the output of a network. The likelihoods use `keras.ops`; `corrupt` and `estimate` are NumPy.

The paper's training maximises the density of y under a Gaussian with the first two moments of y, for every noise model.
So a model states its moments, and `marginal_nll` is written once. (Impulse noise has its exact density besides.)

Reference: Laine et al., High-Quality Self-Supervised Deep Image Denoising, NeurIPS 2019, section 3 and supplement.
"""

import dataclasses

import numpy as np
from keras import ops

from ssdn_tf.noise import fitting, linalg
from ssdn_tf.noise.prior import diagonal_matrix

MINIMUM = 1e-3  # of a known or learned std, and of mu_x inside the Poisson variance


class NoiseModel:
    """Base of all noise models. How to write one: see `noise.registry`.

    Shapes: noisy and mu_x [N,H,W,C], sigma_x [N,H,W,C,C], parameter [N,1,1,P] or [1,1,1,P], where P is 1 but for
    Poisson-Gaussian noise (2).

    level: the `Level` or `Levels` of the model's parameter.
    least: of a learned parameter (published).
    loss_scale: published weight of the negative log-likelihood in colour.
    regularization: published weight of the noise std when the parameter is learned.
    """

    level = None
    least = MINIMUM
    loss_scale = 1.0
    regularization = 0.1

    @property
    def kind(self):
        """Name of the noise model: a key of `registry.MODELS` and `levels.LEVELS`."""
        return self.level.kind

    @property
    def parameter_size(self):
        """How many numbers the noise parameter has, P."""
        return len(self.level.numbers)

    def get_config(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def effective_prior(self, prior):
        """The prior that the likelihood and the posterior use."""
        return prior

    def marginal_nll(self, noisy, prior, parameter):
        """Negative log-likelihood of a noisy pixel under the Gaussian of its two moments: the paper's training loss.

            0.5 (d^T sigma_y^-1 d + log det sigma_y),   d = y - mu_y

        Args:
            noisy: float [N, H, W, C].
            prior: Prior at each pixel.
            parameter: float [N or 1, 1, 1, P], in the unit of the model.

        Returns:
            float [N, H, W], nats, without the constant 0.5 C log(2 pi).
        """
        mu_y, sigma_y = self.marginal_moments(self.effective_prior(prior), parameter)
        return linalg.gaussian_nll(noisy - mu_y, sigma_y)

    def fitted_nll(self, noisy, prior, parameter):
        """The negative log-likelihood that `fit` minimises; arguments and result as `marginal_nll`."""
        return self.marginal_nll(noisy, prior, parameter)

    def fit_with_prior(self, noisy, prior):
        """The parameter that `fit` finds, and the Prior at which it is the best."""
        return self.fit(noisy, prior), prior

    def prior_std(self, prior):
        """Standard deviation of each channel of the effective prior: sqrt of the diagonal of sigma_x, [N,H,W,C]."""
        return ops.sqrt(ops.diagonal(self.effective_prior(prior).sigma_x, axis1=-2, axis2=-1))

    def bound_known(self, parameter):
        """A parameter that is given, bounded where the formulas need it."""
        return parameter

    def constrain(self, raw):
        """Legal parameter from unconstrained numbers: softplus(raw - 4) + `least`.

        raw = 0 gives 4.88/255: the offset of 4 makes the noise small at first.
        """
        return ops.softplus(raw - 4.0) + ops.convert_to_tensor(self.least, dtype=raw.dtype)

    def unconstrain(self, parameter):
        """Inverse of `constrain`, a number or several; a parameter below `least` counts as `least`."""
        value = np.maximum(np.subtract(parameter, self.least), 1e-5 * np.asarray(self.least))
        return (value + np.log(-np.expm1(-value)) + 4.0).tolist()


class AdditiveNoise(NoiseModel):
    """y = x + n, n with the covariance sigma_n = diag(variance): the base of Gaussian and Poisson noise.

    A subclass has

    variance(prior, parameter): the variances of the noise, [N,H,W,C] or broadcastable;
    basis(prior): [N,H,W,C,P], such that these variances are basis w with weights w [N,1,1,P] that are at least 0;
    from_weights(w): the parameter with these weights, [N,1,1,P].
    """

    def fit(self, noisy, prior):
        """Maximum-likelihood parameter of each picture, given the network's prior: [N,1,1,P]. See `noise.fitting`.

        Of two numbers, one that makes the pixels more likely by less than `fitting.LEAST_GAIN` is 0.
        """
        return self.fit_with_prior(noisy, prior)[0]

    def fit_with_prior(self, noisy, prior, everything=False):
        """`fit`, and the prior with the best scale of sigma_x.

        everything: read dark pixels too, and leave out no number.
        """
        used = None if everything else fitting.is_lit(prior.mu_x)
        residual, basis, ranges = noisy - prior.mu_x, self.basis(prior), self.weight_range()
        found = fitting.variance_weights(residual, prior.sigma_x, basis, ranges, used, simplest=not everything)
        return self.from_weights(found.weights), prior._replace(sigma_x=found.scale * prior.sigma_x)

    def weight_range(self):
        """(lowest, highest) weights: those of the legal parameters, with a std of at least 1e-3."""
        return [(MINIMUM**2, n.parameter_range[1] if n.gain else 1.0) for n in self.level.numbers]

    def marginal_moments(self, prior, parameter):
        """Mean mu_x [N,H,W,C] and covariance sigma_x + sigma_n [N,H,W,C,C] of the noisy pixel."""
        return prior.mu_x, prior.sigma_x + diagonal_matrix(self.variance(prior, parameter))

    def posterior_mean(self, noisy, prior, parameter, inflation=0.0):
        """Mean of p(x | y, context) in gain form.

            mu_x + sigma_x (sigma_x + sigma_n)^-1 (y - mu_x)

        One solve, defined for a singular sigma_x. The published form has three inverses.

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
        sigma_x, variance = prior.sigma_x, self.variance(prior, parameter)
        if inflation:
            sigma_x = sigma_x + inflation * ops.eye(noisy.shape[-1], dtype=sigma_x.dtype)
            variance = variance + inflation
        sigma_y = sigma_x + diagonal_matrix(variance)
        gain, _ = linalg.solve_and_logdet(sigma_y, noisy - prior.mu_x, least=variance)
        return prior.mu_x + linalg.matvec(sigma_x, gain)

    def posterior_std(self, noisy, prior, parameter):
        """Standard deviation of p(x | y, context) in each channel.

            sqrt of the diagonal of  sigma_x (sigma_x + sigma_n)^-1 sigma_n,   which in channel c is
            sqrt(n s / (n + s)),   n = (sigma_n)_cc,   s = variance of x_c given the context and
                                                           the noisy values of the other channels

        The second form, computed here, never exceeds the std of the noise or of the prior, and is 0 only where
        the prior is certain.

        Accuracy: a few times what it costs to round sigma_x to its dtype. That is little (1e-6 in float32), unless
        sigma_x is close to singular and much larger than the noise: a relative error of up to about
        eps max(sigma_x) / n, eps = 6e-8 in float32 and 1e-16 in float64. At a std of 0.1 with sigma 0.001, that is
        0.2 % in float32; with lam 1e6 in the dark (n = 1e-9), float32 has no correct digit and float64 nine.
        TensorFlow computes in float64, JAX only with JAX_ENABLE_X64=1 (`denoisers.noise_layer.algebra_dtype`).

        No floor: the result is as certain as the network's prior, and the network can be wrong. In the trained
        networks of README, 0.0005 to 0.06 % of the values are below 1/255, and there errors of 6 to 14/255 occur. A
        floor of 1/255 would not cover those errors, and would be wrong for impulse noise, where most kept pixels
        are exact. Who divides by this value should bound it from below; 1/255 suits 8-bit pictures.

        Args:
            noisy: not read; the uncertainty of a Gaussian depends on the context alone.
            prior, parameter: as in `marginal_nll`.

        Returns:
            float [N, H, W, C].

        Approximation: as `posterior_mean`.
        """
        noise = self.variance(prior, parameter)
        others = linalg.conditional_variance(prior.sigma_x, noise)
        return ops.sqrt(others * noise / (others + noise))

    def standard_deviation(self, prior, parameter):
        """Noise std, arithmetic mean over channels: [N,H,W], or [N,1,1] where it is one number."""
        return ops.mean(ops.sqrt(self.variance(prior, parameter)), axis=-1)
