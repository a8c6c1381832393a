"""Results for people to read: a Markdown table, results.json, and strips of pictures."""

import contextlib
import dataclasses
import json
import math
import pathlib

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ssdn_tf.data import images
from ssdn_tf.denoisers.experiments import PUBLISHED_PSNR, Experiment, unchecked
from ssdn_tf.noise.levels import LEVELS

_SIDE = 320  # of a picture in a strip, cut from the middle
_AVERAGED = ("psnr_noisy", "psnr_mu_x", "psnr", "ssim", "inside_1_std", "inside_2_std")
_STD_WHITE = 0.1  # prior std that is shown as white


def statistics(rows):
    """Means over pictures and repeats, and standard errors of the mean PSNR.

    The PSNR of a picture that equals the clean one in all its 8-bit values is infinite. Such rows are left out of the
    means and the standard errors, and counted.

    Args:
        rows: dicts with "image", "psnr" and other numbers, see `protocol.scores`.

    Returns:
        dict: the mean of each number, None if no row has a finite one; of estimated_level, the median (of each of
        its numbers);
        infinite: {name: how many rows are left out of its mean}, only the names that have some;
        standard_error_images: over pictures (how another set of pictures would differ), None for one picture;
        standard_error_noise: over the noise draws on these pictures, None for one repeat.
    """
    values = {key: [row[key] for row in rows if key in row] for key in _AVERAGED}
    infinite = {key: sum(map(math.isinf, column)) for key, column in values.items()}
    result = {key: _mean([v for v in column if not math.isinf(v)]) for key, column in values.items() if column}
    result["infinite"] = {key: count for key, count in infinite.items() if count}
    levels = [row["estimated_level"] for row in rows if "estimated_level" in row]
    if levels:
        # One kind of noise that is not found (None) is infinitely many photons.
        median = np.median([[np.inf if n is None else n for n in np.atleast_1d(level)] for level in levels], axis=0)
        median = [None if math.isinf(number) else number for number in median.tolist()]
        result["estimated_level"] = median if len(median) > 1 else median[0]
    groups = {}
    for row in rows:
        if not math.isinf(row["psnr"]):
            groups.setdefault(row["image"], []).append(row["psnr"])
    means = [np.mean(group) for group in groups.values()]
    over_images = float(np.std(means, ddof=1) / math.sqrt(len(means))) if len(means) > 1 else None
    over_noise = None
    if min(map(len, groups.values()), default=0) > 1:
        variance = [np.var(group, ddof=1) / len(group) for group in groups.values()]
        over_noise = float(math.sqrt(np.sum(variance)) / len(groups))
    return result | {"standard_error_images": over_images, "standard_error_noise": over_noise}


def _mean(values):
    return float(np.mean(values)) if values else None


def table(results):
    """Markdown table of `protocol.evaluate` results, with the paper's PSNR for the protocols that it has."""
    titles = (
        *("denoiser", "set", "noise", "pictures x draws", "noisy", "mu_x"),
        *("PSNR (dB)", "s.e. pictures", "s.e. noise", "SSIM", "paper"),
    )
    lines = [_line(titles), "|---" * len(titles) + "|"]
    for r in results:
        row = paper_row(r)
        paper = PUBLISHED_PSNR.get(row, {}).get(r["dataset"])
        cells = [
            r["name"],
            r["dataset"],
            tested(r),
            f"{r['images']} x {r['repeats']}",
            _number(r["psnr_noisy"]),
            _number(r.get("psnr_mu_x")),
            _number(r["psnr"]),
            _number(r["standard_error_images"]),
            _number(r["standard_error_noise"], 3),
            _number(r["ssim"], 3),
            _number(paper) + ("*" if paper and unchecked(row) else ""),
        ]
        lines.append(_line(cells))
    if any(line.endswith("* |") for line in lines):
        lines += ["", "\\* the paper's figure, not verified."]
    return "\n".join(lines + [remark for r in results for remark in _remarks(r)])


def _line(cells):
    return f"| {' | '.join(cells)} |"


def _remarks(result):
    """Lines below the table about one of its rows."""
    name = f"{result['name']}, {result['dataset']}"
    if result.get("inside_1_std") is not None:
        inside = f"{result['inside_1_std']:.1%} and {result['inside_2_std']:.1%} of the clean values lie"
        yield from ("", f"{name}: {inside} within 1 and 2 posterior std.")
    if result.get("estimated_level") is not None:
        found = LEVELS[noise_of(result)["noise"]].describe(result["estimated_level"])
        yield from ("", f"{name}: the median of the levels found is {found}.")
    for key, count in result.get("infinite", {}).items():
        yield from ("", f"{name}: the mean {key} leaves out {count} infinite values (8-bit pictures without error).")


def noise_of(result):
    """What a model was tested on. Results written before this was stored have it in the experiment."""
    return result.get("tested") or result["experiment"]


def tested(result):
    """The noise of a test in words."""
    case = noise_of(result)
    return LEVELS[case["noise"]].describe(case["low"], case["high"])


def paper_row(result):
    """Key into PUBLISHED_PSNR: the row of the paper with this method and the noise of this test.

    None if there is no such row: the paper tests each network with the levels that it was trained for.
    """
    tested = {key: noise_of(result)[key] for key in ("noise", "low", "high", "channels")}
    if result["name"] == "cbm3d":
        return Experiment(**tested).name.replace("blindspot-sigma_known", "cbm3d")
    if not result["experiment"]:
        return None
    experiment = Experiment(**result["experiment"])
    if dataclasses.replace(experiment, **tested) != experiment:
        return None
    return dataclasses.replace(experiment, likelihood="moments").name


def _number(value, digits=2):
    return "-" if value is None else f"{value:.{digits}f}"


def write_json(path, value):
    """Writes strict JSON, whole or not at all. Infinity and NaN, which JSON does not have, become null."""
    images.write_text(path, _text(finite(value)) + "\n")


def _text(value, indent=""):
    """JSON with a line for each value that holds no object, such as all scores of a picture."""
    if not _holds_an_object(value):
        return json.dumps(value, allow_nan=False)
    named = isinstance(value, dict)
    keys = [f"{json.dumps(key)}: " for key in value] if named else [""] * len(value)
    inner = indent + " "
    lines = [inner + key + _text(part, inner) for key, part in zip(keys, value.values() if named else value)]
    return "\n".join(["{" if named else "[", ",\n".join(lines), indent + ("}" if named else "]")])


def _holds_an_object(value):
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(isinstance(part, dict) or _holds_an_object(part) for part in parts)


def finite(value):
    """The value as strict JSON has it: with null for infinity and NaN."""
    if isinstance(value, dict):
        return {key: finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cells_and_views(label, denoiser, case, prediction, row):
    """({column: text}, {name: picture}) of one picture, for a `page.Page`. Arguments as for `strip`."""
    cells = {"denoiser": denoiser, "set": label, "picture": row["image"], "noisy (dB)": _number(row["psnr_noisy"])}
    cells |= {"mu_x (dB)": _number(row.get("psnr_mu_x")), "PSNR (dB)": _number(row["psnr"])}
    views = {"noisy": case.noisy, "denoised": prediction.denoised, "clean": case.clean, "mu_x": prediction.mu_x}
    if prediction.posterior_std is not None:
        views[f"posterior std (white: {_STD_WHITE:g})"] = prediction.posterior_std / _STD_WHITE
    return cells, {name: picture for name, picture in views.items() if picture is not None}


def history(run_dir):
    """The rows of the history.jsonl of a run, but for one that a full disk has cut off."""
    path, rows = pathlib.Path(run_dir) / "history.jsonl", []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def add_curves(page, run_dir):
    """Adds what the history of a run says to a `page.Page`."""
    rows = history(run_dir)
    titles = {"psnr": ("PSNR in training", "dB"), "held_out_loss": ("held-out loss", "nats"), "loss": ("loss", "nats")}
    for key, (title, unit) in titles.items():
        points = [(row["images"], row[key]) for row in rows if row.get(key) is not None]
        page.curve(f"{title}, by crops seen", points, unit)


def strip(case, prediction, row):
    """uint8 [H,W,3]: noisy | mu_x | posterior mean | clean | prior std, labelled with dB.

    Args:
        case: protocol.Corrupted.
        prediction: Prediction.
        row: its scores, see `protocol.scores`.
    """
    answer = "denoised" if prediction.mu_x is None else "posterior mean"
    panels = [("noisy", row["psnr_noisy"], case.noisy)]
    if prediction.mu_x is not None:
        panels.append(("mu_x", row["psnr_mu_x"], prediction.mu_x))
    panels += [(answer, row["psnr"], prediction.denoised), ("clean", None, case.clean)]
    if prediction.prior_std is not None:
        std = prediction.prior_std.mean(axis=-1, keepdims=True) / _STD_WHITE
        panels.append((f"prior std (white: {_STD_WHITE:g})", None, std))
    return np.concatenate([_panel(*panel) for panel in panels], axis=1)


def _panel(label, db, image):
    pixels = images.to_channels(images.to_uint8(images.middle(image, _SIDE)), 3)
    bar = 24
    canvas = Image.new("RGB", (pixels.shape[1] + 4, pixels.shape[0] + bar), "white")
    canvas.paste(Image.fromarray(pixels), (2, bar))
    text = label if db is None else f"{label}  {db:.2f} dB"
    ImageDraw.Draw(canvas).text((4, 4), text, fill="black", font=ImageFont.load_default(15))
    return np.asarray(canvas)
