"""Settings that must precede TensorFlow and Keras, and the seeds of every test."""

import os

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("SSDN_PRECISION", "float32")  # on every CPU; what tests bfloat16 says so
os.environ.setdefault("JAX_ENABLE_X64", "1")  # read by JAX alone: with KERAS_BACKEND=jax

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several test processes share the cores: threads of each would mostly wait for those of the others.
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import importlib.util  # noqa: E402
from unittest import mock  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402

# Files that take longest: they start first, so that no test process waits at the end for another one's last file.
FIRST = [
    "training/test_distribution.py",
    "training/test_run.py",
    "networks/test_unet.py",
    "serving/test_saved_model.py",
    "denoisers/test_models.py",
    "training/test_resumption.py",
    "end_to_end/test_jax.py",
    "commands/test_export.py",
    "training/test_workers.py",
    "end_to_end/test_reference.py",
]


def pytest_collection_modifyitems(items):
    places = {f"tests/{name}": place for place, name in enumerate(FIRST)}
    items.sort(key=lambda item: places.get(item.nodeid.partition("::")[0], len(FIRST)))


@pytest.fixture(scope="session", autouse=True)
def caches():
    """`keras.utils.set_random_seed` keeps TensorFlow's caches.

    It sets TensorFlow's own seed too, which empties them: whatever has run before is prepared again, for seconds in
    all. Nothing in the package or its tests draws from TensorFlow's generators (test_imports.py).
    """
    if importlib.util.find_spec("tensorflow") is None:
        yield
    else:
        with mock.patch("tensorflow.random.set_seed"):
            yield


@pytest.fixture(autouse=True)
def seeds():
    """Every test starts from the same seeds, and with no warning said, in whatever order the tests run."""
    import keras

    from ssdn_tf.data import images

    images.said.clear()

    np.random.seed(0)
    keras.utils.set_random_seed(0)


@pytest.fixture
def eager(monkeypatch):
    """Predictors without tracing, which would take most of the time of some tests."""
    from ssdn_tf.inference import predictor

    def compiled(model):
        model.compile(run_eagerly=True)
        return model

    monkeypatch.setattr(predictor, "_compiled", compiled)
