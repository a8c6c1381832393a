"""What a person looks at: a Markdown table, results.json, and strips of pictures."""

import dataclasses
import json
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ssdn_tf.data import images
from ssdn_tf.denoisers.experiments import PUBLISHED_PSNR, Experiment, unchecked

_SIDE = 320  # of a picture in a strip, cut from the middle
_AVERAGED = ("psnr_noisy", "psnr_mu_x", "psnr", "ssim", "inside_1_std", "inside_2_std", "estimated_level")
_STD_WHITE = 0.1  # prior std that is shown as white


def statistics(rows):
    """Means over pictures and repeats, and standard errors of the mean PSNR.

    standard_error_images: over pictures (how another set of pictures would differ).
    standard_error_noise: over noise draws on these pictures; None with one repeat.
    """
    keys = [key for key in _AVERAGED if key in rows[0]]
    result = {key: float(np.mean([row[key] for row in rows])) for key in keys}
    names = sorted({row["image"] for row in rows})
    groups = [[row["psnr"] for row in rows if row["image"] == name] for name in names]
    means = [np.mean(group) for group in groups]
    over_images = float(np.std(means, ddof=1) / math.sqrt(len(means))) if len(means) > 1 else None
    over_noise = None
    if min(map(len, groups)) > 1:
        variance = [np.var(group, ddof=1) / len(group) for group in groups]
        over_noise = float(math.sqrt(np.sum(variance)) / len(groups))
    return result | {"standard_error_images": over_images, "standard_error_noise": over_noise}


def table(results):
    """Markdown table of `evaluation.evaluate` results, with the paper's PSNR where it has one."""
    head = (
        "| denoiser | set | pictures x draws | noisy | mu_x | PSNR (dB) | s.e. pictures | s.e. noise | SSIM | paper |"
    )
    lines = [head, "|---|---|---|---|---|---|---|---|---|---|"]
    remark = False
    for r in results:
        row = _published_name(r)
        paper = PUBLISHED_PSNR.get(row, {}).get(r["dataset"])
        star = "*" if paper and unchecked(row) else ""
        remark = remark or bool(star)
        cells = [
            r["name"],
            r["dataset"],
            f"{r['images']} x {r['repeats']}",
            _number(r["psnr_noisy"]),
            _number(r.get("psnr_mu_x")),
            _number(r["psnr"]),
            _number(r["standard_error_images"]),
            _number(r["standard_error_noise"], 3),
            _number(r["ssim"], 3),
            _number(paper) + star,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    if remark:
        lines += ["", "\\* not checked against the paper's text."]
    for r in results:
        if "inside_1_std" in r:
            inside = f"{r['inside_1_std']:.1%} and {r['inside_2_std']:.1%} of the clean values lie"
            lines += ["", f"{r['name']}, {r['dataset']}: {inside} within 1 and 2 posterior std."]
    return "\n".join(lines)


def _published_name(result):
    """Key into PUBLISHED_PSNR: the paper's row for these noise levels."""
    experiment = Experiment(**result["experiment"])
    if result["name"] == "cbm3d":
        return experiment.name.split("-")[0] + "-cbm3d"
    return dataclasses.replace(experiment, likelihood="moments").name


def _number(value, digits=2):
    return "-" if value is None else f"{value:.{digits}f}"


def write_json(path, value):
    """Writes JSON, whole or not at all."""
    text = json.dumps(value, indent=1) + "\n"
    images.write_whole(path, lambda file: file.write(text.encode()))


def strip(case, result, row):
    """uint8 [H,W,3]: noisy | mu_x | posterior mean | clean | prior std, labelled with dB.

    Args:
        case: evaluation.Corrupted.
        result: outputs of the denoiser, [H,W,C] each.
        row: its scores.
    """
    answer = "posterior mean" if "mu_x" in result else "denoised"
    panels = [("noisy", row["psnr_noisy"], case.noisy)]
    if "mu_x" in result:
        panels.append(("mu_x", row["psnr_mu_x"], result["mu_x"]))
    panels += [(answer, row["psnr"], result["denoised"]), ("clean", None, case.clean)]
    if "prior_std" in result:
        std = result["prior_std"].mean(axis=-1, keepdims=True) / _STD_WHITE
        panels.append((f"prior std (white: {_STD_WHITE:g})", None, std))
    return np.concatenate([_panel(*panel) for panel in panels], axis=1)


def _panel(label, db, image):
    height, width = image.shape[:2]
    top, left = max(0, (height - _SIDE) // 2), max(0, (width - _SIDE) // 2)
    pixels = images.to_channels(images.to_uint8(image[top : top + _SIDE, left : left + _SIDE]), 3)
    bar = 24
    canvas = Image.new("RGB", (pixels.shape[1] + 4, pixels.shape[0] + bar), "white")
    canvas.paste(Image.fromarray(pixels), (2, bar))
    text = label if db is None else f"{label}  {db:.2f} dB"
    ImageDraw.Draw(canvas).text((4, 4), text, fill="black", font=ImageFont.load_default(15))
    return np.asarray(canvas)
