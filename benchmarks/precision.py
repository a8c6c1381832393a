"""What the precision of a training step changes in loss, gradient and denoised picture, down to low noise.

    python benchmarks/precision.py RUN        a trained blind-spot run for Gaussian noise

Each row is compared with the same weights in float64 throughout, on 4 crops of 64x64 of photographs that the run has
not seen. "network" and "algebra" are the precision of the network and of the likelihood that follows it (float64 in
training under TensorFlow; under JAX float32, unless JAX_ENABLE_X64=1). CPUs emulate bfloat16: this takes minutes.

    loss        difference of the mean, in nats per pixel
    gradient    length of the difference over the length, all weights together
    angle       between the gradients, in degrees
    posterior   root mean square difference of the denoised picture, in steps of 255
"""

import pathlib
from unittest import mock

import harness

CROP = 64
VARIANTS = [("float64", "float64"), ("float32", "float64"), ("float32", "float32"), ("bfloat16", "float64"),
            ("bfloat16", "float32")]  # fmt: skip
LEVELS = (25.0, 5.0, 1.0, 0.255)  # of 255; the last is the least that the model takes


def noisy_crops(level, channels):
    import numpy as np

    from ssdn_tf.data import images, samples

    rng = np.random.default_rng(0)
    clean = []
    for file in samples.sample_photographs()[1] * 2:
        pixels = images.to_channels(images.read(file), channels)
        top, left = (rng.integers(side - CROP) for side in pixels.shape[:2])
        clean.append(images.to_float(pixels[top : top + CROP, left : left + CROP]))
    clean = np.stack(clean)
    noisy = clean + rng.normal(size=clean.shape) * level / 255
    return {"noisy": noisy.astype("float32"), "noise_parameter": np.full((4, 1, 1, 1), level / 255, "float32")}


def variant(run, network, algebra):
    """Function of a level: (loss, gradient as one vector, denoised) as float64."""
    import numpy as np
    import tensorflow as tf

    from ssdn_tf.denoisers import models, noise_layer
    from ssdn_tf.inference import checkpoints
    from ssdn_tf.training import folder

    with mock.patch.object(noise_layer, "algebra_dtype", lambda: algebra):
        options = folder.read_options(run)
        denoiser = models.build(options.experiment, rate=options.rate, precision=network)
    checkpoints.load_weights(pathlib.Path(run) / "checkpoint.npz", denoiser.inference)

    @tf.function
    def step(inputs):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(denoiser.training(inputs))
        gradients = tape.gradient(loss, denoiser.training.trainable_variables)
        return loss, gradients, denoiser.inference(inputs)["denoised"]

    def results(level):
        loss, gradients, denoised = step(noisy_crops(level, options.experiment.channels))
        vector = np.concatenate([np.asarray(gradient, np.float64).ravel() for gradient in gradients])
        return float(loss), vector, np.asarray(denoised, np.float64)

    return results


def rows(run, levels):
    import numpy as np

    functions = {names: variant(run, *names) for names in VARIANTS}
    for level in levels:
        exact_loss, exact, exact_picture = functions[VARIANTS[0]](level)
        length = np.linalg.norm(exact)
        for network, algebra in VARIANTS[1:]:
            loss, gradient, picture = functions[network, algebra](level)
            cosine = min(1.0, gradient @ exact / (length * np.linalg.norm(gradient)))
            yield (
                f"{level:g}", network, algebra, f"{abs(loss - exact_loss):.1e}",
                f"{np.linalg.norm(gradient - exact) / length:.1e}", f"{np.degrees(np.arccos(cosine)):.2g}",
                f"{255 * np.sqrt(np.mean((picture - exact_picture) ** 2)):.1e}",
            )  # fmt: skip


def run(arguments):
    columns = ["sigma", "network", "algebra", "loss", "gradient", "angle", "posterior"]
    harness.print_table(columns, rows(arguments.run, LEVELS[:1] if arguments.quick else LEVELS))


if __name__ == "__main__":
    harness.main(__doc__, run, flags={"run": {"metavar": "RUN", "help": "folder of a run"}})
