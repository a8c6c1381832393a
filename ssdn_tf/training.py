"""A training run: samples to the model, progress, checkpoints, resumption."""

import dataclasses
import math
import os
import pathlib
import signal
import time

import keras
import numpy as np
from keras import ops

from ssdn_tf import checkpoints, data, denoisers, evaluation, images, runs, schedules
from ssdn_tf.errors import UserError
from ssdn_tf.networks import GRID
from ssdn_tf.optimizers import SkippingAdam
from ssdn_tf.progress import History, Validation, progress_line

_TOO_MANY_SKIPS = 100  # in a row
# On two CPU cores, XLA makes a step on 4 crops of 64x64 1.17 times as fast (benchmarks/step.py).
_COMPILE = {"jit_compile": True}
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
        from ssdn_tf import datasets

        files, held = datasets.extract(options.train_data, data_dir), []
    else:
        files, held = images.find(options.train_data), []
    if options.validation == "none":
        return files, []
    if options.validation != "held_out":
        return files, evaluation.image_set(options.validation, data_dir)[1]
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
    if denoisers.anneals(experiment):

        def exponent(index):
            return schedules.annealed_exponent(index, options.train_images)

    noise = denoisers.noise_model(experiment)
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
    model = denoisers.noise_model(experiment)
    if options.start != "estimate":
        return model.unconstrain(experiment.parameter(float(options.start)))
    # Indices that no training reaches, so that the estimate has crops of its own.
    crops = np.concatenate([samples.batch(2**40 + i, 1)["noisy"] for i in range(64)])
    return model.unconstrain(model.estimate(crops))


def build(options, samples):
    """The Denoiser of a run, compiled for training."""
    keras.utils.set_random_seed(options.seed)
    start = start_of_parameter(options, samples)
    denoiser = denoisers.build(options.experiment, start=start, rate=options.rate, width=options.width)
    schedule = schedules.RampUpRampDown(
        peak=options.learning_rate,
        train_images=options.train_images,
        batch_size=options.batch_size,
        final_images=options.final_images,
        final_weight=(options.final_crop / options.crop) ** 2,
    )
    optimizer = SkippingAdam(
        schedule, name="adam", beta_1=0.9, beta_2=0.99, epsilon=1e-8, global_clipnorm=options.clip_norm or None
    )
    denoiser.training.compile(optimizer=optimizer, **_COMPILE)
    denoiser.inference.compile(**_COMPILE)
    optimizer.build(denoiser.training.trainable_variables)
    return denoiser


def load_inference(run_dir):
    """(Options, inference model, position) of a run, from its checkpoint."""
    options = runs.read_options(run_dir)
    denoiser = denoisers.build(options.experiment, rate=options.rate, width=options.width)
    denoiser.inference.compile(**_COMPILE)
    path = pathlib.Path(run_dir) / "checkpoint.npz"
    position = checkpoints.load(path, checkpoints.named_variables(denoiser.inference))
    return options, denoiser.inference, position


def batches(samples, options, start, stop):
    """The batches of steps start..stop-1, for `fit`: tf.data, or a PyDataset on other backends."""
    size = options.batch_size
    if keras.backend.backend() != "tensorflow":
        return _Batches(samples, size, start, stop)
    import tensorflow as tf

    example = samples.batch(start * size, size)
    keys = sorted(example)

    def fetch(step):
        batch = samples.batch(step * size, size)
        return [batch[key] for key in keys]

    def as_dict(step):
        tensors = tf.numpy_function(fetch, [step], [tf.float32] * len(keys))
        return {k: tf.ensure_shape(t, example[k].shape) for k, t in zip(keys, tensors)}

    workers = min(os.cpu_count() or 1, 16)
    dataset = tf.data.Dataset.range(start, stop).map(as_dict, num_parallel_calls=workers).prefetch(2 * workers)
    # With autotuning, the end of each `fit` waits for a thread that sleeps for ten seconds and more.
    tuning = tf.data.Options()
    tuning.autotune.enabled = False
    return dataset.with_options(tuning)


class _Batches(keras.utils.PyDataset):
    def __init__(self, samples, size, start, stop):
        super().__init__(workers=4, use_multiprocessing=False)
        self.samples, self.size, self.start, self.stop = samples, size, start, stop

    def __len__(self):
        return self.stop - self.start

    def __getitem__(self, i):
        return self.samples.batch((self.start + i) * self.size, self.size)


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


class _StopOnSignal(keras.callbacks.Callback):
    """Ctrl-C and SIGTERM end training after the step in progress. Also notes when steps end."""

    def __enter__(self):
        self.received = None
        self.ends = []
        self._before = {s: signal.signal(s, self._receive) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, _):
        if self.received is None:
            print("\nstopping after this step", flush=True)
        self.received = number

    def on_train_begin(self, logs=None):
        self.ends = []

    def steps_per_second(self):
        """Of the last `fit`, without its first step, which may include compilation."""
        if len(self.ends) < 2:
            return math.nan
        return (len(self.ends) - 1) / (self.ends[-1] - self.ends[0])

    def on_train_batch_end(self, batch, logs=None):
        self.ends.append(time.perf_counter())
        if self.received is not None:
            self.model.stop_training = True


class Run:
    """One training, from the options and a folder; `fit` does it all."""

    def __init__(self, options, run_dir, *, data_dir=None, memory_mb=2048, report_images=None):
        self.run_dir = pathlib.Path(run_dir)
        files, held_out = training_files(options, data_dir)
        store = data.ImageStore(files, options.crop, memory_mb)
        self.options = options = settle(options, store)
        self.samples = make_samples(options, store)
        self.validation = Validation(held_out, options)
        runs.claim(run_dir, options)
        self.denoiser = build(options, self.samples)
        self.optimizer = self.denoiser.training.optimizer
        self.variables = checkpoints.named_variables(self.denoiser.training, self.optimizer)
        self.checkpoint = self.run_dir / "checkpoint.npz"
        self.step = 0
        if self.checkpoint.exists():
            self.step = checkpoints.load(self.checkpoint, self.variables)["step"]
        elif options.warm_start:
            weights = checkpoints.named_variables(self.denoiser.inference)
            checkpoints.load(pathlib.Path(options.warm_start) / "checkpoint.npz", weights)
        self.history = History(self.run_dir, self.step * options.batch_size)
        report = report_images or max(options.train_images // 40, _LEAST_REPORT)
        self.report_steps = max(1, report // options.batch_size)

    def fit(self, checkpoint_seconds=300):
        """Trains to the end, or to a signal. Returns True at the end.

        Raises:
            UserError: too many steps in a row without a finite gradient, or a checkpoint
                that cannot be written (the one before is kept).
        """
        saved = time.monotonic()
        with _StopOnSignal() as stop:
            while self.step < self.options.steps and stop.received is None:
                self._interval(stop)
                self._refuse_divergence()
                if time.monotonic() - saved > checkpoint_seconds:
                    self.save()
                    saved = time.monotonic()
            self.save()
        return self.step >= self.options.steps

    def save(self):
        checkpoints.save(self.checkpoint, self.variables, {"step": self.step})

    def _interval(self, stop):
        """Trains up to the next report, and reports."""
        options = self.options
        end = min(options.steps, (self.step // self.report_steps + 1) * self.report_steps)
        if self.step < options.final_step:
            end = min(end, options.final_step)  # `fit` wants crops of one size
        begin = time.perf_counter()
        feed = batches(self.samples, options, self.step, end)
        log = self.denoiser.training.fit(feed, verbose=0, shuffle=False, callbacks=[stop])
        self.step = int(self.optimizer.iterations)
        self.history.seconds += time.perf_counter() - begin
        row = {
            "images": self.step * options.batch_size,
            "seconds": round(self.history.seconds, 2),
            "images_per_second": stop.steps_per_second() * options.batch_size,
            "loss": float(log.history["loss"][0]),
            "learning_rate": float(self.optimizer.learning_rate),
            "skipped": int(self.optimizer.skipped),
        }
        level = self.learned_level()
        if level is not None:
            row["noise_level"] = level
        if stop.received is None:
            row |= self.validation(self.denoiser.inference)
        self.history.add(row)
        pixels_per_second = stop.steps_per_second() * (options.pixels(end) - options.pixels(end - 1))
        left = (options.pixels(options.steps) - options.pixels(self.step)) / pixels_per_second
        print(progress_line(row, options, left), flush=True)

    def learned_level(self):
        """The global noise parameter in people's numbers, or None where there is none."""
        if self.options.experiment.parameter_source != "global":
            return None
        layer = self.denoiser.training.get_layer("parameter")
        parameter = layer.noise.constrain(layer.rate * ops.convert_to_tensor(layer.raw))
        return float(self.options.experiment.level(np.asarray(parameter).item()))

    def _refuse_divergence(self):
        if int(self.optimizer.skipped_in_a_row) >= _TOO_MANY_SKIPS:
            raise UserError(
                f"expected finite gradients, received {int(self.optimizer.skipped_in_a_row)} steps in a row without; "
                "try a lower --learning_rate, or check the noise level and the pictures."
            )
