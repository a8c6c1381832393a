"""What ends a training: a signal or the clock, with several workers after the same step."""

import math
import os
import signal
import types

import pytest

from ssdn_tf.training import distribution, watch


class Workers(distribution.Devices):
    """Two workers, of which the other answers what it is told to."""

    workers = 2

    def __init__(self, other):
        self.other, self.asked = other, []

    def all_gather(self, number):
        self.asked.append(number)
        return [number, self.other(len(self.asked))]


def steps(devices, count, deadline=math.inf, checkpoint_seconds=math.inf, at_once=1, before=None):
    """(Watch, what was saved) after `count` steps, or fewer if it stops."""
    saved = []
    looking = watch.Watch(devices, lambda *state: saved.append(state), checkpoint_seconds, deadline)
    looking.set_model(types.SimpleNamespace(stop_training=False))
    with looking:
        looking.begin(count)
        for end in [*range(at_once, count, at_once), count]:
            if before:
                before(end)
            looking.on_train_batch_end(end - 1, {"loss": 0.5})
            if looking.model.stop_training:
                break
    return looking, saved


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_after_the_step_in_progress(number, capsys):
    looking, saved = steps(distribution.Devices(), 5, before=lambda step: step == 3 and os.kill(os.getpid(), number))
    assert (looking.done, looking.received, looking.late, saved) == (3, True, False, [])
    assert capsys.readouterr().out == "\nstopping after this step\n"


def test_a_run_that_is_late_takes_one_step():
    looking, _ = steps(distribution.Devices(), 5, deadline=0)
    assert (looking.done, looking.received, looking.late) == (1, False, True)


def test_nothing_ends_a_run_before_its_end():
    looking, saved = steps(distribution.Devices(), 5)
    assert (looking.done, looking.ends_run(), saved) == (5, False, [])


def test_checkpoints_come_between_steps_and_not_after_the_last():
    _, saved = steps(distribution.Devices(), 5, checkpoint_seconds=0)
    assert saved == [(step, 0.5) for step in (1, 2, 3, 4)]


def test_steps_at_once_are_counted():
    looking, saved = steps(distribution.Devices(), 7, checkpoint_seconds=0, at_once=3)
    assert looking.done == 7 and [step for step, _ in saved] == [3, 6]
    (first, _), (last, _) = looking.ends[0], looking.ends[-1]
    assert (first, last) == (3, 7)


@pytest.mark.parametrize(("wish", "received", "late"), [(1, True, False), (2, False, True), (3, True, True)])
def test_workers_stop_after_the_same_step(wish, received, late):
    devices = Workers(lambda asked: wish if asked == 2 else 0)
    looking, _ = steps(devices, 100)
    assert (looking.done, looking.received, looking.late) == (2 * watch._AGREE_STEPS, received, late)
    assert devices.asked == [0, 0]


def test_a_worker_tells_its_wish_and_waits_for_the_others():
    devices = Workers(lambda asked: 0)
    looking, _ = steps(devices, 100, deadline=0)
    assert looking.done == watch._AGREE_STEPS and devices.asked == [2] and looking.late
