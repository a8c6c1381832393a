"""Reports of a training: scores on held-out images, a line on the terminal, files."""

import json
import math
import pathlib
import time

import keras
import numpy as np

from ssdn_tf.data import images
from ssdn_tf.denoisers import models
from ssdn_tf.errors import UserError
from ssdn_tf.evaluation import metrics, protocol, report
from ssdn_tf.inference.predictor import Predictor
from ssdn_tf.noise.levels import LEVELS

_VALIDATION_IMAGES, _VALIDATION_SIDE = 4, 256
_NOISY_SIDE = 512


class Validation:
    """Scores of a model on images that are not trained on.

    Clean images are made noisy, and scored by PSNR; images that are noisy already, by the training loss.

    Args:
        files: of clean images, of which the middles of 256x256 of the first few are taken.
        options: of the training.
        noisy: list of (plane, noise parameter or None where the model is not told it).
    """

    def __init__(self, files, options, noisy=()):
        experiment, noise = options.experiment, models.noise_model(options.experiment)
        self.options, self.cases, self._scorer = options, [], None
        unknown = experiment.draw_parameter(np.random.default_rng(0)) if noisy else None
        self.noisy = [
            (images.to_channels(images.middle(plane, _NOISY_SIDE), experiment.channels), unknown if p is None else p)
            for plane, p in noisy
        ]
        for file in files[:_VALIDATION_IMAGES]:
            try:
                pixels = images.middle(images.read(file), _VALIDATION_SIDE)
            except UserError as error:
                images.warn(f"left out {error}")
                continue
            image = images.to_float(images.to_channels(pixels, experiment.channels))
            generator = protocol.rng(options.seed, "validation", pathlib.Path(file).name, 0)
            self.cases.append(protocol.corrupt(image, experiment, noise, generator, _VALIDATION_SIDE))

    def __call__(self, denoiser):
        """Means over the images: {"psnr": dB, "psnr_mu_x": dB} or {"held_out_loss": nats}; {} without images."""
        if self.noisy:
            return {"held_out_loss": float(np.mean([self._loss(denoiser.training, *case) for case in self.noisy]))}
        if not self.cases:
            return {}
        tested = protocol.model_method(Predictor(denoiser.inference, self.options.experiment))
        rows = []
        for case in self.cases:
            prediction = tested.denoise(case)
            found = {"psnr": prediction.denoised, "psnr_mu_x": prediction.mu_x}
            rows.append({name: metrics.psnr(i, case.clean) for name, i in found.items() if i is not None})
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

    def _loss(self, model, image, parameter):
        inputs = {"noisy": image[None], "target": image[None], "exponent": np.ones((1, 1, 1, 1), np.float32)}
        inputs["noise_parameter"] = np.reshape(np.float32(parameter), (1, 1, 1, -1))
        if self._scorer is None:
            # Over the same layers, and compiled for the pictures of a validation.
            self._scorer = keras.Model(model.input, model.output)
            self._scorer.compile(jit_compile=keras.backend.backend() == "jax")
        return np.mean(self._scorer.predict_on_batch({name: inputs[name] for name in model.input}))


class History:
    """history.jsonl and, where the tensorboard package is there, its event file."""

    def __init__(self, run_dir, images_seen):
        self.path = pathlib.Path(run_dir) / "history.jsonl"
        # What came after the checkpoint is trained, and reported, again.
        self.rows = [row for row in report.history(run_dir) if row["images"] <= images_seen]
        if self.path.exists():
            self._write()
        self.seconds = self.rows[-1]["seconds"] if self.rows else 0.0
        self.writer = _event_writer(run_dir)

    def add(self, row):
        self.rows.append(report.finite(row))
        try:
            self._write()
            if self.writer:
                self.writer(row)
        except (OSError, UserError) as error:  # a full disk; the next report tries again
            images.warn(f"{self.path}: a report is not written ({error}).")

    def _write(self):
        images.write_text(self.path, "".join(json.dumps(row) + "\n" for row in self.rows))


def _event_writer(run_dir):
    try:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter
    except ImportError:
        print("TensorBoard: off (pip install tensorboard turns it on).")
        return None
    writer = EventFileWriter(str(run_dir))

    def write(row):
        values = [summary_pb2.Summary.Value(tag=k, simple_value=v) for k, v in _scalars(row) if k != "images"]
        summary = summary_pb2.Summary(value=values)
        writer.add_event(event_pb2.Event(wall_time=time.time(), step=row["images"], summary=summary))
        writer.flush()

    return write


def _scalars(row):
    """(name, number) of a report; of a noise level of two numbers, each has a name, and one that is not there none."""
    for name, value in row.items():
        if isinstance(value, tuple):
            yield from ((f"{name}/{i}", part) for i, part in enumerate(value) if part is not None)
        else:
            yield name, value


def duration(seconds):
    """'12 s', '3.5 min', '4.2 h', '6.1 days'; '?' for NaN."""
    if math.isnan(seconds):
        return "?"
    for limit, unit, size in ((100, "s", 1), (6000, "min", 60), (360_000, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.{0 if unit == 's' else 1}f} {unit}"
    return f"{seconds / 86400:.1f} days"


def progress_line(row, options, left):
    """What the terminal shows of a report."""
    total = options.images_seen(options.steps)
    parts = [
        f"{row['images']:>{len(f'{total:,}')},} / {total:,} images",
        "?/s" if math.isnan(row["images_per_second"]) else f"{row['images_per_second']:.1f}/s",
        f"{duration(left)} left",
        f"loss {row['loss']:.4f}",
    ]
    if "noise_level" in row:
        parts.append(LEVELS[options.experiment.noise].describe(row["noise_level"]))
    if "psnr_mu_x" in row:
        parts.append(f"PSNR mu_x {row['psnr_mu_x']:.2f}, posterior mean {row['psnr']:.2f} dB")
    elif "psnr" in row:
        parts.append(f"PSNR {row['psnr']:.2f} dB")
    if "held_out_loss" in row:
        parts.append(f"held-out loss {row['held_out_loss']:.4f}")
    if row["skipped"]:
        parts.append(f"{row['skipped']} steps skipped")
    return "  ".join(parts)
