"""What the tests share: statistics, quadrature, random priors, gradients, truths about layers.

Nothing here is believed: test_support.py shows that each helper passes and fails when it should.
"""

import dataclasses
import json
import socket

import keras
import numpy as np
from keras import ops
from PIL import Image

from ssdn_tf.networks.designs import DESIGNS, Design

# Relative accuracy of the package's float64 algebra: under JAX, Keras 3 takes means and
# logaddexp of float64 in float32.
ACCURACY = 1e-9 if keras.backend.backend() == "tensorflow" else 1e-6


def tensor(value, dtype="float64"):
    """Backend tensor of a NumPy value."""
    return ops.convert_to_tensor(np.asarray(value), dtype=dtype)


def array(value):
    """NumPy value of a backend tensor."""
    return ops.convert_to_numpy(value)


def write_pictures(folder, count, rows, columns):
    """`count` PNG files of rows x columns blocks of 8x8 pixels in random colours; returns the folder."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for i in range(count):
        blocks = np.kron(rng.integers(0, 256, (rows, columns, 3)), np.ones((8, 8, 1)))
        Image.fromarray(blocks.astype(np.uint8)).save(folder / f"{i}.png")
    return folder


# The smallest U-Net that has every kind of layer: what most tests wait for is the number of layers, not their size.
DESIGNS["tiny"] = Design(
    width=2, encoder=(1,), bottom=1, decoder=(1,), head=(1,), plain_head=(1,),
    tile=1024, residual=True,
)  # fmt: skip


def tiny(experiment):
    """The experiment with the smallest network."""
    return dataclasses.replace(experiment, network="tiny", width=None)


def narrow(experiment, width):
    """The experiment with a network of another width."""
    return dataclasses.replace(experiment, width=width)


def free_ports(count):
    """`count` different ports of this machine that nothing listens at."""
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("localhost", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def tf_config(ports, index):
    """TF_CONFIG of worker `index` of several on this machine."""
    cluster = {"worker": [f"localhost:{port}" for port in ports]}
    return json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})


def z_test(samples, expected, limit=5.0):
    """Asserts that the mean of samples [K, ...] over axis 0 is `expected`; returns z [...].

    The difference is counted in standard errors of the samples themselves. At |z| < 5 a
    right program fails about once in two million comparisons; a discrepancy is seen where
    it exceeds 5 std(samples) / sqrt(K). Samples without spread must equal `expected`.
    """
    samples = np.asarray(samples, np.float64)
    difference = samples.mean(axis=0) - expected
    error = samples.std(axis=0, ddof=1) / np.sqrt(len(samples))
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(difference == 0, 0.0, difference / error)
    print(f"largest |z| {np.max(np.abs(z)):.2f} of {z.size}, {len(samples)} samples")
    assert np.max(np.abs(z)) < limit, z
    return z


def gauss_hermite(mean, covariance, nodes=30):
    """Points [K, C] and weights [K] with sum(w f(x)) = E f(x), x ~ N(mean [C], covariance [C, C]).

    Exact for polynomials of degree below 2 `nodes` in each channel; K = nodes^C.
    """
    x, w = np.polynomial.hermite_e.hermegauss(nodes)
    w = w / w.sum()
    channels = len(mean)
    grid = np.stack(np.meshgrid(*[x] * channels, indexing="ij"), axis=-1).reshape(-1, channels)
    weights = np.prod(np.stack(np.meshgrid(*[w] * channels, indexing="ij"), axis=-1), axis=-1).ravel()
    return mean + grid @ np.linalg.cholesky(covariance).T, weights


def random_prior(seed, shape, channels, std=0.1):
    """mu_x [*shape, C] in [0.25, 0.75] and correlated sigma_x [*shape, C, C], NumPy float64."""
    rng = np.random.default_rng(seed)
    mu_x = rng.uniform(0.25, 0.75, (*shape, channels))
    a = std * (np.eye(channels) + 0.5 * rng.standard_normal((*shape, channels, channels)))
    return mu_x, a @ np.swapaxes(a, -1, -2)


def gradients(function, *arguments):
    """Gradients of sum(function(*arguments)) with respect to each tensor, as NumPy arrays."""
    if keras.backend.backend() == "jax":
        import jax

        numbers = tuple(range(len(arguments)))
        found = jax.grad(lambda *values: ops.sum(function(*values)), argnums=numbers)(*arguments)
    else:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(arguments)
            total = ops.sum(function(*arguments))
        found = tape.gradient(total, arguments, unconnected_gradients="zero")
    return [array(gradient) for gradient in found]


def weight_gradients(layer, *inputs):
    """Gradients of the sum of a layer's outputs with respect to its weights; None: no path to it."""
    if keras.backend.backend() == "jax":
        import jax

        fixed = [variable.value for variable in layer.non_trainable_variables]

        def total(weights):
            return _sum(layer.stateless_call(weights, fixed, *inputs)[0])

        found = jax.grad(total)([variable.value for variable in layer.trainable_variables])
    else:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            total = _sum(layer(*inputs))
        found = tape.gradient(total, [variable.value for variable in layer.trainable_variables])
    return [None if gradient is None else array(gradient) for gradient in found]


def check_layer(layer, *inputs, weights=0, losses=0):
    """Asserts the boring truths of a layer that is called as `layer(*inputs)` (NumPy arrays).

    1. Through JSON and back it has the same configuration and, with the same weights, the
       same outputs to the bit. 2. It has `weights` trainable weights and no others.
    3. The shapes and dtypes it promises symbolically are those it returns; with an unknown
    batch size too. 4. Called once, it holds `losses` losses. 5. The gradients of its
    weights, or of its inputs if it has none, are finite.

    Returns:
        The outputs, as NumPy.
    """
    inputs = [tensor(value, value.dtype) for value in inputs]
    outputs = [array(output) for output in keras.tree.flatten(layer(*inputs))]
    assert len(layer.losses) == losses, layer.losses

    trainable = [weight.path for weight in layer.trainable_weights]
    others = [weight.path for weight in layer.non_trainable_weights]
    assert len(trainable) == weights and not others, (trainable, others)

    copy = _through_json(layer)
    assert copy.get_config() == layer.get_config()
    copy(*inputs)
    copy.set_weights(layer.get_weights())
    for output, again in zip(outputs, keras.tree.flatten(copy(*inputs)), strict=True):
        np.testing.assert_array_equal(output, array(again))

    for unknown in (False, True):
        promised = _through_json(layer)(*[_symbol(value, unknown) for value in inputs])
        for output, promise in zip(outputs, keras.tree.flatten(promised), strict=True):
            known = [a if b is None else b for a, b in zip(output.shape, promise.shape, strict=True)]
            assert list(output.shape) == known, f"promised {promise.shape}, returned {output.shape}"
            assert unknown or None not in promise.shape, promise.shape
            assert output.dtype == promise.dtype, f"promised {promise.dtype}, returned {output.dtype}"

    found = weight_gradients(layer, *inputs) if weights else gradients(lambda *x: _sum(layer(*x)), *inputs)
    assert all(gradient is not None and np.isfinite(gradient).all() for gradient in found), found
    return outputs


def _sum(outputs):
    return sum(ops.sum(ops.cast(output, "float64")) for output in keras.tree.flatten(outputs))


def _through_json(layer):
    text = json.dumps(keras.saving.serialize_keras_object(layer))
    return keras.saving.deserialize_keras_object(json.loads(text))


def _symbol(value, unknown_batch):
    shape = tuple(value.shape)
    dtype = keras.backend.standardize_dtype(value.dtype)
    return keras.KerasTensor((None, *shape[1:]) if unknown_batch else shape, dtype)
