"""Picture files through a remote denoiser: which files, in which tiles, several requests at a time.

Loads neither TensorFlow nor Keras.
"""

import collections
import concurrent.futures
import os

import numpy as np
from tqdm import tqdm

from ssdn_tf.data import images
from ssdn_tf.errors import UserError
from ssdn_tf.inference import tiling


def plan(source, target, overwrite):
    """Which file goes where.

    Args:
        source: pathlib.Path of a picture, or of a folder that is searched with its subfolders.
        target: pathlib.Path of the file, or of the folder for PNG files of the same names.
        overwrite: denoise pictures of a folder whose target exists, too.

    Returns:
        [(file to read, file to write)]

    Raises:
        UserError: there is nothing to read, a name has no known suffix, or an input would be overwritten.
    """
    if not source.is_dir():
        target = target / f"{source.stem}.png" if target.is_dir() else target
        if target.suffix.lower() not in images.SUFFIXES:
            raise UserError(f"expected an output name ending in {', '.join(images.SUFFIXES)}, received '{target}'.")
        if not source.exists():
            raise UserError(f"expected a picture or a folder as input, received '{source}', which does not exist.")
        if target.exists() and os.path.samefile(source, target):
            raise UserError(f"input and output must differ, received '{target}' for both.")
        return [(source, target)]
    if target.exists() and not target.is_dir():
        raise UserError(f"the input is a folder, so the output must be one too, received the file '{target}'.")
    if target.resolve() == source.resolve():
        raise UserError(f"input and output must differ, received '{target}' for both.")
    files = images.find(source)
    if source.resolve() in target.resolve().parents:  # what an earlier start has denoised is no input
        files = [file for file in files if target.resolve() not in file.resolve().parents]
    pairs = _pairs(files, source, target)
    new = [(file, place) for file, place in pairs if overwrite or not place.exists()]
    if len(new) < len(pairs):
        images.warn(f"skipping {len(pairs) - len(new)} of {len(pairs)} pictures, which are already in '{target}'.")
    return new


def _pairs(files, source, target):
    pairs, sources = {}, {file.resolve() for file in files}
    for file in files:
        place = target / file.relative_to(source).with_suffix(".png")
        if place in pairs:
            raise UserError(f"{pairs[place]} and {file} would both be written to {place}; rename one of them.")
        if place.resolve() in sources:
            raise UserError(f"{file} would be written over the input {place}; choose another output folder.")
        pairs[place] = file
    return [(file, place) for place, file in pairs.items()]


class Job:
    """One picture: its files and its tiles, which follow from the header alone.

    Args:
        source, target: files.
        tile: pictures of more than this number squared in pixels are cut into tiles of this side.
        halo: overlap of the tiles, see `tiling`.
        grid: of the network.
        bits: of the output, 8 or 16; None for those of the input.

    Raises:
        UserError: the file is not a picture.
    """

    def __init__(self, source, target, tile, halo, grid, bits):
        self.source = source
        self.target = target
        self.height, self.width = images.size(source)
        side = tile
        if self.height * self.width <= tile**2:
            side = tiling.to_grid(max(self.height, self.width), grid)
        self.tiles = tiling.tiles(self.height, self.width, side, halo, grid)
        self.bits = bits
        self._missing = len(self.tiles)
        self._answer = None

    @property
    def request_size(self):
        return self.tiles[0].size

    def read(self, channels):
        """The picture, uint8 or uint16 [H,W,channels].

        It has 16 bits where the file has them, or where the output shall have them.
        """
        pixels = images.to_channels(images.read(self.source), channels)
        self.bits = self.bits or 8 * pixels.itemsize
        if self.bits == 16 and self.target.suffix.lower() != ".png":
            raise UserError(f"16 bits need an output name ending in .png, received '{self.target}'.")
        if self.bits == 16 and pixels.dtype == np.uint8:
            pixels = pixels.astype(np.uint16) * 257
        return pixels

    def put(self, tile, part):
        """Takes the answer for one tile. After the last one it writes the picture and returns True."""
        if self._answer is None:
            self._answer = np.empty((self.height, self.width, part.shape[-1]), part.dtype)
        tile.place(part, self._answer)
        self._missing -= 1
        if self._missing:
            return False
        pixels, self._answer = self._answer, None
        images.write(self.target, images.to_float(pixels) if self.bits == 8 and pixels.dtype != np.uint8 else pixels)
        return True


def prepare(pairs, **settings):
    """A Job for each (source, target), sorted by the size of their requests; settings: of `Job`.

    A picture that cannot be read is an error if it is the only one, else a warning.
    """
    found = []
    for source, target in pairs:
        try:
            found.append(Job(source, target, **settings))
        except UserError as error:
            if len(pairs) == 1:
                raise
            images.warn(str(error))
    return sorted(found, key=lambda job: job.request_size)


def run(jobs, denoiser, in_flight):
    """Denoises the pictures and returns how many were written. Shows a progress bar on a terminal.

    At most `in_flight` requests are under way, all of one size, because a server that batches requests cannot mix
    sizes. An error of the server ends the run; pictures that are written stay.

    Args:
        jobs: list of Job, sorted by `request_size`.
        denoiser: function (pixels) -> pixels with an attribute `channels`.
        in_flight: most requests at a time.
    """
    written = 0
    waiting = collections.deque()

    def finish():
        nonlocal written
        job, tile, answer = waiting.popleft()
        written += job.put(tile, answer.result())
        bar.set_postfix_str(f"{written} of {len(jobs)} pictures", refresh=False)
        bar.update()

    total = sum(len(job.tiles) for job in jobs)
    with tqdm(total=total, unit="request", disable=None) as bar, _Pool(in_flight) as pool:
        size = None
        for job, tile, pixels in _requests(jobs, denoiser.channels, strict=len(jobs) == 1):
            while waiting and (len(waiting) == in_flight or pixels.shape != size):
                finish()
            size = pixels.shape
            waiting.append((job, tile, pool.submit(denoiser, pixels)))
        while waiting:
            finish()
    return written


class _Pool(concurrent.futures.ThreadPoolExecutor):
    """An error in the block cancels the requests that wait; those on their way are waited for as the process ends."""

    def __exit__(self, kind, *_):
        self.shutdown(wait=kind is None, cancel_futures=True)


def _requests(jobs, channels, strict):
    """Yields (job, tile, pixels). A file that cannot be read is an error if `strict`, else a warning."""
    for job in jobs:
        try:
            pixels = job.read(channels)
        except UserError as error:
            if strict:
                raise
            images.warn(str(error))
            continue
        for tile in job.tiles:
            yield job, tile, tile.cut(pixels)
