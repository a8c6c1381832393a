"""The folder of a run: whose it is, who may train it, and what a killed process leaves in it."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from ssdn_tf.denoisers.experiments import Experiment
from ssdn_tf.errors import UserError
from ssdn_tf.training import folder as runs

OPTIONS = runs.Options(Experiment())


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_second_trainer_is_refused_and_touches_nothing(tmp_path):
    folder = tmp_path / "run"
    with runs.claim(folder, OPTIONS):
        (folder / "history.jsonl").write_text('{"images": 8}\n')
        (folder / f".checkpoint.npz.{'0' * 32}").write_text("being written")
        before = contents(folder)
        owner = f"process {os.getpid()} on {socket.gethostname()}"
        expected = f"--run_dir: expected a run that nobody is training, received '.*', which {owner} is training"
        with pytest.raises(UserError, match=expected):
            runs.claim(folder, OPTIONS)
        assert contents(folder) == before
        runs.read_options(folder)  # what only reads, may
    runs.claim(folder, OPTIONS).close()


@pytest.mark.parametrize("options", [OPTIONS, runs.Options(Experiment(), seed=1)])
def test_a_claim_that_fails_or_is_closed_leaves_the_folder_free(tmp_path, options):
    runs.claim(tmp_path / "run", OPTIONS).close()
    if options != OPTIONS:
        with pytest.raises(UserError, match="expected seed=0, received seed=1"):
            runs.claim(tmp_path / "run", options)
    runs.claim(tmp_path / "run", OPTIONS).close()


def test_the_lock_of_a_killed_process_is_gone_with_it(tmp_path):
    program = f"""
import time
from ssdn_tf.training import folder as runs
from ssdn_tf.denoisers.experiments import Experiment
lock = runs.claim({str(tmp_path / "run")!r}, runs.Options(Experiment()))
print("claimed", flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout.readline() == "claimed\n"
            with pytest.raises(UserError, match=f"process {other.pid} on "):
                runs.claim(tmp_path / "run", OPTIONS)
        finally:
            other.send_signal(signal.SIGKILL)
    runs.claim(tmp_path / "run", OPTIONS).close()


def test_what_killed_writes_left_is_removed_and_nothing_else(tmp_path):
    runs.claim(tmp_path / "run", OPTIONS).close()
    before = contents(tmp_path / "run")
    for name in ("options.json", "checkpoint.npz", "history.jsonl"):
        (tmp_path / "run" / f".{name}.{'0123456789abcdef' * 2}").write_text("half")
    others = [".checkpoint.npz", "checkpoint.npz", f".notes.{'0' * 32}", f"checkpoint.npz.{'0' * 32}"]
    for name in others:
        (tmp_path / "run" / name).write_text("mine")
    runs.claim(tmp_path / "run", OPTIONS).close()
    assert contents(tmp_path / "run") == before | {name: b"mine" for name in others}


def test_a_run_killed_before_its_options_were_written_can_start_again(tmp_path):
    (tmp_path / "lock").write_text("process 1 on elsewhere\n")
    (tmp_path / f".options.json.{'a' * 32}").write_text("{")
    runs.claim(tmp_path, OPTIONS).close()
    assert runs.read_options(tmp_path) == OPTIONS
    assert sorted(contents(tmp_path)) == ["lock", "options.json"]


def refuse(*_):
    raise OSError(95, "Operation not supported")


@pytest.mark.parametrize("system", ["no flock", "flock refused"])
def test_where_nothing_can_be_locked_a_warning_says_so(tmp_path, monkeypatch, capsys, system):
    if system == "no flock":
        monkeypatch.setattr(runs, "fcntl", None)
    else:
        monkeypatch.setattr(runs.fcntl, "flock", refuse)
    runs.claim(tmp_path / "run", OPTIONS).close()
    error = capsys.readouterr().err
    assert error.startswith("warning: ") and "cannot be locked" in error and error.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="expected to write it, received"):
        runs.claim(tmp_path / "file" / "run", OPTIONS)


def test_a_folder_that_cannot_be_looked_into_is_a_sentence(tmp_path, monkeypatch):
    """As it is for anybody but root below a folder of another's."""

    def deny(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.iterdir", deny)
    with pytest.raises(UserError, match=r"--run_dir: expected a folder to look into, received .*Permission denied"):
        runs.claim(tmp_path, OPTIONS)
