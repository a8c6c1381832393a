"""A run's state in one file: weights, optimizer and position, by the variables' names."""

import json
import zipfile

import numpy as np

from ssdn_tf.data.images import write_whole
from ssdn_tf.errors import UserError

_POSITION = "position"


def named_variables(*owners):
    """{path: variable} of models and optimizers, in a stable order."""
    return {variable.path: variable for owner in owners for variable in owner.variables}


def save(path, variables, position):
    """Writes the variables and a JSON-able `position`; the file is whole or absent.

    Raises:
        UserError: the disk refuses; what was at `path` is kept.
    """
    arrays = {name: np.asarray(variable) for name, variable in variables.items()}
    arrays[_POSITION] = np.array(json.dumps(position))
    write_whole(path, lambda file: np.savez(file, **arrays))


def load(path, variables):
    """Sets the variables from a file made by `save`, all or (in case of an error) none.

    A file may hold more variables than are asked for (the optimizer's, for inference).

    Returns:
        The position.

    Raises:
        UserError: the file is missing or damaged, or belongs to another model.
    """
    return _assign(path, _read(path), variables)


def _assign(path, arrays, variables):
    """`load`, of the arrays that are in the file."""
    missing = [name for name in variables if name not in arrays]
    unlike = [n for n, v in variables.items() if n in arrays and arrays[n].shape != tuple(v.shape)]
    if missing or unlike:
        name = (missing + unlike)[0]
        raise UserError(
            f"{path}: expected a checkpoint of this model, received one whose '{name}' is missing or differs in shape."
        )
    try:
        position = json.loads(str(arrays[_POSITION]))
        values = {n: arrays[n].astype(v.dtype, casting="same_kind") for n, v in variables.items()}
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: expected a checkpoint, received a damaged file ({error}).") from error
    for name, variable in variables.items():
        variable.assign(values[name])
    return position


def load_weights(path, model):
    """Sets a model's weights from the checkpoint of a training: the averaged ones where there are some.

    Returns:
        The position of the training.

    Raises:
        UserError: as `load`.
    """
    arrays = _read(path)
    averaged = {v.path: f"average/{v.path}" for v in model.variables if f"average/{v.path}" in arrays}
    return _assign(path, arrays, {averaged.get(v.path, v.path): v for v in model.variables})


def _read(path):
    try:
        # zipfile tells some damage by a RuntimeError.
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise UserError(f"expected a checkpoint, received '{path}', which does not exist.") from error
    except (OSError, ValueError, TypeError, RuntimeError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise UserError(f"{path}: expected a checkpoint, received a damaged file ({error}).") from error
    if _POSITION not in arrays:
        raise UserError(f"{path}: expected a checkpoint, received a file without a position.")
    return arrays
