"""Pieces on disk: a second start finds what was done, and only that."""

import numpy as np
import pytest

from ssdn_tf.data import locks
from ssdn_tf.errors import Interrupted, UserError
from ssdn_tf.inference.pieces import Pieces, remove_left

KEY = {"file": "x", "limits": [0, 1]}


def begun(folder, key=KEY):
    pieces = Pieces(folder / "out.tif", key)
    array = pieces.array("denoised-0", (4, 5, 1), np.uint16)
    return pieces, array


def test_what_was_done_is_there_at_the_next_start(tmp_path):
    pieces, array = begun(tmp_path)
    array[:2] = 7
    pieces.finish(0, 0, {"sigma": 25.0})
    array[2:] = 9  # of a piece that is not finished
    pieces.close()
    again, array = begun(tmp_path)
    assert again.done(0) == {0: {"sigma": 25.0}} and again.done(1) == {}
    assert array.dtype == np.uint16 and (array[:2] == 7).all()
    with again:
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [{"limits": [0, 2]}, {"more": 1}])
def test_pieces_of_another_result_are_thrown_away(tmp_path, change):
    pieces, array = begun(tmp_path)
    array[:] = 7
    pieces.finish(0, 0, {})
    pieces.close()
    again, array = begun(tmp_path, KEY | change)
    assert again.done(0) == {} and not array.any()


def test_a_line_that_was_cut_off_does_not_count_and_those_after_it_do(tmp_path):
    pieces, _ = begun(tmp_path)
    for piece in range(2):
        pieces.finish(0, piece, {})
    pieces.close()
    log = pieces.folder / "done.jsonl"
    log.write_text(log.read_text()[:-5])
    again, _ = begun(tmp_path)
    assert again.done(0) == {0: {}}
    again.finish(0, 2, {})
    again.close()
    again, _ = begun(tmp_path)
    assert again.done(0) == {0: {}, 2: {}}
    again.close()
    log.write_text(log.read_text()[:4])  # not even the key
    assert begun(tmp_path)[0].done(0) == {}


def test_two_at_work_on_one_target_are_refused(tmp_path):
    pieces, array = begun(tmp_path)
    array[:] = 7
    for key in (KEY, KEY | {"more": 1}):
        with pytest.raises(UserError, match="out.tif is being written by another process"):
            Pieces(tmp_path / "out.tif", key)
    remove_left(tmp_path / "out.tif")
    assert pieces.folder.is_dir() and (pieces.find("denoised-0") == 7).all()
    pieces.close()
    remove_left(tmp_path / "out.tif")
    assert not pieces.folder.exists()


def test_a_lock_on_a_folder_that_is_gone_is_not_taken_for_one_on_the_next(tmp_path, monkeypatch):
    """Its owner deletes it between our opening it and locking it."""
    flock, made = locks.fcntl.flock, []

    def late(number, how):
        made.append(number)
        if len(made) == 1:
            (tmp_path / ".out.tif.partial").rmdir()
        flock(number, how)

    monkeypatch.setattr(locks.fcntl, "flock", late)
    with Pieces(tmp_path / "out.tif", KEY) as pieces:
        assert len(made) == 2 and pieces.folder.is_dir()


@pytest.mark.parametrize("error, stays", [(UserError, False), (Interrupted, True), (KeyboardInterrupt, True)])
def test_pieces_stay_where_the_work_was_stopped_and_not_where_it_failed(tmp_path, error, stays):
    with pytest.raises(error), Pieces(tmp_path / "out.tif", KEY) as pieces:
        raise error("for a test")
    assert pieces.folder.exists() == stays


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written: "):
        Pieces(tmp_path / "file" / "out.tif", KEY)


def test_arrays_have_their_room_on_disk(tmp_path):
    """Where a map has no room, writing to it ends the process without a word."""
    pieces = Pieces(tmp_path / "out.tif", KEY)
    pieces.array("large", (1000, 1000, 1), np.float32)
    assert 512 * (pieces.folder / "large.npy").stat().st_blocks >= 4_000_000
