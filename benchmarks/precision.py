"""What the precision of a training step does to loss, gradient and posterior mean, down to low noise.

    python benchmarks/precision.py RUN        a trained run (any blind-spot run for Gaussian noise)

Everything is compared with the same weights in float64 throughout, on 4 crops of 64x64 of photographs that the
run has not seen. On CPUs bfloat16 is emulated, so this takes minutes. "algebra" is what follows the network:
float64 under TensorFlow; under JAX float32, unless JAX_ENABLE_X64=1.

    loss        difference of the mean, in nats a pixel
    gradient    length of the difference over the length, all weights together
    angle       between the gradients, in degrees
    posterior   root mean square difference of the denoised picture, in steps of 255
"""

import os

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pathlib
import sys
from unittest import mock

import harness

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

CROP = 64
VARIANTS = [("float64", "float64"), ("float32", "float64"), ("float32", "float32"), ("bfloat16", "float64"),
            ("bfloat16", "float32")]  # fmt: skip
LEVELS = (25.0, 5.0, 1.0, 0.255)  # of 255; the last is the least that the model takes


def noisy_crops(level):
    import numpy as np

    from ssdn_tf.data import images, samples

    rng = np.random.default_rng(0)
    clean = []
    for file in samples.sample_photographs()[1] * 2:
        pixels = images.to_channels(images.read(file), 3)
        top, left = (rng.integers(side - CROP) for side in pixels.shape[:2])
        clean.append(images.to_float(pixels[top : top + CROP, left : left + CROP]))
    clean = np.stack(clean)
    noisy = clean + rng.normal(size=clean.shape) * level / 255
    return {"noisy": noisy.astype("float32"), "noise_parameter": np.full((4, 1, 1, 1), level / 255, "float32")}


def measure(run, network, algebra, level):
    """(loss, gradient as one vector, denoised) as float64."""
    import numpy as np
    import tensorflow as tf

    from ssdn_tf.denoisers import losses, models
    from ssdn_tf.inference import checkpoints
    from ssdn_tf.training import folder

    options = folder.read_options(run)
    with mock.patch.object(losses, "algebra_dtype", lambda: algebra), \
         mock.patch.object(models.losses, "algebra_dtype", lambda: algebra):  # fmt: skip
        denoiser = models.build(options.experiment, precision=network)
    checkpoints.load_weights(pathlib.Path(run) / "checkpoint.npz", denoiser.inference)
    inputs = noisy_crops(level)

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(denoiser.training(inputs))
        return loss, tape.gradient(loss, denoiser.training.trainable_variables)

    loss, gradients = step()
    vector = np.concatenate([np.asarray(g, np.float64).ravel() for g in gradients])
    denoised = tf.function(denoiser.inference)(inputs)["denoised"]
    return float(loss), vector, np.asarray(denoised, np.float64)


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    import numpy as np

    from ssdn_tf.commands import cli  # noqa: F401  (sets up TensorFlow's log level)

    print("| sigma | network | algebra | loss | gradient | angle | posterior |\n|---|---|---|---|---|---|---|")
    for level in LEVELS:
        for network, algebra in VARIANTS:
            loss, gradient, denoised = measure(sys.argv[1], network, algebra, level)
            if network == "float64":
                reference = loss, gradient, denoised
                continue
            length = np.linalg.norm(reference[1])
            cosine = gradient @ reference[1] / (length * np.linalg.norm(gradient))
            print(
                f"| {level:g} | {network} | {algebra} | {abs(loss - reference[0]):.1e} | "
                f"{np.linalg.norm(gradient - reference[1]) / length:.1e} | "
                f"{np.degrees(np.arccos(min(1.0, cosine))):.2g} | "
                f"{255 * np.sqrt(np.mean((denoised - reference[2]) ** 2)):.1e} |",
                flush=True,
            )


if __name__ == "__main__":
    harness.help_or_run(main, __doc__)
