"""Published network files are loaded to the last bit, or refused in one sentence; nothing in them is executed.

This module writes the files itself, in the documented format and with the published class names, because the published
files are not part of the repository.
"""

import builtins
import collections
import copyreg
import dataclasses
import functools
import io
import math
import os
import pathlib
import pickle
import struct
import sys
import types

import numpy as np
import pytest
import support
from test_reference import CONFIGURATIONS, META, VALUES, recipe

from ssdn_tf.denoisers import models
from ssdn_tf.denoisers.experiments import PUBLISHED
from ssdn_tf.errors import UserError
from ssdn_tf.inference import checkpoints, pickles, predictor, published

KNOWN = PUBLISHED["gauss25-blindspot-sigma_known"]
N2C = PUBLISHED["gauss25-n2c"]
SMALL_KNOWN = dataclasses.replace(KNOWN, width=2, low=None, high=None)
UNKNOWN = {"low": None, "high": None}


# ---------------------------------------------------------------- writing such files


class Network:
    """Pickled like a published network."""

    def __init__(self, state):
        self.state = state

    def __getstate__(self):
        return self.state


class EasyDict(dict):
    pass


class Optimizer:
    pass


def _reconstruct(*arguments):
    """Stands for the function of NumPy 1 in the files that it wrote."""


FAKES = {
    "dnnlib": {},
    "dnnlib.tflib": {},
    "dnnlib.tflib.network": {"Network": Network, "Optimizer": Optimizer},
    "dnnlib.util": {"EasyDict": EasyDict},
    "numpy.core.multiarray": {"_reconstruct": _reconstruct},
}
for _module, _members in FAKES.items():
    for _member in _members.values():
        _member.__module__ = _module


class Writer(pickle.Pickler):
    numpy_1 = True

    def reducer_override(self, value):
        if self.numpy_1 and type(value) is np.ndarray:
            _, arguments, state = value.__reduce__()
            return _reconstruct, arguments, state
        return NotImplemented


def pickled(value, protocol=2, numpy_1=True):
    """Bytes of a pickle in which the classes above have their published names."""
    file = io.BytesIO()
    with pytest.MonkeyPatch.context() as patch:
        for name, members in FAKES.items():
            module = types.ModuleType(name)
            vars(module).update(members)
            patch.setitem(sys.modules, name, module)
        writer = Writer(file, protocol)
        writer.numpy_1 = numpy_1
        writer.dump(value)
    return file.getvalue()


STYLES = {"gaussian": "gauss", "poisson": "poisson", "impulse": "impulse"}


def without_level(experiment):
    return dataclasses.replace(experiment, low=None, high=None)


def state_of(experiment, weights):
    """The state of a published network with these weights."""
    if experiment.pipeline == "blindspot":
        function = "blindspot_pipeline"
        options = {"noise_params": experiment.parameter_source, "diagonal_covariance": experiment.diagonal}
    else:
        function = "simple_pipeline"
        options = {"blindspot": experiment.pipeline == "mean", "noisy_targets": experiment.pipeline != "n2c"}
    return {
        "version": 3,
        "name": "net",
        "static_kwargs": EasyDict(options, noise_style=STYLES[experiment.noise]),
        "components": EasyDict(),
        "build_module_src": "def build(): pass",
        "build_func_name": function,
        "variables": list(weights.items()),
    }


def random_weights(experiment, width=2):
    rng = np.random.default_rng(0)
    shapes = layout(without_level(experiment), width)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@functools.cache
def layout(experiment, width=48):
    """{published name: shape}; that it is the published one is shown by the reference."""
    variables = checkpoints.named_variables(models.build(support.narrow(experiment, width)).inference)
    return {published.published_name(path): tuple(variable.shape) for path, variable in variables.items()}


def small_state(experiment=KNOWN, width=2):
    return state_of(experiment, random_weights(experiment, width))


def write(folder, state, name="network.pickle", **how):
    path = folder / name
    path.write_bytes(state if isinstance(state, bytes) else pickled(Network(state), **how))
    return path


def refused(path, *words):
    """Asserts that reading is refused in one sentence with the words, which it returns."""
    with pytest.raises(UserError) as caught:
        predictor.from_published(path)
    sentence = str(caught.value)
    for word in (str(path), "expected", "received", *words):
        assert word in sentence, sentence
    assert "\n" not in sentence and len(sentence) < 400 + len(str(path)), sentence
    return sentence


# ---------------------------------------------------------------- what comes over


def reference_weights(name, experiment):
    weights = {}
    for variable in META["variables"][name]:
        value = recipe(variable["name"], variable["shape"], experiment.channels)
        weights[variable["name"]] = value.astype(np.float32)
    return weights


@pytest.mark.parametrize("name, protocol", list(zip(CONFIGURATIONS, (2, 3, 4) * 4)))
def test_a_file_with_the_reference_weights_gives_the_reference_values(tmp_path, name, protocol):
    experiment = without_level(CONFIGURATIONS[name])
    path = write(tmp_path, state_of(experiment, reference_weights(name, experiment)), protocol=protocol)
    network = published.read(path)
    assert network.experiment == experiment
    inputs = {"noisy": VALUES[f"{name}/noisy"]}
    if experiment.pipeline == "blindspot":
        inputs["noise_parameter"] = VALUES[f"{name}/noise_parameter"].reshape(-1, 1, 1, 1)
    answer = published.denoiser(network).inference(inputs)
    mu_x = answer.get("mu_x", answer["denoised"])
    assert np.abs(mu_x - VALUES[f"{name}/mu_x"]).max() <= 1e-5
    if experiment.pipeline == "blindspot":
        # The published value has small variances added, see test_reference.
        assert np.abs(answer["denoised"] - VALUES[f"{name}/posterior_mean"]).max() <= 2e-3


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_of_the_46_networks_is_known_by_its_state_and_its_file_name(tmp_path, name):
    """Genuine files: noise_style without a level, and "net" as the name of the network."""
    state = small_state(PUBLISHED[name], width=4)
    for number in ("00013", "final"):
        network = published.read(write(tmp_path, state, f"network-{number}-{name}.pickle"))
        assert network.experiment == dataclasses.replace(PUBLISHED[name], width=4)
        assert network.experiment.name == name


@pytest.mark.parametrize("file", ["network-00010000.pickle", "mine.pickle", "network-00013-gauss9-n2c.pickle"])
def test_without_a_published_file_name_the_level_is_unknown(tmp_path, file):
    for name in ONE_OF_EACH:
        network = published.read(write(tmp_path, small_state(PUBLISHED[name]), file))
        assert network.experiment == dataclasses.replace(PUBLISHED[name], width=2, **UNKNOWN)
        kind, _, rest = name.partition("-")
        assert network.experiment.name == f"{kind.rstrip('0123456789_')}-{rest}"


def test_the_user_says_an_unknown_level_and_cannot_change_a_known_one():
    assert published.with_levels(without_level(KNOWN), 25.0, 25.0) == KNOWN
    assert published.with_levels(KNOWN, 25.0, 25.0) == KNOWN
    with pytest.raises(ValueError, match=f"expected the noise level of {KNOWN.name}, or none, received another"):
        published.with_levels(KNOWN, 5.0, 50.0)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_the_layout_is_that_of_the_reference(name):
    listed = {variable["name"]: tuple(variable["shape"]) for variable in META["variables"][name]}
    assert layout(CONFIGURATIONS[name]) == listed


@pytest.mark.parametrize(
    "name, count",
    {
        "gauss25-blindspot-sigma_known": 1_269_129,
        "gauss25-blindspot_diag-sigma_known": 1_268_838,
        "gauss25-blindspot_mean": 1_268_547,
        "gauss25-n2c": 1_102_371,
        "gauss25-blindspot-sigma_known-mono": 1_265_858,
        "gauss25-n2c-mono": 1_099_585,
        "gauss5_50-blindspot-sigma_per_image": 1_269_129 + 1_102_177,
        "gauss25-blindspot-sigma_global": 1_269_129 + 1,
    }.items(),
)
def test_the_layout_has_the_published_number_of_weights(name, count):
    assert sum(math.prod(shape) for shape in layout(PUBLISHED[name]).values()) == count


ONE_OF_EACH = [
    "gauss25-blindspot_diag-sigma_global",
    "poisson5_50-blindspot-sigma_per_image-mono",
    "impulse50-blindspot-sigma_known",
    "impulse50-blindspot_mean",
    "gauss25-n2n",
    "gauss25-n2c-mono",
]


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_each_weight_is_set_to_the_bit(tmp_path, name):
    state = small_state(PUBLISHED[name])
    network = published.read(write(tmp_path, state))
    ours = checkpoints.named_variables(published.denoiser(network).inference)
    assert len(ours) == len(state["variables"])
    values = {published.published_name(path): variable.numpy() for path, variable in ours.items()}
    for variable, value in state["variables"]:
        np.testing.assert_array_equal(values[variable], value)
        np.testing.assert_array_equal(network.weights[variable], value)
        assert network.weights[variable].dtype == np.float32


def test_weights_of_another_network_are_not_set(tmp_path):
    network = published.read(write(tmp_path, small_state()))
    for other in (
        dataclasses.replace(network, experiment=dataclasses.replace(network.experiment, width=3)),
        dataclasses.replace(network, experiment=dataclasses.replace(N2C, width=2)),
        dataclasses.replace(network, weights=network.weights | {"noise_data": np.ones((1, 1, 1, 1), np.float32)}),
    ):
        with pytest.raises(UserError, match="expected (the|only) variable"):
            published.denoiser(other)


def test_the_licence_is_told():
    assert "CC BY-NC 4.0" in published.LICENCE and "non-commercial" in published.LICENCE


# ---------------------------------------------------------------- variants of the format


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("numpy_1", [True, False])
def test_files_of_both_numpys_and_three_protocols_are_the_same(tmp_path, protocol, numpy_1):
    state = small_state()
    data = pickled(Network(state), protocol, numpy_1)
    assert (b"numpy.core" in data, b"numpy._core" in data) == (numpy_1, not numpy_1)
    network = published.read(write(tmp_path, data))
    for name, value in state["variables"]:
        np.testing.assert_array_equal(network.weights[name], value)


def test_both_versions_and_plain_containers_are_read(tmp_path):
    state = small_state() | {"version": 2}
    state["static_kwargs"] = dict(state["static_kwargs"])
    del state["components"]
    assert published.read(write(tmp_path, state)).experiment == SMALL_KNOWN


def test_arrays_may_be_in_fortran_order(tmp_path):
    state = small_state()
    before = dict(state["variables"])
    state["variables"] = [(name, np.asfortranarray(value)) for name, value in before.items()]
    assert state["variables"][0][1].flags.fnc
    network = published.read(write(tmp_path, state))
    for name, value in before.items():
        np.testing.assert_array_equal(network.weights[name], value)


def test_other_entries_are_not_read(tmp_path):
    state = small_state() | {"more": [1.5, None, (), 2**40, np.float64(1), np.zeros(3, bool)]}
    state["static_kwargs"]["input_shape"] = (None, 3, None, None)
    state["components"]["estimator"] = Network({"version": 99})
    assert published.read(write(tmp_path, state)).experiment == SMALL_KNOWN


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_what_static_kwargs_leaves_out_follows_from_the_variables(tmp_path, name):
    state = small_state(PUBLISHED[name])
    for key in ("noise_params", "diagonal_covariance", "blindspot"):
        state["static_kwargs"].pop(key, None)
    assert published.read(write(tmp_path, state, f"{name}.pickle")).experiment.name == name


SIMPLE = [name for name, experiment in PUBLISHED.items() if experiment.parameter_source is None]


@pytest.mark.parametrize("name", SIMPLE)
def test_a_simple_network_without_a_noise_style_is_known_by_its_file_name(tmp_path, name):
    state = small_state(PUBLISHED[name])
    del state["static_kwargs"]["noise_style"], state["static_kwargs"]["noisy_targets"]
    path = write(tmp_path, state, f"network-00013-{name}.pickle")
    assert published.read(path).experiment == dataclasses.replace(PUBLISHED[name], width=2)


def test_a_file_name_that_contradicts_the_state_is_not_believed(tmp_path):
    state = small_state(N2C)
    unknown = dataclasses.replace(N2C, width=2, **UNKNOWN)
    for name in ("poisson30-n2c", "gauss25-n2n", "gauss25-n2c-mono", KNOWN.name):
        assert published.read(write(tmp_path, state, f"network-00013-{name}.pickle")).experiment == unknown
    # The network's own name says nothing.
    path = write(tmp_path, state | {"name": N2C.name})
    assert published.read(path).experiment == unknown
    del state["static_kwargs"]["noisy_targets"], state["static_kwargs"]["noise_style"]
    refused(write(tmp_path, state), "noise_style", "received none")


def test_the_name_of_a_blind_spot_network_does_not_replace_its_noise_style(tmp_path):
    state = small_state()
    del state["static_kwargs"]["noise_style"]
    refused(write(tmp_path, state, f"network-00013-{KNOWN.name}.pickle"), "noise_style")


# ---------------------------------------------------------------- states that are refused


def options(**changes):
    return lambda state: state["static_kwargs"].update(changes)


def entry(**changes):
    return lambda state: state.update(changes)


def without(key):
    return lambda state: state.pop(key)


def variables(change):
    """Changes the variables by a function {name: array} -> {name: array} or list."""

    def apply(state):
        changed = change(dict(state["variables"]))
        state["variables"] = list(changed.items()) if isinstance(changed, dict) else changed

    return apply


def put(name, value):
    """Adds or replaces a variable."""
    return variables(lambda weights: weights | {name: value})


def bias(value):
    return put("enc_conv0/b", value)


def kernel(*shape):
    return put("enc_conv0/W", np.ones(shape, np.float32))


def instead(name, **changes):
    """The state of another network, with changed static_kwargs."""

    def apply(state):
        state.update(small_state(PUBLISHED[name]))
        state["static_kwargs"].update(changes)

    return apply


def lacking(name):
    return variables(lambda weights: {key: value for key, value in weights.items() if key != name})


BIAS = np.ones(2, np.float32)
MALFORMED = {
    "version 4": (entry(version=4), "version 2 or 3", "received 4"),
    "version text": (entry(version="3\n3"), "version 2 or 3", r"'3\n3'"),
    "no version": (without("version"), "version 2 or 3", "none"),
    "another function": (entry(build_func_name="os_system"), "build_func_name", "'os_system'"),
    "no function": (without("build_func_name"), "build_func_name", "none"),
    "kwargs no dict": (entry(static_kwargs=[("noise_style", "gauss25")]), "static_kwargs", "list"),
    "no kwargs": (without("static_kwargs"), "static_kwargs", "none"),
    "no variables": (without("variables"), "variables", "none"),
    "empty variables": (entry(variables=[]), "'enc_conv0/W'", "none"),
    "variables a dict": (lambda s: s.update(variables=dict(s["variables"])), "list", "dict"),
    "names alone": (variables(list), "(name, array)"),
    "triples": (variables(lambda w: [(n, v, 0) for n, v in w.items()]), "(name, array)"),
    "name a number": (variables(lambda w: [(7, v) for v in w.values()]), "name", "7"),
    "name a list": (variables(lambda w: [([], v) for v in w.values()]), "name", "list"),
    "a name twice": (variables(lambda w: [*w.items(), ("nin_c/b", w["nin_c/b"])]), "once", "'nin_c/b'"),
    "one missing": (lacking("dec_conv3a/W"), "'dec_conv3a/W'", "(3, 3, 6, 4)", "none"),
    "the first missing": (lacking("enc_conv0/W"), "'enc_conv0/W'", "none"),
    "one too many": (put("enc_conv7/b", BIAS), "only variables of gauss-blindspot-sigma_known", "'enc_conv7/b'"),
    "an estimator in part": (put("param_estimation_net/nin_c/b", BIAS[:1]), "param_estimation_net"),
    "another shape": (bias(np.ones(3, np.float32)), "'enc_conv0/b'", "(2)", "(3)"),
    "a transposed kernel": (variables(lambda w: w | {"nin_c/W": w["nin_c/W"].T}), "'nin_c/W'", "(1, 1, 4, 9)"),
    "a flat first kernel": (kernel(54), "'enc_conv0/W'", "(54)"),
    "two channels": (kernel(3, 3, 2, 2), "1 or 3 channels", "2"),
    "no width": (kernel(3, 3, 3, 0),),
    "too wide": (kernel(3, 3, 3, 257), "features", "257"),
    "not a number": (bias(np.float32([1, np.nan])), "'enc_conv0/b'", "finite"),
    "infinite": (bias(np.float32([np.inf, 1])), "'enc_conv0/b'", "finite"),
    "float64": (bias(np.ones(2)), "'enc_conv0/b'", "float32", "('f8', '<')"),
    "float16": (bias(np.ones(2, np.float16)), "'enc_conv0/b'", "float32", "f2"),
    "big-endian": (bias(BIAS.astype(">f4")), "'enc_conv0/b'", "('f4', '>')"),
    "structured": (bias(np.zeros(2, [("a", "f4")])), "'enc_conv0/b'", "float32"),
    "objects": (bias(np.array([1.0, None], object)), "'enc_conv0/b'", "float32", "O8"),
    "a list of numbers": (bias([1.0, 1.0]), "'enc_conv0/b'", "list"),
    "a number": (bias(np.float32(1)), "'enc_conv0/b'", "scalar"),
    "a network": (bias(Network({})), "'enc_conv0/b'", "network"),
    "covariance missing": (
        options(diagonal_covariance=True),
        "blindspot_diag",
        "'nin_c/W'",
        "(1, 1, 4, 6)",
        "(1, 1, 4, 9)",
    ),
    "covariance a number": (options(diagonal_covariance=0), "diagonal_covariance", "received 0"),
    "global without its number": (options(noise_params="global"), "'noise_data'", "(1, 1, 1, 1)", "none"),
    "per image without its network": (options(noise_params="per_image"), "'param_estimation_net/enc_conv0/W'"),
    "known with a number": (put("noise_data", BIAS[:1]), "'noise_data'"),
    "unknown noise_params": (options(noise_params="guessed"), "noise_params", "'guessed'"),
    "no noise_style": (lambda s: s["static_kwargs"].pop("noise_style"), "noise_style", "none"),
    "unknown noise_style": (options(noise_style="speckle"), "gauss, poisson, impulse", "'speckle'"),
    "a noise_style that is a number": (options(noise_style=25), "noise_style", "25"),
    "a noise_style that is a list": (options(noise_style=[]), "noise_style", "list"),
    "a long noise_style": (options(noise_style="gauss" + "9" * 10_000), "noise_style", "'gauss999"),
    "a pipeline without its options": (entry(build_func_name="simple_pipeline", name=KNOWN.name), "'nin_c/W'"),
    "a blind spot that is denied": (instead("gauss25-blindspot_mean", blindspot=False), "'nin_a/W'"),
    "a blind spot that is claimed": (instead("gauss25-n2c", blindspot=True), "'nin_a/W'"),
    "targets a text": (instead("gauss25-n2c", noisy_targets="no"), "noisy_targets", "'no'"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_state_is_refused_in_a_sentence(tmp_path, case):
    change, *words = MALFORMED[case]
    state = small_state()
    change(state)
    for protocol in (2, 4):
        refused(write(tmp_path, state, protocol=protocol), *words)


@pytest.mark.parametrize("state", [None, [], 7, "state", (None, {"version": 3})])
def test_a_state_that_is_no_dict_is_refused(tmp_path, state):
    refused(write(tmp_path, pickled(Network(state))), "expected")


# ---------------------------------------------------------------- files that are refused


@pytest.mark.parametrize(
    "value, words",
    [
        (Optimizer(), ["'dnnlib.tflib.network.Optimizer'"]),
        ({"version": 3}, ["dnnlib.tflib.network.Network", "dict"]),
        ([Network({})], ["dnnlib.tflib.network.Network", "list"]),
        (Network, ["dnnlib.tflib.network.Network", "type"]),
        (np.zeros(3, np.float32), ["dnnlib.tflib.network.Network", "array"]),
        (collections.Counter("a"), ["'collections.Counter'"]),
    ],
)
def test_another_object_is_refused(tmp_path, value, words):
    refused(write(tmp_path, pickled(value)), *words)


@pytest.mark.parametrize("data", [b"", b".", b"\x80", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n", b"# text\n", bytes(1000)])
def test_what_is_no_pickle_is_refused(tmp_path, data):
    refused(write(tmp_path, data), "published network file")


def test_a_folder_and_a_missing_file_are_refused(tmp_path):
    refused(tmp_path, "published network file")
    refused(tmp_path / "missing.pickle", "No such file")
    refused(pathlib.Path("null\0byte"), "null")


def test_protocols_0_and_1_are_refused(tmp_path):
    for protocol in (0, 1):
        refused(write(tmp_path, pickled(small_state(), protocol)), "protocol 2 to 4")


def test_a_file_of_excessive_size_is_refused(tmp_path, monkeypatch):
    data = pickled(Network(small_state()))
    path = write(tmp_path, data)
    monkeypatch.setattr(pickles, "MAX_BYTES", len(data))
    published.read(path)
    monkeypatch.setattr(pickles, "MAX_BYTES", len(data) - 1)
    refused(path, f"at most {len(data) - 1} bytes", "larger")


def test_what_follows_the_network_is_refused(tmp_path):
    data = pickled(Network(small_state()))
    refused(write(tmp_path, data + b"\n"), f"of {len(data)} bytes", str(len(data) + 1))


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, protocol):
    data = pickled(Network(small_state(width=1)), protocol)
    for end in np.linspace(0, len(data) - 1, 100).astype(int):
        refused(write(tmp_path, data[:end]))


@pytest.mark.parametrize("protocol", [2, 4])
def test_a_damaged_file_is_refused_or_harmless(tmp_path, protocol):
    """Any byte, to any value: a UserError, or a network with finite weights."""
    data = pickled(Network(small_state(width=1)), protocol)
    rng = np.random.default_rng(0)
    outcomes = collections.Counter()
    for _ in range(400):
        damaged = bytearray(data)
        # Half of the hits near the start and the end, where there is more than numbers.
        place = rng.integers(len(data)) if rng.random() < 0.5 else rng.integers(-400, 1200)
        damaged[place] = rng.integers(256)
        path = write(tmp_path, bytes(damaged))
        try:
            network = published.read(path)
        except UserError as error:
            assert "\n" not in str(error)
            outcomes["refused"] += 1
        else:
            assert all(np.isfinite(value).all() for value in network.weights.values())
            outcomes["read"] += 1
    assert min(outcomes["refused"], outcomes["read"]) > 20, outcomes


# ---------------------------------------------------------------- files that would do harm


class Call:
    """Pickled as a call."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def touching(path):
    """Calls that leave a file behind."""
    code = f"import pathlib; pathlib.Path({str(path)!r}).touch()"
    return {
        "os.system": Call(os.system, f"touch {path}"),
        "builtins.eval": Call(builtins.eval, f"open({str(path)!r}, 'w')"),
        "builtins.exec": Call(builtins.exec, code),
        "builtins.getattr": Call(getattr, Call(__import__, "os"), "system"),
        "pathlib.touch": Call(pathlib.Path.touch, path),
        "numpy.save": Call(np.save, str(path), 1),
    }


PLACES = {
    "instead of the network": lambda call: call,
    "instead of the state": Network,
    "in components": lambda call: Network(small_state() | {"components": {"a": call}}),
    "in static_kwargs": lambda call: Network(small_state() | {"static_kwargs": {"noise_style": call}}),
    "in an array of objects": lambda call: Network(
        small_state() | {"variables": [("enc_conv0/W", np.array([call], object))]}
    ),
    "in the name of a variable": lambda call: Network(small_state() | {"variables": [(call, BIAS)]}),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("what", touching(pathlib.Path()))
def test_no_call_is_made(tmp_path, what, place):
    marker = tmp_path / "marker"
    for protocol in (2, 4):
        data = pickled(PLACES[place](touching(marker)[what]), protocol)
        sentence = refused(write(tmp_path, data))
        assert "nothing but a network and its arrays" in sentence
        assert not marker.exists()


@pytest.mark.parametrize("what", ["os.system", "builtins.eval", "builtins.exec"])
def test_the_calls_would_be_made_by_an_ordinary_reader(tmp_path, what):
    marker = tmp_path / "marker"
    pickle.loads(pickled(touching(marker)[what]))
    assert marker.exists()


def test_the_source_in_the_file_is_not_run(tmp_path):
    marker = tmp_path / "marker"
    source = f"import pathlib; pathlib.Path({str(marker)!r}).touch()\ndef blindspot_pipeline(*a, **k): pass\n"
    path = write(tmp_path, small_state() | {"build_module_src": source})
    published.denoiser(published.read(path))
    assert not marker.exists()
    exec(source, {})
    assert marker.exists()


def text(value):
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def name(module, member):
    return b"c" + f"{module}\n{member}\n".encode()


NETWORK = name("dnnlib.tflib.network", "Network")
EASY_DICT = name("dnnlib.util", "EasyDict")
SMALL = text("a")
HANDMADE = {
    "a persistent identifier": (b"\x80\x02Pid\n.", "PERSID"),
    "a persistent object": (b"\x80\x02NQ.", "BINPERSID"),
    "an extension code": (b"\x80\x02\x82\x01.", "EXT1"),
    "an old instance": (b"\x80\x02(ios\nsystem\n.", "INST"),
    "an old object": (b"\x80\x02(" + NETWORK + b"o.", "OBJ"),
    "a buffer of elsewhere": (b"\x80\x05\x97.", "NEXT_BUFFER"),
    "a protocol of the future": (b"\x80\x09N.", "cannot be read"),
    "a dotted name": (b"\x80\x04" + text("dnnlib.util") + text("EasyDict.get") + b"\x93.", "EasyDict.get"),
    "a name that is no text": (b"\x80\x04NN\x93.", "cannot be read"),
    "a name with a newline": (b"\x80\x04" + text("os") + text("x\ny") + b"\x93.", r"'os.x\ny'"),
    "a long name": (b"\x80\x04" + text("os") + text("x" * 10_000) + b"\x93.", "'os.xxxx"),
    "slots of a class": (b"\x80\x02" + NETWORK + b"N}" + text("state") + b"Ns\x86b.", "cannot be read"),
    "entries of a class": (b"\x80\x02" + NETWORK + b"}" + text("state") + b"Nsb.", "cannot be read"),
    "slots of the dict class": (b"\x80\x02" + EASY_DICT + b"N}" + SMALL + b"Ns\x86b.", "cannot be read"),
    "items of a network": (b"\x80\x02" + NETWORK + b")\x81" + SMALL + b"Ns.", "cannot be read"),
    "a list's growth of a network": (b"\x80\x02" + NETWORK + b")\x81Na.", "cannot be read"),
    "a call of a network": (b"\x80\x02" + NETWORK + b")\x81)R.", "cannot be read"),
    "a call of a text": (b"\x80\x02" + SMALL + b")R.", "cannot be read"),
    "a network of arguments": (b"\x80\x02" + NETWORK + b"K\x01K\x02\x86R.", "state"),
    "nothing on the stack": (b"\x80\x02.", "cannot be read"),
    "a memo that was never filled": (b"\x80\x02h\x07.", "cannot be read"),
    "a memo of 64 GB": (b"\x80\x02Nr\xff\xff\xff\xff.", "10000 instructions"),
    "bytes of an exabyte": (b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"abc.", "cannot be read"),
    "a frame of an exabyte": (b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N.", "cannot be read"),
    "a text that is none": (b"\x80\x02X\x02\x00\x00\x00\xff\xfe.", "cannot be read"),
    "a list as a key": (b"\x80\x02}]Ns.", "cannot be read"),
    "a long program": (b"\x80\x02" + b"N" * 20_000 + b".", "10000 instructions"),
    "a deep list": (b"\x80\x02" + b"]" * 9000 + b"a" * 8999 + b".", "10000 instructions"),
    "a deep tuple": (b"\x80\x02)" + b"\x85" * 9990 + b".", "tuple"),
    "a deep tuple as a key": (b"\x80\x02})" + b"\x85" * 9990 + b"Ns.", "dict"),
    "a network in itself": (b"\x80\x02" + NETWORK + b")\x81q\x00h\x00b.", "state", "network"),
    "a state in itself": (b"\x80\x02" + NETWORK + b")\x81}q\x00" + text("version") + b"h\x00sb.", "version", "dict"),
}


@pytest.mark.parametrize("case", HANDMADE)
def test_a_handmade_pickle_is_refused(tmp_path, case):
    data, *words = HANDMADE[case]
    refused(write(tmp_path, data), *words)
    good = write(tmp_path, small_state())
    assert published.read(good).experiment == SMALL_KNOWN  # nothing stays behind


def test_a_registered_extension_is_refused(tmp_path):
    """Also one that this process has looked up before, which an unpickler does not ask about."""
    copyreg.add_extension("os", "system", 240)
    try:
        data = b"\x80\x02\x82\xf0" + text("true") + b"\x85R."
        assert pickle.loads(data) == 0
        refused(write(tmp_path, data), "EXT1")
    finally:
        copyreg.remove_extension("os", "system", 240)


RECONSTRUCT = name("numpy.core.multiarray", "_reconstruct")
ARRAY_TYPE = name("numpy", "ndarray")
DTYPE = name("numpy", "dtype")
ENCODE = name("_codecs", "encode")
FLOAT32 = DTYPE + text("f4") + b"K\x00K\x01\x87R(K\x03" + text("<") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
ONES = ENCODE + text("\0\0\x80?\0\0\x80?") + text("latin1") + b"\x86R"


def array(subtype=ARRAY_TYPE, version=b"K\x01", shape=b"K\x02\x85", dtype=FLOAT32, fortran=b"\x89", data=ONES):
    """Instructions for an array of two ones, or for something else."""
    return RECONSTRUCT + subtype + b"K\x00\x85N\x87R(" + version + shape + dtype + fortran + data + b"tb"


ARRAYS = {
    "subtype a text": array(subtype=text("ndarray")),
    "subtype a dict": array(subtype=EASY_DICT),
    "subtype a network": array(subtype=NETWORK),
    "version 2": array(version=b"K\x02"),
    "version text": array(version=text("1")),
    "no state": RECONSTRUCT + ARRAY_TYPE + b"K\x00\x85N\x87R",
    "an empty state": RECONSTRUCT + ARRAY_TYPE + b"K\x00\x85N\x87R)b",
    "a state of text": RECONSTRUCT + ARRAY_TYPE + b"K\x00\x85N\x87R" + text("12345") + b"b",
    "the type, made by hand": ARRAY_TYPE + b")\x81(K\x01K\x02\x85" + FLOAT32 + b"\x89" + ONES + b"tb",
    "the function itself": RECONSTRUCT,
    "the type itself": ARRAY_TYPE,
    "a shape that is a number": array(shape=b"K\x02"),
    "a shape of lists": array(shape=b"]\x85"),
    "a shape of fractions": array(shape=b"G@\x04\0\0\0\0\0\0\x85"),
    "a huge shape": array(shape=b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"),
    "a negative shape": array(shape=b"J\xff\xff\xff\xff\x85"),
    "a deep shape": array(shape=b")" + b"\x85" * 500),
    "a dtype that is a text": array(dtype=text("f4")),
    "a dtype that is a type": array(dtype=DTYPE),
    "a dtype of nothing": array(dtype=DTYPE + b")R"),
    "a dtype without a state": array(dtype=DTYPE + text("f4") + b"\x85R"),
    "a dtype of objects": array(dtype=FLOAT32.replace(text("f4"), text("O8"))),
    "a dtype with a structure": array(dtype=FLOAT32.replace(b"NNN", b"NN}")),
    "a dtype of a subarray": array(dtype=FLOAT32.replace(b"NNN", b"]NN")),
    "an order that is a number": array(fortran=b"K\x00"),
    "too few bytes": array(data=ENCODE + text("\0\0\x80?") + text("latin1") + b"\x86R"),
    "too many bytes": array(data=ENCODE + text("\0" * 100) + text("latin1") + b"\x86R"),
    "a text for bytes": array(data=text("\0\0\x80?\0\0\x80?")),
    "a list for bytes": array(data=b"]"),
    "bytes beyond latin1": array(data=ENCODE + text("\0\0\x80?\0\0\x80\u0100") + text("latin1") + b"\x86R"),
    "another encoding": array(data=ENCODE + text("\0\0\x80?\0\0\x80?") + text("idna") + b"\x86R"),
    "an encoding and more": array(data=ENCODE + text("\0" * 8) + text("latin1") + text("ignore") + b"\x87R"),
    "the encoding of nothing": array(data=ENCODE + b")R"),
    "the encoding of an encoding": array(data=ENCODE + ONES + text("latin1") + b"\x86R"),
    "the encoder itself": array(data=ENCODE),
}


def with_first_bias(instructions):
    """A file in which instructions make the bias of two ones, the last of the state's variables."""
    state = small_state()
    weights = dict(state["variables"])
    del weights["enc_conv0/b"]
    data = pickled(Network(state | {"variables": [*weights.items(), ("enc_conv0/b", "HERE")]}))
    place = data.index(text("HERE"))
    return data[:place] + instructions + data[place + len(text("HERE")) :]


def test_a_handmade_array_is_read(tmp_path):
    """So that the handmade ones below are refused for what they are."""
    network = published.read(write(tmp_path, with_first_bias(array())))
    np.testing.assert_array_equal(network.weights["enc_conv0/b"], [1, 1])


@pytest.mark.parametrize("case", ARRAYS)
def test_an_array_of_something_else_is_refused(tmp_path, case):
    refused(write(tmp_path, with_first_bias(ARRAYS[case])), "'enc_conv0/b'")
