"""Run or published network file -> SavedModel. Everything is in ssdn_tf/serving.py."""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # this checkout's package, not another one

from ssdn_tf.commands import main  # noqa: E402

if __name__ == "__main__":
    main.export()
