"""Zarr arrays, and the images of OME-Zarr, as planes that are read in parts. Needs the package zarr."""

import dataclasses
import math
import pathlib

import numpy as np

from ssdn_tf.errors import UserError, optional

SUFFIX = ".zarr"
_METADATA = ("zarr.json", ".zarray", ".zgroup")
_SIDE = 1024  # of the chunks of a new array
_BAND = 2**26  # bytes that are written at once


class Plane:
    """A plane [H,W,C] of a Zarr array. It looks like an array, but reads only what is sliced.

    Slicing raises a UserError where numbers are not finite, or a chunk cannot be read.
    """

    def __init__(self, array, layout, number, name):
        self._array, self._layout, self._number, self._name = array, layout, number, name
        self.dtype, self.shape, self.size = array.dtype, layout.plane, math.prod(layout.plane)

    def __getitem__(self, key):
        rows, columns = (*(key if isinstance(key, tuple) else (key,)), slice(None))[:2]
        try:
            part = np.asarray(self._array[self._layout.index(self._number, rows, columns)])
        except Exception as error:  # a damaged chunk: its decoder raises anything
            raise UserError(f"{self._name}: expected a chunk that can be read, received '{error}'.") from error
        part = part if part.ndim == 3 else part[..., None]
        if part.dtype.kind == "f" and not np.isfinite(part).all():
            raise UserError(f"{self._name}: expected finite numbers, received NaN or infinity.")
        return part

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self[:, :], dtype)


def is_zarr(path):
    """True for the folder of a Zarr array or group."""
    path = pathlib.Path(path)
    return path.is_dir() and any((path / name).exists() for name in _METADATA)


def package():
    """The module zarr.

    Raises:
        UserError: it is not installed.
    """
    with optional("Zarr needs the package zarr", "zarr"):
        import zarr
    return zarr


def read(path):
    """(dtype, shape, axes, shapes of the planes, function of a number that gives its Plane).

    Without names, a last axis of 3 is colour and one of 1 gray, as in .npy files; with names (OME-Zarr), only if it is
    called c, and one of another length then counts gray planes. Of an OME-Zarr image, the first scale is read.
    """
    array, names, _ = _find(path)
    shape = array.shape
    if len(shape) < 2 or array.dtype.kind not in "uif" or not math.prod(shape):
        raise UserError(f"{path}: expected real numbers [..., H, W] or [..., H, W, 3], received {array.dtype} {shape}.")
    layout = _Layout.of(shape, _channels_last(shape, names))
    shapes = [layout.plane] * math.prod(layout.stack)
    axes = "".join(name.upper() for name in names) if names else "Q" * len(layout.stack) + "YX"
    axes = axes.removesuffix("C") + "S" if layout.samples else axes

    def load(number):
        return Plane(array, layout, number, f"{path}, plane {number + 1} of {len(shapes)}")

    return array.dtype, shape, axes, shapes, load


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Where the planes of an array are.

    stack: shape of the axes that count planes.
    plane: [H, W, C] of each.
    samples: the last axis is that of the colours.
    counts_last: the last axis counts planes.
    """

    stack: tuple
    plane: tuple
    samples: bool
    counts_last: bool = False

    @classmethod
    def of(cls, shape, channels_last):
        """The layout of an array of this shape."""
        if channels_last and shape[-1] not in (1, 3):
            return cls((*shape[:-3], shape[-1]), (*shape[-3:-1], 1), samples=False, counts_last=True)
        first = len(shape) - (3 if channels_last else 2)
        return cls(shape[:first], (*shape[first:], 1)[:3], channels_last)

    def index(self, number, rows, columns):
        """The index of a part of a plane in the array."""
        place = np.unravel_index(number, self.stack)
        return (*place[:-1], rows, columns, place[-1]) if self.counts_last else (*place, rows, columns)


def _channels_last(shape, names):
    return len(shape) > 2 and (names[-1] == "c" if names else shape[-1] in (1, 3))


def _find(path):
    """(array, names of its axes or None, path of the array inside its group or "")."""
    found = package().open(str(path), mode="r")
    if hasattr(found, "shape"):
        names = getattr(found.metadata, "dimension_names", None)
        return found, names if names and all(names) else None, ""
    attributes = found.attrs.asdict()
    scales = attributes.get("ome", attributes).get("multiscales")
    if scales:
        inside = scales[0]["datasets"][0]["path"]
        names = [axis["name"] if isinstance(axis, dict) else axis for axis in scales[0].get("axes", [])]
        return found[inside], names or None, inside
    arrays = [name for name, _ in found.arrays()]
    if len(arrays) != 1:
        raise UserError(f"{path}: expected an OME-Zarr image or a single array, received {len(arrays)} arrays.")
    return found[arrays[0]], None, arrays[0]


def write(folder, planes, shape, dtype, samples=False, like=None):
    """Writes planes [H,W,C] as a new Zarr.

    Args:
        folder: new.
        planes: iterable; each may be a memory map.
        shape, dtype: of the array.
        samples: its last axis is that of the colours.
        like: path of a Zarr whose layout, compression, attributes and place in its group are kept; `shape`, `dtype` and
            `samples` are then ignored. Of several scales, only the first is written.
    """
    if like is None:
        layout = _Layout.of(shape, samples)
        chunks = [min(_SIDE, n) if n > 4 else n for n in shape[len(layout.stack) :]]
        chunks = (*[1] * len(layout.stack), *chunks)
        array = package().create_array(str(folder), shape=shape, dtype=dtype, chunks=chunks)
    else:
        array, layout = _create_like(folder, like)
    rows = (array.shards or array.chunks)[len(layout.stack) - layout.counts_last]  # of a chunk, or a shard of them
    for number, plane in enumerate(planes):
        step = max(_BAND // (rows * plane[:1].nbytes), 1) * rows
        for top in range(0, plane.shape[0], step):
            part = plane[top : top + step]
            index = layout.index(number, slice(top, top + step), slice(None))
            array[index] = part if layout.samples else part[..., 0]


def _create_like(folder, like):
    zarr = package()
    source, names, inside = _find(like)
    if inside:
        attributes = zarr.open(str(like), mode="r").attrs.asdict()
        scales = attributes.get("ome", attributes).get("multiscales")
        if scales:
            scales[0]["datasets"] = scales[0]["datasets"][:1]
            del scales[1:]
        zarr.create_group(str(folder), zarr_format=source.metadata.zarr_format, attributes=attributes)
    kept = {"fill_value": source.fill_value, "attributes": source.attrs.asdict()}
    array = zarr.from_array(str(folder), data=source, write_data=False, name=inside or None, **kept)
    return array, _Layout.of(source.shape, _channels_last(source.shape, names))
