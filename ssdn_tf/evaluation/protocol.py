"""The paper's test: seeded noise on padded images, denoised, cropped, PSNR on 8 bits."""

import dataclasses
import math
import pathlib
import time
import zlib

import numpy as np

from ssdn_tf.data import images, samples
from ssdn_tf.denoisers.experiments import Experiment
from ssdn_tf.denoisers.models import noise_model
from ssdn_tf.errors import UserError
from ssdn_tf.evaluation import metrics, report
from ssdn_tf.inference import tiling

# Name: (folder below --data_dir, pattern, published repeats).
_PAD = 32  # the published evaluation pads to its multiples
SETS = {
    "kodak": ("kodak", "*.png", 10),
    "bsd300": ("BSDS300/images/test", "*.jpg", 3),
    "set14": ("Set14", "*.png", 20),
}


def image_set(name, data_dir=None):
    """(label, files, repeats) of a named set below `data_dir`, of "sample" (the held-out
    photographs of scikit-image), or of a folder of clean pictures.

    Raises:
        UserError: the folder is missing or holds no picture.
    """
    if name == "sample":
        return name, samples.sample_photographs()[1], 1
    if name not in SETS:
        folder = pathlib.Path(name)
        if not folder.is_dir():
            raise UserError(f"--dataset: expected one of {', '.join(SETS)}, sample or a folder, received '{name}'.")
        return folder.name, images.find(folder), 1
    folder, pattern, repeats = SETS[name]
    if not data_dir:
        raise UserError(
            f"--dataset={name}: expected --data_dir with the folder '{folder}' in it, received no --data_dir."
        )
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
    return tuple(math.ceil(side / _PAD) * _PAD for side in (height, width))


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
    """PSNR (and SSIM of the answer) of one picture; with a posterior std, the share of clean values
    that lie within one and two of it (68.3 and 95.4 % where errors are Gaussian of that std)."""
    row = {"psnr_noisy": metrics.psnr(case.noisy, case.clean), "psnr": metrics.psnr(result["denoised"], case.clean)}
    if "mu_x" in result:
        row["psnr_mu_x"] = metrics.psnr(result["mu_x"], case.clean)
    row["ssim"] = metrics.ssim(result["denoised"], case.clean)
    if "posterior_std" in result:
        error = np.abs(result["denoised"] - case.clean)
        for stds in (1, 2):
            row[f"inside_{stds}_std"] = float(np.mean(error <= stds * result["posterior_std"]))
    return row


def denoise_any_size(model, noisy, parameter, tile=None):
    """As `denoise` for a noisy picture [H,W,C] of any size.

    Zeros fill up to the network's grid at bottom and right, as they do beyond the edge of
    a training crop. (A reflection would show a pixel its own noise, across the edge.)

    Args:
        tile: a picture of more than tile^2 pixels is done in overlapping tiles of this side, which
            bounds the memory. The result is that of the whole picture up to rounding, but for
            models that estimate the level of each picture: they see each tile as one.
    """
    height, width = noisy.shape[:2]
    filled = tiling.fill(noisy)
    if not tile or filled.shape[0] * filled.shape[1] <= tile**2:
        return denoise(model, filled, parameter, (height, width))
    parts = [(t, denoise(model, t.cut(filled), parameter, t.size)) for t in tiling.tiles(height, width, tile)]
    pictures = [name for name, value in parts[0][1].items() if np.ndim(value) == 3]
    return {n: tiling.stitch(((t, outputs[n]) for t, outputs in parts), height, width) for n in pictures}


def model_denoiser(model):
    """Function (Corrupted) -> result, of an inference model."""
    return lambda case: denoise(model, case.padded, case.parameter, case.clean.shape[:2])


def cbm3d_denoiser(experiment):
    """The same of CBM3D, told the true sigma.

    Raises:
        UserError: the noise is not Gaussian, or the package is missing.
    """
    if experiment.noise != "gaussian":
        raise UserError(f"--baseline=cbm3d: expected Gaussian noise, received {experiment.noise}.")
    from ssdn_tf.evaluation import baselines

    baselines.package()
    return lambda case: {"denoised": baselines.cbm3d(case.noisy, case.parameter)}


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Which noisy pictures are made: those of one set, `repeats` draws each.

    pad: "image" (each to its own next multiples of 32) or "set_square" (as published).
    """

    experiment: Experiment
    label: str
    files: list
    repeats: int
    seed: int
    pad: str = "image"

    def __iter__(self):
        """Yields (file, repeat, Corrupted)."""
        noise = noise_model(self.experiment)
        square = set_square(self.files) if self.pad == "set_square" else None
        for file in self.files:
            clean = images.to_float(images.to_channels(images.read(file), self.experiment.channels))
            for repeat in range(self.repeats):
                generator = rng(self.seed, self.label, file.name, repeat)
                yield file, repeat, corrupt(clean, self.experiment, noise, generator, square)


def evaluate(protocol, name, denoiser, output, pictures):
    """Scores of one denoiser on one set.

    Args:
        protocol: Protocol.
        name: of the denoiser, for the table.
        denoiser: function (Corrupted) -> {"denoised": [H,W,C], ...}.
        output: folder for the pictures.
        pictures: how many pictures of the set to leave there.

    Returns:
        dict: name, dataset, experiment, repeats, means, standard errors, and the rows of
        every picture and repeat.
    """
    rows, begin = [], time.perf_counter()
    total = len(protocol.files) * protocol.repeats
    for file, repeat, case in protocol:
        result = denoiser(case)
        row = {"image": file.name, "repeat": repeat, "level": protocol.experiment.level(case.parameter)}
        row |= scores(case, result)
        if "noise_parameter" in result:
            row["estimated_level"] = protocol.experiment.level(result["noise_parameter"])
        if repeat == 0 and len(rows) < pictures * protocol.repeats:
            path = output / f"{protocol.label}-{file.stem}-{name}.png"
            images.write(path, report.strip(case, result, row))
        rows.append(row)
        left = (time.perf_counter() - begin) / len(rows) * (total - len(rows))
        print(f"{protocol.label} {len(rows)}/{total}  {file.name}  {row['psnr']:.2f} dB  {left:.0f} s left", flush=True)
    return {
        "name": name,
        "dataset": protocol.label,
        "experiment": protocol.experiment.to_dict(),
        "images": len(protocol.files),
        "repeats": protocol.repeats,
        **report.statistics(rows),
        "seconds": round(time.perf_counter() - begin, 1),
        "rows": rows,
    }
