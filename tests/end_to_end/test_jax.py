"""The same command under KERAS_BACKEND=jax. Subprocesses, because a process has one backend."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import support

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


def train(folder, backend, pictures, *flags):
    command = [
        sys.executable, "train.py", "--noise=gaussian", "--sigma=25", f"--train_data={pictures}", f"--run_dir={folder}",
        "--train_images=12", "--stages=32x2", "--width=2", "--learning_rate=1e-3", "--validation=none",
        "--parameter_source=global", "--parameter_start=50", "--parameter_rate=10", "--report_images=4", *flags,
    ]  # fmt: skip
    environment = os.environ | {"KERAS_BACKEND": backend}
    if backend == "jax":
        environment["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # compiles faster
        environment["PYTHONPATH"] = str(without_tensorflow(folder.parent / "without"))
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_a_short_training_under_jax_without_tensorflow_equals_the_one_under_tensorflow(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    support.write_pictures(pictures, 3, 5, 5)
    ours = train(tmp_path / "tf", "tensorflow", pictures, "--jit=off")
    other = train(tmp_path / "jax", "jax", pictures)
    assert [row["images"] for row in other] == [4, 8, 12]
    # Two batches a report: in another order (which is what Keras's own threads give) the second row
    # would differ by 1.1e-4.
    for row, expected in zip(other, ours, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert row["noise_level"] == pytest.approx(expected["noise_level"], rel=1e-6)
    assert abs(other[-1]["noise_level"] - 50) > 0.1  # the level has moved
    # A run made under JAX is read, and goes on, under TensorFlow.
    loaded = predictor.from_run(tmp_path / "jax")
    assert loaded.source.details["position"]["step"] == 6 and len(loaded.model.variables) == 31
    again = train(tmp_path / "jax", "tensorflow", pictures)
    assert again == other
