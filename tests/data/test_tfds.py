import hashlib
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ssdn_tf.data import images
from ssdn_tf.data import tfds as datasets
from ssdn_tf.errors import UserError

SHAPES = [(20, 30, 3), (30, 20, 3), (16, 16, 1)]


@pytest.fixture(scope="session")
def tfds():
    pytest.importorskip("importlib_resources")
    return pytest.importorskip("tensorflow_datasets")


def picture(number):
    rng = np.random.default_rng(number)
    return rng.integers(0, 256, SHAPES[number % len(SHAPES)], dtype=np.uint8)


def save(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = picture(number)
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)
    return path


def entries(folder):
    """Names in a folder, hidden ones too."""
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def error_of(function, *args):
    """The sentence of the UserError."""
    with pytest.raises(UserError) as caught:
        function(*args)
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence
    assert "expected" in sentence and "received" in sentence
    return sentence


# The three sets.


@pytest.fixture
def kodak(tmp_path, monkeypatch):
    """A data folder with three made-up pictures of "kodak", and their checksums in place of ours."""
    files = [save(tmp_path / "data" / "kodak" / f"kodim{n:02d}.png", n) for n in range(3)]
    table = tmp_path / "checksums" / "kodak.tsv"
    table.parent.mkdir()
    rows = [(f"kodak/{file.name}", hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]
    table.write_text("".join(f"{name}\t{checksum}\n" for name, checksum in rows))
    monkeypatch.setattr(datasets, "CHECKSUMS", table.parent)
    return tmp_path / "data"


def test_verified_files_come_in_the_order_of_the_table(kodak):
    files = datasets.verified("kodak", kodak)
    assert files == [kodak / "kodak" / f"kodim{n:02d}.png" for n in range(3)]


def test_files_that_are_in_no_table_are_ignored(kodak):
    save(kodak / "kodak" / "another.png", 0)
    assert len(datasets.verified("kodak", kodak)) == 3


def test_a_missing_file_is_named(kodak):
    (kodak / "kodak" / "kodim01.png").unlink()
    sentence = error_of(datasets.verified, "kodak", kodak)
    assert "received none of kodak/kodim01.png." in sentence


def test_a_file_with_another_checksum_is_named(kodak):
    file = kodak / "kodak" / "kodim01.png"
    file.write_bytes(file.read_bytes() + b"\0")
    sentence = error_of(datasets.verified, "kodak", kodak)
    assert sentence.startswith(f"{file}: expected the sha256 ")


@pytest.mark.parametrize("name, count", [("kodak", 24), ("bsd300", 100), ("set14", 14)])
def test_our_tables_list_what_evaluation_reads_in_its_order(name, count):
    from ssdn_tf.evaluation import protocol

    folder, pattern, _ = protocol.SETS[name]
    files = list(datasets.checksums(name))
    assert len(files) == count
    assert files == sorted(files)
    assert all(pathlib.PurePath(file).parent == pathlib.PurePath(folder) for file in files)
    assert all(pathlib.PurePath(file).match(pattern) for file in files)
    assert all(len(bytes.fromhex(checksum)) == 32 for checksum in datasets.checksums(name).values())


def test_a_builder_gives_the_pictures_in_file_order_with_the_channels_of_the_file(kodak, tmp_path, tfds):
    builder = datasets.builders()["ssdn_kodak"](data_dir=tmp_path / "tfds")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=kodak))
    examples = list(builder.as_dataset(split="test").as_numpy_iterator())
    assert [example["name"] for example in examples] == [b"kodim00.png", b"kodim01.png", b"kodim02.png"]
    for number, example in enumerate(examples):
        np.testing.assert_array_equal(example["image"], picture(number))


def test_a_builder_refuses_a_file_with_another_checksum(kodak, tmp_path, tfds):
    save(kodak / "kodak" / "kodim01.png", 7)
    sentence = error_of(datasets.extract, "tfds:ssdn_kodak:test", kodak)
    assert "kodim01.png: expected the sha256" in sentence
    assert entries(kodak / "extracted") == []


def _data_dir():
    folder = os.environ.get("SSDN_DATA_DIR")
    folder = pathlib.Path(folder) if folder else pathlib.Path(__file__).parents[3] / "shared" / "data"
    return folder if folder.is_dir() else None


@pytest.mark.skipif(not _data_dir(), reason="no SSDN_DATA_DIR")
@pytest.mark.parametrize("name", ["kodak", "bsd300", "set14"])
def test_the_true_sets_have_our_checksums_and_are_what_evaluation_reads(name):
    from ssdn_tf.evaluation import protocol

    assert datasets.verified(name, _data_dir()) == protocol.image_set(name, _data_dir())[1]


@pytest.mark.skipif(not _data_dir(), reason="no SSDN_DATA_DIR")
def test_extract_gives_the_pixels_of_the_true_set14(tmp_path, tfds):
    (tmp_path / "Set14").symlink_to(_data_dir() / "Set14")
    files = datasets.extract("tfds:ssdn_set14:test", tmp_path)
    originals = datasets.verified("set14", tmp_path)
    assert len(files) == len(originals) == 14
    for file, original in zip(files, originals):
        np.testing.assert_array_equal(images.read(file), images.read(original))


# Any set of TFDS.


@pytest.fixture(scope="session")
def encoded(tmp_path_factory):
    """Files as a set on the net has them: JPEG and PNG, and a BMP."""
    folder = tmp_path_factory.mktemp("encoded")
    return [save(folder / name, n) for n, name in enumerate(["a.jpg", "b.png", "c.jpeg", "d.bmp"])]


@pytest.fixture(scope="session")
def tiny(tfds, encoded):
    """Registers data sets of a few pictures; `tiny.prepared` counts how often one was prepared."""
    feature = tfds.features

    class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        features = {"image": feature.Image(shape=(None, None, None))}
        examples = [{"image": str(file)} for file in encoded]
        prepared = 0

        def _info(self):
            features = feature.FeaturesDict(self.features)
            return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

        def _split_generators(self, dl_manager):
            Tiny.prepared += 1
            return {"train": self._generate_examples(), "validation": self._generate_examples()}

        def _generate_examples(self):
            yield from enumerate(self.examples)

    class TinyEncoded(Tiny):
        features = Tiny.features | {"label": np.int64}
        examples = [{"image": str(file), "label": n} for n, file in enumerate(encoded)]

    class TinyRaw(Tiny):
        features = {"image": feature.Tensor(shape=(20, 30, 3), dtype=np.uint8)}
        examples = [{"image": picture(0)}, {"image": picture(3)}]

    class TinyFloat(Tiny):
        features = {"image": feature.Tensor(shape=(20, 30, 3), dtype=np.float32)}

    class TinyFloatImage(Tiny):
        features = {"image": feature.Image(shape=(None, None, 1), dtype=np.float32)}

    class TinyVideo(Tiny):
        features = {"image": feature.Video(shape=(None, 20, 30, 3))}

    class TinyLabels(Tiny):
        features = {"label": np.int64, "height": np.float32}

    class TinyRemote(Tiny):
        def _split_generators(self, dl_manager):
            raise ConnectionError("Failed to resolve 'example.org'. Try again.\nOr later.")

    return Tiny


@pytest.fixture(scope="session")
def prepared(tiny, tmp_path_factory):
    """A data_dir with the sets that can be prepared, extracted once."""
    folder = tmp_path_factory.mktemp("prepared")
    for name in ("tiny_encoded", "tiny_raw"):
        datasets.extract(f"tfds:{name}:train", folder)
    return folder


@pytest.fixture
def without_tfds(monkeypatch):
    """Imports of TFDS and of TensorFlow fail."""
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    monkeypatch.setitem(sys.modules, "tensorflow", None)


def test_extracted_jpeg_and_png_files_are_the_bytes_that_went_in(prepared, encoded):
    files = datasets.extract("tfds:tiny_encoded:train", prepared)
    folder = prepared / "extracted" / "tiny_encoded-train"
    names = ["00000000.jpg", "00000001.png", "00000002.jpg", "00000003.png"]
    assert files == [folder / name for name in names]
    assert [file.read_bytes() for file in files[:3]] == [file.read_bytes() for file in encoded[:3]]


def test_another_encoding_becomes_png_with_the_same_pixels(prepared, encoded):
    files = datasets.extract("tfds:tiny_encoded:train", prepared)
    assert files[3].read_bytes().startswith(b"\x89PNG")
    assert files[3].read_bytes() != encoded[3].read_bytes()
    np.testing.assert_array_equal(images.read(files[3]), images.read(encoded[3]))


def test_raw_pictures_become_png_with_the_same_pixels(prepared):
    files = datasets.extract("tfds:tiny_raw:train", prepared)
    assert [file.name for file in files] == ["00000000.png", "00000001.png"]
    for file, number in zip(files, (0, 3)):
        np.testing.assert_array_equal(images.read(file), picture(number))


def test_only_complete_folders_are_in_the_cache(prepared):
    assert {"tiny_encoded-train", "tiny_raw-train"} <= set(entries(prepared / "extracted"))
    assert not [name for name in entries(prepared / "extracted") if name.startswith(".")]


def test_a_second_call_finds_the_files_without_tfds(prepared, without_tfds):
    assert len(datasets.extract("tfds:tiny_encoded:train", prepared)) == 4
    # Control: what was not extracted needs TFDS.
    error_of(datasets.extract, "tfds:tiny_encoded:validation", prepared)


def test_another_split_is_another_folder_and_prepares_nothing_again(prepared, tiny):
    before = tiny.prepared
    files = datasets.extract("tfds:tiny_encoded:validation[1:3]", prepared)
    assert [file.suffix for file in files] == [".png", ".jpg"]
    assert files[0].parent != prepared / "extracted" / "tiny_encoded-train"
    assert tiny.prepared == before


def test_a_name_with_its_version_is_understood(prepared):
    assert len(datasets.extract("tfds:tiny_encoded:1.0.0:train", prepared)) == 4


def test_without_data_dir_the_files_are_in_the_users_cache(tmp_path, monkeypatch, without_tfds):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    there = save(tmp_path / "cache" / "ssdn_tf" / "imagenette-320px-v2-train" / "00000000.png", 0)
    assert datasets.extract("tfds:imagenette/320px-v2:train") == [there]
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    there = save(tmp_path / "home" / ".cache" / "ssdn_tf" / "mnist-train" / "00000000.png", 0)
    assert datasets.extract("tfds:mnist:train") == [there]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_an_interrupted_extraction_leaves_nothing_and_the_next_is_complete(failure, prepared, monkeypatch):
    spec, folder = "tfds:tiny_encoded:validation", prepared / "extracted"
    before, write = entries(folder), pathlib.Path.write_bytes

    def fail_at_the_second(path, data):
        if path.name == "00000001.png":
            # Control: there is something to leave behind.
            assert entries(path.parent) == ["00000000.jpg"]
            raise failure
        return write(path, data)

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "write_bytes", fail_at_the_second)
        with pytest.raises((KeyboardInterrupt, UserError)) as caught:
            datasets.extract(spec, prepared)
    assert entries(folder) == before
    if caught.type is UserError:
        assert "received 'No space left on device'" in str(caught.value)
    files = datasets.extract(spec, prepared)
    assert len(files) == 4
    for file in [*files, files[0].parent]:
        file.unlink() if file.is_file() else file.rmdir()


def test_of_two_extractions_at_once_both_get_the_files(tmp_path):
    folder = tmp_path / "set-train"
    png = save(tmp_path / "a.png", 0).read_bytes()

    def pictures():
        yield png
        datasets._write_folder(folder, [png])

    datasets._write_folder(folder, pictures())
    assert entries(folder) == ["00000000.png"]
    assert entries(tmp_path) == ["a.png", "set-train"]


@pytest.mark.parametrize(
    "spec", ["tfds", "tfds:mnist", "tfds::train", "tfds:mnist:", "mnist:train", "tfds:../x:train", "folder"]
)
def test_a_malformed_spec_is_an_error(spec, tmp_path, without_tfds):
    sentence = error_of(datasets.extract, spec, tmp_path)
    assert sentence == f"expected tfds:NAME:SPLIT, such as tfds:imagenet2012:validation, received '{spec}'."


@pytest.mark.parametrize(
    "spec, part",
    [
        ("tfds:no_such_set:train", "(tensorflow.org/datasets/catalog), received 'no_such_set'"),
        ("tfds:imagenette/99px:train", "received 'ValueError: BuilderConfig 99px not found"),
        ("tfds:mnist:1.0.0:train", "cannot be loaded at version 1.0.0, only: 3.0.1'"),
        ("tfds:tiny_encoded:test", "a split of the data set (train, validation), received 'test'"),
        ("tfds:tiny_encoded:train[", "a split of the data set (train, validation), received 'train['"),
        ("tfds:tiny_encoded:train[:0]", "expected a split with pictures, received an empty one"),
        ("tfds:tiny_labels:train", "the feature 'image', received one with: height, label"),
        ("tfds:tiny_float:train", "expected pictures of uint8 [H,W,C] as 'image', received Tensor("),
        ("tfds:tiny_float_image:train", "expected pictures of uint8 or uint16 [H,W,C] as 'image', received Image("),
        ("tfds:tiny_video:train", "expected pictures of uint8 [H,W,C] as 'image', received Video("),
        ("tfds:tiny_remote:train", "received 'ConnectionError: Failed to resolve 'example.org''"),
        ("tfds:imagenet2012:validation", "does not exist or is empty'"),
    ],
)
def test_a_set_that_cannot_be_had_is_an_error_that_says_why(spec, part, prepared):
    before = entries(prepared / "extracted")
    sentence = error_of(datasets.extract, spec, prepared)
    assert sentence.startswith(f"{spec}: expected") and part in sentence
    assert entries(prepared / "extracted") == before


def test_a_damaged_set_is_an_error_and_leaves_nothing(tiny, tmp_path):
    datasets.extract("tfds:tiny_encoded:train", tmp_path)
    (record,) = (tmp_path / "tiny_encoded" / "1.0.0").glob("*validation*")
    record.write_bytes(record.read_bytes()[:-10])
    sentence = error_of(datasets.extract, "tfds:tiny_encoded:validation", tmp_path)
    assert "expected a readable data set, received 'DataLossError" in sentence
    assert entries(tmp_path / "extracted") == ["tiny_encoded-train"]


def test_without_tfds_the_error_says_how_to_get_it(tmp_path, without_tfds):
    sentence = error_of(datasets.extract, "tfds:mnist:train", tmp_path)
    assert "pip install tensorflow-datasets" in sentence
    assert entries(tmp_path) == []


def test_importing_the_module_loads_neither_tensorflow_nor_tfds():
    code = "import sys; from ssdn_tf.data import tfds; print([*map(sys.modules.__contains__, sys.argv[1:])])"
    command = [sys.executable, "-c", code, "tensorflow", "tensorflow_datasets", "keras", "numpy"]
    root = pathlib.Path(datasets.__file__).parents[2]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    # Control: numpy is loaded.
    assert result.stdout.strip() == "[False, False, False, True]"
