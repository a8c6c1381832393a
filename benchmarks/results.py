"""A table of results.json files that evaluate.py has written, beside the paper's figures for the same noise.

    python benchmarks/results.py results/*/results.json
    python benchmarks/results.py --show=inside results/*/results.json

A row is a denoiser on one noise, a column a set of pictures. What a cell shows (`--show`):

    psnr      PSNR in dB of the denoised pictures, with its standard error over pictures
    mu_x      PSNR in dB of the prediction from the surroundings alone
    found     the noise level that was found, median over pictures
    inside    per cent of the clean values within one and within two of the denoiser's own standard deviations

`--against=TEXT` shows the PSNR minus that of the first denoiser whose name contains TEXT, on the same pictures with the
same noise, with the standard error of this difference.
"""

import collections
import json
import math
import pathlib
import re
import statistics

import harness


def run(arguments):
    from ssdn_tf.evaluation import report

    noises, sets = {}, []
    for file in arguments.files:
        summary = json.loads(pathlib.Path(file).read_text())
        for result in summary["results"]:
            tested, dataset = report.noise_of(result), result["dataset"]
            noise = report.tested(result) + (", gray" if tested["channels"] == 1 else "")
            rows = noises.setdefault(noise, (tested, {"noisy": {}}))[1]
            rows["noisy"][dataset] = {"psnr": result["psnr_noisy"]}
            draws = {"seed": summary["seed"], "pad": summary["pad"]}
            rows.setdefault(denoiser(summary, result), {})[dataset] = draws | result
            sets.append(dataset)
    for tested, rows in noises.values():
        rows.update(published(arguments.paper.split(","), **tested))
        if arguments.against:
            subtract(rows, arguments.against)
    sets = list(dict.fromkeys(sets))
    printed = list(lines(noises, sets, _difference if arguments.against else CELLS[arguments.show]))
    if arguments.against and not printed:
        raise SystemExit(f"expected a part of a denoiser's name for --against, received '{arguments.against}'.")
    harness.print_table(["noise", "denoiser", *sets], printed)
    if any(name.endswith("*") for _, name, *_ in printed):
        print("\n\\* the paper's figure, not verified.")


def subtract(rows, text):
    """Turns the results of rows into differences from those of the row whose name contains the text."""
    names = [name for name in rows if text in name]
    reference = {dataset: by_draw(result) for name in names[:1] for dataset, result in rows[name].items()}
    for results in rows.values():
        for dataset, result in results.items():
            own, other, pictures = by_draw(result), reference.get(dataset, {}), collections.defaultdict(list)
            for draw in own.keys() & other.keys():
                pictures[draw[0]].append(own[draw] - other[draw])
            results[dataset] = {"differences": [statistics.fmean(pictures[name]) for name in sorted(pictures)]}


def by_draw(result):
    """{(picture, what its noise depends on): PSNR}; infinite ones are left out."""
    rows = [row for row in result.get("rows", []) if row["psnr"] is not None]
    return {(row["image"], row["repeat"], result["seed"], result["pad"]): row["psnr"] for row in rows}


def lines(noises, sets, cell):
    """The cells of each row that has any."""
    for noise, (_, rows) in noises.items():
        for name, results in rows.items():
            cells = [cell(results[dataset]) if dataset in results else None for dataset in sets]
            if any(cells):
                yield noise, name, *(text or "-" for text in cells)


def denoiser(summary, result):
    """What to call a denoiser, in the row of its noise."""
    experiment = result["experiment"]
    if experiment is None:
        return result["name"]
    model = summary["model"]
    if model["kind"] == "pretrained":
        source = {"known": "told", "fitted": "found"}[experiment["parameter_source"]]
        ensemble = re.search(r"(-x\d+)?$", result["name"])[0]
        return f"{model['name']}{ensemble}, level {source}"
    return f"{pathlib.Path(model['name']).name}: {result['name'].partition('-')[2]}"


def published(names, noise, low, high, channels, **_):
    """Rows of the paper, by their names, on the noise of a test: {title: {set: result}}."""
    from ssdn_tf.denoisers.experiments import PUBLISHED_PSNR, Experiment, unchecked

    if noise == "additive":  # with one kind alone, the noise is Gaussian or Poisson
        (lam, sigma), (lam_high, sigma_high) = low, high
        if lam is None:
            noise, low, high = "gaussian", sigma, sigma_high
        elif not sigma:
            noise, low, high = "poisson", lam, lam_high
    known, rows = Experiment(noise=noise, low=low, high=high, channels=channels).name, {}
    for name in names:
        key = known.replace("blindspot-sigma_known", name)
        if key in PUBLISHED_PSNR:
            title = f"paper: {name}" + ("*" if unchecked(key) else "")
            rows[title] = {dataset: {"psnr": figure} for dataset, figure in PUBLISHED_PSNR[key].items()}
    return rows


def _psnr(result):
    if result["psnr"] is None:  # all pictures without an error
        return None
    error = result.get("standard_error_images")
    return f"{result['psnr']:.2f}" + (f" ({error:.2f})" if error else "")


def _difference(result):
    found = result["differences"]
    if not any(found):  # the reference itself, or a row without pictures
        return None
    error = f" ({statistics.stdev(found) / math.sqrt(len(found)):.3f})" if len(found) > 1 else ""
    return f"{statistics.fmean(found):+.3f}{error}"


def _mu_x(result):
    return f"{result['psnr_mu_x']:.2f}" if result.get("psnr_mu_x") else None


def _found(result):
    from ssdn_tf.evaluation import report
    from ssdn_tf.noise.levels import LEVELS

    level = result.get("estimated_level")
    told = (result.get("experiment") or {}).get("parameter_source") == "known"  # older files repeat what was told
    return None if level is None or told else LEVELS[report.noise_of(result)["noise"]].describe(level)


def _inside(result):
    shares = [result.get(f"inside_{stds}_std") for stds in (1, 2)]
    return None if None in shares else ", ".join(f"{share:.1%}" for share in shares)


CELLS = {"psnr": _psnr, "mu_x": _mu_x, "found": _found, "inside": _inside}

if __name__ == "__main__":
    flags = {
        "--against": {"metavar": "TEXT", "help": "show differences in PSNR from the denoiser of this name"},
        "files": {"metavar": "FILE", "nargs": "*", "help": "results.json of evaluate.py"},
        "--paper": {"default": "blindspot-sigma_known,cbm3d", "help": "rows of the paper (default: %(default)s)"},
        "--show": {"choices": tuple(CELLS), "default": "psnr", "help": "what the cells are"},
    }
    harness.main(__doc__, run, flags=flags)
