"""The main of export/savedmodel.py: a run, or a published network file, to a SavedModel."""

import json
import os
import pathlib
import sys

from absl import flags

from ssdn_tf.commands import cli
from ssdn_tf.errors import UserError

TEXT = """Turns a run, or a published network file, into a SavedModel for TensorFlow Serving or any TensorFlow.

    python export/savedmodel.py --output=models/ssdn                              newest run -> models/ssdn/1
    python export/savedmodel.py --run=runs/00003-... --output=models/ssdn
    python export/savedmodel.py --official=network-00013-gauss25-blindspot-sigma_known.pickle --output=models/official
"""


def export():
    # A SavedModel is TensorFlow's, whatever backend a run was trained with; the weights suit all.
    os.environ["KERAS_BACKEND"] = "tensorflow"
    sys.exit(cli.execute(main, define, TEXT, needs_flags=True))


def define(v):
    flags.DEFINE_string("run", None, "folder of a run (default: the newest)", flag_values=v)
    flags.DEFINE_string("official", None, "a published network file, instead of a run", flag_values=v)
    flags.DEFINE_string("output", None, "folder for the versions of the model: 1, 2, ...", flag_values=v)
    flags.DEFINE_string("runs", "runs", "folder of the runs", flag_values=v)


def main(v):
    """Flags to a SavedModel; the exit code."""
    if not v.output:
        raise UserError("expected --output=DIR, received none.")
    if v.run and v.official:
        raise UserError("expected --run or --official, received both.")
    cli.load_keras()
    from ssdn_tf.serving import saved_model

    experiment, model, more = _official(v.official) if v.official else _run(v.run, v.runs)
    try:
        place = saved_model.export(model, experiment, saved_model.model_card(experiment, **more), v.output)
    except ValueError as error:
        raise UserError(f"--output: {error}") from error
    print(f"{place}: {experiment.name}. Its inputs and outputs: export/README.md")
    return 0


def _run(run, runs):
    """(Experiment, inference model, what the model card says beside the experiment) of a run, or of the newest."""
    from ssdn_tf.serving import saved_model
    from ssdn_tf.training import folder
    from ssdn_tf.training import run as training

    run = pathlib.Path(run) if run else folder.newest_run(runs)
    options, model, position = training.load_inference(run)
    path = run / "history.jsonl"
    history = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    card = saved_model.run_card(options, position["step"] * options.batch_size, history)
    return options.experiment, model, card


def _official(path):
    """(Experiment, inference model, what the model card says beside the experiment) of a published network file."""
    from ssdn_tf.inference import official

    network = official.read(path)
    print(official.LICENCE)
    card = {"published_network": network.name, "licence": official.LICENCE}
    return network.experiment, official.denoiser(network).inference, card
