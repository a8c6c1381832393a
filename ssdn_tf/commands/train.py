"""The command train.py."""

import contextlib
import functools
import math
import shlex
import sys
import time

from ssdn_tf.commands import cli, train_flags
from ssdn_tf.errors import UserError

TEXT = """Trains a denoiser; no clean images are needed.

    python train.py --preset=quick                                  five minutes on a CPU, no data needed
    python train.py --noisy --noise=gaussian --train_data=DIR       your noisy images
    python train.py --noise=impulse --alpha=0.5 --train_data=DIR    clean photographs, with noise added
    python train.py --noise=gaussian --sigma=5,50 --parameter_source=per_image --train_data=DIR
    python train.py --experiment=gauss25-blindspot-sigma_known --train_data=DIR     as in the paper, for a GPU
"""


def train():
    """Runs the command; ends the process with its exit code."""
    sys.exit(cli.execute(main, train_flags.define, TEXT, needs_flags=True))


def main(values, command=None):
    """Trains as the flags say; returns the exit code.

    command: the command line that continues this training, where it is not one of train.py.
    """
    began = time.monotonic()
    options = train_flags.options_from_flags(values)
    from ssdn_tf.training import tf_config, workers

    task = tf_config.task_of(values.strategy)
    if task and not values.run_dir:
        raise UserError("several workers need --run_dir, so that a worker that starts again finds the run.")
    if task:
        wait = f"waiting at most {values.wait_minutes:g} min for the others"
        print(f"Worker {task.index} of {len(task.addresses)}, {wait}.", flush=True)
    with workers.exit_if_another_is_lost() if task else contextlib.nullcontext():
        devices = _make_devices(values, options)
        # Worker 0 reports for all.
        log = functools.partial(print, flush=True) if devices.is_chief else lambda *_: None
        return _train(values, options, devices, log, began, command)


def _make_devices(values, options):
    from ssdn_tf.inference import precision
    from ssdn_tf.training import distribution

    if values.cpu_devices > 1:
        distribution.split_cpu(values.cpu_devices)
    # All stages must share their batches evenly.
    batch_sizes = [stage.batch_size for stage in options.stages]
    devices = distribution.make(values.strategy, batch_sizes, 60 * values.wait_minutes)
    if devices.strategy and values.steps_per_execution > 1:
        raise UserError("--steps_per_execution: Keras takes only one step at a time with several replicas.")
    precision.use(values.precision)
    return devices


def _train(values, options, devices, log, began, command):
    from ssdn_tf.training import folder
    from ssdn_tf.training.run import Run

    name = options.experiment.name
    run_dir = values.run_dir or folder.new_run_dir(values.runs, name)
    names = ("data_dir", "memory_mb", "report_images", "jit", "steps_per_execution")
    log(f"{name}, in {run_dir}")
    run = Run(options, run_dir, devices=devices, began=began, **{name: values[name].value for name in names})
    rounded = ", in bfloat16" if run.precision == "bfloat16" else ""
    begun = f"; continues after {_images(run)}" if run.step else ""
    log(f"{len(run.store)} images; {_plan(run.options)}{rounded}{begun}")
    deadline = math.inf if values.max_minutes is None else began + 60 * values.max_minutes
    if run.fit(60 * values.checkpoint_minutes, deadline):
        if not command:
            log(f"Done. Next: {_next_command(options, run_dir)}")
        return 0
    log(f"Saved after {_images(run)}. To continue: {command or _same_command(run_dir)}")
    return 130 if run.stopped_by_signal else 0


def _next_command(options, run_dir):
    """What to do with a network: denoise the noisy images, or measure it where there are clean ones."""
    if options.noisy_already:
        source = "NOISY" if options.train_data.startswith("tfds:") else options.train_data
        folders = [f"--input={source}", "--output=DENOISED"]
        return shlex.join([*cli.called("denoise"), f"--model={run_dir}", *folders])
    return shlex.join([*cli.called("evaluate"), f"--model={run_dir}"])


def _plan(options):
    """'4,500 crops of 64x64, 1,200 of 128x128'."""
    parts = [f"{stage.images:,} crops of {stage.crop}x{stage.crop}" for stage in options.stages]
    return ", then ".join(parts)


def _images(run):
    return f"{run.options.images_seen(run.step):,} crops"


def _same_command(run_dir):
    """The command line of this training, with its folder."""
    arguments = iter(sys.argv[1:])
    kept = []
    for argument in arguments:
        if argument in ("-run_dir", "--run_dir"):
            next(arguments, None)  # --run_dir FOLDER
        elif not argument.startswith(("-run_dir=", "--run_dir=")):
            kept.append(argument)
    return shlex.join([*cli.called("train"), *kept, f"--run_dir={run_dir}"])
