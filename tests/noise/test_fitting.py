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


def mean_nll(kind, arguments, parameter, scale=1.0):
    """The mean of -log p(y) with a scale of sigma_x, and of -log of its prior, in NumPy, without the constants."""
    noisy, mu_x, sigma_x = (array[0, 0] for array in arguments)
    sigma_x = scale * sigma_x
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
    return nll.mean() + 0.5e-3 * (scale - 1) ** 2


def least_nll(kind, arguments, parameter):
    """The least `mean_nll` of a parameter, at the best scale."""
    if kind == "impulse":
        return mean_nll(kind, arguments, parameter)
    of_scale = lambda scale: mean_nll(kind, arguments, parameter, scale)
    return scipy.optimize.minimize_scalar(of_scale, bounds=(0.1, 10), options={"xatol": 1e-4}).fun


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
    scaled = kind != "impulse"
    best = scipy.optimize.minimize(
        lambda logs: mean_nll(kind, arguments, *(np.exp(part) for part in np.split(logs, [found.size]) if part.size)),
        np.log([*np.maximum(found, 1e-3), *[1.0] * scaled]) - 0.03,
        method="Nelder-Mead",
        options={"xatol": 1e-4, "fatol": 1e-9, "maxiter": 300},
    )
    # The lower bound of the weight (a std of 0.001) costs up to 4e-7; a kind of noise that is left out, chance.
    left_out = kind == "poisson_gaussian" and (found == 0).any()
    assert least_nll(kind, arguments, found) < best.fun + (3e-4 if left_out else 1e-6)
    # The negative control: 5 % below the optimum is seen.
    assert least_nll(kind, arguments, 0.95 * found) > best.fun + 1e-5


@every_channel_count
def test_the_steps_follow_the_gradient_and_the_fisher_information(channels):
    """Against automatic differentiation, and the definition: 1/2 tr S^-1 B_k S^-1 B_l."""
    rng = np.random.default_rng(0)
    a = rng.normal(0, 0.1, (2, 30, channels, channels))
    sigma_x, basis = a @ np.swapaxes(a, -1, -2), rng.uniform(0.1, 1, (2, 30, channels, 2))
    residual, share = rng.normal(0, 0.3, (2, 30, channels)), np.full((2, 30), 1 / 30)
    factors = tensor(np.array([[0.01, 0.02, 1.2], [0.03, 0.01, 0.8]]))
    pixels = fitting._Pixels(*(tensor(values) for values in (residual, sigma_x, basis, share)))
    with tf.GradientTape() as tape:
        tape.watch(factors)
        loss = fitting._loss(pixels, factors)
    found, score, information = (array(values) for values in fitting._expansion(pixels, factors))
    np.testing.assert_allclose(found, loss, rtol=1e-12)
    np.testing.assert_allclose(score, -array(tape.gradient(loss, factors)), rtol=1e-9)
    parts = np.concatenate([basis.transpose(3, 0, 1, 2)[..., None] * np.eye(channels), sigma_x[None]])
    inverse = np.linalg.inv(np.einsum("nk,knmij->nmij", array(factors), parts))
    expected = np.einsum("nmab,knmbc,nmcd,lnmda->nkl", inverse, parts, inverse, parts) / 60
    expected[:, 2, 2] += fitting._HOLD
    np.testing.assert_allclose(information, expected, rtol=1e-9)


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


@every_channel_count
@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_a_sigma_x_of_the_wrong_scale_does_not_change_the_noise(scale, channels):
    noisy, mu_x, sigma_x = pixels("gaussian", 10 / 255, channels, count=16_384)
    right = fit("gaussian", (noisy, mu_x, sigma_x))
    arguments = (noisy, mu_x, scale * sigma_x)
    assert fit("gaussian", arguments) == pytest.approx(right, rel=0.005)  # the prior of the scale
    # The negative control: the noise that is the most likely with sigma_x as it is.
    alone = scipy.optimize.minimize_scalar(lambda sigma: mean_nll("gaussian", arguments, [sigma]), bounds=(0.01, 0.1))
    assert scale == 1 or abs(alone.x / right - 1) > 0.02


@every_channel_count
def test_where_sigma_x_is_the_same_everywhere_it_is_believed(channels):
    rng = np.random.default_rng(0)
    mu_x, sigma_x = np.full((1, 1, 4096, channels), 0.5), 0.05**2 * np.eye(channels)
    noisy = mu_x + np.hypot(0.05, 0.1) * rng.standard_normal(mu_x.shape)
    found = fit("gaussian", (noisy, mu_x, np.broadcast_to(sigma_x, (1, 1, 4096, channels, channels))))
    assert found == pytest.approx(0.1, rel=0.05)


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


@every_channel_count
def test_dark_pixels_do_not_count_however_few_the_others_are(channels):
    """One pixel of eight is lit, and none of those that the first steps read: the last steps come close alone."""
    noisy, mu_x, sigma_x = pixels("gaussian", 0.1, channels)
    lit = np.arange(noisy.shape[2]) % 8 == 1
    mu_x[..., ~lit, :], noisy[..., ~lit, :] = 0.0, 7.0
    found = fit("gaussian", (noisy, mu_x, sigma_x))
    alone = fit("gaussian", [array[:, :, lit] for array in (noisy, mu_x, sigma_x)])
    assert found == pytest.approx(alone, rel=1e-3)


@pytest.mark.parametrize("height, width", [(1, 1), (7, 5), (512, 768), (3000, 17)])
def test_thinned_pictures_are_small_and_meet_all_phases_of_the_grid(height, width):
    values = np.arange(height * width, dtype=np.float64).reshape(1, height, width, 1)
    (found,) = fitting.thin(tensor(values))
    assert array(found).size <= fitting.PIXELS
    rows = {int(value) // width for value in array(found).ravel()}
    assert len({row % 8 for row in rows}) == min(8, len(rows))
