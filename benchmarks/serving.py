"""What an exported model costs beside its network: padding, posterior, uncertainty, PNG.

    python benchmarks/serving.py [--repeats=5]

A row is a call of one signature of the SavedModel on a picture of 512x768. "network alone" is the network as a graph
of the same kind (not compiled, for any height and width). All rows run in one process, in turns, and the shortest
call of each counts. The last column is the time beyond that of the network.
"""

import functools
import os
import tempfile

import harness


def signatures(folder, height, width, features):
    """{row: function without arguments} for a Gaussian model of known sigma."""
    import numpy as np
    import tensorflow as tf

    from ssdn_tf.data import images
    from ssdn_tf.denoisers import models
    from ssdn_tf.denoisers.experiments import Experiment
    from ssdn_tf.serving import saved_model

    experiment = Experiment(width=features)
    model = models.build(experiment).inference
    path = saved_model.export(model, experiment, saved_model.model_card(experiment), folder)
    served = tf.saved_model.load(str(path)).signatures
    network = tf.function(model.get_layer("unet"), input_signature=[tf.TensorSpec([None, None, None, 3], tf.float32)])
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    noisy, level = tf.constant(images.to_float(pixels)[None]), tf.constant([25 / 255])
    png = tf.constant([images.encode_png(pixels)])
    calls = {
        "network alone": lambda: {"components": network(noisy)},
        "serving_default": lambda: served["serving_default"](noisy=noisy, noise_parameter=level),
        "posterior": lambda: served["posterior"](noisy=noisy, noise_parameter=level),
        "denoise_png": lambda: served["denoise_png"](image_bytes=png, noise_parameter=level),
    }
    return {name: lambda call=call: [value.numpy() for value in call().values()] for name, call in calls.items()}


def run(arguments):
    height, width, features = (32, 64, 4) if arguments.quick else (512, 768, None)
    with tempfile.TemporaryDirectory() as folder:
        calls = signatures(folder, height, width, features).items()
        timed = {name: functools.partial(harness.seconds, call) for name, call in calls}
        times = harness.in_turns(timed, arguments.repeats + 1)
    alone = min(times["network alone"][1:])
    print(f"1 x {height}x{width}, float32, {os.cpu_count()} CPU cores\n")
    rows = ((n, f"{t[0]:.1f}", f"{min(t[1:]):.3f}", f"{min(t[1:]) / alone - 1:+.1%}") for n, t in times.items())
    harness.print_table(["signature", "first call", "seconds", "over the network"], rows)


if __name__ == "__main__":
    harness.main(
        __doc__, run, flags={"--repeats": {"type": int, "default": 5, "help": "calls of each, after the first"}}
    )
