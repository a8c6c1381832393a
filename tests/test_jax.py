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


STEPS = 20
# The networks are float32; the algebra is float64, under JAX because conftest.py sets JAX_ENABLE_X64=1.
LOSSES, WEIGHTS = 1e-6, 1e-5  # relative (measured 1.1e-7) and absolute (2.8e-7)
PROGRAM = """
import json, sys
import keras, numpy as np
from ssdn_tf import data, denoisers, experiments
from ssdn_tf.optimizers import SkippingAdam

def run(seed):
    experiment = experiments.Experiment()
    rng = np.random.default_rng(seed)
    pictures = [np.kron(rng.integers(0, 256, (6, 6, 3)), np.ones((8, 8, 1))).astype(np.uint8) for _ in range(4)]
    samples = data.Samples(pictures, experiment, denoisers.noise_model(experiment), crop=32, seed=seed)
    keras.utils.set_random_seed(0)
    model = denoisers.build(experiment, width=4).training
    first = {v.path: np.array(v) for v in model.variables}
    optimizer = SkippingAdam(3e-4, beta_1=0.9, beta_2=0.99, epsilon=1e-8)
    model.compile(optimizer=optimizer, jit_compile=keras.backend.backend() == "jax")
    losses = []
    for step in range(20):
        model.reset_metrics()
        losses.append(float(model.train_on_batch(samples.batch(4 * step, 4))))
    return first, losses, {v.path: np.array(v) for v in model.variables}

arrays = {}
for seed in map(int, sys.argv[2:]):
    first, losses, last = run(seed)
    arrays |= {f"{seed} first {k}": v for k, v in first.items()} | {f"{seed} last {k}": v for k, v in last.items()}
    arrays[f"{seed} losses"] = np.array(losses)
np.savez(sys.argv[1], **arrays)
"""


def twenty_steps(file, backend, *seeds):
    """{seed: (initial weights, losses [20], final weights)} of trainings on the data of each seed."""
    environment = os.environ | {"KERAS_BACKEND": backend}
    command = [sys.executable, "-c", PROGRAM, str(file), *map(str, seeds)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    with np.load(file) as arrays:
        part = lambda prefix: {k.removeprefix(prefix): arrays[k] for k in arrays.files if k.startswith(prefix)}
        return {seed: (part(f"{seed} first "), arrays[f"{seed} losses"], part(f"{seed} last ")) for seed in seeds}


def largest(one, other):
    return max(np.abs(one[name] - other[name]).max() for name in one)


def test_both_backends_start_from_the_same_weights_and_stay_together(tmp_path):
    ours = twenty_steps(tmp_path / "tf.npz", "tensorflow", 0, 1)
    theirs = twenty_steps(tmp_path / "jax.npz", "jax", 0)
    (first, losses, last), (their_first, their_losses, their_last) = ours[0], theirs[0]
    assert first.keys() == their_first.keys()
    assert all(np.array_equal(first[name], their_first[name]) for name in first)
    apart, other = np.abs(their_losses / losses - 1).max(), np.abs(ours[1][1] / losses - 1).max()
    print(f"losses {apart:.2g}, weights {largest(last, their_last):.2g}; moved {largest(last, first):.2g}")
    assert apart < LOSSES and largest(last, their_last) < WEIGHTS
    # The weights have moved, and other data would be seen.
    assert largest(last, first) > 1e-3
    assert other > 100 * LOSSES and largest(last, ours[1][2]) > 100 * WEIGHTS
    assert all(np.array_equal(first[name], ours[1][0][name]) for name in first)


def test_a_short_training_under_jax_equals_the_one_under_tensorflow(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        blocks = np.kron(rng.integers(0, 256, (5, 5, 3)), np.ones((8, 8, 1)))
        Image.fromarray(blocks.astype(np.uint8)).save(pictures / f"{i}.png")
    ours = train(tmp_path / "tf", "tensorflow", pictures)
    other = train(tmp_path / "jax", "jax", pictures)
    assert [row["images"] for row in other] == [4, 8, 12]
    # Two batches a report: in another order (which is what Keras's own threads give) the second row
    # would differ by 1.1e-4.
    for row, expected in zip(other, ours, strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert row["noise_level"] == pytest.approx(expected["noise_level"], rel=1e-6)
    assert abs(other[-1]["noise_level"] - 50) > 0.1  # the level has moved
    # A run made under JAX is read, and goes on, under TensorFlow.
    _, model, position = training.load_inference(tmp_path / "jax")
    assert position["step"] == 6 and len(model.variables) == 41
    again = train(tmp_path / "jax", "tensorflow", pictures)
    assert again == other
