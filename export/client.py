"""Noisy pictures -> TensorFlow Serving -> denoised pictures. Loads neither TensorFlow nor Keras.

    python export/client.py --server=http://localhost:8501 --sigma=25 --input=noisy.png --output=clean.png
    python export/client.py --server=grpc://localhost:8500 --model=ssdn --input=FOLDER --output=FOLDER

A level has the unit that people use: sigma of 255, lam photons at white, alpha the share of replaced
pixels. It is for models that were trained with a known level, and must be of the noise that the model was
trained for: a server does not tell which that is.

Pictures travel as PNG. One with more than --tile^2 pixels goes in overlapping tiles of one size; with the
default --halo the result is that of the whole picture, except for models that estimate the level of each
picture, which estimate it for each tile. A request of 512x512 takes 1.4 GiB of the server's memory, one
of 768x768 3.1 GiB (published network, measured on a CPU); --in_flight of them are at work together. A
client sends one size at a time, as a server that batches requests cannot mix sizes.

A folder is searched with its subfolders, and its pictures become PNG files of the same name in the folder
--output; those that are there already are left out, so that a run that was stopped goes on, unless
--overwrite. A picture that cannot be read is named, and the others are done. A single file is written
anew. Every file appears whole or not at all.
"""

import collections
import concurrent.futures
import itertools
import math
import os
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # this checkout's package, not another one

import numpy as np  # noqa: E402
from absl import flags  # noqa: E402

from ssdn_tf.commands import cli, level_flags
from ssdn_tf.data import images
from ssdn_tf.errors import UserError  # noqa: E402
from ssdn_tf.inference import tiling
from ssdn_tf.serving import remote  # noqa: E402


def define(v):
    flags.DEFINE_string("server", None, "REST http://HOST:8501 (https:// too), or gRPC grpc://HOST:8500", flag_values=v)
    flags.DEFINE_string("model", "ssdn", "name of the model on the server", flag_values=v)
    flags.DEFINE_integer("version", None, "of the model (default: the newest)", lower_bound=0, flag_values=v)
    flags.DEFINE_string("input", None, "noisy picture, or a folder of them", flag_values=v)
    flags.DEFINE_string("output", None, "where the denoised one goes, or the folder for them", flag_values=v)
    level_flags.define(v, ranges=False)
    flags.DEFINE_enum("bits", None, ("8", "16"), "of the output (default: the input's)", flag_values=v)
    flags.DEFINE_integer(
        "tile", 1024, "largest request: pictures of more than this number squared in pixels are cut into tiles "
        "of this side, halos included", flag_values=v,
    )  # fmt: skip
    flags.DEFINE_integer(
        "halo", tiling.HALO, "pixels around a tile that are sent and not kept; less is faster, and no longer exact "
        "(without a blind spot, 160 is)", lower_bound=0, flag_values=v,
    )  # fmt: skip
    flags.DEFINE_integer("in_flight", 4, "requests at a time", lower_bound=1, flag_values=v)
    flags.DEFINE_float("timeout", 120.0, "seconds that one answer may take", flag_values=v)
    flags.DEFINE_integer("retries", 5, "of a request that fails for a passing reason", lower_bound=0, flag_values=v)
    flags.DEFINE_bool("overwrite", False, "write pictures of a folder again that are there", flag_values=v)


def main(v):
    """Flags to pictures; the exit code."""
    for name in ("server", "input", "output"):
        if not v[name].value:
            raise UserError(f"expected --{name}, received none.")
    _check_numbers(v)
    level = level_from_flags(v)
    plan = planned(pathlib.Path(v.input), pathlib.Path(v.output), v.overwrite)
    server = remote.connect(v.server, v.model, v.version, v.timeout, v.retries)
    if plan:
        jobs = prepared(plan, v.tile, v.halo, v.bits and int(v.bits))
        denoiser = Denoiser(server, v.server, v.model, level)
        with Line(sum(len(job.tiles) for job in jobs), len(jobs)) as line:
            done = run(jobs, denoiser, v.in_flight, line)
        if done < len(plan):
            raise UserError(f"{len(plan) - done} of {len(plan)} pictures could not be denoised; see above.")
    print(f"{v.output}: {len(plan)} pictures, denoised by {v.model} at {v.server}.")
    return 0


# ---------------------------------------------------------------- flags


def _check_numbers(v):
    if not 0 < v.timeout < math.inf:
        raise UserError(f"--timeout: expected seconds above 0, received {v.timeout}.")
    least = tiling.to_grid(2 * v.halo) + tiling.GRID
    if v.tile % tiling.GRID or v.tile < least:
        raise UserError(
            f"--tile: expected a multiple of {tiling.GRID}, with --halo={v.halo} at least {least}, received {v.tile}."
        )


def level_from_flags(v):
    """(flag, noise parameter in the model's unit) or None.

    Raises:
        UserError: two levels, or one out of range.
    """
    found = level_flags.read_any(v)
    return found and (found[0].name, found[0].to_parameter(found[1]))


# ---------------------------------------------------------------- which files


def planned(source, target, overwrite):
    """[(file to read, file to write)].

    Raises:
        UserError: nothing to read, a name that says no format, or an input would be written over.
    """
    if not source.is_dir():
        target = target / f"{source.stem}.png" if target.is_dir() else target
        if target.suffix.lower() not in images.SUFFIXES:
            allowed = ", ".join(images.SUFFIXES)
            raise UserError(f"--output: expected a name ending in {allowed}, received '{target}'.")
        if not source.exists():
            raise UserError(f"--input: expected a picture or a folder, received '{source}', which does not exist.")
        if target.exists() and os.path.samefile(source, target):
            raise UserError(f"--output: expected another file than --input, received '{target}' for both.")
        return [(source, target)]
    if target.exists() and not target.is_dir():
        raise UserError(f"--output: expected a folder, as --input is one, received the file '{target}'.")
    if target.resolve() == source.resolve():
        raise UserError(f"--output: expected another folder than --input, received '{target}' for both.")
    files = [file for file in images.find(source) if target.resolve() not in file.resolve().parents]
    return _without_existing(_pairs(files, source, target), overwrite)


def _pairs(files, source, target):
    pairs = {}
    for file in files:
        place = target / file.relative_to(source).with_suffix(".png")
        if place in pairs:
            raise UserError(
                f"--input: expected names that differ before the suffix, received {pairs[place]} and {file}."
            )
        pairs[place] = file
    return [(file, place) for place, file in pairs.items()]


def _without_existing(pairs, overwrite):
    new = [(file, place) for file, place in pairs if overwrite or not place.exists()]
    if len(new) < len(pairs):
        images.warn(
            f"{len(pairs) - len(new)} of {len(pairs)} pictures are there already (--overwrite does them again)."
        )
    return new


# ---------------------------------------------------------------- one picture


class Job:
    """A picture to denoise: what to read and write, and its tiles (known from the header alone).

    bits: of the output; None for the input's.
    """

    def __init__(self, source, target, tile, halo, bits):
        self.source = source
        self.target = target
        self.height, self.width = images.size(source)
        whole = [tiling.to_grid(side) for side in (self.height, self.width)]
        side = max(whole) if math.prod(whole) <= tile**2 else tile
        self.tiles = tiling.tiles(self.height, self.width, side, halo)
        self.bits = bits
        self.left = len(self.tiles)
        self.answer = None

    def read(self, channels):
        """The picture, uint8 or uint16 [H',W',channels], filled up to the grid.

        It is sent with 16 bits where it has them, or where the answer shall have them.
        """
        pixels = images.to_channels(images.read(self.source), channels)
        self.bits = self.bits or 8 * pixels.itemsize
        if self.bits == 16 and self.target.suffix.lower() != ".png":
            raise UserError(f"--output: expected a name ending in .png for 16 bit, received '{self.target}'.")
        if self.bits == 16 and pixels.dtype == np.uint8:
            pixels = pixels.astype(np.uint16) * 257
        return tiling.fill(pixels)

    def put(self, tile, part):
        """Takes the answer for one tile; after the last one the picture is written. Returns True then."""
        if self.answer is None:
            self.answer = np.empty((self.height, self.width, part.shape[-1]), part.dtype)
        tile.place(part, self.answer)
        self.left -= 1
        if self.left:
            return False
        pixels, self.answer = self.answer, None
        images.write(self.target, images.to_float(pixels) if self.bits == 8 and pixels.dtype != np.uint8 else pixels)
        return True


def prepared(plan, tile, halo, bits):
    """The jobs, those with requests of the same size together.

    A picture that cannot be read is an error if it is the only one, else a warning.
    """
    jobs = []
    for source, target in plan:
        try:
            jobs.append(Job(source, target, tile, halo, bits))
        except UserError as error:
            if len(plan) == 1:
                raise
            images.warn(str(error))
    return sorted(jobs, key=request_size)


def request_size(job):
    return job.tiles[0].size


# ---------------------------------------------------------------- one request


class Denoiser:
    """Pixels in, pixels out, by a model that keeps the contract of export/README.md.

    Args:
        server: remote.Server.
        address, model: for errors.
        level: (flag, noise parameter) or None.

    Raises:
        UserError: the model is not of that kind, or a level is missing or not wanted.
    """

    def __init__(self, server, address, model, level):
        self.server = server
        self.name = f"{address}, model '{model}'"
        signatures = server.signatures()
        self.channels = self._channels(signatures)
        inputs = set(signatures["denoise_png"].inputs)
        self.extra = {}
        if "noise_parameter" in inputs:
            if level is None:
                raise UserError(f"{self.name}: expected {level_flags.choice()}, as it must be told, received none.")
            self.extra["noise_parameter"] = np.array([level[1]], np.float32)
        elif level is not None:
            raise UserError(f"--{level[0]}: expected no level, as model '{model}' takes none, received one.")

    def _channels(self, signatures):
        try:
            channels = signatures["serving_default"].inputs["noisy"][3]
            pictures = all("image_bytes" in signatures[name].inputs for name in ("denoise_png", "denoise_png16"))
        except (KeyError, IndexError, TypeError):
            channels, pictures = None, False
        if channels not in (1, 3) or not pictures:
            names = images.enumerate_names(sorted(signatures))
            raise UserError(f"{self.name}: expected a model of export/savedmodel.py, received one with {names}.")
        return channels

    def __call__(self, pixels):
        """uint8 or uint16 [H,W,C] -> the same, denoised.

        Raises:
            UserError: the server is away or refuses, or its answer is no PNG of that size.
        """
        signature = "denoise_png" if pixels.dtype == np.uint8 else "denoise_png16"
        picture = np.array([images.encode_png(pixels)], object)
        answer = self.server.predict(signature, {"image_bytes": picture} | self.extra, "image_bytes")
        expected = f"a PNG of {pixels.shape[1]}x{pixels.shape[0]} with {8 * pixels.itemsize} bits"
        if answer.shape != (1,) or not isinstance(answer[0], bytes) or not answer[0].startswith(b"\x89PNG"):
            raise UserError(f"{self.name}: expected {expected}, received something else.")
        found = images.decode(answer[0], f"{self.name}: the answer")
        if found.shape != pixels.shape or found.dtype != pixels.dtype:
            other = f"{found.shape[1]}x{found.shape[0]}, {8 * found.itemsize} bits, {found.shape[2]} channels"
            raise UserError(f"{self.name}: expected {expected} and {pixels.shape[2]} channels, received {other}.")
        return found


# ---------------------------------------------------------------- all of them


def run(jobs, denoiser, in_flight, line):
    """Denoises; returns how many pictures were written.

    At most `in_flight` requests are under way, all of one size: one size is finished before the next
    begins. An error of the server ends it all; what is written stays.
    """
    with concurrent.futures.ThreadPoolExecutor(in_flight) as pool:
        try:
            for _, same_size in itertools.groupby(jobs, key=request_size):
                waiting = collections.deque()
                for job, tile, pixels in requests(same_size, denoiser.channels, len(jobs) == 1, line):
                    waiting.append((job, tile, pool.submit(denoiser, pixels)))
                    if len(waiting) == in_flight:
                        _finish(waiting, line)
                while waiting:
                    _finish(waiting, line)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return line.pictures


def requests(jobs, channels, strict, line):
    """Yields (job, tile, pixels). What cannot be read is an error, or (not strict) a warning."""
    for job in jobs:
        try:
            filled = job.read(channels)
        except UserError as error:
            if strict:
                raise
            line.clear()
            images.warn(str(error))
            continue
        for tile in job.tiles:
            yield job, tile, tile.cut(filled)


def _finish(waiting, line):
    """Takes the oldest request's answer."""
    job, tile, answer = waiting.popleft()
    line.pictures += job.put(tile, answer.result())
    line.requests += 1
    line.draw()


class Line:
    """Progress in one line of a terminal; nothing elsewhere."""

    def __init__(self, total_requests, total_pictures, stream=None):
        self.stream = stream or sys.stderr
        self.total_requests = total_requests
        self.total_pictures = total_pictures
        self.requests = self.pictures = 0
        self.begin = time.monotonic()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.clear()

    def draw(self):
        left = (time.monotonic() - self.begin) / self.requests * (self.total_requests - self.requests)
        pictures = f"{self.pictures}/{self.total_pictures} pictures"
        self._write(f"{pictures}, {self.requests}/{self.total_requests} requests, {left:.0f} s left")

    def clear(self):
        self._write("")

    def _write(self, text):
        if self.stream.isatty():
            self.stream.write(f"\r{text}\x1b[K")
            self.stream.flush()


if __name__ == "__main__":
    sys.exit(cli.execute(main, define, __doc__, needs_flags=True))
