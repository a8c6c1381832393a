"""Errors that a user can cause and mend."""

import contextlib


class UserError(Exception):
    """Shown as one sentence on stderr, without a traceback; the exit code is 1."""


class Interrupted(UserError):
    """What ends the work on a file for now: what is done of it is kept, and the same command goes on."""


@contextlib.contextmanager
def optional(need, extra, note=""):
    """An import inside, of a package that need not be installed, fails with a UserError.

    Args:
        need: start of the sentence, such as "Zarr needs the package zarr".
        extra: of pyproject.toml that brings it.
        note: what to know before installing it.
    """
    try:
        yield
    except ImportError as error:
        raise UserError(
            f'{need} (pip install "ssdn_tf[{extra}]"{note}), which cannot be imported ({error}).'
        ) from error
