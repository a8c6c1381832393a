"""The folder of a run:

options.json      what the training was asked for; the same command continues the run
checkpoint.npz    weights, optimizer, position
noise.json        of images that are noisy already, where it was found
history.jsonl     one line for each report
events.out.*      the same for TensorBoard
lock              held by the process that trains; names it
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import socket

from ssdn_tf.data import images, locks
from ssdn_tf.denoisers.experiments import Experiment
from ssdn_tf.errors import UserError
from ssdn_tf.inference import pretrained
from ssdn_tf.training.options import Options

_WRITTEN = ("options.json", "noise.json", "checkpoint.npz", "history.jsonl")  # whole, by `images.write_whole`
_LOCK = "lock"


def new_run_dir(root, name):
    """root/00007-name, one above the largest number there."""
    root = pathlib.Path(root)
    numbers = [int(p.name.split("-")[0]) for p in root.glob("[0-9]*-*") if p.name.split("-")[0].isdigit()]
    return root / f"{max(numbers, default=-1) + 1:05d}-{name}"


def has_begun(run_dir):
    """True where an earlier start has left something to go on from."""
    return (pathlib.Path(run_dir) / "checkpoint.npz").exists()


def read_options(run_dir):
    """Options of an existing run.

    Raises:
        UserError: the folder is no run.
    """
    path = pathlib.Path(run_dir) / "options.json"
    try:
        return Options.from_dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"'{run_dir}' is not the folder of a run: its options.json cannot be read ({error})."
        ) from error


def experiment_of(start):
    """The Experiment of a run, or of a network of the package.

    Raises:
        UserError: there is none.
    """
    if start in pretrained.names():
        return Experiment(**pretrained.card(start)["experiment"])
    return read_options(start).experiment


def claim(run_dir, options):
    """Makes the folder of a run, or checks that one with a checkpoint belongs to these options.

    Returns:
        (lock, options): the lock of the folder; no other process can claim the folder before it is closed or this
        process ends, even by SIGKILL. And the options, with the images that an earlier start has planned.

    Raises:
        UserError: the folder belongs to other options, holds other files, or is being trained.
    """
    run_dir = pathlib.Path(run_dir)
    try:
        if run_dir.is_file():
            raise UserError(f"The run folder '{run_dir}' is a file.")
        there = [path.name for path in run_dir.iterdir()] if run_dir.exists() else []
    except OSError as error:
        raise UserError(f"The run folder '{run_dir}' cannot be read ({error.strerror or error}).") from error
    others = [name for name in there if name != _LOCK and images.leftover_of(name) not in _WRITTEN]
    if others and "options.json" not in others:
        raise UserError(f"The run folder '{run_dir}' holds files that are not from a run; choose a new folder.")
    with contextlib.ExitStack() as on_error:
        lock = on_error.enter_context(_lock(run_dir))
        # The folder is ours, so the process that was writing these was killed.
        for name in _WRITTEN:
            images.remove_leftovers(run_dir / name)
        if not has_begun(run_dir):
            (run_dir / "noise.json").unlink(missing_ok=True)  # of another training, which ended before its first step
        options = _write_or_compare(run_dir, options)
        on_error.pop_all()
    return lock, options


def _lock(run_dir):
    """The lock of the folder; the file that is locked names this process."""
    path = run_dir / _LOCK
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        path.touch()
        lock = locks.Lock(path)
    except BlockingIOError:
        owner = path.read_text().strip() or "another process"
        raise UserError(f"The run '{run_dir}' is already being trained by {owner}.") from None
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror or error}).") from error
    if lock.refused:
        images.warn(f"{path} cannot be locked ({lock.refused}); make sure that no other process trains this run.")
    with contextlib.suppress(OSError):  # a full disk: the name is lost, not the lock
        path.write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    return lock


def write_options(run_dir, options):
    """Writes options.json."""
    images.write_text(pathlib.Path(run_dir) / "options.json", json.dumps(options.to_dict(), indent=2) + "\n")


def _write_or_compare(run_dir, options):
    """The options of the folder: these, or those already there, which must agree if a checkpoint belongs to them."""
    if not (run_dir / "options.json").exists():
        write_options(run_dir, options)
        return options
    existing = read_options(run_dir)
    planned = options
    if options.budget and existing.planned:
        # The first start has measured how many images fit into the budget.
        same = [dataclasses.replace(s, images=None) for s in existing.stages] == list(options.stages)
        planned = dataclasses.replace(options, stages=existing.stages) if same else options
    there, asked = _flat(existing.to_dict()), _flat(planned.to_dict())
    differing = [key for key in asked if there[key] != asked[key]]
    if differing and not has_begun(run_dir):
        write_options(run_dir, options)
        return options
    if differing:
        had = ", ".join(f"{key}={there[key]}" for key in differing)
        got = ", ".join(f"{key}={asked[key]}" for key in differing)
        raise UserError(f"The run '{run_dir}' was started with other options: expected {had}, received {got}.")
    return planned


def _flat(options):
    return {k: v for k, v in options.items() if k != "experiment"} | options["experiment"]
