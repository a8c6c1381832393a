"""Callbacks of a training: counting, stopping, checkpoints, reports.

They share a `Position` and run in this order: Counter, Stop, Report, Divergence, Checkpoint.
"""

import dataclasses
import math
import signal
import time

import keras
import numpy as np

from ssdn_tf.errors import UserError

# Workers ask each other every so many steps whether to stop: all must stop after the same step.
_AGREE_STEPS = 8
_TOO_MANY_SKIPS = 100  # in a row


@dataclasses.dataclass
class Position:
    """Where a training is; part of the checkpoint.

    step: steps done.
    steps, loss, seconds: steps since the last report, their mean loss, and how long they took; so the next report
        counts all of them, also after a restart.
    data: checksum of the names and sizes of the images; 0 where it is not known.
    """

    step: int = 0
    steps: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    data: int = 0

    def reported(self):
        """Starts the next interval."""
        self.steps, self.loss, self.seconds = 0, 0.0, 0.0


class Counter(keras.callbacks.Callback):
    """Keeps a Position up to date.

    Attributes:
        speed: steps a second of this epoch, without its first step (or steps at once), which may include compilation.
    """

    def __init__(self, position):
        super().__init__()
        self.position = position
        self.speed = math.nan

    def on_epoch_begin(self, epoch, logs=None):
        self._before, self._begin = dataclasses.replace(self.position), time.perf_counter()
        self._first, self.speed = None, math.nan

    def on_train_batch_end(self, batch, logs=None):
        before, now, done = self._before, time.perf_counter(), min(batch + 1, self.params["steps"])
        self._first = self._first or (done, now)
        if done > self._first[0]:
            self.speed = (done - self._first[0]) / (now - self._first[1])
        self.position.step = before.step + done
        self.position.steps = before.steps + done
        self.position.seconds = before.seconds + now - self._begin
        self._loss = logs["loss"], done

    def settle_loss(self):
        """Brings the loss of the position up to date; apart from the rest, because it waits for the device."""
        loss, done = self._loss
        before = self._before
        self.position.loss = (before.loss * before.steps + _number(loss) * done) / (before.steps + done)

    def on_epoch_end(self, epoch, logs=None):
        self.settle_loss()


class Divergence(keras.callbacks.Callback):
    """Raises a UserError after too many steps without a finite gradient; on all workers, which count the same."""

    def __init__(self):
        super().__init__()
        self._batches = 0

    def on_train_batch_end(self, batch, logs=None):
        self._batches += 1
        if self._batches % _TOO_MANY_SKIPS == 0:  # seldom, because it waits for the device
            self._check()

    def on_epoch_end(self, epoch, logs=None):
        self._check()

    def _check(self):
        count = _number(self.model.optimizer.skipped_in_a_row)
        if count >= _TOO_MANY_SKIPS:
            raise UserError(
                f"The gradient was not finite in {count} steps in a row; "
                "try a lower learning rate, or check the noise level and the images."
            )


class Stop(keras.callbacks.Callback):
    """Ends the training after Ctrl-C or SIGTERM, or when its time is up; on all workers after the same step.

    Use it as a context, in which it handles the signals.

    Args:
        devices: distribution.Devices.
        deadline: on the clock of `time.monotonic`. One step is taken even after it, or runs in very short pieces would
            never end.

    Attributes:
        interrupted: a signal has ended the training (of any worker).
        late: its time has.
    """

    def __init__(self, devices, deadline=math.inf):
        super().__init__()
        self.devices, self.deadline = devices, deadline
        self.interrupted = self.late = self._signal = False
        self._steps = 0

    def __enter__(self):
        self._before = {s: signal.signal(s, self._receive) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, *_):
        if not self._signal:
            print("\nStopping after this step.", flush=True)
        self._signal = True

    @property
    def stopped(self):
        return self.interrupted or self.late

    def on_train_batch_end(self, batch, logs=None):
        interrupted, late = self._signal, time.monotonic() >= self.deadline
        if self.devices.workers > 1:
            self._steps += 1
            if self._steps % _AGREE_STEPS:
                return
            wishes = self.devices.all_gather(interrupted + 2 * late)
            interrupted, late = (any(wish & bit for wish in wishes) for bit in (1, 2))
        self.interrupted, self.late = interrupted, late
        if self.stopped:
            self.model.stop_training = True


class Report(keras.callbacks.Callback):
    """Reports at the end of each epoch that was not cut short.

    Args:
        counter: Counter.
        report: function (speed in steps a second).
        steps: between two reports, counted from `first`; a restart may have another interval.
        first, last: step before and after the stage.
    """

    def __init__(self, counter, report, steps, first, last):
        super().__init__()
        self.counter, self.report, self.steps, self.first, self.last = counter, report, steps, first, last

    def on_epoch_end(self, epoch, logs=None):
        position = self.counter.position
        if (position.step - self.first) % self.steps == 0 or position.step == self.last:
            self.report(self.counter.speed)
            position.reported()


class Checkpoint(keras.callbacks.Callback):
    """Writes a checkpoint every so many seconds, after the step that is then in progress (and its report).

    Args:
        counter: Counter.
        save: function without arguments.
        seconds: between two checkpoints.
    """

    def __init__(self, counter, save, seconds):
        super().__init__()
        self.counter, self.save, self.seconds = counter, save, seconds
        self._due = time.monotonic() + seconds

    def _save_if_due(self, whole_epoch):
        if time.monotonic() >= self._due:
            _ = self.model  # under JAX, reading it brings the variables up to date
            if not whole_epoch:
                self.counter.settle_loss()
            self.save()
            self._due = time.monotonic() + self.seconds

    def on_train_batch_end(self, batch, logs=None):
        if batch + 1 < self.params["steps"] and not self.model.stop_training:
            self._save_if_due(whole_epoch=False)

    def on_epoch_end(self, epoch, logs=None):
        self._save_if_due(whole_epoch=True)


def _number(value):
    """Float or int of a scalar tensor or variable, also one that several devices hold or that has shape [1]."""
    value = value.numpy() if hasattr(value, "numpy") else value
    return np.asarray(value).reshape(-1)[0].item()
