"""Noise parameters by maximum likelihood: SciPy's optimum, the truth, and pictures where there is nothing to fit."""

import functools

import numpy as np
import pytest
import scipy.optimize
import tensorflow as tf
from noise_cases import every_channel_count
from support import array, tensor

from ssdn_tf.noise import fitting
from ssdn_tf.noise.prior import Prior
from ssdn_tf.noise.registry import MODELS

CASES = {
    "gaussian weak": ("gaussian", 5 / 255),
    "gaussian": ("gaussian", 25 / 255),
    "gaussian strong": ("gaussian", 150 / 255),
    "poisson strong": ("poisson", 3.0),
    "poisson": ("poisson", 30.0),
    "both": ("poisson_gaussian", (1 / 50, 25 / 255)),
    "both, gain alone": ("poisson_gaussian", (1 / 10, 0.0)),
    "both, readout alone": ("poisson_gaussian", (0.0, 25 / 255)),
    "impulse rare": ("impulse", 0.02),
    "impulse": ("impulse", 0.5),
    "impulse strong": ("impulse", 0.95),
}
every_case = pytest.mark.parametrize("kind, parameter", CASES.values(), ids=CASES)


def pixels(kind, parameter, channels, count=4096, seed=0):
    """A noisy picture [1,1,count,C] and the prior that its clean colours are drawn from."""
    rng = np.random.default_rng(seed)
    mu_x = rng.uniform(0.3, 0.8, (1, 1, count, channels))
    a = 0.03 * rng.exponential(1.0, (1, 1, count, 1, 1)) * rng.standard_normal((1, 1, count, channels, channels))
    clean = mu_x + np.sum(a * rng.standard_normal((1, 1, count, 1, channels)), axis=-1)
    noisy = MODELS[kind]().corrupt(np.clip(clean, 0, None), parameter, rng).astype(np.float64)
    return noisy, mu_x, a @ np.swapaxes(a, -1, -2)


def mean_nll(kind, arguments, parameter):
    """The mean of -log p(y), in NumPy, without the constant."""
    noisy, mu_x, sigma_x = (array[0, 0] for array in arguments)
    d, channels = noisy - mu_x, noisy.shape[-1]
    if kind == "impulse":
        covariance = sigma_x + 1e-6 * np.eye(channels)
    else:
        gain, readout = {"gaussian": lambda p: (0, p[0]), "poisson": lambda p: (1 / p[0], 0)}.get(kind, tuple)(
            parameter
        )
        covariance = sigma_x + (gain * mu_x + readout**2)[..., None] * np.eye(channels)
    solved = np.linalg.solve(covariance, d[..., None])[..., 0]
    nll = 0.5 * (np.sum(d * solved, axis=-1) + np.linalg.slogdet(covariance)[1])
    if kind == "impulse":
        log_density = -nll - channels / 2 * np.log(2 * np.pi)
        nll = -np.logaddexp(np.log(parameter[0]), np.log(1 - parameter[0]) + log_density)
    return nll.mean()


@functools.cache
def compiled(kind):
    model = MODELS[kind]()
    return tf.function(lambda noisy, mu_x, sigma_x: model.fit(noisy, Prior(mu_x, sigma_x)))


def fit(kind, arguments):
    return array(compiled(kind)(*map(tensor, arguments))).ravel()


@every_channel_count
@every_case
def test_the_fit_is_the_optimum_that_scipy_finds(kind, parameter, channels):
    arguments = pixels(kind, parameter, channels)
    found = fit(kind, arguments)
    best = scipy.optimize.minimize(
        lambda logarithm: mean_nll(kind, arguments, np.exp(logarithm)),
        np.log(np.maximum(found, 1e-3)) - 0.03,
        method="Nelder-Mead",
        options={"xatol": 1e-4, "fatol": 1e-9, "maxiter": 150},
    )
    # The lower bound of the weight (a std of 0.001) costs up to 4e-7; a kind of noise that is left out, chance.
    left_out = kind == "poisson_gaussian" and (found == 0).any()
    assert mean_nll(kind, arguments, found) < best.fun + (3e-4 if left_out else 1e-6)
    # The negative control: 5 % below the optimum is seen.
    assert mean_nll(kind, arguments, 0.95 * found) > best.fun + 1e-5


@every_channel_count
@pytest.mark.parametrize("kind, parameter, alone", [("gaussian", (0.0, 0.1), 1), ("poisson", (0.1, 0.0), 0)])
def test_of_two_kinds_of_noise_one_that_hardly_helps_is_left_out(kind, parameter, alone, channels):
    arguments = pixels("poisson_gaussian", parameter, channels)
    found, one = fit("poisson_gaussian", arguments), fit(kind, arguments)[0]
    assert found[1 - alone] == 0
    assert found[alone] == pytest.approx(one if kind == "gaussian" else 1 / one, rel=1e-6)
    # The negative control: where both are there, both are found.
    assert (fit("poisson_gaussian", pixels("poisson_gaussian", (0.02, 0.1), channels)) > 0).all()


@every_channel_count
@every_case
def test_the_fit_is_close_to_the_truth(kind, parameter, channels):
    # 16,384 pixels: chance moves sigma by 1 % at most here, lam by 3 %, alpha by 0.01, both of two numbers by 10 %.
    found = fit(kind, pixels(kind, parameter, channels, count=16_384, seed=1))
    if kind == "impulse":
        assert found == pytest.approx(parameter, abs=0.015)
    elif kind == "poisson_gaussian":
        present = np.array(parameter) > 0
        np.testing.assert_allclose(found[present], np.array(parameter)[present], rtol=0.15)
        assert (found[~present] == 0).all()
    else:
        assert found == pytest.approx(parameter, rel=0.03 if kind == "gaussian" else 0.06)


def test_each_picture_has_its_own_parameter():
    parts = [pixels("gaussian", sigma, 3, count=512) for sigma in (0.02, 0.2)]
    together = fit("gaussian", [np.concatenate(arrays) for arrays in zip(*parts)])
    alone = [fit("gaussian", part)[0] for part in parts]
    np.testing.assert_allclose(together, alone, rtol=1e-9)
    assert alone[1] > 5 * alone[0]


@every_channel_count
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("shape", [(1, 1), (8, 8)])
def test_pictures_with_nothing_to_fit_give_a_legal_parameter(kind, shape, channels):
    """Black, gray, and far too bright; on a prior that says the same, or black."""
    values = np.reshape([0.0, 0.5, 30.0] * 2, (6, 1, 1, 1))
    noisy = values * np.ones((1, *shape, channels))
    mu_x = noisy * np.reshape([1] * 3 + [0] * 3, (6, 1, 1, 1))
    found = fit(kind, (noisy, mu_x, np.zeros((*noisy.shape, channels)))).reshape(6, -1)
    ends = np.array([number.parameter_range for number in MODELS[kind].level.numbers])
    assert np.isfinite(found).all() and (ends[:, 0] <= found).all() and (found <= ends[:, 1]).all()


@pytest.mark.parametrize("height, width", [(1, 1), (7, 5), (512, 768), (3000, 17)])
def test_thinned_pictures_are_small_and_meet_all_phases_of_the_grid(height, width):
    values = np.arange(height * width, dtype=np.float64).reshape(1, height, width, 1)
    (found,) = fitting.thin(tensor(values))
    assert array(found).size <= fitting.PIXELS
    rows = {int(value) // width for value in array(found).ravel()}
    assert len({row % 8 for row in rows}) == min(8, len(rows))
