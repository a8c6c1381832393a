"""The same command under KERAS_BACKEND=jax. Subprocesses, because a process has one backend."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import support

from ssdn_tf.commands import cli, train, train_flags
from ssdn_tf.inference import predictor

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None and not os.environ.get("SSDN_REQUIRE_JAX"), reason="no jax"
)


WITHOUT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "tensorboard"):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)

sys.meta_path.insert(0, Absent())
"""


def without_tensorflow(folder):
    """A folder for PYTHONPATH, with which Python finds no TensorFlow."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(WITHOUT)
    return folder


def test_the_machine_without_tensorflow_has_none(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(without_tensorflow(tmp_path))}
    command = [sys.executable, "-c", "import tensorflow"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and "No module named 'tensorflow'" in done.stderr


TRAIN = """
import support  # for the smallest network
from ssdn_tf.commands import train
train.train()
"""


def flags(folder, pictures):
    return [
        "--noise=gaussian", "--sigma=25", f"--train_data={pictures}", f"--run_dir={folder}", "--train_images=12",
        "--stages=32x2", "--network=tiny", "--learning_rate=1e-3", "--validation=none", "--parameter_source=global",
        "--parameter_start=50", "--parameter_rate=10", "--report_images=4",
    ]  # fmt: skip


def train_under_jax(folder, pictures):
    """The process of a training where TensorFlow is not installed."""
    tests = os.path.dirname(support.__file__)
    environment = os.environ | {"KERAS_BACKEND": "jax", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiles faster
    environment["PYTHONPATH"] = os.pathsep.join([str(without_tensorflow(folder.parent / "without")), tests])
    command = [sys.executable, "-c", TRAIN, *flags(folder, pictures)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def train_here(folder, pictures):
    assert cli.execute(train.main, train_flags.define, "TEXT", ["x.py", *flags(folder, pictures), "--jit=off"]) == 0
    return history(folder)


def history(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_a_short_training_under_jax_without_tensorflow_equals_the_one_under_tensorflow(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    support.write_pictures(pictures, 3, 5, 5)
    process = train_under_jax(tmp_path / "jax", pictures)
    ours = train_here(tmp_path / "tf", pictures)
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 0, printed
    other = history(tmp_path / "jax")
    assert [row["images"] for row in other] == [4, 8, 12]
    # Two batches a report: in another order (which is what Keras's own threads give) the second row
    # would differ by 1.1e-4.
    for row, expected in zip(other, ours, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert row["noise_level"] == pytest.approx(expected["noise_level"], rel=1e-6)
    assert abs(other[-1]["noise_level"] - 50) > 0.1  # the level has moved
    # A run made under JAX is read, and goes on, under TensorFlow.
    loaded = predictor.from_run(tmp_path / "jax")
    assert loaded.source.details["position"]["step"] == 6 and len(loaded.model.variables) == 15
    assert train_here(tmp_path / "jax", pictures) == other


FIT = """
import json, sys
import numpy as np
from keras import ops
from ssdn_tf.noise.prior import Prior
from ssdn_tf.noise.registry import MODELS

with np.load(sys.argv[1]) as file:
    noisy, mu_x, sigma_x = (file[name] for name in ("noisy", "mu_x", "sigma_x"))
found = {name: model().fit(noisy, Prior(mu_x, sigma_x)) for name, model in MODELS.items()}
print(json.dumps({name: ops.convert_to_numpy(parameter).tolist() for name, parameter in found.items()}))
"""


@pytest.mark.slow
def test_the_fit_finds_the_same_parameters_under_jax(tmp_path):
    rng = np.random.default_rng(0)
    mu_x = rng.uniform(0.2, 0.8, (1, 64, 64, 3)).astype(np.float32)
    std = (mu_x / 40 + 0.05**2 + 0.03**2) ** 0.5  # photon noise, readout noise, and what the prior does not know
    noisy = (mu_x + std * rng.standard_normal(mu_x.shape)).astype(np.float32)
    sigma_x = np.broadcast_to(0.03**2 * np.eye(3, dtype=np.float32), (*mu_x.shape, 3))
    np.savez(tmp_path / "pixels.npz", noisy=noisy, mu_x=mu_x, sigma_x=sigma_x)
    command = [sys.executable, "-c", FIT, str(tmp_path / "pixels.npz")]
    found = {}
    for backend in ("jax", "tensorflow"):
        environment = os.environ | {"KERAS_BACKEND": backend, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        found[backend] = json.loads(done.stdout)
    assert found["jax"].keys() == found["tensorflow"].keys() and len(found["jax"]) >= 4
    # Near its maximum the likelihood of two numbers is flat: float32 leaves them open to 0.4 %.
    for name, parameter in found["tensorflow"].items():
        np.testing.assert_allclose(found["jax"][name], parameter, rtol=1e-2, err_msg=name)
    gain, readout = np.ravel(found["jax"]["poisson_gaussian"])
    assert gain == pytest.approx(1 / 40, rel=0.1) and readout == pytest.approx(0.05, rel=0.1)
