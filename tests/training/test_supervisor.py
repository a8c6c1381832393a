"""The supervisor of a worker, with children that behave as TensorFlow's workers do, without TensorFlow."""

import os
import signal
import subprocess
import sys
import time

import pytest

# Itself the supervisor, and started again by it, the child.
PROGRAM = """
import os, signal, sys, time
from ssdn_tf.training import supervisor, tf_config as tasks

supervisor._ATTEMPT, supervisor._MOST_SOON = 1.0, 3
if not supervisor.join():
    tell = lambda text: print(text, flush=True)
    sys.exit(supervisor.supervise(tasks.Task(("localhost:1", "localhost:2"), 0), float({wait}), tell))
print("child", time.monotonic() - supervisor.began(), flush=True)
{child}
"""
MEETS = "supervisor.report_loaded(); supervisor.report_connected(); print('met', flush=True);"


def start(child, wait=3):
    command = [sys.executable, "-c", PROGRAM.format(wait=wait, child=child)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outcome(process):
    """(exit code, what was printed, errors)."""
    printed, errors = process.communicate(timeout=60)
    return process.returncode, printed, errors


def test_a_child_may_take_longer_to_load_than_to_meet_the_others():
    code, printed, _ = outcome(start(f"time.sleep(2.5); {MEETS} sys.exit(7)", wait=1))
    assert code == 7 and printed.count("child") == 1


@pytest.mark.parametrize("how", ["sys.exit(3)", "supervisor.report_loaded(); sys.exit(3)", f"{MEETS} sys.exit(3)"])
def test_an_error_of_its_own_ends_the_worker(how):
    code, printed, _ = outcome(start(how))
    assert code == 3 and printed.count("child") == 1


def test_the_exit_code_of_a_killed_child_is_that_of_a_shell():
    assert outcome(start(f"{MEETS} os.kill(os.getpid(), signal.SIGKILL)"))[0] == 128 + signal.SIGKILL


# One waits in Python; the other, as TensorFlow does, where no other thread runs.
@pytest.mark.parametrize("waits", ["time.sleep(60)", "import ctypes; ctypes.PyDLL(None).sleep(60)"], ids=str)
def test_a_child_that_meets_nobody_is_tried_again_until_the_time_is_over(waits):
    begin = time.monotonic()
    code, printed, errors = outcome(start(f"supervisor.report_loaded(); {waits}"))
    assert code == 1 and printed.count("child") >= 2
    assert errors.startswith("error: TF_CONFIG: expected 2 workers to find each other, received no answer from local")
    assert 3 < time.monotonic() - begin < 20


def test_a_child_that_loses_the_others_starts_again_and_its_time_runs_on():
    once = "sys.exit(0) if time.monotonic() - supervisor.began() > 2 else (time.sleep(2), os._exit(supervisor.LOST))"
    code, printed, _ = outcome(start(f"{MEETS} {once}"))
    assert code == 0 and printed.count("child") == 2
    assert "another worker is lost; waiting for localhost:2" in printed
    assert float(printed.rpartition("child ")[2].split()[0]) > 2


def test_children_that_lose_the_others_at_once_are_not_tried_for_ever():
    code, printed, errors = outcome(start(f"{MEETS} os._exit(supervisor.LOST)"))
    assert code == 1 and printed.count("child") == 3
    assert errors.startswith("error: expected workers that stay, received 3 losses in a row")


def signalled(child, word, count=1):
    """outcome of a supervisor that gets SIGTERM, `count` times, once `word` is printed."""
    process = start(child, wait=60)
    for line in process.stdout:
        if line.startswith(word):
            break
    for _ in range(count):
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
    return outcome(process)


def test_a_signal_reaches_a_child_that_has_met_the_others():
    child = f"{MEETS} signal.signal(signal.SIGTERM, lambda *_: sys.exit(5)); time.sleep(60)"
    assert signalled(child, "met")[0] == 5


def test_a_signal_ends_a_child_that_waits_for_the_others():
    code, printed, _ = signalled("supervisor.report_loaded(); time.sleep(60)", "child")
    assert code == 130 and "child" not in printed  # one only, whose line was read before


def test_a_signal_ends_a_worker_that_has_just_lost_the_others():
    child = f"signal.signal(signal.SIGTERM, lambda *_: os._exit(supervisor.LOST)); {MEETS} time.sleep(60)"
    code, printed, _ = signalled(child, "met")
    assert code == 130 and "child" not in printed


@pytest.mark.parametrize(("count", "ends"), [(2, False), (3, True)])
def test_the_third_signal_ends_a_child_that_does_not_hear(count, ends):
    child = f"signal.signal(signal.SIGTERM, signal.SIG_IGN); {MEETS} time.sleep(4); os._exit(9)"
    code, printed, _ = signalled(child, "met", count)
    assert code == (128 + signal.SIGKILL if ends else 9)
    assert "once more ends the worker at once" in printed


def runs(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs Linux")
def test_a_child_ends_with_its_supervisor():
    process = start(f"print('pid', os.getpid(), flush=True); {MEETS} time.sleep(60)")
    pid = next(int(line.split()[1]) for line in process.stdout if line.startswith("pid"))
    assert runs(pid)
    process.kill()
    process.wait()
    end = time.monotonic() + 10
    while runs(pid) and time.monotonic() < end:
        time.sleep(0.1)
    assert not runs(pid)
