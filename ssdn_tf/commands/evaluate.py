"""evaluate.py: measures a denoiser by the paper's protocol."""

import dataclasses
import pathlib
import sys

from absl import flags

from ssdn_tf.commands import cli, level_flags
from ssdn_tf.denoisers.experiments import Experiment
from ssdn_tf.errors import UserError
from ssdn_tf.training import folder as runs

TEXT = """Measures a denoiser by the paper's protocol, and leaves pictures to look at.

    python evaluate.py                                                newest run, held-out sample photographs
    python evaluate.py --dataset=set14 --data_dir=DIR                 newest run
    python evaluate.py --dataset=kodak,bsd300 --data_dir=DIR --model=runs/00003-... --repeats=1
    python evaluate.py --model=none --baseline=cbm3d --sigma=25 --dataset=DIR
"""


def evaluate():
    sys.exit(cli.execute(main, define, TEXT))


def define(values):
    """The flags of evaluate.py."""
    with cli.group(values, "Model"):
        flags.DEFINE_string(
            "model", None, "folder of a run or of a SavedModel, or a published network file; none: only the --baseline "
            "(default: the newest run)", flag_values=values,
        )  # fmt: skip
        flags.DEFINE_string("runs", "runs", "folder of the runs, for the newest", flag_values=values)
        flags.DEFINE_enum("baseline", None, ("cbm3d",), "another denoiser on the same noise", flag_values=values)
    with cli.group(values, "Data"):
        cli.data_dir_flag(values)
        flags.DEFINE_list(
            "dataset", ["sample"], "kodak, bsd300, set14, sample, or folders of clean pictures", flag_values=values
        )
        flags.DEFINE_enum(
            "pad", "image", ("image", "set_square"),
            "each picture to its own next multiples of 32, or all to one square, as published; it changes the noise",
            flag_values=values,
        )  # fmt: skip
    with cli.group(values, "Noise"):
        level_flags.define(values, " (default: the levels that the model was trained for)")
        flags.DEFINE_integer(
            "repeats", None, "noise draws for each picture (default: kodak 10, bsd300 3, set14 20, others 1)",
            lower_bound=1, flag_values=values,
        )  # fmt: skip
        flags.DEFINE_integer("seed", 1, "seed of the noise", lower_bound=0, flag_values=values)
    with cli.group(values, "Output"):
        flags.DEFINE_string(
            "output", None, "folder for results.json and pictures (default: evaluation, in the run's folder for a run)",
            flag_values=values,
        )  # fmt: skip
        flags.DEFINE_integer("pictures", 2, "pictures of each set to write", lower_bound=0, flag_values=values)


def main(values):
    """Flags to results.json and a table; the exit code."""
    from ssdn_tf.evaluation import protocol, report

    predictor = _predictor(values)
    tested = _tested(values, predictor.experiment if predictor else Experiment())
    with cli.errors_about("dataset"):
        sets = [protocol.image_set(name, values.data_dir) for name in values.dataset]
    labels = [image_set.label for image_set in sets]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"--dataset: expected each name once, received '{label}' {labels.count(label)} times.")
    denoisers = [protocol.model_denoiser(predictor)] if predictor else []
    if values.baseline:
        with cli.errors_about("baseline"):
            denoisers.append(protocol.cbm3d_denoiser(tested))
    output = _output(values, predictor)
    results = []
    for image_set in sets:
        case = protocol.Protocol(tested, image_set, values.repeats or image_set.repeats, values.seed, values.pad)
        results += [protocol.evaluate(case, denoiser, output, values.pictures) for denoiser in denoisers]
    model = str(predictor.source.path) if predictor else None
    summary = {"run": model, "seed": values.seed, "pad": values.pad, "results": results}
    report.write_json(output / "results.json", summary)
    print("\n" + report.table(results))
    print(f"\nResults: {output / 'results.json'}, with pictures in the same folder.")
    return 0


def _predictor(values):
    """The Predictor that the flags ask for, or None for a baseline alone."""
    from ssdn_tf.inference import predictor

    if values.model == "none":
        if not values.baseline:
            raise UserError("expected --baseline with --model=none, received none.")
        return None
    return predictor.load(values.model or runs.newest_run(values.runs))


def _tested(values, experiment):
    """The Experiment to draw noise for: that of the model, with the levels of the test."""
    levels = level_flags.read(values, experiment.noise) or (experiment.low, experiment.high)
    if levels[0] is None:
        raise UserError(
            f"expected {level_flags.choice(experiment.noise)}, as the model does not say what noise level it was "
            "trained for, received none."
        )
    return dataclasses.replace(experiment, low=levels[0], high=levels[1])


def _output(values, predictor):
    # Nothing is written into a SavedModel: a server may watch its folder.
    is_run = predictor is not None and predictor.source.kind == "run"
    return pathlib.Path(values.output or (predictor.source.path / "evaluation" if is_run else "evaluation"))
