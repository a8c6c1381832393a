"""denoise.py: denoises picture files."""

import bisect
import dataclasses
import itertools
import os
import pathlib
import shlex
import sys

import tqdm
from absl import flags

from ssdn_tf.commands import cli, level_flags, model_flag
from ssdn_tf.data import files, images, zarr_files
from ssdn_tf.data.planes import SAMPLED, readable, spread
from ssdn_tf.errors import UserError
from ssdn_tf.inference import pieces, precision
from ssdn_tf.networks.designs import DESIGNS
from ssdn_tf.training import folder

TEXT = """Denoises a picture, or a folder of them. The noise level is estimated.

    python denoise.py --input=noisy.png --output=denoised.png
    python denoise.py --input=FOLDER --output=ANOTHER_FOLDER                 all pictures, subfolders too
    python denoise.py --input=FOLDER --output=ANOTHER_FOLDER --adapt=5min    better: trained on these pictures first
    python denoise.py --input=stack.tif --output=denoised.tif --uncertainty
    python denoise.py --model=runs/00003-... --sigma=15 --input=noisy.png --output=denoised.png

PNG, JPEG, TIFF (stacks, ImageJ, OME, 8 to 64 bit, floats), BMP, WebP, .npy and .zarr; the output keeps dtype, range,
pages and description. In a folder, pictures that are there already are skipped, so the same command goes on after a
stop.
"""


def denoise():
    sys.exit(cli.execute(main, define, TEXT, needs_flags=True))


def define(values):
    """The flags of denoise.py."""
    with cli.group(values, "Pictures"):
        flags.DEFINE_string("input", None, "noisy picture, or a folder of them", flag_values=values)
        flags.DEFINE_string("output", None, "file or folder for the denoised pictures", flag_values=values)
        flags.DEFINE_bool("overwrite", False, "denoise again what --output has already", flag_values=values)
        flags.DEFINE_bool(
            "uncertainty", False, "also write the standard deviation of each value, as NAME-std.tif, 32-bit floats",
            flag_values=values,
        )  # fmt: skip
        flags.DEFINE_bool(
            "preview", False, "also write NAME-preview.png: the middle of noisy, denoised and std", flag_values=values
        )
        flags.DEFINE_bool(
            "report", False, "also write OUTPUT-report.html: the noise of each picture, and noisy beside denoised, to "
            "look at in a browser", flag_values=values,
        )  # fmt: skip
        cli.range_flag(values, "pictures")
    with cli.group(values, "Model"):
        model_flag.define(values)
        model_flag.define_ensemble(values)
        model_flag.define_precision(values)
        flags.DEFINE_string(
            "adapt", None, "first train the network on these pictures for this long, such as 5min; the network stays "
            "in OUTPUT-network", flag_values=values,
        )  # fmt: skip
        flags.DEFINE_string(
            "cluster", None, "scheduler of a Dask cluster whose workers denoise, such as tcp://HOST:8786; they need "
            "this package, and the model if it is not one of the package", flag_values=values,
        )  # fmt: skip
        flags.DEFINE_integer(
            "tile", None, "side in pixels of the tiles in which pictures of more than tile^2 pixels are denoised "
            f"(default: {DESIGNS['compact'].tile}, about 2 GB of memory; {DESIGNS['paper'].tile} for the paper's "
            "network)", lower_bound=1, flag_values=values,
        )  # fmt: skip
    with cli.group(values, "Noise"):
        level_flags.define(values, " (default: found by maximum likelihood, or what the model learned)", ranges=False)
        flags.DEFINE_string(
            "levels", None, "CSV file with the levels of each picture: a column file, and sigma, lam or alpha; the "
            "level of an empty cell is found", flag_values=values,
        )  # fmt: skip
        flags.DEFINE_enum(
            "noise_from", "each", ("each", "set"), "the level is found for each picture, or once for the set, from "
            f"at most {SAMPLED} of its pictures", flag_values=values,
        )  # fmt: skip


def main(values):
    """Flags to files; the exit code."""
    if model_flag.is_list(values):
        return 0
    precision.use(values.precision)
    limits = cli.parse_range(values.range)
    pairs = _pairs(values)
    levels = _levels_of_files(values, pairs)
    level_flags.refuse_ranges(values)
    pending = _pending(values, pairs)
    if not pending and not values.report:
        print(f"{values.output}: all {len(pairs)} pictures are there already; --overwrite denoises them again.")
        return 0
    survey = _survey(values, pairs)
    if not limits and len(survey.dtypes) > 1:
        found = " and ".join(f"{dtype} ('{file}')" for dtype, file in survey.dtypes.items())
        raise UserError(f"expected pictures of one dtype, or the --range of all of them, received {found}.")
    whole = [pair for pair in pending if pair[0] in survey.files]
    network = _model(values, levels)
    if values.adapt:
        adapted = files.beside(values.output, "network")
        code = _adapt(values, survey, limits, network, adapted) if whole else 0
        if code:
            return code
        network = adapted if folder.has_begun(adapted) else network
    worker = _worker(values, network)
    limits = limits or _found_range(values, survey, worker)
    _check_model(values, worker, survey.channels, all(file in levels for file in survey.files))
    if values.noise_from == "set":
        worker.fit_set(_first_planes(survey), limits)
    page = None
    if values.report:
        title = f"{values.input}, denoised by {network or 'the network of the package'}" if whole else values.input
        page = _page(title, set(pairs) - set(pending), limits)
    failed = len(pending) - len(whole) + _denoise_all(values, worker, limits, whole, levels, page)
    if failed:
        raise UserError(f"{failed} of {len(pairs)} pictures could not be denoised; see above.")
    return 0


def _denoise_all(values, worker, limits, pairs, levels, page):
    """Denoises all pairs, and writes the page if there is one; returns how many could not be denoised."""
    from ssdn_tf.inference.file_denoiser import FileDenoiser

    failed, alone = 0, _is_alone(values, pairs)
    results = FileDenoiser(worker, limits, values.uncertainty, values.preview, values.report).all(pairs, levels)
    bar = tqdm.tqdm(results, total=len(pairs), unit="picture", disable=alone)
    for result in bar:
        if isinstance(result, UserError):
            if alone:
                raise result
            images.warn(f"left out {result}")
            failed += 1
            continue
        cells, views = result
        bar.write("{file}: {size}, {noise}".format(**cells))
        if page:
            page.add(cells, views)
    if page:
        page.write(files.beside(values.output, "report.html"))
        print(f"Report: {files.beside(values.output, 'report.html')}")
    return failed


def _model(values, levels):
    """What --model says, or the network of the package for the noise that is told; None for additive noise."""
    told = {*level_flags.given(values)}.union(*levels.values())
    return values.model or ("impulse-rgb" if "alpha" in told else None)


def _worker(values, network):
    """The PictureDenoiser that the flags ask for."""
    settings = network, values.tile or "auto", values.ensemble
    if values.cluster:
        from ssdn_tf.inference.cluster import ClusterDenoiser

        with cli.errors_about("cluster"):
            return ClusterDenoiser(values.cluster, *settings)
    from ssdn_tf.inference.pictures import PictureDenoiser

    return PictureDenoiser(*settings, load=model_flag.load_path)


def _page(title, done, limits):
    """The Page of the report, with the pictures that an earlier start has denoised."""
    from ssdn_tf.evaluation import page
    from ssdn_tf.inference.file_denoiser import middle_views, size_of

    made = page.Page(title, page.HOW)
    for source, target in sorted(done):
        try:
            noisy, denoised = files.read(source), files.read(target)
            views = middle_views(noisy[0], denoised[0], None, limits)
        except UserError as error:
            images.warn(f"left out of the report {error}")
            continue
        made.add({"file": str(target), "size": size_of(noisy), "noise": "(denoised before)"}, views)
    return made


# ---------------------------------------------------------------- what the flags say


def _pairs(values):
    """[(source, target)] of all pictures, before anything is loaded."""
    for name in ("input", "output"):
        if not values[name].value:
            raise UserError(f"expected --{name}=FILE or FOLDER, received none.")
    source, target = pathlib.Path(values.input), pathlib.Path(values.output)
    if not source.exists():
        raise UserError(f"--input: expected a picture or a folder, received '{source}', which does not exist.")
    if source.resolve() == target.resolve():
        raise UserError(f"--output: expected another name than that of --input, received '{source}' for both.")
    if not source.is_dir() or zarr_files.is_zarr(source):
        if target.is_dir() and target.suffix.lower() != zarr_files.SUFFIX:
            target = target / source.name
        suffix = target.suffix.lower()
        if suffix not in files.SUFFIXES:
            listed = ", ".join(files.SUFFIXES)
            raise UserError(f"--output: expected a name ending in one of {listed}, received '{target}'.")
        if target.exists() and source.samefile(target):
            raise UserError(f"--output: expected another name than that of --input, received '{source}' for both.")
        if target.resolve() in source.resolve().parents:
            raise UserError(f"--output: expected a name beside --input, received '{target}', which holds it.")
        return _checked(values, [(source, target)])
    if target.is_file():
        raise UserError(f"--output: expected a folder for the pictures of a folder, received the file '{target}'.")
    if source.resolve() in target.resolve().parents:
        raise UserError("--output: expected a folder outside of --input, received one inside it.")
    return _checked(values, [(file, target / name) for file, name in files.find(source)])


def _is_alone(values, pairs):
    """True where --input is a picture, and not a folder of them."""
    return [source for source, _ in pairs] == [pathlib.Path(values.input)]


def _outputs(values, target):
    return files.outputs(target, values.uncertainty, values.preview)


def _pending(values, pairs):
    """The pairs that are not done: the picture, or something that it should have beside it, is missing."""
    if values.overwrite or _is_alone(values, pairs):
        return pairs
    pending = [pair for pair in pairs if not all(map(_is_file, _outputs(values, pair[1])))]
    for _, target in set(pairs) - set(pending):
        pieces.remove_left(target)  # of a start that was killed at the very end
    return pending


def _is_file(path):
    return path.is_file() or zarr_files.is_zarr(path)


def _place(path):
    """The path of a file with all links to folders followed. A link to the file itself is not: writing replaces it."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def _checked(values, pairs):
    """The pairs, if no file would be written over another one of them."""
    owners = {_place(source): source for source, _ in pairs}
    for source, target in pairs:
        for path in _outputs(values, target):
            name = _place(path)
            if name in owners:
                owner = owners[name]
                raise UserError(
                    f"expected a file of its own for each result, received '{path}' for '{source}' and '{owner}'."
                )
            owners[name] = source
    return pairs


@dataclasses.dataclass(frozen=True)
class _Survey:
    """What the pictures have in common.

    files: {file that can be read: how many planes it has}.
    dtypes: {dtype: the first file of it}.
    channels: {number of channels, ascending: the files with such planes}.
    """

    files: dict
    dtypes: dict
    channels: dict


def _survey(values, pairs):
    """Looks at all pictures, those that are done too, so that a second start takes the same range and network."""
    found, dtypes, channels = {}, {}, {}
    for source, target in pairs:
        try:
            picture = files.read(source)
            files.check_target(target, picture)
        except UserError as error:
            if _is_alone(values, pairs):
                raise
            images.warn(f"left out {error}")
            continue
        found[source] = len(picture)
        for dtype in picture.dtypes:
            dtypes.setdefault(dtype.name, source)
        for number in {shape[-1] for shape in picture.shapes}:
            channels.setdefault(number, []).append(source)
    if not found:
        raise UserError("expected pictures that can be read, received none.")
    return _Survey(found, dtypes, dict(sorted(channels.items())))


def _first_planes(survey):
    """The first plane of some pictures of each number of channels, evenly spaced: more than enough for a fit."""
    some = [sources[i] for sources in survey.channels.values() for i in spread(len(sources))]
    return readable(dict.fromkeys(some), lambda source: files.read(source)[0])


def _sampled_planes(counts):
    """Some planes of all files, evenly spaced; damaged ones are left out.

    counts: {file: how many planes it has}.
    """
    ends = list(itertools.accumulate(counts.values()))
    wanted = {}
    for number in spread(ends[-1]):
        which = bisect.bisect_right(ends, number)
        wanted.setdefault(which, []).append(number - ends[which])
    sources = list(counts)
    for which, numbers in wanted.items():
        yield from readable(numbers, files.read(sources[which]).__getitem__)


def _found_range(values, survey, worker):
    """The range of the set, said aloud where it is not that of 8 bit."""
    from ssdn_tf.inference import ranges

    noise_is_known = bool(level_flags.given(values) or values.levels)
    limits, origin = ranges.find(_sampled_planes(survey.files), worker.predictor, noise_is_known)
    if limits != (0.0, 255.0):
        print(f"Range: black {limits[0]:.6g}, white {limits[1]:.6g} ({origin}; --range sets another).")
    return limits


def _levels_of_files(values, pairs):
    """{file: {"sigma": 25.0}} of --levels; of a file without levels, the noise is found. {} without the flag."""
    from_set = values.noise_from == "set"
    ways = ["levels"] * bool(values.levels) + level_flags.given(values)[:1] + ["noise_from=set"] * from_set
    if len(ways) > 1:
        raise UserError(f"--{ways[0]} and --{ways[1]} both say the noise level; give one of them.")
    if not values.levels:
        return {}
    with cli.errors_about("levels"):
        rows = level_flags.read_table(values.levels)
        root = pathlib.Path(values.input)
        alone = _is_alone(values, pairs)
        names = {source: source.name if alone else source.relative_to(root).as_posix() for source, _ in pairs}
        missing = [name for name in names.values() if name not in rows]
        if missing:
            listed = images.enumerate_names(missing)
            raise UserError(f"expected a row for each picture in '{values.levels}', received none for {listed}.")
    return {source: rows[name] for source, name in names.items() if rows[name]}


# ---------------------------------------------------------------- a network for these pictures


def _adapt(values, survey, limits, start, run_dir):
    """Trains a network on the pictures as `train.py --preset=adapt` does; the exit code."""
    from ssdn_tf.commands import train, train_flags

    if values.levels:
        raise UserError("--levels: with --adapt, expected no level, or one of all pictures, received a table.")
    if len(survey.channels) > 1:
        raise UserError("--adapt: expected pictures that are all gray or all colour, received both.")
    train_flags.parse_duration(values.adapt, "adapt")
    flag_values = {
        "preset": "adapt",
        # Not a word such as "sample", which train.py knows.
        "train_data": os.path.join(os.curdir, values.input) if values.input == "sample" else values.input,
        "budget": values.adapt,
        "channels": next(iter(survey.channels)),
        "range": limits and "{},{}".format(*limits),
        "run_dir": run_dir,
        "warm_start": start,
        "precision": values.precision,
    } | {name: values[name].value for name in level_flags.given(values)}
    arguments = [f"--{name}={value}" for name, value in flag_values.items() if value is not None]
    training = cli.parse(train_flags.define, ["train.py", *arguments])
    return train.main(training, shlex.join([*cli.called("denoise"), *sys.argv[1:]]))


def _check_model(values, worker, channels, all_told):
    """Loads the models that the pictures need, tells them the level, and refuses flags that do not fit them.

    all_told: --levels says the level of each picture.
    """
    from ssdn_tf.inference import tiling

    for number in channels:
        model = worker.predictor(number)
        try:
            if values.tile:
                tiling.check_side(values.tile, model.halo, model.grid)
        except ValueError as error:
            raise UserError(f"--tile: {error}") from error
        # For impulse noise the package has no network for gray that could be advised.
        if number == 1 and model.experiment.channels == 3 and model.experiment.noise != "impulse":
            images.warn(
                f"{model.experiment.name} is for pictures in colour; in three copies of a gray picture the noise is "
                "alike, which it does not expect: a network for gray does better."
            )
        parameter = _level(values, model, all_told)
        if parameter is not None:
            worker.parameters[number] = parameter
        if values.uncertainty and model.experiment.pipeline != "blindspot":
            raise UserError(f"--uncertainty: {model.experiment.name} gives no standard deviation.")
        if values.noise_from == "set" and not (model.needs_level and model.can_fit):
            raise UserError(f"--noise_from=set: {model.experiment.name} is not told a noise level, or cannot fit it.")
        model_flag.check_saved_model(values, model)


def _level(values, model, all_told):
    """The noise parameter that the flags say for all pictures, or None."""
    experiment = model.experiment
    levels = level_flags.read(values, experiment.noise)
    flag = level_flags.choice(experiment.noise)
    if (levels or values.levels) and not model.needs_level:
        flag = flag if levels else "--levels"
        images.warn(f"{flag} has no effect: {experiment.name} is not told a noise level.")
        return None
    if levels:
        return experiment.parameter(levels[0])
    if model.needs_level and not (model.can_fit or all_told or (experiment.low is not None and experiment.fixed)):
        raise UserError(f"expected {flag}, as the model must be told the noise level, received none.")
    return None
