"""Zarr: read in parts, written with the chunks, attributes and place of the source."""

import numpy as np
import pytest

from ssdn_tf.data import files, planes, zarr_files
from ssdn_tf.errors import UserError

zarr = pytest.importorskip("zarr")


def values(shape, dtype=np.uint16):
    return np.random.default_rng(0).integers(0, 60000, shape).astype(dtype)


def written(path, array, **settings):
    made = zarr.create_array(str(path), shape=array.shape, dtype=array.dtype, **settings)
    made[:] = array
    return path


def through(path, target):
    """Reads a Zarr and writes its planes, each value plus 1."""
    picture = files.read(path)
    files.write(target, picture, (np.asarray(picture[i]) + 1 for i in range(len(picture))))
    return picture


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("shape, planes_, last", [((40, 30), 1, 1), ((2, 3, 40, 30), 6, 1), ((2, 40, 30, 3), 2, 3)])
def test_an_array_comes_back_with_its_chunks_and_attributes(tmp_path, shape, planes_, last, version):
    array = values(shape)
    chunks = (*[1] * (len(shape) - 2), 16) if shape[-1] != 3 else (1, 16, 16, 3)
    chunks = chunks if len(chunks) == len(shape) else (*chunks, 16)
    source = written(tmp_path / "in.zarr", array, chunks=chunks, attributes={"unit": "counts"}, zarr_format=version)
    picture = through(source, tmp_path / "out.zarr")
    assert len(picture) == planes_ and picture.shapes[0] == (40, 30, last) and picture.dtype == np.uint16
    found = zarr.open(str(tmp_path / "out.zarr"), mode="r")
    np.testing.assert_array_equal(found[:], array + 1)
    assert found.chunks == chunks and found.attrs["unit"] == "counts" and found.metadata.zarr_format == version
    assert not [name for name in tmp_path.iterdir() if name.name.startswith(".")]


def test_an_ome_image_keeps_its_first_scale_and_axes(tmp_path):
    array = values((2, 3, 32, 40))
    axes = [{"name": name, "type": "x"} for name in "tcyx"]
    scales = [{"axes": axes, "datasets": [{"path": "0"}, {"path": "1"}]}]
    group = zarr.create_group(str(tmp_path / "in.zarr"), attributes={"ome": {"version": "0.5", "multiscales": scales}})
    for name, data in (("0", array), ("1", array[..., ::2, ::2])):
        group.create_array(name, shape=data.shape, dtype=data.dtype, chunks=(1, 1, 16, 16))[:] = data
    picture = through(tmp_path / "in.zarr", tmp_path / "out.zarr")
    assert picture.axes == "TCYX" and len(picture) == 6 and picture.shapes[0] == (32, 40, 1)
    found = zarr.open(str(tmp_path / "out.zarr"), mode="r")
    np.testing.assert_array_equal(found["0"][:], array + 1)
    (scale,) = found.attrs["ome"]["multiscales"]
    assert [d["path"] for d in scale["datasets"]] == ["0"] and scale["axes"] == axes and list(found) == ["0"]


def test_only_what_is_sliced_is_read(tmp_path):
    source = written(tmp_path / "in.zarr", values((64, 64), np.float32), chunks=(16, 16))
    (tmp_path / "in.zarr" / "c" / "3" / "3").write_bytes(b"damaged")
    plane = files.read(source)[0]
    assert plane[0:16, 0:40].shape == (16, 40, 1) and plane.shape == (64, 64, 1)
    view = planes.UnitView(plane, (0, 100), 1)
    assert view[:8, :8].dtype == np.float32
    with pytest.raises(UserError, match=r"in.zarr, plane 1 of 1: expected a chunk that can be read"):
        plane[40:, 40:]


def test_into_and_from_other_kinds(tmp_path):
    array = values((2, 40, 30))
    np.save(tmp_path / "in.npy", array)
    through(tmp_path / "in.npy", tmp_path / "a.zarr")
    np.testing.assert_array_equal(zarr.open(str(tmp_path / "a.zarr"), mode="r")[:], array + 1)
    through(tmp_path / "a.zarr", tmp_path / "b.tif")
    np.testing.assert_array_equal(np.concatenate([p[..., 0] for p in files.read(tmp_path / "b.tif")]),
                                  np.concatenate(array + 2))  # fmt: skip


def test_a_folder_of_them_is_found_and_their_chunks_are_not(tmp_path):
    written(tmp_path / "sub" / "x.zarr", values((8, 8)))
    np.save(tmp_path / "y.npy", values((8, 8)))
    assert [name.as_posix() for _, name in files.find(tmp_path)] == ["sub/x.zarr", "y.npy"]
    assert [name.as_posix() for _, name in files.find(tmp_path / "sub" / "x.zarr")] == ["x.zarr"]


def test_what_is_no_picture_is_refused(tmp_path):
    zarr.create_group(str(tmp_path / "empty.zarr"))
    written(tmp_path / "line.zarr", values((8,)))
    bad = written(tmp_path / "nan.zarr", np.full((8, 8), np.nan, np.float32))
    for name, words in (("empty", "expected an OME-Zarr image or a single array"), ("line", "expected real numbers")):
        with pytest.raises(UserError, match=words):
            files.read(tmp_path / f"{name}.zarr")
    with pytest.raises(UserError, match="expected finite numbers"):
        np.asarray(files.read(bad)[0])


def test_without_the_package_there_is_a_sentence(tmp_path, monkeypatch):
    source = written(tmp_path / "in.zarr", values((8, 8)))
    monkeypatch.setitem(__import__("sys").modules, "zarr", None)
    assert zarr_files.is_zarr(source)
    with pytest.raises(UserError, match=r'Zarr needs the package zarr \(pip install "ssdn_tf\[zarr\]"\)'):
        files.read(source)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_may_come_last(tmp_path, channels):
    """Three are the colours of a picture, others gray planes, also in files of other kinds."""
    array = values((32, 40, channels))
    source = written(tmp_path / "in.zarr", array, chunks=(16, 16, channels), dimension_names=["y", "x", "c"])
    picture = through(source, tmp_path / "out.zarr")
    colour = channels == 3
    assert (len(picture), picture.shapes[0][-1]) == ((1, 3) if colour else (channels, 1))
    np.testing.assert_array_equal(zarr.open(str(tmp_path / "out.zarr"), mode="r")[:], array + 1)
    through(source, tmp_path / "a.npy")
    planes_ = array if channels == 3 else np.moveaxis(array, -1, 0)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), planes_[0] + 1 if channels == 1 else planes_ + 1)
    np.testing.assert_array_equal(picture[channels - 1 if not colour else 0][5:9, 3:7][..., -1], array[5:9, 3:7, -1])


@pytest.mark.parametrize("version", [2, 3])
def test_how_the_chunks_are_stored_is_kept(tmp_path, version):
    settings = {"compressors": None, "fill_value": 7, "chunks": (16, 16), "zarr_format": version}
    settings |= {"shards": (32, 32)} if version == 3 else {}
    key = {"name": "v2" if version == 2 else "default", "separator": "." if version == 3 else "/"}
    source = written(tmp_path / "in.zarr", values((32, 40)), chunk_key_encoding=key, **settings)
    through(source, tmp_path / "out.zarr")
    one, other = (zarr.open(str(tmp_path / f"{name}.zarr"), mode="r") for name in ("in", "out"))
    assert one.metadata.to_dict() == other.metadata.to_dict() and not other.compressors
    names = [sorted(f.relative_to(a).as_posix() for f in a.rglob("*")) for a in (source, tmp_path / "out.zarr")]
    assert names[0] == names[1] and len(names[0]) > 2


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    np.save(tmp_path / "in.npy", values((8, 8)))
    (tmp_path / "out.zarr").mkdir()
    (tmp_path / "out.zarr" / "thesis.txt").write_text("years")
    with pytest.raises(UserError, match="expected the name of a picture, received that of a folder"):
        through(tmp_path / "in.npy", tmp_path / "out.zarr")
    assert (tmp_path / "out.zarr" / "thesis.txt").read_text() == "years"
    for _ in range(2):  # a Zarr is replaced
        through(tmp_path / "in.npy", tmp_path / "other.zarr")


def test_training_reads_no_more_rows_than_fit_into_memory(tmp_path, capsys):
    source = written(tmp_path / "in.zarr", values((4000, 500)), chunks=(100, 500))
    for chunk in (tmp_path / "in.zarr" / "c").rglob("*"):
        if chunk.is_file() and int(chunk.parent.name) > 10:
            chunk.write_bytes(b"damaged")
    found = planes.NoisyPlanes([source], 32, memory_mb=1)
    assert found[0].shape == (524, 500, 1) and "only 524 of 4000 rows" in capsys.readouterr().err
    # A damaged one takes no memory.
    (tmp_path / "in.zarr" / "c" / "0" / "0").write_bytes(b"damaged")
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", values((64, 64)))
    found = planes.NoisyPlanes([source, tmp_path / "a.npy", tmp_path / "b.npy"], 32, memory_mb=1)
    assert found.names == ["a.npy#0", "b.npy#0"] and "expected a chunk that can be read" in capsys.readouterr().err


def test_the_range_of_8_bit_is_known_without_reading(tmp_path):
    source = written(tmp_path / "in.zarr", values((8, 8), np.uint8))
    plane = files.read(source)[0]
    (tmp_path / "in.zarr" / "c" / "0" / "0").write_bytes(b"damaged")
    assert planes.measured_range([plane]) == (0, 255)
