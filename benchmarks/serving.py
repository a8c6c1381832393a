"""What the exported graph costs around the network: padding, algebra, uncertainty, PNG.

    python benchmarks/serving.py [--repeats=5]

The network alone runs as a graph of the same kind (not compiled, any height and width). All rows run
in one process, in turns, and the least time of each counts: shared machines change their speed from
minute to minute, so compare the ratios and not the seconds.
"""

import os

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import math
import pathlib
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np

HEIGHT, WIDTH = 512, 768


def functions(folder):
    """{row: function without arguments} for a Gaussian model of known sigma."""
    import tensorflow as tf

    from ssdn_tf.data import images
    from ssdn_tf.denoisers import models
    from ssdn_tf.denoisers.experiments import Experiment
    from ssdn_tf.serving import saved_model

    experiment = Experiment()
    model = models.build(experiment).inference
    path = saved_model.export(model, experiment, saved_model.model_card(experiment), folder)
    signatures = tf.saved_model.load(str(path)).signatures
    network = tf.function(model.get_layer("unet"), input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32)])
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    noisy, level = tf.constant(images.to_float(pixels)[None]), tf.constant([25 / 255])
    png = tf.constant([images.encode_png(pixels)])
    return {
        "network alone": lambda: network(noisy),
        "serving_default": lambda: signatures["serving_default"](noisy=noisy, noise_parameter=level),
        "posterior": lambda: signatures["posterior"](noisy=noisy, noise_parameter=level),
        "denoise_png": lambda: signatures["denoise_png"](image_bytes=png, noise_parameter=level),
    }


def measure(rows, repeats):
    """{row: (seconds of the first call, least seconds of the others)}, the rows in turns."""
    first, best = {}, dict.fromkeys(rows, math.inf)
    for turn in range(repeats + 1):
        for name, function in rows.items():
            begin = time.perf_counter()
            result = function()
            for value in result.values() if isinstance(result, dict) else [result]:
                value.numpy()
            seconds = time.perf_counter() - begin
            if turn == 0:
                first[name] = seconds
            else:
                best[name] = min(best[name], seconds)
    return {name: (first[name], best[name]) for name in rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(functions(folder), parser.parse_args().repeats)
    alone = found["network alone"][1]
    print(f"1 x {HEIGHT}x{WIDTH}, float32, {os.cpu_count()} CPU cores\n")
    print("| signature | first call | seconds | over the network |\n|---|---|---|---|")
    for name, (first, seconds) in found.items():
        print(f"| {name} | {first:.1f} | {seconds:.3f} | {seconds / alone - 1:+.1%} |")


if __name__ == "__main__":
    main()
