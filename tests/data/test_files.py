"""Any picture file to planes and back: what a file says stays, and what is wrong is said in one sentence."""

import concurrent.futures
import io
import os
import pathlib
import struct
import tracemalloc
import zlib

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, PngImagePlugin

from ssdn_tf.data import files, images
from ssdn_tf.errors import UserError

DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "float16", "float32", "float64")


def numbers(shape, dtype="uint8", seed=0):
    """All of an integer's range; floats with signs."""
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype=dtype, endpoint=True)


def copy(source, target):
    """The file with its own planes written into another; returns the picture."""
    picture = files.read(source)
    files.write(target, picture, (plane for plane in picture))
    return picture


def fails(function, *arguments):
    """The UserError's text, after a check that it is one sentence."""
    with pytest.raises(UserError) as error:
        function(*arguments)
    text = str(error.value)
    assert "\n" not in text and text.endswith(".") and ". " not in text, text
    assert "expected" in text and "received" in text, text
    return text


def tags(page):
    """What a page says besides its pixels and where they are."""
    storage = (254, 258, 259, 262, 273, 277, 278, 279, 282, 283, 284, 296, 317, 322, 323, 324, 325, 338, 339)
    return {tag.code: np.asarray(tag.value).tolist() for tag in page.tags if tag.code not in storage}


def assert_same_tiff(one, other, compression=True):
    with tifffile.TiffFile(one) as a, tifffile.TiffFile(other) as b:
        assert (a.byteorder, a.is_bigtiff, len(a.pages)) == (b.byteorder, b.is_bigtiff, len(b.pages))
        assert (a.ome_metadata, a.imagej_metadata) == (b.ome_metadata, b.imagej_metadata)
        assert a.shaped_metadata == b.shaped_metadata
        assert [(s.shape, s.axes, s.dtype, s.kind) for s in a.series] == [
            (s.shape, s.axes, s.dtype, s.kind) for s in b.series
        ]
        for s, t in zip(a.series, b.series):
            np.testing.assert_array_equal(s.asarray(), t.asarray())
        for i in range(len(a.pages)):
            p, q = a.pages.get(i), b.pages.get(i)
            np.testing.assert_array_equal(p.asarray(), q.asarray())
            assert tags(p) == tags(q)
            assert (p.dtype, p.axes, p.photometric, p.extrasamples) == (q.dtype, q.axes, q.photometric, q.extrasamples)
            assert p.planarconfig == q.planarconfig or p.samplesperpixel == 1
            assert (p.resolution, p.resolutionunit) == (q.resolution, q.resolutionunit)
            assert not compression or (p.compression, p.predictor) == (q.compression, q.predictor)


# NumPy files.


@pytest.mark.parametrize("dtype", [*DTYPES, "int64", ">u2", ">f4"])
@pytest.mark.parametrize(
    ("shape", "axes", "planes", "plane"),
    [
        ((5, 7), "YX", 1, (5, 7, 1)),
        ((4, 5, 7), "QYX", 4, (5, 7, 1)),
        ((5, 7, 3), "YXS", 1, (5, 7, 3)),
        ((5, 7, 1), "YXS", 1, (5, 7, 1)),
        ((4, 5, 7, 3), "QYXS", 4, (5, 7, 3)),
        ((2, 3, 5, 7), "QQYX", 6, (5, 7, 1)),
        ((1, 1), "YX", 1, (1, 1, 1)),
    ],
)
def test_numpy_files_come_back(tmp_path, dtype, shape, axes, planes, plane):
    array = numbers(shape, np.dtype(dtype).newbyteorder("=")).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    picture = copy(tmp_path / "a.npy", tmp_path / "b.npy")
    assert (picture.shape, picture.axes, picture.dtype) == (shape, axes, array.dtype.newbyteorder("="))
    assert picture.shapes == [plane] * planes and len(picture) == planes
    np.testing.assert_array_equal(np.stack(list(picture)).reshape(shape), array)
    back = np.load(tmp_path / "b.npy")
    assert back.dtype == array.dtype and back.shape == shape
    np.testing.assert_array_equal(back, array)


def test_numpy_file_in_fortran_order(tmp_path):
    array = np.asfortranarray(numbers((4, 5, 7)))
    np.save(tmp_path / "a.npy", array)
    copy(tmp_path / "a.npy", tmp_path / "b.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "b.npy"), array)


@pytest.mark.parametrize("array", [np.zeros(5), np.zeros((3, 4), complex), np.array([["a"]]), np.zeros((0, 4, 4))])
def test_numpy_files_without_pictures_are_refused(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    assert "a.npy" in fails(files.read, tmp_path / "a.npy")


def test_numpy_objects_are_not_unpickled(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[{}]]), allow_pickle=True)
    assert "a.npy" in fails(files.read, tmp_path / "a.npy")


# PNG, JPEG, BMP, WebP.

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def png(path, pixels):
    path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels)))
    return path


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("samples", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(5, 7), (1, 1)])
def test_png_comes_back(tmp_path, dtype, samples, size):
    pixels = numbers((*size, samples), dtype)
    picture = copy(png(tmp_path / "a.png", pixels), tmp_path / "b.png")
    colours = 1 if samples < 3 else 3
    assert picture.dtype == dtype and picture.shapes == [(*size, colours)]
    assert picture.axes == ("YX" if samples == 1 else "YXS")
    np.testing.assert_array_equal(picture[0], pixels[..., :colours])
    back = imagecodecs.png_decode((tmp_path / "b.png").read_bytes())
    assert back.dtype == dtype
    np.testing.assert_array_equal(back.reshape(pixels.shape), pixels)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_png_keeps_text_resolution_profile_and_gamma(tmp_path, dtype):
    text = PngImagePlugin.PngInfo()
    text.add_text("Description", "cells")
    text.add_itxt("Comment", "0.5 µm")
    text.add(b"gAMA", struct.pack(">I", 45455))
    file = io.BytesIO()
    Image.fromarray(numbers((5, 7))).save(file, "PNG", pnginfo=text, dpi=(300, 300), icc_profile=b"profile")
    chunks = b"".join(c for n, c in files._png_chunks(file.getvalue()) if n not in (b"IHDR", b"IDAT", b"IEND"))
    plain = png(tmp_path / "plain.png", numbers((5, 7), dtype)).read_bytes()
    (tmp_path / "a.png").write_bytes(plain[:33] + chunks + plain[33:])
    copy(tmp_path / "a.png", tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as image:
        assert image.info["Description"] == "cells" and image.info["Comment"] == "0.5 µm"
        assert image.info["dpi"] == pytest.approx((300, 300), abs=0.01)
        assert image.info["icc_profile"] == b"profile" and image.info["gamma"] == pytest.approx(0.45455)


def test_palette_becomes_its_colours_and_keeps_transparency(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([2, 0, 1])
    image.save(tmp_path / "a.png", transparency=0)
    assert copy(tmp_path / "a.png", tmp_path / "b.png")[0].tolist() == [[[70, 80, 90], [10, 20, 30], [40, 50, 60]]]
    with Image.open(tmp_path / "b.png") as back:
        assert back.mode == "RGBA" and np.asarray(back)[..., 3].tolist() == [[255, 0, 255]]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_png_of_few_bits_uses_all_of_8(tmp_path, bits):
    row = bytes([0, 0b10110001])
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    header = struct.pack(">IIBBBBB", 8 // bits, 1, bits, 0, 0, 0, 0)
    data = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(row)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + data)
    found = copy(tmp_path / "a.png", tmp_path / "b.png")[0]
    wanted = {1: [1, 0, 1, 1, 0, 0, 0, 1], 2: [2, 3, 0, 1], 4: [11, 1]}[bits]
    assert found[0, :, 0].tolist() == [value * 255 // (2**bits - 1) for value in wanted]


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_keeps_exif_profile_resolution_and_comment(tmp_path, mode):
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter: told, not done
    exif[270] = "cells"
    flat = Image.new(mode, (24, 16), 200 if mode == "L" else (200, 100, 50))
    options = dict(exif=exif, icc_profile=b"profile", dpi=(300, 300), comment=b"told")
    flat.save(tmp_path / "a.jpg", **options)
    picture = copy(tmp_path / "a.jpg", tmp_path / "b.jpg")
    assert picture.shapes == [(16, 24, 1 if mode == "L" else 3)]
    with Image.open(tmp_path / "b.jpg") as back:
        assert back.mode == mode and back.size == (24, 16) and back.format == "JPEG"
        assert back.getexif()[274] == 6 and back.getexif()[270] == "cells"
        assert back.info["icc_profile"] == b"profile" and back.info["dpi"] == (300, 300)
        assert back.info["comment"] == b"told"
        # A flat colour survives but for the rounding of the colour transform.
        assert np.abs(np.asarray(back).astype(int).reshape(16, 24, -1) - picture[0]).max() <= 2


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_jpeg_into_another_kind_keeps_orientation_profile_and_resolution(tmp_path, suffix):
    exif = Image.Exif()
    exif[274] = 6  # a portrait by a camera on its side
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    options = {"exif": exif, "icc_profile": profile, "dpi": (300, 300)}
    Image.new("RGB", (9, 7), (10, 200, 90)).save(tmp_path / "a.jpg", **options)
    Image.new("RGB", (9, 7), (10, 200, 90)).save(tmp_path / "plain.jpg")
    for name in ("a", "plain"):
        picture = files.read(tmp_path / f"{name}.jpg")
        files.write(tmp_path / f"{name}{suffix}", picture, [picture[0]])
    with Image.open(tmp_path / f"a{suffix}") as back:
        assert back.getexif()[274] == 6 and back.info["icc_profile"] == profile
        assert back.info["dpi"] == pytest.approx((300, 300), rel=1e-3)
    assert np.array_equal(files.read(tmp_path / f"a{suffix}")[0], files.read(tmp_path / "a.jpg")[0])
    with Image.open(tmp_path / f"plain{suffix}") as back:
        assert 274 not in back.getexif() and "icc_profile" not in back.info


def test_cmyk_jpeg_becomes_rgb_with_a_warning(tmp_path, capsys):
    Image.new("CMYK", (8, 8), (0, 128, 255, 10)).save(tmp_path / "a.jpg", icc_profile=b"of inks")
    picture = copy(tmp_path / "a.jpg", tmp_path / "b.jpg")
    assert "CMYK becomes RGB" in capsys.readouterr().err and picture.shapes == [(8, 8, 3)]
    with Image.open(tmp_path / "b.jpg") as back:
        assert back.mode == "RGB" and "icc_profile" not in back.info


def test_further_pictures_of_a_jpeg_are_told(tmp_path, capsys):
    first, second = (Image.fromarray(numbers((16, 16), seed=seed)) for seed in (0, 1))
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    assert len(files.read(tmp_path / "a.jpg")) == 1
    assert "only the first of its 2 pictures" in capsys.readouterr().err


@pytest.mark.parametrize("samples", [1, 3])
def test_bmp_comes_back(tmp_path, samples):
    pixels = numbers((5, 7, samples))
    Image.fromarray(pixels.squeeze()).save(tmp_path / "a.bmp", dpi=(300, 300))
    np.testing.assert_array_equal(copy(tmp_path / "a.bmp", tmp_path / "b.bmp")[0], pixels)
    with Image.open(tmp_path / "b.bmp") as back:
        np.testing.assert_array_equal(np.asarray(back).reshape(pixels.shape), pixels)
        assert back.info["dpi"] == pytest.approx((300, 300), abs=0.1)


@pytest.mark.parametrize("samples", [3, 4])
def test_lossless_webp_comes_back(tmp_path, samples):
    pixels = numbers((5, 7, samples))
    options = dict(lossless=True, exact=True, icc_profile=b"profile")
    Image.fromarray(pixels).save(tmp_path / "a.webp", **options)
    np.testing.assert_array_equal(copy(tmp_path / "a.webp", tmp_path / "b.webp")[0], pixels[..., :3])
    with Image.open(tmp_path / "b.webp") as back:
        np.testing.assert_array_equal(np.asarray(back), pixels)
        assert back.info["icc_profile"] == b"profile"


def test_lossy_webp_stays_lossy(tmp_path):
    Image.fromarray(numbers((32, 32, 3))).save(tmp_path / "a.webp", quality=50)
    copy(tmp_path / "a.webp", tmp_path / "b.webp")
    assert b"VP8L" not in (tmp_path / "b.webp").read_bytes()


def test_the_content_says_the_kind_not_the_name(tmp_path):
    Image.fromarray(numbers((5, 7))).save(tmp_path / "a.tif", format="PNG")
    assert files.read(tmp_path / "a.tif").shapes == [(5, 7, 1)]


# TIFF.

LAYOUTS = {
    "gray": ((5, 7), dict(photometric="minisblack"), [(5, 7, 1)], "YX"),
    "one pixel": ((1, 1), dict(photometric="minisblack"), [(1, 1, 1)], "YX"),
    "inverted": ((5, 7), dict(photometric="miniswhite"), [(5, 7, 1)], "YX"),
    "stack": ((4, 5, 7), dict(photometric="minisblack"), [(5, 7, 1)] * 4, "QYX"),
    "colour": ((5, 7, 3), dict(photometric="rgb"), [(5, 7, 3)], "YXS"),
    "planar colour": ((3, 5, 7), dict(photometric="rgb", planarconfig="separate"), [(5, 7, 3)], "SYX"),
    "colour stack": ((4, 5, 7, 3), dict(photometric="rgb"), [(5, 7, 3)] * 4, "QYXS"),
    "transparent": ((5, 7, 4), dict(photometric="rgb", extrasamples=["unassalpha"]), [(5, 7, 3)], "YXS"),
    "planar transparent": (
        *((4, 5, 7), dict(photometric="rgb", planarconfig="separate", extrasamples=["assocalpha"])),
        *([(5, 7, 3)], "SYX"),
    ),
    "gray, transparent": (
        *((5, 7, 2), dict(photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"])),
        *([(5, 7, 1)], "YXS"),
    ),
    "channels": ((5, 7, 5), dict(photometric="minisblack", planarconfig="contig"), [(5, 7, 1)] * 5, "YXS"),
    "planar channels": ((5, 6, 7), dict(photometric="minisblack", planarconfig="separate"), [(6, 7, 1)] * 5, "SYX"),
    "inks": ((5, 7, 4), dict(photometric="separated"), [(5, 7, 1)] * 4, "YXS"),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tiff_comes_back(tmp_path, dtype, layout):
    shape, options, shapes, axes = LAYOUTS[layout]
    array = numbers(shape, dtype)
    text = dict(
        description="cells, 0.5 µm".encode(), metadata=None, software="microscope", datetime="2026:11:25 10:00:00"
    )
    resolution = dict(resolution=((100000, 325), (100000, 326)), resolutionunit="centimeter")
    more = dict(
        iccprofile=b"profile",
        extratags=[(65000, "f", 2, (1.5, 2.5), True), (65001, 10, 1, (-3, 7), True), (274, "H", 1, 6, True)],
    )
    tifffile.imwrite(tmp_path / "a.tif", array, **options, **text, **resolution, **more)
    picture = copy(tmp_path / "a.tif", tmp_path / "b.tif")
    assert picture.dtype == dtype and picture.shapes == shapes
    assert picture.shape == shape and picture.axes in (axes, axes.replace("Q", "I"))
    assert_same_tiff(tmp_path / "a.tif", tmp_path / "b.tif")


@pytest.mark.parametrize("byteorder", "<>")
@pytest.mark.parametrize("bigtiff", [False, True])
def test_tiff_keeps_its_byte_order_and_size_of_offsets(tmp_path, byteorder, bigtiff):
    options = dict(byteorder=byteorder, bigtiff=bigtiff)
    tifffile.imwrite(tmp_path / "a.tif", numbers((4, 5, 7), "uint16"), photometric="minisblack", **options)
    copy(tmp_path / "a.tif", tmp_path / "b.tif")
    assert_same_tiff(tmp_path / "a.tif", tmp_path / "b.tif")


def test_more_than_4_gigabytes_become_a_bigtiff(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", numbers((4, 5, 7), "uint16"), imagej=True)
    picture = files.read(tmp_path / "a.tif")
    picture.kept["bytes"] = 2**32
    files.write(tmp_path / "b.tif", picture, picture)
    with tifffile.TiffFile(tmp_path / "b.tif") as tif:
        assert tif.is_bigtiff and tif.imagej_metadata["images"] == 4
        np.testing.assert_array_equal(tif.asarray(), numbers((4, 5, 7), "uint16"))


@pytest.mark.parametrize("compression", ["lzw", "zlib", "packbits", "zstd", "lzma"])
@pytest.mark.parametrize("predictor", [False, True])
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_lossless_compression_and_tiles_stay(tmp_path, compression, predictor, dtype):
    if compression == "packbits" and predictor:
        predictor = False
    options = dict(compression=compression, predictor=predictor, tile=(16, 32), photometric="minisblack")
    tifffile.imwrite(tmp_path / "a.tif", numbers((2, 40, 50), dtype), **options)
    copy(tmp_path / "a.tif", tmp_path / "b.tif")
    assert_same_tiff(tmp_path / "a.tif", tmp_path / "b.tif")
    assert tifffile.TiffFile(tmp_path / "b.tif").pages[0].tile == (16, 32)


def test_lossy_compression_becomes_lossless(tmp_path):
    pixels = np.full((32, 32, 3), (200, 100, 50), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", pixels, compression="jpeg", photometric="rgb")
    assert tifffile.TiffFile(tmp_path / "a.tif").pages[0].photometric == 6
    picture = copy(tmp_path / "a.tif", tmp_path / "b.tif")
    assert picture.shapes == [(32, 32, 3)] and np.abs(picture[0].astype(int) - pixels).max() <= 2
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.tif"), picture[0])


@pytest.mark.parametrize("truncate", [False, True])
@pytest.mark.parametrize(
    ("shape", "axes", "squeezed", "dtype"),
    [
        ((2, 3, 4, 5, 7), "TZCYX", "TZCYX", "uint16"),
        ((3, 5, 7), "TYX", "TYX", "float32"),
        ((2, 5, 7, 3), "ZYXS", "ZYXS", "uint8"),
    ],
)
def test_imagej_hyperstack_comes_back(tmp_path, truncate, shape, axes, squeezed, dtype):
    metadata = dict(axes=axes, unit="um", spacing=0.5, Labels=[str(i) for i in range(int(np.prod(shape[:-2])))])
    options = dict(imagej=True, metadata=metadata, resolution=(3.25, 3.25))
    tifffile.imwrite(tmp_path / "a.tif", numbers(shape, dtype), truncate=truncate, **options)
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert (len(tif.pages) == 1) == truncate
    picture = copy(tmp_path / "a.tif", tmp_path / "b.tif")
    assert (picture.shape, picture.axes) == (shape, squeezed)
    assert len(picture) == np.prod([n for n, axis in zip(shape, axes) if axis not in "YXS"])
    assert_same_tiff(tmp_path / "a.tif", tmp_path / "b.tif")
    assert (tmp_path / "a.tif").stat().st_size == pytest.approx((tmp_path / "b.tif").stat().st_size, abs=600)


def test_stack_of_tifffile_with_one_page_comes_back(tmp_path):
    array = numbers((4, 5, 7), "uint16")
    tifffile.imwrite(tmp_path / "a.tif", array, truncate=True, metadata={"axes": "ZYX"}, photometric="minisblack")
    picture = copy(tmp_path / "a.tif", tmp_path / "b.tif")
    assert (picture.shape, picture.axes, len(picture)) == ((4, 5, 7), "ZYX", 4)
    assert_same_tiff(tmp_path / "a.tif", tmp_path / "b.tif")


@pytest.mark.parametrize(
    ("shape", "axes", "planes"),
    [((2, 3, 4, 6, 7), "TZCYX", 24), ((2, 6, 7, 3), "ZYXS", 2), ((3, 6, 7), "CYX", 3), ((6, 7), "YX", 1)],
)
def test_ome_tiff_comes_back(tmp_path, shape, axes, planes):
    metadata = dict(axes=axes, PhysicalSizeX=0.325, PhysicalSizeXUnit="µm", Description="cells")
    options = dict(photometric="rgb" if "S" in axes else "minisblack", metadata=metadata)
    tifffile.imwrite(tmp_path / "a.ome.tif", numbers(shape, "uint16"), **options)
    picture = copy(tmp_path / "a.ome.tif", tmp_path / "b.ome.tif")
    assert (picture.shape, picture.axes, len(picture)) == (shape, axes, planes)
    assert "µm" in tifffile.TiffFile(tmp_path / "b.ome.tif").ome_metadata
    assert_same_tiff(tmp_path / "a.ome.tif", tmp_path / "b.ome.tif")


def test_planes_are_in_the_order_of_the_axes(tmp_path):
    array = numbers((2, 3, 4, 6, 7), "uint16")
    tifffile.imwrite(tmp_path / "a.ome.tif", array, metadata=dict(axes="TZCYX"), photometric="minisblack")
    picture = files.read(tmp_path / "a.ome.tif")
    np.testing.assert_array_equal(picture[np.ravel_multi_index((1, 0, 2), (2, 3, 4))][..., 0], array[1, 0, 2])


def test_pages_of_different_kinds_come_back(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(numbers((5, 7), "uint16"), photometric="minisblack", description="first")
        writer.write(numbers((3, 4, 3), "uint8"), photometric="rgb", description="second", subfiletype=1)
        writer.write(numbers((2, 2), "float32"), photometric="minisblack", compression="zlib")
    picture = copy(tmp_path / "a.tif", tmp_path / "b.tif")
    assert picture.shapes == [(5, 7, 1), (3, 4, 3), (2, 2, 1)] and (picture.shape, picture.axes) == ((3,), "Q")
    assert [plane.dtype.name for plane in picture] == ["uint16", "uint8", "float32"]
    assert_same_tiff(tmp_path / "a.tif", tmp_path / "b.tif")


def test_pages_of_two_dtypes_go_into_a_tiff_alone(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for dtype in ("uint8", "uint16"):
            writer.write(numbers((5, 7), dtype), photometric="minisblack")
    picture = files.read(tmp_path / "a.tif")
    assert [dtype.name for dtype in picture.dtypes] == ["uint8", "uint16"] and picture.dtype == np.uint8
    files.check_target(tmp_path / "b.tif", picture)
    for suffix in (".npy", ".zarr"):  # which have one dtype
        with pytest.raises(UserError, match="for 2 planes of uint8 and uint16"):
            files.check_target(tmp_path / f"b{suffix}", picture)


def test_lookup_table_colours_intensities(tmp_path):
    green = np.zeros((3, 256), np.uint16)
    green[1] = np.arange(256) * 257
    pixels = numbers((5, 7))
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="palette", colormap=green)
    np.testing.assert_array_equal(copy(tmp_path / "a.tif", tmp_path / "b.tif")[0][..., 0], pixels)
    assert_same_tiff(tmp_path / "a.tif", tmp_path / "b.tif")


def test_palette_of_a_drawing_becomes_its_colours(tmp_path):
    colours, pixels = numbers((3, 256), "uint8").astype(np.uint16) * 257, numbers((5, 7))
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="palette", colormap=colours)
    found = copy(tmp_path / "a.tif", tmp_path / "b.tif")[0]
    np.testing.assert_array_equal(found, Image.open(tmp_path / "a.tif").convert("RGB"))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.tif"), found)


def test_palette_of_few_bits_becomes_its_colours(tmp_path):
    """Also one that rises: its indices have not the range of a dtype."""
    colours = np.stack([np.arange(16) * 257 * step for step in (17, 8, 1)]).astype(np.uint16)
    row = bytes([0x1F, 0x80])
    entries = [(256, 4, 1, 4), (257, 4, 1, 1), (258, 3, 1, 4), (259, 3, 1, 1), (262, 3, 1, 3), (273, 4, 1, 8)]
    entries += [(277, 3, 1, 1), (278, 4, 1, 1), (279, 4, 1, 2), (320, 3, 48, 200)]
    ifd = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    data = (b"II*\0" + struct.pack("<I", 16) + row).ljust(16, b"\0") + ifd
    (tmp_path / "a.tif").write_bytes(data.ljust(200, b"\0") + colours.tobytes())
    picture = copy(tmp_path / "a.tif", tmp_path / "b.tif")
    assert picture[0][0].tolist() == [[17 * i, 8 * i, i] for i in (1, 15, 8, 0)]
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.tif"), picture[0])


def test_one_bit_tiff_becomes_black_and_white(tmp_path):
    bits = numbers((5, 9)) > 127
    tifffile.imwrite(tmp_path / "a.tif", bits, photometric="minisblack")
    copy(tmp_path / "a.tif", tmp_path / "b.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.tif"), bits * np.uint8(255))


def test_pyramid_is_left_out_with_a_warning(tmp_path, capsys):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        writer.write(numbers((32, 32)), subifds=1, photometric="minisblack")
        writer.write(numbers((16, 16)), subfiletype=1, photometric="minisblack")
    copy(tmp_path / "a.tif", tmp_path / "b.tif")
    assert (
        capsys.readouterr().err == f"warning: {tmp_path / 'a.tif'}: left out SubIFDs: they point into the old file.\n"
    )
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.tif"), numbers((32, 32)))


@pytest.mark.parametrize("photometric", ["cielab", "cfa"])
def test_tiff_of_other_colours_is_refused(tmp_path, photometric):
    shape, extra = ((4, 4, 3), ()) if photometric == "cielab" else ((4, 4), [(33421, "H", 2, (2, 2), True)])
    tifffile.imwrite(tmp_path / "a.tif", numbers(shape), photometric=photometric, extratags=extra)
    assert photometric.upper() in fails(files.read, tmp_path / "a.tif")


@pytest.mark.parametrize("counted", ["all but one", "one"])
@pytest.mark.parametrize("samples", [2, 3, 4, 5])
@pytest.mark.parametrize("photometric", [1, 2, 5])
def test_samples_that_a_tiff_counts_in_another_way_come_back(tmp_path, photometric, samples, counted):
    """RGB of two samples, inks of three, or more or fewer extra samples than there are."""
    array, path = numbers((4, 5, samples)), tmp_path / "a.tif"
    tifffile.imwrite(path, array, photometric="minisblack", planarconfig="contig")
    with tifffile.TiffFile(path, mode="r+") as tif:
        tif.pages[0].tags[262].overwrite(photometric)
        if counted == "one":
            tif.pages[0].tags[338].overwrite([0])
    copy(path, tmp_path / "b.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.tif"), array)
    assert files.read(tmp_path / "b.tif").shapes == files.read(path).shapes


def test_what_tifffile_refuses_to_write_is_one_sentence(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "a.tif", numbers((4, 5)))
    monkeypatch.setattr(files, "_page_options", lambda *_: {"photometric": "rgb"})
    assert "expected pages that can be written again" in fails(copy, tmp_path / "a.tif", tmp_path / "b.tif")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]


def test_a_file_may_be_written_over_itself(tmp_path):
    array = numbers((4, 5, 7), "uint16")
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack")
    picture = files.read(tmp_path / "a.tif")
    files.write(tmp_path / "a.tif", picture, (plane // 2 for plane in picture))
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), array // 2)


# Larger than memory.


def peak(function):
    tracemalloc.start()
    function()
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


@pytest.mark.parametrize("kind", ["pages", "compressed", "one page", "numpy"])
def test_stacks_pass_plane_by_plane(tmp_path, kind):
    array = np.broadcast_to(np.arange(40, dtype=np.uint16)[:, None, None], (40, 200, 200))
    if kind == "numpy":
        np.save(tmp_path / "a.npy", array)
    else:
        options = {"compressed": dict(compression="zlib"), "one page": dict(truncate=True)}.get(kind, {})
        tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack", **options)
    (source,) = tmp_path.iterdir()
    most = peak(lambda: copy(source, tmp_path / f"b{source.suffix}"))
    assert most < array.nbytes / 4
    assert peak(lambda: files.read(source)[0]) < most
    assert peak(lambda: np.stack(list(files.read(source)))) > array.nbytes  # so the measure sees a stack
    back = files.read(tmp_path / f"b{source.suffix}")
    assert [int(back[i][0, 0, 0]) for i in (0, 17, 39)] == [0, 17, 39]


def test_a_large_plane_is_in_memory_once(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", numbers((2000, 1000), "uint16"))
    assert peak(lambda: files.read(tmp_path / "a.tif")[0]) < 1.2 * 4e6


def test_planes_may_be_loaded_by_several_threads(tmp_path):
    array = numbers((60, 50, 60), "uint16")
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack", compression="zlib")
    picture = files.read(tmp_path / "a.tif")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(pool.map(picture.__getitem__, range(60)))
    np.testing.assert_array_equal(np.stack(found)[..., 0], array)


def test_planes_are_new_arrays(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.ones((5, 7, 5), np.uint8), photometric="minisblack", planarconfig="contig")
    np.save(tmp_path / "a.npy", np.ones((5, 7)))
    png(tmp_path / "a.png", np.ones((5, 7), np.uint8))
    for name in ("a.tif", "a.npy", "a.png"):
        picture = files.read(tmp_path / name)
        picture[0][:] = 0
        assert picture[0].min() == 1


# Values.


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("given", ["float32", "float64"])
def test_integers_are_rounded_and_clipped(tmp_path, dtype, given):
    limits = np.iinfo(dtype)
    np.save(tmp_path / "a.npy", np.zeros((1, 5), dtype))
    plane = np.array([-1e30, 1.4, 1.6, 1e30, 100], given).reshape(1, 5, 1)
    files.write(tmp_path / "b.npy", files.read(tmp_path / "a.npy"), [plane])
    low, *middle, high, last = np.load(tmp_path / "b.npy")[0].tolist()
    assert (low, middle, last) == (limits.min, [1, 2], 100)
    assert limits.max - 2048 <= high <= limits.max and (limits.bits == 64 or high == limits.max)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_stay_floats_of_the_file(tmp_path, dtype):
    np.save(tmp_path / "a.npy", np.zeros((1, 3), dtype))
    files.write(tmp_path / "b.npy", files.read(tmp_path / "a.npy"), [np.array([-0.5, 3.25, 1e300]).reshape(1, 3, 1)])
    back = np.load(tmp_path / "b.npy")
    assert back.dtype == dtype and back[0, :2].tolist() == [-0.5, 3.25] and np.isfinite(back).all()


# What is wrong is said.


@pytest.mark.parametrize("suffix", [".npy", ".tif"])
def test_not_finite_numbers_are_counted(tmp_path, suffix):
    array = np.zeros((3, 5, 7), np.float32)
    path = tmp_path / f"a{suffix}"
    save = lambda: np.save(path, array) if suffix == ".npy" else tifffile.imwrite(path, array, photometric="minisblack")
    save()
    assert len(list(files.read(path))) == 3  # negative control
    array[1, 2, :2] = np.nan, np.inf
    save()
    picture = files.read(path)
    text = fails(lambda: picture[1])
    assert f"{path}, plane 2 of 3" in text and "received 2 that are NaN or infinite" in text
    assert picture[2].shape == (5, 7, 1)
    text = fails(files.write, tmp_path / f"b{suffix}", picture, array[..., None])
    assert "plane 2 of 3" in text and "received 2" in text and not (tmp_path / f"b{suffix}").exists()


def sources(folder):
    """A good file of each kind."""
    gray = numbers((40, 50))
    for suffix in (".png", ".jpg", ".bmp", ".webp"):
        Image.fromarray(gray).save(folder / f"a{suffix}")
    png(folder / "deep.png", numbers((40, 50), "uint16"))
    np.save(folder / "a.npy", gray)
    stack = numbers((3, 40, 50))
    tifffile.imwrite(folder / "pages.tif", stack, photometric="minisblack")
    tifffile.imwrite(folder / "zlib.tif", stack, photometric="minisblack", compression="zlib")
    tifffile.imwrite(folder / "imagej.tif", stack, imagej=True)
    tifffile.imwrite(folder / "one page.tif", stack, imagej=True, truncate=True)
    tifffile.imwrite(folder / "shaped.tif", stack, truncate=True, photometric="minisblack")
    Image.fromarray(stack[0]).save(folder / "pillow.tif", save_all=True, append_images=[Image.fromarray(stack[1])])
    return sorted(folder.iterdir())


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_files_that_are_cut_off_are_refused(tmp_path, part):
    for path in sources(tmp_path):
        assert len(list(files.read(path))) > 0  # negative control
        data = path.read_bytes()
        path.write_bytes(data[: int(len(data) * part)])
        assert str(path) in fails(lambda path=path: list(files.read(path)))


def test_a_page_that_is_cut_off_is_told_before_any_work(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, numbers((40, 50)), photometric="minisblack")
    path.write_bytes(path.read_bytes()[:-1])
    assert f"{path}, page 1 of 1: expected a whole page" in fails(files.read, path)


@pytest.mark.parametrize("data", [b"", b"text", b"II*\0", b"II*\0\xff\xff\xff\0", b"\x93NUMPY", b"\x89PNG\r\n\x1a\n"])
@pytest.mark.parametrize("suffix", files.SUFFIXES)
def test_files_that_are_no_pictures_are_refused(tmp_path, data, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    text = fails(files.read, path)
    assert str(path) in text and ("empty" in text) == (data == b"")


def test_missing_files_are_told(tmp_path):
    assert "a.png" in fails(files.read, tmp_path / "a.png")
    assert "a.png" in fails(files.find, tmp_path / "a.png")


def test_scrambled_files_give_planes_or_one_sentence(tmp_path):
    rng = np.random.default_rng(0)
    for path in sources(tmp_path):
        data = np.frombuffer(path.read_bytes(), np.uint8)
        for _ in range(20):
            wrong = data.copy()
            wrong[rng.integers(0, min(len(wrong), 400), 4)] = rng.integers(0, 256, 4)
            path.write_bytes(wrong.tobytes())
            try:
                list(files.read(path))
            except UserError as error:
                assert str(path) in str(error) and "\n" not in str(error)


def test_one_bad_page_is_named(tmp_path):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, numbers((5, 40, 50)), photometric="minisblack", compression="zlib")
    with tifffile.TiffFile(path) as tif:
        start = tif.pages[2].dataoffsets[0]
    data = bytearray(path.read_bytes())
    data[start : start + 20] = bytes(20)
    path.write_bytes(data)
    picture = files.read(path)
    assert [picture[i].shape for i in (0, 1, 3, 4)] == [(40, 50, 1)] * 4
    assert f"{path}, page 3 of 5" in fails(lambda: picture[2])
    (tmp_path / "b.tif").write_bytes(b"old")
    assert "page 3 of 5" in fails(files.write, tmp_path / "b.tif", picture, picture)
    assert (tmp_path / "b.tif").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("suffix", "shape", "dtype", "wanted"),
    [
        (".jpg", (5, 7), "uint16", ".png or .tif or .tiff or .btf or .npy or .zarr"),
        (".png", (5, 7), "float32", ".tif or .tiff or .btf or .npy or .zarr"),
        (".png", (5, 7), "int16", ".tif or .tiff or .btf or .npy or .zarr"),
        (".png", (2, 5, 7), "uint8", ".tif or .tiff or .btf or .npy or .zarr"),
        (".zarr", (5, 7), "longdouble", ".npy"),
        (".xyz", (5, 7), "uint8", ".png or .jpg or .jpeg or .bmp or .webp or .tif or .tiff or .btf or .npy or .zarr"),
    ],
)
def test_suffixes_that_cannot_hold_it_are_refused(tmp_path, suffix, shape, dtype, wanted):
    np.save(tmp_path / "a.npy", numbers(shape, dtype))
    picture = files.read(tmp_path / "a.npy")
    never = (pytest.fail("a plane was asked for") for _ in range(1))
    text = fails(files.write, tmp_path / f"b{suffix}", picture, never)
    assert f"ending in {wanted} for" in text and f"received '{suffix}'" in text


def test_wrong_planes_are_an_error_of_the_caller(tmp_path):
    np.save(tmp_path / "a.npy", numbers((2, 5, 7)))
    picture = files.read(tmp_path / "a.npy")
    good = numbers((5, 7, 1))
    for planes, text in (
        *(([good], "expected 2 planes, received 1"), ([good] * 3, "received more")),
        ([good, good[1:]], "plane 2: expected shape"),
    ):
        with pytest.raises(ValueError, match=text):
            files.write(tmp_path / "b.npy", picture, planes)
    assert not (tmp_path / "b.npy").exists()


@pytest.mark.parametrize("suffix, most", [(".webp", 16383), (".jpg", 65500)])
def test_some_formats_have_a_largest_size(tmp_path, suffix, most):
    for side in (most, most + 1):
        np.save(tmp_path / f"{side}.npy", np.zeros((1, side), np.uint8))
    copy(tmp_path / f"{most}.npy", tmp_path / f"a{suffix}")
    with Image.open(tmp_path / f"a{suffix}") as image:
        assert image.size == (most, 1)
    picture = files.read(tmp_path / f"{most + 1}.npy")
    text = fails(files.check_target, tmp_path / f"b{suffix}", picture)
    assert f"expected at most {most} pixels a side for {suffix}, received {most + 1}" in text


def test_a_resolution_that_jpeg_cannot_hold_is_left_out(tmp_path):
    for dpi in (60000, 254000):
        Image.fromarray(numbers((5, 7))).save(tmp_path / f"{dpi}.png", dpi=(dpi, dpi))
        copy(tmp_path / f"{dpi}.png", tmp_path / f"{dpi}.jpg")
    found = [Image.open(tmp_path / f"{dpi}.jpg").info.get("dpi") for dpi in (60000, 254000)]
    assert found[0] == (60000, 60000) and found[1] in (None, (1, 1))


def test_what_belongs_to_a_folder_is_beside_it_however_it_is_called(tmp_path, monkeypatch):
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    assert files.beside(".", "x") == tmp_path / "a" / "b-x" and files.beside("..", "x") == tmp_path / "a-x"
    assert files.beside("c.png", "std.tif") == pathlib.Path("c-std.tif")


def test_a_folder_has_changed_where_a_file_in_it_has(tmp_path):
    (tmp_path / "a.zarr" / "c").mkdir(parents=True)
    (tmp_path / "a.zarr" / "c" / "0").write_bytes(b"old")
    before = files.version_of(tmp_path / "a.zarr")
    os.utime(tmp_path / "a.zarr" / "c" / "0", ns=(before[1] + 1000, before[1] + 1000))
    assert files.version_of(tmp_path / "a.zarr") == [before[0], before[1] + 1000]
    assert files.version_of(tmp_path / "a.zarr" / "c" / "0") == [3, before[1] + 1000]


# From one kind to another.


@pytest.mark.parametrize("target", files.SUFFIXES)
@pytest.mark.parametrize("source", [".png", ".tif", ".npy", ".bmp"])
@pytest.mark.parametrize("samples", [1, 3])
def test_one_kind_becomes_another(tmp_path, source, target, samples):
    pixels = np.full((16, 24, samples), (200, 100, 50)[:samples], np.uint8)
    path = tmp_path / f"a{source}"
    if source == ".npy":
        np.save(path, pixels)
    else:
        Image.fromarray(pixels.squeeze()).save(path, dpi=(300, 300))
    copy(path, tmp_path / f"b{target}")
    back = files.read(tmp_path / f"b{target}")
    assert back.dtype == np.uint8 and (back.shapes == [pixels.shape] or target == ".webp")
    assert np.abs(np.asarray(back[0]).astype(int) - pixels).max() <= (2 if "jp" in target else 0)


@pytest.mark.parametrize("shape", [(4, 5, 7), (2, 4, 5, 7), (4, 5, 7, 3), (5, 7, 3)])
def test_stacks_go_between_numpy_and_tiff(tmp_path, shape):
    array = numbers(shape, "float32")
    np.save(tmp_path / "a.npy", array)
    copy(tmp_path / "a.npy", tmp_path / "b.tif")
    assert files.read(tmp_path / "b.tif").shape == shape
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.tif"), array)
    copy(tmp_path / "b.tif", tmp_path / "c.npy")
    np.testing.assert_array_equal(np.load(tmp_path / "c.npy"), array)


@pytest.mark.parametrize("samples", [2, 4])
def test_transparency_goes_where_it_can_and_is_told_otherwise(tmp_path, samples, capsys):
    pixels = numbers((16, 24, samples))
    png(tmp_path / "a.png", pixels)
    copy(tmp_path / "a.png", tmp_path / "b.tif")
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "b.tif"), pixels)
    assert capsys.readouterr().err == ""
    for source, target in (
        ("a.png", "b.jpg"),
        ("a.png", "b.npy"),
        ("b.tif", "c.png"),
        ("a.png", "b.bmp"),
        ("a.png", "b.zarr"),
    ):
        copy(tmp_path / source, tmp_path / target)
        assert "transparency is left out" in capsys.readouterr().err, target


# Folders.


def test_find_gives_files_and_relative_names(tmp_path, capsys):
    names = ["a.PNG", "b/c.ome.tif", "b/d.npy", "e.txt", ".hidden.png", "b/f.mrc"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = files.find(tmp_path)
    assert [str(name) for _, name in found] == ["a.PNG", "b/c.ome.tif", "b/d.npy"]
    assert all(path == tmp_path / name for path, name in found)
    assert capsys.readouterr().err == f"warning: {tmp_path}: left out b/f.mrc, e.txt: no picture suffix.\n"
    assert [(p, str(n)) for p, n in files.find(tmp_path / "e.txt")] == [(tmp_path / "e.txt", "e.txt")]
    (tmp_path / "empty").mkdir()
    assert "empty" in fails(files.find, tmp_path / "empty")


def test_every_suffix_of_images_is_read_here():
    assert set(images.SUFFIXES) <= set(files.SUFFIXES)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "bmp", "webp"])
def test_texts_that_are_called_like_metadata_and_damaged_exif_are_no_obstacle(tmp_path, suffix):
    pixels = numbers((6, 7, 3))
    for key in ("dpi", "exif", "icc_profile", "xmp", "comment"):
        texts = PngImagePlugin.PngInfo()
        texts.add_text(key, "hello")
        Image.fromarray(pixels).save(tmp_path / "a.png", pnginfo=texts)
        copy(tmp_path / "a.png", tmp_path / f"b.{suffix}")
        with Image.open(tmp_path / f"b.{suffix}") as image:
            assert image.size == (7, 6)
            if suffix == "png":
                assert image.text == {key: "hello"}
    Image.fromarray(pixels).save(tmp_path / "a.jpg", exif=b"Exif\0\0garbage!")
    copy(tmp_path / "a.jpg", tmp_path / f"c.{suffix}")


def test_a_palette_with_transparency_comes_back_as_gray(tmp_path):
    Image.fromarray(numbers((6, 7))).convert("LA").convert("PA").save(tmp_path / "a.tif")
    picture = copy(tmp_path / "a.tif", tmp_path / "b.tif")
    again = files.read(tmp_path / "b.tif")
    assert len(picture) == len(again) == 1 and np.array_equal(picture[0], again[0])
    assert np.array_equal(*(tifffile.imread(tmp_path / f"{name}.tif")[..., 1] for name in "ab"))


def test_numbers_that_are_not_finite_are_counted_in_a_plane_of_many_bands(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((1000, 3), np.float32))
    picture = files.read(tmp_path / "a.npy")
    plane = np.zeros((1000, 3, 1))
    plane[[0, 255, 256, 999], 1] = np.nan
    assert "received 4 that are NaN" in fails(files.write, tmp_path / "b.npy", picture, [plane])
