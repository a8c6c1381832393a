"""What it costs to train one network with two workers instead of two networks apart.

    python benchmarks/scaling.py

Each process has one core and takes 2 crops of 64x64 a step. Apart, the two know nothing of each other; as
workers they exchange gradients over loopback after each step; the third row is one process on both cores with
two CPU devices, and the last one device on both cores. The kinds alternate, and the best round of each counts; of
a round, the median step of the slower process, as other work on a shared machine hits single steps.
"""

import os

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import json
import pathlib
import socket
import statistics
import subprocess
import sys
import time

import harness

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

CROP, SHARE, STEPS, ROUNDS = 64, 2, 24, 3
KINDS = {
    "two processes apart": [{"core": 0, "batch": SHARE}, {"core": 1, "batch": SHARE}],
    "two workers": [{"core": 0, "batch": 2 * SHARE, "worker": 0}, {"core": 1, "batch": 2 * SHARE, "worker": 1}],
    "two CPU devices": [{"batch": 2 * SHARE, "devices": 2}],
    "one device": [{"batch": 2 * SHARE}],
}


def train(core=None, batch=4, devices=1, ports=None, worker=None):
    """Seconds a step: the median, without the first ones."""
    if core is not None:
        os.sched_setaffinity(0, {core})
    if worker is not None:
        cluster = {"worker": [f"localhost:{port}" for port in ports]}
        os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": worker}})
    import keras

    from ssdn_tf.commands import cli  # noqa: F401  (sets up TensorFlow's log level)
    from ssdn_tf.data import batches
    from ssdn_tf.data import samples as data
    from ssdn_tf.denoisers import experiments, models
    from ssdn_tf.training import distribution
    from ssdn_tf.training.optimizers import SkippingAdam

    if devices > 1:
        distribution.split_cpu(devices)
    places = distribution.make("auto", batch)
    experiment = experiments.Experiment()
    store = data.ImageStore(data.sample_photographs()[0], CROP)
    samples = data.Samples(store, experiment, models.noise_model(experiment), crop=CROP, seed=0)
    with places.scope():
        model = models.build(experiment).training
        optimizer = SkippingAdam(3e-4)
        optimizer.build(model.trainable_variables)
    model = distribution.training_model(model, places, optimizer=optimizer, jit_compile=True)
    ends = []
    clock = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs=None: ends.append(time.perf_counter()))
    feed = batches.batches(samples, batch, 0, STEPS, places.strategy)
    model.fit(feed, steps_per_epoch=STEPS, verbose=0, shuffle=False, callbacks=[clock])
    return statistics.median(end - begin for begin, end in zip(ends[3:], ends[4:]))


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for s in sockets:
        s.bind(("localhost", 0))
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


def measure(cases):
    """Seconds a step of processes that run at the same time: the slowest."""
    ports = free_ports(2)
    commands = [
        [sys.executable, __file__, "--case", json.dumps(case | ({"ports": ports} if "worker" in case else {}))]
        for case in cases
    ]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **streams) for command in commands]
    seconds = []
    for process in processes:
        out, err = process.communicate()
        line = [text for text in out.splitlines() if text.startswith("RESULT ")]
        if not line:
            sys.exit(f"{cases} failed:\n{err}")
        seconds.append(float(line[0][7:]))
    return max(seconds)


def main():
    if len(sys.argv) == 3 and sys.argv[1] == "--case":
        print(f"RESULT {train(**json.loads(sys.argv[2]))}", flush=True)
        os._exit(0)
    best = dict.fromkeys(KINDS, float("inf"))
    for _ in range(ROUNDS):
        for kind, cases in KINDS.items():
            best[kind] = min(best[kind], measure(cases))
    apart = best["two processes apart"]
    print(f"4 crops of {CROP}x{CROP} a step on two cores\n")
    print("| | seconds a step | against two processes apart |\n|---|---|---|")
    for kind, seconds in best.items():
        print(f"| {kind} | {seconds:.3f} | {seconds / apart - 1:+.1%} |")


if __name__ == "__main__":
    harness.help_or_run(main, __doc__)
