"""The command line: flags to options, errors to one sentence, and the three mains."""

import importlib
import math
import os
import pathlib
import sys
import tempfile

# Both are read when TensorFlow is loaded, so they come first. oneDNN is off by default on some CPUs.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import flags  # noqa: E402

from ssdn_tf import experiments, images, runs  # noqa: E402
from ssdn_tf.errors import UserError  # noqa: E402

TRAIN = """Trains a denoiser; no clean images are needed.

    python train.py --preset=quick                                    minutes on a CPU, no data needed
    python train.py --noise=impulse --alpha=0.5 --train_data=DIR      the paper's training, your photographs
    python train.py --noise=gaussian --sigma=5,50 --parameter_source=per_image --train_data=DIR
    python train.py --experiment=gauss25-blindspot-sigma_known --train_data=DIR     a row of the paper
    python train.py --noise=gaussian --noisy --train_data=DIR         a folder of pictures that are noisy
"""
EVALUATE = """Measures a trained denoiser by the paper's protocol, and leaves pictures to look at.

    python evaluate.py                                                newest run, held-out sample photographs
    python evaluate.py --dataset=set14 --data_dir=DIR                 newest run
    python evaluate.py --dataset=kodak,bsd300 --data_dir=DIR --model=runs/00003-... --repeats=1
"""
DENOISE = """Denoises a picture.

    python denoise.py --input=noisy.png --output=clean.png            with the newest run
    python denoise.py --model=runs/00003-... --sigma=15 --input=noisy.png --output=clean.png
"""

_LEVEL_FLAG = experiments.LEVEL_NAMES
_DEFAULT_LEVEL = {"gaussian": "25", "poisson": "30", "impulse": "0.5"}
_PRESETS = {
    "paper": {
        "crop": 256,
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
# a network that takes every pixel for replaced has no gradient to come back with.
_QUICK_IMPULSE_CLIP = 5.0


# ---------------------------------------------------------------- running a main


def _load_keras():
    """Imports Keras and its backend without the banners that TensorFlow's C++ part writes to
    stderr before its log level applies. They are shown if the import fails."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as banners:
        os.dup2(banners.fileno(), 2)
        try:
            importlib.import_module("ssdn_tf.training")
        except BaseException:
            banners.seek(0)
            os.write(stderr, banners.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _execute(main, define, text, argv=None):
    """Parses, runs, and turns errors of the user into a sentence and an exit code."""
    argv = sys.argv if argv is None else argv
    values = flags.FlagValues()
    flags.DEFINE_bool("help", False, "this text", short_name="h", flag_values=values)
    define(values)
    try:
        rest = values(argv)[1:]
        if values.help or (len(argv) == 1 and main is train_main):
            print(f"{text}\nFlags:{values.get_help(prefix='  ')}")
            return 0
        if rest:
            raise UserError(f"expected flags such as --noise=gaussian, received '{rest[0]}'.")
        return main(values)
    except flags.Error as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped.", file=sys.stderr)
        return 130
    return 1


def train():
    sys.exit(_execute(train_main, _train_flags, TRAIN))


def evaluate():
    sys.exit(_execute(evaluate_main, _evaluate_flags, EVALUATE))


def denoise():
    sys.exit(_execute(denoise_main, _denoise_flags, DENOISE))


# ---------------------------------------------------------------- flags


def _level_flags(v, where):
    flags.DEFINE_string("sigma", None, f"Gaussian noise std of 255, 25 or (a range) 5,50{where}", flag_values=v)
    flags.DEFINE_string("lam", None, f"Poisson noise: photons at white, 30 or 5,50{where}", flag_values=v)
    flags.DEFINE_string("alpha", None, f"impulse noise: share of replaced pixels, 0.5 or 0,1{where}", flag_values=v)


def _train_flags(v):
    flags.DEFINE_enum("noise", None, experiments.NOISES, "noise model (default gaussian)", flag_values=v)
    _level_flags(v, "; a range is drawn from for each picture")
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
        "likelihood", None, ("moments", "mixture"),
        "of impulse noise: the published two-moment loss, or the exact density", flag_values=v,
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
        "report_images", None, "images between two reports (default: 40 reports)", lower_bound=1, flag_values=v
    )
    flags.DEFINE_integer("memory_mb", 2048, "memory for decoded pictures, in MiB", lower_bound=0, flag_values=v)
    _place_flags(v)


def _place_flags(v):
    flags.DEFINE_string("runs", "runs", "folder of the runs", flag_values=v)
    flags.DEFINE_string("data_dir", os.environ.get("SSDN_DATA_DIR"), "folder with kodak, BSDS300, Set14", flag_values=v)


def _evaluate_flags(v):
    flags.DEFINE_string("model", None, "folder of a run (default: the newest), or none with --baseline", flag_values=v)
    flags.DEFINE_list(
        "dataset", ["sample"], "kodak, bsd300, set14, sample, or folders of clean pictures", flag_values=v
    )
    flags.DEFINE_integer(
        "repeats", None, "noise draws a picture (default: 10, 3, 20, else 1)", lower_bound=1, flag_values=v
    )
    flags.DEFINE_enum(
        "pad", "image", ("image", "set_square"), "each picture to its own size, or all to one square", flag_values=v
    )
    flags.DEFINE_enum("baseline", None, ("cbm3d",), "another denoiser on the same noise", flag_values=v)
    _level_flags(v, " (default: the run's)")
    flags.DEFINE_integer("seed", 1, "of the noise", lower_bound=0, flag_values=v)
    flags.DEFINE_integer("pictures", 2, "pictures to leave of each set", lower_bound=0, flag_values=v)
    flags.DEFINE_string("output", None, "folder for results.json and pictures (default: below the run)", flag_values=v)
    _place_flags(v)


def _denoise_flags(v):
    flags.DEFINE_string("model", None, "folder of a run (default: the newest)", flag_values=v)
    flags.DEFINE_string("input", None, "noisy picture", flag_values=v)
    flags.DEFINE_string("output", None, "where the denoised one goes, 8 bit", flag_values=v)
    _level_flags(v, " (default: the run's)")
    flags.DEFINE_string("runs", "runs", "folder of the runs", flag_values=v)


# ---------------------------------------------------------------- flags to options


def parse_levels(noise, text):
    """(low, high) from '25' or '5,50', checked against what the noise model allows.

    Raises:
        UserError: no number, out of range, or the range is upside down.
    """
    name = _LEVEL_FLAG[noise]
    allowed = {
        "sigma": "a number above 0 and up to 255, or a range such as 5,50",
        "lam": "a number above 0, or a range such as 5,50",
        "alpha": "a number between 0 and 1, or a range such as 0,1",
    }[name]
    wrong = UserError(f"--{name}: expected {allowed}, received '{text}'.")
    try:
        levels = [float(part) for part in text.split(",")]
    except ValueError:
        raise wrong from None
    if len(levels) not in (1, 2) or not all(map(math.isfinite, levels)) or levels[0] > levels[-1]:
        raise wrong
    low, high = levels[0], levels[-1]
    inside = {
        "sigma": 0 < low and high <= 255,
        "lam": 0 < low,
        "alpha": 0 <= low and high <= 1 and not (low == high and low in (0, 1)),
    }
    if not inside[name]:
        raise wrong
    if name == "sigma" and high < 1:
        images.warn(
            f"--sigma counts in steps of 255: {high:g} is nearly no noise; "
            f"a std of {high:g} in [0, 1] is --sigma={255 * high:g}."
        )
    return low, high


def level_from_flags(v, noise):
    """Levels that the user gave for this noise, or None.

    Raises:
        UserError: the flag of another noise model is set.
    """
    for other, name in _LEVEL_FLAG.items():
        if other != noise and v[name].value is not None:
            raise UserError(
                f"--{name}: expected --{_LEVEL_FLAG[noise]} with {noise} noise, received the flag of {other} noise."
            )
    text = v[_LEVEL_FLAG[noise]].value
    return None if text is None else parse_levels(noise, text)


def experiment_from_flags(v, preset):
    """The Experiment that the flags of train.py describe.

    Raises:
        UserError: unknown name, or flags that exclude each other.
    """
    described = ("noise", *_LEVEL_FLAG.values(), "parameter_source", "pipeline", "covariance", "channels")
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
    low, high = level_from_flags(v, noise) or parse_levels(noise, _DEFAULT_LEVEL[noise])
    if pipeline != "blindspot":
        for name in ("parameter_source", "covariance"):
            if v[name].value is not None:
                raise UserError(f"--{name}: expected with --pipeline=blindspot, received with --pipeline={pipeline}.")
    # Whoever brings pictures that are noisy already seldom knows by how much.
    source = v.parameter_source or ("global" if v.noisy and level_from_flags(v, noise) is None else "known")
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
    chosen = {name: v[name].value for name in ("crop", "batch_size", "learning_rate", "train_images", "validation")}
    chosen |= {"start": v.parameter_start, "rate": v.parameter_rate, "clip_norm": v.clip_norm}
    settings = {"train_images": experiment.paper_images} | preset
    if v.preset == "quick" and experiment.noise == "impulse":
        settings["clip_norm"] = _QUICK_IMPULSE_CLIP
    settings |= {name: value for name, value in chosen.items() if value is not None}
    del settings["likelihood"]
    if v.train_data == "sample" and v.validation is None:
        settings["validation"] = "held_out"
    if v.noisy:
        settings["validation"] = _no_validation(v)
        if experiment.pipeline in ("n2c", "n2n"):
            raise UserError(
                f"--noisy: expected a pipeline that needs no clean picture, received --pipeline={experiment.pipeline}."
            )
    if settings["crop"] % 32:
        raise UserError(f"--crop: expected a multiple of 32, received {settings['crop']}.")
    for name, value in (("learning_rate", settings["learning_rate"]), ("parameter_rate", settings["rate"])):
        if not 0 < value < math.inf:
            raise UserError(f"--{name}: expected a number above 0, received {value}.")
    _check_start(settings["start"], experiment)
    if v.warm_start:
        runs.read_options(v.warm_start)
    return runs.Options(
        experiment=experiment,
        train_data=v.train_data,
        noisy_already=v.noisy,
        seed=v.seed,
        warm_start=v.warm_start,
        width=v.width,
        **settings,
    )


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
        low, high = parse_levels(experiment.noise, start)
    except UserError:
        low, high = 0, 1
    if low != high:
        raise UserError(f"--parameter_start: expected published, estimate or a level, received '{start}'.")


# ---------------------------------------------------------------- the mains


def train_main(v):
    options = options_from_flags(v)
    _load_keras()
    from ssdn_tf import progress, training

    name = options.experiment.name
    seconds = training.estimated_seconds(options)
    print(
        f"{name}: {options.train_images:,} images of {options.crop}x{options.crop}, "
        f"about {progress.duration(seconds)} on this machine."
    )
    if seconds > 86400:
        print("That is more than a day; --preset=quick shows the method in minutes.")
    run_dir = v.run_dir or runs.new_run_dir(v.runs, name)
    run = training.Run(options, run_dir, data_dir=v.data_dir, memory_mb=v.memory_mb, report_images=v.report_images)
    state = f"goes on after {run.step * options.batch_size:,} images in" if run.step else "in"
    print(f"{len(run.samples.store)} pictures; {state} {run_dir}", flush=True)
    if run.fit():
        print(f"done: {run_dir}. Next: python evaluate.py --model={run_dir}")
        return 0
    arguments = [a for a in sys.argv[1:] if not a.startswith("--run_dir")]
    print(
        f"saved after {run.step * options.batch_size:,} images. "
        f"To go on: python train.py {' '.join(arguments)} --run_dir={run_dir}"
    )
    return 130


def _chosen_run(v):
    return pathlib.Path(v.model) if v.model else runs.newest_run(v.runs)


def evaluate_main(v):
    _load_keras()
    from ssdn_tf import evaluation, report, training

    if v.model == "none":
        if not v.baseline:
            raise UserError("--model=none: expected a --baseline to evaluate instead, received none.")
        low, high = level_from_flags(v, "gaussian") or (25.0, 25.0)
        experiment, model, run = experiments.Experiment(low=low, high=high), None, None
    else:
        run = _chosen_run(v)
        options, model, _ = training.load_inference(run)
        experiment = options.experiment
        low, high = level_from_flags(v, experiment.noise) or (experiment.low, experiment.high)
        experiment = experiments.dataclasses.replace(experiment, low=low, high=high)
    sets = [evaluation.image_set(name, v.data_dir) for name in v.dataset]
    output = pathlib.Path(v.output or (run / "evaluation" if run else "evaluation"))
    denoisers = {}
    if model is not None:
        denoisers[experiment.name] = evaluation.model_denoiser(model)
    if v.baseline:
        denoisers[v.baseline] = evaluation.cbm3d_denoiser(experiment)
    results = []
    for label, files, repeats in sets:
        case = evaluation.Protocol(experiment, label, files, v.repeats or repeats, v.seed, v.pad)
        for name, denoiser in denoisers.items():
            results.append(evaluation.evaluate(case, name, denoiser, output, v.pictures))
    summary = {"run": str(run) if run else None, "seed": v.seed, "pad": v.pad, "results": results}
    report.write_json(output / "results.json", summary)
    print("\n" + report.table(results))
    print(f"\n{output / 'results.json'} and pictures beside it.")
    return 0


def denoise_main(v):
    for name in ("input", "output"):
        if not v[name].value:
            raise UserError(f"expected --{name}=FILE, received none.")
    if pathlib.Path(v.input).resolve() == pathlib.Path(v.output).resolve():
        raise UserError(f"--output: expected another file than --input, received '{v.output}' for both.")
    if pathlib.Path(v.output).suffix.lower() not in images.SUFFIXES:
        raise UserError(
            f"--output: expected a name ending in one of {', '.join(images.SUFFIXES)}, received '{v.output}'."
        )
    noisy = images.read(v.input)
    _load_keras()
    from ssdn_tf import evaluation, training

    options, model, _ = training.load_inference(_chosen_run(v))
    experiment = options.experiment
    levels = level_from_flags(v, experiment.noise) or (experiment.low, experiment.high)
    if levels[0] != levels[1] and experiment.parameter_source == "known":
        flag = _LEVEL_FLAG[experiment.noise]
        raise UserError(
            f"expected --{flag} between {levels[0]:g} and {levels[1]:g}, as this model must be told the noise level, "
            "received none."
        )
    noisy = images.to_float(images.to_channels(noisy, experiment.channels))
    result = evaluation.denoise_any_size(model, noisy, experiment.parameter(levels[0]))
    images.write(v.output, result["denoised"])
    print(f"{v.output}: {noisy.shape[1]}x{noisy.shape[0]}, denoised by {experiment.name}.")
    return 0
