"""What the networks of the package find of the noise of a picture, and what not knowing it costs.

    python benchmarks/found_noise.py FOLDER              clean photographs, such as Kodak
    python benchmarks/found_noise.py FOLDER --side=256   their middle alone: faster

Each picture gets noise of each level once. A row counts pictures.

    found     median of what is found, each number
    error     median of its distance from the truth, in per cent
    right     pictures whose kind of noise is called right, as `ssdn-diagnose` calls it
    told      PSNR in dB with the true noise, mean
    fitted    PSNR with the noise that is found, minus `told`
"""

import pathlib

import harness

# (kind of noise, level): sigma of 255, lam photons at white.
CASES = [
    ("gaussian", 5.0),
    ("gaussian", 10.0),
    ("gaussian", 25.0),
    ("gaussian", 50.0),
    ("poisson", 10.0),
    ("poisson", 30.0),
    ("poisson", 100.0),
    ("poisson_gaussian", (50.0, 10.0)),
    ("poisson_gaussian", (30.0, 25.0)),
]
HEADER = ["noise", "pictures", "found", "error", "right", "told", "fitted"]


def measure(model, clean, kind, level, rng):
    """(levels found, is the kind right, [PSNR told, PSNR fitted]) of one picture."""
    from ssdn_tf.evaluation.metrics import psnr
    from ssdn_tf.inference import diagnosis, pictures
    from ssdn_tf.noise import registry
    from ssdn_tf.noise.levels import LEVELS

    noise, levels = registry.make(kind), LEVELS[kind]
    noisy = noise.corrupt(clean, levels.to_parameter(level), rng)
    true = dict(zip((number.name for number in levels.numbers), levels.split(level)))
    known = pictures.parameter_of(true, model.experiment)
    found = diagnosis.diagnose(model, [noisy])
    results = [model.denoise(noisy, parameter, tile=None) for parameter in (known, "fitted")]
    best = next(fit for fit in found.fits if fit.kind == kind)
    scores = [psnr(result.denoised, clean) for result in results]
    return levels.split(levels.to_level(best.parameter)), found.best.kind == kind, scores


def run(arguments):
    from ssdn_tf.data import images
    from ssdn_tf.errors import UserError
    from ssdn_tf.inference import predictor, pretrained
    from ssdn_tf.noise.levels import LEVELS

    files = images.find(pathlib.Path(arguments.folder))[: 1 if arguments.quick else None]
    clean = [images.to_float(images.to_channels(images.read(file), arguments.channels)) for file in files]
    clean = [images.middle(picture, arguments.side or 10**6) for picture in clean]
    model = predictor.load(arguments.model or pretrained.DEFAULTS[arguments.channels])
    told = {number.name for number in LEVELS[model.experiment.noise].numbers}
    cases = [(kind, level) for kind, level in CASES if told.issuperset(n.name for n in LEVELS[kind].numbers)]
    if not cases:
        raise UserError(f"expected a network for additive noise, received {model.experiment.name}.")
    harness.print_table(HEADER, (row(model, clean, *case) for case in cases))


def row(model, clean, kind, level):
    import numpy as np

    from ssdn_tf.noise.levels import LEVELS

    results = [measure(model, picture, kind, level, np.random.default_rng(i)) for i, picture in enumerate(clean)]
    found, right, scores = zip(*results)
    levels = LEVELS[kind]
    # A number that is left out counts as 0.
    found = np.array([[value or 0.0 for value in one] for one in found])
    error = 100 * np.abs(found / np.array(levels.split(level)) - 1)
    join = lambda values: ", ".join(f"{value:.3g}" for value in np.median(values, axis=0))
    told, fitted = np.mean(scores, axis=0)
    cells = f"{told:.2f}", f"{fitted - told:+.3f}"
    return levels.describe(level), len(clean), join(found), join(error), sum(right), *cells


if __name__ == "__main__":
    flags = {
        "folder": {"metavar": "FOLDER", "help": "clean photographs"},
        "--side": {"type": int, "help": "of the middle of each picture that is used, in pixels"},
        "--channels": {"type": int, "choices": (1, 3), "default": 3, "help": "gray or colour"},
        "--model": {"help": "a network of the package or a run, instead of the package's for additive noise"},
    }
    harness.main(__doc__, run, flags=flags)
