"""Turns a run or a published network file into a SavedModel; see ssdn_tf/commands/export.py."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # this checkout's package, not another one

from ssdn_tf.commands import export  # noqa: E402

if __name__ == "__main__":
    export.export()
