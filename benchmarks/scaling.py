"""What it costs that two workers train one network, against two trainings that know nothing of each other.

    python benchmarks/scaling.py

    two processes apart   each has one core and takes 2 crops of 64x64 per step
    two workers           the same, but they exchange their gradients after each step
    two CPU devices       one process on both cores, with a replica on each device
    one device            one process on both cores

All rows take 4 crops per step together. They alternate, and the best round of each counts. The time of a round is the
median step of the slower process. The last column is the time beyond that of the first row.
"""

import concurrent.futures
import functools
import itertools
import json
import os
import socket
import statistics
import time

import harness

SHARE = 2
KINDS = {
    "two processes apart": [{"core": 0, "batch": SHARE}, {"core": 1, "batch": SHARE}],
    "two workers": [{"core": 0, "batch": 2 * SHARE, "worker": 0}, {"core": 1, "batch": 2 * SHARE, "worker": 1}],
    "two CPU devices": [{"batch": 2 * SHARE, "devices": 2}],
    "one device": [{"batch": 2 * SHARE}],
}


def case(batch, crop, steps, features, ports, core=None, devices=1, worker=None):
    """Seconds per step: the median, without the first ones."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    if worker is not None:
        cluster = {"worker": [f"localhost:{port}" for port in ports]}
        os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": worker}})
    import keras

    from ssdn_tf.data import batches
    from ssdn_tf.data import samples as data
    from ssdn_tf.denoisers import experiments, models
    from ssdn_tf.training import distribution
    from ssdn_tf.training.optimizers import SkippingAdam

    if devices > 1:
        distribution.split_cpu(devices)
    places = distribution.make("auto", [batch])
    experiment = experiments.Experiment(width=features)
    store = data.ImageStore(data.sample_photographs()[0], crop)
    samples = data.Samples(store, experiment, models.noise_model(experiment), crop=crop, seed=0)
    with places.scope():
        model = models.build(experiment).training
        optimizer = SkippingAdam(3e-4)
        optimizer.build(model.trainable_variables)
    model = distribution.training_model(model, places, optimizer=optimizer, jit_compile=True)
    ends = []
    clock = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs=None: ends.append(time.perf_counter()))
    feed = batches.batches(samples, batch, 0, steps, places.strategy)
    model.fit(feed, steps_per_epoch=steps, verbose=0, shuffle=False, callbacks=[clock])
    yield statistics.median(end - begin for begin, end in itertools.pairwise(ends[3:]))


def measure(processes, **options):
    """Seconds per step of processes that run at the same time: the slowest."""
    with socket.create_server(("localhost", 0)) as one, socket.create_server(("localhost", 0)) as other:
        ports = [server.getsockname()[1] for server in (one, other)]
    with concurrent.futures.ThreadPoolExecutor(len(processes)) as pool:
        return max(pool.map(lambda process: harness.first_result(ports=ports, **options, **process), processes))


def run(arguments):
    crop, steps, features, rounds = (32, 6, 4, 1) if arguments.quick else (64, 24, None, 3)
    options = {"crop": crop, "steps": steps, "features": features}
    found = harness.in_turns({kind: functools.partial(measure, p, **options) for kind, p in KINDS.items()}, rounds)
    apart = min(found["two processes apart"])
    rows = [(kind, f"{min(times):.3f}", f"{min(times) / apart - 1:+.1%}") for kind, times in found.items()]
    print(f"{2 * SHARE} crops of {crop}x{crop} per step on two cores\n")
    harness.print_table(["", "seconds per step", "against two processes apart"], rows)


if __name__ == "__main__":
    harness.main(__doc__, run, case)
