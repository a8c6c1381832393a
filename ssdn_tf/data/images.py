"""Image files and folders of them, as NumPy arrays. No Keras here."""

import contextlib
import glob
import io
import math
import os
import pathlib
import re
import shutil
import sys
import uuid

import imagecodecs
import numpy as np
import tifffile
import tqdm
from PIL import Image, UnidentifiedImageError

from ssdn_tf.errors import UserError

_BITS = 258  # the TIFF tag BitsPerSample
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")


def warn(sentence):
    """One line on stderr, above a progress bar; a sentence that was said before is not said again."""
    if sentence not in said:
        said.add(sentence)
        tqdm.tqdm.write(f"warning: {sentence}", file=sys.stderr)
        sys.stderr.flush()


said = set()  # emptied where a command begins


def read(path):
    """The picture in a file: uint8 or uint16 [H, W, C], C = 1 or 3; transparency is dropped.

    Raises:
        UserError: the file cannot be read, or is no picture.
    """
    with reading(path):
        data = pathlib.Path(path).read_bytes()
    return decode(data, path)


def decode(data, name):
    """The same of the bytes of a file; `name` is for errors."""
    with reading(name), Image.open(io.BytesIO(data)) as image:
        if getattr(image, "n_frames", 1) > 1:
            warn(f"{name}: only the first of its {image.n_frames} pictures is used.")
        if _is_deep_colour(image):
            return _decode_deep_colour(data, image.format)
        image.load()
        if image.mode == "F":
            raise UserError(f"{name}: expected 8 or 16 bit, received floating point.")
        if image.mode in ("I;16", "I;16B", "I;16L", "I"):
            pixels = np.asarray(image).astype(np.int64)
            if pixels.min() < 0 or pixels.max() > 65535:
                raise UserError(f"{name}: expected 8 or 16 bit, received values from {pixels.min()} to {pixels.max()}.")
            return pixels.astype(np.uint16)[..., None]
        mode = "L" if image.mode in ("1", "L", "LA") else "RGB"
        pixels = np.asarray(image.convert(mode))
    return pixels[..., None] if mode == "L" else pixels


@contextlib.contextmanager
def reading(name):
    """Whatever reading a damaged file raises (its decoders raise anything), as one UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "its format is none of the known ones"
        raise UserError(f"{name}: expected a picture, received a file that cannot be read ({reason}).") from error


def _is_deep_colour(image):
    """True for a 16-bit PNG or TIFF that Pillow would give 8 bits of, without a word."""
    if image.format == "TIFF":
        return image.mode in ("RGB", "RGBA", "RGBX") and max(image.tag_v2.get(_BITS, (8,))) > 8
    return image.format == "PNG" and any(tile[3] in ("RGB;16B", "RGBA;16B", "LA;16B") for tile in image.tile)


def _decode_deep_colour(data, kind):
    pixels = _first_page(data) if kind == "TIFF" else imagecodecs.png_decode(data)
    if pixels.dtype != np.uint16:
        raise ValueError(f"expected 8 or 16 bit, received {pixels.dtype}")
    return pixels[..., : 3 if pixels.shape[-1] > 2 else 1]


def _first_page(data):
    with tifffile.TiffFile(io.BytesIO(data)) as tif:
        page = tif.pages[0]
        pixels = page.asarray()
    pixels = np.moveaxis(pixels, 0, -1) if page.axes == "SYX" else pixels
    return pixels.astype(pixels.dtype.newbyteorder("="))


def encode_png(pixels):
    """The bytes of a PNG file. pixels: uint8 or uint16 [H, W, 1 or 3]; its bits are the file's."""
    pixels = np.ascontiguousarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if pixels.dtype == np.uint16:
        return imagecodecs.png_encode(pixels)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format="PNG")
    return file.getvalue()


_QUALITY = {"quality": 95, "subsampling": 0, "lossless": True, "exact": True}  # lossless: WebP


def encode(path, pixels, **options):
    """The bytes of a file with the suffix of `path`, by Pillow: JPEG of quality 95, WebP without loss.

    Args:
        path: what it will be called.
        pixels: uint8 [H, W, S].
        options: of the format, for Pillow; they go before these.

    Raises:
        UserError: the format cannot hold the picture.
    """
    suffix, file = path.suffix.lower(), io.BytesIO()
    if suffix in (".jpg", ".jpeg", ".webp"):
        options = _QUALITY | options
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    try:
        picture.save(file, format=Image.registered_extensions()[suffix], **options)
    except ValueError as error:  # WebP of more than 16383 pixels
        raise UserError(f"{path}: expected a picture that {suffix} can hold, received '{error}'.") from error
    return file.getvalue()


def check_size(name, shape):
    """Raises UserError for a plane [H,W,C] of one pixel, of which a blind spot leaves nothing."""
    if shape[0] * shape[1] == 1:
        raise UserError(
            f"{name}: expected more than one pixel, as the network looks at a pixel's neighbours, received one."
        )


def checked_range(limits):
    """(black, white) of two numbers.

    Raises:
        UserError: they are not finite, or black is not below white.
    """
    try:
        black, white = map(float, limits)
        if -math.inf < black < white < math.inf:
            return black, white
    except (TypeError, ValueError):
        pass
    raise UserError(f"expected a range of black and white such as (100, 4095), received {limits!r}.")


def to_float(pixels):
    """uint8 or uint16 to float32 in [0, 1]; floats are in the unit of the networks already."""
    if pixels.dtype.kind == "f":
        return pixels
    return pixels.astype(np.float32) / np.float32(np.iinfo(pixels.dtype).max)


def to_channels(pixels, channels):
    """[H,W,1 or 3] with the wanted channels: gray is tiled, colour becomes the
    channel mean, of integers rounded (as the paper does it; not luma: (200, 100, 50) gives 117)."""
    if pixels.shape[-1] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=-1)
    mean = pixels.mean(axis=-1, keepdims=True)
    return mean if pixels.dtype.kind == "f" else np.round(mean).astype(pixels.dtype)


def middle(picture, side):
    """The middle of [H,W,...], at most side x side, as a view."""
    top, left = (max(0, (length - side) // 2) for length in picture.shape[:2])
    return picture[top : top + side, left : left + side]


def flip(image, number):
    """[H,W,C] in one of its eight orientations: flipped by rows (number & 1), by columns (& 2), transposed (& 4)."""
    image = image[::-1] if number & 1 else image
    image = image[:, ::-1] if number & 2 else image
    return image.swapaxes(0, 1) if number & 4 else image


def unflip(image, number):
    """The inverse of `flip`."""
    image = image.swapaxes(0, 1) if number & 4 else image
    image = image[:, ::-1] if number & 2 else image
    return image[::-1] if number & 1 else image


def to_uint8(image):
    """Intensities to 8 bit as the paper does it: clip(255 a + 0.5, 0, 255), truncated."""
    return np.clip(255.0 * np.asarray(image, np.float64) + 0.5, 0.0, 255.0).astype(np.uint8)


def write(path, image):
    """Writes float [H,W,C] in [0, 1] as 8 bit, or uint8 and uint16 as they are. JPEG has quality 95, WebP no loss.

    The suffix of the path says the format; 16 bit goes into PNG only. The file appears whole
    or not at all.

    Raises:
        UserError: unknown suffix, values that are not finite, or the disk refuses.
    """
    path = pathlib.Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"{path}: expected a name ending in one of {', '.join(SUFFIXES)}, received '{path.suffix}'.")
    if not np.isfinite(image).all():
        raise UserError(f"{path}: expected finite intensities to write, received NaN or infinity.")
    pixels = image if image.dtype in (np.uint8, np.uint16) else to_uint8(image)
    if suffix == ".png":
        return write_whole(path, lambda file: file.write(encode_png(pixels)))
    if pixels.dtype == np.uint16:
        raise UserError(f"{path}: expected a name ending in .png for 16 bit, received '{path.suffix}'.")
    write_whole(path, lambda file: file.write(encode(path, pixels)))


def reason(error):
    """Why the file system refuses, from an OSError."""
    if "requested and" in str(error):  # NumPy: "27648 requested and 7096 written"
        return "the disk is full"
    return error.strerror or str(error)


def leftover_of(name):
    """The file that was being written when the process was killed and left a file `name`; None for other names."""
    found = re.fullmatch(r"\.(.+)\.[0-9a-f]{32}", name)
    return found and found[1]


def remove_leftovers(path):
    """Removes what `write_whole` and `write_whole_folder` leave beside a path when the process is killed."""
    path = pathlib.Path(path)
    for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
        if leftover_of(left.name) == path.name:
            _remove(left)


def _remove(path):
    """Deletes a file, a link or a folder, if it is there."""
    with contextlib.suppress(OSError):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() and not path.is_symlink() else path.unlink()


def write_whole(path, write_to):
    """Calls `write_to(binary file)` on a new file and moves it to `path` when it is complete.

    A failure (a full disk, Ctrl-C) leaves what was at `path` before as it was.

    Raises:
        UserError: the file system refuses.
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("xb") as file:
            write_to(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {reason(error)}.") from error
    finally:
        _remove(temporary)


def write_text(path, text):
    """As `write_whole`, for text."""
    # The name of a file need not be text.
    write_whole(path, lambda file: file.write(text.encode(errors="backslashreplace")))


def write_whole_folder(path, write_to):
    """As `write_whole`, for a folder: `write_to(new folder)`."""
    path = pathlib.Path(path)
    temporary, old = (path.with_name(f".{path.name}.{uuid.uuid4().hex}") for _ in range(2))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_to(temporary)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {reason(error)}.") from error
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        for folder in (temporary, old):
            _remove(folder)


def find(folder, suffixes=SUFFIXES):
    """The picture files below a folder, sorted; hidden files and folders are left out.

    Files with another suffix are named in one warning and left out.

    Raises:
        UserError: no such folder, or no picture in it.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise UserError(f"expected a folder with pictures, received '{folder}', which is none.")
    names = sorted(file.relative_to(folder) for file in _walk(folder))
    pictures = [name for name in names if name.suffix.lower() in suffixes]
    others = [name for name in names if name.suffix.lower() not in suffixes]
    if others:
        warn(f"{folder}: left out {enumerate_names(others)}: no picture suffix.")
    if not pictures:
        raise UserError(f"{folder}: expected pictures ({', '.join(suffixes)}), received none.")
    return [folder / name for name in pictures]


def _walk(folder):
    """The files below a folder, but for hidden ones. A folder that is one picture, NAME.zarr, counts as a file."""
    try:
        entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
        entries = [(entry, entry.is_dir(), entry.is_file()) for entry in entries]
    except OSError as error:
        warn(f"left out {folder}, which cannot be read: {reason(error)}.")
        return
    for entry, is_folder, is_file in entries:
        if is_folder and entry.is_symlink():
            warn(f"left out {entry}: links to folders are not followed.")
        elif is_folder and entry.suffix.lower() != ".zarr":
            yield from _walk(entry)
        elif is_folder or is_file:
            yield entry


def enumerate_names(names, most=5):
    """'a, b, c and 4 more'."""
    names = [str(name) for name in names]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def size(path):
    """(height, width) from the header alone.

    Raises:
        UserError: the file is no picture.
    """
    with reading(path), Image.open(path) as image:
        return image.height, image.width
