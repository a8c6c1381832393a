"""The published network files, as our models. Nothing in a file is ever executed.

A published file is a pickle of one `dnnlib.tflib.network.Network`. `pickles` reads it into inert records; this module
checks the records and makes the arrays. The state of the network has these entries, and others that are not read:

    version          2 or 3
    build_func_name  blindspot_pipeline or simple_pipeline
    static_kwargs    noise_style: gauss, poisson or impulse, without a level
                     blindspot_pipeline: noise_params (known, global, per_image), diagonal_covariance
                     simple_pipeline: blindspot, noisy_targets
    variables        list of (name, float32 array)

The network's own name is "net" in all files, so the noise level, on which no weight depends, is in the name of the
file alone: network-00013-gauss25-n2c.pickle. If that does not spell one of the 46 published configurations, or spells
one that contradicts the state, the level is unknown, unless the user says it (`with_levels`).
"""

import contextlib
import dataclasses
import math
import pathlib
import re

import numpy as np

from ssdn_tf.denoisers import experiments, models
from ssdn_tf.denoisers.experiments import Experiment
from ssdn_tf.errors import UserError
from ssdn_tf.inference import checkpoints, pickles, precision
from ssdn_tf.networks.designs import DESIGNS
from ssdn_tf.noise import prior
from ssdn_tf.noise.levels import LEVELS

LICENCE = (
    "The weights of the published networks (Laine et al. 2019) are licensed under CC BY-NC 4.0, in whatever format: "
    "with attribution, for non-commercial use only."
)
MAX_WIDTH = 256  # features of the encoder; published: 48
_ESTIMATOR = "param_estimation_net"
_LITTLE_ENDIAN = (3, "<", None, None, None, -1, -1, 0)  # state of a pickled dtype without a structure
_LEVEL_UNKNOWN = {"low": None, "high": None}


@dataclasses.dataclass(frozen=True)
class PublishedNetwork:
    """Content of a published file.

    path: of the file.
    experiment: what the network was trained for, and its width; `low` and `high` are None if the level is unknown.
    weights: {published name: float32 array}.
    """

    path: pathlib.Path
    experiment: Experiment
    weights: dict

    @property
    def name(self):
        """That of the file, without its suffix."""
        return self.path.stem


def read(path):
    """Reads a published file. `denoiser` then compares its weights with those that the network has.

    Returns:
        PublishedNetwork.

    Raises:
        UserError: the file cannot be read, is not a published network, is damaged, or contradicts itself.
    """
    try:
        return _interpret(pickles.load(path), pathlib.Path(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def denoiser(network):
    """Our models of a PublishedNetwork, with its weights.

    Returns:
        denoisers.models.Denoiser.

    Raises:
        UserError: the names or shapes of the weights are not exactly those of our model; nothing is assigned then.
    """
    built = models.build(network.experiment, precision=precision.choose(network.experiment.network))
    ours = {published_name(path): v for path, v in checkpoints.named_variables(built.inference).items()}
    try:
        _check_weights(network, ours)
    except UserError as error:
        raise UserError(f"{network.path}: {error}") from error
    for name, variable in ours.items():
        variable.assign(network.weights[name])
    return built


def _check_weights(network, ours):
    """Refuses weights whose names or shapes are not those of our variables {published name: variable}."""
    for name, variable in ours.items():
        shape, weight = tuple(variable.shape), network.weights.get(name)
        what = f"the variable {pickles.shown(name)} of {network.experiment.name} as {pickles.shown(shape)}"
        pickles.expect(weight is not None and weight.shape == shape, what, weight if weight is None else weight.shape)
    for name in network.weights:
        pickles.expect(name in ours, f"only variables of {network.experiment.name}", name)


def published_name(path):
    """The published name of one of our variables: unet/enc_conv0/kernel -> enc_conv0/W."""
    *networks, layer, variable = path.split("/")
    if variable == "noise_data":
        return variable
    prefix = f"{_ESTIMATOR}/" if _ESTIMATOR in networks else ""
    return prefix + layer + {"kernel": "/W", "bias": "/b"}[variable]


def with_levels(experiment, low, high):
    """The experiment of a published network, with the levels that the user says it was trained for.

    Raises:
        ValueError: the file says other levels.
    """
    known = experiment.low is not None
    if known and (experiment.low, experiment.high) != (low, high):
        raise ValueError(f"expected the noise level of {experiment.name}, or none, received another.")
    return dataclasses.replace(experiment, low=low, high=high)


def _interpret(network, path):
    """PublishedNetwork from an unpickled record and the path of its file."""
    pickles.expect(type(network) is pickles.Network, "an object of the class dnnlib.tflib.network.Network", network)
    state = network.state
    pickles.expect(type(state) is dict, "the network's state as a dict", state)
    pickles.expect(state.get("version") in (2, 3), "a network file of version 2 or 3", state.get("version"))
    pickles.expect(type(state.get("static_kwargs")) is dict, "static_kwargs as a dict", state.get("static_kwargs"))
    pairs, weights = state.get("variables"), {}
    pickles.expect(type(pairs) is list, "variables as a list of (name, array)", pairs)
    for pair in pairs:
        pickles.expect(type(pair) is tuple and len(pair) == 2, "variables as a list of (name, array)", pair)
        pickles.expect(type(pair[0]) is str, "the name of a variable", pair[0])
        pickles.expect(pair[0] not in weights, "each variable once", pair[0])
        weights[pair[0]] = _array(*pair)
    shapes = {variable: array.shape for variable, array in weights.items()}
    return PublishedNetwork(path, _experiment(state, shapes, path.stem), weights)


# ---------------------------------------------------------------- arrays


def _array(name, record):
    """float32 array from the record of one."""
    what = f"the variable {pickles.shown(name)}"
    shape, fortran, data = _header(f"{what} as an array of float32, ('f4', '<')", record)
    legal = type(shape) is tuple and len(shape) <= 4 and all(type(n) is int and 0 <= n < 2**20 for n in shape)
    pickles.expect(legal, f"the shape of {what}", shape)
    if type(data) is pickles.Encoded and data.arguments[1:] == ("latin1",) and type(data.arguments[0]) is str:
        with contextlib.suppress(UnicodeEncodeError):
            data = data.arguments[0].encode("latin1")
    size = 4 * math.prod(shape)
    pickles.expect(type(data) is bytes, f"{what} as bytes", data)
    pickles.expect(len(data) == size, f"{size} bytes of {what}", len(data))
    values = np.frombuffer(data, "<f4").reshape(shape, order="F" if fortran else "C").astype(np.float32, order="C")
    if not np.isfinite(values).all():
        raise UserError(f"expected {what} as finite numbers, received NaN or infinity.")
    return values


def _header(expected, record):
    """(shape, True if in Fortran order, data) of a float32 array's record; the three are not checked yet."""
    pickles.expect(type(record) is pickles.Array and record.arguments[:1] == (pickles.ArrayType,), expected, record)
    state = record.state
    pickles.expect(type(state) is tuple and len(state) == 5 and type(state[2]) is pickles.DType, expected, state)
    version, shape, dtype, fortran, data = state
    details = dtype.state if type(dtype.state) is tuple else ()
    is_float32 = dtype.arguments[:1] == ("f4",) and details == _LITTLE_ENDIAN
    pickles.expect(is_float32, expected, dtype.arguments[:1] + details[1:2])
    pickles.expect(version == 1 and type(fortran) is bool, f"{expected}, with version and order", (version, fortran))
    return shape, fortran, data


# ---------------------------------------------------------------- experiment


def _experiment(state, shapes, file_name):
    """Experiment of a network."""
    first = shapes.get("enc_conv0/W", ())
    pickles.expect(len(first) == 4, "the variable 'enc_conv0/W' as (3, 3, channels, width)", first or None)
    channels, width = first[2:]
    pickles.expect(channels in (1, 3), "1 or 3 channels", channels)
    pickles.expect(1 <= width <= MAX_WIDTH, f"1 to {MAX_WIDTH} features in enc_conv0", width)
    options, function = state["static_kwargs"], state.get("build_func_name")
    named = _named(file_name)
    styles = {level.short: kind for kind, level in LEVELS.items()}
    # The answer of a simple_pipeline does not depend on the noise, so there the file's name may say it instead.
    default = LEVELS[named.noise].short if named and function == "simple_pipeline" else None
    style = options.get("noise_style", default)
    pickles.expect(type(style) is str and style in styles, f"noise_style as one of {', '.join(styles)}", style)
    if function == "blindspot_pipeline":
        fields = _blindspot_fields(options, shapes, channels)
    else:
        pickles.expect(
            function == "simple_pipeline", "build_func_name as blindspot_pipeline or simple_pipeline", function
        )
        fields = _simple_fields(options, shapes, width, named)
    stated = Experiment(noise=styles[style], channels=channels, **_LEVEL_UNKNOWN, **fields)
    agrees = named and dataclasses.replace(named, **_LEVEL_UNKNOWN) == stated
    return dataclasses.replace(named if agrees else stated, width=None if width == DESIGNS["paper"].width else width)


def _blindspot_fields(options, shapes, channels):
    """Fields of an Experiment. What static_kwargs leaves out follows from the variables."""
    estimated = any(variable.startswith(f"{_ESTIMATOR}/") for variable in shapes)
    source = "per_image" if estimated else "global" if "noise_data" in shapes else "known"
    source = options.get("noise_params", source)
    known = type(source) is str and source in experiments.SOURCES
    pickles.expect(known, "noise_params as known, global or per_image", source)
    diagonal = channels == 3 and shapes.get("nin_c/b") == (prior.component_count(3, diagonal=True),)
    return {"parameter_source": source, "diagonal": _flag(options, "diagonal_covariance", diagonal)}


def _simple_fields(options, shapes, width, named):
    """Fields of an Experiment. Targets leave no trace in the variables, so the file's name may say which they were."""
    if _flag(options, "blindspot", shapes.get("nin_a/b") == (8 * width,)):
        pipeline = "mean"
    else:
        pipeline = "n2n" if _flag(options, "noisy_targets", named and named.pipeline == "n2n") else "n2c"
    return {"pipeline": pipeline, "parameter_source": None}


def _flag(options, name, default):
    value = options.get(name, default)
    pickles.expect(type(value) is bool, f"{name} in static_kwargs as True or False", value)
    return value


def _named(file_name):
    """The published Experiment that a name such as network-00013-gauss25-n2c spells, or None."""
    return experiments.PUBLISHED.get(re.sub("^network-([0-9]+|final)-", "", file_name))
