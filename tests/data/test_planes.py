"""Noisy pictures of any kind as training data."""

import numpy as np
import pytest
import tifffile

from ssdn_tf.data import images
from ssdn_tf.data.planes import NoisyPlanes, measured_range, name_of, spread, to_unit
from ssdn_tf.errors import UserError


def drawn(dtype, low, high):
    return np.random.default_rng(0).uniform(low, high, (8, 8, 1)).astype(dtype)


@pytest.mark.parametrize(
    "pixels, expected",
    [
        (drawn("uint8", 3, 9), (0, 255)),
        (drawn("float32", -0.1, 1.1), (0, 1)),
        (drawn("uint16", 0, 65535), (0, 65535)),
        (np.array([[[100]], [[4000]]], "uint16"), (100, 4000)),
        (np.array([[[-7.0]], [[7.0]]]), (-7, 7)),
        (drawn("uint16", 0, 65535).astype(">u2"), (0, 65535)),
        (np.full((4, 4, 1), 500, "uint16"), (500, 501)),
        (np.full((4, 4, 1), 1e20), (1e20, 1e20 + 1e14)),
    ],
)
def test_the_range_is_measured(pixels, expected):
    black, white = measured_range([pixels])
    assert (black, white) == pytest.approx(expected, rel=0.05) and black < white


def test_pages_of_stacks_and_floats_are_planes_in_the_unit_of_the_networks(tmp_path):
    stack = np.random.default_rng(0).normal(0.5, 0.2, (3, 40, 50)).astype(np.float32)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    np.save(tmp_path / "b.npy", stack[0])
    found = NoisyPlanes([tmp_path / "a.tif", tmp_path / "b.npy"], 32)
    assert len(found) == 4 and found.limits == (0.0, 1.0) and found.sides() == [40] * 4
    assert found[1].dtype == np.float32 and np.array_equal(found[1][..., 0], stack[1])
    assert [name for name, _ in found.description()] == ["a.tif#0", "a.tif#1", "a.tif#2", "b.npy#0"]
    assert np.array_equal(images.to_float(found[1]), found[1])  # floats are not divided again


def test_the_range_is_measured_and_undone_by_it(tmp_path):
    pixels = np.random.default_rng(1).integers(100, 4000, (64, 64)).astype(np.uint16)
    tifffile.imwrite(tmp_path / "a.tif", pixels)
    found = NoisyPlanes([tmp_path / "a.tif"], 32)
    black, white = found.limits
    assert black == pytest.approx(104, abs=5) and white == pytest.approx(3996, abs=5)
    np.testing.assert_allclose(found[0][..., 0] * (white - black) + black, pixels, atol=0.01)
    given = NoisyPlanes([tmp_path / "a.tif"], 32, limits=(0.0, 65535.0))
    assert given.limits == (0.0, 65535.0) and found[0].max() > 10 * given[0].max()


def test_eight_bits_are_what_they_were_before(tmp_path):
    pixels = np.random.default_rng(2).integers(0, 256, (40, 40, 3), np.uint8)
    images.write(tmp_path / "a.png", pixels)
    assert np.array_equal(NoisyPlanes([tmp_path / "a.png"], 32)[0], images.to_float(pixels))
    assert np.array_equal(to_unit(pixels, (0.0, 255.0)), images.to_float(pixels))


def test_what_cannot_be_used_is_left_out_with_a_warning(tmp_path, capsys):
    images.write(tmp_path / "good.png", np.zeros((40, 40, 3), np.uint8))
    images.write(tmp_path / "small.png", np.zeros((8, 40, 3), np.uint8))
    (tmp_path / "bad.png").write_bytes(b"nothing")
    paths = [tmp_path / name for name in ("bad.png", "good.png", "small.png")]
    assert len(NoisyPlanes(paths, 32)) == 1
    error = capsys.readouterr().err
    assert "bad.png" in error and "small.png: smaller than the crop of 32x32" in error
    assert len(NoisyPlanes([paths[1]] * 3, 32, memory_mb=0.04)) == 2 and "only 2 pictures" in capsys.readouterr().err
    assert NoisyPlanes([paths[1]] * 3, 16, memory_mb=0.01)[0].shape == (21, 40, 3)  # 480 bytes a row
    assert "only 21 of 40 rows of the first picture fit into 0.01 MiB" in capsys.readouterr().err
    with pytest.raises(UserError, match="good.png: expected a picture that fits into 0.01 MiB"):
        NoisyPlanes([paths[1]], 32, memory_mb=0.01)
    with pytest.raises(UserError, match="expected pictures of at least 32x32"):
        NoisyPlanes(paths[2:], 32)


def test_a_bad_page_leaves_the_others_of_its_stack(tmp_path, capsys):
    stack = np.random.default_rng(0).random((4, 40, 40), np.float32)
    stack[1, 0, 0] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    assert NoisyPlanes([tmp_path / "a.tif"], 32).names == ["a.tif#0", "a.tif#2", "a.tif#3"]
    assert "a.tif, plane 2 of 4: expected finite numbers" in capsys.readouterr().err


def test_pictures_of_two_dtypes_need_a_range(tmp_path):
    images.write(tmp_path / "a.png", np.zeros((40, 40, 3), np.uint8))
    images.write(tmp_path / "b.png", np.zeros((40, 40, 3), np.uint16))
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    with pytest.raises(UserError, match="expected pictures of one dtype.*uint16 and uint8"):
        NoisyPlanes(paths, 32)
    assert len(NoisyPlanes(paths, 32, limits=(0, 255))) == 2


def test_pictures_of_one_name_in_several_folders_are_told_apart(tmp_path):
    paths = [tmp_path / "a" / "x.png", tmp_path / "b" / "x.png"]
    for path in paths:
        images.write(path, np.zeros((40, 40, 3), np.uint8))
    assert NoisyPlanes(paths, 32, folder=tmp_path).names == ["a/x.png#0", "b/x.png#0"]
    assert name_of(paths[0], tmp_path) == "a/x.png" and name_of(paths[0], paths[0]) == "x.png"


@pytest.mark.parametrize("count, most, expected", [(0, 4, []), (1, 4, [0]), (3, 4, [0, 1, 2]), (10, 4, [0, 3, 6, 9])])
def test_what_is_looked_at_is_spread_over_all(count, most, expected):
    assert spread(count, most) == expected


def test_a_damaged_plane_leaves_the_range_to_the_others():
    class Damaged(np.ndarray):
        def __getitem__(self, key):
            raise UserError("damaged")

    good = np.array([[[100]], [[4000]]], "uint16")
    assert measured_range([good.view(Damaged), good]) == measured_range([good])


def test_parts_of_some_planes_are_held_out_and_no_picture(tmp_path):
    stack = np.random.default_rng(0).random((12, 80, 40), np.float32)
    tifffile.imwrite(tmp_path / "a.tif", stack, photometric="minisblack")
    found = NoisyPlanes([tmp_path / "a.tif"], 32, hold_out=True)
    assert len(found) == 12 and list(found.held_out) == [0, 11] and found.sides() == [40] * 12
    for number, part in found.held_out.items():
        assert part.shape == (10, 40, 1) and found[number].shape == (70, 40, 1)
        assert np.array_equal(np.concatenate([found[number], part]), found.whole(number))
        assert np.array_equal(found.whole(number)[..., 0], stack[number])
    assert found[5].shape == (80, 40, 1) == found.whole(5).shape
    tall = NoisyPlanes([tmp_path / "a.tif"], 32)
    assert not tall.held_out and tall[0].shape == (80, 40, 1)


@pytest.mark.parametrize("crop, rows", [(64, 0), (56, 8), (8, 8)])
def test_what_is_left_of_a_plane_still_holds_a_crop(tmp_path, crop, rows):
    np.save(tmp_path / "a.npy", np.zeros((64, 64), np.float32))
    found = NoisyPlanes([tmp_path / "a.npy"], crop, hold_out=True)
    assert found[0].shape[0] == 64 - rows and sum(len(part) for part in found.held_out.values()) == rows


def test_a_stack_that_is_too_small_is_named_once(tmp_path, capsys):
    tifffile.imwrite(tmp_path / "s.tif", np.zeros((10, 20, 20), np.uint8), photometric="minisblack")
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((40, 40), np.uint8))
    NoisyPlanes([tmp_path / "s.tif", tmp_path / "a.tif"], 32)
    assert "left out s.tif: smaller than the crop of 32x32" in capsys.readouterr().err
