"""A checkpoint comes back to the bit, or not at all; what was there before survives a failure."""

import errno
import io
import os
import resource
import zipfile

import keras
import numpy as np
import pytest
import support

from ssdn_tf.denoisers import models
from ssdn_tf.denoisers.experiments import Experiment
from ssdn_tf.errors import UserError
from ssdn_tf.inference import checkpoints
from ssdn_tf.training.optimizers import SkippingAdam

POSITION = {"images": 12_000, "note": "half-way"}


def variables(seed=0, dense=(4, 3)):
    """{name: variable}: floats with awkward values, and a counter."""
    rng = np.random.default_rng(seed)
    kernel = rng.standard_normal(dense).astype(np.float32)
    kernel.flat[:5] = [np.nan, np.inf, -0.0, 1e-42, np.float32(1) / 3]
    return {
        "model/dense/kernel": keras.Variable(kernel),
        "model/dense/bias": keras.Variable(rng.standard_normal(dense[-1:]).astype(np.float32)),
        "optimizer/iterations": keras.Variable(int(rng.integers(2**40)), dtype="int64", trainable=False),
    }


def bits(variables):
    return {name: (v.numpy().dtype, v.numpy().shape, v.numpy().tobytes()) for name, v in variables.items()}


def refused(path, into, *words):
    """Asserts that loading is refused by a UserError with the words, and changes nothing."""
    before = bits(into)
    with pytest.raises(UserError) as caught:
        checkpoints.load(path, into)
    assert bits(into) == before
    for word in (str(path), *words):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "checkpoint.npz"
    checkpoints.save(path, variables(), POSITION)
    return path


# ---------------------------------------------------------------- there and back


def test_variables_and_position_come_back_to_the_bit(saved):
    into = variables(seed=1)
    assert bits(into) != bits(variables())
    assert checkpoints.load(saved, into) == POSITION
    assert bits(into) == bits(variables())


def test_a_model_and_its_optimizer_come_back_to_the_bit(tmp_path):
    owners = []
    for seed in (1, 2):
        keras.utils.set_random_seed(seed)
        denoiser = models.build(support.tiny(Experiment(parameter_source="per_image")))
        optimizer = SkippingAdam(1e-3, name="adam")
        weights = denoiser.training.trainable_variables
        optimizer.build(weights)
        optimizer.apply([keras.random.normal(w.shape) for w in weights])
        owners.append((denoiser, optimizer))
    (denoiser, optimizer), (other, other_optimizer) = owners
    stored = checkpoints.named_variables(denoiser.training, optimizer)
    assert len(stored) == len(denoiser.training.variables) + len(optimizer.variables)
    checkpoints.save(tmp_path / "c.npz", stored, POSITION)
    checkpoints.load(tmp_path / "c.npz", checkpoints.named_variables(other.training, other_optimizer))
    for one, two in ((denoiser.training, other.training), (optimizer, other_optimizer)):
        for a, b in zip(one.variables, two.variables, strict=True):
            np.testing.assert_array_equal(a.numpy(), b.numpy())


def test_a_part_of_the_variables_can_be_loaded(saved):
    into = {"model/dense/bias": variables(seed=1)["model/dense/bias"]}
    assert checkpoints.load(saved, into) == POSITION
    assert bits(into)["model/dense/bias"] == bits(variables())["model/dense/bias"]


def test_saving_again_replaces_the_file(saved):
    checkpoints.save(saved, variables(seed=2), {"images": 16_000})
    into = variables(seed=1)
    assert checkpoints.load(saved, into) == {"images": 16_000}
    assert bits(into) == bits(variables(seed=2))
    assert os.listdir(saved.parent) == ["checkpoint.npz"]


def test_missing_folders_are_made(tmp_path):
    checkpoints.save(tmp_path / "runs" / "00000" / "checkpoint.npz", variables(), POSITION)
    assert (tmp_path / "runs" / "00000" / "checkpoint.npz").exists()


def test_the_file_is_an_ordinary_npz_without_pickles(saved):
    with np.load(saved, allow_pickle=False) as file:
        assert set(file.files) == {*variables(), "position"}
        np.testing.assert_array_equal(file["model/dense/bias"], variables()["model/dense/bias"].numpy())


def test_the_file_can_be_read_by_whom_the_umask_allows(saved):
    mask = os.umask(0)
    os.umask(mask)
    assert saved.stat().st_mode & 0o777 == 0o666 & ~mask


# ---------------------------------------------------------------- files that are no checkpoint of this model


def test_a_missing_file_is_named(tmp_path):
    refused(tmp_path / "none.npz", variables(), "does not exist")


def test_another_models_file_changes_nothing_and_the_variable_is_named(saved):
    into = variables(seed=1) | {"model/other/kernel": keras.Variable(np.zeros(3, np.float32))}
    refused(saved, into, "model/other/kernel")


def test_another_shape_changes_nothing_and_the_variable_is_named(saved):
    into = variables(seed=1)
    # Last in order, so that a loader that assigns as it goes would be caught.
    into["optimizer/iterations"] = keras.Variable(np.zeros(2, np.int64), trainable=False)
    refused(saved, into, "optimizer/iterations")


def test_a_truncated_file_changes_nothing(saved):
    whole = saved.read_bytes()
    for length in range(0, len(whole), 37):
        saved.write_bytes(whole[:length])
        refused(saved, variables(seed=1))


def test_no_single_damaged_byte_changes_anything_unseen(saved):
    """Each byte in turn: the load is refused and changes nothing, or what comes back is right
    (some bytes of a zip file, such as the time, mean nothing)."""
    whole, right = saved.read_bytes(), bits(variables())
    into = variables(seed=1)
    before = {name: v.numpy() for name, v in into.items()}
    unchanged, refusals = bits(into), 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        saved.write_bytes(damaged)
        try:
            assert checkpoints.load(saved, into) == POSITION, place
        except UserError:
            refusals += 1
            assert bits(into) == unchanged, place
        else:
            assert bits(into) == right, place
            for name, variable in into.items():
                variable.assign(before[name])
    print(f"{refusals} of {len(whole)} refused")
    assert refusals > len(whole) / 2


@pytest.mark.parametrize("what", ["empty", "text", "npy", "zip", "png", "pickled"])
def test_a_file_of_another_kind_changes_nothing(tmp_path, what):
    path = tmp_path / "checkpoint.npz"
    buffer = io.BytesIO()
    if what == "npy":
        np.save(buffer, np.zeros(3))
    elif what == "zip":
        with zipfile.ZipFile(buffer, "w") as file:
            file.writestr("position", "{}")
    elif what == "pickled":
        np.savez(buffer, position=np.array({}, object))
    contents = {"empty": b"", "text": b"no checkpoint\n", "png": b"\x89PNG\r\n\x1a\n" + bytes(50)}
    path.write_bytes(contents.get(what, buffer.getvalue()))
    refused(path, variables(seed=1))


def test_a_folder_in_place_of_the_file_is_refused(tmp_path):
    refused(tmp_path, variables(seed=1))


def test_an_npz_without_position_is_refused(saved):
    np.savez(saved, **{name: v.numpy() for name, v in variables().items()})
    refused(saved, variables(seed=1), "position")


@pytest.mark.parametrize("position", [np.zeros(3), np.array("no JSON"), np.array("")], ids=str)
def test_an_npz_with_another_position_changes_nothing(saved, position):
    np.savez(saved, position=position, **{name: v.numpy() for name, v in variables().items()})
    refused(saved, variables(seed=1))


def test_an_npz_with_text_for_numbers_changes_nothing(saved):
    arrays = {name: v.numpy() for name, v in variables().items()}
    arrays["model/dense/bias"] = np.array(["a", "b", "c"])
    np.savez(saved, position=np.array("{}"), **arrays)
    refused(saved, variables(seed=1))


# ---------------------------------------------------------------- a disk that refuses


def kept(path, contents):
    """Asserts that the file is as it was, and the only one in its folder."""
    assert path.read_bytes() == contents
    assert os.listdir(path.parent) == [path.name]


def full_halfway(monkeypatch, error):
    """np.savez writes half of what it should, then the error comes."""
    right = np.savez

    def savez(file, **arrays):
        buffer = io.BytesIO()
        right(buffer, **arrays)
        file.write(buffer.getvalue()[: buffer.tell() // 2])
        file.flush()
        raise error

    monkeypatch.setattr(np, "savez", savez)


def test_a_full_disk_leaves_the_previous_checkpoint_and_nothing_else(saved, monkeypatch):
    contents = saved.read_bytes()
    full_halfway(monkeypatch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(UserError, match="No space left on device") as caught:
        checkpoints.save(saved, variables(seed=2), POSITION)
    assert str(saved) in str(caught.value)
    kept(saved, contents)


def test_a_full_disk_at_the_first_checkpoint_leaves_nothing(tmp_path, monkeypatch):
    full_halfway(monkeypatch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(UserError):
        checkpoints.save(tmp_path / "checkpoint.npz", variables(), POSITION)
    assert os.listdir(tmp_path) == []


# The warning is zipfile's own, when it is freed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("limit", [0, 100, 900])
def test_a_limit_of_the_file_system_leaves_the_previous_checkpoint(saved, limit):
    """A real refusal by the kernel, without a stand-in: no file may grow beyond the limit."""
    contents = saved.read_bytes()
    assert limit < len(contents)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(UserError) as caught:
            checkpoints.save(saved, variables(seed=2), POSITION)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert str(saved) in str(caught.value)
    kept(saved, contents)


def test_an_interruption_leaves_the_previous_checkpoint(saved, monkeypatch):
    contents = saved.read_bytes()
    full_halfway(monkeypatch, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        checkpoints.save(saved, variables(seed=2), POSITION)
    kept(saved, contents)


def test_a_refused_renaming_leaves_the_previous_checkpoint(saved, monkeypatch):
    contents = saved.read_bytes()

    def refuse(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match="Input/output error"):
        checkpoints.save(saved, variables(seed=2), POSITION)
    kept(saved, contents)


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match="runs"):
        checkpoints.save(tmp_path / "runs" / "checkpoint.npz", variables(), POSITION)
    assert (tmp_path / "runs").read_text() == "a file"
