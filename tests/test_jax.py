"""The same command under KERAS_BACKEND=jax. Subprocesses, because a process has one backend."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ssdn_tf import training

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("jax") is None and not os.environ.get("SSDN_REQUIRE_JAX"), reason="no jax"
)


def train(folder, backend, pictures, *flags):
    command = [
        sys.executable, "train.py", "--noise=gaussian", "--sigma=25", f"--train_data={pictures}", f"--run_dir={folder}",
        "--train_images=12", "--batch_size=2", "--crop=32", "--width=2", "--learning_rate=1e-3",
        "--parameter_source=global", "--parameter_start=50", "--parameter_rate=10", "--report_images=4", *flags,
    ]  # fmt: skip
    environment = os.environ | {"KERAS_BACKEND": backend}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_a_short_training_under_jax_equals_the_one_under_tensorflow(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        blocks = np.kron(rng.integers(0, 256, (5, 5, 3)), np.ones((8, 8, 1)))
        Image.fromarray(blocks.astype(np.uint8)).save(pictures / f"{i}.png")
    ours = train(tmp_path / "tf", "tensorflow", pictures)
    other = train(tmp_path / "jax", "jax", pictures)
    # Both start from the weights of their own generators; what they see is the same.
    assert [row["images"] for row in other] == [4, 8, 12]
    assert all(np.isfinite(row["loss"]) for row in other)
    assert abs(other[-1]["noise_level"] - 50) > 0.1  # the level has moved
    # A run made under JAX is read, and goes on, under TensorFlow.
    _, model, position = training.load_inference(tmp_path / "jax")
    assert position["step"] == 6 and len(model.variables) == 41
    again = train(tmp_path / "jax", "tensorflow", pictures)
    assert again == other and len(ours) == 3
