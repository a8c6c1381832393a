"""Training samples as a function of (seed, index): which crop, which level, which noise.

Everything random about sample i comes from one NumPy generator keyed with (seed, i), so
a run draws the same samples on every backend, on any number of replicas and threads,
and after a restart. `data.batches` carries them to the training.
"""

import concurrent.futures
import os
import pathlib
import threading

import numpy as np

from ssdn_tf.data import images
from ssdn_tf.errors import UserError

_TRAIN_PHOTOGRAPHS = (
    "astronaut.png", "chelsea.png", "motorcycle_left.png", "retina.jpg",
    "ihc.png", "hubble_deep_field.jpg", "camera.png", "coins.png", "moon.png",
    "brick.png", "grass.png", "gravel.png",
)  # fmt: skip
_HELD_OUT_PHOTOGRAPHS = ("coffee.png", "rocket.jpg")


def sample_photographs():
    """Files that scikit-image carries in its wheel: (for training, held out)."""
    import skimage.data

    folder = pathlib.Path(skimage.data.__file__).parent
    return [[folder / n for n in names] for names in (_TRAIN_PHOTOGRAPHS, _HELD_OUT_PHOTOGRAPHS)]


def hold_out(files, most=8):
    """Splits files into (training, held out): every tenth or so, at most `most`."""
    count = min(most, len(files) // 10)
    if not count:
        return files, []
    held = set(files[len(files) // (2 * count) :: len(files) // count][:count])
    return [f for f in files if f not in held], sorted(held)


class Store:
    """Pictures by number, with their `names` and the least `sides` of each."""

    def description(self):
        """What two stores of the same pictures have in common: [(name, least side), ...]."""
        return list(zip(self.names, self.sides()))

    def at_least(self, side):
        """The pictures that hold a square of this side: a Subset."""
        return Subset(self, [i for i, least in enumerate(self.sides()) if least >= side])


class ImageStore(Store):
    """Pictures by number. Decoded ones stay in memory up to a budget, the others are read again.

    Broken files and pictures smaller than `crop` are left out with a warning. Only headers and last
    bytes are checked, because decoding 44,000 photographs would take too long. Damage in the middle of
    a file is found when it is decoded: then the next picture takes its place, with a warning, and the
    others keep their numbers, so that sample i depends on the files alone.

    Args:
        files: paths.
        crop: least height and width.
        memory_mb: budget for decoded pictures, in MiB.

    Raises:
        UserError: no usable picture is left.
    """

    def __init__(self, files, crop, memory_mb=2048):
        self._budget = memory_mb * 2**20
        self._crop = crop
        self._decoded, self._sides, self._unreadable = {}, {}, set()
        self._lock = threading.Lock()
        files = list(files)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            problems = {file: problem for file, problem in zip(files, pool.map(self._problem, files)) if problem}
            self.files = [f for f in files if f not in problems]
            self.names = [file.name for file in self.files]
            for problem in sorted(set(problems.values())):
                names = [f.name for f in files if problems.get(f) == problem]
                images.warn(f"left out {images.enumerate_names(names)}: {problem}.")
            list(pool.map(self._keep, self.files))
        if len(self._unreadable) == len(self.files):
            raise UserError(
                f"expected pictures of at least {crop}x{crop} for crops of that size, received none "
                f"(left out: {images.enumerate_names([f.name for f in files])})."
            )

    def _problem(self, file):
        """None, or what is wrong with the file."""
        try:
            self._sides[file] = min(images.size(file))
            if self._sides[file] < self._crop:
                return f"smaller than the crop of {self._crop}x{self._crop}"
            if not _ends_well(file):
                images.read(file)  # something may stand behind the picture
        except UserError:
            return "no readable picture"
        return None

    def _keep(self, file):
        """Keeps a picture while the budget lasts; threads may overdraw it by a picture each."""
        if self._budget > 0:
            pixels = self._decode(file)
            if pixels is not None:
                with self._lock:
                    self._budget -= pixels.nbytes
                    self._decoded[file] = pixels

    def _decode(self, file):
        """The pixels of a file, or None, with a warning the first time, if it is damaged."""
        if file in self._unreadable:
            return None
        try:
            return images.read(file)
        except UserError as error:
            with self._lock:
                if file not in self._unreadable:
                    images.warn(f"another picture takes the place of {error}")
                self._unreadable.add(file)
            return None

    def __len__(self):
        return len(self.files)

    def sides(self):
        """The smaller side of each picture."""
        return [self._sides[file] for file in self.files]

    def __getitem__(self, number):
        return self.readable(range(len(self.files)), number)

    def readable(self, numbers, i):
        """Picture number numbers[i], or the next one in `numbers` that is not damaged.

        Raises:
            IndexError: i is beyond the end.
            UserError: all of them are damaged.
        """
        if i >= len(numbers):
            raise IndexError(i)
        for step in range(len(numbers)):
            file = self.files[numbers[(i + step) % len(numbers)]]
            pixels = self._decoded.get(file)
            pixels = self._decode(file) if pixels is None else pixels
            if pixels is not None:
                return pixels
        raise UserError(f"expected pictures, received {len(numbers)} files that cannot be decoded any more.")


class Subset:
    """Some of the pictures of a Store, by their numbers there."""

    def __init__(self, store, numbers):
        self.store, self.numbers = store, numbers

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, i):
        return self.store.readable(self.numbers, i)

    def parameter(self, i):
        """The noise parameter of picture i, of a NoisyPlanes."""
        return self.store.parameter(self.numbers[i])


def _ends_well(file):
    """False for a PNG or JPEG file whose last bytes are not those of a whole one.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with open(file, "rb") as stream:
            head = stream.read(4)
            stream.seek(-12, os.SEEK_END)
            tail = stream.read()
    except OSError as error:
        raise UserError(f"{file}: expected a picture, received a file that cannot be read ({error}).") from error
    if head == b"\x89PNG":
        return tail[4:8] == b"IEND"
    return not head.startswith(b"\xff\xd8") or tail.endswith(b"\xff\xd9")


class Samples:
    """Samples of a training.

    `self[i]` is a dict of float32 arrays, the inputs of the training model:

        noisy            [crop, crop, C], in [0, 1] plus noise, not clipped
        noise_parameter  [1, 1, P], in the unit of the noise model   (pipeline blindspot)
        target           [crop, crop, C]: the clean crop (n2c), a second noisy one with its
                         own noise and level (n2n), or the noisy one itself (mean)
        exponent         [1, 1, 1], of the annealed loss              (impulse noise in the target)

    The clean crop is in no sample of a self-supervised pipeline.

    Args:
        store: sequence of [H, W, 1 or 3]: uint8, uint16, or float32 in the unit of the networks.
        experiment: experiments.Experiment.
        noise: the NoiseModel.
        crop: side of the samples.
        seed: of the run.
        exponent: function of the image index, or None.
        noisy_already: the pictures are noisy; nothing is added.
        augment: crops are flipped and transposed at random.
        shuffle_colours: the channels of colour crops are put in a random order.
        found: function (number of a picture that is noisy already) -> its noise parameter or None; default None.
    """

    def __init__(
        self,
        store,
        experiment,
        noise,
        *,
        crop,
        seed,
        exponent=None,
        noisy_already=False,
        augment=False,
        shuffle_colours=False,
        found=None,
    ):
        self.store = store
        self.experiment = experiment
        self.noise = noise
        self.crop = crop
        self.seed = seed
        self.exponent = exponent
        self.noisy_already = noisy_already
        self.augment = augment
        self.shuffle_colours = shuffle_colours
        self.found = found

    def __getitem__(self, index):
        rng = np.random.default_rng((self.seed, index))
        number = rng.integers(len(self.store))
        clean = self._crop(number, rng)
        noisy, parameter = self._corrupt(clean, rng)
        found = self.found and self.found(number)
        parameter = parameter if found is None else found
        pipeline = self.experiment.pipeline
        sample = {"noisy": noisy}
        if pipeline == "blindspot":
            sample["noise_parameter"] = np.reshape(np.float32(parameter), (1, 1, -1))
        elif pipeline == "n2c":
            sample["target"] = clean
        elif pipeline == "n2n":
            sample["target"] = self._corrupt(clean, rng)[0]
        else:
            sample["target"] = noisy
        if self.exponent:
            sample["exponent"] = np.full((1, 1, 1), self.exponent(index), np.float32)
        return sample

    def batch(self, start, size):
        """Samples start, start + 1, ..., stacked: a dict of [size, ...]."""
        samples = [self[i] for i in range(int(start), int(start) + size)]
        return {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}

    def _crop(self, number, rng):
        pixels = self.store[number]
        top, left = (rng.integers(side - self.crop + 1) for side in pixels.shape[:2])
        pixels = pixels[top : top + self.crop, left : left + self.crop]
        if self.augment:
            pixels = images.flip(pixels, rng.integers(8))
        if self.shuffle_colours and pixels.shape[-1] == 3:
            pixels = pixels[..., rng.permutation(3)]
        return images.to_float(images.to_channels(pixels, self.experiment.channels))

    def _corrupt(self, clean, rng):
        parameter = self.experiment.draw_parameter(rng)
        if self.noisy_already:
            return clean, parameter
        return self.noise.corrupt(clean, parameter, rng), parameter
