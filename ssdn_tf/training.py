"""A training run: samples to the model, progress, checkpoints, resumption.

A run is a folder:

    options.json      what was asked for; the same command goes on with the run
    checkpoint.npz    weights, optimizer, position
    history.jsonl     one line a report
    events.out.*      the same for TensorBoard
"""

import dataclasses
import json
import math
import pathlib
import signal
import time

import keras
import numpy as np
from keras import ops

from ssdn_tf import checkpoints, data, denoisers, evaluation, images, metrics, schedules
from ssdn_tf.errors import UserError
from ssdn_tf.experiments import Experiment
from ssdn_tf.optimizers import SkippingAdam

_TOO_MANY_SKIPS = 100  # in a row
_WORK = 1.25e6  # multiply-adds a pixel, forward, of the blind colour network
_VALIDATION_SIDE = 128


@dataclasses.dataclass(frozen=True)
class Options:
    """What decides the result of a run; a run directory belongs to one set of options.

    start, rate: of a learned noise parameter (`parameters.GlobalParameter`); start "estimate"
        takes a robust estimate from noisy crops, "published" raw 0, a number is a level.
    """

    experiment: Experiment
    train_data: str = "sample"
    noisy_already: bool = False
    train_images: int = 2_000_000
    batch_size: int = 4
    crop: int = 256
    learning_rate: float = 3e-4
    seed: int = 0
    start: str = "published"
    rate: float = 1.0
    validation: str = "none"
    warm_start: str = ""
    width: int = 48

    def to_dict(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values):
        return cls(**values | {"experiment": Experiment(**values["experiment"])})

    @property
    def steps(self):
        return math.ceil(self.train_images / self.batch_size)


# ---------------------------------------------------------------- the run's folder


def new_run_dir(root, name):
    """root/00007-name, one above the largest number there."""
    root = pathlib.Path(root)
    numbers = [int(p.name.split("-")[0]) for p in root.glob("[0-9]*-*") if p.name.split("-")[0].isdigit()]
    return root / f"{max(numbers, default=-1) + 1:05d}-{name}"


def newest_run(root):
    """The run below `root` whose checkpoint is newest.

    Raises:
        UserError: there is none.
    """
    found = sorted(pathlib.Path(root).glob("*/checkpoint.npz"), key=lambda p: p.stat().st_mtime)
    if not found:
        raise UserError(f"expected a finished or running training below '{root}', received none; train first, or give --model.")
    return found[-1].parent


def read_options(run_dir):
    """Options of an existing run.

    Raises:
        UserError: the folder is no run.
    """
    path = pathlib.Path(run_dir) / "options.json"
    try:
        return Options.from_dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"expected the folder of a run, received '{run_dir}', whose options.json cannot be read ({error}).") from error


def claim(run_dir, options):
    """Makes the folder of a run, or checks that an existing one belongs to these options.

    Raises:
        UserError: it belongs to others, or holds something that is no run.
    """
    run_dir = pathlib.Path(run_dir)
    if run_dir.is_file():
        raise UserError(f"--run_dir: expected a folder, received the file '{run_dir}'.")
    if not (run_dir / "options.json").exists():
        if run_dir.exists() and any(run_dir.iterdir()):
            raise UserError(f"--run_dir: expected a new folder or that of a run, received '{run_dir}', which holds other files.")
        text = json.dumps(options.to_dict(), indent=2) + "\n"
        images.write_whole(run_dir / "options.json", lambda file: file.write(text.encode()))
        return
    there, asked = _flat(read_options(run_dir).to_dict()), _flat(options.to_dict())
    differing = [key for key in asked if there[key] != asked[key]]
    if differing:
        had = ", ".join(f"{key}={there[key]}" for key in differing)
        got = ", ".join(f"{key}={asked[key]}" for key in differing)
        raise UserError(f"--run_dir: '{run_dir}' belongs to a run with other options: expected {had}, received {got}.")


def _flat(options):
    return {k: v for k, v in options.items() if k != "experiment"} | options["experiment"]


# ---------------------------------------------------------------- what is trained


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


def make_samples(options, files, memory_mb):
    experiment = options.experiment
    exponent = None
    if denoisers.anneals(experiment):

        def exponent(index):
            return schedules.annealed_exponent(index, options.train_images)

    store = data.ImageStore(files, options.crop, memory_mb)
    return data.Samples(
        store,
        experiment,
        denoisers.noise_model(experiment),
        crop=options.crop,
        seed=options.seed,
        exponent=exponent,
        noisy_already=options.noisy_already,
    )


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
    start = start_of_parameter(options, samples) if samples is not None else 0.0
    denoiser = denoisers.build(options.experiment, start=start, rate=options.rate, width=options.width)
    schedule = schedules.RampUpRampDown(
        peak=options.learning_rate, train_images=options.train_images, batch_size=options.batch_size
    )
    optimizer = SkippingAdam(schedule, beta_1=0.9, beta_2=0.99, epsilon=1e-8)
    denoiser.training.compile(optimizer=optimizer, jit_compile=True)
    denoiser.inference.compile(jit_compile=True)
    optimizer.build(denoiser.training.trainable_variables)
    return denoiser


def load_inference(run_dir):
    """(Options, inference model, position) of a run, from its checkpoint."""
    options = read_options(run_dir)
    denoiser = build(options, None)
    path = pathlib.Path(run_dir) / "checkpoint.npz"
    position = checkpoints.load(path, checkpoints.named_variables(denoiser.inference))
    return options, denoiser.inference, position


def batches(samples, options, start, stop):
    """The batches of steps start..stop-1, for `fit`: tf.data, or a PyDataset on other backends."""
    size = options.batch_size
    if keras.backend.backend() != "tensorflow":
        return _Batches(samples, size, start, stop)
    import tensorflow as tf

    example = samples.batch(0, size)
    keys = sorted(example)

    def fetch(step):
        batch = samples.batch(step * size, size)
        return [batch[key] for key in keys]

    def as_dict(step):
        tensors = tf.numpy_function(fetch, [step], [tf.float32] * len(keys))
        return {k: tf.ensure_shape(t, example[k].shape) for k, t in zip(keys, tensors)}

    steps = tf.data.Dataset.range(start, stop)
    return steps.map(as_dict, num_parallel_calls=tf.data.AUTOTUNE).prefetch(4)


class _Batches(keras.utils.PyDataset):
    def __init__(self, samples, size, start, stop):
        super().__init__(workers=4, use_multiprocessing=False)
        self.samples, self.size, self.start, self.stop = samples, size, start, stop

    def __len__(self):
        return self.stop - self.start

    def __getitem__(self, i):
        return self.samples.batch((self.start + i) * self.size, self.size)


# ---------------------------------------------------------------- progress


class Validation:
    """PSNR of fixed noisy 128x128 centre crops (at most `most` pictures), in one batch."""

    def __init__(self, files, options, most=8):
        experiment, noise = options.experiment, denoisers.noise_model(options.experiment)
        self.cases = []
        for file in files[:most]:
            clean = images.to_float(images.to_channels(images.read(file), experiment.channels))
            sides = [min(side, _VALIDATION_SIDE) for side in clean.shape[:2]]
            top, left = ((side - part) // 2 for side, part in zip(clean.shape[:2], sides))
            clean = clean[top : top + sides[0], left : left + sides[1]]
            generator = evaluation.rng(options.seed, "validation", pathlib.Path(file).name, 0)
            self.cases.append(evaluation.corrupt(clean, experiment, noise, generator, _VALIDATION_SIDE))

    def __call__(self, model):
        """Means over the pictures: {"psnr": dB of the answer, "psnr_mu_x": ...}; {} without pictures."""
        if not self.cases:
            return {}
        inputs = {"noisy": np.stack([case.padded for case in self.cases])}
        if "noise_parameter" in model.input:
            levels = np.array([case.parameter for case in self.cases], np.float32)
            inputs["noise_parameter"] = levels.reshape(-1, 1, 1, 1)
        outputs = model.predict_on_batch(inputs)
        result = {}
        for key, name in (("denoised", "psnr"), ("mu_x", "psnr_mu_x")):
            if key in outputs:
                result[name] = float(np.mean([self._psnr(c, np.asarray(o)) for c, o in zip(self.cases, outputs[key])]))
        return result

    @staticmethod
    def _psnr(case, output):
        height, width = case.clean.shape[:2]
        return metrics.psnr(output[:height, :width], case.clean)


class History:
    """history.jsonl and, where the tensorboard package is there, its event file."""

    def __init__(self, run_dir, images_seen):
        self.path = pathlib.Path(run_dir) / "history.jsonl"
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        # What came after the checkpoint is trained, and reported, again.
        kept = [line for line in lines if json.loads(line)["images"] <= images_seen]
        if len(kept) < len(lines):
            text = "".join(line + "\n" for line in kept)
            images.write_whole(self.path, lambda file: file.write(text.encode()))
        self.seconds = json.loads(kept[-1])["seconds"] if kept else 0.0
        self.writer = _event_writer(run_dir)

    def add(self, row):
        # JSON has no NaN.
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(clean) + "\n")
        except OSError as error:
            images.warn(f"{self.path}: a line of the history is lost ({error.strerror}).")
        if self.writer:
            self.writer(row)


def _event_writer(run_dir):
    try:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        print("TensorBoard: off (pip install tensorboard turns it on).")
        return None
    writer = EventFileWriter(str(run_dir))

    def write(row):
        values = [summary_pb2.Summary.Value(tag=k, simple_value=v) for k, v in row.items() if k != "images"]
        summary = summary_pb2.Summary(value=values)
        writer.add_event(event_pb2.Event(wall_time=time.time(), step=row["images"], summary=summary))
        writer.flush()

    return write


def duration(seconds):
    """'12 s', '3.5 min', '4.2 h', '6.1 days'."""
    for limit, unit, size in ((100, "s", 1), (6000, "min", 60), (360_000, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.{0 if unit == 's' else 1}f} {unit}"
    return f"{seconds / 86400:.1f} days"


def progress_line(row, options, left):
    """What the terminal shows of a report."""
    total = options.train_images
    parts = [
        f"{row['images']:>{len(f'{total:,}')},} / {total:,} images",
        f"{row['images_per_second']:.1f}/s",
        f"{duration(left)} left",
        f"loss {row['loss']:.4f}",
    ]
    if "noise_level" in row:
        parts.append(f"{ {'gaussian': 'sigma', 'poisson': 'lam', 'impulse': 'alpha'}[options.experiment.noise]} {row['noise_level']:.4g}")
    if "psnr_mu_x" in row:
        parts.append(f"PSNR mu_x {row['psnr_mu_x']:.2f}, posterior mean {row['psnr']:.2f} dB")
    elif "psnr" in row:
        parts.append(f"PSNR {row['psnr']:.2f} dB")
    if row["skipped"]:
        parts.append(f"{row['skipped']} steps skipped")
    return "  ".join(parts)


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
    return options.train_images * options.crop**2 * 3 * work / rate


# ---------------------------------------------------------------- the run


class _StopOnSignal(keras.callbacks.Callback):
    """Ctrl-C and SIGTERM end training after the step in progress."""

    def __enter__(self):
        self.received = None
        self._before = {s: signal.signal(s, self._receive) for s in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _receive(self, number, _):
        if self.received is None:
            print("\nstopping after this step", flush=True)
        self.received = number

    def on_train_batch_end(self, batch, logs=None):
        if self.received is not None:
            self.model.stop_training = True


class Run:
    """One training, from the options and a folder; `fit` does it all."""

    def __init__(self, options, run_dir, *, data_dir=None, memory_mb=2048, report_images=None):
        self.options = options
        self.run_dir = pathlib.Path(run_dir)
        files, held_out = training_files(options, data_dir)
        self.samples = make_samples(options, files, memory_mb)
        self.validation = Validation(held_out, options)
        claim(run_dir, options)
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
        report = report_images or max(options.train_images // 40, options.batch_size)
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
        end = min(self.options.steps, (self.step // self.report_steps + 1) * self.report_steps)
        begin, first = time.perf_counter(), self.step
        feed = batches(self.samples, self.options, self.step, end)
        log = self.denoiser.training.fit(feed, verbose=0, shuffle=False, callbacks=[stop])
        self.step = int(self.optimizer.iterations)
        seconds = time.perf_counter() - begin
        self.history.seconds += seconds
        row = {
            "images": self.step * self.options.batch_size,
            "seconds": round(self.history.seconds, 2),
            "images_per_second": (self.step - first) * self.options.batch_size / seconds,
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
        left = (self.options.steps - self.step) * self.options.batch_size / max(row["images_per_second"], 1e-9)
        print(progress_line(row, self.options, left), flush=True)

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
