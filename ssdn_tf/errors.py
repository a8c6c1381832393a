"""Errors that a user can cause and mend."""


class UserError(Exception):
    """Shown as one sentence on stderr, without a traceback; the exit code is 1."""
