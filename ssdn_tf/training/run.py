"""A training run: one `fit` for each stage, with checkpoints, reports and exact resumption."""

import contextlib
import dataclasses
import math
import pathlib
import time

import keras
import numpy as np
from keras import ops

from ssdn_tf.data import batches, images
from ssdn_tf.data.planes import NoisyPlanes
from ssdn_tf.data.samples import ImageStore
from ssdn_tf.inference import checkpoints, predictor, pretrained
from ssdn_tf.training import build, callbacks, distribution, folder, found_noise
from ssdn_tf.training.reports import History, Validation, progress_line

_REPORTS = 20
_LEAST_REPORT = 400  # images between two reports, where the user does not say
_MEASURED_STEPS = 10  # (times those at once) of each stage, at least, to find how many fit into a time budget
_MEASURED_SECONDS = 10  # at most


class Run:
    """One training in one folder, which no other process can train meanwhile.

    With several workers each makes a Run. Only the chief's folder is written; the others read what it has of the noise.

    Args:
        options: options.Options.
        run_dir: folder of the run, a new one or one to continue.
        data_dir: folder of the data sets.
        memory_mb: for decoded images, in MiB.
        report_images: images between two reports.
        jit: see `build.jit_compile`.
        devices: distribution.Devices, or None for one.
        steps_per_execution: steps that `fit` hands to the device at once.
        began: when the time of a budget begins, on the clock of `time.monotonic`; None for now.
    """

    def __init__(
        self,
        options,
        run_dir,
        *,
        data_dir=None,
        memory_mb=2048,
        report_images=None,
        jit="auto",
        devices=None,
        steps_per_execution=1,
        began=None,
    ):
        self.began = began or time.monotonic()
        self.run_dir = pathlib.Path(run_dir)
        self.checkpoint = self.run_dir / "checkpoint.npz"
        self.devices = devices or distribution.Devices()
        self.jit, self.steps_per_execution, self.report_images = jit, steps_per_execution, report_images
        self.store, held_out = self._on_all(lambda: _open(options, self.run_dir, data_dir, memory_mb))
        if options.noisy_already:
            options = dataclasses.replace(options, value_range=self.store.limits)
        noise = None
        if found_noise.is_needed(options):
            noise = self._on_all(lambda: found_noise.find(options, self.run_dir, self.store))
            options, self.store.noise = found_noise.with_level(options, noise), noise
        options = build.fit_crops(options, self.store.sides())
        distribution.require_same(self.devices, [options.to_dict(), self.store.description()])
        parts = self.store.held_out.items() if options.noisy_already else ()
        noisy = [(part, self.store.parameter(number)) for number, part in parts]
        self.validation = self._on_all(lambda: Validation(held_out, options, noisy) if self.devices.is_chief else None)
        with contextlib.ExitStack() as on_error:
            lock, self.options = self._on_all(lambda: self._claim(options))
            self.lock = on_error.enter_context(lock)
            if noise and self.devices.is_chief:
                found_noise.save(noise, self.run_dir)
            self._build()
            self._on_all(self._restore)
            self.devices.broadcast(list(self.variables.values()))
            self.position.step = int(self.optimizer.iterations.numpy())
            self._note_images()
            self._plan()
            self.history = self._on_all(self._open_history)
            on_error.pop_all()

    def _on_all(self, function):
        return distribution.run_on_all(self.devices, function)

    @property
    def step(self):
        """Steps done."""
        return self.position.step

    # ------------------------------------------------------------ start

    def _claim(self, options):
        if not self.devices.is_chief:
            return contextlib.ExitStack(), options
        if options.warm_start and not self.checkpoint.exists():
            folder.experiment_of(options.warm_start)  # before the folder is made: there is such a start
        return folder.claim(self.run_dir, options)

    def _build(self):
        samples = build.stage_samples(self.options, self.store, 0)
        self.denoiser, self.optimizer, self.schedule = build.build(self.options, samples, self.devices)
        self.precision = self.denoiser.training.get_layer("unet").compute_dtype
        self.denoiser.inference.compile(jit_compile=build.jit_compile(self.jit))
        self.trainings = {}
        model, averages = self.denoiser.training, self.optimizer.averages
        names = {id(a): f"average/{v.path}" for v, a in zip(model.trainable_variables, averages)}
        self.variables = {names.get(id(v), v.path): v for v in [*model.variables, *self.optimizer.variables]}
        self.position = callbacks.Position()

    def _training(self, stage):
        """The compiled model that trains on the batches of a stage.

        Each shape has a model of its own: one that has seen two is compiled again by Keras, for any, which is slower.
        """
        shape = (stage.batch_size, stage.crop)
        if shape not in self.trainings:
            settings = {"steps_per_execution": self.steps_per_execution} if self.steps_per_execution > 1 else {}
            settings |= {"optimizer": self.optimizer, "jit_compile": build.jit_compile(self.jit, self.precision)}
            self.trainings[shape] = distribution.training_model(self.denoiser.training, self.devices, **settings)
        return self.trainings[shape]

    def _restore(self):
        """Brings the chief's variables to the state of the checkpoint."""
        if not self.devices.is_chief:
            return
        with self.devices.scope():
            if self.checkpoint.exists():
                saved = checkpoints.load(self.checkpoint, self.variables)
                self.position = callbacks.Position(**saved)
            elif self.options.warm_start:
                start = self.options.warm_start
                path = pretrained.weights(start) or pathlib.Path(start) / "checkpoint.npz"
                own, other = self.options.experiment, folder.experiment_of(start)
                # A learned level, or its network, begins anew where the start has none of this kind.
                has_level = (own.noise, own.parameter_source) == (other.noise, other.parameter_source)
                learns = own.parameter_source in ("global", "per_image")
                model = self.denoiser.inference
                checkpoints.load_weights(path, model.get_layer("unet") if learns and not has_level else model)
                if has_level:
                    self._start_level(start)
                for variable, average in zip(self.denoiser.training.trainable_variables, self.optimizer.averages):
                    average.assign(variable.numpy())

    def _note_images(self):
        """Warns where the images are not those of the checkpoint: files, or the memory for them, have changed."""
        now = distribution.digest(self.store.description())
        if self.position.data not in (0, now):
            images.warn(f"the images are not those that '{self.run_dir}' has trained on so far; it goes on with these.")
        self.position.data = now

    def _start_level(self, start):
        """Brings a learned noise parameter, which is stored divided by its rate, from one training to another."""
        if self.options.experiment.parameter_source != "global":
            return
        layer = self.denoiser.training.get_layer("parameter")
        if self.options.start in ("published", "estimate"):
            layer.raw.assign(layer.raw.numpy() * folder.read_options(start).rate / layer.rate)
        else:
            layer.raw.assign(np.full(layer.raw.shape, layer.start) / layer.rate)

    def _open_history(self):
        if self.devices.is_chief:
            return History(self.run_dir, self.options.images_seen(self.step))

    def _plan(self):
        """Finds how many images fit into the budget, once, and writes it into the folder of the run."""
        if not self.devices.all_gather(int(self.options.planned))[0]:  # only the chief reads the plan of a run
            counts = self._measured_images()
            self.options = self.options.with_counts([self.devices.all_gather(count)[0] for count in counts])
            if self.devices.is_chief:
                folder.write_options(self.run_dir, self.options)
        elif self.options.budget:
            counts = [self.devices.all_gather(stage.images or 0)[0] for stage in self.options.stages]
            self.options = self.options.with_counts(counts)
        self.schedule.plan([stage.images for stage in self.options.stages])
        if keras.backend.backend() == "jax":
            self.trainings = {}  # JAX has compiled the first plan as a constant

    def _measured_images(self):
        """Images of each stage within the budget, from the speed of some steps, which are then undone."""
        before = {name: np.array(variable.numpy()) for name, variable in self.variables.items()}
        durations, at_once = [], self.steps_per_execution
        for number in range(len(self.options.stages)):
            counter = callbacks.Counter(callbacks.Position())
            for steps in (2, _MEASURED_STEPS):
                self._fit(number, 0, steps * at_once, 1, [counter])
            # Short steps are measured for longer, so that one moment in which the machine is busy does not decide.
            seconds = min(self.options.budget / 100, _MEASURED_SECONDS)
            steps = self.devices.all_gather(int(counter.speed * seconds / at_once))[0]
            if steps > _MEASURED_STEPS:
                self._fit(number, 0, steps * at_once, 1, [counter])
            durations.append(1.0 / counter.speed)
        with self.devices.scope():
            for name, variable in self.variables.items():
                variable.assign(before[name])
        seconds = time.monotonic()
        if self.devices.is_chief:
            self._validate()  # compiles
            seconds = time.monotonic()
            self._validate()
        report = time.monotonic() - seconds
        left = max(self.options.budget - (time.monotonic() - self.began), 0.0)
        # How many reports there would be if they took no time; their time is then taken off.
        total = self.options.with_seconds(left, durations).train_images
        reports = total / (self.report_images or max(total // _REPORTS, _LEAST_REPORT))
        planned = self.options.with_seconds(max(left - reports * report, 0.0), durations)
        return [stage.images for stage in planned.stages]

    # ------------------------------------------------------------ training

    def fit(self, checkpoint_seconds=300, deadline=math.inf):
        """Trains to the end, to a signal (then `stopped_by_signal` is True) or to the deadline, once.

        Args:
            checkpoint_seconds: between two checkpoints, which are this and one step apart; a new stage counts anew.
            deadline: on the clock of `time.monotonic`; training ends after the step in progress.

        Returns:
            True at the end.

        Raises:
            UserError: too many steps in a row without a finite gradient, or a checkpoint that cannot be written (the
                previous one is kept).
        """
        # When the lock is released, nothing is written any more.
        first = self.step
        with self.lock, callbacks.Stop(self.devices, deadline) as stop:
            while self.step < self.options.steps and not stop.stopped:
                self._fit_stage(stop, checkpoint_seconds)
            # No worker ends before the checkpoint is there: one that has ended cannot help to train it again.
            self._on_all(lambda: self.save(unless_at=first))
        self.stopped_by_signal = stop.interrupted
        return self.step >= self.options.steps

    def _fit_stage(self, stop, checkpoint_seconds):
        """One `fit`; more only where a restart or the end leaves an interval between reports incomplete."""
        number, first, _ = self.options.place(self.step)
        stage = self.options.stages[number]
        report_steps = self._report_steps(stage)
        counter = callbacks.Counter(self.position)
        watching = [counter, stop]
        if self.devices.is_chief:
            watching.append(callbacks.Report(counter, self._report, report_steps, first, first + stage.steps))
        watching.append(callbacks.Divergence())
        if self.devices.is_chief:
            watching.append(callbacks.Checkpoint(counter, self.save, checkpoint_seconds))
        parts = intervals(self.step - first, stage.steps, report_steps)
        if self.steps_per_execution > 1:
            # Steps that are taken at once must not cross the end of an epoch.
            parts = [(steps, 1) for steps, epochs in parts for _ in range(epochs)]
        for steps, epochs in parts:
            if not stop.stopped:
                self._fit(number, self.options.images_seen(self.step), steps, epochs, watching)

    def _fit(self, number, first_image, steps, epochs, watching):
        stage, strategy = self.options.stages[number], self.devices.strategy
        samples = build.stage_samples(self.options, self.store, number)
        feed = batches.batches(samples, stage.batch_size, first_image, steps * epochs, strategy)
        known = {"steps_per_epoch": steps} if strategy or epochs > 1 else {}
        self._training(stage).fit(feed, epochs=epochs, verbose=0, shuffle=False, callbacks=watching, **known)

    def _report_steps(self, stage):
        between = self.report_images or max(self.options.train_images // _REPORTS, _LEAST_REPORT)
        return max(1, between // stage.batch_size)

    def save(self, unless_at=None):
        """Writes a checkpoint; not over one of the same step, `unless_at`: the time of the file says what is new."""
        if self.devices.is_chief and not (self.step == unless_at and self.checkpoint.exists()):
            checkpoints.save(self.checkpoint, self.variables, vars(self.position))

    # ------------------------------------------------------------ reports

    def _report(self, steps_per_second):
        """A line in the history and on the terminal."""
        options, position = self.options, self.position
        self.history.seconds += position.seconds
        number, first, _ = options.place(position.step - 1)
        batch_size = options.stages[number].batch_size
        row = {
            "images": options.images_seen(position.step),
            "seconds": round(self.history.seconds, 2),
            "images_per_second": steps_per_second * batch_size,
            "loss": position.loss,
            "learning_rate": float(self.optimizer.learning_rate),
            "skipped": int(self.optimizer.skipped.numpy()),
        }
        level = self.learned_level()
        if level is not None:
            row["noise_level"] = level
        row |= self._validate()
        self.history.add(row)
        print(progress_line(row, options, self._seconds_left(number, first, steps_per_second)), flush=True)

    def _seconds_left(self, number, first, steps_per_second):
        """Time for what is left of this stage; for later ones, by their shares (of a budget) or pixels."""
        stages, stage = self.options.stages, self.options.stages[number]
        seconds = (first + stage.steps - self.step) / steps_per_second
        for later in stages[number + 1 :]:
            if self.options.budget:
                seconds += stage.steps / steps_per_second * later.share / stage.share
            else:
                seconds += later.images * later.crop**2 / (steps_per_second * stage.batch_size * stage.crop**2)
        return seconds

    def _validate(self):
        with self.averaged_weights():
            return self.validation(self.denoiser)

    @contextlib.contextmanager
    def averaged_weights(self):
        """The model has the averaged weights inside this context, and its own to the bit after it.

        (Keras's SwapEMAWeights exchanges them by additions, which lose bits.)
        """
        variables = self.denoiser.training.trainable_variables
        averages = self.optimizer.averages
        before = [np.array(v.numpy()) for v in variables] if averages else []
        with self.devices.scope():
            for variable, average in zip(variables, averages):
                variable.assign(average.numpy())
        try:
            yield
        finally:
            with self.devices.scope():
                for variable, value in zip(variables, before):
                    variable.assign(value)

    def learned_level(self):
        """The global noise parameter as a level (sigma of 255, ...), or None where there is none."""
        if self.options.experiment.parameter_source != "global":
            return None
        layer = self.denoiser.training.get_layer("parameter")
        raw = self.variables.get(f"average/{layer.raw.path}", layer.raw)
        parameter = layer.noise.constrain(layer.rate * ops.convert_to_tensor(raw.numpy()))
        return self.options.experiment.level(predictor.plain(parameter))


def _open(options, run_dir, data_dir, memory_mb):
    """(ImageStore, held-out files)."""
    files, held_out = build.training_files(options, data_dir)
    crop = min(stage.crop for stage in options.stages)
    if options.noisy_already:
        settings = {"folder": options.train_data, "hold_out": options.validation == "held_out"}
        store = NoisyPlanes(files, crop, memory_mb, options.value_range, **settings)
        limits = found_noise.limits(options, run_dir, store)
        # Read again rather than shifted in memory: a start that knows the range must get the same pictures to the bit.
        if limits != store.limits:
            del store  # there may be no room for two
            store = NoisyPlanes(files, crop, memory_mb, limits, **settings)
        return store, held_out
    return ImageStore(files, crop, memory_mb), held_out


def intervals(step, steps, every):
    """How to take the steps from `step` to `steps`, so that epochs end at multiples of `every` and at the end.

    Returns:
        list of (steps of an epoch, number of epochs).
    """
    parts = []
    if step % every:
        parts.append((min(every - step % every, steps - step), 1))
        step += parts[0][0]
    if (steps - step) // every:
        parts.append((every, (steps - step) // every))
    if (steps - step) % every:
        parts.append(((steps - step) % every, 1))
    return parts
