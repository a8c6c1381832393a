"""ssdn-diagnose: which noise a picture has."""

import sys

from absl import flags

from ssdn_tf.commands import cli, model_flag
from ssdn_tf.data import files, images
from ssdn_tf.data.planes import to_unit
from ssdn_tf.errors import UserError

TEXT = """Says which noise a picture has, or the pictures of a folder that were taken alike.

    python -m ssdn_tf.commands.diagnose --input=noisy.png
    python -m ssdn_tf.commands.diagnose --input=FOLDER

Each noise model is fitted by maximum likelihood, given what a trained network predicts of the clean picture. The
log-likelihood is in nats per pixel; a model with one more parameter must be better by 0.001. Of a folder, at most
16 pictures are read.
"""
_MOST = 16  # pictures of a folder that are read


def diagnose():
    """Runs the command; ends the process with its exit code."""
    sys.exit(cli.execute(main, define, TEXT, needs_flags=True))


def define(values):
    """The flags of the command."""
    flags.DEFINE_string("input", None, "noisy picture, or a folder of them", flag_values=values)
    cli.range_flag(values, "pictures")
    model_flag.define(values)


def main(values):
    """Flags to a table and a sentence; the exit code."""
    if model_flag.is_list(values):
        return 0
    if not values.input:
        raise UserError("expected --input=FILE or FOLDER, received none.")
    planes = _planes(values.input)
    from ssdn_tf.inference import diagnosis, ranges

    model = model_flag.load(values, planes[0].shape[-1])
    if not model.can_fit:
        raise UserError(f"--model: {model.experiment.name} has no likelihood to fit the noise by.")
    if planes[0].shape[-1] < model.experiment.channels:
        raise UserError(f"--model: expected a network for gray pictures, received {values.model}, for colour.")
    limits, origin = cli.parse_range(values.range), "given"
    if not limits:
        limits, origin = ranges.find(planes, lambda channels: model)
    channels = model.experiment.channels
    pictures = [images.to_channels(to_unit(plane, limits), channels) for plane in planes]
    found = diagnosis.diagnose(model, pictures)
    if found.best.kind == "impulse" and channels == 3 and not values.model:
        found = diagnosis.with_impulses_of(found, model_flag.load_path("impulse-rgb"), pictures)
    print(f"Black {limits[0]:.6g}, white {limits[1]:.6g} ({origin}); sigma is in 255ths of that range.\n")
    print(f"{'noise':18}{'log-likelihood':>15}  parameters")
    for fit in found.fits:
        print(f"{fit.kind:18}{fit.log_likelihood:15.4f}  {fit.describe()}")
    print("\nNo noise model applies." if found.is_correlated else f"\n{_sentence(found)}")
    for warning in found.warnings():
        images.warn(warning)
    return 0


_NAMES = {
    "gaussian": "Gaussian noise",
    "poisson": "photon (Poisson) noise",
    "poisson_gaussian": "photon noise with Gaussian noise of the readout",
    "impulse": "impulse noise (pixels replaced by random colours)",
}


def _sentence(found):
    return f"This looks like {_NAMES[found.best.kind]}: {found.best.describe()}."


def _planes(path):
    """The first plane of the pictures, all with the channels of the first one."""
    planes = []
    pairs = files.find(path)
    for file, _ in pairs[:: -(-len(pairs) // _MOST)]:
        try:
            plane = files.read(file)[0]
            images.check_size(file, plane.shape)
        except UserError as error:
            if len(pairs) == 1:
                raise
            images.warn(f"left out {error}")
            continue
        if not planes or (plane.shape[-1], plane.dtype) == (planes[0].shape[-1], planes[0].dtype):
            planes.append(plane)
    if not planes:
        raise UserError(f"--input: expected pictures that can be read, received none in '{path}'.")
    return planes


if __name__ == "__main__":
    diagnose()
