"""The paper's test: seeded noise on padded images, denoised, cropped, PSNR on 8 bits."""

import dataclasses
import math
import pathlib
import zlib

import numpy as np

from ssdn_tf import images, metrics
from ssdn_tf.errors import UserError
from ssdn_tf.networks import GRID

# Name: (folder below --data_dir, pattern, published repeats).
SETS = {
    "kodak": ("kodak", "*.png", 10),
    "bsd300": ("BSDS300/images/test", "*.jpg", 3),
    "set14": ("Set14", "*.png", 20),
}


def image_set(name, data_dir=None):
    """(label, files, repeats) of a named set below `data_dir`, or of a folder of clean pictures.

    Raises:
        UserError: the folder is missing or holds no picture.
    """
    if name not in SETS:
        folder = pathlib.Path(name)
        if not folder.is_dir():
            raise UserError(f"--dataset: expected one of {', '.join(SETS)} or a folder, received '{name}'.")
        return folder.name, images.find(folder), 1
    folder, pattern, repeats = SETS[name]
    if not data_dir:
        raise UserError(f"--dataset={name}: expected --data_dir with the folder '{folder}' in it, received no --data_dir.")
    files = sorted((pathlib.Path(data_dir) / folder).glob(pattern))
    if not files:
        raise UserError(f"--dataset={name}: expected {pattern} in '{pathlib.Path(data_dir) / folder}', received none.")
    return name, files, repeats


def rng(seed, label, name, repeat):
    """Generator of the noise of one picture: a function of its arguments only, so that
    two models are judged on the same noise."""
    key = zlib.crc32(f"{label}/{name}".encode())
    return np.random.default_rng((seed, key, repeat))


def padded_size(height, width, square=None):
    """Next multiples of 32; `square`: the side that the whole set is padded to."""
    if square:
        return square, square
    return tuple(math.ceil(side / GRID) * GRID for side in (height, width))


def set_square(files):
    """Side of the published padding: the largest side of the set, up to a multiple of 32."""
    largest = max(max(images.size(file)) for file in files)
    return padded_size(largest, largest)[0]


def reflect_pad(image, size):
    """Pads [H,W,C] at bottom and right by reflection (repeatedly where one is not enough)."""
    height, width = image.shape[:2]
    mode = "reflect" if min(height, width) > 1 else "edge"
    return np.pad(image, ((0, size[0] - height), (0, size[1] - width), (0, 0)), mode=mode)


@dataclasses.dataclass(frozen=True)
class Corrupted:
    """One test picture. clean [H,W,C]; noisy padded [H',W',C]; parameter in the model's unit."""

    clean: np.ndarray
    padded: np.ndarray
    parameter: float

    @property
    def noisy(self):
        height, width = self.clean.shape[:2]
        return self.padded[:height, :width]


def corrupt(clean, experiment, noise, generator, square=None):
    """Pads, draws a level, adds noise: Corrupted. clean: float32 [H,W,C] in [0, 1]."""
    level = experiment.low
    if not experiment.fixed:
        level = generator.uniform(experiment.low, experiment.high)
    parameter = experiment.parameter(level)
    padded = reflect_pad(clean, padded_size(*clean.shape[:2], square))
    return Corrupted(clean, noise.corrupt(padded, parameter, generator), parameter)


def denoise(model, padded, parameter, shape):
    """Outputs of an inference model on one padded picture, cropped to `shape` (H, W):
    a dict of [H,W,C] arrays, and the noise parameter as a float where there is one."""
    inputs = {"noisy": padded[None]}
    if "noise_parameter" in model.input:
        inputs["noise_parameter"] = np.full((1, 1, 1, 1), parameter, np.float32)
    outputs = model.predict_on_batch(inputs)
    result = {k: np.asarray(v)[0][: shape[0], : shape[1]] for k, v in outputs.items() if k != "noise_parameter"}
    if "noise_parameter" in outputs:
        result["noise_parameter"] = float(np.asarray(outputs["noise_parameter"]).ravel()[0])
    return result


def scores(case, result):
    """PSNR (and SSIM of the answer) of one picture."""
    row = {"psnr_noisy": metrics.psnr(case.noisy, case.clean), "psnr": metrics.psnr(result["denoised"], case.clean)}
    if "mu_x" in result:
        row["psnr_mu_x"] = metrics.psnr(result["mu_x"], case.clean)
    row["ssim"] = metrics.ssim(result["denoised"], case.clean)
    return row
