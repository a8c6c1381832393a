"""Closed-form solve and log-determinant against NumPy's, matrix by matrix."""

import numpy as np
import pytest
from support import array, gradients, random_prior, tensor

from ssdn_tf.noise import linalg


def definite(channels, condition, count=200, seed=0):
    """Random symmetric matrices [count, C, C] with eigenvalues from 1 down to 1 / condition."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.standard_normal((count, channels, channels)))
    values = np.geomspace(1.0, 1.0 / condition, channels) if channels > 1 else np.array([1.0 / condition])
    return (q * values) @ np.swapaxes(q, -1, -2)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_solve_and_logdet_match_numpy(channels, condition, dtype):
    a = definite(channels, condition).astype(dtype)
    b = np.random.default_rng(1).standard_normal((200, channels)).astype(dtype)
    x, logdet = linalg.solve_and_logdet(tensor(a, dtype), tensor(b, dtype))
    assert array(x).dtype == dtype and array(logdet).dtype == dtype
    # Elimination on a definite matrix is backward stable: both results move by a small
    # multiple (10) of condition * unit roundoff. The reference has the same rounded input.
    tolerance = 10 * condition * np.finfo(dtype).eps
    for i in range(len(a)):
        wide = np.triu(a[i].astype(np.float64))
        wide = wide + np.triu(wide, 1).T
        expected = np.linalg.solve(wide, b[i].astype(np.float64))
        assert np.linalg.norm(array(x)[i] - expected) <= tolerance * np.linalg.norm(expected)
        assert abs(array(logdet)[i] - np.linalg.slogdet(wide)[1]) <= tolerance


def test_only_the_upper_triangle_is_read():
    a = definite(3, 10.0)
    ruined = np.where(np.tril(np.ones((3, 3)), -1) > 0, np.nan, a)
    b = tensor(np.ones((200, 3)))
    whole, upper = (linalg.solve_and_logdet(tensor(matrix), b) for matrix in (a, ruined))
    assert (array(whole[0]) == array(upper[0])).all()
    assert (array(whole[1]) == array(upper[1])).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_leading_axes_broadcast(channels):
    a = definite(channels, 10.0, count=2).reshape(2, 1, 1, channels, channels)
    b = np.random.default_rng(2).standard_normal((2, 3, 4, channels))
    x, logdet = linalg.solve_and_logdet(tensor(a), tensor(b))
    full = np.broadcast_to(a, (2, 3, 4, channels, channels))
    assert array(x).shape == (2, 3, 4, channels) and array(logdet).shape == (2, 1, 1)
    whole, _ = linalg.solve_and_logdet(tensor(full), tensor(b))
    np.testing.assert_allclose(array(x), array(whole), rtol=1e-12)


@pytest.mark.parametrize("channels", [1, 3])
def test_gradients_match_the_matrix_calculus(channels):
    a = definite(channels, 10.0, count=5)
    b = np.random.default_rng(3).standard_normal((5, channels))
    inverse = np.linalg.inv(a)
    # An element above the diagonal stands for two of the matrix, one below it for none.
    twice = np.triu(2 - np.eye(channels))
    (found,) = gradients(lambda a: linalg.solve_and_logdet(a, tensor(b))[1], tensor(a))
    np.testing.assert_allclose(found, twice * inverse, atol=1e-12 * np.abs(inverse).max())
    assert (found[:, np.tril_indices(channels, -1)[0], np.tril_indices(channels, -1)[1]] == 0.0).all()

    def quadratic(a, b):
        return linalg.solve_and_logdet(a, b)[0] * b

    x = np.einsum("kij,kj->ki", inverse, b)
    da, db = gradients(quadratic, tensor(a), tensor(b))
    np.testing.assert_allclose(da, -twice * x[:, :, None] * x[:, None, :], atol=1e-12 * (x * x).max())
    np.testing.assert_allclose(db, 2 * x, atol=1e-12 * np.abs(x).max())


@pytest.mark.parametrize("channels", [2, 4])
def test_other_channel_counts_are_refused_by_name(channels):
    with pytest.raises(ValueError, match=r"1 or 3 channels.*Received"):
        linalg.solve_and_logdet(tensor(np.eye(channels)), tensor(np.ones(channels)))


@pytest.mark.parametrize("channels", [1, 3])
def test_matvec_is_the_matrix_product(channels):
    rng = np.random.default_rng(4)
    a = rng.standard_normal((2, 5, channels, channels))
    b = rng.standard_normal((2, 5, channels))
    expected = np.array([[a[i, j] @ b[i, j] for j in range(5)] for i in range(2)])
    np.testing.assert_allclose(array(linalg.matvec(tensor(a), tensor(b))), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("channels", [1, 3])
def test_conditional_variance_is_that_of_the_joint_gaussian(channels):
    _, sigma = random_prior(5, (4,), channels)
    noise = np.random.default_rng(6).uniform(0.001, 0.1, (4, channels))
    found = array(linalg.conditional_variance(tensor(sigma), tensor(noise)))
    for p in range(4):
        for c in range(channels):
            o = [i for i in range(channels) if i != c]
            cross = sigma[p][c, o]
            expected = sigma[p][c, c] - cross @ np.linalg.solve(sigma[p][np.ix_(o, o)] + np.diag(noise[p, o]), cross)
            assert found[p, c] == pytest.approx(expected, rel=1e-10)


def test_least_pivots_change_nothing_where_rounding_does_no_harm_and_keep_the_others_positive():
    _, sigma = random_prior(5, (4,), 3)
    noise, b = np.full((4, 3), 1e-3), np.ones((4, 3))
    a = tensor(sigma + 1e-3 * np.eye(3))
    for plain, bounded in zip(
        linalg.solve_and_logdet(a, tensor(b)), linalg.solve_and_logdet(a, tensor(b), least=tensor(noise))
    ):
        np.testing.assert_array_equal(array(plain), array(bounded))
    ones = tensor(np.full((1, 3, 3), 0.01) + 1e-11 * np.eye(3), "float32")  # singular as rounded
    x, logdet = linalg.solve_and_logdet(ones, tensor(b[:1], "float32"), least=tensor(np.full((1, 3), 1e-11), "float32"))
    assert np.isfinite(array(x)).all() and np.isfinite(array(logdet)).all()
    assert not np.isfinite(array(linalg.solve_and_logdet(ones, tensor(b[:1], "float32"))[1])).all()
