"""What the commands share: running a main, the flags of folders, errors as one sentence."""

import importlib
import os
import sys
import tempfile

# Both are read when TensorFlow is loaded, so they come first. oneDNN is off by default on some CPUs.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import flags  # noqa: E402

from ssdn_tf.errors import UserError  # noqa: E402


def load_keras():
    """Imports Keras and its backend without the banners that TensorFlow's C++ part writes to
    stderr before its log level applies. They are shown if the import fails."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as banners:
        os.dup2(banners.fileno(), 2)
        try:
            importlib.import_module("ssdn_tf.training.run")
        except BaseException:
            banners.seek(0)
            os.write(stderr, banners.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def execute(main, define, text, argv=None, needs_flags=False):
    """Parses, runs, and turns errors of the user into a sentence and an exit code.

    Args:
        main: function (FlagValues) -> exit code.
        define: function that defines the flags in a FlagValues.
        text: what --help shows above the flags.
        argv: as sys.argv.
        needs_flags: without any, the help is shown.
    """
    argv = sys.argv if argv is None else argv
    values = flags.FlagValues()
    flags.DEFINE_bool("help", False, "this text", short_name="h", flag_values=values)
    define(values)
    try:
        rest = values(argv)[1:]
        if values.help or (len(argv) == 1 and needs_flags):
            print(f"{text}\nFlags:{values.get_help(prefix='  ')}")
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


# ---------------------------------------------------------------- places


def place_flags(v):
    """Where runs and data sets are."""
    flags.DEFINE_string("runs", "runs", "folder of the runs", flag_values=v)
    flags.DEFINE_string("data_dir", os.environ.get("SSDN_DATA_DIR"), "folder with kodak, BSDS300, Set14", flag_values=v)
