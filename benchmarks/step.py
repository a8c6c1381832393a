"""Seconds and memory of a training step and of denoising, beside this machine's convolution rate.

    python benchmarks/step.py

Each row runs in a process of its own, because peak memory never falls again. The rate is
that of one 3x3 convolution of 96 to 96 features (16 pictures of 64x64, forward and
backward, compiled), measured right before the row: shared machines change their speed
from minute to minute, so compare the shares and not the seconds. "reached" counts the
multiply-adds that are carried out; "nominal" those of the plain network, including the
ones that `UpsampleConv2D` saves. "slower" is against the first row of the same kind. Keras's
default on a CPU: the plain form, not compiled, oneDNN as TensorFlow sets it: by itself it
takes oneDNN on CPUs with instructions for networks (AVX512-VNNI), and does not on others, which
the last row stands for.
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

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

CASES = {
    "train 4 x 64x64": ("train", 4, 64, 64),
    "train 1 x 256x256": ("train", 1, 256, 256),
    "denoise 1 x 512x768": ("denoise", 1, 512, 768),
}
FORMS = [
    ("", {}, {}),
    (", plain upsampling", {"fused": False}, {}),
    (", not compiled", {"jit": False}, {}),
    (", Keras's default", {"fused": False, "jit": False}, {"TF_ENABLE_ONEDNN_OPTS": "DEFAULT"}),
    (", Keras's default, no oneDNN", {"fused": False, "jit": False}, {"TF_ENABLE_ONEDNN_OPTS": "0"}),
]


def work(width=48, channels=3, outputs=9, fused=True):
    """Multiply-adds a pixel, forward, from the layers themselves."""
    from ssdn_tf.networks import UNet

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
    for layer in (network.nin_a, network.nin_b, network.nin_c):
        total += layer.kernel.shape[2] * layer.filters
    return total


def convolution_rate(repeats=10):
    """Best GFLOP/s (2 a multiply-add) of the reference convolution, forward and backward."""
    import tensorflow as tf

    x = tf.random.normal((16, 64, 64, 96))
    kernel = tf.random.normal((3, 3, 96, 96))

    @tf.function(jit_compile=True)
    def run(x, kernel):
        with tf.GradientTape() as tape:
            tape.watch([x, kernel])
            loss = tf.reduce_sum(tf.nn.conv2d(x, kernel, 1, "SAME") ** 2)
        return tape.gradient(loss, [x, kernel])

    seconds = best_of(lambda: run(x, kernel)[0].numpy(), repeats)
    return 3 * 2 * 16 * 64 * 64 * 9 * 96 * 96 / seconds / 1e9


def best_of(function, repeats):
    function()  # compiles
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        best = min(best, time.perf_counter() - begin)
    return best


def measure(mode, batch, height, width, fused=True, jit=True):
    import keras
    import numpy as np

    from ssdn_tf import denoisers, experiments
    from ssdn_tf.optimizers import SkippingAdam

    before = convolution_rate()
    denoiser = denoisers.build(experiments.Experiment(), fused=fused)
    keras.utils.set_random_seed(0)
    samples = {
        "noisy": np.random.rand(batch, height, width, 3).astype("float32"),
        "noise_parameter": np.full((batch, 1, 1, 1), 0.1, "float32"),
    }
    begin = time.perf_counter()
    if mode == "train":
        model = denoiser.training
        model.compile(optimizer=SkippingAdam(3e-4), jit_compile=jit)
        run, passes, repeats = (lambda: model.train_on_batch(samples)), 3, 8
    else:
        model = denoiser.inference
        model.compile(jit_compile=jit)
        run, passes, repeats = (lambda: model.predict_on_batch(samples)), 1, 3
    run()
    first = time.perf_counter() - begin
    seconds = best_of(run, repeats)
    rate = max(before, convolution_rate())
    pixels = batch * height * width * passes * 2 / 1e9
    return {
        "seconds": seconds,
        "first": first,
        "rate": rate,
        "reached": work(fused=fused) * pixels / seconds,
        "nominal": work(fused=False) * pixels / seconds,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main():
    if len(sys.argv) == 3 and sys.argv[1] == "--case":
        print("RESULT " + json.dumps(measure(**json.loads(sys.argv[2]))))
        return
    print("| case | seconds | slower | first call | peak MB | GFLOP/s | convolution GFLOP/s | reached | nominal |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, (mode, batch, height, width) in CASES.items():
        first = None
        for label, options, environment in FORMS:
            case = {"mode": mode, "batch": batch, "height": height, "width": width} | options
            command = [sys.executable, __file__, "--case", json.dumps(case)]
            out = subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)
            line = [text for text in out.stdout.splitlines() if text.startswith("RESULT ")]
            if not line:
                sys.exit(f"{name}{label} failed:\n{out.stderr}")
            r = json.loads(line[0][7:])
            first = first or r["seconds"]
            print(
                f"| {name}{label} | {r['seconds']:.3f} | {r['seconds'] / first:.2f} | {r['first']:.1f} | "
                f"{r['peak_mb']:.0f} | {r['reached']:.0f} | "
                f"{r['rate']:.0f} | {r['reached'] / r['rate']:.0%} | {r['nominal'] / r['rate']:.0%} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
