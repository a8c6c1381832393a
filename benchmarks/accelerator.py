"""What a GPU does with a training step: crops a second, share of its own matrix rate, memory; and what surrounds it.

    python benchmarks/accelerator.py --output=accelerator.json                       TensorFlow on a GPU
    KERAS_BACKEND=jax python benchmarks/accelerator.py --output=accelerator.json     where TensorFlow sees none
    KERAS_BACKEND=jax python benchmarks/accelerator.py --toy                         on a CPU, to see that it runs

    train       full steps, optimizer included, on batches that are in memory already
    matrix      products of two square matrices, the largest rate of several sizes
    algebra     the loss from the network's components and its derivative by them, alone
    input       samples with noise from all cores, without the network

"share" is the multiply-adds of the plain network (three passes) that the crops a second come to, over the matrix
rate in the same precision. 2,000,000 crops are the paper's schedule for Gaussian noise.
"""

import os

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import json
import math
import pathlib
import subprocess
import sys
import tempfile
import time

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parent.parent), str(pathlib.Path(__file__).resolve().parent)]

import numpy as np  # noqa: E402

_LONGEST = 600  # seconds of one measurement
PRECISIONS = ("float32", "bfloat16")
FULL = {"crop": 256, "batches": (4, 16, 64), "sizes": (4096, 8192, 16384), "seconds": 5.0, "width": 48}
TOY = {"crop": 64, "batches": (1, 2), "sizes": (256, 512), "seconds": 0.5, "width": 8}


def seconds_each(function, seconds):
    """Time of one call of many. `function` returns a device value; only the last is waited for."""
    from keras import ops

    def wait(value):
        return float(ops.sum(ops.cast(value, "float32")))

    wait(function())
    wait(function())
    begin = time.perf_counter()
    wait(function())
    count = max(2, math.ceil(seconds / max(1e-6, time.perf_counter() - begin)))
    begin = time.perf_counter()
    for _ in range(count):
        value = function()
    wait(value)
    return (time.perf_counter() - begin) / count


def compiled(function):
    """`function`, compiled by XLA."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    import tensorflow as tf

    return tf.function(function, jit_compile=True)


def matrix_rate(precision, sizes, seconds):
    """Multiply-adds a second."""
    from keras import ops

    product = compiled(ops.matmul)

    def rate(size):
        a = ops.cast(np.random.default_rng(0).standard_normal((size, size)).astype("float32"), precision)
        return size**3 / seconds_each(lambda: product(a, a), seconds / 5)

    return max(map(rate, sizes))


def training_row(precision, batch, settings):
    """Crops a second of full steps of `fit`."""
    import keras

    from ssdn_tf.denoisers import experiments, models
    from ssdn_tf.training.optimizers import SkippingAdam

    crop = settings["crop"]
    model = models.build(experiments.Experiment(width=settings["width"]), precision=precision).training
    model.compile(optimizer=SkippingAdam(3e-4), jit_compile=True)
    rng = np.random.default_rng(0)
    one = {
        "noisy": rng.random((batch, crop, crop, 3), dtype=np.float32),
        "noise_parameter": np.full((batch, 1, 1, 1), 0.1, np.float32),
    }
    ends = []
    clock = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs=None: ends.append(time.perf_counter()))

    class Same(keras.utils.PyDataset):
        def __init__(self, steps):
            super().__init__()
            self.steps = steps

        def __len__(self):
            return self.steps

        def __getitem__(self, i):
            return one

    model.fit(Same(4), verbose=0, callbacks=[clock])
    step = ends[-1] - ends[-2]
    steps = min(10_000, max(4, math.ceil(settings["seconds"] / max(step, 1e-4))))
    begin = time.perf_counter()
    model.fit(Same(steps), verbose=0)  # waits for the last step, as it returns the loss
    return batch * steps / (time.perf_counter() - begin)


def algebra_rate(batch, settings):
    """Pixels a second of loss and derivative, from components that are on the device."""
    import keras
    from keras import ops

    from ssdn_tf.denoisers import losses
    from ssdn_tf.noise import prior
    from ssdn_tf.noise.gaussian import GaussianNoise

    side, dtype = settings["crop"], losses.algebra_dtype()
    model = GaussianNoise()
    rng = np.random.default_rng(0)
    noisy = ops.cast(rng.random((batch, side, side, 3), dtype=np.float32), dtype)
    components = ops.convert_to_tensor(rng.random((batch, side, side, 9), dtype=np.float32))
    parameter = ops.cast(np.full((batch, 1, 1, 1), 0.1, np.float32), dtype)

    def loss(components):
        predicted = prior.from_components(ops.cast(components, dtype), 3, False)
        return ops.mean(model.marginal_nll(noisy, predicted, parameter))

    if keras.backend.backend() == "jax":
        import jax

        derivative = jax.jit(jax.grad(loss))
    else:
        import tensorflow as tf

        @tf.function(jit_compile=True)
        def derivative(components):
            with tf.GradientTape() as tape:
                tape.watch(components)
                value = loss(components)
            return tape.gradient(value, components)

    return batch * side * side / seconds_each(lambda: derivative(components), settings["seconds"] / 5), dtype


def input_rate(settings):
    """{noise: crops a second} that the carrier of the backend delivers, from photographs in memory."""
    from input import LEVELS, make_pictures

    from ssdn_tf.data import batches as feeds
    from ssdn_tf.data import images
    from ssdn_tf.data import samples as data
    from ssdn_tf.denoisers import experiments, models

    rates = {}
    with tempfile.TemporaryDirectory() as folder:
        make_pictures(pathlib.Path(folder), 24)
        store = data.ImageStore(images.find(folder), settings["crop"])
    for name, levels in LEVELS.items():
        experiment = experiments.Experiment(name, *levels)
        samples = data.Samples(store, experiment, models.noise_model(experiment), crop=settings["crop"], seed=0)
        feed, crops = feeds.batches(samples, 4, 0, 10**6), 0
        batches = iter(feed) if not hasattr(feed, "__getitem__") else (feed[i] for i in range(10**6))
        for _ in range(8):
            next(batches)
        begin = time.perf_counter()
        while time.perf_counter() - begin < settings["seconds"]:
            next(batches)
            crops += 4
        rates[name] = crops / (time.perf_counter() - begin)
    return rates


def device():
    """(name, bytes in use at most so far, or None where that is not told)."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        first = jax.devices()[0]
        return first.device_kind, (first.memory_stats() or {}).get("peak_bytes_in_use")
    import tensorflow as tf

    gpus = tf.config.list_physical_devices("GPU")
    if not gpus:
        return "cpu", None
    name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
    return name, tf.config.experimental.get_memory_info("GPU:0")["peak"]


def case(name, precision, batch, settings):
    """One measurement, in a process of its own: peak memory never falls again."""
    if name == "matrix":
        return {"multiply_adds_per_second": matrix_rate(precision, settings["sizes"], settings["seconds"])}
    if name == "train":
        crops = training_row(precision, batch, settings)
        return {"crops_per_second": crops, "peak_bytes": device()[1]}
    if name == "algebra":
        rate, dtype = algebra_rate(batch, settings)
        return {"pixels_per_second": rate, "dtype": dtype}
    return {"crops_per_second": input_rate(settings)}


def run(name, precision, batch, toy):
    """The result of `case`, with device and backend; {"error": ...} where it fails (out of memory, for one)."""
    arguments = json.dumps([name, precision, batch, toy])
    command = [sys.executable, __file__, "--case", arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST)
    except subprocess.TimeoutExpired:
        return {"case": name, "precision": precision, "batch": batch, "error": [f"took more than {_LONGEST} s"]}
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    result = json.loads(lines[0][7:]) if lines else {"error": done.stderr.strip().splitlines()[-1:]}
    return {"case": name, "precision": precision, "batch": batch} | result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", help="JSON with all figures")
    parser.add_argument("--toy", action="store_true", help="small sizes")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case:
        name, precision, batch, toy = json.loads(arguments.case)
        import keras

        from ssdn_tf.commands import cli  # noqa: F401  (sets up TensorFlow's log level)

        result = case(name, precision, batch, TOY if toy else FULL)
        print("RESULT " + json.dumps(result | {"device": device()[0], "backend": keras.backend.backend()}), flush=True)
        os._exit(0)  # the carrier's threads go on fetching
    print(table(arguments.toy, arguments.output))


def table(toy, output):
    """All measurements, as text; `output`, a path or None, gets them as JSON."""
    settings = TOY if toy else FULL
    rates = {p: run("matrix", p, 0, toy) for p in PRECISIONS}
    trained = [run("train", p, batch, toy) for p in PRECISIONS for batch in settings["batches"]]
    algebra, fed = run("algebra", "-", settings["batches"][-1], toy), run("input", "-", 4, toy)
    for row in trained:
        row["share"] = share(row, rates[row["precision"]], settings)
    if output:
        result = {"settings": settings, "matrix": rates, "train": trained, "algebra": algebra, "input": fed}
        pathlib.Path(output).write_text(json.dumps(result, indent=1) + "\n")
    lines = [f"{rates['float32'].get('device')}, {rates['float32'].get('backend')}, {os.cpu_count()} cores", ""]
    lines += [f"matrix {p}: {2e-12 * number(r, 'multiply_adds_per_second'):.4g} TFLOP/s" for p, r in rates.items()]
    side = settings["crop"]
    lines += ["", f"| precision | batch of {side}x{side} | crops/s | share | peak GiB | hours for 2,000,000 |"]
    lines += ["|---|---|---|---|---|---|", *map(row_text, trained)]
    crops = number(algebra, "pixels_per_second") / side**2
    lines += ["", f"algebra ({algebra.get('dtype')}): {crops:.4g} crops/s"]
    lines += [f"input: {', '.join(f'{k} {v:.4g}' for k, v in fed.get('crops_per_second', {}).items())} crops/s"]
    problems = [r for r in (*rates.values(), algebra, fed) if "error" in r]
    lines += [f"{r['case']} {r['precision']} failed: {' '.join(r['error'])[:200]}" for r in problems]
    return "\n".join(lines)


def number(result, key):
    """What was measured, or NaN where the measurement failed."""
    return result.get(key, math.nan)


def share(row, rate, settings):
    """Of the matrix rate; None where a measurement failed."""
    from step import work

    if "error" in row or "error" in rate:
        return None
    crop_work = settings["crop"] ** 2 * 3 * work(width=settings["width"], fused=False)
    return row["crops_per_second"] * crop_work / rate["multiply_adds_per_second"]


def row_text(row):
    if "error" in row:
        return f"| {row['precision']} | {row['batch']} | failed: {' '.join(row['error'])[:80]} | | | |"
    memory = f"{row['peak_bytes'] / 2**30:.2f}" if row["peak_bytes"] else "-"
    rate = row["crops_per_second"]
    part = "-" if row["share"] is None else f"{row['share']:.0%}"
    hours = 2e6 / rate / 3600
    return f"| {row['precision']} | {row['batch']} | {rate:.4g} | {part} | {memory} | {hours:.3g} |"


if __name__ == "__main__":
    main()
