"""Counting, stopping, reporting and saving between steps; with several workers, stopping after the same step."""

import math
import os
import signal
import types

import pytest

from ssdn_tf.errors import UserError
from ssdn_tf.training import callbacks, distribution
from ssdn_tf.training.callbacks import Checkpoint, Counter, Divergence, Position, Report, Stop


class Workers(distribution.Devices):
    """Two workers; `other` gives the answer of the second one to each question."""

    workers = 2

    def __init__(self, other):
        self.other, self.asked = other, []

    def all_gather(self, number):
        self.asked.append(number)
        return [number, self.other(len(self.asked))]


def run(watching, steps, at_once=1, before=None, skipped=0):
    """Calls the callbacks as `fit` does in one epoch; returns the number of steps taken."""
    optimizer = types.SimpleNamespace(skipped_in_a_row=skipped)
    model = types.SimpleNamespace(stop_training=False, optimizer=optimizer)
    for callback in watching:
        callback.set_model(model)
        callback.set_params({"steps": steps, "epochs": 1})
        callback.on_epoch_begin(0)
    for end in [*range(at_once, steps, at_once), steps]:
        if before:
            before(end)
        for callback in watching:
            callback.on_train_batch_end(end - 1, {"loss": 0.5})
        if model.stop_training:
            break
    for callback in watching:
        callback.on_epoch_end(0)
    return end


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_training_after_the_step_in_progress(number, capsys):
    with Stop(distribution.Devices()) as stop:
        done = run([stop], 5, before=lambda step: step == 3 and os.kill(os.getpid(), number))
    assert (done, stop.interrupted, stop.late) == (3, True, False)
    assert capsys.readouterr().out == "\nStopping after this step.\n"


def test_the_handlers_of_signals_are_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with Stop(distribution.Devices()):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_one_step_is_taken_after_the_deadline():
    stop = Stop(distribution.Devices(), deadline=0)
    assert run([stop], 5) == 1 and (stop.interrupted, stop.late) == (False, True)


def test_nothing_ends_a_training_before_its_end():
    stop = Stop(distribution.Devices())
    assert run([stop], 5) == 5 and not stop.stopped


@pytest.mark.parametrize(("wish", "interrupted", "late"), [(1, True, False), (2, False, True), (3, True, True)])
def test_workers_stop_after_the_same_step(wish, interrupted, late):
    devices = Workers(lambda asked: wish if asked == 2 else 0)
    stop = Stop(devices)
    assert run([stop], 100) == 2 * callbacks._AGREE_STEPS
    assert (stop.interrupted, stop.late) == (interrupted, late)
    assert devices.asked == [0, 0]


def test_a_worker_says_its_wish_and_waits_for_the_others():
    devices = Workers(lambda asked: 0)
    stop = Stop(devices, deadline=0)
    assert run([stop], 100) == callbacks._AGREE_STEPS and devices.asked == [2] and stop.late


def saving(position, steps, seconds, at_once=1):
    """Steps at which a checkpoint is written."""
    saved = []
    counter = Counter(position)
    run([counter, Checkpoint(counter, lambda: saved.append((position.step, position.loss)), seconds)], steps, at_once)
    return saved


def test_checkpoints_come_after_each_step_that_they_are_due():
    assert saving(Position(), 3, seconds=0) == [(step, 0.5) for step in (1, 2, 3)]
    assert saving(Position(), 3, seconds=math.inf) == []


def test_steps_at_once_are_counted():
    position = Position()
    assert [step for step, _ in saving(position, 7, 0, at_once=3)] == [3, 6, 7]
    assert (position.step, position.steps) == (7, 7)


def test_a_report_covers_what_was_done_before_a_restart():
    reports, position = [], Position(step=4, steps=2, loss=2.0, seconds=10.0)
    counter = Counter(position)
    report = Report(counter, lambda speed: reports.append((position.step, position.steps, position.loss)), 5, 2, 100)
    run([counter, report], 3)
    assert reports == [(7, 5, (2.0 * 2 + 0.5 * 3) / 5)]
    assert position == Position(step=7)


def test_reports_go_on_where_a_restart_has_another_interval():
    found, position = [], Position(step=36, steps=6)
    counter = Counter(position)
    report = Report(counter, lambda speed: found.append((position.step, position.steps)), 8, 0, 100)
    for steps in (4, 8):
        run([counter, report], steps)
    assert found == [(40, 10), (48, 8)]


def test_an_interval_that_is_not_whole_is_reported_at_the_end_of_a_stage_only():
    def reports(last_step):
        found, position = [], Position(step=4)
        counter = Counter(position)
        run([counter, Report(counter, lambda speed: found.append(position.step), 5, 0, last_step)], 3)
        return found

    assert reports(7) == [7] and reports(100) == []


def test_they_are_not_left_to_the_end_of_an_interval():
    counter = Counter(Position())
    with pytest.raises(UserError, match="100 steps in a row"):
        run([counter, Divergence()], 1000, skipped=100)
    assert counter.position.step == 100


def test_too_many_skipped_steps_in_a_row_end_the_training_with_advice():
    for skipped in (99, 100):
        watching = [Counter(Position()), Divergence()]
        if skipped < 100:
            run(watching, 3, skipped=skipped)
        else:
            with pytest.raises(UserError, match="100 steps in a row.*lower learning rate"):
                run(watching, 3, skipped=skipped)
