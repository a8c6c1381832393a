"""The trained networks that the package brings: NAME.npz, a checkpoint of weights alone, and NAME.json, its model card.

`export/pretrained.py` makes them from runs.
"""

import json
import pathlib

import numpy as np

from ssdn_tf.data.images import write_text
from ssdn_tf.errors import UserError
from ssdn_tf.inference import checkpoints

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "pretrained"
DEFAULTS = {3: "additive-rgb", 1: "additive-gray"}  # by the number of channels


def names():
    """The names of the networks, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.npz"))


def weights(name):
    """Path of the weights of a network, for `checkpoints.load_weights`; None if it is not one of `names`."""
    return FOLDER / f"{name}.npz" if name in names() else None


def card(name):
    """The model card of a network, a dict.

    Raises:
        UserError: there is no network of this name.
    """
    if name not in names():
        raise UserError(f"expected one of {', '.join(names())}, received '{name}'.")
    return json.loads((FOLDER / f"{name}.json").read_text())


def table():
    """The networks as text: a line with the name and what it is for, and one with its figures on the first set."""
    lines = []
    for name in names():
        about = card(name)
        lines.append(f"{name:15} {about['description']}")
        for dataset, figures in list(about["figures"].items())[:1]:
            lines.append(" " * 16 + f"{dataset}: " + "; ".join(f"{noise} {psnr}" for noise, psnr in figures.items()))
    return "\n".join(lines)


def write_weights(name, run_dir, model, folder=FOLDER):
    """Writes the network of a run, its weights (the averaged ones where there are some) in float16.

    Args:
        name: of the network.
        run_dir: the run that it comes from.
        model: its inference model, with these weights.
        folder: where to.
    """
    variables = {v.path: np.asarray(v, np.float16) for v in model.variables}
    checkpoints.save(folder / f"{name}.npz", variables, {"run": pathlib.Path(run_dir).name})


def write_card(name, about, folder=FOLDER):
    """Writes the model card of a network, a dict; "figures" in it is {set: {noise: PSNR}}."""
    text = json.dumps(about, indent=2, ensure_ascii=False) + "\n"
    write_text(folder / f"{name}.json", text)
