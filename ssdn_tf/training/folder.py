"""What a training run is asked to do, and the folder that it lives in:

options.json      what was asked for; the same command goes on with the run
checkpoint.npz    weights, optimizer, position
history.jsonl     one line a report
events.out.*      the same for TensorBoard
lock              held by the process that trains; names it
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import re
import socket

from ssdn_tf.data import images
from ssdn_tf.denoisers.experiments import Experiment
from ssdn_tf.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# What `images.write_whole` leaves when it is killed.
_TEMPORARY = re.compile(r"\.(options\.json|checkpoint\.npz|history\.jsonl)\.[0-9a-f]{32}")
_LOCK = "lock"


@dataclasses.dataclass(frozen=True)
class Options:
    """What decides the result of a run; a run directory belongs to one set of options.

    clip_norm: gradients longer than this (all weights together) are shortened to it; 0: never.
    final_crop, final_images: side of the last crops, and how many they are. A network that has
        seen small crops only does not know a picture whose border is far away.
    start, rate: of a learned noise parameter (`parameters.GlobalParameter`); start "estimate"
        takes a robust estimate from noisy crops, "published" raw 0, a number is a level.
    precision: of the network's arithmetic in training; weights and likelihood are float32 or better.
    """

    experiment: Experiment
    train_data: str = "sample"
    noisy_already: bool = False
    train_images: int = 2_000_000
    batch_size: int = 4
    crop: int = 256
    final_crop: int = 256
    final_images: int = 0
    learning_rate: float = 3e-4
    clip_norm: float = 0.0
    seed: int = 0
    start: str = "published"
    rate: float = 1.0
    validation: str = "none"
    warm_start: str = ""
    width: int = 48
    precision: str = "float32"

    def to_dict(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values):
        return cls(**values | {"experiment": Experiment(**values["experiment"])})

    @property
    def steps(self):
        return math.ceil(self.train_images / self.batch_size)

    @property
    def final_step(self):
        """The first step on crops of `final_crop`."""
        return math.ceil((self.train_images - self.final_images) / self.batch_size)

    def pixels(self, step):
        """Pixels that the first `step` steps train on."""
        first, final = min(step, self.final_step), max(step - self.final_step, 0)
        return self.batch_size * (first * self.crop**2 + final * self.final_crop**2)


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
        raise UserError(
            f"expected a finished or running training below '{root}', received none; train first, or give --model."
        )
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
        raise UserError(
            f"expected the folder of a run, received '{run_dir}', whose options.json cannot be read ({error})."
        ) from error


def claim(run_dir, options):
    """Makes the folder of a run, or checks that an existing one belongs to these options.

    Returns:
        The lock of the folder, an open file: no other process can claim the folder before it is
        closed or this process ends, however it ends.

    Raises:
        UserError: it belongs to others, holds something that is no run, or is being trained.
    """
    run_dir = pathlib.Path(run_dir)
    try:
        if run_dir.is_file():
            raise UserError(f"--run_dir: expected a folder, received the file '{run_dir}'.")
        there = [path.name for path in run_dir.iterdir()] if run_dir.exists() else []
    except OSError as error:
        raise UserError(
            f"--run_dir: expected a folder to look into, received '{run_dir}' ({error.strerror or error})."
        ) from error
    others = [name for name in there if name != _LOCK and not _TEMPORARY.fullmatch(name)]
    if others and "options.json" not in others:
        raise UserError(
            f"--run_dir: expected a new folder or that of a run, received '{run_dir}', which holds other files."
        )
    with contextlib.ExitStack() as on_error:
        lock = on_error.enter_context(_lock(run_dir))
        # The folder is ours, so whoever was writing these was killed.
        for path in run_dir.iterdir():
            if _TEMPORARY.fullmatch(path.name):
                path.unlink()
        _settle_options(run_dir, options)
        on_error.pop_all()
    return lock


def _lock(run_dir):
    """The open file whose lock the kernel takes back when the process ends, also by SIGKILL."""
    path = run_dir / _LOCK
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise UserError(f"{path}: expected to write it, received '{error.strerror or error}'.") from error
    try:
        if fcntl is None:
            raise OSError("this system has no flock")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip() or "another process"
        file.close()
        raise UserError(
            f"--run_dir: expected a run that nobody is training, received '{run_dir}', which {owner} is training."
        ) from None
    except OSError as error:
        images.warn(
            f"{path}: cannot be locked ({error.strerror or error}); make sure that nobody else trains this run."
        )
    with contextlib.suppress(OSError):  # a full disk: the name is lost, not the lock
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
    return file


def _settle_options(run_dir, options):
    """Writes options.json, or compares it."""
    if not (run_dir / "options.json").exists():
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
