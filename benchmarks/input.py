"""Training samples a second, without the network: crops of 256x256, decoded, cut and made noisy.

    python benchmarks/input.py               photographs of 500x375, made from those that scikit-image carries
    python benchmarks/input.py FOLDER        pictures of your own

"core" is crops a second of CPU time: what one core makes, also on a machine that others use.
"wall" is crops a second of the clock, from all cores. Each way runs in a process of its own:

    one thread    data.Samples alone
    tf.data       feeds.batches under TensorFlow, batches of 4
    PyDataset     feeds.batches under JAX, batches of 4

Below the table: what the start of a training costs for each file whose picture is not kept in memory.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import itertools
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import harness

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

CROP, BATCH = 256, 4
LEVELS = {"gaussian": (5, 50), "poisson": (5, 50), "impulse": (0, 1)}
STORES = {"memory": 2048, "files": 0}
CARRIERS = {"one thread": "tensorflow", "tf.data": "tensorflow", "PyDataset": "jax"}


def make_pictures(folder, count=48):
    """Colour photographs of 500x375 as JPEG (the usual size in ImageNet, the paper's training set)."""
    import numpy as np
    from PIL import Image

    from ssdn_tf.data import images
    from ssdn_tf.data import samples as data

    sources = [images.to_channels(images.read(file), 3) for file in itertools.chain(*data.sample_photographs())]
    sources = [source for source in sources if source.shape[0] >= 375 and source.shape[1] >= 500]
    rng = np.random.default_rng(0)
    for i in range(count):
        source = sources[i % len(sources)]
        top, left = rng.integers(source.shape[0] - 374), rng.integers(source.shape[1] - 499)
        Image.fromarray(source[top : top + 375, left : left + 500]).save(folder / f"{i:02d}.jpg", quality=92)


def stream(carrier, samples):
    """Endless batches."""
    if carrier == "one thread":
        return (samples.batch(BATCH * step, BATCH) for step in itertools.count())
    from ssdn_tf.data import batches as feeds

    batches = feeds.batches(samples, BATCH, 0, 10**6)
    if carrier == "tf.data":
        return iter(batches)
    # Keras's own reader of a PyDataset, which has no public name.
    from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter

    return iter(PyDatasetAdapter(batches, shuffle=False).get_jax_iterator())


def rates(carrier, samples, seconds=5.0):
    """(crops a second of CPU time, crops a second of the clock)."""
    batches = stream(carrier, samples)
    for _ in range(8):  # starts threads, and fills what is fetched ahead
        next(batches)
    wall, cpu, crops = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - wall < seconds:
        next(batches)
        crops += BATCH
    return crops / (time.process_time() - cpu), crops / (time.perf_counter() - wall)


def measure(carrier, folder):
    """A row of the table for each noise model and store."""
    from ssdn_tf.data import images
    from ssdn_tf.data import samples as data
    from ssdn_tf.denoisers import experiments, models

    files = images.find(folder)
    for (storage, memory_mb), (noise, levels) in itertools.product(STORES.items(), LEVELS.items()):
        store = data.ImageStore(files, CROP, memory_mb)
        experiment = experiments.Experiment(noise, *levels)
        samples = data.Samples(store, experiment, models.noise_model(experiment), crop=CROP, seed=0)
        core, wall = rates(carrier, samples)
        yield f"| {carrier} | {noise} | {storage} | {core:.0f} | {wall:.0f} |"


def start_cost(folder, repeats=10):
    """Milliseconds a file of making a store that keeps nothing."""
    from ssdn_tf.data import images
    from ssdn_tf.data import samples as data

    files = images.find(folder) * repeats
    begin = time.perf_counter()
    data.ImageStore(files, CROP, 0)
    return 1e3 * (time.perf_counter() - begin) / len(files)


def rows(carrier, folder):
    """The rows that a process with the right backend prints."""
    environment = os.environ | {"KERAS_BACKEND": CARRIERS[carrier]}
    command = [sys.executable, __file__, "--case", json.dumps([carrier, str(folder)])]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f"{carrier} failed:\n{done.stderr}")
    return done.stdout


def main():
    if len(sys.argv) == 3 and sys.argv[1] == "--case":
        for row in measure(*json.loads(sys.argv[2])):
            print(row, flush=True)
        os._exit(0)  # the carriers' threads go on fetching
    with tempfile.TemporaryDirectory() as made:
        folder = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else made)
        if len(sys.argv) == 1:
            make_pictures(folder)
        print(f"crops of {CROP}x{CROP}, {os.cpu_count()} cores\n")
        print("| carried by | noise | pictures from | a core | wall |")
        print("|---|---|---|---|---|")
        for carrier in CARRIERS:
            print(rows(carrier, folder), end="", flush=True)
        print(f"\nstart: {start_cost(folder):.2f} ms a file")


if __name__ == "__main__":
    harness.help_or_run(main, __doc__)
