"""The main of export/savedmodel.py: a run, or a published network file, to a SavedModel."""

import json
import os
import sys

from absl import flags

from ssdn_tf.commands import cli, level_flags
from ssdn_tf.errors import UserError
from ssdn_tf.noise.levels import LEVELS

TEXT = """Turns a run, or a published network file, into a SavedModel for TensorFlow Serving or any TensorFlow.

    python export/savedmodel.py --output=models/ssdn                              newest run -> models/ssdn/1
    python export/savedmodel.py --run=runs/00003-... --output=models/ssdn
    python export/savedmodel.py --official=network-00013-gauss25-blindspot-sigma_known.pickle --output=models/official
"""


def export():
    # A SavedModel is TensorFlow's, whatever backend a run was trained with; the weights suit all.
    os.environ["KERAS_BACKEND"] = "tensorflow"
    sys.exit(cli.execute(main, define, TEXT, needs_flags=True))


def define(values):
    flags.DEFINE_string("run", None, "folder of a run (default: the newest)", flag_values=values)
    flags.DEFINE_string("official", None, "a published network file, instead of a run", flag_values=values)
    flags.DEFINE_string("output", None, "folder for the versions of the model: 1, 2, ...", flag_values=values)
    level_flags.define(values, " (for --official, where the name of the file does not say it)")
    flags.DEFINE_string("runs", "runs", "folder of the runs", flag_values=values)


def main(values):
    """Flags to a SavedModel; the exit code."""
    if not values.output:
        raise UserError("expected --output=DIR, received none.")
    if values.run and values.official:
        raise UserError("expected --run or --official, received both.")
    from ssdn_tf.serving import saved_model

    model, details = _published(values) if values.official else _run(values)
    card = saved_model.model_card(model.experiment, **details)
    try:
        place = saved_model.export(model.model, model.experiment, card, values.output)
    except ValueError as error:
        raise UserError(f"--output: {error}") from error
    print(f"{place}: {model.experiment.name}. Its inputs and outputs: export/README.md")
    return 0


def _run(values):
    """(Predictor, what the model card says beside the experiment) of a run, or of the newest."""
    from ssdn_tf.inference import predictor
    from ssdn_tf.serving import saved_model
    from ssdn_tf.training import folder
    from ssdn_tf.training.options import Options

    model = predictor.from_run(values.run or folder.newest_run(values.runs))
    path = model.source.path / "history.jsonl"
    history = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    options = Options.from_dict(model.source.details["options"])
    return model, saved_model.run_card(options, model.source.details["position"]["step"], history)


def _published(values):
    """(Predictor, what the model card says beside the experiment) of a published network file."""
    from ssdn_tf.inference import predictor, published

    model = predictor.from_published(values.official)
    levels = level_flags.read(values, model.experiment.noise)
    if levels:
        with cli.errors_about(LEVELS[model.experiment.noise].name):
            model.experiment = published.with_levels(model.experiment, *levels)
    print(model.source.details["licence"])
    return model, model.source.details
