"""What the commands share: running a main, groups of flags, the flags of a noise level, errors as one sentence."""

import contextlib
import math
import os
import sys

# TensorFlow reads both when it is imported. oneDNN is off by default on some CPUs. Two lines of TensorFlow about
# missing CUDA drivers come before its log level applies; nothing turns them off.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import flags  # noqa: E402

from ssdn_tf.data import images  # noqa: E402
from ssdn_tf.denoisers.experiments import LEVEL_NAMES  # noqa: E402
from ssdn_tf.errors import UserError  # noqa: E402


def execute(main, define, text, argv=None, needs_flags=False):
    """Parses the flags, runs a main, and turns the user's errors into one sentence on stderr and an exit code.

    Args:
        main: function (FlagValues) -> exit code.
        define: function that defines the flags in a FlagValues.
        text: what --help shows above the flags.
        argv: default sys.argv.
        needs_flags: show the help if there are no flags at all.

    Returns:
        The exit code.
    """
    argv = sys.argv if argv is None else argv
    values = flags.FlagValues()
    flags.DEFINE_bool("help", False, "show this text", short_name="h", flag_values=values)
    define(values)
    try:
        rest = values(argv)[1:]
        if values.help or (len(argv) == 1 and needs_flags):
            print(f"{text}\n{_help(values)}")
            return 0
        if rest:
            raise UserError(f"expected flags (--name=value), received '{rest[0]}'.")
        return main(values)
    except flags.Error as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped.", file=sys.stderr)
        return 130
    return 1


@contextlib.contextmanager
def errors_about(flag):
    """Adds the name of a flag to errors of the library about its value."""
    try:
        yield
    except (UserError, ValueError) as error:
        raise UserError(f"--{flag}: {error}") from error


@contextlib.contextmanager
def group(values, title):
    """--help shows the flags that are defined inside together, under this title."""
    before = set(values)
    yield
    for name in set(values) - before:
        values[name].group = title


def _help(values):
    """The flags by group, each with its default."""
    groups = {}
    for flag in dict.fromkeys(values[name] for name in values):  # a short name is a second key of its flag
        groups.setdefault(getattr(flag, "group", "Other"), []).append(flag)
    lines = []
    for title, members in sorted(groups.items(), key=lambda item: item[0] == "Other"):  # sorted is stable
        lines.append(f"{title}:")
        for flag in members:
            name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
            value = ",".join(flag.default) if isinstance(flag.default, list) else flag.default
            default = "" if value in (None, False) else f" (default: {value})"
            text = f"{name}: {' '.join(flag.help.split())}{default}"
            lines.append(flags.text_wrap(text, length=110, indent=6 * " ", firstline_indent="  "))
        lines.append("")
    return "\n".join(lines)


# ---------------------------------------------------------------- noise levels


def level_flags(v, where):
    flags.DEFINE_string("sigma", None, f"Gaussian noise std of 255, 25 or (a range) 5,50{where}", flag_values=v)
    flags.DEFINE_string("lam", None, f"Poisson noise: photons at white, 30 or 5,50{where}", flag_values=v)
    flags.DEFINE_string("alpha", None, f"impulse noise: share of replaced pixels, 0.5 or 0,1{where}", flag_values=v)


def parse_levels(noise, text):
    """(low, high) from '25' or '5,50', checked against what the noise model allows.

    Raises:
        UserError: no number, out of range, or the range is upside down.
    """
    name = LEVEL_NAMES[noise]
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
    for other, name in LEVEL_NAMES.items():
        if other != noise and v[name].value is not None:
            raise UserError(
                f"--{name}: expected --{LEVEL_NAMES[noise]} with {noise} noise, received the flag of {other} noise."
            )
    text = v[LEVEL_NAMES[noise]].value
    return None if text is None else parse_levels(noise, text)


# ---------------------------------------------------------------- places


def place_flags(v):
    """Where runs and data sets are."""
    flags.DEFINE_string("runs", "runs", "folder of the runs", flag_values=v)
    data_dir_flag(v)


def data_dir_flag(values):
    """--data_dir"""
    flags.DEFINE_string(
        "data_dir", os.environ.get("SSDN_DATA_DIR"),
        "folder with kodak, BSDS300, Set14 (default: the environment variable SSDN_DATA_DIR)", flag_values=values,
    )  # fmt: skip
