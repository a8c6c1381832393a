"""The result of a file in pieces on disk, so that a second start goes on where the first one ended.

They lie in a hidden folder beside the target: an array for each plane, and a line for each piece that is done.
"""

import contextlib
import json
import os
import pathlib
import shutil

import numpy as np

from ssdn_tf.data import images, locks
from ssdn_tf.errors import Interrupted, UserError


class Pieces:
    """Arrays on disk, and which pieces of them are done.

    A context: at its end, or after a UserError, the pieces are deleted. They stay where something else ends it, such as
    Interrupted or Ctrl-C.

    Args:
        target: the file that is written from them in the end.
        key: what the result depends on, JSON; with another one, what is there is thrown away.

    Raises:
        UserError: the file system refuses, or another process is at work on the target.
    """

    def __init__(self, target, key):
        self.target = pathlib.Path(target)
        self.folder = _folder(self.target)
        self._log = self.folder / "done.jsonl"
        self._arrays = {}
        self._lock = self._locked()
        lines = self._lines()
        if not lines or lines[0] != key:
            self._begin(key)
            lines = [key]
        self._done = {(line["plane"], line["piece"]): line["noise"] for line in lines[1:]}

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        if kind is None or (issubclass(kind, UserError) and not issubclass(kind, Interrupted)):
            shutil.rmtree(self.folder, ignore_errors=True)
        self.close()

    def close(self):
        """Lets go of the lock."""
        self._arrays = {}
        self._lock.close()

    def _locked(self):
        """The lock of the folder, which is made if it is not there.

        A process that has just finished deletes the folder, before we lock it or after; then there is another try.
        """
        while True:
            with self._errors():
                self.folder.mkdir(parents=True, exist_ok=True)
                try:
                    lock = locks.Lock(self.folder)
                except BlockingIOError:
                    raise UserError(f"{self.target} is being written by another process.") from None
                except FileNotFoundError:
                    continue
            if lock.is_of(self.folder):
                return lock
            lock.close()

    def _begin(self, key):
        try:
            with self._errors():
                for path in self.folder.iterdir():
                    path.unlink()
            self._write(key)
        except UserError:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.close()
            raise

    def allocate(self, name, shape, dtype):
        """Makes room on disk for the array `name`, if it is not there."""
        path = self.folder / f"{name}.npy"
        if not path.exists():
            with self._errors():
                _allocate(path, shape, dtype)

    def array(self, name, shape, dtype):
        """The array `name`, on disk, to write to until `finish`; new, if it is not there."""
        if name not in self._arrays:
            self.allocate(name, shape, dtype)
            self._arrays[name] = self.find(name)
        return self._arrays[name]

    def find(self, name):
        """The array `name`, or None if it is not there. It keeps a file open as long as somebody keeps it."""
        path = self.folder / f"{name}.npy"
        if not path.exists():
            return None
        with self._errors():
            return np.lib.format.open_memmap(path, "r+")

    def find_each(self, name, numbers):
        """The arrays `name-0` and so on, one after the other: a system has few open files for a process."""
        return (self.find(f"{name}-{number}") for number in numbers)

    def done(self, plane):
        """{number of a piece: noise dict} of a plane."""
        return {piece: noise for (number, piece), noise in self._done.items() if number == plane}

    def finish(self, plane, piece, noise):
        """Says that a piece is in the arrays, and lets go of them. noise: a dict, such as {"sigma": 25}."""
        for array in self._arrays.values():
            array.flush()
        self._arrays = {}  # what is mapped counts as memory of the process
        self._write({"plane": plane, "piece": piece, "noise": noise})
        self._done[plane, piece] = noise

    def _lines(self):
        """What the log says; lines that were cut off are left out."""
        found = []
        try:
            text = self._log.read_text(errors="replace")
        except OSError:
            return found
        for line in text.split("\n"):
            with contextlib.suppress(ValueError):
                found.append(json.loads(line))
        return found

    def _write(self, line):
        with self._errors(), self._log.open("a") as file:
            file.write("\n" + json.dumps(line))  # first the end of the last line, which may have been cut off

    @contextlib.contextmanager
    def _errors(self):
        """What the file system says, as a UserError."""
        try:
            yield
        except OSError as error:
            raise UserError(f"{self.target} cannot be written: {images.reason(error)}.") from error


def remove_left(target):
    """Deletes the pieces of a target, unless a process is at work on them."""
    folder = _folder(target)
    with contextlib.suppress(OSError), locks.Lock(folder):
        shutil.rmtree(folder, ignore_errors=True)


def _folder(target):
    return target.with_name(f".{target.name}.partial")


def _allocate(path, shape, dtype):
    """Makes an .npy file with its whole size on disk: writing to a memory map on a full disk would end the process."""
    temporary = path.with_suffix(".new")
    array = np.lib.format.open_memmap(temporary, "w+", np.dtype(dtype), tuple(shape))
    size = array.nbytes + array.offset
    del array
    with temporary.open("r+b") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
    temporary.rename(path)
