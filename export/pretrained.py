"""Makes a trained network of the package from a run: ssdn_tf/pretrained/NAME.npz and NAME.json.

    python export/pretrained.py --run=runs/00007-additive --name=additive-rgb --description="..." --data="..." \\
        --command="python train.py ..." --machine="two CPU cores" --limits="..."
    python export/pretrained.py --name=additive-rgb --results=a/results.json,b/results.json

The second command puts figures into the model card: the PSNR in results.json files of
`evaluate.py --model=NAME --parameter_source=fitted`.
"""

import json
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # this checkout's package, not another one
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

from absl import flags  # noqa: E402

import ssdn_tf  # noqa: E402
from ssdn_tf.commands import cli  # noqa: E402
from ssdn_tf.errors import UserError  # noqa: E402


def define(v):
    flags.DEFINE_string("run", None, "folder of a run, where the weights are new", flag_values=v)
    flags.DEFINE_string("name", None, "of the network", flag_values=v)
    flags.DEFINE_string("description", None, "what the network is for", flag_values=v)
    flags.DEFINE_string("data", None, "what it was trained on, with the terms of that data", flag_values=v)
    flags.DEFINE_string("command", None, "that trained it", flag_values=v)
    flags.DEFINE_string("machine", None, "on which it was trained", flag_values=v)
    flags.DEFINE_string("limits", None, "what it is not good at", flag_values=v)
    flags.DEFINE_list("results", [], "results.json files of evaluate.py", flag_values=v)


def main(v):
    """Flags to the two files; the exit code."""
    if not v.name:
        raise UserError("expected --name, received none.")
    if not v.run and not v.results:
        raise UserError("expected --run or --results, received neither.")
    from ssdn_tf.inference import pretrained

    figures = _figures(v.name, v.results)
    about = (_from_run(v) if v.run else pretrained.card(v.name)) | {"figures": figures}
    pretrained.write_card(v.name, about)
    print(pretrained.table())
    return 0


def _from_run(v):
    """Writes the weights of a run; returns its model card."""
    for name in ("description", "data", "command", "machine", "limits"):
        if not v[name].value:
            raise UserError(f"expected --{name}, received none.")
    from ssdn_tf.evaluation import report
    from ssdn_tf.inference import predictor, pretrained
    from ssdn_tf.training.options import Options

    model = predictor.from_run(v.run)
    options = Options.from_dict(model.source.details["options"])
    rows = report.history(v.run)
    if not rows:
        raise UserError(f"expected a run with a history.jsonl, received '{v.run}'.")
    about = {
        "name": v.name,
        "description": v.description,
        "licence": "Apache-2.0",
        "experiment": model.experiment.to_dict(),
        "weights": sum(variable.numpy().size for variable in model.model.variables),
        "training": {
            "command": v.command,
            "data": v.data,
            "crops": options.images_seen(model.source.details["position"]["step"]),
            "hours": round(rows[-1]["seconds"] / 3600, 2),
            "machine": v.machine,
        },
        "limits": v.limits,
        "package": f"ssdn_tf {ssdn_tf.__version__}",
    }
    pretrained.write_weights(v.name, v.run, model.model)
    return about


def _figures(name, files):
    """{set: {noise: PSNR}} of a network in results.json files, without those of baselines."""
    from ssdn_tf.evaluation import report

    figures = {}
    for file in files:
        summary = json.loads(pathlib.Path(file).read_text())
        tested = summary["model"]["name"] if summary["model"] else "baselines alone"
        if tested != name:
            raise UserError(f"{file}: expected results of {name}, received those of {tested}.")
        for result in summary["results"]:
            if result["experiment"] and result["psnr"] is not None:
                figures.setdefault(result["dataset"], {})[report.tested(result)] = f"{result['psnr']:.2f} dB"
    return figures


if __name__ == "__main__":
    sys.exit(cli.execute(main, define, __doc__, needs_flags=True))
