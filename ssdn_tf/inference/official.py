"""The published network files, read without running anything that they carry, as our model.

A published file is a pickle of one `dnnlib.tflib.network.Network`. `inert` reads it into records that do
nothing; the arrays are made here, from records that were checked. What the network is follows from its
state, whatever the file is called.

    state            build_func_name, static_kwargs, variables, version (2 or 3), and more that is not read
    static_kwargs    blindspot_pipeline: noise_style (gauss25, gauss5_50, poisson30, impulse0_100 in per
                     cent), noise_params (known, global, per_image), diagonal_covariance
                     simple_pipeline: blindspot, noisy_targets, noise_style
    variables        pairs (name, float32 array), see `layout`

What static_kwargs leaves out of noise_params, diagonal_covariance and blindspot follows from the
variables. For a simple_pipeline, whose answer does not depend on it, noise_style and noisy_targets may
also come from the network's own name or else the file's, if that is one of the 46 published names.
"""

import contextlib
import dataclasses
import math
import pathlib
import re

import numpy as np

from ssdn_tf.denoisers import experiments, models
from ssdn_tf.errors import UserError
from ssdn_tf.inference import checkpoints, inert
from ssdn_tf.noise import prior
from ssdn_tf.noise.levels import LEVELS

LICENCE = (
    "The weights of the published networks (Laine et al. 2019) are licensed under CC BY-NC 4.0, in whatever format: "
    "with attribution, for non-commercial use only."
)
MAX_WIDTH = 256  # features of the encoder; published: 48
_ESTIMATOR = "param_estimation_net/"
_LITTLE_ENDIAN = (3, "<", None, None, None, -1, -1, 0)  # state of a pickled dtype without a structure


@dataclasses.dataclass(frozen=True)
class OfficialNetwork:
    """name: of the file; weights: {published name: float32 array}, those of `layout(experiment, width)`."""

    name: str
    experiment: experiments.Experiment
    width: int
    weights: dict


def read(path):
    """The network in a published file.

    Raises:
        UserError: the file cannot be read, is another's, is damaged, or contradicts itself.
    """
    try:
        return _interpret(inert.load(path), pathlib.Path(path).stem)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def denoiser(network):
    """Our model of an OfficialNetwork, with its weights.

    Returns:
        denoisers.Denoiser.

    Raises:
        UserError: the weights are not exactly those of the model.
    """
    built = models.build(network.experiment, width=network.width)
    ours = {published_name(path): v for path, v in checkpoints.named_variables(built.training).items()}
    shapes = {name: weight.shape for name, weight in network.weights.items()}
    _check_layout(shapes, {name: tuple(v.shape) for name, v in ours.items()}, network.experiment)
    for name, variable in ours.items():
        variable.assign(network.weights[name])
    return built


def published_name(path):
    """The published name of a variable of ours: unet/enc_conv0/kernel -> enc_conv0/W."""
    *networks, layer, variable = path.split("/")
    if variable == "noise_data":
        return variable
    prefix = _ESTIMATOR if _ESTIMATOR.strip("/") in networks else ""
    return prefix + layer + {"kernel": "/W", "bias": "/b"}[variable]


def layout(experiment, width=48):
    """{published name: shape} of the variables of an experiment's network."""
    channels, bayesian = experiment.channels, experiment.pipeline == "blindspot"
    outputs = prior.component_count(channels, experiment.diagonal) if bayesian else channels
    shapes = _unet_layout("", channels, outputs, width, bayesian or experiment.pipeline == "mean")
    if experiment.parameter_source == "per_image":
        shapes |= _unet_layout(_ESTIMATOR, channels, 1, width, blindspot=False)
    if experiment.parameter_source == "global":
        shapes["noise_data"] = (1, 1, 1, 1)
    return shapes


def _unet_layout(prefix, channels, outputs, width, blindspot):
    up = 2 * width
    joined = 4 * up if blindspot else up
    layers = {f"enc_conv{i}": (3, width if i else channels, width) for i in range(7)}
    for level in range(5, 0, -1):
        low, skip = (width if level == 5 else up), (channels if level == 1 else width)
        layers |= {f"dec_conv{level}a": (3, low + skip, up), f"dec_conv{level}b": (3, up, up)}
    layers |= {"nin_a": (1, joined, joined), "nin_b": (1, joined, up), "nin_c": (1, up, outputs)}
    shapes = {}
    for layer, (size, inputs, filters) in layers.items():
        shapes |= {f"{prefix}{layer}/W": (size, size, inputs, filters), f"{prefix}{layer}/b": (filters,)}
    return shapes


def _interpret(network, name):
    """OfficialNetwork of what was unpickled; `name` of the file."""
    inert.expect(type(network) is inert.Network, "an object of the class dnnlib.tflib.network.Network", network)
    state = network.state
    inert.expect(type(state) is dict, "the network's state as a dict", state)
    inert.expect(state.get("version") in (2, 3), "a network file of version 2 or 3", state.get("version"))
    inert.expect(type(state.get("static_kwargs")) is dict, "static_kwargs as a dict", state.get("static_kwargs"))
    pairs, arrays = state.get("variables"), {}
    inert.expect(type(pairs) is list, "variables as a list of (name, array)", pairs)
    for pair in pairs:
        inert.expect(type(pair) is tuple and len(pair) == 2, "variables as a list of (name, array)", pair)
        inert.expect(type(pair[0]) is str, "the name of a variable", pair[0])
        inert.expect(pair[0] not in arrays, "each variable once", pair[0])
        arrays[pair[0]] = _header(*pair)
    shapes = {variable: header[0] for variable, header in arrays.items()}
    width, experiment = _experiment(state, shapes, name)
    expected = layout(experiment, width)
    _check_layout(shapes, expected, experiment)
    weights = {variable: _values(variable, shape, *arrays[variable][1:]) for variable, shape in expected.items()}
    return OfficialNetwork(name, experiment, width, weights)


def _header(name, array):
    """(shape, whether in Fortran's order, bytes) as the record of a float32 array has them, unchecked."""
    expected = f"the variable {inert.shown(name)} as an array of float32, ('f4', '<')"
    inert.expect(type(array) is inert.Array and array.arguments[:1] == (inert.ArrayType,), expected, array)
    state = array.state
    inert.expect(type(state) is tuple and len(state) == 5 and type(state[2]) is inert.DType, expected, state)
    version, shape, dtype, fortran, data = state
    details = dtype.state if type(dtype.state) is tuple else ()
    inert.expect(
        dtype.arguments[:1] == ("f4",) and details == _LITTLE_ENDIAN, expected, dtype.arguments[:1] + details[1:2]
    )
    inert.expect(version == 1 and type(fortran) is bool, f"{expected}, version 1 and in order", (version, fortran))
    return shape, fortran, data


def _values(name, shape, fortran, data):
    """float32 array of a shape."""
    what, size = f"the variable {inert.shown(name)}", 4 * math.prod(shape)
    if type(data) is inert.Encoded and data.arguments[1:] == ("latin1",) and type(data.arguments[0]) is str:
        with contextlib.suppress(UnicodeEncodeError):
            data = data.arguments[0].encode("latin1")
    inert.expect(type(data) is bytes, f"{what} as bytes", data)
    inert.expect(len(data) == size, f"{size} bytes of {what}", len(data))
    values = np.frombuffer(data, "<f4").reshape(shape, order="F" if fortran else "C").astype(np.float32, order="C")
    if not np.isfinite(values).all():
        raise UserError(f"expected {what} as finite numbers, received others.")
    return values


def _experiment(state, shapes, name):
    """(width, Experiment), from static_kwargs and from shapes that are not yet compared with its layout."""
    first = shapes.get("enc_conv0/W")
    inert.expect(
        type(first) is tuple and len(first) == 4, "the variable 'enc_conv0/W' as (3, 3, channels, width)", first
    )
    channels, width = first[2:]
    inert.expect(type(channels) is int and channels in (1, 3), "1 or 3 channels", channels)
    inert.expect(type(width) is int and 1 <= width <= MAX_WIDTH, f"1 to {MAX_WIDTH} features in enc_conv0", width)
    options, function = state["static_kwargs"], state.get("build_func_name")
    if function == "blindspot_pipeline":
        estimated = any(variable.startswith(_ESTIMATOR) for variable in shapes)
        source = "per_image" if estimated else "global" if "noise_data" in shapes else "known"
        source = options.get("noise_params", source)
        inert.expect(source in experiments.SOURCES, "noise_params as known, global or per_image", source)
        diagonal = channels == 3 and shapes.get("nin_c/b") == (prior.component_count(3, diagonal=True),)
        fields = {"parameter_source": source, "diagonal": _flag(options, "diagonal_covariance", diagonal)}
        return width, experiments.Experiment(**_noise(options.get("noise_style")), channels=channels, **fields)
    inert.expect(function == "simple_pipeline", "build_func_name as blindspot_pipeline or simple_pipeline", function)
    label = _label(state.get("name")) or _label(name)
    if _flag(options, "blindspot", shapes.get("nin_a/b") == (8 * width,)):
        pipeline = "mean"
    else:
        pipeline = "n2n" if _flag(options, "noisy_targets", label and label.pipeline == "n2n") else "n2c"
    fields = {"pipeline": pipeline, "parameter_source": None, "channels": channels}
    if "noise_style" in options or not label:
        return width, experiments.Experiment(**_noise(options.get("noise_style")), **fields)
    experiment = dataclasses.replace(label, **fields)
    inert.expect(experiment == label, f"a noise_style, or the name of a network like {experiment.name}", label.name)
    return width, experiment


def _noise(style):
    """The fields noise, low and high of a noise_style."""
    level = "(0|[1-9][0-9]{0,2})"
    found = re.fullmatch(f"(gauss|poisson|impulse){level}(?:_{level})?", style if type(style) is str else "")
    inert.expect(found, "noise_style such as gauss25, gauss5_50, poisson30 or impulse0_100", style)
    (known,) = [level for level in LEVELS.values() if level.short == found[1]]
    low, high = (int(number) / known.label_scale for number in (found[2], found[3] or found[2]))
    legal = known.low <= low <= high <= known.high and found[2] != found[3]
    lowest, highest = (f"{known.label_scale * bound:.10g}" for bound in (known.low, known.high))
    inert.expect(legal, f"noise_style with a level from {lowest} to {highest}, or two in ascending order", style)
    return {"noise": known.kind, "low": low, "high": high}


def _label(name):
    """The published experiment that a name such as network-00013-gauss25-n2c spells, or None."""
    return experiments.PUBLISHED.get(re.sub("^network-[0-9]+-", "", name)) if type(name) is str else None


def _flag(options, name, default):
    value = options.get(name, default)
    inert.expect(type(value) is bool, f"{name} in static_kwargs as True or False", value)
    return value


def _check_layout(received, expected, experiment):
    """Refuses shapes {name: shape} that are not the expected ones of an experiment's network."""
    for name, shape in expected.items():
        what = f"the variable {inert.shown(name)} of {experiment.name} as {inert.shown(shape)}"
        inert.expect(received.get(name) == shape, what, received.get(name))
    for name in received:
        inert.expect(name in expected, f"only variables of {experiment.name}", name)
