"""Locks on files and folders, which the kernel releases when the process ends, even by SIGKILL."""

import contextlib
import os

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


class Lock:
    """A lock on a file or folder that is there; no other Lock on it can be made before this one is closed.

    A context, which closes it at the end.

    refused: why there is no lock, where the system or the file system has none; else None.

    Raises:
        BlockingIOError: another Lock holds it, of this process or another one.
        OSError: it is not there, or cannot be opened.
    """

    def __init__(self, path):
        self._open = self.refused = None
        if fcntl is None:
            self.refused = "this system has no flock"
            return
        # A folder can be opened for reading only; for a lock on a file, NFS asks for writing.
        self._open = os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR)
        try:
            fcntl.flock(self._open, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise
        except OSError as error:
            self.refused = error.strerror or str(error)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def is_of(self, path):
        """True if what is locked is what is at the path now."""
        if self._open is None:
            return True
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(self._open), os.stat(path))
        return False

    def close(self):
        """Lets go of it."""
        if self._open is not None:
            os.close(self._open)
            self._open = None

    __del__ = close
