"""What a GPU makes of a training step: crops per second, share of its matrix rate, memory.

    python benchmarks/accelerator.py
    KERAS_BACKEND=jax python benchmarks/accelerator.py        where TensorFlow does not see the GPU

The table is of full training steps of the paper's network, optimizer included, on batches that are in memory. Each row
and each line around the table is a process of its own. (input.py measures what the CPU delivers.)

    matrix      products of two square matrices: the best rate of several sizes
    share       multiply-adds of the plain network (three passes) in the crops of a second, over the matrix rate
                in the same precision
    peak GiB    most memory of the device
    hours       for 2,000,000 crops, the paper's training for Gaussian noise
    algebra     the likelihood and its derivative by the network's outputs, without the network

"nan" stands for what has failed (below the table it says why) and for what the device does not tell.
"""

import collections
import itertools
import math
import os

import harness
import step

PRECISIONS = ("float32", "bfloat16")
FULL = {"crop": 256, "batches": (4, 16, 64), "sizes": (4096, 8192, 16384), "seconds": 5.0, "width": 48}
QUICK = {"crop": 64, "batches": (1, 2), "sizes": (256, 512), "seconds": 0.5, "width": 8}


def seconds_each(function, seconds):
    """Time of one call of many. `function` returns a device value; only the last is waited for."""
    from keras import ops

    def calls(count):
        for _ in range(count):
            value = function()
        float(ops.sum(ops.cast(value, "float32")))

    calls(2)
    count = max(2, math.ceil(seconds / max(1e-6, harness.seconds(lambda: calls(1)))))
    return harness.seconds(lambda: calls(count)) / count


def compiled(function):
    """`function`, compiled by XLA."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        return jax.jit(function)
    import tensorflow as tf

    return tf.function(function, jit_compile=True)


def matrix(settings, precision):
    import numpy as np
    from keras import ops

    product = compiled(ops.matmul)

    def rate(size):
        a = ops.cast(np.random.default_rng(0).standard_normal((size, size)).astype("float32"), precision)
        return size**3 / seconds_each(lambda: product(a, a), settings["seconds"] / 5)

    return {"multiply_adds_per_second": max(map(rate, settings["sizes"]))}


def train(settings, precision, batch):
    """Full steps of `fit`."""
    crop = settings["crop"]
    model, samples = step.prepare("train", batch, crop, crop, precision=precision, features=settings["width"])

    def fit(steps):  # waits for the last step, as it returns the loss
        model.fit(((samples,) for _ in range(steps)), steps_per_epoch=steps, verbose=0)

    fit(4)
    steps = min(10_000, max(4, math.ceil(settings["seconds"] / (harness.seconds(lambda: fit(4)) / 4))))
    crops = batch * steps / harness.seconds(lambda: fit(steps))
    work = 3 * crop**2 * step.work(model.get_layer("unet"), fused=False)
    return {"crops_per_second": crops, "multiply_adds_per_second": crops * work}


def algebra(settings):
    import keras
    import numpy as np
    from keras import ops

    from ssdn_tf.denoisers import noise_layer
    from ssdn_tf.noise import prior
    from ssdn_tf.noise.gaussian import GaussianNoise

    shape, dtype = (settings["batches"][-1], settings["crop"], settings["crop"]), noise_layer.algebra_dtype()
    rng = np.random.default_rng(0)
    noisy = ops.cast(rng.random((*shape, 3), dtype=np.float32), dtype)
    components = ops.convert_to_tensor(rng.random((*shape, 9), dtype=np.float32))
    parameter = ops.cast(np.full((shape[0], 1, 1, 1), 0.1, np.float32), dtype)

    def loss(components):
        predicted = prior.from_components(ops.cast(components, dtype), 3, False)
        return ops.mean(GaussianNoise().marginal_nll(noisy, predicted, parameter))

    def derivative(components):
        if keras.backend.backend() == "jax":
            import jax

            return jax.grad(loss)(components)
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(components)
            value = loss(components)
        return tape.gradient(value, components)

    derivative = compiled(derivative)
    rate = shape[0] / seconds_each(lambda: derivative(components), settings["seconds"] / 5)
    return {"crops_per_second": rate, "dtype": dtype}


def device():
    """Name and backend, and the most bytes in use so far (NaN where that is not told)."""
    import keras

    name, memory = "cpu", {}
    if keras.backend.backend() == "jax":
        import jax

        name, memory = jax.devices()[0].device_kind, jax.devices()[0].memory_stats() or {}
    else:
        import tensorflow as tf

        for gpu in tf.config.list_physical_devices("GPU")[:1]:
            name = tf.config.experimental.get_device_details(gpu).get("device_name", "GPU")
            memory = {"peak_bytes_in_use": tf.config.experimental.get_memory_info("GPU:0")["peak"]}
    peak = memory.get("peak_bytes_in_use", math.nan)
    return {"device": name, "backend": keras.backend.backend(), "peak_bytes": peak}


def case(name, **options):
    yield {"matrix": matrix, "train": train, "algebra": algebra}[name](**options) | device()


def measure(name, **options):
    """The result of a case, and {"error": ...} if it fails, such as out of memory; what is missing is NaN."""
    try:
        result = harness.first_result(name=name, **options)
    except harness.Failed as error:
        result = {"error": f"{name} {options.get('precision', '')}: {str(error).splitlines()[-1][:200]}"}
    return collections.defaultdict(lambda: math.nan, result)


def run(arguments):
    settings = QUICK if arguments.quick else FULL
    rates = {precision: measure("matrix", settings=settings, precision=precision) for precision in PRECISIONS}
    print(f"{rates['float32']['device']}, {rates['float32']['backend']}, {os.cpu_count()} cores\n")
    for precision, rate in rates.items():
        print(f"matrix {precision}: {2e-12 * rate['multiply_adds_per_second']:.4g} TFLOP/s")
    trained, side = [], settings["crop"]

    def rows():
        for precision, batch in itertools.product(PRECISIONS, settings["batches"]):
            row = measure("train", settings=settings, precision=precision, batch=batch)
            trained.append(row)
            crops, memory = row["crops_per_second"], row["peak_bytes"] / 2**30
            share = row["multiply_adds_per_second"] / rates[precision]["multiply_adds_per_second"]
            yield precision, batch, f"{crops:.4g}", f"{share:.0%}", f"{memory:.2f}", f"{2e6 / crops / 3600:.3g}"

    print()
    harness.print_table(["precision", f"batch of {side}x{side}", "crops/s", "share", "peak GiB", "hours"], rows())
    likelihood = measure("algebra", settings=settings)
    print(f"\nalgebra ({likelihood['dtype']}): {likelihood['crops_per_second']:.4g} crops/s")
    for result in (*rates.values(), *trained, likelihood):
        if "error" in result:
            print(f"failed: {result['error']}")


if __name__ == "__main__":
    harness.main(__doc__, run, case)
