"""Noisy pictures of any kind as training data, and the range of their intensities. NumPy."""

import math
import pathlib

import numpy as np

from ssdn_tf.data import files, images
from ssdn_tf.data.samples import Store
from ssdn_tf.errors import UserError

SAMPLED = 32  # planes of a set, for its range of intensities
_SAMPLED_PIXELS = 2**16  # of each
_HELD_OUT, _HELD_OUT_ROWS = 8, 64  # planes of a training that lose so many rows at most


def spread(count, most=SAMPLED):
    """At most `most` of the numbers below `count`, evenly spaced, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int)).tolist()


def name_of(path, folder):
    """The name of a file below a folder, with its subfolders; of another file, without any."""
    path, folder = pathlib.Path(path), pathlib.Path(folder)
    return path.relative_to(folder).as_posix() if folder in path.parents else path.name


def readable(planes, read):
    """Yields what read(plane) returns for each plane; damaged ones are left out here, as denoising names them."""
    for plane in planes:
        try:
            sample = read(plane)
        except UserError:
            continue
        yield sample


def measured_range(planes):
    """(black, white) of a set of planes of one dtype.

    8 bit: 0 and 255. Floats within -0.5 and 1.5, not all below 0.1: 0 and 1. 16 bit that reaches the upper half: 0 and
    65535. All others (12 bit in 16, a camera's offset, counts): what 0.1 % and 99.9 % of the pixels stay below.

    Args:
        planes: iterable of [H,W,C], of a large set `spread` over it. Damaged ones are left out; without any, 0 and 1.
    """
    values = []
    for plane in planes:
        if plane.dtype == np.uint8:
            return 0.0, 255.0
        values.extend(readable([plane], _sample))
    if not values:
        return 0.0, 1.0
    dtype = values[0].dtype.newbyteorder("=")
    low, high = np.percentile(np.concatenate(values).astype(np.float64), (0.1, 99.9))
    if dtype.kind == "f" and low >= -0.5 and 0.1 < high <= 1.5:
        return 0.0, 1.0
    if dtype == np.uint16 and high > 2**15:
        return 0.0, 65535.0
    return float(low), float(high if high > low else low + max(1.0, 1e-6 * abs(low)))


def _sample(plane):
    step = max(int((plane.size // _SAMPLED_PIXELS) ** 0.5), 1)
    return np.ravel(plane[::step, ::step])


def to_unit(plane, limits):
    """A plane in the unit of the networks: float32, black 0 and white 1."""
    black, white = limits
    return ((np.asarray(plane, np.float64) - black) / (white - black)).astype(np.float32)


class UnitView:
    """A plane [H,W,C] of any dtype, seen in the unit of the networks and with their channels: only what is sliced is
    converted.
    """

    def __init__(self, plane, limits, channels):
        self._plane, self._limits = plane, limits
        self.shape = (*plane.shape[:2], channels)

    def __getitem__(self, index):
        """float32 [h,w,channels] of two slices."""
        return images.to_channels(to_unit(self._plane[index], self._limits), self.shape[-1])


class NoisyPlanes(Store):
    """The planes of noisy picture files, float32 [H,W,C] in the unit of the networks, all in memory.

    A `samples.ImageStore` for pictures of any format and dtype; each page of a stack is a picture.

    Args:
        paths: files.
        crop: least height and width; smaller planes are left out with a warning, and so are files that cannot be read.
        memory_mb: most memory for the planes, in MiB.
        limits: (black, white); None: see `measured_range`.
        folder: that the files are below, which their names leave out.
        hold_out: leave out of the planes what `held_out` has.

    held_out: {number of a plane: its last rows}, of every tenth plane or so, to test with. Parts, not planes: each
        picture is to gain by the training, and a few noisy ones are all that there is.

    Raises:
        UserError: no usable plane is left.
    """

    def __init__(self, paths, crop, memory_mb=2048, limits=None, folder="", hold_out=False):
        self.names, planes, small = [], [], []
        left = memory_mb * 2**20
        for name, plane in _planes(paths, folder):
            if min(plane.shape[:2]) < crop:
                small.append(name.rpartition("#")[0])
                continue
            rows = height = plane.shape[0]
            row = max(plane.dtype.itemsize, 4) * math.prod(plane.shape[1:])
            rest = left - row * height
            if rest < 0 and planes:
                images.warn(f"only {len(planes)} pictures fit into {memory_mb} MiB; the others are left out.")
                break
            if rest < 0:
                rows = int(memory_mb * 2**20 // row)
                if rows < crop:
                    raise UserError(f"{name.rpartition('#')[0]}: expected a picture that fits into {memory_mb} MiB.")
                images.warn(f"only {rows} of {height} rows of the first picture fit into {memory_mb} MiB.")
            try:  # a Zarr is read here
                planes.append(np.asarray(plane) if rows == height else np.array(plane[:rows]))
            except UserError as error:
                images.warn(f"left out {error}")
                continue
            self.names.append(name)
            left = rest
        if small:
            images.warn(
                f"left out {images.enumerate_names(dict.fromkeys(small))}: smaller than the crop of {crop}x{crop}."
            )
        if not planes:
            raise UserError(f"expected pictures of at least {crop}x{crop} for crops of that size, received none.")
        dtypes = sorted({plane.dtype.name for plane in planes})
        if limits is None and len(dtypes) > 1:
            raise UserError(
                f"expected pictures of one dtype, or a range of intensities, received {' and '.join(dtypes)}."
            )
        self.noise = None  # a training.found_noise.FoundNoise, once it is found
        self.limits = limits or measured_range([planes[i] for i in spread(len(planes))])
        self._planes, self.held_out = [], {}
        for i, plane in enumerate(planes):
            self._planes.append(to_unit(plane, self.limits))
            planes[i] = None  # its memory is the next one's
        for i in spread(len(planes), min(_HELD_OUT, -(-len(planes) // 10))) if hold_out else ():
            height = len(self._planes[i])
            rows = min(height // 8, _HELD_OUT_ROWS)
            if rows and height - rows >= crop:
                self._planes[i], self.held_out[i] = np.split(self._planes[i], [height - rows])

    def __len__(self):
        return len(self._planes)

    def __getitem__(self, i):
        return self._planes[i]

    def whole(self, i):
        """Plane i with what is held out of it."""
        return np.concatenate([self._planes[i], self.held_out[i]]) if i in self.held_out else self._planes[i]

    def readable(self, numbers, i):
        """Plane numbers[i]."""
        return self._planes[numbers[i]]

    def parameter(self, i):
        """The noise parameter of plane i, or None where it is not found."""
        return self.noise and self.noise.of(self.names[i].rpartition("#")[0])

    def sides(self):
        """The smaller side of each plane."""
        return [min(plane.shape[:2]) for plane in self._planes]


def _planes(paths, folder):
    """(name, plane) of all files; what cannot be read is left out with a warning."""
    for path in paths:
        try:
            picture = files.read(path)
        except UserError as error:
            images.warn(f"left out {error}")
            continue
        for number in range(len(picture)):
            try:
                yield f"{name_of(path, folder)}#{number}", picture[number]
            except UserError as error:
                images.warn(f"left out {error}")
