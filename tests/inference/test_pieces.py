"""Pieces on disk: a second start finds what was done, and only that."""

import numpy as np
import pytest

from ssdn_tf.errors import UserError
from ssdn_tf.inference.pieces import Pieces

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
    again, array = begun(tmp_path)
    assert again.done(0) == {0: {"sigma": 25.0}} and again.done(1) == {}
    assert array.dtype == np.uint16 and (array[:2] == 7).all()
    again.remove()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [{"limits": [0, 2]}, {"more": 1}])
def test_pieces_of_another_result_are_thrown_away(tmp_path, change):
    pieces, array = begun(tmp_path)
    array[:] = 7
    pieces.finish(0, 0, {})
    again, array = begun(tmp_path, KEY | change)
    assert again.done(0) == {} and not array.any()


def test_a_line_that_was_cut_off_does_not_count(tmp_path):
    pieces, array = begun(tmp_path)
    for piece in range(2):
        pieces.finish(0, piece, {})
    log = pieces.folder / "done.jsonl"
    log.write_text(log.read_text()[:-5])
    assert begun(tmp_path)[0].done(0) == {0: {}}
    log.write_text(log.read_text()[:3])  # not even the key
    assert begun(tmp_path)[0].done(0) == {}


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written: "):
        Pieces(tmp_path / "file" / "out.tif", KEY)


def test_arrays_have_their_room_on_disk(tmp_path):
    """Where a map has no room, writing to it ends the process without a word."""
    pieces = Pieces(tmp_path / "out.tif", KEY)
    pieces.array("large", (1000, 1000, 1), np.float32)
    assert 512 * (pieces.folder / "large.npy").stat().st_blocks >= 4_000_000
