"""What is lost at the border of pictures whose sides are no multiples of the network's grid, which are filled up.

    python benchmarks/border.py --model=RUN --dataset=FOLDER [--pictures=6]

Each picture, with sides that are multiples of 32, gets noise and is denoised whole ("the picture goes on"). Then its
last rows and columns are taken away, and it is denoised again: as the product does it, which fills with zeros, and with
a reflection in their place, which shows pixels near the border their own noise.

    band there          PSNR in dB of the 16 pixels next to what was taken away
    lost                how much less that is than where the picture goes on
    other edges         PSNR of the same band at the top and on the left, where nothing is filled in
"""

import harness

BAND = 16


def band_psnr(denoised, clean, edges):
    """PSNR of the band of BAND pixels at "far" (bottom, right) or "near" (top, left) edges."""
    import numpy as np

    mask = np.zeros(clean.shape[:2], bool)
    rows = slice(-BAND, None) if edges == "far" else slice(0, BAND)
    mask[rows] = mask[:, rows] = True
    error = np.clip(denoised, 0, 1)[mask] - clean[mask]
    return -10 * np.log10(np.mean(error**2))


def measure(model, file, missing):
    """{row: (PSNR at the far edges, at the near ones)} of one picture."""
    import numpy as np

    from ssdn_tf.data import images
    from ssdn_tf.denoisers import models
    from ssdn_tf.evaluation import protocol

    clean = images.to_float(images.to_channels(images.read(file), model.experiment.channels))
    noisy = protocol.corrupt(clean, model.experiment, models.noise_model(model.experiment), np.random.default_rng(0))
    height, width = (side - missing for side in clean.shape[:2])
    cut, part = noisy.padded[:height, :width], clean[:height, :width]
    inputs = {
        "the picture goes on": noisy.padded,
        "filled with zeros": cut,
        "filled by reflection": np.pad(cut, ((0, missing), (0, missing), (0, 0)), mode="reflect"),
    }
    denoised = {name: model.denoise(x, noisy.parameter).denoised[:height, :width] for name, x in inputs.items()}
    return {name: [band_psnr(x, part, edges) for edges in ("far", "near")] for name, x in denoised.items()}


def rows(model, files, missing_sides):
    import numpy as np

    for missing in missing_sides:
        found = [measure(model, file, missing) for file in files]
        means = {name: np.mean([psnr[name] for psnr in found], axis=0) for name in found[0]}
        for name, (far, near) in means.items():
            lost = means["the picture goes on"][0] - far
            yield missing, name, f"{far:.2f}", f"{lost:.2f}", f"{near:.2f}"


def run(arguments):
    from ssdn_tf.data import images
    from ssdn_tf.inference import predictor

    model = predictor.from_run(arguments.model)
    files = [f for f in images.find(arguments.dataset) if not any(side % 32 for side in images.size(f))]
    files = files[: 1 if arguments.quick else arguments.pictures]
    if not files:
        raise SystemExit("expected pictures whose sides are multiples of 32, received none.")
    print(f"{model.experiment.name}, {len(files)} pictures, band of {BAND} pixels, dB\n")
    columns = ["rows and columns taken away", "beyond the edge", "band there", "lost", "other edges"]
    most = model.grid - 1
    harness.print_table(columns, rows(model, files, (most,) if arguments.quick else (1, model.grid // 2, most)))


if __name__ == "__main__":
    flags = {
        "--model": {"required": True, "help": "folder of a run"},
        "--dataset": {"required": True, "help": "folder of pictures"},
        "--pictures": {"type": int, "default": 6, "help": "how many of them at most"},
    }
    harness.main(__doc__, run, flags=flags)
