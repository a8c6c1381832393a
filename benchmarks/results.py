"""A table of results.json files that evaluate.py has written, beside the paper's figures for the same noise.

    python benchmarks/results.py results/*/results.json
    python benchmarks/results.py --show=inside results/*/results.json

A row is a denoiser on one noise, a column a set of pictures. What a cell shows (`--show`):

    psnr      PSNR in dB of the denoised pictures, with its standard error over pictures
    mu_x      PSNR in dB of the prediction from the surroundings alone
    found     the noise level that was found, median over pictures
    inside    per cent of the clean values within one and within two of the denoiser's own standard deviations
"""

import json
import pathlib

import harness


def run(arguments):
    from ssdn_tf.denoisers.experiments import PUBLISHED_PSNR, unchecked
    from ssdn_tf.evaluation import report

    rows, paper, sets = {}, {}, []
    for file in arguments.files:
        summary = json.loads(pathlib.Path(file).read_text())
        for result in summary["results"]:
            tested = report.noise_of(result)
            noise = report.tested(result) + (", gray" if tested["channels"] == 1 else "")
            rows.setdefault(noise, {"noisy": {}}).setdefault(denoiser(summary, result), {})[result["dataset"]] = result
            sets.append(result["dataset"])
            keys = {f"{label(**tested)}-{name}": name for name in arguments.paper.split(",")}
            paper[noise] = {key: name for key, name in keys.items() if key in PUBLISHED_PSNR}
    sets = list(dict.fromkeys(sets))
    for noise, denoisers in rows.items() if arguments.show == "psnr" else ():
        denoisers["noisy"] = {name: {"psnr": r["psnr_noisy"]} for one in denoisers.values() for name, r in one.items()}
        for key, name in paper[noise].items():
            name = f"paper: {name}" + ("*" if unchecked(key) else "")
            denoisers[name] = {dataset: {"psnr": figure} for dataset, figure in PUBLISHED_PSNR[key].items()}
    harness.print_table(["noise", "denoiser", *sets], lines(rows, sets, CELLS[arguments.show]))
    if any("*" in name for denoisers in rows.values() for name in denoisers):
        print("\n\\* not checked against the paper's text.")


def lines(rows, sets, cell):
    """The cells of each row that has any."""
    for noise, denoisers in rows.items():
        for name, results in denoisers.items():
            cells = [cell(results[dataset]) if dataset in results else None for dataset in sets]
            if any(cells):
                yield noise, name, *(text or "-" for text in cells)


def denoiser(summary, result):
    """What to call a denoiser, in the row of its noise."""
    experiment = result["experiment"]
    if experiment is None:
        return result["name"]
    model = summary.get("model") or {}
    if model.get("kind") == "pretrained":
        source = {"known": "told", "fitted": "found"}[experiment["parameter_source"]]
        return f"{model['name']}, level {source}"
    return result["name"].partition("-")[2]


def label(noise, low, high, channels, **_):
    """The noise of a test as it begins the names of the paper's rows; it gives no figures for gray pictures."""
    from ssdn_tf.noise.levels import LEVELS

    if channels == 1:
        return "gray"
    if noise == "additive":
        (lam, sigma), (lam_high, sigma_high) = low, high
        if lam is None:
            return LEVELS["gaussian"].label(sigma, sigma_high)
        if not sigma:
            return LEVELS["poisson"].label(lam, lam_high)
    return LEVELS[noise].label(low, high)


def _psnr(result):
    error = result.get("standard_error_images")
    return f"{result['psnr']:.2f}" + (f" ({error:.2f})" if error else "")


def _mu_x(result):
    return f"{result['psnr_mu_x']:.2f}" if result.get("psnr_mu_x") else None


def _found(result):
    from ssdn_tf.evaluation import report
    from ssdn_tf.noise.levels import LEVELS

    level = result.get("estimated_level")
    told = (result["experiment"] or {}).get("parameter_source") == "known"  # older files repeat what was told
    return None if level is None or told else LEVELS[report.noise_of(result)["noise"]].describe(level)


def _inside(result):
    shares = [result.get(f"inside_{stds}_std") for stds in (1, 2)]
    return None if None in shares else ", ".join(f"{share:.1%}" for share in shares)


CELLS = {"psnr": _psnr, "mu_x": _mu_x, "found": _found, "inside": _inside}

if __name__ == "__main__":
    flags = {
        "files": {"metavar": "FILE", "nargs": "*", "help": "results.json of evaluate.py"},
        "--paper": {"default": "blindspot-sigma_known,cbm3d", "help": "rows of the paper (default: %(default)s)"},
        "--show": {"choices": tuple(CELLS), "default": "psnr", "help": "what the cells are"},
    }
    harness.main(__doc__, run, flags=flags)
