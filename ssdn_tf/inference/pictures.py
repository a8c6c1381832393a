"""Denoises pictures in the units they come in: arrays and files of any dtype, range and number of planes."""

import collections.abc
import functools
import pathlib
from typing import NamedTuple

import numpy as np

from ssdn_tf.data import files, images
from ssdn_tf.data.planes import UnitView, readable, spread
from ssdn_tf.errors import UserError
from ssdn_tf.inference import precision, predictor, pretrained, ranges
from ssdn_tf.noise.levels import LEVELS


class Denoised(NamedTuple):
    """Results, in the unit of the input.

    denoised: array of the input's shape and dtype.
    std: float32 array of that shape, the standard deviation of the result; None if the model has none.
    noise: dict of what was found or given for each picture: "sigma" (std, in 255ths of the range), "lam" (photons at
        white) or "alpha". A list of dicts for several pictures.
    """

    denoised: np.ndarray
    std: np.ndarray | None
    noise: object


class PictureDenoiser:
    """Denoises planes with the networks that fit them.

    Args:
        model: what `predictor.load` takes, for all planes; None: the networks of the package for additive noise, in
            colour or gray as the plane is.
        tile, ensemble: see `Predictor.denoise`.
        load: function of `model` that gives its Predictor; default `predictor.load`.

    workers: how many processes denoise at the same time.
    parameters: {number of channels: noise parameter of all such planes}; where there is none, it is fitted to each
        plane (or comes from the model).
    """

    workers = 1

    def __init__(self, model=None, tile=predictor.AUTO, ensemble=1, load=None):
        self._model, self._load = model, load or predictor.load
        self.tile, self.ensemble = tile, ensemble
        self.parameters = {}
        self._loaded = {}

    def predictor(self, channels):
        """The Predictor for planes with so many channels.

        Raises:
            UserError: it would lose the colours.
        """
        name = self._model or pretrained.DEFAULTS[channels]
        if name not in self._loaded:
            self._loaded[name] = self._load(name)
        found = self._loaded[name]
        if channels > found.experiment.channels:
            raise UserError(f"expected a network for colour, received {name}, which is for gray pictures.")
        return found

    def fit_set(self, planes, limits):
        """Fits one noise parameter to all planes (an iterable of arrays), for those of their number of channels."""
        pixels = {}
        for plane in planes:
            model, view, _ = self._prepared(plane, limits, None)  # outside `readable`: a network is no damaged picture
            found = readable([view], functools.partial(model.pixels, tile=self.tile))
            pixels.setdefault(plane.shape[-1], []).extend(found)
        self.parameters = {channels: self.predictor(channels).fit(found) for channels, found in pixels.items() if found}

    def plane(self, plane, limits, noise=None):
        """Denoises a plane.

        Args:
            plane: [H,W,C], any real dtype.
            limits: (black, white), see `data.planes.measured_range`.
            noise: of this plane, such as {"sigma": 25}; it goes before `parameters`.

        Returns:
            (denoised float64 [H,W,C], std float32 [H,W,C] or None, noise dict). The first two in the unit of the plane.
        """
        arrays, found = {}, {}
        for _, tile, denoised, std, noise_of_tile in self.tiles(plane, limits, noise):
            found = noise_of_tile
            for name, part in (("denoised", denoised), ("std", std)):
                if part is not None:
                    if name not in arrays:
                        arrays[name] = np.empty(plane.shape, part.dtype)
                    tile.place(part, arrays[name])
        return arrays["denoised"], arrays.get("std"), found

    def _prepared(self, plane, limits, noise):
        """(Predictor, the plane as it sees it, noise parameter that is given or None) of a plane."""
        model = self.predictor(plane.shape[-1])
        parameter = parameter_of(noise, model.experiment) if noise else self.parameters.get(plane.shape[-1])
        return model, UnitView(plane, limits, model.experiment.channels), parameter

    def tiles(self, plane, limits, noise=None, done=()):
        """Denoises a plane tile by tile: yields (number, tiling.Tile, and for its cut what `plane` returns).

        done: numbers of tiles that are left out.
        """
        channels, scale = plane.shape[-1], limits[1] - limits[0]
        model, view, parameter = self._prepared(plane, limits, noise)
        for number, tile, part in model.denoise_tiles(view, parameter, self.tile, self.ensemble, done):
            denoised = images.to_channels(part.denoised, channels).astype(np.float64) * scale + limits[0]
            std = part.posterior_std
            std = None if std is None else images.to_channels(std, channels) * np.float32(scale)
            yield number, tile, denoised, std, noise_found(model.experiment, part.noise_parameter)


def noise_found(experiment, parameter):
    """{"sigma": 24.8} and the like, of a noise parameter; {} where there is none."""
    if parameter is None:
        return {}
    level = LEVELS[experiment.noise]
    values = dict(zip((number.name for number in level.numbers), level.split(level.to_level(parameter))))
    if len(values) == 2 and any(parameter):  # of two kinds of noise, one that is not there is not mentioned
        values = {n.name: values[n.name] for n, part in zip(level.numbers, parameter) if part}
    return {name: value for name, value in values.items() if value is not None}


def describe(*noises):
    """Dicts of `noise_found` in words: "sigma 24.8", or the least and the most, "sigma 24.1 to 25"."""
    parts = []
    for name in dict.fromkeys(name for noise in noises for name in noise):
        found = [noise[name] for noise in noises if name in noise]
        least, most = f"{min(found):.3g}", f"{max(found):.3g}"
        parts.append(f"{name} {least}" + ("" if least == most else f" to {most}"))
    return ", ".join(parts) or "noise level unknown"


def denoise(image, *, model=None, noise=None, value_range=None, tile=predictor.AUTO, ensemble=1):
    """Denoises an array.

    Args:
        image: [H,W] gray, [H,W,3] colour, or a stack of them, [N,...,H,W] or [N,...,H,W,3]; a last axis of 3 or 1 is
            that of the channels. Any real dtype, integer or float.
        model: a network of the package by its name, a run's folder, a SavedModel or a published file. Default: the
            network of the package for additive noise, in colour or gray.
        noise: what is known of the noise, such as {"sigma": 25} (std, in 255ths of the range), {"lam": 30} (photons at
            white), both, or {"alpha": 0.5}. Default: found by maximum likelihood, for each picture.
        value_range: (black, white); default: see `ranges.find`.
        tile: pictures of more than tile^2 pixels are denoised in tiles; see `Predictor.denoise`.
        ensemble: orientations of the picture, 1 to 8, whose priors are averaged: better, and as many times as slow.

    Returns:
        Denoised.

    Raises:
        UserError: the image is none, or has NaN; the model is none, or for gray pictures only; the range or the noise
            is none.
        ValueError: an ensemble or a tile side that cannot be used.
    """
    image = np.asarray(image)
    if image.ndim < 2 or not image.size or image.dtype.kind not in "uif":
        raise UserError(f"expected an image [H,W] or [H,W,3] of numbers, received {image.dtype} {image.shape}.")
    if image.dtype.kind == "f" and not np.isfinite(image).all():
        raise UserError("expected finite numbers, received NaN or infinity.")
    has_channels = image.ndim > 2 and image.shape[-1] in (1, 3)
    planes = image if has_channels else image[..., None]
    planes = planes.reshape(-1, *planes.shape[-3:])
    images.check_size("image", planes[0].shape)
    worker = PictureDenoiser(model, tile, ensemble, load=load_once)
    sampled = (planes[i] for i in spread(len(planes)))
    if value_range is None:
        limits = ranges.find(sampled, worker.predictor, noise is not None)[0]
    else:
        limits = images.checked_range(value_range)
    if noise is not None:
        channels = planes.shape[-1]
        worker.parameters[channels] = parameter_of(noise, worker.predictor(channels).experiment)
    denoised, stds, found = np.empty(planes.shape, image.dtype), [], []
    for number, plane in enumerate(planes):
        result, std, noise_of_plane = worker.plane(plane, limits)
        denoised[number] = files.cast(result, image.dtype)
        stds.append(std)
        found.append(noise_of_plane)
    std = None if stds[0] is None else np.stack(stds).reshape(image.shape)
    return Denoised(denoised.reshape(image.shape), std, found[0] if len(found) == 1 else found)


def load_once(name):
    """`predictor.load`, which keeps the last few: loading and tracing take seconds, a small picture does not."""
    return _load_at(str(name), stamp(name), precision.used())


def stamp(name):
    """When the weights of a model were last written, in ns; None for the name of a network of the package."""
    path = pathlib.Path(name)
    files = (path / "checkpoint.npz", path / "saved_model.pb", path)
    return next((file.stat().st_mtime_ns for file in files if file.exists()), None)


@functools.lru_cache(maxsize=4)
def _load_at(name, stamp, precision):
    return predictor.load(name)


def parameter_of(noise, experiment):
    """The noise parameter of a model from a dict such as {"sigma": 25}.

    Raises:
        UserError: the model is for another noise, or the number is not legal.
    """
    level = LEVELS[experiment.noise]
    names = [number.name for number in level.numbers]
    if not isinstance(noise, collections.abc.Mapping) or not noise or set(noise) - set(names):
        found = ", ".join(map(str, noise)) if isinstance(noise, collections.abc.Mapping) else repr(noise)
        raise UserError(f"noise: expected {' or '.join(names)} for {experiment.name}, received {found or 'nothing'}.")
    try:
        for number in level.numbers:
            if number.name in noise:
                number.check(noise[number.name])
    except ValueError as error:
        raise UserError(f"noise: {error}") from error
    return level.to_parameter(level.join(noise.get(number.name, number.absent) for number in level.numbers))
