"""From network outputs to the Gaussian prior: the factor, written out element by element."""

import numpy as np
import pytest
from support import array, gradients, random_prior, tensor

from ssdn_tf.noise import prior, registry

SHAPE = (2, 3, 4)


def factor(components):
    """Upper triangular U of one pixel, filled row by row with its six components."""
    u, left = np.zeros((3, 3)), list(components)
    for row in range(3):
        for column in range(row, 3):
            u[row, column] = left.pop(0)
    return u


def components(outputs, seed=0):
    return np.random.default_rng(seed).standard_normal((*SHAPE, outputs))


def test_sigma_x_is_the_product_of_its_factor():
    outputs = components(9)
    mu_x, sigma_x = map(array, prior.from_components(tensor(outputs), 3))
    assert (mu_x == outputs[..., :3]).all()
    for pixel in np.ndindex(SHAPE):
        u = factor(outputs[pixel][3:])
        np.testing.assert_allclose(sigma_x[pixel], u @ u.T, rtol=1e-12, atol=1e-14)
        # The other order is another covariance: weights would mean something else.
        assert np.abs(sigma_x[pixel] - u.T @ u).max() > 0.01


def test_every_covariance_has_components():
    _, wanted = random_prior(1, (), 3)
    # Cholesky of the matrix read backwards gives the upper triangular factor.
    u = np.linalg.cholesky(wanted[::-1, ::-1])[::-1, ::-1]
    outputs = np.concatenate([np.zeros(3), u[np.triu_indices(3)]]).reshape(1, 1, 1, 9)
    found = array(prior.from_components(tensor(outputs), 3).sigma_x)[0, 0, 0]
    np.testing.assert_allclose(found, wanted, rtol=1e-12)


@pytest.mark.parametrize("channels, diagonal", [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sigma_x_is_symmetric_and_positive_semidefinite(channels, diagonal, dtype):
    outputs = components(prior.component_count(channels, diagonal)).astype(dtype)
    sigma_x = array(prior.from_components(tensor(outputs, dtype), channels, diagonal).sigma_x)
    assert sigma_x.dtype == dtype
    assert (sigma_x == np.swapaxes(sigma_x, -1, -2)).all()
    values = np.linalg.eigvalsh(sigma_x.astype(np.float64))
    # Each element is rounded by a few units of the largest.
    assert (values[..., 0] >= -10 * np.finfo(dtype).eps * values[..., -1]).all()


def test_diagonal_prior_has_no_correlation():
    outputs = components(6)
    mu_x, sigma_x = map(array, prior.from_components(tensor(outputs), 3, diagonal=True))
    assert (mu_x == outputs[..., :3]).all()
    assert (sigma_x[..., ~np.eye(3, dtype=bool)] == 0.0).all()
    assert (np.diagonal(sigma_x, axis1=-2, axis2=-1) == outputs[..., 3:] ** 2).all()


@pytest.mark.parametrize("diagonal", [False, True])
def test_mono_prior_is_a_square(diagonal):
    outputs = components(2)
    mu_x, sigma_x = map(array, prior.from_components(tensor(outputs), 1, diagonal))
    assert (mu_x == outputs[..., :1]).all()
    assert (sigma_x == outputs[..., 1:, None] ** 2).all()


@pytest.mark.parametrize("channels, diagonal, count", [(3, False, 9), (3, True, 6), (1, False, 2), (1, True, 2)])
def test_component_counts_are_the_published_output_counts(channels, diagonal, count):
    assert prior.component_count(channels, diagonal) == count


@pytest.mark.parametrize("channels, diagonal", [(1, False), (3, False), (3, True)])
@pytest.mark.parametrize("kind, parameter", [("gaussian", 1e-3), ("poisson", 30.0), ("impulse", 0.5)])
@pytest.mark.parametrize("rank", [0, 1])
def test_gradients_are_finite_where_sigma_x_is_singular(channels, diagonal, kind, parameter, rank):
    model = registry.make(kind)
    outputs = np.zeros((*SHAPE, prior.component_count(channels, diagonal)))
    outputs[..., :channels] = 0.5
    outputs[..., channels : channels + rank] = 0.1
    noisy = tensor(np.random.default_rng(3).uniform(size=(*SHAPE, channels)))
    parameter = tensor(np.full((2, 1, 1, 1), parameter))

    def nll(outputs, parameter):
        return model.marginal_nll(noisy, prior.from_components(outputs, channels, diagonal), parameter)

    for found in gradients(nll, tensor(outputs), parameter):
        assert np.isfinite(found).all()
        assert (found != 0.0).any()
