"""Pictures with real noise and their averaged truth: PSNR after an affine fit to the truth.

    python denoise.py --input=W2S/noisy --output=shipped
    python denoise.py --input=W2S/noisy --output=adapted --adapt=5min
    python benchmarks/real_noise.py W2S shipped adapted

The first folder holds noisy/ and gt/, with equal names; each of the others holds what a denoiser made of noisy/. The
baselines (non-local means, wavelet, CBM3D where it is installed) get the std that the network of the package finds in
the noisy picture, above the black level that `denoise.py` finds. Noisy pictures and results alike are brought to
a x + b, with the a and b that suit the truth best, as the averaging of a microscope stretches the contrast.
"""

import pathlib

import harness

HEADER = ["", "pictures", "gray", "colour", "gain gray", "gain colour"]


def affine_psnr(image, truth):
    """PSNR in dB of a x + b against the truth, float64 in [0, 1], at the best a and b over all channels."""
    import numpy as np

    x, y = (np.asarray(a, np.float64).ravel() for a in (image, truth))
    a, b = np.polyfit(x, y, 1)
    return -10 * np.log10(np.mean((a * x + b - y) ** 2))


def read(path):
    from ssdn_tf.data import images

    return images.to_float(images.read(path))


def range_of(files, predictors):
    """(black, white) that `denoise.py` finds for the pictures, in the unit of `read`."""
    import numpy as np

    from ssdn_tf.data import images
    from ssdn_tf.inference import ranges

    pictures = [images.read(file) for file in files]
    (black, white), _ = ranges.find(pictures, predictors.predictor)
    most = np.iinfo(pictures[0].dtype).max
    return black / most, white / most


def baselines(noisy, limits, predictors):
    """{name: result} of the baselines, by the noise that the network of the package finds."""
    from ssdn_tf.data.planes import to_unit
    from ssdn_tf.denoisers.models import noise_model
    from ssdn_tf.evaluation import protocol
    from ssdn_tf.evaluation.baselines import BASELINES

    model = predictors.predictor(noisy.shape[-1])
    in_unit = to_unit(noisy, limits)
    parameter = model.fit([model.pixels(in_unit)])
    std = (limits[1] - limits[0]) * protocol.mean_std(noise_model(model.experiment), in_unit, parameter)
    names = ["nlm", "wavelet"]
    try:
        import bm3d  # noqa: F401

        names.append("cbm3d")
    except ImportError:
        pass
    return {name: BASELINES[name](noisy, std) for name in names}


def run(arguments):
    from ssdn_tf.inference.pictures import PictureDenoiser

    folder, predictors, scores = pathlib.Path(arguments.truth), PictureDenoiser(), {}
    files = sorted((folder / "noisy").iterdir())[: 1 if arguments.quick else None]
    limits = None if arguments.no_baselines else range_of(files, predictors)
    for file in files:
        noisy, truth = read(file), read(folder / "gt" / file.name)
        results = {"noisy": noisy}
        results |= {pathlib.Path(found).name: read(pathlib.Path(found) / file.name) for found in arguments.results}
        if not arguments.no_baselines:
            results |= baselines(noisy, limits, predictors)
        for name, result in results.items():
            scores.setdefault(name, []).append((noisy.shape[-1], affine_psnr(result, truth)))
        print(file.name, *(f"{name} {found[-1][1]:.2f}" for name, found in scores.items()), flush=True)
    print()
    harness.print_table(HEADER, rows(scores))


def rows(scores):
    import numpy as np

    def means(found):
        return [np.mean([db for channels, db in found if channels == n] or [np.nan]) for n in (1, 3)]

    start = means(scores["noisy"])
    for name, found in scores.items():
        db = means(found)
        gains = [f"{a - b:.2f}" for a, b in zip(db, start)]
        yield name, len(found), *(f"{value:.2f}" for value in db), *gains


if __name__ == "__main__":
    flags = {"truth": {"metavar": "FOLDER", "help": "with noisy/ and gt/"}}
    flags |= {"results": {"nargs": "*", "metavar": "RESULTS", "help": "folders of denoised pictures"}}
    flags |= {"--no_baselines": {"action": "store_true", "help": "only the folders"}}
    harness.main(__doc__, run, flags=flags)
