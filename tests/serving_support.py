"""What the tests of serving share: small models, pictures, and the answers that they must give."""

import os
import pathlib
import subprocess
import sysconfig

import keras
import numpy as np
import support

from ssdn_tf.data import images
from ssdn_tf.denoisers import models
from ssdn_tf.denoisers.experiments import Experiment

MODELS = {
    "ssdn": support.tiny(Experiment(low=5.0, high=50.0)),  # Gaussian, sigma known, colour
    "gray": support.tiny(Experiment(pipeline="n2c", parameter_source=None, channels=1)),
}
SIGMA = np.float32([25 / 255])
BOTH = ("rest", "grpc")


def build(experiment):
    """A small inference model with biases other than zero."""
    keras.utils.set_random_seed(0)
    model = models.build(experiment).inference
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


def saved_proto(path):
    """The message in a SavedModel."""
    from tensorflow.core.protobuf import saved_model_pb2

    return saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())


def run_in_c(folder, path, noisy, output, levels=None):
    """What a C program gets from the signature "posterior" of a SavedModel: (finished process, float32 numbers).

    levels: for a model that is told the level, the one for the answer and another one, with which it asks once more.
    """
    signature = saved_proto(path).meta_graphs[0].signature_def["posterior"]
    files = [folder / "noisy", folder / "answer"]
    files[0].write_bytes(noisy.tobytes())
    command = [_compile_c(folder), path, signature.inputs["noisy"].name, signature.outputs[output].name]
    command += [*noisy.shape[1:3], *files]
    if levels is not None:
        command += [signature.inputs["noise_parameter"].name, *(repr(float(level)) for level in levels)]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300)
    return done, np.frombuffer(files[1].read_bytes(), np.float32)


def _compile_c(folder):
    import tensorflow as tf

    library = pathlib.Path(tf.sysconfig.get_lib())
    for name in ("libtensorflow_cc.so", "libtensorflow_framework.so"):
        os.symlink(library / f"{name}.2", folder / name)
    source = pathlib.Path(__file__).parent / "c_interface.c"
    program = folder / f"c_interface{sysconfig.get_config_var('EXE') or ''}"
    flags = [f"-I{tf.sysconfig.get_include()}", f"-L{folder}", f"-Wl,-rpath,{library}"]
    command = ["gcc", str(source), "-o", str(program), *flags, "-ltensorflow_cc", "-ltensorflow_framework"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return program
