"""The commands: flags to options, and the mains of train.py, evaluate.py, denoise.py and export/savedmodel.py."""

import contextlib
import functools
import json
import math
import os
import pathlib
import shlex
import sys
import time

import numpy as np
from absl import flags

from ssdn_tf.commands import cli, train_flags
from ssdn_tf.data import images
from ssdn_tf.denoisers import experiments
from ssdn_tf.errors import UserError
from ssdn_tf.inference import tiling
from ssdn_tf.training import folder as runs
from ssdn_tf.training import tf_config, workers

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


EXPORT = """Turns a run, or a published network file, into a SavedModel that TF Serving and any TensorFlow load.

    python export/savedmodel.py --output=models/ssdn                              newest run -> models/ssdn/1
    python export/savedmodel.py --run=runs/00003-... --output=models/ssdn
    python export/savedmodel.py --official=network-00013-gauss25-blindspot-sigma_known.pickle --output=models/official
"""


def train():
    sys.exit(cli.execute(train_main, train_flags.define, TRAIN, needs_flags=True))


def evaluate():
    sys.exit(cli.execute(evaluate_main, _evaluate_flags, EVALUATE))


def denoise():
    sys.exit(cli.execute(denoise_main, _denoise_flags, DENOISE))


def export():
    # The delivered form is TensorFlow's, whatever a run was trained with; weights suit both.
    os.environ["KERAS_BACKEND"] = "tensorflow"
    sys.exit(cli.execute(export_main, _export_flags, EXPORT, needs_flags=True))


# ---------------------------------------------------------------- flags


def _evaluate_flags(v):
    flags.DEFINE_string(
        "model", None, "a run or a SavedModel (default: the newest run), or none with --baseline", flag_values=v
    )
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
    cli.level_flags(v, " (default: the run's)")
    flags.DEFINE_integer("seed", 1, "of the noise", lower_bound=0, flag_values=v)
    flags.DEFINE_integer("pictures", 2, "pictures to leave of each set", lower_bound=0, flag_values=v)
    flags.DEFINE_string(
        "output", None, "folder for results.json and pictures (default: below the run; evaluation)", flag_values=v
    )
    cli.place_flags(v)


def _denoise_flags(v):
    flags.DEFINE_string("model", None, "a run or a SavedModel (default: the newest run)", flag_values=v)
    flags.DEFINE_string("input", None, "noisy picture", flag_values=v)
    flags.DEFINE_string("output", None, "where the denoised one goes", flag_values=v)
    flags.DEFINE_enum(
        "bits",
        None,
        ("8", "16"),
        "of the output; 16 for PNG only (default: the input's, where possible)",
        flag_values=v,
    )
    flags.DEFINE_integer(
        "tile", 1536, "larger pictures than this squared are done in tiles of this side; memory is 7 KB a pixel",
        lower_bound=0, flag_values=v,
    )  # fmt: skip
    cli.level_flags(v, " (default: the model's)")
    flags.DEFINE_string("runs", "runs", "folder of the runs", flag_values=v)


def _export_flags(v):
    flags.DEFINE_string("run", None, "folder of a run (default: the newest)", flag_values=v)
    flags.DEFINE_string("official", None, "a published network file, instead of a run", flag_values=v)
    flags.DEFINE_string("output", None, "folder for the versions of the model: 1, 2, ...", flag_values=v)
    flags.DEFINE_string("runs", "runs", "folder of the runs", flag_values=v)


# ---------------------------------------------------------------- the mains


def train_main(v):
    begin = time.monotonic()
    options = train_flags.options_from_flags(v)
    task = tf_config.task_of(v.strategy)
    if task and not v.run_dir:
        raise UserError("--run_dir: expected with several workers, so that a lost one finds the run, received none.")
    if task:
        print(f"worker {task.index} of {len(task.addresses)}: waiting at most {v.wait_minutes:g} min", flush=True)
    cli.load_keras()
    with workers.exit_if_another_is_lost() if task else contextlib.nullcontext():
        devices = _devices(v, options)
        # Worker 0 tells what all have in common.
        tell = functools.partial(print, flush=True) if devices.is_chief else lambda *_: None
        return _train(v, options, devices, tell, begin)


def _devices(v, options):
    """The distribution.Devices that the flags ask for."""
    from ssdn_tf.training import distribution

    if v.cpu_devices > 1:
        distribution.split_cpu(v.cpu_devices)
    devices = distribution.make(v.strategy, options.batch_size, 60 * v.wait_minutes)
    if devices.strategy and v.steps_per_execution > 1:
        raise UserError(
            f"--steps_per_execution: expected 1 with several replicas, as Keras cannot do more, "
            f"received {v.steps_per_execution}."
        )
    if options.precision == "bfloat16":
        distribution.require_bfloat16()
    return devices


def _train(v, options, devices, tell, begin):
    from ssdn_tf.training import reports
    from ssdn_tf.training import run as training

    name = options.experiment.name
    seconds = training.estimated_seconds(options) / devices.replicas
    crops = f"{options.train_images:,} images of {options.crop}x{options.crop}"
    if options.final_images:
        crops += f" (the last {options.final_images:,} of {options.final_crop}x{options.final_crop})"
    places = f"{devices.replicas} replicas" if devices.replicas > 1 else "this machine"
    tell(f"{name}: {crops}, about {reports.duration(seconds)} on {places}.")
    if seconds > 86400:
        tell("That is more than a day; --preset=quick shows the method in minutes.")
    run_dir = v.run_dir or runs.new_run_dir(v.runs, name)
    names = ("data_dir", "memory_mb", "report_images", "jit", "steps_per_execution")
    run = training.Run(options, run_dir, devices=devices, **{name: v[name].value for name in names})
    state = f"goes on after {run.step * options.batch_size:,} images in" if run.step else "in"
    tell(f"{len(run.samples.store)} pictures; {state} {run_dir}")
    deadline = math.inf if v.max_minutes is None else begin + 60 * v.max_minutes
    if run.fit(60 * v.checkpoint_minutes, deadline):
        tell(f"done: {run_dir}. Next: python evaluate.py --model={run_dir}")
        return 0
    tell(f"saved after {run.step * options.batch_size:,} images. To go on: {_same_command(run_dir)}")
    return 130 if run.stopped_by_signal else 0


def _same_command(run_dir):
    """The command line of this training, with its folder."""
    arguments = iter(sys.argv[1:])
    kept = []
    for argument in arguments:
        if argument.lstrip("-") == "run_dir":
            next(arguments, None)  # --run_dir FOLDER
        elif not argument.lstrip("-").startswith("run_dir="):
            kept.append(argument)
    return shlex.join(["python", "train.py", *kept, f"--run_dir={run_dir}"])


def _load_model(v):
    """(folder, Experiment, inference model) of the run or SavedModel that --model names."""
    from ssdn_tf.serving import saved_model as serving
    from ssdn_tf.training import run as training

    folder = pathlib.Path(v.model) if v.model else runs.newest_run(v.runs)
    saved_model = serving.find(folder)
    if saved_model:
        return saved_model, *serving.load(saved_model)
    options, model, _ = training.load_inference(folder)
    return folder, options.experiment, model


def evaluate_main(v):
    cli.load_keras()
    from ssdn_tf.evaluation import protocol, report

    if v.model == "none":
        if not v.baseline:
            raise UserError("--model=none: expected a --baseline to evaluate instead, received none.")
        low, high = cli.level_from_flags(v, "gaussian") or (25.0, 25.0)
        experiment, model, folder = experiments.Experiment(low=low, high=high), None, None
    else:
        folder, experiment, model = _load_model(v)
        low, high = cli.level_from_flags(v, experiment.noise) or (experiment.low, experiment.high)
        experiment = experiments.dataclasses.replace(experiment, low=low, high=high)
    sets = [protocol.image_set(name, v.data_dir) for name in v.dataset]
    # Nothing is written into a SavedModel: a server may watch its folder.
    is_run = folder and (folder / "options.json").exists()
    output = pathlib.Path(v.output or (folder / "evaluation" if is_run else "evaluation"))
    denoisers = {}
    if model is not None:
        denoisers[experiment.name] = protocol.model_denoiser(model)
    if v.baseline:
        denoisers[v.baseline] = protocol.cbm3d_denoiser(experiment)
    results = []
    for label, files, repeats in sets:
        case = protocol.Protocol(experiment, label, files, v.repeats or repeats, v.seed, v.pad)
        for name, denoiser in denoisers.items():
            results.append(protocol.evaluate(case, name, denoiser, output, v.pictures))
    summary = {"run": str(folder) if folder else None, "seed": v.seed, "pad": v.pad, "results": results}
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
    least = 2 * tiling.HALO + tiling.GRID
    if v.tile and (v.tile % tiling.GRID or v.tile < least):
        raise UserError(f"--tile: expected 0 or a multiple of {tiling.GRID} from {least} on, received {v.tile}.")
    noisy = images.read(v.input)
    is_png = pathlib.Path(v.output).suffix.lower() == ".png"
    if v.bits == "16" and not is_png:
        raise UserError(f"--bits=16: expected an --output ending in .png, received '{v.output}'.")
    bits = int(v.bits or (16 if noisy.dtype == np.uint16 and is_png else 8))
    cli.load_keras()
    from ssdn_tf.evaluation import protocol

    _, experiment, model = _load_model(v)
    levels = cli.level_from_flags(v, experiment.noise) or (experiment.low, experiment.high)
    if levels[0] != levels[1] and experiment.parameter_source == "known":
        flag = experiments.LEVEL_NAMES[experiment.noise]
        raise UserError(
            f"expected --{flag} between {levels[0]:g} and {levels[1]:g}, as this model must be told the noise level, "
            "received none."
        )
    noisy = images.to_float(images.to_channels(noisy, experiment.channels))
    result = protocol.denoise_any_size(model, noisy, experiment.parameter(levels[0]), v.tile)
    images.write(v.output, result["denoised"], bits)
    print(f"{v.output}: {noisy.shape[1]}x{noisy.shape[0]}, denoised by {experiment.name}.")
    return 0


def export_main(v):
    if not v.output:
        raise UserError("expected --output=DIR, received none.")
    if v.run and v.official:
        raise UserError("--official: expected instead of --run, received both.")
    cli.load_keras()
    from ssdn_tf.serving import saved_model as serving

    experiment, model, card = _official_model(v.official) if v.official else _run_model(v)
    place = serving.export(model, experiment, card, v.output)
    print(f"{place}: {experiment.name}. What it takes and gives: export/README.md")
    return 0


def _run_model(v):
    """(Experiment, inference model, model card) of a run."""
    from ssdn_tf.serving import saved_model as serving
    from ssdn_tf.training import run as training

    run = pathlib.Path(v.run) if v.run else runs.newest_run(v.runs)
    options, model, position = training.load_inference(run)
    path = run / "history.jsonl"
    history = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    card = serving.model_card(options.experiment, **serving.run_card(options, position, history))
    return options.experiment, model, card


def _official_model(path):
    """The same of a published network file."""
    from ssdn_tf.inference import official
    from ssdn_tf.serving import saved_model as serving

    network = official.read(path)
    print(official.LICENCE)
    card = serving.model_card(network.experiment, published_network=network.name, licence=official.LICENCE)
    return network.experiment, official.denoiser(network).inference, card
