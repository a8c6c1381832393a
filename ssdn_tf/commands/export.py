"""The main of export/savedmodel.py: a trained model to a SavedModel."""

import os
import sys

from absl import flags

from ssdn_tf.commands import cli, level_flags, model_flag
from ssdn_tf.errors import UserError
from ssdn_tf.inference import precision

TEXT = """Turns a trained model into a SavedModel for TensorFlow Serving or any TensorFlow.

    python export/savedmodel.py --output=models/ssdn                          the package's network -> models/ssdn/1
    python export/savedmodel.py --model=runs/00003-... --output=models/ssdn
    python export/savedmodel.py --model=network-00013-gauss25-blindspot-sigma_known.pickle --output=models/published
"""


def export():
    # A SavedModel is TensorFlow's, whatever backend a run was trained with; the weights suit all.
    os.environ["KERAS_BACKEND"] = "tensorflow"
    sys.exit(cli.execute(main, define, TEXT, needs_flags=True))


def define(values):
    model_flag.define(values)
    model_flag.define_precision(values, "float32")
    flags.DEFINE_string("output", None, "folder for the versions of the model: 1, 2, ...", flag_values=values)
    flags.DEFINE_enum(
        "parameter_source", None, ("known", "fitted"), "requests carry the noise level, or the SavedModel fits it to "
        "each picture (default: fitted for the networks of the package, known for other models that must be told)",
        flag_values=values,
    )  # fmt: skip
    level_flags.define(values, " (for a published network file whose name does not say it)")


def main(values):
    """Flags to a SavedModel; the exit code."""
    if model_flag.is_list(values):
        return 0
    if not values.output:
        raise UserError("expected --output=DIR, received none.")
    from ssdn_tf.serving import saved_model

    precision.use(values.precision)
    model = model_flag.load(values)
    if model.source.kind == "saved_model":
        raise UserError("--model: expected a run, a network of the package or a published file, received a SavedModel.")
    given = level_flags.given(values)
    if given and model.source.kind != "published":
        raise UserError(f"--{given[0]} is for a published network file; {model.experiment.name} says its own level.")
    details = {"run": _run, "published": _published, "pretrained": _pretrained}[model.source.kind](values, model)
    model = _with_source(values, model)
    dtype = model.model.get_layer("unet").compute_dtype
    card = saved_model.model_card(model.experiment, precision=dtype, **details)
    try:
        place = saved_model.export(model.model, model.experiment, card, values.output)
    except ValueError as error:
        raise UserError(f"--output: {error}") from error
    print(f"{place}: {model.experiment.name}. Its inputs and outputs: export/README.md")
    return 0


def _with_source(values, model):
    source = values.parameter_source
    if source is None and model.source.kind == "pretrained":
        source = "fitted"
    if source in (None, model.experiment.parameter_source):
        return model
    if not model.can_fit or not model.needs_level:
        raise UserError(f"--parameter_source={source}: {model.experiment.name} finds its noise level in its own way.")
    return model.with_source(source)


def _run(values, model):
    """What the model card says beside the experiment."""
    from ssdn_tf.evaluation import report
    from ssdn_tf.serving import saved_model
    from ssdn_tf.training.options import Options

    options, history = Options.from_dict(model.source.details["options"]), report.history(model.source.path)
    return saved_model.run_card(options, model.source.details["position"]["step"], history)


def _pretrained(values, model):
    return {name: model.source.details[name] for name in ("description", "licence", "training", "figures", "limits")}


def _published(values, model):
    from ssdn_tf.inference import published

    levels = level_flags.read(values, model.experiment.noise)
    if levels:
        with cli.errors_about(level_flags.names_of(model.experiment.noise)[0]):
            model.experiment = published.with_levels(model.experiment, *levels)
    print(model.source.details["licence"])
    return model.source.details
