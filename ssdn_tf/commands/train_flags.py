"""What train.py can be asked for: its flags, the presets, and the runs.Options that they make."""

import math

from absl import flags

from ssdn_tf.commands import cli
from ssdn_tf.denoisers import experiments
from ssdn_tf.errors import UserError
from ssdn_tf.training import folder

_DEFAULT_LEVEL = {"gaussian": "25", "poisson": "30", "impulse": "0.5"}
_PRESETS = {
    "paper": {
        "crop": 256,
        "final_crop": 256,
        "final_share": 0.0,
        "batch_size": 4,
        "learning_rate": 3e-4,
        "clip_norm": 0.0,
        "likelihood": "moments",
        "start": "published",
        "rate": 1.0,
        "validation": "none",
    },
    "quick": {
        "crop": 64,
        "final_crop": 256,
        "final_share": 0.0,
        "batch_size": 1,
        "learning_rate": 1e-3,
        "clip_norm": 0.0,
        "likelihood": "combined",
        "start": "estimate",
        "rate": 10.0,
        "validation": "held_out",
        "train_images": 2400,
    },
}
# Impulse noise leaves the other pixels without noise. Where a flat white crop is predicted surely, the density
# has no bound but that of 8 bits, and one such gradient, thirty times the usual, can end a short training:
# a network that takes every pixel for replaced has no gradient to come back with. And a network that has seen
# small crops only gets the colours wrong in the middle of a large picture, far from any border; the other
# noise models lose more by the time that large crops take (28.3 against 29.5 dB and more on Kodak) than they gain.
_QUICK_IMPULSE = {"clip_norm": 5.0, "train_images": 2000, "final_share": 0.03}


def define(v):
    """The flags of train.py, in a FlagValues."""
    flags.DEFINE_enum("noise", None, experiments.NOISES, "noise model (default gaussian)", flag_values=v)
    cli.level_flags(v, "; a range is drawn from for each picture")
    flags.DEFINE_enum(
        "parameter_source", None, experiments.SOURCES,
        "the noise level is known, or learned: one for all, or one a picture (default known)", flag_values=v,
    )  # fmt: skip
    flags.DEFINE_enum(
        "pipeline", None, experiments.PIPELINES,
        "blindspot (default), or a baseline: mean (blind spot, no noise model), n2c, n2n", flag_values=v,
    )  # fmt: skip
    flags.DEFINE_enum(
        "covariance", None, ("full", "diagonal"), "of the predicted colours (default full)", flag_values=v
    )
    flags.DEFINE_enum("channels", None, ("3", "1"), "colour (default) or gray", flag_values=v)
    flags.DEFINE_enum(
        "likelihood", None, experiments.LIKELIHOODS,
        "of impulse noise: the published two-moment loss, the exact density, or the mean of both", flag_values=v,
    )  # fmt: skip
    flags.DEFINE_string("experiment", None, "a row of the paper, instead of the flags above", flag_values=v)
    flags.DEFINE_string(
        "train_data", "sample", "folder of pictures; tfds:NAME:SPLIT; or sample, photographs that scikit-image carries",
        flag_values=v,
    )  # fmt: skip
    flags.DEFINE_bool("noisy", False, "the pictures are noisy already: add no noise to them", flag_values=v)
    flags.DEFINE_enum("preset", "paper", tuple(_PRESETS), "paper, or quick: minutes on a CPU", flag_values=v)
    flags.DEFINE_integer("train_images", None, "length of the training in crops", lower_bound=1, flag_values=v)
    flags.DEFINE_integer("batch_size", None, "crops a step", lower_bound=1, flag_values=v)
    flags.DEFINE_integer("crop", None, "side of the crops, a multiple of 32", lower_bound=32, flag_values=v)
    flags.DEFINE_integer("final_crop", None, "side of the last crops, a multiple of 32", lower_bound=32, flag_values=v)
    flags.DEFINE_integer(
        "final_images",
        None,
        "how many these are (default: none; 3 % in preset quick with impulse noise)",
        lower_bound=0,
        flag_values=v,
    )
    flags.DEFINE_float("learning_rate", None, "peak of the schedule", flag_values=v)
    flags.DEFINE_float("clip_norm", None, "longest gradient; 0 for no limit", lower_bound=0.0, flag_values=v)
    flags.DEFINE_integer("width", 48, "features of the network's encoder (published: 48)", lower_bound=1, flag_values=v)
    flags.DEFINE_integer("seed", 0, "of weights, crops and noise", lower_bound=0, flag_values=v)
    flags.DEFINE_string(
        "parameter_start", None, "where a learned level starts: published, estimate, or a level", flag_values=v
    )
    flags.DEFINE_float(
        "parameter_rate", None, "speed of a learned global level, times the learning rate", flag_values=v
    )
    flags.DEFINE_string("warm_start", "", "run whose weights to start from", flag_values=v)
    flags.DEFINE_string(
        "validation", None, "held_out pictures, none, or a set as in evaluate.py (default held_out in preset quick)",
        flag_values=v,
    )  # fmt: skip
    flags.DEFINE_string(
        "run_dir", None, "folder of the run; one that exists goes on (default: a new one below --runs)", flag_values=v
    )
    flags.DEFINE_integer(
        "report_images",
        None,
        "images between two reports (default: 40 reports, or 100 images)",
        lower_bound=1,
        flag_values=v,
    )
    flags.DEFINE_float(
        "max_minutes", None, "end after so many minutes, at a checkpoint; the same command goes on",
        lower_bound=0.0, flag_values=v,
    )  # fmt: skip
    flags.DEFINE_float("checkpoint_minutes", 5.0, "between two checkpoints", lower_bound=0.0, flag_values=v)
    flags.DEFINE_enum(
        "jit", "auto", ("auto", "on", "off"),
        "compile with XLA: auto does where it is faster. The last bits of a result depend on it", flag_values=v,
    )  # fmt: skip
    flags.DEFINE_enum(
        "precision", "float32", ("float32", "bfloat16"),
        "of the network's arithmetic in training; weights and likelihood stay as they are", flag_values=v,
    )  # fmt: skip
    flags.DEFINE_integer(
        "steps_per_execution", 1, "steps that are handed to the device at once", lower_bound=1, flag_values=v
    )
    flags.DEFINE_enum(
        "strategy", "auto", ("auto", "one_device", "mirrored", "multi_worker"),
        "auto: the workers of TF_CONFIG if it names several, else all GPUs; mirrored: all devices of this machine",
        flag_values=v,
    )  # fmt: skip
    flags.DEFINE_integer(
        "cpu_devices", 1, "devices to make of the CPU, to try --strategy=mirrored", lower_bound=1, flag_values=v
    )
    flags.DEFINE_float(
        "wait_minutes", 10.0, "how long workers wait for each other at the start",
        lower_bound=0.0, flag_values=v,
    )  # fmt: skip
    flags.DEFINE_integer("memory_mb", 2048, "memory for decoded pictures, in MiB", lower_bound=0, flag_values=v)
    cli.place_flags(v)


def experiment_from_flags(v, preset):
    """The Experiment that the flags of train.py describe.

    Raises:
        UserError: unknown name, or flags that exclude each other.
    """
    described = ("noise", *experiments.LEVEL_NAMES.values(), "parameter_source", "pipeline", "covariance", "channels")
    if v.experiment:
        both = [name for name in described if v[name].value is not None]
        if both:
            raise UserError(f"--experiment: expected no other description of the run, received --{both[0]} beside it.")
        if v.experiment not in experiments.PUBLISHED:
            names = ", ".join(experiments.PUBLISHED)
            raise UserError(f"--experiment: expected one of {names}, received '{v.experiment}'.")
        experiment = experiments.PUBLISHED[v.experiment]
        likelihood = _likelihood(v, experiment.noise, experiment.pipeline, preset)
        return experiments.dataclasses.replace(experiment, likelihood=likelihood)
    noise, pipeline = v.noise or "gaussian", v.pipeline or "blindspot"
    low, high = cli.level_from_flags(v, noise) or cli.parse_levels(noise, _DEFAULT_LEVEL[noise])
    if pipeline != "blindspot":
        for name in ("parameter_source", "covariance"):
            if v[name].value is not None:
                raise UserError(f"--{name}: expected with --pipeline=blindspot, received with --pipeline={pipeline}.")
    # Whoever brings pictures that are noisy already seldom knows by how much.
    source = v.parameter_source or ("global" if v.noisy and cli.level_from_flags(v, noise) is None else "known")
    return experiments.Experiment(
        noise=noise,
        low=low,
        high=high,
        pipeline=pipeline,
        parameter_source=source if pipeline == "blindspot" else None,
        diagonal=v.covariance == "diagonal",
        channels=int(v.channels or 3),
        likelihood=_likelihood(v, noise, pipeline, preset),
    )


def _likelihood(v, noise, pipeline, preset):
    if noise == "impulse" and pipeline == "blindspot":
        return v.likelihood or preset["likelihood"]
    if v.likelihood:
        raise UserError(
            f"--likelihood: expected with --noise=impulse and the blind spot, received with {noise} noise, {pipeline}."
        )
    return "moments"


def options_from_flags(v):
    """The runs.Options that the flags of train.py describe.

    Raises:
        UserError: as `experiment_from_flags`, or a value that makes no training.
    """
    preset = _PRESETS[v.preset]
    experiment = experiment_from_flags(v, preset)
    names = ("crop", "final_crop", "final_images", "batch_size", "learning_rate", "train_images", "validation")
    chosen = {name: v[name].value for name in names}
    chosen |= {"start": v.parameter_start, "rate": v.parameter_rate, "clip_norm": v.clip_norm}
    settings = {"train_images": experiment.paper_images} | preset
    if v.preset == "quick" and experiment.noise == "impulse":
        settings |= _QUICK_IMPULSE
    settings |= {name: value for name, value in chosen.items() if value is not None}
    share = settings.pop("final_share")
    settings.setdefault("final_images", round(share * settings["train_images"]))
    del settings["likelihood"]
    _check_crops(settings, v)
    if v.train_data == "sample" and v.validation is None:
        settings["validation"] = "held_out"
    if v.noisy:
        settings["validation"] = _no_validation(v)
        if experiment.pipeline in ("n2c", "n2n"):
            raise UserError(
                f"--noisy: expected a pipeline that needs no clean picture, received --pipeline={experiment.pipeline}."
            )
    for name, value in (("learning_rate", settings["learning_rate"]), ("parameter_rate", settings["rate"])):
        if not 0 < value < math.inf:
            raise UserError(f"--{name}: expected a number above 0, received {value}.")
    _check_start(settings["start"], experiment)
    return folder.Options(
        experiment=experiment,
        train_data=v.train_data,
        noisy_already=v.noisy,
        seed=v.seed,
        warm_start=v.warm_start,
        width=v.width,
        precision=v.precision,
        **settings,
    )


def _check_crops(settings, v):
    for name in ("crop", "final_crop"):
        if settings[name] % 32:
            raise UserError(f"--{name}: expected a multiple of 32, received {settings[name]}.")
    if settings["final_images"] > settings["train_images"]:
        raise UserError(
            f"--final_images: expected at most --train_images={settings['train_images']}, "
            f"received {settings['final_images']}."
        )
    if settings["final_crop"] <= settings["crop"] and v.final_crop is None:
        settings["final_images"] = 0  # the crops are large enough from the start


def _no_validation(v):
    if v.validation not in (None, "none"):
        raise UserError(
            "--validation: expected none with --noisy, as there is no clean picture to compare with, "
            f"received '{v.validation}'."
        )
    return "none"


def _check_start(start, experiment):
    if start in ("published", "estimate"):
        return
    try:
        low, high = cli.parse_levels(experiment.noise, start)
    except UserError:
        low, high = 0, 1
    if low != high:
        raise UserError(f"--parameter_start: expected published, estimate or a level, received '{start}'.")
