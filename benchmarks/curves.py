"""Draws the scores of runs on their held-out images, while they train, into one picture.

    python benchmarks/curves.py RUN [RUN ...] --output=curves.png

Two runs that differ in `--average` alone show what averaging the weights does: the training is the same to the bit,
and only the weights that are scored differ. Needs matplotlib.
"""

import pathlib

import harness


def curve(run):
    """(name, images seen, PSNR of the posterior mean in dB) of a run, from its history.jsonl."""
    from ssdn_tf.errors import UserError
    from ssdn_tf.evaluation import report

    rows = [row for row in report.history(run) if "psnr" in row]
    if not rows:
        raise UserError(f"expected runs with a PSNR in their history.jsonl, received '{run}' without.")
    return pathlib.Path(run).name, [row["images"] for row in rows], [row["psnr"] for row in rows]


def run(arguments):
    curves = [curve(folder) for folder in arguments.runs]
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="constrained")
    rows = []
    for name, seen, psnr in curves:
        axes.plot(seen, psnr, linewidth=1, label=name)
        falls = [earlier - later for earlier, later in zip(psnr, psnr[1:])]
        rows.append((name, len(psnr), f"{psnr[-1]:.2f}", f"{max(psnr):.2f}", f"{max([0.0, *falls]):.2f}"))
    axes.set(xlabel="crops seen", ylabel="PSNR, dB (held-out images)")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(arguments.output, dpi=120)
    harness.print_table(["run", "reports", "last PSNR", "best", "largest fall between reports"], rows)


if __name__ == "__main__":
    harness.main(
        __doc__,
        run,
        flags={
            "runs": {"nargs": "+", "metavar": "RUN", "help": "folders of runs"},
            "--output": {"default": "curves.png", "help": "the picture"},
        },
    )
