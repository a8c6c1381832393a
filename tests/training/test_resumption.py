"""Killed with SIGKILL at any moment and started again, a run ends with the bits of an uninterrupted one.

The runs are children of a process that has loaded TensorFlow and has not used it, as loading takes
longer than the rest. They say on a pipe what they do, and are killed while they do it.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
import typing

import numpy as np
import pytest
import support

from ssdn_tf.inference import precision

SERVER = """
import json, os, sys, time
import tensorflow as tf
import support  # for the smallest network
from ssdn_tf.commands import cli, train as command, train_flags
from ssdn_tf.inference import checkpoints
from ssdn_tf.training import callbacks, run as training

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def told(function, before, after):
    def call(*arguments, **named):
        before(*arguments)
        result = function(*arguments, **named)
        after(*arguments)
        return result
    return call

def train(eager, arguments):
    if eager:
        tf.config.run_functions_eagerly(True)
    nothing = lambda *_: None
    training.Run.__init__ = told(
        training.Run.__init__, nothing, lambda run, *_: say("starts", run.step, time.monotonic())
    )
    checkpoints.save = told(
        checkpoints.save,
        lambda path, variables, position: say("saving", position["step"]),
        lambda path, variables, position: say("saved", position["step"], time.monotonic()),
    )
    callbacks.Counter.on_train_batch_end = told(
        callbacks.Counter.on_train_batch_end,
        lambda counter, batch: say("step", int(counter.model.optimizer.iterations), time.monotonic()),
        nothing,
    )
    sys.stdout = open(os.devnull, "w")
    os._exit(cli.execute(command.main, train_flags.define, "", ["train.py", *arguments]))

for line in sys.stdin:
    child = os.fork()
    if not child:
        train(*json.loads(line))
    say("pid", child)
    say("gone", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


class Life(typing.NamedTuple):
    """What one process said: status is its exit code, or the negative signal that ended it."""

    said: list
    status: int

    def of(self, what):
        return [words[1:] for words in self.said if words[0] == what]


class Trainers:
    """Runs train.py's main in children of one server."""

    def __init__(self, server, flags, eager):
        self.server, self.flags, self.eager = server, flags, eager

    def __call__(self, folder, *flags, kill=None):
        """One Life; kill: (word, how often it is awaited, seconds from there to SIGKILL)."""
        arguments = [*self.flags, f"--run_dir={folder}", *flags]
        print(json.dumps([self.eager, arguments]), file=self.server.stdin, flush=True)
        said, pid, left = [], None, kill[1] if kill else 0
        for line in self.server.stdout:
            words = line.split()
            if words[0] == "gone":
                return Life(said, int(words[1]))
            said.append(words)
            if words[0] == "pid":
                pid = int(words[1])
            if kill and words[0] == kill[0]:
                left -= 1
                if left == 0:
                    time.sleep(kill[2])
                    # Not reaped before the server says "gone": the number is still its own.
                    os.kill(pid, signal.SIGKILL)
        raise AssertionError("the server has ended")


@pytest.fixture(scope="module")
def server():
    command = [sys.executable, "-c", SERVER]
    # With the threads that users have, also where conftest takes one: sums of several threads could differ.
    environment = {k: v for k, v in os.environ.items() if k != "TF_NUM_INTRAOP_THREADS"}
    environment["PYTHONPATH"] = os.path.dirname(support.__file__)
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **streams) as process:
        yield process
        process.stdin.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return support.write_pictures(tmp_path_factory.mktemp("pictures"), 4, 6, 7)


def trainers(server, pictures, steps, eager):
    flags = [
        "--noise=gaussian", "--sigma=5,50", f"--train_data={pictures}", f"--train_images={3 * steps // 2}",
        "--stages=32x2:0.667,64x1:0.333", "--network=tiny", "--learning_rate=1e-2", f"--report_images={steps // 2}",
        "--validation=none", "--jit=off",
    ]  # fmt: skip
    return Trainers(server, flags, eager)


def state(folder):
    """Weights, moments and counts of a checkpoint."""
    with np.load(folder / "checkpoint.npz") as file:
        return {name: file[name] for name in file.files if name != "position"}


def history(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def half_written(folder):
    return len(list(folder.glob(".checkpoint.npz.*")))


def assert_nothing_is_lost(life, again, checkpoint_seconds):
    """The next life starts with the last checkpoint, and no step came after it but those that no checkpoint
    was due for, and one."""
    starts = int(again.of("starts")[0][0])
    whole = [(int(step), float(at)) for step, at in life.of("starts") + life.of("saved")]
    step, at = whole[-1]
    if starts != step:  # then it was killed between the checkpoint and the word that says so
        assert starts == int(life.of("saving")[-1][0]) > step
        return
    after = [float(at) for step, at in life.of("step") if int(step) > starts]
    assert all(then - at < checkpoint_seconds for then in after[:-1])


def kill_and_restart(train, folder, kills, draw, most):
    """Kills a run `kills` times, each after at most `most` steps or checkpoints, and then lets it end.

    Returns how many kills fell into a checkpoint.
    """
    during, before = 0, None
    for number in range(kills):
        seconds = 0 if number % 2 else 0.1
        word, longest = draw.choice([("pid", 2.0), ("step", 0.05), ("step", 0.05), *[("saving", 0.03)] * 3])
        kill = (word, 1 if word == "pid" else draw.randint(1, most), draw.uniform(0, longest))
        life = train(folder, f"--checkpoint_minutes={seconds / 60}", kill=kill)
        assert life.status == -signal.SIGKILL, f"too few steps for so many kills: {life}, {kill}"
        during += half_written(folder)
        assert half_written(folder) <= 1  # those of earlier kills are gone
        print(f"kill {number}: {kill}, starts {life.of('starts')}, saved {len(life.of('saved'))}", flush=True)
        if life.of("starts"):
            if before:
                assert_nothing_is_lost(before[0], life, before[1])
            before = life, seconds
    life = train(folder)
    assert_nothing_is_lost(before[0], life, before[1])
    assert life.status == 0 and half_written(folder) == 0
    return during


def assert_same_history(folder, expected):
    """Losses up to the rounding of a mean in two parts; images and what is evaluated exactly."""
    rows, other = history(folder), history(expected)
    assert [row["images"] for row in rows] == [row["images"] for row in other]
    for row, wanted in zip(rows, other):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
        assert (row["learning_rate"], row["skipped"]) == (wanted["learning_rate"], wanted["skipped"])


def check(train, folder, kills, draw, most):
    whole = folder / "whole"
    assert train(whole).status == 0
    first = train(folder / "first", "--max_minutes=0")
    assert first.status == 0 and len(first.of("step")) == 1
    expected, begun = state(whole), state(folder / "first")
    kernels = [name for name in expected if name.startswith("unet") and name.endswith("kernel")]
    assert kernels and all(np.abs(expected[k] - begun[k]).max() > 1e-3 for k in kernels)  # the weights moved
    during = kill_and_restart(train, folder / "killed", kills, draw, most)
    result = state(folder / "killed")
    assert result.keys() == expected.keys()
    assert all(np.array_equal(result[name], expected[name]) for name in expected)
    assert_same_history(folder / "killed", whole)
    assert train(folder / "other", "--seed=1", "--max_minutes=0").status == 0
    other = state(folder / "other")
    assert all(not np.array_equal(other[k], begun[k]) for k in kernels)
    print(f"{kills} kills, {during} of them while a checkpoint was written")
    return during


def test_a_run_that_is_killed_ends_with_the_bits_of_one_that_is_not(server, pictures, tmp_path):
    check(trainers(server, pictures, 16, eager=True), tmp_path, 3, random.Random(0), most=2)


BFLOAT16 = pytest.mark.skipif(
    precision._cpu_flags().isdisjoint({"amx_bf16", "avx512_bf16"}), reason="the CPU has no bfloat16"
)


@BFLOAT16
def test_a_run_in_bfloat16_that_is_killed_ends_with_the_bits_of_one_that_is_not(server, pictures, tmp_path):
    train = trainers(server, pictures, 16, eager=False)
    train.flags.append("--precision=bfloat16")
    check(train, tmp_path, 2, random.Random(2), most=2)
    # Flags that come later count.
    assert train(tmp_path / "exact", "--precision=float32").status == 0
    expected, exact = state(tmp_path / "whole"), state(tmp_path / "exact")
    assert any(not np.array_equal(expected[name], exact[name]) for name in expected)


@pytest.mark.slow
def test_sixty_kills_lose_nothing(server, pictures, tmp_path):
    """About twenty minutes on a busy core; at least five kills are to find a checkpoint half written."""
    assert check(trainers(server, pictures, 500, eager=False), tmp_path, 60, random.Random(1), most=4) >= 5
