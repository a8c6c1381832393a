"""Workers that are killed, suspended, started again, stopped or given other flags."""

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from support import free_ports, tf_config

from ssdn_tf.training import workers
from ssdn_tf.training.tf_config import Task, parse_task

ROOT = pathlib.Path(__file__).resolve().parents[2]
FLAGS = [
    "--noise=gaussian", "--sigma=25", "--train_data=sample", "--stages=32x4", "--width=4", "--validation=none",
    "--learning_rate=1e-3", "--report_images=40", "--jit=off", "--train_images=600", "--checkpoint_minutes=0.02",
]  # fmt: skip
# Quicker to start; the steps are so quick that there must be many.
SMALLEST = ["--network=tiny", "--train_images=100000"]
TRAIN = """
import support  # for the smallest network
from ssdn_tf.commands import train
train.train()
"""
LOST = r"error: another worker is lost \(\w+Error\); start this one again with the same command to go on from the last"


class Pair:
    """Two workers that train one run on this machine."""

    def __init__(self, folder, flags=((), ()), loop=()):
        folder.mkdir(exist_ok=True)
        self.folder, self.ports, self.flags, self.loop = folder, free_ports(2), flags, loop
        self.start()

    def start(self):
        self.processes = [self._start(index) for index in range(2)]

    def _start(self, index):
        command = [*self.loop, sys.executable, "-c", TRAIN, *FLAGS, *self.flags[index]]
        command.append(f"--run_dir={self.folder / 'run'}")
        with (self.folder / f"worker{index}.log").open("a") as log:
            environment = os.environ | {"TF_CONFIG": tf_config(self.ports, index), "PYTHONPATH": str(ROOT / "tests")}
            # A group of its own, so that a loop ends with what it has started.
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def wait(self):
        """Exit codes."""
        return [process.wait(timeout=300) for process in self.processes]

    def log(self, index):
        return (self.folder / f"worker{index}.log").read_text()

    def checkpoint(self):
        with np.load(self.folder / "run" / "checkpoint.npz") as file:
            return {name: file[name] for name in file.files if name != "position"}

    def wait_for_checkpoint(self, seconds=120):
        end = time.monotonic() + seconds
        while not (self.folder / "run" / "checkpoint.npz").exists():
            assert time.monotonic() < end and not any(p.poll() for p in self.processes), self.log(0) + self.log(1)
            time.sleep(0.1)

    def lose(self, index, number=signal.SIGKILL):
        """Kills or suspends one. Returns (exit code of the other, seconds until it ended)."""
        victim, other = self.processes[index], self.processes[1 - index]
        begin = time.monotonic()
        victim.send_signal(number)
        try:
            code = other.wait(timeout=120)
        finally:
            victim.kill()
            victim.wait()
        return code, time.monotonic() - begin


@contextlib.contextmanager
def pairs():
    """Makes Pairs; kills at the end what still runs."""
    made = []

    def make(*arguments):
        made.append(Pair(*arguments))
        return made[-1]

    yield make
    for process in (process for pair in made for process in pair.processes):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def pair():
    with pairs() as make:
        yield make


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """A Pair that was not interrupted."""
    with pairs() as make:
        two = make(tmp_path_factory.mktemp("uninterrupted"))
        assert two.wait() == [0, 0]
        return two


def assert_ended_by_loss(pair, index, code, seconds):
    assert code == workers.EXIT_CODE == 75, pair.log(index)
    assert seconds < 60
    errors = [line for line in pair.log(index).splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and re.match(LOST, errors[0]) and "Traceback" not in pair.log(index)


def assert_same_checkpoint(one, other):
    one, other = one.checkpoint(), other.checkpoint()
    assert one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_a_worker_that_loses_another_ends_with_its_own_exit_code(pair, tmp_path):
    two = pair(tmp_path, (SMALLEST, SMALLEST))
    two.wait_for_checkpoint()
    assert_ended_by_loss(two, 1, *two.lose(0))


@pytest.mark.slow
@pytest.mark.parametrize(("lost", "number"), [(1, signal.SIGKILL), (0, signal.SIGSTOP), (1, signal.SIGSTOP)])
def test_both_started_again_go_on_to_the_bit(pair, tmp_path, uninterrupted, lost, number):
    two = pair(tmp_path)
    two.wait_for_checkpoint()
    assert_ended_by_loss(two, 1 - lost, *two.lose(lost, number))
    assert "Done." not in two.log(0)
    two.start()
    assert two.wait() == [0, 0]
    assert "continues after" in two.log(0)
    assert_same_checkpoint(uninterrupted, two)


def documented_loop():
    """The `until` loop of docs/training.md as a command that takes another command."""
    text = (ROOT / "docs" / "training.md").read_text()
    loop = re.search(r"^until python train.py.*?^done$", text, re.DOTALL | re.MULTILINE)[0]
    return ["bash", "-c", re.sub("^until .*; do$", 'until "$@"; do', loop, count=1, flags=re.MULTILINE), "loop"]


def test_the_documented_loop_restarts_only_lost_and_killed_workers(tmp_path):
    for code, restarts in [(75, True), (137, True), (1, False), (130, False)]:
        again = tmp_path / str(code)
        command = ["bash", "-c", f"[ -e {again} ] || {{ touch {again}; exit {code}; }}"]
        loop = [part.replace("sleep 5", "sleep 0") for part in documented_loop()]
        assert subprocess.run(loop + command).returncode == (0 if restarts else code)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs Linux")
@pytest.mark.parametrize("lost", [0, 1])
def test_loops_restart_both_workers_and_the_end_is_the_same_to_the_bit(pair, tmp_path, uninterrupted, lost):
    two = pair(tmp_path, ((), ()), documented_loop())
    two.wait_for_checkpoint()
    loop = two.processes[lost].pid
    os.kill(int(pathlib.Path(f"/proc/{loop}/task/{loop}/children").read_text()), signal.SIGKILL)
    assert two.wait() == [0, 0]
    assert re.search(LOST, two.log(1 - lost)) and "continues after" in two.log(0)
    assert_same_checkpoint(uninterrupted, two)


@pytest.mark.slow
def test_workers_with_other_flags_are_refused(pair, tmp_path):
    two = pair(tmp_path, (["--seed=0"], ["--seed=1"]))
    assert two.wait() == [1, 1]
    for index in range(2):
        assert "error: worker 1 has other flags or pictures than worker 0" in two.log(index)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_signal_to_one_worker_ends_all_after_a_checkpoint(pair, tmp_path):
    two = pair(tmp_path)
    two.wait_for_checkpoint()
    two.processes[1].send_signal(signal.SIGTERM)
    assert two.wait() == [130, 130]
    assert "Saved after" in two.log(0) and "To continue: python train.py" in two.log(0)


@pytest.mark.slow
def test_ctrl_c_ends_a_worker_that_waits_for_the_others(pair, tmp_path):
    two = pair(tmp_path)
    two.processes[1].kill()
    time.sleep(15)
    assert "waiting at most" in two.log(0)
    two.processes[0].send_signal(signal.SIGINT)
    assert two.processes[0].wait(timeout=10) in (130, -signal.SIGINT)


@pytest.mark.parametrize(
    ("error", "code"),
    [("UnavailableError", 75), ("CancelledError", 75), ("FailedPreconditionError", 75), ("AbortedError", 75),
     ("DeadlineExceededError", 75), ("InternalError", None), ("ResourceExhaustedError", None)],
)  # fmt: skip
def test_what_counts_as_the_loss_of_a_worker(monkeypatch, capsys, error, code):
    import tensorflow as tf

    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    expected = contextlib.nullcontext() if code else pytest.raises(tf.errors.OpError)
    with expected, workers.exit_if_another_is_lost():
        raise getattr(tf.errors, error)(None, None, "message")
    assert codes == ([code] if code else [])
    assert bool(re.match(LOST, capsys.readouterr().err)) == bool(code)


# ---------------------------------------------------------------- what the documentation says


def test_the_kubernetes_job_gives_each_worker_its_tf_config():
    text = (ROOT / "docs" / "kubernetes.yaml").read_text()
    script = re.search(r"args:\n\s+- \|\n(.*?)\n\s+resources:", text, re.DOTALL)[1]
    script = script.replace("exec python train.py", "printenv TF_CONFIG; echo")
    for index in range(2):
        environment = os.environ | {"WORKERS": "2", "JOB_COMPLETION_INDEX": str(index)}
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment, check=True)
        task = parse_task(done.stdout.rpartition("}")[0] + "}")
        assert task == Task(("ssdn-0.ssdn:2222", "ssdn-1.ssdn:2222"), index)


def test_the_kubernetes_job_always_replaces_a_worker_that_has_lost_another():
    text = (ROOT / "docs" / "kubernetes.yaml").read_text()
    ignored = re.search(r"action: Ignore .*\n\s+onExitCodes: .*values: \[(.*?)\]", text)[1]
    assert [int(code) for code in ignored.split(",")] == [workers.EXIT_CODE, 130]
