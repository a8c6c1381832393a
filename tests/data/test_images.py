"""Picture files in and out: every kind of pixel, every way to fail."""

import errno
import math
import os
import pathlib
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from ssdn_tf.data import images
from ssdn_tf.errors import UserError


def picture(channels=3, shape=(5, 7), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, channels), dtype=np.uint8)


def save(path, pixels, mode=None, **options):
    """Saves through Pillow, not through our code."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    (image.convert(mode) if mode else image).save(path, **options)
    return path


def fails(function, *arguments):
    """The UserError's text, after a check that it is one sentence."""
    with pytest.raises(UserError) as error:
        function(*arguments)
    text = str(error.value)
    assert "\n" not in text and text.endswith("."), text
    assert ("expected" in text and "received" in text) or "cannot be written: " in text, text
    return text


# Reading.


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".PNG", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_files_give_their_pixels(tmp_path, suffix, channels):
    found = images.read(save(tmp_path / f"a{suffix}", picture(channels)))
    assert found.dtype == np.uint8
    assert found.shape == (5, 7, channels) and (found == picture(channels)).all()


@pytest.mark.parametrize("suffix", [".jpg", ".jpeg", ".webp"])
def test_lossy_files_are_read(tmp_path, suffix):
    pixels = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    found = images.read(save(tmp_path / f"a{suffix}", pixels, quality=95))
    # A flat colour survives but for the rounding of the colour transform.
    assert found.shape == pixels.shape and np.abs(found.astype(int) - pixels).max() <= 4


def test_palette_gives_its_colours(tmp_path):
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([2, 0, 1])
    image.save(tmp_path / "a.png")
    assert images.read(tmp_path / "a.png").tolist() == [[[70, 80, 90], [10, 20, 30], [40, 50, 60]]]


def test_transparency_is_dropped_not_blended(tmp_path):
    pixels = picture(4)
    pixels[..., 3] = 0
    assert (images.read(save(tmp_path / "rgba.png", pixels)) == pixels[..., :3]).all()
    gray = picture(2)
    Image.fromarray(gray, mode="LA").save(tmp_path / "la.png")
    found = images.read(tmp_path / "la.png")
    assert found.shape == (5, 7, 1) and (found == gray[..., :1]).all()


def test_one_bit_is_black_and_white(tmp_path):
    bits = picture(1) > 127
    Image.fromarray(bits[..., 0]).save(tmp_path / "a.png")
    assert Image.open(tmp_path / "a.png").mode == "1"
    found = images.read(tmp_path / "a.png")
    assert found.dtype == np.uint8 and (found == 255 * bits).all()


@pytest.mark.parametrize("suffix, dtype", [(".png", "<u2"), (".tif", "<u2"), (".tif", ">u2")])
def test_sixteen_bit_gray_keeps_its_bits(tmp_path, suffix, dtype):
    pixels = np.random.default_rng(1).integers(0, 65536, (5, 7, 1)).astype(dtype)
    pixels[0, 0], pixels[0, 1] = 0, 65535
    found = images.read(save(tmp_path / f"a{suffix}", pixels))
    assert found.dtype == np.uint16 and found.shape == (5, 7, 1) and (found == pixels).all()


def test_thirty_two_bit_gray_within_sixteen_is_read_and_beyond_is_refused(tmp_path):
    pixels = np.array([[[0], [65535]]], np.int32)
    found = images.read(save(tmp_path / "a.tif", pixels))
    assert found.dtype == np.uint16 and found.ravel().tolist() == [0, 65535]
    assert "65536" in fails(images.read, save(tmp_path / "b.tif", pixels + 1))
    fails(images.read, save(tmp_path / "c.tif", pixels - 1))


def test_cmyk_becomes_rgb(tmp_path):
    found = images.read(save(tmp_path / "a.tif", picture(3), mode="CMYK"))
    assert Image.open(tmp_path / "a.tif").mode == "CMYK"
    # Pillow's conversion without black ink is 255 - x and back.
    assert (found == picture(3)).all()


@pytest.mark.parametrize("content", [b"", b"no picture at all", b"\x89PNG\r\n\x1a\n" + b"\x00" * 40])
def test_files_that_are_no_pictures_are_refused_by_name(tmp_path, content):
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    assert "broken.png" in fails(images.read, path)
    assert "broken.png" in fails(images.size, path)


def test_missing_files_and_folders_are_refused_by_name(tmp_path):
    assert "none.png" in fails(images.read, tmp_path / "none.png")
    assert "none.png" in fails(images.size, tmp_path / "none.png")
    fails(images.read, tmp_path)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".webp"])
def test_truncated_files_are_refused(tmp_path, suffix):
    whole = save(tmp_path / f"whole{suffix}", picture(shape=(64, 64))).read_bytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(whole[: len(whole) // 2])
    fails(images.read, path)


def test_size_is_height_and_width(tmp_path):
    assert images.size(save(tmp_path / "a.png", picture())) == (5, 7)


# Conversions.


def test_float_is_in_the_unit_interval_for_both_depths():
    for dtype in (np.uint8, np.uint16):
        most = np.iinfo(dtype).max
        found = images.to_float(np.array([0, 1, most], dtype))
        assert found.dtype == np.float32
        assert found.tolist() == [0.0, np.float32(1) / np.float32(most), 1.0]


def test_mono_is_the_rounded_channel_mean():
    pixels = np.array([[[200, 100, 50], [0, 0, 2], [255, 255, 255]]], np.uint8)
    # Not luma: that would be 124 for the first.
    assert images.to_channels(pixels, 1).tolist() == [[[117], [1], [255]]]


def test_gray_is_tiled_and_the_right_count_is_left_alone():
    gray, colour = picture(1), picture(3)
    tiled = images.to_channels(gray, 3)
    assert tiled.shape == (5, 7, 3) and (tiled == gray).all()
    assert images.to_channels(gray, 1) is gray and images.to_channels(colour, 3) is colour


def test_mono_of_sixteen_bit_keeps_its_depth():
    found = images.to_channels(np.array([[[65535, 65535, 65534]]], np.uint16), 1)
    assert found.dtype == np.uint16 and found.tolist() == [[[65535]]]


def test_eight_bit_values_are_rounded_and_clipped():
    values = np.array([-1.0, 0.0, 0.49 / 255, 0.51 / 255, 99.6 / 255, 1.0, 7.0])
    assert images.to_uint8(values).tolist() == [0, 0, 0, 1, 100, 255, 255]


def test_every_eight_bit_value_survives_float():
    values = np.arange(256, dtype=np.uint8)
    assert (images.to_uint8(images.to_float(values)) == values).all()


# Writing.


@pytest.mark.parametrize("suffix", [".png", ".tif", ".tiff", ".bmp", ".PNG"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_files_round_trip(tmp_path, suffix, channels):
    pixels = picture(channels)
    images.write(tmp_path / f"bytes{suffix}", pixels)
    assert (images.read(tmp_path / f"bytes{suffix}") == pixels).all()
    images.write(tmp_path / f"float{suffix}", images.to_float(pixels))
    assert (images.read(tmp_path / f"float{suffix}") == pixels).all()


@pytest.mark.parametrize("suffix, format", [(".png", "PNG"), (".jpg", "JPEG"), (".tif", "TIFF")])
def test_the_suffix_says_the_format(tmp_path, suffix, format):
    images.write(tmp_path / f"a{suffix}", picture())
    assert Image.open(tmp_path / f"a{suffix}").format == format


def test_writing_makes_the_folder(tmp_path):
    images.write(tmp_path / "new" / "deeper" / "a.png", picture())
    assert (images.read(tmp_path / "new" / "deeper" / "a.png") == picture()).all()


@pytest.mark.parametrize("name", ["a.gif", "a", "a.npy"])
def test_unknown_suffixes_are_refused_before_anything_is_written(tmp_path, name):
    assert ".png" in fails(images.write, tmp_path / name, picture())
    assert list(tmp_path.iterdir()) == []


def break_off(error):
    def write_to(file):
        file.write(b"half a pic")
        raise error

    return write_to


@pytest.mark.parametrize("before", [None, b"the old file"])
def test_a_full_disk_leaves_the_file_whole_or_absent(tmp_path, before):
    path = tmp_path / "a.png"
    if before:
        path.write_bytes(before)
    full = OSError(errno.ENOSPC, "No space left on device")
    assert "No space left" in fails(images.write_whole, path, break_off(full))
    assert [p.name for p in tmp_path.iterdir()] == (["a.png"] if before else [])
    assert not before or path.read_bytes() == before


def test_an_interruption_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"the old file")
    with pytest.raises(KeyboardInterrupt):
        images.write_whole(path, break_off(KeyboardInterrupt()))
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert path.read_bytes() == b"the old file"


def test_the_file_is_not_there_before_it_is_complete(tmp_path):
    path = tmp_path / "a.png"
    seen = []

    def write_to(file):
        file.write(b"half")
        file.flush()
        seen.append(path.exists())
        file.write(b" and half")

    images.write_whole(path, write_to)
    assert seen == [False] and path.read_bytes() == b"half and half"


def test_a_file_in_the_way_of_the_folder_is_an_error_of_one_sentence(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    fails(images.write, tmp_path / "file" / "a.png", picture())


@pytest.mark.skipif(os.name == "nt", reason="an open file is not replaced there")
def test_a_reader_of_the_old_file_sees_all_of_it(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(b"the old file")
    with open(path, "rb", buffering=0) as old:
        images.write_whole(path, lambda file: file.write(b"the new file"))
        assert old.read() == b"the old file"
    assert path.read_bytes() == b"the new file"


@pytest.mark.skipif(os.name == "nt", reason="permission bits")
def test_written_files_have_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        images.write(tmp_path / "a.png", picture())
        assert (tmp_path / "a.png").stat().st_mode & 0o777 == 0o640
        assert os.umask(0o027) == 0o027  # left as it was
    finally:
        os.umask(before)


# Folders.


def test_find_sorts_the_pictures_below_and_names_the_others(tmp_path, capsys):
    for name in ("b.png", "a.JPG", "sub/c.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        save(tmp_path / name, picture(), format={".tif": "TIFF", ".JPG": "JPEG"}.get(name[-4:], "PNG"))
    for name in ("notes.txt", "raw.npy", ".hidden.png"):
        (tmp_path / name).write_bytes(b"")
    assert images.find(tmp_path) == [tmp_path / "a.JPG", tmp_path / "b.png", tmp_path / "sub" / "c.tif"]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "notes.txt, raw.npy" in captured.err and "hidden" not in captured.err


def test_find_is_silent_where_there_are_only_pictures(tmp_path, capsys):
    save(tmp_path / "a.png", picture())
    images.find(tmp_path)
    assert capsys.readouterr().err == ""


def test_find_refuses_what_is_no_folder_and_folders_without_pictures(tmp_path, capsys):
    assert "none" in fails(images.find, tmp_path / "nowhere")
    fails(images.find, save(tmp_path / "a.png", picture()))
    (tmp_path / "empty").mkdir()
    assert ".png" in fails(images.find, tmp_path / "empty")


@pytest.mark.parametrize(
    "names, text", [("a", "a"), ("abcde", "a, b, c, d, e"), ("abcdef", "a, b, c, d, e and 1 more"), ("", "")]
)
def test_names_are_enumerated_up_to_five(names, text):
    assert images.enumerate_names(list(names)) == text


def test_numpy_modules_load_neither_keras_nor_tensorflow():
    code = (
        "import sys; from ssdn_tf.data import images; from ssdn_tf.evaluation import metrics; "
        "from ssdn_tf.denoisers import experiments; "
        "sys.exit(', '.join({'keras', 'tensorflow', 'jax'} & set(sys.modules)) or 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_floating_point_tiff_is_refused_rather_than_read_as_black(tmp_path):
    Image.fromarray(np.full((4, 5), 0.5, np.float32), mode="F").save(tmp_path / "a.tif")
    with pytest.raises(UserError, match="expected 8 or 16 bit, received floating point"):
        images.read(tmp_path / "a.tif")


def png16(channels, kind, values):
    """A 16-bit PNG of one row, put together by hand, as Pillow does not write such."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    width = len(values) // channels
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, 16, kind, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(b"\0" + struct.pack(f">{len(values)}H", *values)))
    return b"\x89PNG\r\n\x1a\n" + header + pixels + chunk(b"IEND", b"")


def test_sixteen_bit_colour_keeps_its_bits():
    found = images.decode(png16(3, 2, [0, 1, 256, 65535, 513, 7]), "a.png")
    assert found.dtype == np.uint16 and found.tolist() == [[[0, 1, 256], [65535, 513, 7]]]


def test_sixteen_bit_transparency_is_dropped():
    assert images.decode(png16(4, 6, [1, 2, 3, 0]), "a.png").tolist() == [[[1, 2, 3]]]
    assert images.decode(png16(2, 4, [258, 0]), "a.png").tolist() == [[[258]]]


@pytest.mark.parametrize("cut", [60, -20])
def test_truncated_sixteen_bit_colour_is_refused(tmp_path, cut):
    data = images.encode_png(np.random.default_rng(0).integers(0, 65536, (9, 9, 3), np.uint16))
    (tmp_path / "a.png").write_bytes(data[:cut])
    fails(images.read, tmp_path / "a.png")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_png_bytes_give_their_pixels_back(channels, dtype):
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (5, 7, channels), dtype, endpoint=True)
    found = images.decode(images.encode_png(pixels), "a.png")
    assert found.dtype == dtype and (found == pixels).all()


def test_sixteen_bits_are_written_where_asked_for(tmp_path):
    image = np.array([[[0], [65535], [32768], [1]]], np.uint16)
    images.write(tmp_path / "a.png", image)
    assert np.array_equal(images.read(tmp_path / "a.png"), image)
    assert "expected a name ending in .png for 16 bit" in fails(lambda: images.write(tmp_path / "a.jpg", image))


def test_values_that_are_not_finite_are_not_written(tmp_path):
    with pytest.raises(UserError, match="expected finite intensities"):
        images.write(tmp_path / "a.png", np.full((4, 4, 3), np.nan))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape, side, expected", [((5, 8, 3), 4, np.s_[0:4, 2:6]), ((5, 8), 9, np.s_[:, :])])
def test_the_middle_is_a_view_of_at_most_that_side(shape, side, expected):
    picture = np.arange(math.prod(shape)).reshape(shape)
    found = images.middle(picture, side)
    assert np.array_equal(found, picture[expected]) and np.shares_memory(found, picture)


def test_a_damaged_tiff_in_sixteen_bits_is_refused_by_name(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65536, (40, 50, 3), np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", compression="zlib", metadata=None)
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        place = tif.pages[0].dataoffsets[0]
    data = bytearray((tmp_path / "a.tif").read_bytes())
    data[place : place + 200] = bytes(200)
    (tmp_path / "a.tif").write_bytes(data)
    with pytest.raises(UserError, match="a.tif: expected a picture, received a file that cannot be read"):
        images.read(tmp_path / "a.tif")


def test_webp_loses_nothing_and_has_a_largest_size(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    images.write(tmp_path / "a.webp", pixels)
    assert np.array_equal(images.read(tmp_path / "a.webp"), pixels)
    with pytest.raises(UserError, match="b.webp: expected a picture that .webp can hold"):
        images.write(tmp_path / "b.webp", np.zeros((1, 20000, 3), np.uint8))
    assert not (tmp_path / "b.webp").exists()


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("byteorder", "<>")
def test_sixteen_bits_of_a_tiff_in_colour_are_read(tmp_path, planar, byteorder, capsys):
    pixels = np.random.default_rng(0).integers(0, 65536, (2, 5, 7, 3), np.uint16)
    stored = pixels if planar == "contig" else np.moveaxis(pixels, -1, 1)
    options = {"photometric": "rgb", "planarconfig": planar, "byteorder": byteorder}
    tifffile.imwrite(tmp_path / "a.tif", stored[0], **options)
    found = images.read(tmp_path / "a.tif")
    assert found.dtype == np.uint16 and np.array_equal(found, pixels[0]) and capsys.readouterr().err == ""
    tifffile.imwrite(tmp_path / "b.tif", stored, metadata=None, **options)
    assert np.array_equal(images.read(tmp_path / "b.tif"), pixels[0])
    assert "b.tif: only the first of its 2 pictures is used" in capsys.readouterr().err


@pytest.mark.parametrize("error", [OSError("refused"), KeyboardInterrupt()])
def test_an_old_folder_comes_back_where_the_new_one_cannot_take_its_place(tmp_path, monkeypatch, error):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "old").write_text("old")
    rename, calls = pathlib.Path.rename, []

    def second_fails(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise error
        return rename(self, target)

    monkeypatch.setattr(pathlib.Path, "rename", second_fails)
    with pytest.raises((UserError, KeyboardInterrupt)):
        images.write_whole_folder(tmp_path / "a", lambda folder: folder.mkdir())
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a" / "old").read_text() == "old"


@pytest.mark.skipif(os.name == "nt", reason="links")
def test_a_new_folder_takes_the_place_of_a_link_and_leaves_what_it_leads_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    images.write_whole_folder(tmp_path / "link", lambda folder: folder.mkdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]
    assert not (tmp_path / "link").is_symlink()


def test_names_that_are_no_text_can_be_written_about(tmp_path):
    images.write_text(tmp_path / "a", "z\udcff.png")
    assert (tmp_path / "a").read_text() == "z\\udcff.png"


def test_a_folder_that_cannot_be_entered_is_named_and_the_others_are_found(tmp_path, monkeypatch, capsys):
    """As it is for anybody but root where a folder can be listed, and no more."""
    images.write(tmp_path / "open" / "a.png", picture())
    images.write(tmp_path / "shut" / "b.png", picture())
    is_dir = pathlib.Path.is_dir

    def denied(self):
        if self.parent.name == "shut":
            raise PermissionError(13, "Permission denied")
        return is_dir(self)

    monkeypatch.setattr(pathlib.Path, "is_dir", denied)
    assert [path.name for path in images.find(tmp_path)] == ["a.png"]
    assert f"left out {tmp_path / 'shut'}, which cannot be read: Permission denied" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="links")
def test_links_to_folders_are_named(tmp_path, capsys):
    images.write(tmp_path / "real" / "b.png", picture())
    images.write(tmp_path / "in" / "a.png", picture())
    (tmp_path / "in" / "sub").symlink_to(tmp_path / "real")
    (tmp_path / "in" / "c.png").symlink_to(tmp_path / "real" / "b.png")
    assert [path.name for path in images.find(tmp_path / "in")] == ["a.png", "c.png"]
    assert f"left out {tmp_path / 'in' / 'sub'}: links to folders are not followed" in capsys.readouterr().err
