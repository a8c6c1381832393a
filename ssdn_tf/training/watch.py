"""What ends a training before its end, or asks for a checkpoint: a signal, the clock."""

import math
import signal
import time

import keras

# Workers ask each other every so many steps whether to stop: all must do it after the same step.
_AGREE_STEPS = 8


class Watch(keras.callbacks.Callback):
    """Looks up after each step: Ctrl-C or SIGTERM, the end of the time, a checkpoint that is due.

    Args:
        devices: distribution.Devices.
        save: function (steps of this `fit`, their mean loss) that writes a checkpoint.
        checkpoint_seconds: between two checkpoints.
        deadline: on the clock of `time.monotonic`. One step is taken even after it, or runs
            in pieces that are too short would never end.

    Attributes:
        received: a signal has ended the run (of any worker).
        late: its time has.
        done: steps of the `fit` in progress.
    """

    def __init__(self, devices, save, checkpoint_seconds, deadline):
        super().__init__()
        self.devices = devices
        self.save, self.checkpoint_seconds, self.deadline = save, checkpoint_seconds, deadline
        self.received = self.late = self._interrupted = False
        self._looks = 0
        self.begin(0)
        self.saved()

    def __enter__(self):
        self._before = {s: signal.signal(s, self._receive) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, *_):
        if not self._interrupted:
            print("\nstopping after this step", flush=True)
        self._interrupted = True

    def saved(self):
        """A checkpoint has been written."""
        self._due = time.monotonic() + self.checkpoint_seconds

    def is_due(self):
        return time.monotonic() >= self._due

    def ends_run(self):
        return self.received or self.late

    def begin(self, steps):
        """`fit` comes next, for so many steps."""
        self.ends, self.steps, self.done = [], steps, 0

    def steps_per_second(self):
        """Of the last `fit`, without its first step (or steps at once), which may include compilation."""
        if len(self.ends) < 2:
            return math.nan
        (first, begin), (last, end) = self.ends[0], self.ends[-1]
        return (last - first) / (end - begin)

    def _look(self):
        """Sets `received` and `late`, on all workers after the same step."""
        received, late = self._interrupted, time.monotonic() >= self.deadline
        if self.devices.workers > 1:
            self._looks += 1
            if self._looks % _AGREE_STEPS:
                return
            wishes = self.devices.all_gather(received + 2 * late)
            received, late = (any(wish & bit for wish in wishes) for bit in (1, 2))
        self.received, self.late = received, late

    def on_train_batch_end(self, batch, logs=None):
        self.done = min(batch + 1, self.steps)
        self.ends.append((self.done, time.perf_counter()))
        self._look()
        if self.ends_run():
            self.model.stop_training = True
        elif self.is_due() and self.done < self.steps:  # after the last one, the report comes first
            _ = self.model  # under JAX, this brings the variables up to date
            self.save(self.done, float(logs["loss"]))
            self.saved()
