"""The paper's test: seeded noise on padded pictures, denoised, cropped, PSNR on 8 bits."""

import dataclasses
import math
import os
import pathlib
import time
import zlib
from typing import NamedTuple

import numpy as np

from ssdn_tf.data import images, samples
from ssdn_tf.denoisers.experiments import Experiment
from ssdn_tf.denoisers.models import noise_model
from ssdn_tf.errors import UserError
from ssdn_tf.evaluation import baselines, metrics, report
from ssdn_tf.inference.predictor import Prediction
from ssdn_tf.noise.model import AdditiveNoise
from ssdn_tf.noise.prior import Prior

PADDING = 32  # the published evaluation pads to its multiples, whatever the network

# Name: (folder below the data folder, pattern, published repeats).
SETS = {
    "kodak": ("kodak", "*.png", 10),
    "bsd300": ("BSDS300/images/test", "*.jpg", 3),
    "set14": ("Set14", "*.png", 20),
}


# ---------------------------------------------------------------- sets


class ImageSet(NamedTuple):
    """Clean pictures to test with.

    label: of the set, in tables and in the key of the noise.
    files: paths.
    repeats: published number of noise draws for each picture; 1 for other sets.
    names: what tells the pictures apart: their paths relative to the folder of the set, with forward slashes.
    """

    label: str
    files: list
    repeats: int
    names: list


def image_set(name, data_dir=None):
    """ImageSet of a name in SETS, of "sample" (held-out photographs of scikit-image), or of a folder of clean pictures.

    Args:
        name: see above.
        data_dir: folder with the folders of SETS in it; needed for those only.

    Raises:
        UserError: the folder is missing or has no pictures.
    """
    if name == "sample":
        files = samples.sample_photographs()[1]
        return ImageSet(name, files, 1, [pathlib.Path(file).name for file in files])
    if name not in SETS:
        folder = pathlib.Path(name)
        if not folder.is_dir():
            raise UserError(f"expected one of {', '.join(SETS)}, sample or a folder, received '{name}'.")
        # "." has no name; a link keeps its own.
        return _image_set(pathlib.Path(os.path.abspath(folder)).name, folder, images.find(folder), 1)
    folder, pattern, repeats = SETS[name]
    if not data_dir:
        raise UserError(f"expected a data_dir with the folder '{folder}' in it for {name}, received none.")
    folder = pathlib.Path(data_dir) / folder
    files = sorted(folder.glob(pattern))
    if not files:
        raise UserError(f"expected {pattern} in '{folder}' for {name}, received none.")
    return _image_set(name, folder, files, repeats)


def _image_set(label, folder, files, repeats):
    for file in files:  # before hours of work
        metrics.check_size(file, images.read(file).shape[:2])
    return ImageSet(label, files, repeats, [file.relative_to(folder).as_posix() for file in files])


# ---------------------------------------------------------------- noisy pictures


def rng(seed, label, name, repeat):
    """Generator for the noise of one picture. Its state depends on the arguments only, so that all models are tested on
    the same noise (drawn for the padded picture, so other padding gives other noise)."""
    key = zlib.crc32(f"{label}/{name}".encode())
    return np.random.default_rng((seed, key, repeat))


def padded_size(height, width, square=None):
    """(height, width) after padding: the next multiples of 32, or `square`, the side for the whole set."""
    if square:
        return square, square
    return tuple(math.ceil(side / PADDING) * PADDING for side in (height, width))


def set_square(files):
    """Side of the published padding: the largest side in the set, rounded up to a multiple of 32."""
    largest = max(max(images.size(file)) for file in files)
    return padded_size(largest, largest)[0]


def reflect_pad(image, size):
    """Pads [H,W,C] at bottom and right by reflection, more than once if the picture is small."""
    height, width = image.shape[:2]
    mode = "reflect" if min(height, width) > 1 else "edge"
    return np.pad(image, ((0, size[0] - height), (0, size[1] - width), (0, 0)), mode=mode)


@dataclasses.dataclass(frozen=True)
class Corrupted:
    """One test picture. clean: [H,W,C]; padded: noisy, [H',W',C]; parameter: of the noise, in the model's unit."""

    clean: np.ndarray
    padded: np.ndarray
    parameter: float | tuple

    @property
    def noisy(self):
        """[H,W,C]"""
        height, width = self.clean.shape[:2]
        return self.padded[:height, :width]


def corrupt(clean, tested, noise, generator, square=None):
    """Pads a picture, draws a level and adds noise.

    Args:
        clean: float32 [H,W,C] in [0, 1].
        tested: Experiment whose `low` and `high` are the levels of the test.
        noise: NoiseModel.
        generator: NumPy Generator, see `rng`.
        square: see `padded_size`.

    Returns:
        Corrupted.
    """
    parameter = tested.draw_parameter(generator)
    padded = reflect_pad(clean, padded_size(*clean.shape[:2], square))
    return Corrupted(clean, noise.corrupt(padded, parameter, generator), parameter)


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Which noisy pictures are made: those of one set, `repeats` draws each.

    tested: Experiment whose noise, levels and channels are those of the test; its other fields do not matter. It is
        not what a model was trained for: a model for sigma 5 to 50 can be tested at 25.
    pictures: ImageSet.
    pad: "image" (each to its own next multiples of 32) or "set_square" (as published).
    """

    tested: Experiment
    pictures: ImageSet
    repeats: int
    seed: int
    pad: str = "image"

    def __iter__(self):
        """Yields (name, repeat, Corrupted)."""
        noise = noise_model(self.tested)
        square = set_square(self.pictures.files) if self.pad == "set_square" else None
        for file, name in zip(self.pictures.files, self.pictures.names):
            clean = images.to_float(images.to_channels(images.read(file), self.tested.channels))
            for repeat in range(self.repeats):
                generator = rng(self.seed, self.pictures.label, name, repeat)
                yield name, repeat, corrupt(clean, self.tested, noise, generator, square)


# ---------------------------------------------------------------- denoisers


@dataclasses.dataclass(frozen=True)
class Method:
    """What is tested.

    name: for tables and files.
    denoise: function (Corrupted) -> Prediction.
    experiment: what a model was trained for; None for baselines.
    """

    name: str
    denoise: object
    experiment: Experiment | None = None

    @property
    def estimates_level(self):
        """True if the denoiser finds the noise level itself."""
        return self.experiment is not None and self.experiment.parameter_source in ("global", "per_image", "fitted")


def model_method(predictor, fitted=False, ensemble=1):
    """Method of a Predictor, told the true noise parameter if it needs one. It sees the padding, as published.

    fitted: the noise parameter is fitted to each picture instead.
    ensemble: orientations of the picture, see `Predictor.denoise`.
    """
    experiment = predictor.experiment
    if fitted:
        experiment = dataclasses.replace(experiment, parameter_source="fitted")

    def denoise(case):
        parameter = "fitted" if fitted else case.parameter
        return predictor.denoise(case.padded, parameter, ensemble=ensemble).crop(*case.clean.shape[:2])

    name = experiment.name if ensemble == 1 else f"{experiment.name}-x{ensemble}"
    return Method(name, denoise, experiment)


def baseline_method(name, tested, predictor=None):
    """Method that is one of `baselines.BASELINES`, told one std for the whole picture: that of the mean variance.

    predictor: of a model that fits the noise parameter to each picture; None: the true one.

    Raises:
        UserError: the noise is impulses (but for the median), or a package is missing.
    """
    noise, function = noise_model(tested), baselines.BASELINES[name]
    if name != "median" and not isinstance(noise, AdditiveNoise):
        raise UserError(f"{name}: expected additive noise, received {tested.noise} noise.")
    if name == "cbm3d":
        baselines.package()

    def denoise(case):
        if name == "median":
            return Prediction(function(case.noisy, None))
        parameter = case.parameter if predictor is None else predictor.fit([predictor.pixels(case.padded)])
        return Prediction(function(case.noisy, mean_std(noise, case.noisy, parameter)))

    return Method(name, denoise)


def mean_std(noise, noisy, parameter):
    """Root of the mean variance of additive noise in a picture [H,W,C]."""
    # The noisy picture stands for the clean one: their means agree.
    mean = noisy.astype(np.float64).mean(axis=(0, 1), keepdims=True)[None]
    variance = noise.variance(Prior(mean, None), np.reshape(np.float64(parameter), (1, 1, 1, -1)))
    return float(np.sqrt(np.mean(variance)))


# ---------------------------------------------------------------- scores


def scores(case, prediction):
    """{name: number} for one picture.

    psnr_noisy, psnr, psnr_mu_x in dB and ssim, against the clean picture; with a posterior, inside_1_std and
    inside_2_std, the shares of clean values that lie within one and two posterior standard deviations of the answer
    (68.3 and 95.4 % for Gaussian errors of that standard deviation).
    """
    row = {"psnr_noisy": metrics.psnr(case.noisy, case.clean), "psnr": metrics.psnr(prediction.denoised, case.clean)}
    if prediction.mu_x is not None:
        row["psnr_mu_x"] = metrics.psnr(prediction.mu_x, case.clean)
    row["ssim"] = metrics.ssim(prediction.denoised, case.clean)
    if prediction.posterior_std is not None:
        error = np.abs(prediction.denoised - case.clean)
        for stds in (1, 2):
            row[f"inside_{stds}_std"] = float(np.mean(error <= stds * prediction.posterior_std))
    return row


def evaluate(protocol, denoiser, output, strips, page=None, shown=0):
    """Tests one denoiser on one set.

    Args:
        protocol: Protocol.
        denoiser: Method.
        output: folder for the strips of pictures.
        strips: how many pictures to write there, see `report.strip`.
        page: a `page.Page` that gets the scores of the first draw of each picture, or None.
        shown: how many pictures it shows.

    Returns:
        dict: name, dataset, experiment (what the model was trained for, or None), tested (noise, low, high, channels),
        images, repeats, seconds, the statistics of `report.statistics`, and rows (one for each picture and repeat).
    """
    rows, begin = [], time.perf_counter()
    tested, label = protocol.tested, protocol.pictures.label
    total = len(protocol.pictures.files) * protocol.repeats
    for name, repeat, case in protocol:
        prediction = denoiser.denoise(case)
        row = {"image": name, "repeat": repeat, "level": tested.level(case.parameter), **scores(case, prediction)}
        if denoiser.estimates_level and prediction.noise_parameter is not None:
            row["estimated_level"] = tested.level(prediction.noise_parameter)
        if repeat == 0 and len(rows) < strips * protocol.repeats:
            path = output / picture_path(name, protocol.pictures, denoiser.name)
            images.write(path, report.strip(case, prediction, row))
        if page and repeat == 0:
            cells, views = report.cells_and_views(label, denoiser.name, case, prediction, row)
            page.add(cells, views if len(rows) < shown * protocol.repeats else None)
        rows.append(row)
        left = (time.perf_counter() - begin) / len(rows) * (total - len(rows))
        print(f"{label} {len(rows)}/{total}  {name}  {row['psnr']:.2f} dB  {left:.0f} s left", flush=True)
    return {
        "name": denoiser.name,
        "dataset": label,
        "experiment": denoiser.experiment and denoiser.experiment.to_dict(),
        "tested": {key: getattr(tested, key) for key in ("noise", "low", "high", "channels")},
        "images": len(protocol.pictures.files),
        "repeats": protocol.repeats,
        **report.statistics(rows),
        "seconds": round(time.perf_counter() - begin, 1),
        "rows": rows,
    }


def picture_path(name, image_set, denoiser):
    """Relative path for the strip of a picture, another one for each picture of a set: sub/kodak-a-cbm3d.png."""
    path = pathlib.PurePosixPath(name)
    same = [other for other in image_set.names if pathlib.PurePosixPath(other).with_suffix("") == path.with_suffix("")]
    stem = path.stem if len(same) == 1 else path.name
    return path.parent / f"{image_set.label}-{stem}-{denoiser}.png"
