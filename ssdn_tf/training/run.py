"""A training run: samples to the model, progress, checkpoints, resumption."""

import contextlib
import dataclasses
import functools
import math
import pathlib
import time

import keras
import numpy as np
from keras import ops

from ssdn_tf.data import batches, images
from ssdn_tf.data import samples as data
from ssdn_tf.denoisers import models
from ssdn_tf.errors import UserError
from ssdn_tf.evaluation import protocol
from ssdn_tf.inference import checkpoints

GRID = 32
from ssdn_tf.training import distribution, folder, schedules
from ssdn_tf.training.optimizers import SkippingAdam
from ssdn_tf.training.reports import History, Validation, progress_line
from ssdn_tf.training.watch import Watch

_TOO_MANY_SKIPS = 100  # in a row
_NOTHING = {"steps": 0, "loss": 0.0, "seconds": 0.0}  # trained since the last report
_XLA_PIXELS = 2**15  # of a batch, up to which XLA makes a step faster on a CPU
_COMPILE = None  # arguments of `compile` in place of what --jit gives; most tests run eagerly
_LEAST_REPORT = 100  # images between two reports, where the user does not say
_WORK = 1.25e6  # multiply-adds a pixel, forward, of the blind colour network


def training_files(options, data_dir=None):
    """(training files, held-out files) that the options ask for.

    Raises:
        UserError: no such data.
    """
    if options.train_data == "sample":
        files, held = data.sample_photographs()
    elif options.train_data.startswith("tfds:"):
        from ssdn_tf.data import tfds

        files, held = tfds.extract(options.train_data, data_dir), []
    else:
        files, held = images.find(options.train_data), []
    if options.validation == "none":
        return files, []
    if options.validation != "held_out":
        return files, protocol.image_set(options.validation, data_dir)[1]
    return (files, held) if held else data.hold_out(files)


def settle(options, store):
    """The options with a final crop that fits into one of the pictures (warning where that changes it)."""
    if not options.final_images:
        return options
    side = min(options.final_crop, store.largest_crop() // GRID * GRID)
    if side == options.final_crop:
        return options
    images.warn(f"the last crops are of {side}x{side}, as no picture holds {options.final_crop}x{options.final_crop}.")
    return dataclasses.replace(options, final_crop=side)


def make_samples(options, store):
    """data.Samples, or data.Stages where the last crops have a size of their own."""
    experiment = options.experiment
    exponent = None
    if models.anneals(experiment):

        def exponent(index):
            return schedules.annealed_exponent(index, options.train_images)

    noise = models.noise_model(experiment)
    settings = {"seed": options.seed, "exponent": exponent, "noisy_already": options.noisy_already}
    first = data.Samples(store, experiment, noise, crop=options.crop, **settings)
    if not options.final_images or options.final_crop == options.crop:
        return first
    side = options.final_crop
    second = data.Samples(store.at_least(side), experiment, noise, crop=side, **settings)
    return data.Stages(first, second, options.final_step * options.batch_size)


def start_of_parameter(options, samples):
    """Raw number that a learned noise parameter starts from."""
    experiment = options.experiment
    if experiment.parameter_source not in ("global", "per_image") or options.start == "published":
        return 0.0
    model = models.noise_model(experiment)
    if options.start != "estimate":
        return model.unconstrain(experiment.parameter(float(options.start)))
    # Indices that no training reaches, so that the estimate has crops of its own.
    crops = np.concatenate([samples.batch(2**40 + i, 1)["noisy"] for i in range(64)])
    return model.unconstrain(model.estimate(crops))


def jit_compile(jit, pixels=None):
    """Whether XLA compiles the functions of a model.

    On two CPU cores, XLA makes a training step on 1 crop of 64x64 1.2 times as fast, on 4 of them
    1.05 times, one on 1 of 256x256 no faster, nor the denoising of a picture (benchmarks/step.py);
    and it compiles again for each size of a picture. JAX knows nothing else.

    Args:
        jit: "on", "off", or "auto".
        pixels: of a training batch; None for denoising.

    Raises:
        UserError: "off" under JAX.
    """
    if keras.backend.backend() == "jax":
        if jit == "off":
            raise UserError("--jit: expected auto or on with JAX, which always compiles, received off.")
        return True
    if jit != "auto":
        return jit == "on"
    return pixels is not None and (pixels <= _XLA_PIXELS or _has_accelerator())


def _has_accelerator():
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


def build(options, samples, jit="auto", devices=None, steps_per_execution=1):
    """The Denoiser of a run, compiled for training.

    Args:
        options: runs.Options.
        samples: what a learned noise parameter starts from.
        jit: see `jit_compile`.
        devices: distribution.Devices, or None for one.
        steps_per_execution: of `fit`.
    """
    devices = devices or distribution.Devices()
    keras.utils.set_random_seed(options.seed)
    start = start_of_parameter(options, samples)
    settings = {"rate": options.rate, "width": options.width, "precision": options.precision}
    with devices.scope():
        denoiser = models.build(options.experiment, start=start, **settings)
    schedule = schedules.RampUpRampDown(
        peak=options.learning_rate,
        train_images=options.train_images,
        batch_size=options.batch_size,
        final_images=options.final_images,
        final_weight=(options.final_crop / options.crop) ** 2,
    )
    pixels = options.batch_size * options.crop**2 // devices.replicas
    compiled = _COMPILE or {"jit_compile": jit_compile(jit, pixels)}
    with devices.scope():
        optimizer = SkippingAdam(
            schedule, name="adam", beta_1=0.9, beta_2=0.99, epsilon=1e-8, global_clipnorm=options.clip_norm or None
        )
        optimizer.build(denoiser.training.trainable_variables)
    if steps_per_execution > 1:
        compiled = compiled | {"steps_per_execution": steps_per_execution}
    training = distribution.training_model(denoiser.training, devices, optimizer=optimizer, **compiled)
    # Made outside of the scope, it answers on one device, without the other replicas.
    inference = keras.Model(denoiser.inference.input, denoiser.inference.output, name="inference")
    inference.compile(**(_COMPILE or {"jit_compile": jit_compile(jit)}))
    return models.Denoiser(training, inference)


def load_inference(run_dir):
    """(Options, inference model, position) of a run, from its checkpoint."""
    options = folder.read_options(run_dir)
    denoiser = models.build(options.experiment, rate=options.rate, width=options.width)
    denoiser.inference.compile(**(_COMPILE or {"jit_compile": jit_compile("auto")}))
    path = pathlib.Path(run_dir) / "checkpoint.npz"
    position = checkpoints.load(path, checkpoints.named_variables(denoiser.inference))
    return options, denoiser.inference, position


def estimated_seconds(options):
    """Rough length of a training from scratch: its multiply-adds at the rate of a large convolution here."""
    x = np.ones((16, 64, 64, 96), np.float32)
    kernel = np.full((3, 3, 96, 96), 1e-3, np.float32)
    best = math.inf
    for _ in range(4):
        begin = time.perf_counter()
        float(ops.sum(ops.conv(x, kernel, padding="same", data_format="channels_last")))
        best = min(best, time.perf_counter() - begin)
    rate = 16 * 64 * 64 * 9 * 96 * 96 / best
    work = _WORK * (1.0 if options.experiment.pipeline in ("blindspot", "mean") else 0.25)
    if options.experiment.parameter_source == "per_image":
        work *= 1.25
    work *= (options.width / 48) ** 2
    return options.pixels(options.steps) * 3 * work / rate


class Run:
    """One training, from the options and a folder, which no other can train meanwhile; `fit` does it all.

    With several workers each makes one; the chief's folder alone is read and written.

    Args:
        options: runs.Options.
        run_dir: folder of the run, a new one or one to go on with.
        data_dir: folder of the data sets.
        memory_mb: for decoded pictures, in MiB.
        report_images: images between two reports.
        jit: see `jit_compile`.
        devices: distribution.Devices, or None for one.
        steps_per_execution: steps that `fit` takes at once.
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
    ):
        self.run_dir = pathlib.Path(run_dir)
        self.checkpoint = self.run_dir / "checkpoint.npz"
        self.devices = devices or distribution.Devices()
        self.stopped_by_signal = False
        run_on_all = functools.partial(distribution.run_on_all, self.devices)
        store, held_out = run_on_all(lambda: self._open(options, data_dir, memory_mb))
        self.options = options = settle(options, store)
        distribution.require_same(self.devices, [options.to_dict(), store.description()])
        self.samples = make_samples(options, store)
        self.validation = run_on_all(lambda: Validation(held_out, options) if self.devices.is_chief else None)
        report = report_images or max(options.train_images // 40, _LEAST_REPORT)
        self.report_steps = max(1, report // options.batch_size)
        with contextlib.ExitStack() as on_error:
            self.lock = on_error.enter_context(run_on_all(self._claim))
            self.denoiser = build(options, self.samples, jit, self.devices, steps_per_execution)
            self.optimizer = self.denoiser.training.optimizer
            self.variables = checkpoints.named_variables(self.denoiser.training, self.optimizer)
            self.unreported = _NOTHING
            run_on_all(self._restore)
            self.devices.broadcast(list(self.variables.values()))
            self.step = _number(self.optimizer.iterations)
            self.history = run_on_all(self._open_history)
            on_error.pop_all()

    @staticmethod
    def _open(options, data_dir, memory_mb):
        """(ImageStore, held-out files)."""
        files, held_out = training_files(options, data_dir)
        return data.ImageStore(files, options.crop, memory_mb), held_out

    def _claim(self):
        if not self.devices.is_chief:
            return contextlib.ExitStack()
        if self.options.warm_start and not self.checkpoint.exists():
            folder.read_options(self.options.warm_start)
        return folder.claim(self.run_dir, self.options)

    def _open_history(self):
        return History(self.run_dir, self.step * self.options.batch_size) if self.devices.is_chief else None

    def _restore(self):
        """Brings the chief's variables to the state of the checkpoint."""
        if not self.devices.is_chief:
            return
        with self.devices.scope():
            if self.checkpoint.exists():
                position = checkpoints.load(self.checkpoint, self.variables)
                self.unreported = position.get("unreported", _NOTHING)
            elif self.options.warm_start:
                weights = checkpoints.named_variables(self.denoiser.inference)
                checkpoints.load(pathlib.Path(self.options.warm_start) / "checkpoint.npz", weights)

    def fit(self, checkpoint_seconds=300, deadline=math.inf):
        """Trains to the end, to a signal (which sets `stopped_by_signal`) or to the deadline, once.

        Args:
            checkpoint_seconds: between two checkpoints; they are this and one step apart.
            deadline: on the clock of `time.monotonic`; training ends after the step in progress.

        Returns:
            True at the end.

        Raises:
            UserError: too many steps in a row without a finite gradient, or a checkpoint
                that cannot be written (the one before is kept).
        """
        # Whoever comes next may have the folder, as nothing is written any more.
        with self.lock, Watch(self.devices, self._save_within, checkpoint_seconds, deadline) as watch:
            while self.step < self.options.steps and not watch.ends_run():
                self._interval(watch)
                self._refuse_divergence()
                if watch.is_due():
                    self.save()
                    watch.saved()
            # No worker ends before the checkpoint is there: one that has ended cannot help to train it again.
            distribution.run_on_all(self.devices, self.save)
        self.stopped_by_signal = watch.received
        return self.step >= self.options.steps

    def save(self):
        if not self.devices.is_chief:
            return
        checkpoints.save(self.checkpoint, self.variables, {"step": self.step, "unreported": self.unreported})

    def _save_within(self, steps, loss):
        """A checkpoint between two reports."""
        self._count(steps, loss)
        self.save()

    def _count(self, steps, loss):
        """Brings the position up to date, `steps` steps of mean loss `loss` after the start of this `fit`.

        What is not reported yet is part of the position, so that the next report counts all of
        it, also after a restart.
        """
        before = self._before
        self.step = _number(self.optimizer.iterations)
        total = before["steps"] + steps
        self.unreported = {
            "steps": total,
            "loss": (before["loss"] * before["steps"] + loss * steps) / total,
            "seconds": before["seconds"] + time.perf_counter() - self._begin,
        }

    def _interval(self, watch):
        """Trains up to the next report, and reports; or up to where `watch` ends the run."""
        options, start = self.options, self.step
        end = min(options.steps, (start // self.report_steps + 1) * self.report_steps)
        if start < options.final_step:
            end = min(end, options.final_step)  # `fit` wants crops of one size
        self._before, self._begin = self.unreported, time.perf_counter()
        watch.begin(end - start)
        strategy = self.devices.strategy
        feed = batches.batches(self.samples, options.batch_size, start, end, strategy)
        arguments = {"steps_per_epoch": end - start} if strategy else {}
        log = self.denoiser.training.fit(feed, verbose=0, shuffle=False, callbacks=[watch], **arguments)
        self._count(watch.done, float(log.history["loss"][0]))
        if self.step == end and self.devices.is_chief:
            self._report(watch.steps_per_second())

    def _report(self, steps_per_second):
        """A line of the history and on the terminal."""
        options, end = self.options, self.step
        self.history.seconds += self.unreported["seconds"]
        row = {
            "images": end * options.batch_size,
            "seconds": round(self.history.seconds, 2),
            "images_per_second": steps_per_second * options.batch_size,
            "loss": self.unreported["loss"],
            "learning_rate": float(self.optimizer.learning_rate),
            "skipped": _number(self.optimizer.skipped),
        }
        level = self.learned_level()
        if level is not None:
            row["noise_level"] = level
        row |= self.validation(self.denoiser.inference)
        self.history.add(row)
        self.unreported = _NOTHING
        pixels_per_second = steps_per_second * (options.pixels(end) - options.pixels(end - 1))
        left = (options.pixels(options.steps) - options.pixels(end)) / pixels_per_second
        print(progress_line(row, options, left), flush=True)

    def learned_level(self):
        """The global noise parameter in people's numbers, or None where there is none."""
        if self.options.experiment.parameter_source != "global":
            return None
        layer = self.denoiser.training.get_layer("parameter")
        parameter = layer.noise.constrain(layer.rate * ops.convert_to_tensor(layer.raw.numpy()))
        return float(self.options.experiment.level(np.asarray(parameter).item()))

    def _refuse_divergence(self):
        count = _number(self.optimizer.skipped_in_a_row)
        if count >= _TOO_MANY_SKIPS:
            raise UserError(
                f"expected finite gradients, received {count} steps in a row without; "
                "try a lower --learning_rate, or check the noise level and the pictures."
            )


def _number(variable):
    """Of a scalar variable, also one that several devices hold."""
    return variable.numpy().item()
