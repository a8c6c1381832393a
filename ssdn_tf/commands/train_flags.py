"""The flags of train.py, the presets, and the options that they make."""

import dataclasses
import math
import re

from absl import flags

from ssdn_tf.commands import cli, level_flags, model_flag
from ssdn_tf.denoisers import experiments
from ssdn_tf.errors import UserError
from ssdn_tf.networks.designs import DESIGNS
from ssdn_tf.noise.levels import LEVELS, LIKELIHOODS, NAMES
from ssdn_tf.training import tf_config
from ssdn_tf.training.options import Options, parse_stages

_PAPER = {
    "network": "paper",
    "stages": "256x4",
    "augment": False,
    "optimizer": "adam",
    "learning_rate": 3e-4,
    "average": 0.0,
    "clip_norm": 0.0,
    "likelihood": "moments",
    "parameter_start": "published",
    "parameter_rate": 1.0,
    "validation": "none",
    "budget": None,
}
_COMPACT = {
    "network": "compact",
    "augment": True,
    "optimizer": "muon",
    "learning_rate": 2e-3,
    "average": 0.999,
    "clip_norm": 5.0,
    "likelihood": "combined",
    "parameter_start": "estimate",
    "parameter_rate": 10.0,
    "validation": "held_out",
}
# Early on, training is limited by the number of steps, so crops are small; later, by what a crop shows.
PRESETS = {
    "quick": _COMPACT | {"stages": "64x1", "budget": "5min"},
    "hour": _COMPACT | {"stages": "64x1:0.5,128x1:0.5", "budget": "1h"},
    "adapt": _COMPACT | {"stages": "64x1:0.5,128x1:0.5", "budget": "5min", "learning_rate": 1e-3},
    "night": _COMPACT | {"stages": "64x1:0.3,128x1:0.7", "budget": "8h"},
    "paper": _PAPER,
}
_DESCRIBING = ("noise", *NAMES, "parameter_source", "pipeline", "covariance", "channels")


def define(values):
    """Defines the flags of train.py in a FlagValues."""
    for title, define_group in (
        ("Data", _data),
        ("Noise", _noise),
        ("Network", _network),
        ("Optimization", _optimization),
        ("Run", _run),
        ("Devices", _devices),
    ):
        with cli.group(values, title):
            define_group(values)


def _data(values):
    define = {"flag_values": values}
    flags.DEFINE_string(
        "train_data", "sample", "folder of images; tfds:NAME:SPLIT; or sample, some photographs of scikit-image",
        **define,
    )  # fmt: skip
    flags.DEFINE_bool("noisy", False, "the images are noisy already: add no noise", **define)
    black = (
        "with preset adapt, black is higher where the noise shows an offset, or both are those of the network that it "
        "starts from"
    )
    cli.range_flag(values, "noisy images", black)
    flags.DEFINE_bool(
        "augment", None,
        "flip and transpose crops at random; with --train_data=sample shuffle colours too (default: yes, no for paper)",
        **define,
    )  # fmt: skip
    flags.DEFINE_string(
        "validation", None, "held_out, none, or a set as in evaluate.py (default: held_out; none for preset paper, but "
        "held_out for the sample)", **define,
    )  # fmt: skip
    cli.data_dir_flag(values)
    flags.DEFINE_integer("memory_mb", 2048, "memory for decoded images, in MiB", lower_bound=0, **define)


def _noise(values):
    define = {"flag_values": values}
    flags.DEFINE_enum(
        "noise", None, experiments.NOISES,
        "noise model (default: gaussian; preset adapt: that of the network it starts from)", **define,
    )  # fmt: skip
    level_flags.define(values, "; from a range, each crop draws its level")
    flags.DEFINE_enum(
        "parameter_source", None, experiments.SOURCES,
        "the noise level is known; learned: one for all images (global), or one for each; or fitted to each crop "
        "(default: known; global for noisy images of an unknown level, but preset adapt finds it)", **define,
    )  # fmt: skip
    flags.DEFINE_enum(
        "likelihood", None, LIKELIHOODS,
        "for impulse noise: the paper's two moments, the exact mixture, or combined, their mean (default: combined, "
        "paper moments)", **define,
    )  # fmt: skip
    flags.DEFINE_string(
        "parameter_start", None,
        "first value of a learned level: estimate, from noisy crops; published; or a level (default: estimate; paper "
        "published)", **define,
    )  # fmt: skip
    flags.DEFINE_float(
        "parameter_rate", None, "times --learning_rate, for a learned global level (default: 10, paper 1)", **define
    )


def _network(values):
    define = {"flag_values": values}
    flags.DEFINE_enum("network", None, tuple(DESIGNS), "U-Net (default: compact; paper for preset paper)", **define)
    flags.DEFINE_integer("width", None, "features of the first layer (default: 16, paper 48)", lower_bound=1, **define)
    flags.DEFINE_enum(
        "pipeline", None, experiments.PIPELINES,
        "blindspot (default), or a baseline: mean (no noise model), n2c (clean targets), n2n (noisy targets)",
        **define,
    )  # fmt: skip
    flags.DEFINE_enum("covariance", None, ("full", "diagonal"), "of the colours (default: full)", **define)
    flags.DEFINE_enum(
        "channels", None, ("3", "1"), "3 for colour, 1 for gray (default: 3; of noisy images, their own)", **define
    )
    flags.DEFINE_string(
        "experiment", None, "a configuration of the paper by its name, such as gauss25-blindspot-sigma_known", **define
    )


def _optimization(values):
    define = {"flag_values": values}
    flags.DEFINE_enum(
        "preset", None, tuple(PRESETS),
        "how long to train: quick (5 minutes), hour (default), night (8 hours), or paper (2 to 16 million crops; "
        "default with --experiment); adapt: 5 minutes on noisy images, from a network of the package", **define,
    )  # fmt: skip
    flags.DEFINE_string("budget", None, "train for this long, such as 90s, 30min or 2h", **define)
    flags.DEFINE_integer("train_images", None, "train on so many crops, however long it takes", lower_bound=1, **define)
    flags.DEFINE_string("stages", None, "crop x batch size : share of the training, as 64x1:0.6,128x1:0.4", **define)
    flags.DEFINE_enum("optimizer", None, ("muon", "adam"), "muon (default), or adam (preset paper)", **define)
    flags.DEFINE_float(
        "learning_rate", None, "peak of the schedule (default: 0.002, adapt 0.001, paper 0.0003)", **define
    )
    flags.DEFINE_float(
        "clip_norm", None, "limit of the gradient's length; 0 for none (default: 5, paper 0)", lower_bound=0.0, **define
    )
    flags.DEFINE_float(
        "average", None, "momentum of the averaged weights; 0 for none (default: 0.999, paper 0)", lower_bound=0.0,
        upper_bound=0.999999, **define,
    )  # fmt: skip
    model_flag.define_precision(values)
    flags.DEFINE_integer("seed", 0, "seed of weights, crops and noise", lower_bound=0, upper_bound=2**32 - 1, **define)
    flags.DEFINE_string("warm_start", "", "run, or network of the package, whose weights to start from", **define)


def _run(values):
    define = {"flag_values": values}
    flags.DEFINE_string(
        "run_dir", None, "folder of the run; an existing run continues (default: a new one in --runs)", **define
    )
    flags.DEFINE_string("runs", "runs", "folder of the runs", **define)
    flags.DEFINE_integer(
        "report_images", None, "crops between two reports (default: 20 reports, at least 400 crops apart)",
        lower_bound=1, **define,
    )  # fmt: skip
    flags.DEFINE_float("checkpoint_minutes", 5.0, "minutes between two checkpoints", lower_bound=0.0, **define)
    flags.DEFINE_float(
        "max_minutes", None, "stop after so many minutes; the same command continues", lower_bound=0.0, **define
    )


def _devices(values):
    define = {"flag_values": values}
    flags.DEFINE_enum(
        "jit", "auto", ("auto", "on", "off"),
        "compile with XLA; auto does so in training, but for bfloat16 on a CPU. The last bits of a result depend on it",
        **define,
    )  # fmt: skip
    flags.DEFINE_integer(
        "steps_per_execution", 1, "steps that are handed to the device at once", lower_bound=1, **define
    )
    flags.DEFINE_enum(
        "strategy", "auto", tf_config.STRATEGIES,
        "auto: the workers of TF_CONFIG if it names several, else all GPUs; mirrored: all devices of this machine",
        **define,
    )  # fmt: skip
    flags.DEFINE_integer("cpu_devices", 1, "split the CPU, to try --strategy=mirrored", lower_bound=1, **define)
    flags.DEFINE_float("wait_minutes", 10.0, "how long workers wait for each other", lower_bound=0.0, **define)


def experiment_from_flags(values, preset):
    """The Experiment that the flags describe.

    Raises:
        UserError: unknown name, or flags that exclude each other.
    """
    adapts = values.preset == "adapt"
    start = _start_of(values) if adapts else experiments.Experiment(network=preset["network"])
    network = {"network": values.network or start.network, "width": values.width or start.width}
    if values.experiment:
        return dataclasses.replace(_published(values, preset), **network)
    noise = values.noise or start.noise
    pipeline = values.pipeline or "blindspot"
    low, high = level_flags.read_trainable(values, noise)
    if pipeline != "blindspot":
        for name in ("parameter_source", "covariance"):
            if values[name].value is not None:
                raise UserError(f"--{name} is only for --pipeline=blindspot, received --pipeline={pipeline}.")
    # The level of images that are noisy already is seldom known.
    unknown = values.noisy and level_flags.read(values, noise) is None
    source = values.parameter_source or ("global" if unknown and not adapts else "known")
    if unknown and not adapts and source == "known":
        raise UserError(f"expected {level_flags.choice(noise)} with --noisy --parameter_source=known, received none.")
    if unknown:
        low = high = None  # it is learned, or the network that the training starts from finds it
    return experiments.Experiment(
        noise=noise,
        low=low,
        high=high,
        pipeline=pipeline,
        parameter_source=source if pipeline == "blindspot" else None,
        diagonal=start.diagonal if values.covariance is None else values.covariance == "diagonal",
        channels=int(values.channels or 3),
        likelihood=_likelihood(values, noise, pipeline, preset),
        **network,
    )


def _start_of(values):
    """The Experiment of the network that adapting starts from."""
    from ssdn_tf.training import folder

    start = values.warm_start
    experiment = folder.experiment_of(start)
    channels = int(values.channels or 3)
    if experiment.pipeline != "blindspot":
        raise UserError(f"expected a network with a blind spot to start from, received {start}, {experiment.name}.")
    if experiment.channels != channels:
        kinds = {1: "gray pictures", 3: "pictures in colour"}
        raise UserError(
            f"expected a network for {kinds[channels]} to start from, received {start}, which is for "
            f"{kinds[experiment.channels]}."
        )
    return experiment


def _published(values, preset):
    both = [name for name in _DESCRIBING if values[name].value is not None]
    if both:
        raise UserError(f"--experiment describes the run already; remove --{both[0]}.")
    if values.experiment not in experiments.PUBLISHED:
        names = ", ".join(experiments.PUBLISHED)
        raise UserError(f"--experiment: expected one of {names}, received '{values.experiment}'.")
    experiment = experiments.PUBLISHED[values.experiment]
    likelihood = _likelihood(values, experiment.noise, experiment.pipeline, preset)
    return dataclasses.replace(experiment, likelihood=likelihood)


def _likelihood(values, noise, pipeline, preset):
    if noise == "impulse" and pipeline == "blindspot":
        return values.likelihood or preset["likelihood"]
    if values.likelihood:
        raise UserError(f"--likelihood is only for impulse noise and --pipeline=blindspot, not {noise}, {pipeline}.")
    return "moments"


def options_from_flags(values):
    """The Options that the flags of train.py describe.

    Raises:
        UserError: as `experiment_from_flags`, or a value out of range.
    """
    preset = PRESETS[values.preset or ("paper" if values.experiment else "hour")]
    if (values.noisy or values.preset == "adapt") and not values.experiment and not values.channels:
        values.channels = _channels_of(values.train_data)
    if values.preset == "adapt":
        _default_to_adapting(values)

    experiment = experiment_from_flags(values, preset)
    chosen = {name: values[name].value for name in preset if name != "network"}
    settings = preset | {name: value for name, value in chosen.items() if value is not None}
    if values.train_data == "sample" and values.validation is None:
        settings["validation"] = "held_out"
    if values.noisy:
        _check_noisy(values, experiment)
    for name in ("learning_rate", "parameter_rate"):
        if not 0 < settings[name] < math.inf:
            raise UserError(f"--{name}: expected a number above 0, received {settings[name]}.")
    _check_start(settings["parameter_start"], experiment)
    options = Options(
        experiment=experiment,
        train_data=values.train_data,
        noisy_already=values.noisy,
        value_range=_value_range(values),
        stages=_stages(settings["stages"], DESIGNS[experiment.network].grid),
        start=settings["parameter_start"],
        rate=settings["parameter_rate"],
        seed=values.seed,
        warm_start=values.warm_start,
        **{name: settings[name] for name in _SAME_NAME},
    )
    if values.train_images and values.budget:
        raise UserError("--train_images and --budget both say how long to train; give one of them.")
    if settings["budget"] is not None and not values.train_images:
        return dataclasses.replace(options, budget=parse_duration(settings["budget"]))
    return options.with_images(values.train_images or experiment.paper_images)


def _channels_of(train_data):
    """--channels for noisy images: "1" if all are gray. Three copies of a gray one would have one noise, not three."""
    if train_data.startswith("tfds:"):
        return "3"
    from ssdn_tf.data import files
    from ssdn_tf.data.planes import readable

    try:
        found = files.find(train_data)
    except UserError:
        return "3"  # the error is said where the images are loaded
    pictures = readable([path for path, _ in found], files.read)
    return "3" if any(shape[-1] == 3 for picture in pictures for shape in picture.shapes) else "1"


def _default_to_adapting(values):
    """Preset adapt: noisy images, and a network of the package to start from."""
    from ssdn_tf.inference import pretrained

    if values["noisy"].present and not values.noisy:
        raise UserError("--preset=adapt trains on images that are noisy already; remove --nonoisy.")
    if values.experiment or values.pipeline not in (None, "blindspot"):
        raise UserError("--preset=adapt is for a network of the package; remove --experiment and --pipeline.")
    values.noisy = True
    values.warm_start = values.warm_start or pretrained.DEFAULTS[int(values.channels or 3)]


_SAME_NAME = ("augment", "optimizer", "learning_rate", "average", "clip_norm", "validation")


def parse_duration(text, flag="budget"):
    """Seconds in a text such as 90s, 30min or 2h.

    Raises:
        UserError: another form, or no time at all.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(s|min|h)", text.strip())
    seconds = float(found[1]) * {"s": 1, "min": 60, "h": 3600}[found[2]] if found else 0.0
    if seconds <= 0:
        raise UserError(f"--{flag}: expected a time such as 90s, 30min or 2h, received '{text}'.")
    return seconds


def _stages(text, grid):
    with cli.errors_about("stages"):
        stages = parse_stages(text)
        for stage in stages:
            if stage.crop % grid:
                raise ValueError(f"expected crops that are multiples of {grid}, received {stage.crop}.")
    return stages


def _value_range(values):
    if values.range and not values.noisy:
        raise UserError("--range is for images that are noisy already; expected --noisy with it.")
    return cli.parse_range(values.range)


def _check_noisy(values, experiment):
    if experiment.pipeline in ("n2c", "n2n"):
        raise UserError(f"--noisy needs a pipeline without clean images, received --pipeline={experiment.pipeline}.")
    if experiment.parameter_source == "known" and not experiment.fixed:
        flag = level_flags.choice(experiment.noise)
        raise UserError(f"{flag}: expected one level of images that are noisy already, received a range.")
    if values.validation not in (None, "none", "held_out"):
        raise UserError(f"--validation: with --noisy, expected held_out or none, received '{values.validation}'.")
    if values.train_data == "sample":
        raise UserError("--train_data: expected the noisy images, received none.")


def _check_start(start, experiment):
    if start in ("published", "estimate"):
        return
    level = LEVELS[experiment.noise]
    try:
        value = level.parse_one(start)
    except ValueError:
        allowed = " and ".join(number.allowed for number in level.numbers)
        raise UserError(
            f"--parameter_start: expected published, estimate or a level, {allowed}, received '{start}'."
        ) from None
    with cli.errors_about("parameter_start"):
        level.check_trainable(value, value)
