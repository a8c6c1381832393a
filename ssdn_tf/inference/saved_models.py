"""SavedModels written by `ssdn_tf.serving`, loaded back. TensorFlow is imported by `load`."""

import dataclasses
import json
import pathlib

from ssdn_tf.denoisers.experiments import Experiment
from ssdn_tf.errors import UserError

CARD = "assets.extra/model_card.json"


@dataclasses.dataclass
class Served:
    """A loaded SavedModel, called like a Keras inference model.

    module: what `tf.saved_model.load` returned.
    input: names of the inputs.
    """

    module: object
    input: tuple

    def predict_on_batch(self, inputs):
        """Arrays by name in, arrays by name out; all outputs that the SavedModel has."""
        import tensorflow as tf

        signatures = self.module.signatures
        function = signatures["posterior" if "posterior" in signatures else "serving_default"]
        tensors = {name: tf.constant(inputs[name], tf.float32) for name in self.input}
        if "noise_parameter" in tensors:
            values = tf.reshape(tensors["noise_parameter"], [len(inputs["noisy"]), -1])
            tensors["noise_parameter"] = values[:, 0] if values.shape[1] == 1 else values
        return {name: value.numpy() for name, value in function(**tensors).items()}


def find(path):
    """The SavedModel at `path` or, if `path` is a folder of versions, the newest of them; None if there is none."""
    path = pathlib.Path(path)
    if (path / "saved_model.pb").exists():
        return path
    versions = [p for p in path.glob("[0-9]*") if p.name.isdigit() and (p / "saved_model.pb").exists()]
    return max(versions, key=lambda p: int(p.name), default=None)


def load(path):
    """Loads a SavedModel.

    Returns:
        (model card as a dict, Served).

    Raises:
        UserError: the folder is not a SavedModel with a model card of this package, or it is damaged.
    """
    import tensorflow as tf

    path = pathlib.Path(path)
    try:
        card = json.loads((path / CARD).read_text())
        Experiment(**card["experiment"])
        module = tf.saved_model.load(str(path))
        inputs = tuple(module.signatures["serving_default"].structured_input_signature[1])
    except (OSError, ValueError, TypeError, KeyError, tf.errors.OpError) as error:
        raise UserError(
            f"expected a SavedModel written by export/savedmodel.py, received '{path}', which cannot be read ({error})."
        ) from error
    return card, Served(module, inputs)
