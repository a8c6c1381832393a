"""What the commands share: running a main, groups of flags, errors as one sentence."""

import contextlib
import math
import os
import sys
import textwrap

# TensorFlow reads both when it is imported. oneDNN is off by default on some CPUs. Two lines of TensorFlow about
# missing CUDA drivers come before its log level applies; nothing turns them off.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import flags  # noqa: E402
from PIL import Image  # noqa: E402

from ssdn_tf.data import images  # noqa: E402
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
    images.said.clear()
    Image.MAX_IMAGE_PIXELS = None  # the user names the files, so a large one is no attack
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a name that the terminal cannot show must not end the command
            stream.reconfigure(errors="backslashreplace")
    try:
        define(values)
        rest = values(argv)[1:]
        _refuse_infinity(values)
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
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        print(f"error: {name}{images.reason(error)}.", file=sys.stderr)
    except KeyboardInterrupt:
        print("stopped.", file=sys.stderr)
        return 130
    return 1


def _refuse_infinity(values):
    """Raises UserError for inf and nan, which flags of numbers take, whatever their bounds."""
    for name in values:
        if isinstance(values[name].value, float) and not math.isfinite(values[name].value):
            raise UserError(f"--{name}: expected a finite number, received {values[name].value}.")


def parse(define, argv):
    """The FlagValues of another command, which this one runs."""
    values = flags.FlagValues()
    define(values)
    values(argv)
    return values


def called(name):
    """How to call a command of the project, as this one was called: python denoise.py, or ssdn-denoise."""
    installed = os.path.basename(sys.argv[0]).startswith("ssdn-")
    return [f"ssdn-{name}"] if installed else ["python", f"{name}.py"]


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
            default = "" if value is None or value is False or value == "" else f" (default: {value})"
            text = f"{name}: {' '.join(flag.help.split())}{default}"
            indents = {"initial_indent": "  ", "subsequent_indent": 6 * " "}
            lines.append(textwrap.fill(text, 110, break_on_hyphens=False, **indents))
        lines.append("")
    return "\n".join(lines)


# ---------------------------------------------------------------- places


def data_dir_flag(values):
    """--data_dir"""
    flags.DEFINE_string(
        "data_dir", os.environ.get("SSDN_DATA_DIR"),
        "folder with kodak, BSDS300, Set14, or of TFDS (default: the environment variable SSDN_DATA_DIR)",
        flag_values=values,
    )  # fmt: skip


def range_flag(values, what, black="black is higher where the noise shows an offset"):
    """--range. what: of which a sample is measured; black: when it is found by the noise."""
    flags.DEFINE_string(
        "range", None, "intensities of black and white, such as 100,4095 (default: 0,255 for 8 bit, else measured over "
        f"a sample of the {what}; {black})", flag_values=values,
    )  # fmt: skip


def parse_range(text):
    """(black, white) of --range such as "100,4095", or None.

    Raises:
        UserError: not two numbers, the first below the second.
    """
    if text is None:
        return None
    try:
        return images.checked_range(text.split(","))
    except UserError:
        raise UserError(f"--range: expected black,white such as 100,4095, received '{text}'.") from None
