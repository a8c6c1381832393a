"""The helpers pass where they should, and fail where they should."""

import keras
import numpy as np
import pytest
import support
from keras import ops


@keras.saving.register_keras_serializable("ssdn_tf_test")
class Scale(keras.layers.Layer):
    """A layer that keeps all the boring truths; each subclass below breaks one."""

    def build(self, input_shape):
        self.factor = self.add_weight(name="factor", shape=(), initializer="ones")

    def call(self, x):
        return x * self.factor

    def compute_output_shape(self, input_shape):
        return input_shape


@keras.saving.register_keras_serializable("ssdn_tf_test")
class WrongShape(Scale):
    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], 7)


@keras.saving.register_keras_serializable("ssdn_tf_test")
class WrongDtype(Scale):
    def call(self, x):
        return ops.cast(x * self.factor, "float64")


@keras.saving.register_keras_serializable("ssdn_tf_test")
class ForgetfulConfig(Scale):
    def __init__(self, power=1.0, **kwargs):
        super().__init__(**kwargs)
        self.power = power

    def call(self, x):
        return super().call(x) ** self.power

    def get_config(self):
        config = super().get_config()
        config.pop("power", None)
        return config


@keras.saving.register_keras_serializable("ssdn_tf_test")
class InfiniteGradient(Scale):
    def call(self, x):
        return ops.sqrt(x * self.factor * 0.0)


@keras.saving.register_keras_serializable("ssdn_tf_test")
class AddsALoss(Scale):
    def call(self, x):
        self.add_loss(ops.mean(x))
        return super().call(x)


INPUT = np.ones((2, 3), np.float32)


def test_check_layer_accepts_a_layer_that_keeps_the_truths():
    (output,) = support.check_layer(Scale(), INPUT, weights=1)
    assert (output == INPUT).all()


@pytest.mark.parametrize(
    "layer",
    [WrongShape(), WrongDtype(), ForgetfulConfig(power=2.0), InfiniteGradient(), AddsALoss()],
    ids=lambda layer: type(layer).__name__,
)
def test_check_layer_refuses_a_layer_that_breaks_one(layer):
    with pytest.raises(AssertionError):
        support.check_layer(layer, 2 * INPUT, weights=1)


def test_check_layer_counts_weights_and_losses():
    with pytest.raises(AssertionError):
        support.check_layer(Scale(), INPUT, weights=2)
    support.check_layer(AddsALoss(), INPUT, weights=1, losses=1)


def test_z_test_accepts_the_true_mean_and_refuses_one_six_standard_errors_off():
    samples = np.random.default_rng(1).normal(3.0, 2.0, (10_000, 4))
    z = support.z_test(samples, 3.0)
    assert z.shape == (4,)
    with pytest.raises(AssertionError):
        support.z_test(samples, 3.0 + 6 * 2.0 / 100 + np.abs(z).max() * 0.02)


def test_z_is_standard_normal_under_the_truth():
    samples = np.random.default_rng(2).exponential(size=(400, 5_000))
    z = support.z_test(samples, 1.0, limit=10.0)
    # 5,000 z: the std of their std is 1 / sqrt(10,000) = 0.01. An error of n for n - 1 in the
    # variance (0.1 %) is not seen; a forgotten square root or factor is.
    assert abs(z.std() - 1.0) < 0.05


def test_z_test_wants_samples_without_spread_to_be_exact():
    assert support.z_test(np.full((10, 2), 0.5), 0.5).tolist() == [0.0, 0.0]
    with pytest.raises(AssertionError):
        support.z_test(np.full((10, 2), 0.5), 0.5 + 1e-9)


def test_z_test_refuses_samples_that_are_not_numbers():
    with pytest.raises(AssertionError):
        support.z_test(np.full((10, 2), np.nan), 0.5)


@pytest.mark.parametrize("channels", [1, 3])
def test_gauss_hermite_has_the_moments_of_the_gaussian(channels):
    mu, sigma = support.random_prior(3, (), channels)
    x, w = support.gauss_hermite(mu, sigma, nodes=6)
    d = x - mu
    assert x.shape == (6**channels, channels)
    # Polynomials below degree 12 are exact up to rounding.
    np.testing.assert_allclose(w.sum(), 1.0, rtol=1e-13)
    np.testing.assert_allclose(w @ x, mu, rtol=1e-12)
    np.testing.assert_allclose(np.einsum("k,ki,kj", w, d, d), sigma, rtol=1e-11, atol=1e-15)
    fourth = np.einsum("k,ki,ki,kj,kj->ij", w, d, d, d, d)
    variance = np.diag(sigma)
    np.testing.assert_allclose(fourth, np.outer(variance, variance) + 2 * sigma**2, rtol=1e-11)


@pytest.mark.parametrize("channels", [1, 3])
def test_random_prior_is_a_correlated_prior_and_a_function_of_its_seed(channels):
    mu, sigma = support.random_prior(4, (2, 5), channels)
    assert mu.shape == (2, 5, channels) and sigma.shape == (2, 5, channels, channels)
    assert (mu >= 0.25).all() and (mu <= 0.75).all()
    assert (np.linalg.eigvalsh(sigma) > 0).all()
    assert channels == 1 or (np.abs(sigma[..., 0, 1]) > 0).all()
    assert (support.random_prior(4, (2, 5), channels)[1] == sigma).all()
    assert (support.random_prior(5, (2, 5), channels)[1] != sigma).any()
    np.testing.assert_allclose(support.random_prior(4, (2, 5), channels, std=0.2)[1], 4 * sigma)


def test_gradients_are_those_of_the_sum():
    x, y = support.tensor([1.0, 2.0]), support.tensor([3.0, 5.0])
    dx, dy = support.gradients(lambda x, y: x * x * y, x, y)
    assert dx.tolist() == [6.0, 20.0] and dy.tolist() == [1.0, 4.0]


def test_weight_gradients_are_those_of_the_weights():
    layer = Scale()
    x = support.tensor(3 * INPUT, "float32")
    layer(x)
    (gradient,) = support.weight_gradients(layer, x)
    assert gradient == 18.0
