"""Zarr arrays, and the images of OME-Zarr, as planes that are read in parts. Needs the package zarr."""

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

    def __init__(self, array, index, shape, name):
        self._array, self._index, self.shape, self._name = array, index, shape, name
        self.dtype, self.size = array.dtype, math.prod(shape)

    def __getitem__(self, key):
        key = key if isinstance(key, tuple) else (key,)
        try:
            part = np.asarray(self._array[(*self._index, *key[:2])])
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
    called c. Of an OME-Zarr image, the first scale is read.
    """
    array, names, _ = _find(path)
    shape = array.shape
    if len(shape) < 2 or array.dtype.kind not in "uif" or not math.prod(shape):
        raise UserError(f"{path}: expected real numbers [..., H, W] or [..., H, W, 3], received {array.dtype} {shape}.")
    samples = len(shape) > 2 and shape[-1] in (1, 3) and (names is None or names[-1] == "c")
    stack = shape[: -3 if samples else -2]
    plane = shape[len(stack) :] if samples else (*shape[-2:], 1)
    shapes = [tuple(plane)] * math.prod(stack)
    axes = "".join(name.upper() for name in names) if names else "Q" * len(stack) + ("YXS" if samples else "YX")

    def load(number):
        return Plane(array, np.unravel_index(number, stack), plane, f"{path}, plane {number + 1} of {len(shapes)}")

    return array.dtype, shape, axes, shapes, load


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


def write(folder, planes, shape, dtype, like=None):
    """Writes planes [H,W,C] as a new Zarr.

    Args:
        folder: new.
        planes: iterable; each may be a memory map.
        shape, dtype: of the array.
        like: path of a Zarr whose chunks, attributes and place in its group are kept; of several scales, only the first
            is written.
    """
    zarr = package()
    shape = tuple(shape)
    if like is None:
        side = [min(_SIDE, n) if n > 4 else n for n in shape]
        stack = len(shape) - (3 if shape[-1] == 3 else 2)
        array = zarr.create_array(str(folder), shape=shape, dtype=dtype, chunks=(*[1] * stack, *side[stack:]))
    else:
        array = _create_like(zarr, folder, like)
    channels = 3 if array.ndim > 2 and _has_samples(like, array) else 0
    stack = array.shape[: -3 if channels else -2]
    for number, plane in enumerate(planes):
        index = np.unravel_index(number, stack)
        rows = array.chunks[len(stack)]
        step = max(_BAND // (rows * plane[:1].nbytes), 1) * rows
        for top in range(0, plane.shape[0], step):
            part = plane[top : top + step]
            array[(*index, slice(top, top + step))] = part if channels else part[..., 0]


def _has_samples(like, array):
    if like is None:
        return array.shape[-1] == 3
    return read(like)[3][0] == array.shape[-3:]


def _create_like(zarr, folder, like):
    source, names, inside = _find(like)
    settings = {"shape": source.shape, "dtype": source.dtype, "chunks": source.chunks}
    settings |= {"attributes": source.attrs.asdict(), "zarr_format": source.metadata.zarr_format}
    if source.metadata.zarr_format == 3:
        settings |= {"shards": source.shards, "dimension_names": getattr(source.metadata, "dimension_names", None)}
    if not inside:
        return zarr.create_array(str(folder), **settings)
    group = zarr.open(str(like), mode="r")
    attributes = group.attrs.asdict()
    scales = attributes.get("ome", attributes).get("multiscales")
    if scales:
        scales[0]["datasets"] = scales[0]["datasets"][:1]
        del scales[1:]
    made = zarr.create_group(str(folder), zarr_format=source.metadata.zarr_format, attributes=attributes)
    return made.create_array(inside, **{k: v for k, v in settings.items() if k != "zarr_format"})
