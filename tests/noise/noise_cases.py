"""Formulas of the noise models written out in NumPy, and cases to try them on.

The references are float64, one pixel at a time, with explicit inverses.
"""

import numpy as np
import pytest
from support import array, random_prior, tensor

from ssdn_tf.noise.prior import Prior
from ssdn_tf.noise.registry import MODELS

SHAPE = (2, 3, 4)
LEVELS = {  # a typical parameter; a new model joins by a line here
    "gaussian": 0.1,
    "poisson": 30.0,
    "impulse": 0.4,
    "poisson_gaussian": np.array([1 / 40, 0.06]),
    "additive": np.array([1 / 40, 0.06]),
}

# `additive` has the formulas of poisson_gaussian.
_MODELS = [model() for kind, model in MODELS.items() if kind != "additive"]
every_model = pytest.mark.parametrize("model", _MODELS, ids=lambda m: m.kind)
every_likelihood = pytest.mark.parametrize(
    "model", [*_MODELS, MODELS["impulse"]("mixture")], ids=[*(m.kind for m in _MODELS), "mixture"]
)
every_channel_count = pytest.mark.parametrize("channels", [1, 3])


def reference_moments(kind, mu_x, sigma_x, parameter):
    """The table of the method: mean and covariance of the noisy pixel."""
    eye, ones = np.eye(len(mu_x)), np.ones((len(mu_x), len(mu_x)))
    if kind == "gaussian":
        return mu_x, sigma_x + parameter**2 * eye
    if kind == "poisson":
        return mu_x, sigma_x + np.diag(np.maximum(mu_x, 1e-3) / parameter)
    if kind in ("poisson_gaussian", "additive"):
        gain, readout = parameter
        return mu_x, sigma_x + np.diag(gain * np.maximum(mu_x, 1e-3) + readout**2)
    mu_y = parameter / 2 + (1 - parameter) * mu_x
    second = parameter * (ones / 4 + eye / 12) + (1 - parameter) * (sigma_x + np.outer(mu_x, mu_x))
    return mu_y, second - np.outer(mu_y, mu_y)


def reference_prior(kind, mu_x, sigma_x):
    """The impulse model adds 1e-6 to the variances of the prior."""
    return mu_x, sigma_x + (1e-6 if kind == "impulse" else 0.0) * np.eye(len(mu_x))


def reference_nll(kind, y, mu_x, sigma_x, parameter):
    """0.5 d^T sigma_y^-1 d + 0.5 log det sigma_y."""
    mu_y, sigma_y = reference_moments(kind, *reference_prior(kind, mu_x, sigma_x), parameter)
    d = y - mu_y
    return 0.5 * d @ np.linalg.inv(sigma_y) @ d + 0.5 * np.log(np.linalg.det(sigma_y))


def reference_posterior(kind, y, mu_x, sigma_x, parameter, inflation=0.0, floor=0.0):
    """Published: the three-inverse form for additive noise, Bayes' rule for impulse noise."""
    if kind == "impulse":
        mu_x, sigma_x = reference_prior(kind, mu_x, sigma_x)
        d, determinant = y - mu_x, max(np.linalg.det(sigma_x), floor)
        g = np.exp(-0.5 * d @ np.linalg.inv(sigma_x) @ d) / np.sqrt((2 * np.pi) ** len(y) * determinant)
        return (parameter * mu_x + (1 - parameter) * g * y) / (parameter + (1 - parameter) * g)
    sigma_n = reference_moments(kind, mu_x, 0 * sigma_x, parameter)[1] + inflation * np.eye(len(y))
    inverse_x, inverse_n = np.linalg.inv(sigma_x + inflation * np.eye(len(y))), np.linalg.inv(sigma_n)
    return np.linalg.inv(inverse_x + inverse_n) @ (inverse_x @ mu_x + inverse_n @ y)


def pixelwise(function, kind, noisy, mu_x, sigma_x, parameter, **kwargs):
    """A reference applied to every pixel of [N,H,W]; parameter [N,1,1,P]."""
    results = [
        function(kind, noisy[p], mu_x[p], sigma_x[p], plain(parameter[p[0]]), **kwargs) for p in np.ndindex(SHAPE)
    ]
    return np.reshape(results, (*SHAPE, *np.shape(results[0])))


def plain(parameter):
    """The parameter of one picture, as a number or [P]."""
    values = np.ravel(parameter)
    return values[0] if len(values) == 1 else values


def as_batch(parameter):
    """A parameter as [1,1,1,P]."""
    return np.reshape(parameter, (1, 1, 1, -1))


def case(model, channels, seed=0):
    """noisy in the unit cube, mu_x, sigma_x, and one parameter an image: NumPy."""
    mu_x, sigma_x = random_prior(seed, SHAPE, channels)
    noisy = np.random.default_rng(seed + 100).uniform(0.0, 1.0, (*SHAPE, channels))
    return noisy, mu_x, sigma_x, LEVELS[model.kind] * np.array([1.0, 1.5]).reshape(2, 1, 1, 1)


def call(method, noisy, mu_x, sigma_x, parameter, dtype="float64", **kwargs):
    """A method of a model on NumPy arguments."""
    noisy, mu_x, sigma_x, parameter = (tensor(v, dtype) for v in (noisy, mu_x, sigma_x, parameter))
    return array(method(noisy, Prior(mu_x, sigma_x), parameter, **kwargs))


def one_pixel(mu_x, sigma_x):
    """mu_x [1,1,1,C] and sigma_x [1,1,1,C,C], which broadcast over pictures."""
    return mu_x[None, None, None], sigma_x[None, None, None]


def sampled_pixels(channels, count=500_000, seed=7):
    """One prior, more than six standard deviations inside the unit cube, and draws from it."""
    mu_x, std = np.array([0.4, 0.5, 0.6])[:channels], np.array([0.06, 0.05, 0.04])[:channels]
    sigma_x = np.outer(std, std) * (0.5 + 0.5 * np.eye(channels))
    rng = np.random.default_rng(seed)
    clean = rng.multivariate_normal(mu_x, sigma_x, count, method="cholesky")
    return mu_x, sigma_x, clean.reshape(count, 1, 1, channels).astype(np.float32), rng


def moment_samples(y, mu_y):
    """[K, C + C * C]: values, then products of the deviations from mu_y, flattened."""
    d = y.reshape(len(y), -1) - mu_y
    return np.concatenate([d, (d[:, :, None] * d[:, None, :]).reshape(len(d), -1)], axis=1)


def synthetic_crops(channels, size=128, count=4):
    """Shaded discs on a shaded ground: smooth regions with edges, values in [0.1, 0.9]."""
    rng = np.random.default_rng(20)
    v, u = np.mgrid[:size, :size] / size
    crops = np.empty((count, size, size, channels))
    for i, c in np.ndindex(count, channels):
        crops[i, ..., c] = 0.4 + 0.2 * np.sin(2 * u + rng.uniform(0, 6)) * np.cos(2 * v + rng.uniform(0, 6))
    for i in range(count):
        for _ in range(6):
            y, x = rng.uniform(0, 1, 2)
            inside = (u - x) ** 2 + (v - y) ** 2 < rng.uniform(0.05, 0.2) ** 2
            crops[i][inside] += rng.uniform(-0.1, 0.3, channels)
    return crops.clip(0.1, 0.9).astype(np.float32)
