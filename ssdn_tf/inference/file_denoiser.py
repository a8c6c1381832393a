"""A picture file becomes a denoised one: read, denoised in pieces, and written, with its std and a preview."""

import concurrent.futures
import math
import threading

import numpy as np
import tifffile

import ssdn_tf
from ssdn_tf.data import files, images, planes
from ssdn_tf.errors import Interrupted, UserError
from ssdn_tf.inference import pictures, precision
from ssdn_tf.inference.pieces import Pieces

_SHOWN = 1024  # side of a view
_PREVIEW = 320
_LITTLE = 0.02  # of the range, below which a picture has another scale


class FileDenoiser:
    """Denoises picture files.

    Args:
        worker: PictureDenoiser.
        limits: (black, white), see `data.planes.measured_range`.
        uncertainty: also write NAME-std.tif.
        preview: also write NAME-preview.png.
        views: return pictures to look at.
    """

    def __init__(self, worker, limits, uncertainty=False, preview=False, views=False):
        self.worker, self.limits = worker, limits
        self.uncertainty, self.preview, self.views = uncertainty, preview, views
        self._stopped = threading.Event()

    def all(self, pairs, levels):
        """Yields what `one` returns for each (source, target), or the UserError that it raises, in their order.

        On a cluster, several files are on their way at a time. levels: {source: noise dict}.
        """

        def safe(pair):
            try:
                return self.one(*pair, levels.get(pair[0]))
            except UserError as error:
                # A new one: the traceback of the old one keeps the files open that are gone, and the disk full.
                return UserError(f"{pair[0]}: {error}" if isinstance(error, Interrupted) else str(error))

        if self.worker.workers == 1:
            yield from map(safe, pairs)
            return
        with concurrent.futures.ThreadPoolExecutor(2 * self.worker.workers) as pool:
            try:
                yield from pool.map(safe, pairs)
            except BaseException:
                self._stopped.set()  # for the files on their way; the others do not begin
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def one(self, source, target, level=None):
        """Denoises a file. What a start that was stopped has done of it is not done again.

        Args:
            source, target: paths.
            level: of its noise, such as {"sigma": 25}; None: see PictureDenoiser.

        Returns:
            ({"file": ..., "size": ..., "noise": ...} in words, {name: view}; {} without `views`).

        Raises:
            UserError: the picture is damaged, or the file system refuses.
            Interrupted: a cluster is lost, or another thread has ended; what is done stays done.
        """
        picture = files.read(source)
        self._check(picture, level)
        with Pieces(target, self._key(picture, level)) as pieces:
            for path in files.outputs(target, self.uncertainty, self.preview):
                images.remove_leftovers(path)
            numbers = range(len(picture))
            for number in numbers:
                self._plane(picture[number], number, pieces, level)
            views = {}
            if self.preview or self.views:
                views = middle_views(picture[0], pieces.find("denoised-0"), pieces.find("std-0"), self.limits)
            if self.uncertainty and pieces.find("std-0") is not None:
                _write_std(files.beside(target, files.STD), picture, pieces.find_each("std", numbers))
            if self.preview:
                images.write(files.beside(target, files.PREVIEW), _preview(views))
            # Last: a picture that is there has all that belongs to it.
            files.write(target, picture, pieces.find_each("denoised", numbers))
            noise = pictures.describe(*(noise for n in numbers for noise in pieces.done(n).values()))
        return {"file": str(target), "size": size_of(picture), "noise": noise}, views

    def _check(self, picture, level):
        """Raises UserError for what cannot be denoised, before any work is done."""
        for shape in picture.shapes:
            images.check_size(picture.path, shape)
        try:
            for shape in picture.shapes:
                if level:
                    pictures.parameter_of(level, self.worker.predictor(shape[-1]).experiment)
            if self.uncertainty and len(set(picture.shapes)) > 1:
                raise UserError("expected planes of one shape for the standard deviations, received several.")
        except UserError as error:
            raise UserError(f"{picture.path}: {error}") from error

    def _plane(self, plane, number, pieces, level):
        """Brings the missing pieces of a plane to disk."""
        self._warn_of_scale(plane, pieces.target)
        name = f"denoised-{number}"
        pieces.allocate(name, plane.shape, plane.dtype)  # before any work, as the disk may be full
        for piece, tile, part, std, noise in self.worker.tiles(plane, self.limits, level, pieces.done(number)):
            tile.place(files.cast(part, plane.dtype), pieces.array(name, plane.shape, plane.dtype))
            if self.uncertainty and std is not None:
                tile.place(std, pieces.array(f"std-{number}", plane.shape, np.float32))
            pieces.finish(number, piece, noise)
            if self._stopped.is_set():
                raise Interrupted("stopped.")

    def _warn_of_scale(self, plane, target):
        """A picture of another scale than the others, as [0, 1] beside counts, would only be noise to the network."""
        width = self.limits[1] - self.limits[0]
        used = np.ptp(plane) / width if isinstance(plane, np.ndarray) else 1.0
        if 0 < used < _LITTLE:
            images.warn(
                f"{target}: its picture uses {used:.2%} of the range from black, {self.limits[0]:.6g}, to white, "
                f"{self.limits[1]:.6g}; alone, or with its own --range, it is denoised better."
            )

    def _key(self, picture, level):
        """What the result for a picture depends on, as JSON has it: pieces of another result are of no use."""
        models = {}
        for channels in sorted({shape[-1] for shape in picture.shapes}):
            path = self.worker.predictor(channels).source.path
            parameter = self.worker.parameters.get(channels)
            parameter = [] if parameter is None else np.ravel(parameter).tolist()
            models[str(channels)] = [str(path), pictures.stamp(path), parameter]
        return {
            "file": [str(picture.path.resolve()), *files.version_of(picture.path)],
            "models": models,
            "limits": list(self.limits),
            "tile": self.worker.tile,
            "ensemble": self.worker.ensemble,
            "precision": precision.used(),
            "level": level,
            "uncertainty": self.uncertainty,
            "version": ssdn_tf.__version__,
        }


def size_of(picture):
    """The size of a Picture in words: 512x384, or 20 planes of 512x384."""
    height, width, _ = picture.shapes[0]
    return ("" if len(picture) == 1 else f"{len(picture)} planes of ") + f"{width}x{height}"


def middle_views(plane, denoised, std, limits):
    """{name: [h,w,C] in [0, 1]}: the middle of noisy, denoised, and std, where white is a tenth of the range."""
    views = {
        name: planes.to_unit(images.middle(picture, _SHOWN), limits)
        for name, picture in (("noisy", plane), ("denoised", denoised))
    }
    if std is None:
        return views
    return views | {"std (white: a tenth of the range)": 10 * images.middle(std, _SHOWN) / (limits[1] - limits[0])}


def _preview(views):
    """uint8 [h,w,3]: the middles of the views, side by side."""
    cut = [images.to_uint8(images.middle(view, _PREVIEW)) for view in views.values()]
    return np.concatenate([images.to_channels(view, 3) for view in cut], axis=1)


def _write_std(path, picture, stds):
    """A TIFF of 32-bit floats with the std of each plane, all of one shape, as a page."""
    height, width, channels = picture.shapes[0]
    page = (height, width, channels) if channels == 3 else (height, width)
    pages = (np.asarray(std).reshape(page) for std in stds)
    shape = (len(picture), *page) if len(picture) > 1 else page
    options = {"photometric": "rgb" if channels == 3 else "minisblack", "bigtiff": 4 * math.prod(shape) > 2**32 - 2**26}
    images.write_whole(path, lambda file: tifffile.imwrite(file, pages, shape=shape, dtype=np.float32, **options))
