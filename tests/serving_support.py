"""What the tests of serving share: small models, pictures, and the answers that they must give."""

import keras
import numpy as np
import support

from ssdn_tf.data import images
from ssdn_tf.denoisers import models
from ssdn_tf.denoisers.experiments import Experiment

MODELS = {
    "ssdn": Experiment(low=5.0, high=50.0),  # Gaussian, sigma known, colour
    "gray": Experiment(pipeline="n2c", parameter_source=None, channels=1),
}
SIGMA = np.float32([25 / 255])
BOTH = ("rest", "grpc")


def build(experiment):
    """An inference model of width 4 with biases other than zero."""
    keras.utils.set_random_seed(0)
    model = models.build(support.narrow(experiment, 4)).inference
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if variable.path.endswith("bias"):
            variable.assign(rng.normal(0.1, 0.05, variable.shape))
    return model


def random_pixels(height, width, channels=3, dtype=np.uint8, seed=0):
    rng = np.random.default_rng((seed, height, width))
    return rng.integers(0, np.iinfo(dtype).max + 1, (height, width, channels), dtype)


def byte_array(*data):
    """[N] objects that are bytes."""
    array = np.empty(len(data), object)
    array[:] = data
    return array


def direct(servables, pixels, model="ssdn"):
    """The model's answer to uint8 or uint16 pixels, without a server between."""
    inputs = {"image_bytes": byte_array(images.encode_png(pixels))}
    if model == "ssdn":
        inputs["noise_parameter"] = SIGMA
    name = "denoise_png" if pixels.dtype == np.uint8 else "denoise_png16"
    return images.decode(servables[model][1].run(name, inputs)["image_bytes"][0], "")


def to_16_bits(pixels):
    return pixels.astype(np.uint16) * 257
