"""The commands: flags to options, and the mains of train.py and export/savedmodel.py."""

import contextlib
import functools
import json
import math
import os
import shlex
import sys
import time

from absl import flags

from ssdn_tf.commands import cli, train_flags
from ssdn_tf.denoisers import experiments
from ssdn_tf.errors import UserError
from ssdn_tf.training import folder as runs
from ssdn_tf.training import supervisor, tf_config

TRAIN = """Trains a denoiser; no clean images are needed.

    python train.py --preset=quick                                    minutes on a CPU, no data needed
    python train.py --noise=impulse --alpha=0.5 --train_data=DIR      the paper's training, your photographs
    python train.py --noise=gaussian --sigma=5,50 --parameter_source=per_image --train_data=DIR
    python train.py --experiment=gauss25-blindspot-sigma_known --train_data=DIR     a row of the paper
    python train.py --noise=gaussian --noisy --train_data=DIR         a folder of pictures that are noisy
"""
EXPORT = """Turns a run, or a published network file, into a SavedModel that TF Serving and any TensorFlow load.

    python export/savedmodel.py --output=models/ssdn                              newest run -> models/ssdn/1
    python export/savedmodel.py --run=runs/00003-... --output=models/ssdn
    python export/savedmodel.py --official=network-00013-gauss25-blindspot-sigma_known.pickle --output=models/official
"""


def train():
    sys.exit(cli.execute(train_main, train_flags.define, TRAIN, needs_flags=True))


def export():
    # The delivered form is TensorFlow's, whatever a run was trained with; weights suit both.
    os.environ["KERAS_BACKEND"] = "tensorflow"
    sys.exit(cli.execute(export_main, _export_flags, EXPORT, needs_flags=True))


# ---------------------------------------------------------------- flags


def _export_flags(v):
    flags.DEFINE_string("run", None, "folder of a run (default: the newest)", flag_values=v)
    flags.DEFINE_string("official", None, "a published network file, instead of a run", flag_values=v)
    cli.level_flags(v, " (that a published network was trained for, if its file does not say it)")
    flags.DEFINE_string("output", None, "folder for the versions of the model: 1, 2, ...", flag_values=v)
    flags.DEFINE_string("runs", "runs", "folder of the runs", flag_values=v)


# ---------------------------------------------------------------- the mains


def train_main(v):
    begin = time.monotonic()
    options = train_flags.options_from_flags(v)
    task = tf_config.task_of(v.strategy)
    if task and not v.run_dir:
        raise UserError("--run_dir: expected with several workers, so that a lost one finds the run, received none.")
    if task and len(task.addresses) > 1 and not supervisor.join():
        return supervisor.supervise(task, 60 * v.wait_minutes, functools.partial(print, flush=True))
    begin = supervisor.began() or begin  # --max_minutes counts from the first start
    from ssdn_tf.training import distribution

    devices = _devices(v, options)
    # Worker 0 tells what all have in common.
    tell = functools.partial(print, flush=True) if devices.is_chief else lambda *_: None
    with distribution.loses_workers() if devices.workers > 1 else contextlib.nullcontext():
        return _train(v, options, devices, tell, begin)


def _devices(v, options):
    """The distribution.Devices that the flags ask for."""
    from ssdn_tf.training import distribution

    if v.cpu_devices > 1:
        distribution.split_cpu(v.cpu_devices)
    devices = distribution.make(v.strategy, options.batch_size)
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


def export_main(v):
    if not v.output:
        raise UserError("expected --output=DIR, received none.")
    if v.run and v.official:
        raise UserError("--official: expected instead of --run, received both.")
    from ssdn_tf.inference import predictor, published
    from ssdn_tf.serving import saved_model as serving

    if v.official:
        model = predictor.from_published(v.official)
        levels = cli.level_from_flags(v, model.experiment.noise)
        if levels:
            with cli.errors_about(experiments.LEVEL_NAMES[model.experiment.noise]):
                model.experiment = published.with_levels(model.experiment, *levels)
        print(model.source.details["licence"])
        details = model.source.details
    else:
        model = predictor.from_run(v.run or runs.newest_run(v.runs))
        path = model.source.path / "history.jsonl"
        history = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        options = runs.Options.from_dict(model.source.details["options"])
        details = serving.run_card(options, model.source.details["position"], history)
    place = serving.export(model.model, model.experiment, serving.model_card(model.experiment, **details), v.output)
    print(f"{place}: {model.experiment.name}. What it takes and gives: export/README.md")
    return 0
