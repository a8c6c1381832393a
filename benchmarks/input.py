"""Training samples per second, without the network: crops of 256x256, decoded, cut and made noisy.

    python benchmarks/input.py               photographs of 500x375, made from those in scikit-image
    python benchmarks/input.py FOLDER        your own pictures

    one thread    data.Samples alone
    tf.data       batches.batches under TensorFlow, 4 crops per batch
    PyDataset     batches.batches under JAX, 4 crops per batch

Each of the three runs in a process of its own. Pictures come from memory, or from their files each time.

    core         crops per second of CPU time: what one core makes, also on a machine that others use
    wall         crops per second of the clock, from all cores
    relative     "core" against one thread, with the same noise and pictures

The line below the table is what the start of a training costs per file whose picture is not kept in memory.
"""

import itertools
import os
import pathlib
import tempfile
import time

import harness

BATCH = 4
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
    from ssdn_tf.data import batches

    found = batches.batches(samples, BATCH, 0, 10**6)
    if carrier == "tf.data":
        return iter(found)
    # Keras's own reader of a PyDataset, which has no public name.
    from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter

    return iter(PyDatasetAdapter(found, shuffle=False).get_jax_iterator())


def rates(carrier, store, noise, crop, seconds):
    """Crops (per second of CPU time, per second of the clock)."""
    from ssdn_tf.data import samples as data
    from ssdn_tf.denoisers import experiments, models

    experiment = experiments.Experiment(noise, *LEVELS[noise])
    batches = stream(carrier, data.Samples(store, experiment, models.noise_model(experiment), crop=crop, seed=0))
    for _ in range(8):  # starts threads, and fills what is read ahead
        next(batches)
    wall, cpu, crops = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - wall < seconds:
        next(batches)
        crops += BATCH
    return crops / (time.process_time() - cpu), crops / (time.perf_counter() - wall)


def case(carrier, folder, crop, seconds):
    """[(noise, store, core, wall), ...]"""
    from ssdn_tf.data import images
    from ssdn_tf.data import samples as data

    stores = {name: data.ImageStore(images.find(folder), crop, memory_mb) for name, memory_mb in STORES.items()}
    combinations = itertools.product(STORES, LEVELS)
    yield [(noise, store, *rates(carrier, stores[store], noise, crop, seconds)) for store, noise in combinations]


def rows(**options):
    alone = {}
    for carrier, backend in CARRIERS.items():
        environment = {"KERAS_BACKEND": backend}
        for noise, store, core, wall in harness.first_result(environment=environment, carrier=carrier, **options):
            relative = core / alone.setdefault((noise, store), core)
            yield carrier, noise, store, f"{core:.0f}", f"{wall:.0f}", f"{relative:.2f}"


def start_cost(folder, crop, repeats=10):
    """Milliseconds per file of making a store that keeps nothing."""
    from ssdn_tf.data import images
    from ssdn_tf.data import samples as data

    files = images.find(folder) * repeats
    return 1e3 * harness.seconds(lambda: data.ImageStore(files, crop, 0)) / len(files)


def run(arguments):
    crop, seconds = (64, 0.3) if arguments.quick else (256, 5.0)
    with tempfile.TemporaryDirectory() as made:
        folder = arguments.folder or made
        if not arguments.folder:
            make_pictures(pathlib.Path(made), 6 if arguments.quick else 48)
        print(f"crops of {crop}x{crop}, {os.cpu_count()} cores\n")
        columns = ["carried by", "noise", "pictures from", "core", "wall", "relative"]
        harness.print_table(columns, rows(folder=folder, crop=crop, seconds=seconds))
        print(f"\nstart: {start_cost(folder, crop):.2f} ms per file")


if __name__ == "__main__":
    harness.main(__doc__, run, case, {"folder": {"nargs": "?", "metavar": "FOLDER", "help": "of pictures"}})
