"""The flag --model: which network a command uses."""

from absl import flags

from ssdn_tf.commands import cli
from ssdn_tf.errors import UserError
from ssdn_tf.inference import precision


def define(values, more=""):
    """Defines --model in a FlagValues. more: what else it takes."""
    flags.DEFINE_string(
        "model", None, "a trained network of the package (--model=list shows them), the folder of a run or of a "
        f"SavedModel, or a published network file{more} (default: the network of the package for Gaussian and Poisson "
        "noise)", flag_values=values,
    )  # fmt: skip


def define_ensemble(values):
    """Defines --ensemble in a FlagValues."""
    flags.DEFINE_integer(
        "ensemble", 1, "average over this many flips and transposes of each picture, 1 to 8: better, and that many "
        "times slower", lower_bound=1, upper_bound=8, flag_values=values,
    )  # fmt: skip


def define_precision(values, default=precision.DEFAULT):
    """Defines --precision in a FlagValues."""
    flags.DEFINE_enum(
        "precision", default, precision.CHOICES, "arithmetic of the network; auto: bfloat16 for the compact network "
        "on a CPU with AMX, which is twice as fast, else float32", flag_values=values,
    )  # fmt: skip


def check_saved_model(values, predictor):
    """Raises UserError for what a SavedModel cannot do: --ensemble, as it gives no prior to average, and another
    --precision than that of its export."""
    if predictor.source.kind != "saved_model":
        return
    if values.ensemble > 1:
        raise UserError("--ensemble: expected a run or a network of the package, received a SavedModel.")
    exported = predictor.source.details.get("precision", "float32")  # older ones do not say
    if values["precision"].present and values.precision not in ("auto", exported):
        raise UserError(
            f"--precision: expected {exported}, in which the SavedModel was exported, received {values.precision}."
        )


def is_list(values):
    """True for --model=list, after the networks are printed."""
    if values.model != "list":
        return False
    from ssdn_tf.inference import pretrained

    print(pretrained.table())
    return True


def load(values, channels=3):
    """The Predictor of --model.

    channels: of the picture, which chooses between the default networks for colour and for gray.

    Raises:
        UserError: there is no such model, or it is damaged.
    """
    from ssdn_tf.inference import pretrained

    return load_path(values.model or pretrained.DEFAULTS[channels])


def load_path(path):
    """`predictor.load`, whose errors name the flag."""
    from ssdn_tf.inference import predictor

    with cli.errors_about("model"):
        return predictor.load(path)
