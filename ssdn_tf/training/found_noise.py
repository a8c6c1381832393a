"""The noise of images that are noisy already, found by the network that a training starts from.

If a training is told less noise than an image has, the network takes the rest for detail, and keeps it. So a file has
a noise of its own, where that makes its pixels much more likely than the noise of all together, which is known better.
"""

import dataclasses
import json
import pathlib

from ssdn_tf.data import images
from ssdn_tf.data.planes import spread
from ssdn_tf.denoisers import models
from ssdn_tf.errors import UserError
from ssdn_tf.inference import pictures, ranges
from ssdn_tf.noise.levels import LEVELS
from ssdn_tf.training import folder

NAME = "noise.json"  # in the folder of a run
_FITTED_FILES = 128  # the others get the noise of all of these together
_FITTED_PLANES = 4  # of a stack


@dataclasses.dataclass(frozen=True)
class FoundNoise:
    """Noise parameters, in the unit of the noise model.

    together: the one at which all images are most likely.
    by_file: {name of a file, as `planes.name_of` gives it: its own, or `together` where that fits about as well}.
    """

    together: object
    by_file: dict

    def of(self, name):
        """The parameter of a file, by its name."""
        return self.by_file.get(name, self.together)


def is_needed(options):
    """True where the training must be told the noise level of noisy images, and the user does not say it."""
    experiment = options.experiment
    return options.noisy_already and experiment.parameter_source == "known" and experiment.low is None


def limits(options, run_dir, store):
    """The range of the images: as given, as an earlier start has found it, or found now; see `ranges.find`.

    Where the noise is given or learned, it is the measured one.

    Args:
        options, run_dir: as for `find`.
        store: planes.NoisyPlanes with the range that is given or measured.
    """
    if options.value_range or not is_needed(options):
        return store.limits
    if folder.has_begun(run_dir):
        return folder.read_options(run_dir).value_range or store.limits
    start = pictures.load_once(options.warm_start)
    found, origin = ranges.refined(
        store.limits, start, lambda: [store.whole(i) for i in spread(len(store), ranges.PLANES)]
    )
    if found != store.limits:
        print(f"Range of the images: black {found[0]:.6g}, white {found[1]:.6g} ({origin}).", flush=True)
    return found


def find(options, run_dir, store):
    """The FoundNoise of a training: what its folder says, or found now.

    Args:
        options: with `warm_start`, the network that finds it.
        run_dir: folder of the run, which may not be there yet.
        store: planes.NoisyPlanes.
    """
    path = pathlib.Path(run_dir) / NAME
    if folder.has_begun(run_dir):
        if not path.exists():
            raise UserError(f"The run '{run_dir}' was started with other options: it has not looked for the noise.")
        try:
            return FoundNoise(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise UserError(f"{path}: expected the noise of the images, received '{error}'.") from error
    start, noise = pictures.load_once(options.warm_start), models.noise_model(options.experiment)
    pixels = {name: [start.middle_pixels(plane) for plane in planes] for name, planes in _planes(store).items()}
    together = start.fit([part for parts in pixels.values() for part in parts], noise)
    found = FoundNoise(together, dict(zip(pixels, start.fit_each(list(pixels.values()), together, noise))))
    noises = [pictures.noise_found(options.experiment, parameter) for parameter in found.by_file.values()]
    print(f"Noise of the images: {pictures.describe(*noises)}.", flush=True)
    return found


def save(found, run_dir):
    """Writes the noise into the folder of a run."""
    text = json.dumps(dataclasses.asdict(found), indent=1) + "\n"
    images.write_text(pathlib.Path(run_dir) / NAME, text)


def with_level(options, found):
    """The options with the level of all images together."""
    level = _level(options, found.together)
    return dataclasses.replace(options, experiment=dataclasses.replace(options.experiment, low=level, high=level))


def _level(options, parameter):
    """A parameter as a level, of four digits."""
    level = LEVELS[options.experiment.noise]
    return level.join(part and float(f"{part:.4g}") for part in level.split(level.to_level(parameter)))


def _planes(store):
    """{name of a file: some of its planes}, of some files of the store."""
    numbers = {}
    for number, name in enumerate(store.names):
        numbers.setdefault(name.rpartition("#")[0], []).append(number)
    names = list(numbers)[:: -(-len(numbers) // _FITTED_FILES)]
    return {name: [store.whole(i) for i in _some(numbers[name])] for name in names}


def _some(numbers):
    return list(numbers)[:: -(-len(numbers) // _FITTED_PLANES)]
