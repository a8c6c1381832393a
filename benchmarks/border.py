"""What is lost at the border: pictures whose sides are no multiples of 32, filled up in three ways.

    python benchmarks/border.py --model=RUN --dataset=FOLDER [--pictures=6]

Each picture (sides multiples of 32) gets noise and is denoised whole. Then its last rows and columns are
taken away, so that the network's input has to be filled up, and it is denoised again. The table has the
PSNR of the posterior mean in the band next to what was taken away (and in the band at the other two
edges, where nothing is filled in). Reflection is no option for the answer: it breaks the blind spot.
"""

import os

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import numpy as np

BAND = 16


def band_psnr(denoised, clean, edges):
    """PSNR of the band of BAND pixels at "far" (bottom, right) or "near" (top, left) edges."""
    mask = np.zeros(clean.shape[:2], bool)
    rows = slice(-BAND, None) if edges == "far" else slice(0, BAND)
    mask[rows] = mask[:, rows] = True
    error = np.clip(denoised, 0, 1)[mask] - clean[mask]
    return -10 * np.log10(np.mean(error**2))


def rows_of(model, experiment, file, missing):
    """{row: (PSNR at the far edges, at the near ones)} of one picture."""
    from ssdn_tf.data import images
    from ssdn_tf.denoisers import models
    from ssdn_tf.evaluation import protocol

    clean = images.to_float(images.read(file))
    noisy = protocol.corrupt(clean, experiment, models.noise_model(experiment), np.random.default_rng(0))
    parameter, noisy = noisy.parameter, noisy.padded
    height, width = (side - missing for side in clean.shape[:2])
    cut = noisy[:height, :width]
    fill = ((0, missing), (0, missing), (0, 0))
    inputs = {
        "the picture goes on": noisy,
        "filled with zeros": np.pad(cut, fill),
        "filled by reflection": np.pad(cut, fill, mode="reflect"),
    }
    found = {}
    for name, padded in inputs.items():
        denoised = model.denoise(padded, parameter).denoised[:height, :width]
        part = clean[:height, :width]
        found[name] = [band_psnr(denoised, part, edges) for edges in ("far", "near")]
    return found


def main():
    from ssdn_tf.data import images
    from ssdn_tf.inference import predictor

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--pictures", type=int, default=6)
    arguments = parser.parse_args()
    model = predictor.from_run(arguments.model)
    files = [f for f in images.find(arguments.dataset) if not any(side % 32 for side in images.size(f))]
    print(f"{model.experiment.name}, {min(len(files), arguments.pictures)} pictures, band of {BAND} pixels, dB\n")
    print("| rows and columns taken away | beyond the edge | band there | band at the other edges |\n|---|---|---|---|")
    for missing in (1, 16, 31):
        found = [rows_of(model, model.experiment, f, missing) for f in files[: arguments.pictures]]
        for name in found[0]:
            far, near = np.mean([row[name] for row in found], axis=0)
            print(f"| {missing} | {name} | {far:.2f} | {near:.2f} |", flush=True)


if __name__ == "__main__":
    main()
