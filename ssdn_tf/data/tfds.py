"""Image sets of TensorFlow Datasets (TFDS) as files to train on; Kodak, BSD300, Set14 as TFDS builders.

    files = tfds.extract("tfds:imagenet2012:validation", data_dir)

TFDS and TensorFlow are imported when a function needs them, not with this module.
"""

import functools
import hashlib
import os
import pathlib
import re
import shutil
import sys
import urllib.parse
import uuid

import numpy as np

from ssdn_tf.data import images
from ssdn_tf.errors import UserError

CHECKSUMS = pathlib.Path(__file__).with_name("checksums")

# tfds:NAME:SPLIT; NAME may have /CONFIG and :VERSION, SPLIT a slice ("train[:10%]") with a colon of its own.
_SPEC = re.compile(r"tfds:([A-Za-z]\w*(?:/[^:\s]+)?(?::[\d.*]+)?):([A-Za-z]\S*)")
# First bytes of an encoded picture: what TFDS keeps has lost its file name.
_SUFFIXES = {b"\xff\xd8\xff": ".jpg", b"\x89PNG\r\n\x1a\n": ".png"}


def extract(spec, data_dir=None):
    """The pictures of a TFDS split as files, written once and found again by later calls.

    Encoded pictures (tfds.features.Image) keep their JPEG or PNG bytes, nothing is decoded;
    raw uint8 ones become PNG, as does anything but JPEG and PNG. One picture is in memory
    at a time. The files are DIR/NAME-SPLIT/00000000.jpg, ..., in the order of the split, where
    DIR is data_dir/extracted, or ssdn_tf in the user's cache folder (XDG_CACHE_HOME, ~/.cache).
    The folder appears when it is complete. Only a killed process leaves its unfinished
    folder behind, hidden (.NAME-SPLIT.*) and never read.

    Args:
        spec: "tfds:NAME:SPLIT", as in tfds:imagenette/320px-v2:train, tfds:ssdn_set14:test or
            tfds:imagenet2012:validation[:10%].
        data_dir: TFDS's data_dir: where the set is prepared, or will be (None: TFDS's own).
            For the sets of `builders` also the folder with the original pictures.

    Returns:
        Sorted list of pathlib.Path.

    Raises:
        UserError: malformed spec, unknown set or split, no pictures under the name 'image',
            neither prepared nor to be downloaded (without a network TFDS tries for minutes),
            TFDS not installed, or the disk refuses.
    """
    name, split = _parse(spec)
    data_dir = pathlib.Path(data_dir).expanduser() if data_dir else None
    folder = _folder(name, split, data_dir)
    if not folder.is_dir():
        dataset = _dataset(spec, name, split, data_dir)
        print(f"{spec}: writing its pictures to {folder}.", file=sys.stderr, flush=True)
        _write_folder(folder, _pictures(spec, dataset))
    return images.find(folder)


def _parse(spec):
    match = _SPEC.fullmatch(spec)
    if not match:
        raise UserError(f"expected tfds:NAME:SPLIT, such as tfds:imagenet2012:validation, received '{spec}'.")
    return match.groups()


def _folder(name, split, data_dir):
    if data_dir:
        cache = data_dir / "extracted"
    else:
        cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ssdn_tf"
    return cache / urllib.parse.quote(f"{name}-{split}".replace("/", "-"), safe="+,=")


def _dataset(spec, name, split, data_dir):
    """tf.data.Dataset of {"image": encoded bytes, or uint8 [H,W,C]}."""
    tfds = _tensorflow_datasets()
    builder = _builder(tfds, spec, name, data_dir)
    # Asked before the set is downloaded: it may be large.
    encoded = _is_encoded(tfds, spec, builder.info.features)
    _prepare(tfds, spec, builder, data_dir)
    _check_split(spec, builder, split)
    skip = {"image": tfds.decode.SkipDecoding()} if encoded else None
    return builder.as_dataset(
        split=split,
        decoders=tfds.decode.PartialDecoding({"image": True}, decoders=skip),
        shuffle_files=False,
        # Neither caches nor reads ahead: memory stays bounded.
        read_config=tfds.ReadConfig(interleave_cycle_length=1, try_autocache=False, skip_prefetch=True),
    )


def _pictures(spec, dataset):
    try:
        for example in dataset.as_numpy_iterator():
            yield example["image"]
    except Exception as error:
        raise UserError(f"{spec}: expected a readable data set, received '{_gist(error)}'.") from error


def _builder(tfds, spec, name, data_dir):
    builders()
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        raise UserError(
            f"{spec}: expected a data set of TFDS (tensorflow.org/datasets/catalog), received '{name}'."
        ) from error
    except Exception as error:
        raise UserError(f"{spec}: expected a data set of TFDS, received '{_gist(error)}'.") from error


def _is_encoded(tfds, spec, features):
    """True where the feature 'image' is kept as JPEG or PNG, False where it is raw uint8 [H,W,C]."""
    features = dict(features) if isinstance(features, tfds.features.FeaturesDict) else {}
    if "image" not in features:
        names = images.enumerate_names(sorted(features)) or "none"
        raise UserError(f"{spec}: expected a data set with the feature 'image', received one with: {names}.")
    image = features["image"]
    encoded = isinstance(image, tfds.features.Image)
    # Not float32: TFDS keeps those as PNG too, the four bytes of a pixel as its RGBA.
    dtypes = (np.uint8, np.uint16) if encoded else (np.uint8,)
    if not _is_picture(image) or image.np_dtype not in dtypes:
        names = " or ".join(np.dtype(dtype).name for dtype in dtypes)
        raise UserError(f"{spec}: expected pictures of {names} [H,W,C] as 'image', received {image!r}.")
    return encoded


def _is_picture(feature):
    shape = getattr(feature, "shape", None)
    return isinstance(shape, tuple) and len(shape) == 3 and shape[-1] in (None, 1, 3, 4)


def _prepare(tfds, spec, builder, data_dir):
    # Ours are read from where `evaluate` reads them; the others from TFDS's downloads/manual.
    manual_dir = data_dir if builder.name in builders() else None
    try:
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=manual_dir))
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"{spec}: expected the data set in '{builder.data_dir}' or a way to prepare it there, "
            f"received '{_gist(error)}'."
        ) from error


def _check_split(spec, builder, split):
    try:
        empty = not builder.info.splits[split].num_examples
    except (KeyError, ValueError) as error:
        names = ", ".join(builder.info.splits)
        raise UserError(f"{spec}: expected a split of the data set ({names}), received '{split}'.") from error
    if empty:
        raise UserError(f"{spec}: expected a split with pictures, received an empty one.")


def _write_folder(folder, pictures):
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    try:
        temporary.mkdir(parents=True)
        for number, picture in enumerate(pictures):
            _write_picture(temporary / f"{number:08d}.png", picture)
        temporary.rename(folder)
    except OSError as error:
        # Another process may have been faster.
        if not folder.is_dir():
            message = f"{folder}: expected to write it, received '{error.strerror or error}'."
            raise UserError(message) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_picture(path, picture):
    if not isinstance(picture, bytes):
        images.write(path, picture)
        return
    for magic, suffix in _SUFFIXES.items():
        if picture.startswith(magic):
            path.with_suffix(suffix).write_bytes(picture)
            return
    images.write(path, images.decode(picture, path.name))


def _tensorflow_datasets():
    try:
        # TFDS 4.9.10 prepares no set without it, and does not ask for it (tensorflow/datasets#11212).
        import importlib_resources  # noqa: F401
        import tensorflow_datasets
    except ImportError as error:
        raise UserError(
            f"expected TFDS (pip install tensorflow-datasets importlib_resources), received '{_gist(error)}'."
        ) from error
    return tensorflow_datasets


def _gist(error):
    """'TypeError: what it says', without the list of arguments before it and the advice after it."""
    sentence = str(error).split('}": ')[-1].strip().split("\n")[0].split(". ")[0]
    return f"{type(error).__name__}: {sentence.rstrip(' .:')}"


def checksums(name):
    """{file below the data folder: sha256 in hexadecimal} of "kodak", "bsd300" or "set14", sorted by file."""
    lines = (CHECKSUMS / f"{name}.tsv").read_text().splitlines()
    return dict(line.split("\t") for line in lines)


def verified(name, folder):
    """The files of "kodak", "bsd300" or "set14" below `folder`, each with the right checksum.

    Returns:
        List of pathlib.Path, in the order of `checksums`. Other files are ignored.

    Raises:
        UserError: names the files that are missing, or the first one that is another.
    """
    folder = pathlib.Path(folder)
    expected = checksums(name)
    missing = [file for file in expected if not (folder / file).is_file()]
    if missing:
        names = images.enumerate_names(missing)
        raise UserError(f"{folder}: expected the {len(expected)} files of {name}, received none of {names}.")
    for file, checksum in expected.items():
        received = hashlib.sha256((folder / file).read_bytes()).hexdigest()
        if received != checksum:
            raise UserError(f"{folder / file}: expected the sha256 {checksum}, received {received}.")
    return [folder / file for file in expected]


@functools.cache
def builders():
    """TFDS builders of the test sets: {"ssdn_kodak": Kodak, "ssdn_bsd300": Bsd300, "ssdn_set14": Set14}.

    Afterwards TFDS knows the names:

        ssdn_tf.data.tfds.builders()
        config = tfds.download.DownloadConfig(manual_dir="data")
        test = tfds.load("ssdn_kodak", split="test", download_and_prepare_kwargs={"download_config": config})

    They read a local copy; downloads were not tried. The manual folder holds the pictures as
    kodak/kodim01.png, BSDS300/images/test/101085.jpg, Set14/baboon.png, ...; each is checked
    against its sha256 (`verified`). The originals are at

        Kodak   http://r0k.us/graphics/kodak
        BSD300  https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/bsds
        Set14   Zeyde et al. 2010, as in SR_testing_datasets.zip of the LapSRN project

    Examples, in the order of the files (not shuffled), have the features:

        image  uint8 [H,W,C] as Pillow decodes it, so that every user has the pixels that
               `evaluate` has (JPEG decoders differ); stored as PNG. C is 3, and 1 for the
               gray picture of Set14: TFDS asks for no common number of channels.
        name   name of the file

    Raises:
        UserError: TFDS is not installed; while preparing, those of `verified`.
    """
    tfds = _tensorflow_datasets()

    class Pictures(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        MANUAL_DOWNLOAD_INSTRUCTIONS = "See ssdn_tf.data.tfds.builders for the files and where they come from."

        def _info(self):
            image = tfds.features.Image(shape=(None, None, None))
            return tfds.core.DatasetInfo(
                builder=self,
                description=self.__doc__,
                features=tfds.features.FeaturesDict({"image": image, "name": tfds.features.Text()}),
                homepage=self.homepage,
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            files = verified(self.name.removeprefix("ssdn_"), dl_manager.manual_dir)
            return {"test": self._generate_examples(files)}

        def _generate_examples(self, files):
            for file in files:
                yield file.name, {"image": images.read(file), "name": file.name}

    class Kodak(Pictures):
        """Kodak Lossless True Color Image Suite: 24 photographs of 768x512 or 512x768."""

        name = "ssdn_kodak"
        homepage = "http://r0k.us/graphics/kodak"

    class Bsd300(Pictures):
        """Test images of the Berkeley Segmentation Dataset (Martin et al., ICCV 2001): 100 photographs."""

        name = "ssdn_bsd300"
        homepage = "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/bsds"

    class Set14(Pictures):
        """14 pictures: Zeyde, Elad, Protter, On Single Image Scale-Up Using Sparse-Representations, 2010."""

        name = "ssdn_set14"
        homepage = "http://vllab.ucmerced.edu/wlai24/LapSRN"

    return {cls.name: cls for cls in (Kodak, Bsd300, Set14)}
