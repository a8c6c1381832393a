"""The folder of a run: whose it is, who may train it, and what a killed process leaves in it."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from ssdn_tf.data import locks
from ssdn_tf.denoisers.experiments import Experiment
from ssdn_tf.errors import UserError
from ssdn_tf.training import folder
from ssdn_tf.training.options import Options, Stage

OPTIONS = Options(Experiment())


def contents(path):
    return {file.name: file.read_bytes() for file in path.iterdir()}


def test_a_second_trainer_is_refused_and_touches_nothing(tmp_path):
    run = tmp_path / "run"
    with folder.claim(run, OPTIONS)[0]:
        (run / "history.jsonl").write_text('{"images": 8}\n')
        (run / f".checkpoint.npz.{'0' * 32}").write_text("being written")
        before = contents(run)
        owner = f"process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(UserError, match=f"already being trained by {owner}"):
            folder.claim(run, OPTIONS)
        assert contents(run) == before
        folder.read_options(run)  # reading is allowed
    folder.claim(run, OPTIONS)[0].close()


def test_options_of_an_earlier_version_are_read(tmp_path):
    """They had the precision among them, which now belongs to the machine, as XLA does."""
    (tmp_path / "options.json").write_text(json.dumps(OPTIONS.to_dict() | {"precision": "float32"}))
    assert folder.read_options(tmp_path) == OPTIONS


@pytest.mark.parametrize("options", [OPTIONS, Options(Experiment(), seed=1)])
def test_a_claim_that_fails_or_is_closed_leaves_the_folder_free(tmp_path, options):
    folder.claim(tmp_path / "run", OPTIONS)[0].close()
    (tmp_path / "run" / "checkpoint.npz").touch()
    if options != OPTIONS:
        with pytest.raises(UserError, match="expected seed=0, received seed=1"):
            folder.claim(tmp_path / "run", options)
    folder.claim(tmp_path / "run", OPTIONS)[0].close()


def test_the_lock_of_a_killed_process_is_gone_with_it(tmp_path):
    program = f"""
import time
from ssdn_tf.training import folder
from ssdn_tf.training.options import Options
from ssdn_tf.denoisers.experiments import Experiment
lock, _ = folder.claim({str(tmp_path / "run")!r}, Options(Experiment()))
print("claimed", flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "claimed\n"
            with pytest.raises(UserError, match=f"process {other.pid} on "):
                folder.claim(tmp_path / "run", OPTIONS)
        finally:
            other.send_signal(signal.SIGKILL)
    folder.claim(tmp_path / "run", OPTIONS)[0].close()


@pytest.mark.parametrize("text", ["", "[]", "null", "{}"])
def test_options_that_are_none_are_a_sentence(tmp_path, text):
    (tmp_path / "options.json").write_text(text)
    with pytest.raises(UserError, match="is not the folder of a run"):
        folder.read_options(tmp_path)


def test_what_killed_writes_left_is_removed_and_nothing_else(tmp_path):
    folder.claim(tmp_path / "run", OPTIONS)[0].close()
    before = contents(tmp_path / "run")
    for name in ("options.json", "checkpoint.npz", "history.jsonl"):
        (tmp_path / "run" / f".{name}.{'0123456789abcdef' * 2}").write_text("half")
    others = [".checkpoint.npz", "checkpoint.npz", f".notes.{'0' * 32}", f"checkpoint.npz.{'0' * 32}"]
    for name in others:
        (tmp_path / "run" / name).write_text("mine")
    folder.claim(tmp_path / "run", OPTIONS)[0].close()
    assert contents(tmp_path / "run") == before | {name: b"mine" for name in others}


def test_a_run_killed_before_its_options_were_written_can_start_again(tmp_path):
    (tmp_path / "lock").write_text("process 1 on elsewhere\n")
    (tmp_path / f".options.json.{'a' * 32}").write_text("{")
    folder.claim(tmp_path, OPTIONS)[0].close()
    assert folder.read_options(tmp_path) == OPTIONS
    assert sorted(contents(tmp_path)) == ["lock", "options.json"]


def refuse(*_):
    raise OSError(95, "Operation not supported")


@pytest.mark.parametrize("system", ["no flock", "flock refused"])
def test_where_nothing_can_be_locked_a_warning_says_so(tmp_path, monkeypatch, capsys, system):
    if system == "no flock":
        monkeypatch.setattr(locks, "fcntl", None)
    else:
        monkeypatch.setattr(locks.fcntl, "flock", refuse)
    folder.claim(tmp_path / "run", OPTIONS)[0].close()
    error = capsys.readouterr().err
    assert error.startswith("warning: ") and "cannot be locked" in error and error.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        folder.claim(tmp_path / "file" / "run", OPTIONS)


def test_a_folder_that_cannot_be_looked_into_is_a_sentence(tmp_path, monkeypatch):
    """As it is for anybody but root below a folder of another's."""

    def deny(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.iterdir", deny)
    with pytest.raises(UserError, match="cannot be read .Permission denied"):
        folder.claim(tmp_path, OPTIONS)


BUDGET = Options(Experiment(), stages=(Stage(64, 1, 0.6), Stage(128, 1, 0.4)), budget=300.0)


def test_the_images_that_a_budget_allows_are_kept_by_the_folder(tmp_path):
    lock, options = folder.claim(tmp_path / "run", BUDGET)
    assert options == BUDGET and not options.planned
    planned = options.with_counts([600, 100])
    folder.write_options(tmp_path / "run", planned)
    lock.close()
    lock, options = folder.claim(tmp_path / "run", BUDGET)
    lock.close()
    assert options == planned
    (tmp_path / "run" / "checkpoint.npz").touch()
    for other in ({"budget": 60.0}, {"stages": (Stage(64, 1),)}):
        with pytest.raises(UserError, match="started with other options"):
            folder.claim(tmp_path / "run", dataclasses.replace(BUDGET, **other))


def test_a_start_that_failed_before_its_first_checkpoint_blocks_no_other(tmp_path):
    folder.claim(tmp_path / "run", BUDGET)[0].close()
    (tmp_path / "run" / "noise.json").write_text("{}")  # of its images, which would be taken for those of the other
    other = dataclasses.replace(BUDGET, seed=3)
    lock, options = folder.claim(tmp_path / "run", other)
    lock.close()
    assert options == other == folder.read_options(tmp_path / "run")
    assert not (tmp_path / "run" / "noise.json").exists()
