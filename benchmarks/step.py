"""Seconds and memory of a training step and of denoising, beside this machine's convolution rate.

    python benchmarks/step.py

Each row is a process of its own, because peak memory never falls again; the rows of a case take turns, because
shared machines change their speed from minute to minute, and the best of all turns counts. The rate is that of one
3x3 convolution of 96 to 96 features (16 pictures of 64x64, forward and backward, compiled), the best of all turns
of the case. "reached" counts the multiply-adds that are carried out; "nominal" those of the plain network, including
those saved by `UpsampleConvolution`.
"slower" is against the first row of the case. Keras's default on a CPU: the plain
form, not compiled, oneDNN as TensorFlow sets it: by itself it takes oneDNN on CPUs with instructions for
networks (AVX512-VNNI), and does not on others, which the last row stands for.
"""

import os

if os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "DEFAULT":
    del os.environ["TF_ENABLE_ONEDNN_OPTS"]
else:
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import json
import pathlib
import resource
import subprocess
import sys
import time

import harness

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

CASES = {
    "train 4 x 64x64": ("train", 4, 64, 64),
    "train 1 x 256x256": ("train", 1, 256, 256),
    "denoise 1 x 512x768": ("denoise", 1, 512, 768),
}
TURNS = 4
FORMS = [
    ("", {}, {}),
    (", plain upsampling", {"fused": False}, {}),
    (", not compiled", {"jit": False}, {}),
    (", Keras's default", {"fused": False, "jit": False}, {"TF_ENABLE_ONEDNN_OPTS": "DEFAULT"}),
    (", Keras's default, no oneDNN", {"fused": False, "jit": False}, {"TF_ENABLE_ONEDNN_OPTS": "0"}),
]


def work(width=48, channels=3, outputs=9, fused=True):
    """Multiply-adds a pixel, forward, from the layers themselves."""
    from ssdn_tf.networks.unet import UNet

    network = UNet(outputs, width=width)
    network.build((None, None, None, channels))
    total, low = 0.0, 5
    for i, layer in enumerate(network.encoder):
        size = layer.kernel.shape[0] * layer.kernel.shape[1] * layer.kernel.shape[2] * layer.filters
        total += 4 * size / 4 ** max(0, i - 1)
    for i, (first, second) in enumerate(zip(network.decoder_a, network.decoder_b)):
        scale = 4 ** (low - 1 - i)
        up = width if i == 0 else 2 * width
        skip = first.kernel.shape[2] - up
        taps = 4 if fused else 9
        total += 4 * (taps * up + 9 * skip) * first.filters / scale
        total += 4 * 9 * second.kernel.shape[2] * second.filters / scale
    for layer in (*network.head, network.last):
        total += layer.kernel.shape[2] * layer.filters
    return total


def convolution():
    """The reference convolution, forward and backward, as a function; and its GFLOP (2 a multiply-add)."""
    import tensorflow as tf

    x = tf.random.normal((16, 64, 64, 96))
    kernel = tf.random.normal((3, 3, 96, 96))

    @tf.function(jit_compile=True)
    def run(x, kernel):
        with tf.GradientTape() as tape:
            tape.watch([x, kernel])
            loss = tf.reduce_sum(tf.nn.conv2d(x, kernel, 1, "SAME") ** 2)
        return tape.gradient(loss, [x, kernel])

    return lambda: run(x, kernel)[0].numpy(), 3 * 2 * 16 * 64 * 64 * 9 * 96 * 96 / 1e9


def best_of(function, repeats):
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - begin)
    return best


def plain_upsampling(layer, low, skip):
    """`UpsampleConvolution.call` as it is usually written: upsample, concatenate, convolve."""
    from keras import ops

    up = ops.repeat(ops.repeat(low, 2, axis=1), 2, axis=2)
    return layer._activate(layer._convolve(ops.concatenate([up, skip], axis=-1), layer.kernel))


def prepare(mode, batch, height, width, fused=True, jit=True):
    """A training step, or denoising, as a function."""
    import keras
    import numpy as np

    from ssdn_tf.denoisers import experiments, models
    from ssdn_tf.networks import layers
    from ssdn_tf.training.optimizers import SkippingAdam

    if not fused:
        layers.UpsampleConvolution.call = plain_upsampling
    denoiser = models.build(experiments.Experiment())
    keras.utils.set_random_seed(0)
    samples = {
        "noisy": np.random.rand(batch, height, width, 3).astype("float32"),
        "noise_parameter": np.full((batch, 1, 1, 1), 0.1, "float32"),
    }
    if mode == "train":
        model = denoiser.training
        model.compile(optimizer=SkippingAdam(3e-4), jit_compile=jit)
        return lambda: model.train_on_batch(samples)
    model = denoiser.inference
    model.compile(jit_compile=jit)
    return lambda: model.predict_on_batch(samples)


def serve(case):
    """One row: a result for each line of standard input, a turn."""
    run = prepare(**case)
    first = best_of(run, 1)
    run()
    short = case["batch"] * case["height"] * case["width"] < 2**15
    reference, gflop = convolution()
    reference()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print("RESULT " + json.dumps({"first": first, "peak_mb": peak}), flush=True)
    for _ in sys.stdin:
        rate = gflop / best_of(reference, 3)
        seconds = best_of(run, 3 if short else 1)
        print("RESULT " + json.dumps({"seconds": seconds, "rate": rate}), flush=True)


class Row:
    def __init__(self, case, environment):
        command = [sys.executable, __file__, "--case", json.dumps(case)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=os.environ | environment, **pipes)
        self.start = self.result()
        self.turns = []

    def result(self):
        for line in self.process.stdout:
            if line.startswith("RESULT "):
                return json.loads(line[7:])
        sys.exit("a row has failed: its errors are above")

    def turn(self):
        print(file=self.process.stdin, flush=True)
        self.turns.append(self.result())

    def end(self):
        self.process.stdin.close()
        self.process.wait()


def measure(case):
    """{label: result} of the forms of a case."""
    rows = {label: Row(case | options, environment) for label, options, environment in FORMS}
    for _ in range(TURNS):
        for row in rows.values():
            row.turn()
    for row in rows.values():
        row.end()
    rate = max(turn["rate"] for row in rows.values() for turn in row.turns)
    return {
        label: row.start | {"rate": rate, "seconds": min(turn["seconds"] for turn in row.turns)}
        for label, row in rows.items()
    }


def main():
    if len(sys.argv) == 3 and sys.argv[1] == "--case":
        serve(json.loads(sys.argv[2]))
        return
    print("| case | seconds | slower | first call | peak MB | GFLOP/s | convolution GFLOP/s | reached | nominal |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, (mode, batch, height, width) in CASES.items():
        gflop = batch * height * width * (3 if mode == "train" else 1) * 2 / 1e9
        results = measure({"mode": mode, "batch": batch, "height": height, "width": width})
        for label, options, _ in FORMS:
            r = results[label]
            reached = work(fused=options.get("fused", True)) * gflop / r["seconds"]
            nominal = work(fused=False) * gflop / r["seconds"]
            print(
                f"| {name}{label} | {r['seconds']:.3f} | {r['seconds'] / results['']['seconds']:.2f} | "
                f"{r['first']:.1f} | {r['peak_mb']:.0f} | {reached:.0f} | "
                f"{r['rate']:.0f} | {reached / r['rate']:.0%} | {nominal / r['rate']:.0%} |",
                flush=True,
            )


if __name__ == "__main__":
    harness.help_or_run(main, __doc__)
