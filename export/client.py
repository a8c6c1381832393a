"""Sends noisy pictures to TensorFlow Serving and writes the denoised ones. Loads neither TensorFlow nor Keras.

    python export/client.py --server=http://localhost:8501 --input=noisy.png --output=clean.png
    python export/client.py --server=grpc://localhost:8500 --model=ssdn --input=FOLDER --output=FOLDER

The noise level is for models that were trained with a known level, in the usual unit: sigma of 255, lam photons
at white, alpha the share of replaced pixels. A model for one level only has it as the default.

Pictures travel as PNG. A picture of more than --tile^2 pixels is cut into overlapping tiles. A tile takes about
6 KB of the server's memory for each pixel (published network on a CPU): 0.4 GiB for --tile=256, 1.4 GiB for 512,
3.1 GiB for 768 and 6 GiB for 1024, times --in_flight. A smaller overlap (--halo) sends fewer pixels; without
rounding errors the tiles give the result of the whole picture only from the network's reach on (315 pixels for the
published network). A model that estimates the noise level of each picture estimates it for each tile.

A folder is searched with its subfolders, and its pictures become PNG files of the same names in --output. Pictures
that are there already are skipped, so the same command continues an interrupted run; --overwrite denoises them
again. A picture that cannot be read gets a warning, and the others are denoised. A single file is always written.
No file is ever written in part.
"""

import math
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # this checkout's package, not another one

from absl import flags  # noqa: E402

from ssdn_tf.commands import cli, level_flags  # noqa: E402
from ssdn_tf.errors import UserError  # noqa: E402
from ssdn_tf.inference import tiling  # noqa: E402
from ssdn_tf.noise.levels import LEVELS  # noqa: E402
from ssdn_tf.serving import picture_files, remote  # noqa: E402
from ssdn_tf.serving.remote_denoiser import RemoteDenoiser  # noqa: E402

_HALO = 80  # the compact network's reach; docs/serving.md says what less than the reach costs


def define(v):
    flags.DEFINE_string("server", None, "REST http://HOST:8501 (https:// too), or gRPC grpc://HOST:8500", flag_values=v)
    flags.DEFINE_string("model", "ssdn", "name of the model on the server", flag_values=v)
    flags.DEFINE_integer("version", None, "of the model (default: the newest)", lower_bound=0, flag_values=v)
    flags.DEFINE_string("input", None, "noisy picture, or a folder of them", flag_values=v)
    flags.DEFINE_string("output", None, "file or folder for the denoised pictures", flag_values=v)
    level_flags.define(v, ranges=False)
    flags.DEFINE_enum("bits", None, ("8", "16"), "of the output (default: the input's)", flag_values=v)
    flags.DEFINE_integer(
        "tile", 512, "side of the tiles in pixels, halos included; see above for the server's memory",
        lower_bound=1, flag_values=v,
    )  # fmt: skip
    flags.DEFINE_integer(
        "halo", None, f"pixels around a tile that are sent and not kept (default: {_HALO}, or the network's reach "
        "if that is less)", lower_bound=0, flag_values=v,
    )  # fmt: skip
    flags.DEFINE_integer("in_flight", 2, "requests at a time", lower_bound=1, flag_values=v)
    flags.DEFINE_float("timeout", 120.0, "seconds to wait for one answer", flag_values=v)
    flags.DEFINE_integer("retries", 5, "of a request that fails for a passing reason", lower_bound=0, flag_values=v)
    flags.DEFINE_bool("overwrite", False, "denoise again what --output has already", flag_values=v)


def main(v):
    """Flags to pictures; the exit code."""
    for name in ("server", "input", "output"):
        if not v[name].value:
            raise UserError(f"expected --{name}, received none.")
    if not 0 < v.timeout < math.inf:
        raise UserError(f"--timeout: expected seconds above 0, received {v.timeout}.")
    level_flags.refuse_ranges(v)  # before anything is sent
    pairs = picture_files.plan(pathlib.Path(v.input), pathlib.Path(v.output), v.overwrite)
    with cli.errors_about("server"):
        server = remote.connect(v.server, v.model, v.version, v.timeout, v.retries)
    if pairs:
        denoiser = RemoteDenoiser(server)
        denoiser.noise_parameter = noise_parameter(v, denoiser)
        tile, halo = tile_from_flags(v, denoiser)
        bits = v.bits and int(v.bits)
        jobs = picture_files.prepare(pairs, tile=tile, halo=halo, grid=denoiser.grid, bits=bits)
        written = picture_files.run(jobs, denoiser, v.in_flight)
        if written < len(pairs):
            raise UserError(f"{len(pairs) - written} of {len(pairs)} pictures could not be denoised; see above.")
    print(f"{v.output}: {len(pairs)} pictures, denoised by {v.model} at {v.server}.")
    return 0


def noise_parameter(v, denoiser):
    """The noise parameter to send to the model, in its unit, or None.

    Args:
        v: FlagValues.
        denoiser: RemoteDenoiser.

    Raises:
        UserError: a level is missing, not wanted, or of another kind of noise.
    """
    experiment, found = denoiser.experiment, level_flags.read_any(v)
    if not denoiser.takes_level:
        if found:
            raise UserError(f"{level_flags.choice(found[0])}: {denoiser.name} takes no noise level.")
        return None
    if found and experiment:
        found = (experiment.noise, *level_flags.read(v, experiment.noise))
    elif not found and experiment and experiment.low is not None:  # a published network file may not say its level
        found = experiment.noise, experiment.low, experiment.high
    if found and found[1] == found[2]:
        return LEVELS[found[0]].to_parameter(found[1])
    which = level_flags.choice(experiment and experiment.noise)
    if found:
        which = f"{which} ({LEVELS[found[0]].describe(*found[1:])})"
    raise UserError(f"{denoiser.name} needs the noise level: {which}.")


def tile_from_flags(v, denoiser):
    """(side, halo) of the tiles, for the network's grid and reach."""
    halo = min(_HALO, denoiser.reach) if v.halo is None else v.halo
    tile = v.tile // denoiser.grid * denoiser.grid
    least = tiling.least_side(halo, denoiser.grid)
    if tile < least:
        raise UserError(f"--tile: expected at least {least} with --halo={halo}, received {v.tile}.")
    return tile, halo


if __name__ == "__main__":
    sys.exit(cli.execute(main, define, __doc__, needs_flags=True))
