"""One object that denoises pictures, whether its model comes from a run, a SavedModel or a published network file."""

import dataclasses
import functools
import json
import math
import pathlib
from typing import NamedTuple

import keras
import numpy as np
from keras import ops

from ssdn_tf.data import images
from ssdn_tf.denoisers import models
from ssdn_tf.denoisers.experiments import Experiment
from ssdn_tf.errors import UserError
from ssdn_tf.inference import checkpoints, precision, pretrained, published, saved_models, tiling
from ssdn_tf.networks.designs import DESIGNS
from ssdn_tf.noise import fitting
from ssdn_tf.noise.levels import LEVELS
from ssdn_tf.noise.prior import Prior

_FITTED = object()
_FITTED_TILES = 4  # tiles of a large picture that a fit reads
SET_PIXELS = 4 * fitting.PIXELS  # that a fit to many pictures reads
MIDDLE = 256  # side of what a fit to many pictures reads of each
AUTO = "auto"  # tiles of the network's own side


class Prediction(NamedTuple):
    """What a predictor says about one picture. Arrays are float32 [H,W,C] in the picture's unit, [0, 1], not clipped.

    denoised: the answer; the posterior mean, if the model has a noise model inside.
    mu_x: mean of the prior, which does not know the pixel's own noisy value.
    prior_std, posterior_std: standard deviation of the prior and of the posterior, per channel.
    noise_parameter: the noise parameter that was used, given or estimated, in the unit of the noise model
        (sigma 25 is 25/255); a tuple where the noise model has two numbers.

    All but `denoised` are None for the pipelines mean, n2c and n2n. `noise_parameter` is None too if the tiles of a
    large picture have different ones (see `Predictor.denoise`).
    """

    denoised: np.ndarray
    mu_x: np.ndarray | None = None
    prior_std: np.ndarray | None = None
    posterior_std: np.ndarray | None = None
    noise_parameter: float | tuple | None = None

    def crop(self, height, width):
        """The prediction for the first `height` rows and `width` columns."""
        return self._replace(**{name: image[:height, :width] for name, image in self.images().items()})

    def images(self):
        """{name: array} of the fields that are pictures."""
        return {name: value for name, value in self._asdict().items() if isinstance(value, np.ndarray)}


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a model was loaded from.

    kind: "run", "saved_model", "published" or "pretrained".
    path: the run's folder, the SavedModel's folder (of one version), or the file of weights.
    details: run: {"options": content of options.json, "position": of the checkpoint};
        SavedModel and pretrained network: its model card;
        published file: {"published_network": name, "licence": sentence}.
    """

    kind: str
    path: pathlib.Path
    details: dict


class Predictor:
    """Denoises pictures of any height and width with one model.

    Args:
        model: a Keras inference model (`denoisers.models.Denoiser.inference`), which may be in training, or
            anything else with its `input` names and its `predict_on_batch`.
        experiment: the Experiment that the model was trained for.
        source: a Source; None for a model made in this process.
    """

    def __init__(self, model, experiment, source=None):
        self.model = model
        self.experiment = experiment
        self.source = source
        self._siblings = {}

    @property
    def needs_level(self):
        """True if the model was trained to be told the noise parameter of each picture."""
        return self.experiment.parameter_source == "known"

    @property
    def can_fit(self):
        """True if the noise parameter can be fitted to a picture; see `noise.fitting`."""
        return self.experiment.pipeline == "blindspot" and isinstance(self.model, keras.Model)

    @property
    def finds_black_level(self):
        """True if `black_level` can be called: for a model of photon noise with readout noise, of unknown levels."""
        noise = models.noise_model(self.experiment)
        return self.can_fit and hasattr(noise, "black_level") and self._parameter(None) is _FITTED

    @property
    def grid(self):
        """Tiles start at multiples of this many pixels."""
        return DESIGNS[self.experiment.network].grid

    @property
    def halo(self):
        """Pixels at the inner borders of a tile that are computed and not kept."""
        return DESIGNS[self.experiment.network].halo(self.experiment.blindspot)

    def denoise(self, noisy, noise_parameter=None, tile=AUTO, ensemble=1):
        """Denoises one picture.

        Args:
            noisy: float32 [H,W,C] in [0, 1] plus noise, any H and W from 1, with the model's number of channels.
            noise_parameter: of the picture, in the unit of the noise model, for models that need it; or "fitted", for
                the one at which this picture is most likely. Default: the level that the model was trained for, if
                it is one level, else fitted. Models with a parameter of their own, or that fit it, ignore a given one.
            tile: pictures of more than tile^2 pixels are denoised in overlapping tiles of this side, a multiple of
                `grid`, which bounds the memory. "auto": that of `networks.designs`. None: never. The result is that of
                the whole picture up to rounding, with three exceptions: a SavedModel that finds the level of each
                picture finds it for each tile; a level is fitted to some of the tiles; and in an ensemble, a flipped
                tile lies on the grid as the flipped picture does only where the sides of the picture are multiples of
                `grid`.
            ensemble: how many orientations of the picture the network sees, 1 to 8 (flips, then transposes); mu_x and
                sigma_x are averaged over them before the noisy pixel is brought in. It takes that many times as long.

        Returns:
            Prediction.

        Raises:
            ValueError: another shape, or a tile side or an ensemble that cannot be used.
            UserError: the model needs a noise parameter and cannot fit one, received none; or a SavedModel and an
                ensemble.
        """
        noisy = np.asarray(noisy, np.float32)
        parts = self.denoise_tiles(noisy, noise_parameter, tile, ensemble)
        return _joined(noisy.shape[:2], (part for _, *part in parts))

    def denoise_tiles(self, noisy, noise_parameter=None, tile=AUTO, ensemble=1, done=()):
        """Denoises one picture tile by tile, so that it need not fit into memory.

        Args:
            noisy: as in `denoise`, or anything with a `shape` [H,W,C] that gives float32 arrays when it is sliced.
            noise_parameter, tile, ensemble: as in `denoise`.
            done: numbers of tiles that are left out.

        Yields:
            (number, tiling.Tile, Prediction for its cut). A picture in one piece is tile 0.

        Raises:
            as `denoise`.
        """
        if not 1 <= ensemble <= 8:
            raise ValueError(f"expected an ensemble of 1 to 8 orientations, received {ensemble}.")
        if ensemble > 1 and not isinstance(self.model, keras.Model):
            raise UserError("expected a run or a network of the package for an ensemble, received a SavedModel.")
        if len(noisy.shape) != 3 or noisy.shape[-1] != self.experiment.channels or not all(noisy.shape):
            raise ValueError(
                f"expected a picture of the shape [H, W, {self.experiment.channels}], received {noisy.shape}."
            )
        parameter = self._parameter(noise_parameter)
        model, tiles = self.model, self.tiles_of(noisy, tile)
        if len(done) == len(tiles or [0]):
            return
        if parameter is _FITTED and not tiles:
            model, parameter = self._sibling("fitted"), np.zeros(len(LEVELS[self.experiment.noise].numbers))
        elif tiles and (parameter is _FITTED or self._estimates_each):
            # A picture has one level, so it is found first and then given to all tiles.
            model, parameter = self._sibling("known"), self.parameter_of_tiles(noisy, noise_parameter, tile)
        run = self._run if ensemble == 1 else functools.partial(self._run_ensemble, ensemble)
        for number, part in enumerate(tiles or [tiling.whole(*noisy.shape[:2])]):
            if number not in done:
                yield number, part, run(model, part.cut(noisy), parameter)

    @property
    def _estimates_each(self):
        return self.experiment.parameter_source == "per_image" and isinstance(self.model, keras.Model)

    def parameter_of_tiles(self, noisy, noise_parameter, tile):
        """The noise parameter that the tiles of a picture share, where it is found; else what is given."""
        if self._parameter(noise_parameter) is _FITTED:
            return self.fit([self.pixels(noisy, tile)])
        if self._estimates_each:
            return self._estimate(noisy, self.tiles_of(noisy, tile))
        return noise_parameter

    def pixels(self, noisy, tile=AUTO):
        """Some thousand pixels of a picture, with what the network says of them: what a fit reads.

        Args:
            noisy, tile: as in `denoise`. Of a picture in tiles, a few tiles are read.

        Returns:
            (noisy [n,C], mu_x [n,C], sigma_x [n,C,C]), NumPy.
        """
        tiles, found = self.tiles_of(noisy, tile) or [tiling.whole(*noisy.shape[:2])], []
        for chosen in tiles[:: -(-len(tiles) // _FITTED_TILES)]:
            part = np.asarray(chosen.cut(noisy), np.float32)
            mu_x, sigma_x = self._prior.predict_on_batch(part[None])
            found.append(fitting.thin(part[None], np.asarray(mu_x), np.asarray(sigma_x)))
        noisy, mu_x, sigma_x = (
            np.concatenate([np.reshape(a, (-1, *a.shape[3:])) for a in arrays]) for arrays in zip(*found)
        )
        lit = ops.convert_to_numpy(fitting.is_lit(mu_x[None]))[0]
        return noisy[lit], mu_x[lit], sigma_x[lit]

    def middle_pixels(self, plane):
        """`pixels` of the middle of a plane [H,W,C] in the unit of the network, C = 1 or 3."""
        return self.pixels(images.to_channels(images.middle(plane, MIDDLE), self.experiment.channels))

    def tiles_of(self, noisy, tile):
        """The tiles of a picture that is too large for one piece, else None."""
        if tile == AUTO:
            tile = DESIGNS[self.experiment.network].tile
        if tile is None or noisy.shape[0] * noisy.shape[1] <= tile**2:
            return None
        return tiling.tiles(*noisy.shape[:2], tile, self.halo, self.grid)

    def fit(self, pixels, noise=None):
        """The maximum-likelihood noise parameter of a set of pictures that were taken alike.

        Args:
            pixels: results of `pixels`, one for each picture.
            noise: a NoiseModel; default: that of the model.

        Returns:
            The parameter, a float or a tuple, in the unit of the noise model.
        """
        noise = noise or models.noise_model(self.experiment)
        noisy, mu_x, sigma_x = together(pixels, SET_PIXELS)
        return plain(ops.convert_to_numpy(noise.fit(noisy, Prior(mu_x, sigma_x))))

    def fit_each(self, sets, default, noise=None):
        """`fit` for each of several sets.

        Many sets at once take little more time than one.

        Args:
            sets: list of what `fit` takes.
            default: a parameter; one that makes the pixels of a set more likely by `fitting.LEAST_GAIN` replaces it.
            noise: as for `fit`.

        Returns:
            list of parameters, one for each set.
        """
        noise = noise or models.noise_model(self.experiment)
        sets = [together(pixels, SET_PIXELS) for pixels in sets]
        count = max(arrays[0].shape[2] for arrays in sets)
        at_once, results = max(1, SET_PIXELS // count), []
        for first in range(0, len(sets), at_once):
            some = [_as_many(arrays, count) for arrays in sets[first : first + at_once]]
            noisy, mu_x, sigma_x = (np.concatenate(arrays) for arrays in zip(*some))
            found, prior = noise.fit_with_prior(noisy, Prior(mu_x, sigma_x))
            nlls = [
                ops.convert_to_numpy(ops.mean(noise.fitted_nll(noisy, prior, parameter), axis=(1, 2)))
                for parameter in (np.reshape(default, (1, 1, 1, -1)).astype(noisy.dtype), found)
            ]
            gains = np.subtract(*nlls)
            own = [plain(parameter) for parameter in ops.convert_to_numpy(found)]
            results += [parameter if gain >= fitting.LEAST_GAIN else default for parameter, gain in zip(own, gains)]
        return results

    def black_level(self, pixels):
        """The black level of a set of pictures that were taken alike, in the unit of the network.

        See `PoissonGaussianNoise.black_level`.

        Args:
            pixels: results of `pixels`, one for each picture.
        """
        noisy, mu_x, sigma_x = together(pixels, fitting.PIXELS)
        return models.noise_model(self.experiment).black_level(noisy, Prior(mu_x, sigma_x))

    @property
    def trained_range(self):
        """(black, white) of the noisy pictures that the model was trained on; None where they were clean."""
        details = self.source.details if self.source else {}
        training = details.get("options") or details.get("training") or {}  # of a run; of a SavedModel
        return tuple(training["value_range"]) if training.get("value_range") else None

    def _parameter(self, given):
        """The noise parameter to feed, zeros where the model ignores it, or _FITTED."""
        size = len(LEVELS[self.experiment.noise].numbers)
        if isinstance(given, str) and given == "fitted":
            if not self.can_fit:
                raise UserError(f"{self.experiment.name} cannot fit the noise to a picture.")
            return _FITTED
        if self.experiment.parameter_source == "fitted" and self.can_fit:
            return _FITTED
        if not self.needs_level:
            return np.zeros(size)
        if given is not None:
            if np.size(given) != size:
                raise ValueError(f"expected a noise parameter of {size} numbers, received {given}.")
            return given
        if self.experiment.low is None or not self.experiment.fixed:
            if self.can_fit:
                return _FITTED
            raise UserError("expected a noise level, as this model does not estimate it, received none.")
        return self.experiment.parameter(self.experiment.low)

    def _run(self, model, noisy, parameter):
        """Prediction for one picture, in one piece."""
        return _prediction(model, {"noisy": noisy[None]}, parameter)

    def _run_ensemble(self, ensemble, model, noisy, parameter):
        """The same, by the mean of several orientations of the picture."""
        sums = None
        for number in range(ensemble):
            found = self._prior.predict_on_batch(images.flip(noisy, number)[None])
            found = found if isinstance(found, list | tuple) else [found]
            found = [images.unflip(np.asarray(array)[0], number) for array in found]
            sums = found if sums is None else [total + array for total, array in zip(sums, found)]
        means = [total / ensemble for total in sums]
        if self.experiment.pipeline != "blindspot":
            return Prediction(*means)
        model, names = self._posterior(model)
        inputs = {"noisy": noisy[None]} | {name: mean[None] for name, mean in zip(names, means)}
        return _prediction(model, inputs, parameter)

    def _posterior(self, model):
        """(the part of an inference model that follows the prior, its names for mu_x and sigma_x as inputs)."""
        key = "posterior", id(model)
        if key not in self._siblings:
            prior = {tensor.name: tensor for tensor in model.get_layer("prior").output}
            self._siblings[key] = _compiled(keras.Model(model.input | prior, model.output)), list(prior)
        return self._siblings[key]

    def _estimate(self, noisy, tiles):
        """Noise parameter of a whole picture: that of the mean of the estimator's map over all pixels."""
        layer = self.model.get_layer("parameter")
        parts = (tile.kept(ops.convert_to_numpy(layer.network(tile.cut(noisy)[None]))[0]) for tile in tiles)
        mean = sum(part.sum(axis=(0, 1), dtype=np.float64) for part in parts) / math.prod(noisy.shape[:2])
        return plain(ops.convert_to_numpy(layer.noise.constrain(ops.convert_to_tensor(mean, "float32"))))

    def with_source(self, source):
        """This predictor with its noise parameter from elsewhere: "known" (it must be told) or "fitted"."""
        experiment = dataclasses.replace(self.experiment, parameter_source=source)
        return Predictor(self._sibling(source), experiment, self.source)

    def _sibling(self, source):
        """The model with its noise parameter from elsewhere, "known" or "fitted", and the weights of now."""
        if source == self.experiment.parameter_source:
            return self.model
        if source not in self._siblings:
            experiment = dataclasses.replace(self.experiment, parameter_source=source)
            dtype = self.model.get_layer("unet").compute_dtype
            self._siblings[source] = _compiled(models.build(experiment, precision=dtype).inference)
        model = self._siblings[source]
        model.get_layer("unet").set_weights(self.model.get_layer("unet").get_weights())
        return model

    @functools.cached_property
    def _prior(self):
        """The part of the model from the noisy picture to mu_x and sigma_x; to the answer, where they are missing."""
        blindspot = self.experiment.pipeline == "blindspot"
        outputs = self.model.get_layer("prior").output if blindspot else [self.model.output["denoised"]]
        return _compiled(keras.Model(self.model.input["noisy"], outputs))


def together(pixels, most):
    """At most `most` of the results of `Predictor.pixels`, evenly spaced, as one picture, float64.

    Returns:
        noisy [1,1,n,C], mu_x [1,1,n,C], sigma_x [1,1,n,C,C].
    """
    step = -(-sum(len(noisy) for noisy, _, _ in pixels) // most)
    return [np.concatenate(arrays)[None, None, ::step].astype("float64") for arrays in zip(*pixels)]


def _as_many(arrays, count):
    """Arrays [1,1,n,...] with `count` pixels, at least n: each is there about equally often."""
    pixels = arrays[0].shape[2]
    return [array[:, :, np.arange(count) * pixels // count] for array in arrays]


def _joined(size, parts):
    """The Prediction of a picture of that size from those of its tiles, an iterable of (Tile, Prediction)."""
    pictures, levels = {}, set()
    for tile, part in parts:
        if (tile.rows.length, tile.columns.length) == size:
            return part
        levels.add(part.noise_parameter)
        for name, image in part.images().items():
            if name not in pictures:
                pictures[name] = np.empty((*size, image.shape[-1]), np.float32)
            tile.place(image, pictures[name])
    return Prediction(**pictures, noise_parameter=levels.pop() if len(levels) == 1 else None)


def _prediction(model, inputs, parameter):
    """What a model says about one picture."""
    if "noise_parameter" in model.input:
        inputs["noise_parameter"] = np.reshape(np.float32(parameter), (1, 1, 1, -1))
    outputs = {name: np.asarray(value) for name, value in model.predict_on_batch(inputs).items()}
    level = outputs.pop("noise_parameter", None)
    return Prediction(
        **{name: value[0] for name, value in outputs.items()},
        noise_parameter=None if level is None else plain(level),
    )


def plain(parameter):
    """A noise parameter as a float, or a tuple of floats."""
    values = tuple(np.ravel(parameter).tolist())
    return values[0] if len(values) == 1 else values


def load(path):
    """Predictor of a network of the package (by its name), a run's folder, a SavedModel (or a folder of its versions),
    or a published network file.

    Raises:
        UserError: `path` is none of these, or is damaged.
    """
    if str(path) in pretrained.names():
        return from_pretrained(path)
    path = pathlib.Path(path)
    if not path.exists():
        raise UserError(
            f"expected one of {', '.join(pretrained.names())}, the folder of a run or of a SavedModel, or a published "
            f"network file, received '{path}', which does not exist."
        )
    if path.is_file():
        return from_published(path)
    return from_saved_model(path) if saved_models.find(path) else from_run(path)


def from_run(folder):
    """Predictor of a training run, from its options.json and checkpoint.npz. The run may go on meanwhile.

    Raises:
        UserError: the folder is not a run, has no checkpoint yet, or is damaged.
    """
    folder = pathlib.Path(folder)
    try:
        options = json.loads((folder / "options.json").read_text())
        experiment = Experiment(**options["experiment"])
        rate = options["rate"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"expected the folder of a run, received '{folder}', whose options.json cannot be read ({error})."
        ) from error
    if (folder / "noise.json").exists():
        # Each training image had a noise of its own, so the one of all is not that of a picture.
        experiment = dataclasses.replace(experiment, low=None, high=None)
    model = models.build(experiment, rate=rate, precision=precision.choose(experiment.network)).inference
    position = checkpoints.load_weights(folder / "checkpoint.npz", model)
    return Predictor(_compiled(model), experiment, Source("run", folder, {"options": options, "position": position}))


def from_pretrained(name):
    """Predictor of a network of the package.

    Raises:
        UserError: there is none of this name.
    """
    card, weights = pretrained.card(name), pretrained.weights(name)
    experiment = Experiment(**card["experiment"])
    model = models.build(experiment, precision=precision.choose(experiment.network)).inference
    checkpoints.load_weights(weights, model)
    return Predictor(_compiled(model), experiment, Source("pretrained", weights, card))


def from_saved_model(path):
    """Predictor of a SavedModel, or of the newest in a folder of versions.

    Raises:
        UserError: there is none, it was not written by this package, or is damaged.
    """
    folder = saved_models.find(path) or pathlib.Path(path)
    card, served = saved_models.load(folder)
    return Predictor(served, Experiment(**card["experiment"]), Source("saved_model", folder, card))


def from_published(path):
    """Predictor of a published network file. The weights are CC BY-NC 4.0, see `published.LICENCE`.

    The noise level of its experiment is unknown if the name of the file does not say it; see `published.with_levels`.

    Raises:
        UserError: the file is not a published network, or is damaged.
    """
    network = published.read(path)
    model = published.denoiser(network).inference
    details = {"published_network": network.name, "licence": published.LICENCE}
    return Predictor(_compiled(model), network.experiment, Source("published", pathlib.Path(path), details))


def _compiled(model):
    """The model, without XLA where that is possible: it would compile again for each size of a picture."""
    model.compile(jit_compile=keras.backend.backend() == "jax")
    return model
