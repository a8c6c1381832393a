"""denoise.py: denoises a picture."""

import pathlib
import sys

import numpy as np
from absl import flags

from ssdn_tf.commands import cli, level_flags
from ssdn_tf.data import images
from ssdn_tf.errors import UserError
from ssdn_tf.noise.levels import LEVELS
from ssdn_tf.training import folder as runs

TEXT = """Denoises a picture.

    python denoise.py --input=noisy.png --output=clean.png            with the newest run
    python denoise.py --model=runs/00003-... --sigma=15 --input=noisy.png --output=clean.png
"""


def denoise():
    sys.exit(cli.execute(main, define, TEXT))


def define(values):
    """The flags of denoise.py."""
    with cli.group(values, "Pictures"):
        flags.DEFINE_string("input", None, "file of the noisy picture", flag_values=values)
        flags.DEFINE_string("output", None, "file for the denoised picture", flag_values=values)
        flags.DEFINE_enum(
            "bits", None, ("8", "16"), "bits of a value in the output; 16 for PNG only (default: the input's, if the "
            "format of the output allows)", flag_values=values,
        )  # fmt: skip
    with cli.group(values, "Model"):
        flags.DEFINE_string(
            "model", None, "folder of a run or of a SavedModel, or a published network file (default: the newest run)",
            flag_values=values,
        )  # fmt: skip
        flags.DEFINE_string("runs", "runs", "folder of the runs, for the newest", flag_values=values)
        flags.DEFINE_integer(
            "tile", 1536, "side in pixels of the tiles in which pictures of more than tile^2 pixels are denoised; the "
            "paper's network takes 7 KB of memory a pixel", lower_bound=1, flag_values=values,
        )  # fmt: skip
    with cli.group(values, "Noise, for a model that must be told"):
        level_flags.define(values, " (default: the level that the model was trained for)", ranges=False)


def main(values):
    """Flags to a file; the exit code."""
    bits = _check_files(values)
    noisy = images.read(values.input)
    if bits is None:
        bits = 16 if noisy.dtype == np.uint16 and pathlib.Path(values.output).suffix.lower() == ".png" else 8
    from ssdn_tf.inference import predictor, tiling

    model = predictor.load(values.model or runs.newest_run(values.runs))
    try:
        tiling.check_side(values.tile, model.halo, model.grid)
    except ValueError as error:
        raise UserError(f"--tile: {error}") from error
    parameter = _parameter(values, model)
    noisy = images.to_float(images.to_channels(noisy, model.experiment.channels))
    images.write(values.output, model.denoise(noisy, parameter, values.tile).denoised, bits)
    print(f"{values.output}: {noisy.shape[1]}x{noisy.shape[0]}, denoised by {model.experiment.name}.")
    return 0


def _check_files(values):
    """Refuses file names that cannot work, before anything is loaded. Returns the bits of the output; None: any."""
    for name in ("input", "output"):
        if not values[name].value:
            raise UserError(f"expected --{name}=FILE, received none.")
    source, target = pathlib.Path(values.input), pathlib.Path(values.output)
    if source.resolve() == target.resolve():
        raise UserError("--output must differ from --input.")
    if target.suffix.lower() not in images.SUFFIXES:
        suffixes = ", ".join(images.SUFFIXES)
        raise UserError(f"--output: expected a name ending in one of {suffixes}, received '{target}'.")
    if values.bits == "16" and target.suffix.lower() != ".png":
        raise UserError(f"--bits=16: expected an --output ending in .png, received '{target}'.")
    return values.bits and int(values.bits)


def _parameter(values, model):
    """The noise parameter for a model that must be told, or None."""
    experiment = model.experiment
    levels = level_flags.read(values, experiment.noise)
    flag = level_flags.choice(experiment.noise)
    if not model.needs_level:
        if levels:
            images.warn(f"{flag} has no effect: {experiment.name} needs no noise level.")
        return None
    low, high = levels or (experiment.low, experiment.high)
    if low is not None and low == high:
        return experiment.parameter(low)
    trained = "" if experiment.low is None else f" ({LEVELS[experiment.noise].describe(low, high)})"
    received = "a range" if levels else "none"
    raise UserError(f"expected {flag}{trained}, as the model must be told the noise level, received {received}.")
