"""evaluate.py: measures a denoiser by the paper's protocol."""

import dataclasses
import pathlib
import sys

from absl import flags

from ssdn_tf.commands import cli, level_flags, model_flag
from ssdn_tf.denoisers.experiments import Experiment
from ssdn_tf.errors import UserError
from ssdn_tf.inference import precision

TEXT = """Measures a denoiser by the paper's protocol, and leaves pictures to look at.

    python evaluate.py                                                 sample photographs, sigma 25
    python evaluate.py --dataset=set14 --data_dir=DIR
    python evaluate.py --lam=30 --parameter_source=fitted --dataset=kodak --repeats=1 --data_dir=DIR
    python evaluate.py --model=runs/00003-... --dataset=kodak,bsd300 --data_dir=DIR
    python evaluate.py --model=none --baseline=cbm3d,nlm --sigma=25 --dataset=DIR
"""

_ADDITIVE_TEST = (None, 25.0)  # sigma 25, of the paper's first rows


def evaluate():
    sys.exit(cli.execute(main, define, TEXT))


def define(values):
    """The flags of evaluate.py."""
    with cli.group(values, "Model"):
        model_flag.define(values, "; none: only the --baseline")
        model_flag.define_ensemble(values)
        model_flag.define_precision(values)
        flags.DEFINE_enum("channels", "3", ("3", "1"), "colour or gray, where no model says it", flag_values=values)
        flags.DEFINE_list(
            "baseline", [], "other denoisers on the same noise, with the same level: cbm3d, nlm (non-local means), "
            "wavelet (BayesShrink), median (5x5)", flag_values=values,
        )  # fmt: skip
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
        level_flags.define(values, " (default: the levels that the model was trained for; additive: --sigma=25)")
        flags.DEFINE_enum(
            "parameter_source", None, ("known", "fitted"), "the model is told the noise level of each picture, or it "
            "is fitted to the picture (default: known; models that learned a level have their own)", flag_values=values,
        )  # fmt: skip
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
        flags.DEFINE_bool(
            "report", False, "also write report.html there: pictures to compare in a browser, and the curves of a run",
            flag_values=values,
        )  # fmt: skip
        flags.DEFINE_integer("pictures", 2, "pictures of each set to write", lower_bound=0, flag_values=values)


def main(values):
    """Flags to results.json and a table; the exit code."""
    if model_flag.is_list(values):
        return 0
    from ssdn_tf.evaluation import page, protocol, report

    precision.use(values.precision)
    predictor = _predictor(values)
    tested = _tested(values, predictor.experiment if predictor else _of_baselines(values))
    if not values.dataset:
        raise UserError("--dataset: expected at least one set of pictures, received none.")
    with cli.errors_about("dataset"):
        sets = [protocol.image_set(name, values.data_dir) for name in values.dataset]
    labels = [image_set.label for image_set in sets]
    for label in labels:
        if labels.count(label) > 1:
            raise UserError(f"--dataset: expected each name once, received '{label}' {labels.count(label)} times.")
    denoisers = [_denoiser(values, predictor)] if predictor else []
    fitted = predictor if values.parameter_source == "fitted" else None
    with cli.errors_about("baseline"):
        denoisers += [protocol.baseline_method(name, tested, fitted) for name in _baselines(values)]
    output = _output(values, predictor)
    made = page.Page("Evaluation", page.HOW) if values.report else None
    summary = {"model": _named(predictor), "seed": values.seed, "pad": values.pad, "results": []}
    shown = max(page.SHOWN // (len(sets) * len(denoisers)), 1)
    for image_set in sets:
        case = protocol.Protocol(tested, image_set, values.repeats or image_set.repeats, values.seed, values.pad)
        for denoiser in denoisers:
            summary["results"].append(protocol.evaluate(case, denoiser, output, values.pictures, made, shown))
            report.write_json(output / "results.json", summary)  # what is done is kept if the rest fails
    print("\n" + report.table(summary["results"]))
    if made:
        if predictor and predictor.source.kind == "run":
            report.add_curves(made, predictor.source.path)
        made.write(output / "report.html")
    print(f"\nResults: {output / 'results.json'}, with pictures in the same folder.")
    return 0


def _named(predictor):
    """What is tested, as results.json has it: {"kind": a kind of `predictor.Source`, "name": path or name}, or None."""
    if predictor is None:
        return None
    source = predictor.source
    return {"kind": source.kind, "name": source.path.stem if source.kind == "pretrained" else str(source.path)}


def _baselines(values):
    from ssdn_tf.evaluation.baselines import BASELINES

    for name in values.baseline:
        if name not in BASELINES:
            raise UserError(f"expected some of {', '.join(BASELINES)}, received '{name}'.")
    return values.baseline


def _predictor(values):
    """The Predictor that the flags ask for, or None for a baseline alone."""
    if values.model == "none":
        if not values.baseline:
            raise UserError("expected --baseline with --model=none, received none.")
        if values.parameter_source == "fitted":
            raise UserError("--parameter_source=fitted: expected a model that finds the level, received --model=none.")
        return None
    return model_flag.load(values, int(values.channels))


def _denoiser(values, predictor):
    from ssdn_tf.evaluation import protocol

    source = values.parameter_source
    if source == "fitted" and not predictor.can_fit:
        raise UserError(f"--parameter_source=fitted: {predictor.experiment.name} cannot fit the noise.")
    if source == "known" and not predictor.needs_level:
        raise UserError(f"--parameter_source=known: {predictor.experiment.name} cannot be told the noise level.")
    model_flag.check_saved_model(values, predictor)
    return protocol.model_method(predictor, fitted=source == "fitted", ensemble=values.ensemble)


def _tested(values, experiment):
    """The Experiment to draw noise for: that of the model, with the levels of the test."""
    trained = (_ADDITIVE_TEST,) * 2 if experiment.noise == "additive" else (experiment.low, experiment.high)
    levels = level_flags.read(values, experiment.noise) or trained
    if levels[0] is None:
        raise UserError(
            f"expected {level_flags.choice(experiment.noise)}, as the model does not say what noise level it was "
            "trained for, received none."
        )
    return dataclasses.replace(experiment, low=levels[0], high=levels[1])


def _of_baselines(values):
    """The Experiment of baselines alone: noise of the kind that the flags say, else Gaussian noise of sigma 25."""
    kind, low, high = level_flags.read_any(values) or ("gaussian", 25.0, 25.0)
    return Experiment(noise=kind, low=low, high=high, channels=int(values.channels))


def _output(values, predictor):
    # Nothing is written into a SavedModel: a server may watch its folder.
    is_run = predictor is not None and predictor.source.kind == "run"
    return pathlib.Path(values.output or (predictor.source.path / "evaluation" if is_run else "evaluation"))
