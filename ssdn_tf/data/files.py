"""Any picture file as planes, and planes back into a file of its kind. No Keras here.

A file that is read and written keeps its dtype, its numbers as they are (nothing is stretched),
its pages and axes, its resolution and its description. TIFF and NumPy files are read and written
one plane at a time, so a stack may be larger than memory; of a Zarr, a plane may be, too.
"""

import contextlib
import dataclasses
import functools
import io
import logging
import math
import pathlib
import threading
import weakref
from collections.abc import Callable

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

from ssdn_tf.data import images, zarr_files
from ssdn_tf.errors import UserError

TIFF = (".tif", ".tiff", ".btf")
# The dtypes of a single picture; TIFF and NumPy files hold any, and stacks.
SINGLE = {".png": ("uint8", "uint16")} | dict.fromkeys((".jpg", ".jpeg", ".bmp", ".webp"), ("uint8",))
_LARGEST = dict.fromkeys((".jpg", ".jpeg"), 65500) | {".webp": 16383}  # pixels a side
SUFFIXES = (*SINGLE, *TIFF, ".npy", zarr_files.SUFFIX)

_TRANSPARENT = (".png", ".webp")
_PNG_CHUNKS = frozenset(b"tEXt zTXt iTXt pHYs iCCP sRGB gAMA cHRM cICP eXIf tIME".split())
_PILLOW_INFO = ("exif", "icc_profile", "xmp", "dpi", "comment")
_LOSSLESS = (1, 5, 8, 32773, 34925, 50000)  # none, LZW, Deflate, PackBits, LZMA, Zstandard
_ADOBE_DEFLATE = 8
_JPEG = (6, 7)
_ORIENTATION = 274
_BAND = 256  # rows of a plane that are checked at once
_GRAY, _RGB, _PALETTE, _INKS, _YCBCR = 1, 2, 3, 5, 6
_PHOTOMETRIC = (0, _GRAY, _RGB, _PALETTE, _INKS, _YCBCR)  # 0 is gray too
_SAMPLES = {_RGB: 3, _INKS: 4}  # that a page must have
# Tags that the writer makes anew: they follow from how the pixels are stored. The rest is copied byte by byte.
_STORAGE_TAGS = frozenset(
    [*range(256, 260), 254, 262, 266, 273, *range(277, 280), 282, 283, 284, *range(288, 290), 292, 293, 296, 317, 320]
    + [*range(322, 326), 338, 339, 347, *range(512, 522), *range(529, 533), 32997, 32998]
)
# Tags whose values are places in the old file: SubIFDs, Exif, GPS, interoperability, Zeiss LSM, MetaMorph.
_POINTERS = frozenset([330, 400, 34665, 34853, 40965, 34412, *range(33628, 33632)])

# What tifffile logs about damaged files is told by UserErrors here.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)


@dataclasses.dataclass
class Picture:
    """What a file holds: planes [H, W, C] in the file's dtype, C = 1 gray or 3 colour, each loaded when asked for.

    Channels that are no colours, the inks of a CMYK TIFF too, are gray planes of their own. Transparency is in
    no plane; `write` keeps it. Threads may load planes at the same time.

    path: the file.
    dtype: of the planes (of the first page's, should a TIFF mix them).
    dtypes: of all planes, each once.
    shape, axes: of the whole file, as tifffile names axes: 'YX', 'YXS', 'ZYX', 'TZCYX', S samples, Q unknown;
        for TIFFs with pages of several shapes ((number of planes,), 'Q').
    shapes: [H, W, C] of every plane, known without loading it.
    """

    path: pathlib.Path
    dtype: np.dtype
    shape: tuple
    axes: str
    shapes: list
    load: Callable = dataclasses.field(repr=False)  # number -> a native array that nothing else holds
    kept: dict = dataclasses.field(default_factory=dict, repr=False)  # what `write` needs besides

    def __len__(self):
        return len(self.shapes)

    @property
    def dtypes(self):
        return self.kept.get("dtypes", [self.dtype])

    def __getitem__(self, i):
        """Plane i, a new array [H, W, C]; of a Zarr, a `zarr_files.Plane`, which is read when it is sliced.

        Raises:
            UserError: the plane is damaged, or has NaN or infinity.
        """
        i = range(len(self))[i]
        plane = self.load(i)
        if isinstance(plane, zarr_files.Plane):
            return plane
        if plane.dtype.kind == "f" and (wrong := _count_not_finite(plane)):
            name = f"{self.path}, plane {i + 1} of {len(self)}"
            raise UserError(f"{name}: expected finite numbers, received {wrong} that are NaN or infinite.")
        return plane


def read(path):
    """The Picture in a PNG, JPEG, BMP, WebP, TIFF, NumPy file or Zarr; the content says which it is, not the name.

    NumPy arrays: [H, W] is one picture. With three or more axes, a last axis of 3 is colour and one of 1
    is gray; otherwise all axes but the last two count pictures. So [N, H, 3] is always one colour picture.

    Raises:
        UserError: no picture, damaged or empty.
    """
    path = pathlib.Path(path)
    with images.reading(path):
        if zarr_files.is_zarr(path):
            return Picture(path, *zarr_files.read(path), {"zarr": path})
        with path.open("rb") as file:
            head = file.read(6)
        if not head:
            raise UserError(f"{path}: expected a picture, received an empty file.")
        if head == b"\x93NUMPY":
            return _read_numpy(path)
        if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return _read_tiff(path)
        return _read_single(path)


def find(path):
    """[(file, its name relative to the folder)], sorted, of the pictures below a folder; a file is itself found.

    Files with another suffix are named in one warning and left out.

    Raises:
        UserError: no such file or folder, or no picture in it.
    """
    path = pathlib.Path(path)
    if path.is_file() or zarr_files.is_zarr(path):
        return [(path, pathlib.Path(path.name))]
    if not path.is_dir():
        raise UserError(f"expected a picture or a folder with pictures, received '{path}', which does not exist.")
    return [(file, file.relative_to(path)) for file in images.find(path, SUFFIXES)]


STD, PREVIEW = "std.tif", "preview.png"  # what a denoised picture can have beside it


def beside(path, what):
    """The path of a file that belongs to another: x.png and "std.tif" give x-std.tif; of a folder, FOLDER-what."""
    path = pathlib.Path(path)
    path = path if path.name not in ("", "..") else path.resolve()
    stem = path.stem if path.suffix.lower() in SUFFIXES else path.name
    return path.with_name(f"{stem}-{what}")


def version_of(path):
    """[bytes, time of the last change in ns] of a file, or of all that is below a folder, as a Zarr is one."""
    path = pathlib.Path(path)
    found = [file.stat() for file in (path, *path.rglob("*"))] if path.is_dir() else [path.stat()]
    return [sum(entry.st_size for entry in found), max(entry.st_mtime_ns for entry in found)]


def outputs(target, std, preview):
    """The files that denoising a picture leaves: the result, and what is wanted beside it."""
    return [target, *(beside(target, what) for what in [STD] * std + [PREVIEW] * preview)]


def write(path, picture, planes):
    """Writes planes in place of those of a Picture that was read. The file appears whole or not at all.

    The suffix of the path says the format. Between files of one kind everything is kept: pages, axes, compression
    (if it loses nothing), resolution, description, colour profile, transparency; into another kind, the pixels and
    what the two have in common. JPEG is written with quality 95, and so is WebP if it was lossy.

    planes: iterable of real arrays [H, W, C], shaped and scaled like the picture's (a generator will do). Integers
        are rounded and clipped to the dtype of the picture; floats are clipped to its largest finite number.

    Raises:
        UserError: as `check_target`, numbers are not finite, or the disk refuses.
        ValueError: planes of other shapes or another number than the picture's.
    """
    path = pathlib.Path(path)
    suffix = path.suffix.lower()
    check_target(path, picture)
    planes = _matching(path, picture, planes)
    if suffix in (".npy", zarr_files.SUFFIX) and "alpha" in picture.kept:
        images.warn(f"{picture.path}: transparency is left out of a {suffix} file.")
    if suffix == zarr_files.SUFFIX:
        like = picture.kept.get("zarr")
        shape = picture.shape if like else _common_shape(picture)
        cast_planes = (cast(plane, picture.dtype) for plane in planes)
        samples = picture.shapes[0][-1] == 3
        images.write_whole_folder(
            path, lambda folder: zarr_files.write(folder, cast_planes, shape, picture.dtype, samples, like)
        )
        return

    def write_to(file):
        if suffix == ".npy":
            _write_numpy(file, picture, planes)
        elif suffix in TIFF:
            (_rewrite_tiff if "units" in picture.kept else _write_tiff)(file, picture, planes)
        else:
            file.write(_encode(path, suffix, picture, cast(next(planes), picture.dtype)))
        next(planes, None)  # the check that none is left

    images.write_whole(path, write_to)


def check_target(path, picture):
    """Raises UserError if a Picture cannot be written there.

    Its format cannot hold the picture, needs a package that is not installed, or a folder has this name.
    """
    path, fitting = pathlib.Path(path), [s for s in SUFFIXES if _fits(s, picture)]
    suffix = path.suffix.lower()
    if suffix not in fitting:
        what = f"{len(picture)} plane{'s' * (len(picture) > 1)} of {' and '.join(map(str, picture.dtypes))}"
        wanted = f"a name ending in {' or '.join(fitting)}" if fitting else "planes of one shape and a common dtype"
        raise UserError(f"{path}: expected {wanted} for {what}, received '{path.suffix}'.")
    if suffix == zarr_files.SUFFIX:
        zarr_files.package()
    side, most = max(picture.shapes[0][:2]), _LARGEST.get(suffix, math.inf)
    if side > most:
        raise UserError(f"{path}: expected at most {most} pixels a side for {path.suffix}, received {side}.")
    if path.is_dir() and not (suffix == zarr_files.SUFFIX and zarr_files.is_zarr(path)):
        raise UserError(f"{path}: expected the name of a picture, received that of a folder.")


def _fits(suffix, picture):
    if suffix in SINGLE:
        return len(picture) == 1 and picture.dtype.name in SINGLE[suffix]
    if suffix in TIFF and "units" in picture.kept:
        return True
    if len(set(picture.shapes)) > 1 or len(picture.dtypes) > 1:
        return False
    return suffix == ".npy" or picture.dtype.itemsize <= 8


def _matching(path, picture, planes):
    """The planes, checked; then an error if there are more of them."""
    planes, total = iter(planes), len(picture)
    for number, shape in enumerate(picture.shapes, 1):
        plane = next(planes, None)
        if plane is None:
            raise ValueError(f"{path}: expected {total} planes, received {number - 1}")
        plane = np.asarray(plane)
        if plane.shape != shape:
            raise ValueError(f"{path}, plane {number}: expected shape {shape}, received {plane.shape}")
        if plane.dtype.kind == "f" and (wrong := _count_not_finite(plane)):
            name = f"{path}, plane {number} of {total}"
            raise UserError(f"{name}: expected finite numbers to write, received {wrong} that are NaN or infinite.")
        yield plane
    if next(planes, None) is not None:
        raise ValueError(f"{path}: expected {total} planes, received more")


def _count_not_finite(plane):
    """How many values are NaN or infinite, without an array of the plane's size, which may be a memory map."""
    bands = (plane[top : top + _BAND] for top in range(0, len(plane), _BAND))
    return sum(band.size - np.count_nonzero(np.isfinite(band)) for band in bands)


def cast(plane, dtype):
    """An array in another dtype: rounded to integers, clipped to what the dtype holds."""
    if plane.dtype == dtype:
        return plane
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    plane = plane.astype(np.promote_types(np.float64, plane.dtype))  # float32 has no 2^32 - 1
    if dtype.kind == "f":
        return np.clip(plane, limits.min, limits.max).astype(dtype)
    most = float(limits.max)
    most = np.nextafter(most, 0) if most > limits.max else most  # nor float64 2^63 - 1
    return np.clip(np.rint(plane), float(limits.min), most).astype(dtype)


# NumPy files.


def _read_numpy(path):
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    if array.ndim < 2 or array.dtype.kind not in "uif" or not array.size:
        what = f"{array.dtype} {list(array.shape)}"
        raise UserError(f"{path}: expected real numbers [H, W], [N, H, W] or [N, H, W, 3], received {what}.")
    samples = array.ndim > 2 and array.shape[-1] in (1, 3)
    shape = array.shape if samples else (*array.shape, 1)
    stack, axes = shape[:-3], "Q" * (len(shape) - 3) + ("YXS" if samples else "YX")
    dtype = array.dtype.newbyteorder("=")
    load = lambda i: array[np.unravel_index(i, stack)].reshape(shape[-3:]).astype(dtype)
    shapes = [shape[-3:]] * math.prod(stack)
    return Picture(path, dtype, array.shape, axes, shapes, load, {"numpy": array.dtype})


def _write_numpy(file, picture, planes):
    dtype = picture.kept.get("numpy", picture.dtype)
    shape = picture.shape if "numpy" in picture.kept else _common_shape(picture)
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    for plane in planes:
        file.write(cast(plane, picture.dtype).astype(dtype).tobytes())


def _common_shape(picture):
    """[..., H, W] or [..., H, W, 3]: all planes as one array."""
    stack = tuple(n for n, axis in zip(picture.shape, picture.axes) if axis not in "YXS")
    stack = stack if math.prod(stack) == len(picture) else (len(picture),)
    return (*stack, *picture.shapes[0][: 3 if picture.shapes[0][-1] == 3 else 2])


# Files of a single picture, through Pillow.


def _read_single(path):
    data = path.read_bytes()
    with Image.open(io.BytesIO(data), formats=("PNG", "JPEG", "BMP", "WEBP")) as image:
        if getattr(image, "n_frames", 1) > 1:
            images.warn(f"{path}: only the first of its {image.n_frames} pictures is used.")
        kept = {key: image.info[key] for key in _PILLOW_INFO if key in image.info}
        # Pillow puts the texts of a PNG among them, whatever they are called.
        kept = {key: value for key, value in kept.items() if key == "comment" or not isinstance(value, str)}
        kept["lossless"] = image.format != "WEBP" or b"VP8L" in data
        if image.format == "PNG":
            kept["chunks"] = b"".join(chunk for name, chunk in _png_chunks(data) if name in _PNG_CHUNKS)
        if image.mode == "CMYK":
            images.warn(f"{path}: CMYK becomes RGB.")
            kept.pop("icc_profile", None)
        if image.format == "PNG" and data[24] == 16:  # bits: Pillow would give 8 of them
            pixels = imagecodecs.png_decode(data)
        else:
            mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
            alpha = "A" * image.has_transparency_data
            pixels = np.asarray(image.convert(mode + alpha))
    shape, axes = pixels.shape, "YXS"[: pixels.ndim]
    pixels = pixels.reshape(*shape[:2], -1)
    if pixels.shape[-1] in (2, 4):
        kept["alpha"], pixels = pixels[..., -1:], pixels[..., :-1]
    return Picture(path, pixels.dtype, shape, axes, [pixels.shape], lambda i: pixels.copy(), kept)


def _png_chunks(data):
    """(name, the chunk with its length and checksum) of a PNG file."""
    place = 8
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        yield data[place + 4 : place + 8], data[place:end]
        place = end


def _encode(path, suffix, picture, pixels):
    kept = picture.kept
    if "alpha" in kept:
        if suffix in _TRANSPARENT and kept["alpha"] is not None:
            pixels = np.concatenate([pixels, kept["alpha"]], axis=-1)
        else:
            images.warn(f"{path}: transparency is left out.")
    if suffix == ".png" and ("chunks" in kept or pixels.dtype == np.uint16):
        data = images.encode_png(pixels)
        return data[:33] + kept.get("chunks", b"") + data[33:]  # after the signature and the header
    options = {key: kept[key] for key in _PILLOW_INFO if key in kept}
    if max(options.get("dpi", (0,))) >= 2**16:  # JPEG would keep the last 16 bits of it
        del options["dpi"]
    return images.encode(path, pixels, lossless=kept.get("lossless", True), **options)


# TIFF. A page stores a unit: one picture, or several gray ones. A stack of ImageJ or tifffile may have a single
# page, with further units behind its pixels.


@dataclasses.dataclass(frozen=True)
class _Layout:
    """How the samples of a page become planes."""

    height: int
    width: int
    samples: int
    colour: bool
    palette: bool  # of colours; they are written as RGB
    carried: int  # samples at the end that are in no plane: transparency, or what an RGB page has besides

    @property
    def planes(self):
        return 1 if self.colour else self.samples - self.carried


def _layout(page, name):
    """Raises UserError for a page without intensities or colours, or whose pixels the file has not."""
    separate, depth, height, width, contiguous = page.shaped
    samples, kind, bits = separate * contiguous, page.photometric, page.bitspersample
    palette = kind == _PALETTE and (bits < 8 or not _is_lookup_table(page))
    if kind not in _PHOTOMETRIC or (kind == _YCBCR and page.compression not in _JPEG):
        raise UserError(f"{name}: expected gray or colour intensities, received {getattr(kind, 'name', kind)}.")
    if depth > 1 or page.dtype is None or page.dtype.kind not in "uifb" or (1 < bits < 8 and not palette):
        what = "volumes" if depth > 1 else f"{bits} bits of {page.dtype}"
        raise UserError(f"{name}: expected pages of real numbers with 8 bits or more, received {what}.")
    size = page.parent.filehandle.size
    if any(offset + count > size for offset, count in zip(page.dataoffsets, page.databytecounts)):
        raise UserError(f"{name}: expected a whole page, received one that goes on after the end of the file.")
    colour = palette or (kind in (_RGB, _YCBCR) and samples >= 3)
    alphas = min(sum(int(extra) in (1, 2) for extra in page.extrasamples), samples - 1)
    carried = alphas if not colour else 0 if palette else samples - 3
    return _Layout(height, width, samples, colour, palette, carried)


def _is_lookup_table(page):
    """True where a palette colours intensities (ImageJ, or each colour rises with the index); False for a drawing."""
    return page.parent.is_imagej or bool((np.diff(page.colormap.astype(int), axis=1) >= 0).all())


def _dtype(page):
    return np.dtype(np.uint8) if page.dtype.kind == "b" else page.dtype.newbyteorder("=")


def _load_unit(tif, number, unit, units, layout):
    """[H, W, S] of what a page stores; one bit becomes 0 and 255."""
    page = tif.pages.get(number)
    if units > 1:
        dtype = page.dtype.newbyteorder(tif.byteorder)
        stored = np.memmap(tif.filehandle.path, dtype, "r", page.dataoffsets[0], (units, *page.shaped))[unit]
    else:
        stored = page.asarray(squeeze=False)
    pixels = np.moveaxis(stored[:, 0, ..., 0], 0, -1) if stored.shape[0] > 1 else stored[0, 0]
    if layout.palette:
        colours = page.colormap[:, pixels[..., 0].astype(int)]
        return np.moveaxis(colours >> (16 - 8 * _dtype(page).itemsize), 0, -1).astype(_dtype(page))
    return pixels * np.uint8(255) if pixels.dtype.kind == "b" else pixels


def _read_tiff(path):
    with contextlib.ExitStack() as stack:
        tif = stack.enter_context(tifffile.TiffFile(path, _multifile=False))
        names = [f"{path}, page {number + 1} of {len(tif.pages)}" for number in range(len(tif.pages))]
        layouts, dtypes, nbytes = [], [], 0
        for number, name in enumerate(names):
            with images.reading(name):
                page = tif.pages.get(number)
                layouts.append(_layout(page, name))
                dtypes.append(_dtype(page))
                nbytes += page.nbytes * (3 if layouts[-1].palette else 1)
        _check_chain(path, tif)
        units = _units(path, tif)
        index = [(n, u, s) for n, layout in enumerate(layouts) for u in range(units) for s in range(layout.planes)]
        shapes = [(layouts[n].height, layouts[n].width, 3 if layouts[n].colour else 1) for n, _, _ in index]
        lock = threading.Lock()  # a file has one position, and planes may be loaded ahead
        # One unit is kept where several planes come from it; it may be a large part of the memory.
        kept_units = int(any(layout.planes > 1 for layout in layouts))
        unit_of = functools.lru_cache(kept_units)(lambda n, u: _load_unit(tif, n, u, units, layouts[n]))

        def load(i):
            number, unit, sample = index[i]
            with lock, images.reading(names[number]):
                pixels = unit_of(number, unit)
            plane = pixels[..., :3] if layouts[number].colour else pixels[..., sample : sample + 1]
            # A large picture fits into memory once, but perhaps not twice.
            shared = kept_units or units > 1 or plane.size < pixels.size
            return plane.astype(plane.dtype.newbyteorder("="), copy=bool(shared))

        kept = {"units": units, "bytes": nbytes, "dtypes": list(dict.fromkeys(dtypes))}
        if any(layout.carried for layout in layouts):
            kept["alpha"] = None
        samples = sum(layout.height * layout.width * layout.samples for layout in layouts) * units
        picture = Picture(path, dtypes[0], *_axes(tif, shapes, samples), shapes, load, kept)
        weakref.finalize(picture, stack.pop_all().close)
        return picture


def _check_chain(path, tif):
    """tifffile takes pages up to the first that is damaged; then the chain of pages does not end with 0."""
    size = tif.tiff.offsetsize
    if len(tif.pages):
        tif.filehandle.seek(tif.pages.next_page_offset)
    if not len(tif.pages) or tif.filehandle.read(size) != bytes(size):
        raise UserError(f"{path}: expected a whole TIFF, received one that is damaged after page {len(tif.pages)}.")


def _units(path, tif):
    """How many units the only page of a stack has; 1 otherwise."""
    if len(tif.pages) > 1:
        return 1
    series, page = tif.series[0], tif.pages.get(0)
    units = series.size // page.size
    declared = (tif.imagej_metadata or {}).get("images", 1)
    if units > 1 and series.kind not in ("imagej", "shaped"):
        raise UserError(f"{path}: expected a page for each picture, received one for {units} ({series.kind}).")
    if declared > units * page.size // (page.imagelength * page.imagewidth):
        raise UserError(f"{path}: expected {declared} pictures, as its description says, received fewer.")
    if page.dataoffsets[0] + units * page.nbytes > tif.filehandle.size and units > 1:
        raise UserError(f"{path}: expected {units} pictures, received fewer: the file is cut off.")
    return units


def _axes(tif, shapes, samples):
    """(shape, axes) of a file with so many samples in all its pages."""
    page = tif.pages.get(0)
    if len(tif.series) == 1 and math.prod(tif.series[0].shape) == samples:
        return tif.series[0].shape, tif.series[0].axes
    pages = len(tif.pages)
    if len(set(shapes)) == 1 and samples == pages * page.size:
        return (pages, *page.shape), "Q" + page.axes
    return (len(shapes),), "Q"


def _rewrite_tiff(file, picture, planes):
    """The pages of the source with other pixels, so whatever reads one file reads the other."""
    units, dropped = picture.kept["units"], set()
    with tifffile.TiffFile(picture.path, _multifile=False) as source:
        big = source.is_bigtiff or picture.kept["bytes"] > 2**32 - 2**26
        with tifffile.TiffWriter(file, bigtiff=big, byteorder=source.byteorder, ome=False) as target:
            for number in range(len(source.pages)):
                page = source.pages.get(number)
                layout = _layout(page, picture.path)
                pixels = _next_unit(source, number, 0, units, layout, planes)
                with _writing(picture.path):
                    target.write(pixels, **_page_options(source, page, layout, dropped))
        for unit in range(1, units):
            pixels = _next_unit(source, 0, unit, units, layout, planes)
            file.write(pixels.astype(pixels.dtype.newbyteorder(source.byteorder)).tobytes())
    if dropped:
        names = images.enumerate_names(sorted(dropped))
        images.warn(f"{picture.path}: left out {names}: they point into the old file.")


@contextlib.contextmanager
def _writing(name):
    """What tifffile refuses to write, as a UserError."""
    try:
        yield
    except ValueError as error:
        raise UserError(f"{name}: expected pages that can be written again, received '{error}'.") from error


def _next_unit(source, number, unit, units, layout, planes):
    """The next planes as a page stores them: [H, W], [H, W, S] or [S, H, W]."""
    page = source.pages.get(number)
    parts = [cast(next(planes), _dtype(page)) for _ in range(layout.planes)]
    if layout.carried:
        parts.append(_load_unit(source, number, unit, units, layout)[..., -layout.carried :])
    pixels = _joined(*parts)
    return np.moveaxis(pixels, -1, 0) if pixels.ndim == 3 and page.shaped[0] > 1 else pixels


def _joined(*parts):
    """[H, W, S] arrays side by side, as [H, W] if that is a single sample."""
    pixels = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)  # one, which may be large, is not copied
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


def _page_options(source, page, layout, dropped):
    """For TiffWriter.write: all that a page says besides its pixels. Adds the names of lost tags to `dropped`."""
    lossless = page.compression in _LOSSLESS
    options = dict(metadata=None, software=False, subfiletype=page.subfiletype)
    options["photometric"] = _RGB if layout.colour else page.photometric
    samples, needed = 3 if layout.palette else layout.samples, _SAMPLES.get(options["photometric"], 1)
    if samples < needed or (options["photometric"] == _PALETTE and samples > 1):
        # TIFF has no palette beside transparency, though Pillow writes one, and no RGB of two samples.
        options["photometric"], needed = _GRAY, 1
    options["compression"] = page.compression if lossless else _ADOBE_DEFLATE
    if lossless and page.predictor in (2, 3):
        options["predictor"] = page.predictor
    if samples > 1:
        extra = samples - needed  # which the file may count in another way
        kinds = ((0,) * extra + page.extrasamples)[-extra:] if extra else None
        options |= dict(planarconfig=page.planarconfig, extrasamples=kinds)
    if options["photometric"] == _PALETTE:
        options["colormap"] = page.colormap
    if page.is_tiled and page.tilelength % 16 == page.tilewidth % 16 == 0:
        options["tile"] = (page.tilelength, page.tilewidth)
    elif page.compression == 1:
        options["rowsperstrip"] = page.imagelength
        # tifffile stores a series in one piece, and its reader may count on that.
        options["contiguous"] = source.is_shaped and page.index > 0 and 270 not in page.tags
    if 282 in page.tags and 283 in page.tags:
        options["resolution"] = (page.tags[282].value, page.tags[283].value)
        unit = page.tags.valueof(296, 2)
        options["resolutionunit"] = unit if unit in (1, 2, 3) else 1
    options["extratags"] = [_raw(source, tag) for tag in page.tags if tag.code not in _STORAGE_TAGS | _POINTERS]
    dropped.update(tag.name for tag in page.tags if tag.code in _POINTERS)
    return options


def _raw(source, tag):
    """A tag as tifffile writes it. Bytes as they are in the file, whose byte order the new file has too."""
    if tag.dtype in (5, 10):  # tifffile counts rational numbers in bytes wrongly
        return tag.code, tag.dtype, tag.count, tag.value, True
    source.filehandle.seek(tag.valueoffset)
    return tag.code, tag.dtype, tag.count, source.filehandle.read(tag.valuebytecount), True


def _orientation(kept):
    """How a viewer turns the picture, by its Exif: 1 to 8, as in TIFF."""
    exif = Image.Exif()
    with contextlib.suppress(Exception):  # Exif may be damaged, which makes the pixels no worse
        exif.load(kept.get("exif", b""))
    return exif.get(_ORIENTATION, 1)


def _write_tiff(file, picture, planes):
    """A new TIFF file, of a picture from another kind of file."""
    shape, kept = _common_shape(picture), picture.kept
    photometric = "rgb" if picture.shapes[0][-1] == 3 else "minisblack"
    options = dict(photometric=photometric, iccprofile=kept.get("icc_profile"))
    if "dpi" in kept:
        options |= dict(resolution=kept["dpi"], resolutionunit="inch")
    orientation = _orientation(kept)
    if orientation != 1:
        options["extratags"] = [(_ORIENTATION, "H", 1, orientation, True)]
    if "alpha" in kept:
        shape = (*picture.shapes[0][:2], picture.shapes[0][-1] + 1)
        options |= dict(extrasamples=["unassalpha"], planarconfig="contig")
    alpha = [kept["alpha"]] if "alpha" in kept else []
    pages = (_joined(cast(plane, picture.dtype), *alpha) for plane in planes)
    with tifffile.TiffWriter(file, bigtiff=math.prod(shape) * picture.dtype.itemsize > 2**32 - 2**26) as target:
        target.write(pages, shape=shape, dtype=picture.dtype, **options)
