"""Settings that must precede TensorFlow and Keras, and the seeds of every test."""

import os

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("JAX_ENABLE_X64", "1")  # read by JAX alone: with KERAS_BACKEND=jax

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several test processes share the cores: threads of each would mostly wait for those of the others.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import numpy as np  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture(autouse=True)
def seeds():
    """Every test starts from the same seeds, in whatever order the tests run."""
    import keras

    np.random.seed(0)
    keras.utils.set_random_seed(0)
