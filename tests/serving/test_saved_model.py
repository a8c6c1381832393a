"""SavedModels: equal to the Keras model to the bit, blind, self-contained, and strict with requests."""

import errno
import functools
import json
import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from serving_support import MODELS, build, run_in_c, saved_proto

from ssdn_tf.data import images
from ssdn_tf.denoisers.experiments import Experiment
from ssdn_tf.errors import UserError
from ssdn_tf.inference import predictor, saved_models
from ssdn_tf.noise import levels
from ssdn_tf.serving import saved_model

SIZES = [(1, 1), (33, 47), (64, 64), (32, 96), (100, 35)]
LEVELS = {"gaussian": 25.0, "poisson": 30.0, "impulse": 0.5}


def bayesian(noise, source, channels, network="paper", width=4):
    level = LEVELS[noise]
    return Experiment(noise, level, level, parameter_source=source, channels=channels, network=network, width=width)


ALL = [bayesian("impulse", "global", 3, "compact")]
ALL += [bayesian(n, s, c) for n in LEVELS for s in ("known", "global", "per_image") for c in (3, 1)]
SOME = [
    MODELS["ssdn"],
    bayesian("poisson", "per_image", 1, "tiny", None),
    MODELS["gray"],
]
CASES = [
    pytest.param(e, id=f"{e.name}-{e.network}", marks=[] if e in SOME else pytest.mark.slow) for e in {*ALL, *SOME}
]
CASES.sort(key=lambda case: case.id)


@pytest.fixture(scope="module")
def exported(folders, tmp_path_factory):
    """Function Experiment -> (Keras model, path of its SavedModel, loaded), each made once."""
    made, ready = {}, {MODELS[name]: folder / "1" for name, folder in folders.items()}

    def get(experiment):
        if experiment not in made:
            model, path = build(experiment), ready.get(experiment)
            if path is None:
                output = tmp_path_factory.mktemp(experiment.name)
                path = saved_model.export(model, experiment, saved_model.model_card(experiment), output)
            made[experiment] = model, path, tf.saved_model.load(str(path))
        return made[experiment]

    return get


def pictures(count, height, width, channels=3, seed=0):
    return np.random.default_rng(seed).random((count, height, width, channels), dtype=np.float32)


def request(experiment, noisy, parameter=None):
    """The inputs of a signature."""
    inputs = {"noisy": tf.constant(noisy)}
    if saved_model.takes_level(experiment):
        level = experiment.parameter(experiment.low) if parameter is None else parameter
        inputs["noise_parameter"] = tf.fill([len(noisy)], np.float32(level))
    return inputs


def keras_inputs(model, experiment, noisy):
    """Inputs of the Keras model."""
    inputs = {"noisy": noisy}
    if "noise_parameter" in model.input:
        inputs["noise_parameter"] = np.full((len(noisy), 1, 1, 1), experiment.parameter(experiment.low), np.float32)
    return inputs


def posterior_name(experiment):
    return "posterior" if experiment.pipeline == "blindspot" else "serving_default"


# ---------------------------------------------------------------- the same function


@pytest.mark.parametrize("experiment", CASES)
def test_the_saved_model_is_the_keras_model_to_the_bit(exported, experiment):
    model, _, loaded = exported(experiment)
    shapes = {name: tf.TensorSpec(tensor.shape, tensor.dtype) for name, tensor in model.input.items()}
    of_any_size = tf.function(lambda inputs: model(inputs), input_signature=[shapes])  # traced once
    for count in (1, 2):
        for height, width in SIZES:
            noisy = pictures(count, height, width, experiment.channels)
            expected = of_any_size(keras_inputs(model, experiment, noisy))
            found = loaded.signatures[posterior_name(experiment)](**request(experiment, noisy))
            assert set(found) == set(expected)
            for name in set(found) - {"noise_parameter"}:
                assert found[name].dtype == tf.float32
                np.testing.assert_array_equal(found[name], np.asarray(expected[name])[:, :height, :width])
            if "noise_parameter" in found:
                level = np.broadcast_to(np.asarray(expected["noise_parameter"]).ravel(), count)
                np.testing.assert_array_equal(found["noise_parameter"], level)
            answer = loaded.signatures["serving_default"](**request(experiment, noisy))
            assert set(answer) == {"denoised"}
            np.testing.assert_array_equal(answer["denoised"], found["denoised"])


def test_the_saved_model_is_the_compiled_one_up_to_rounding(exported):
    experiment = SOME[0]
    _, _, loaded = exported(experiment)
    noisy, level = pictures(1, 64, 64), np.float32(25 / 255)
    compiled = build(experiment)
    compiled.compile(jit_compile=True)
    expected = compiled.predict_on_batch({"noisy": noisy, "noise_parameter": np.full((1, 1, 1, 1), level)})
    found = loaded.signatures["posterior"](**request(experiment, noisy, level))
    for name in ("denoised", "mu_x", "prior_std", "posterior_std"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-5)


def test_other_weights_give_another_answer(exported):
    """Control of the comparisons above."""
    experiment = SOME[0]
    _, _, loaded = exported(experiment)
    noisy = pictures(1, 64, 64)
    other = build(experiment)
    kernel = next(v for v in other.variables if v.path.endswith("enc_conv0/kernel"))
    kernel.assign(kernel * 1.001)
    expected = other(keras_inputs(other, experiment, noisy))
    found = loaded.signatures["posterior"](**request(experiment, noisy))
    assert np.abs(found["mu_x"] - expected["mu_x"]).max() > 1e-5


# ---------------------------------------------------------------- the blind spot at odd sizes


def changed_at(picture, row, column, value):
    copy = picture.copy()
    copy[:, row, column] = value
    return copy


def own_pixel_changes(endpoint, experiment, noisy, places):
    """Places whose mu_x changes with their own pixel, and those whose neighbours' mu_x do."""
    before = endpoint(**request(experiment, noisy))["mu_x"].numpy()
    own, others = [], []
    for row, column in places:
        after = endpoint(**request(experiment, changed_at(noisy, row, column, 1e6)))["mu_x"].numpy()
        if not np.array_equal(after[:, row, column], before[:, row, column]):
            own.append((row, column))
        if not np.array_equal(after, before):
            others.append((row, column))
    return own, others


BAND = [(32, 46), (32, 0), (0, 46), (31, 31), (32, 32), (30, 45), (17, 40), (32, 20), (0, 0), (5, 32)]


@pytest.mark.parametrize("channels", [3, 1])
def test_no_answer_depends_on_its_own_pixel_at_odd_sizes_and_in_the_border_band(exported, channels):
    experiment = SOME[0] if channels == 3 else SOME[1]
    _, _, loaded = exported(experiment)
    noisy = pictures(1, 33, 47, channels)
    own, others = own_pixel_changes(loaded.signatures["posterior"], experiment, noisy, BAND)
    if experiment.parameter_source == "per_image":
        assert own == []  # mu_x does not read the level
    assert own == [] and others == BAND


class FilledByReflection:
    """A model that sees each pixel again across the edge."""

    def __init__(self, model):
        self.model = model
        self.input = model.input

    def __call__(self, inputs, training):
        shape = tf.shape(inputs["noisy"])
        fill = tf.math.floormod(-shape[1:3], 32)
        noisy = tf.pad(inputs["noisy"], [[0, 0], [0, fill[0]], [0, fill[1]], [0, 0]], mode="REFLECT")
        outputs = self.model(inputs | {"noisy": noisy}, training=training)
        return {k: v if k == "noise_parameter" else v[:, : shape[1], : shape[2]] for k, v in outputs.items()}


def test_a_reflection_would_show_a_pixel_itself():
    """Negative control of the test above."""
    experiment = SOME[0]
    endpoints = saved_model.Endpoints(FilledByReflection(build(experiment)), experiment, {})
    own, _ = own_pixel_changes(endpoints.posterior, experiment, pictures(1, 40, 47), [(38, 20), (20, 45)])
    assert own == [(38, 20), (20, 45)]


# ---------------------------------------------------------------- what is in the file


@pytest.mark.parametrize("experiment", [e for e in SOME], ids=lambda e: e.name)
def test_signatures_are_those_of_the_contract(exported, experiment):
    _, path, _ = exported(experiment)
    signatures = dict(saved_proto(path).meta_graphs[0].signature_def)
    signatures.pop("__saved_model_init_op")

    def described(tensors):
        shapes = {n: [d.size for d in t.tensor_shape.dim] for n, t in tensors.items()}
        return {n: (tf.as_dtype(t.dtype).name, shapes[n]) for n, t in tensors.items()}

    picture, numbers, texts = ("float32", [-1, -1, -1, experiment.channels]), ("float32", [-1]), ("string", [-1])
    level = {"noise_parameter": numbers} if saved_model.takes_level(experiment) else {}
    names = ("denoised", "mu_x", "prior_std", "posterior_std")
    expected = {
        "serving_default": ({"noisy": picture} | level, {"denoised": picture}),
        "posterior": ({"noisy": picture} | level, dict.fromkeys(names, picture) | {"noise_parameter": numbers}),
        "denoise_png": ({"image_bytes": texts} | level, {"image_bytes": texts}),
        "denoise_png16": ({"image_bytes": texts} | level, {"image_bytes": texts}),
        "describe": ({"request": texts}, {"model_card": texts}),
    }
    if experiment.pipeline != "blindspot":
        del expected["posterior"]
    assert set(signatures) == set(expected)
    for name, (inputs, outputs) in expected.items():
        assert described(signatures[name].inputs) == inputs
        assert described(signatures[name].outputs) == outputs
        assert signatures[name].method_name == "tensorflow/serving/predict"


def test_the_graph_holds_nothing_that_another_runtime_lacks(exported):
    for experiment in SOME:
        graph = saved_proto(exported(experiment)[1]).meta_graphs[0].graph_def
        nodes = [*graph.node, *(n for f in graph.library.function for n in f.node_def)]
        ops = {node.op for node in nodes}
        assert not {op for op in ops if "Py" in op or "Numpy" in op or op.startswith("Xla")}, ops
        functions = {f.signature.name for f in graph.library.function}
        known = {op for op in ops - functions if hasattr(tf.raw_ops, op)} | {"_Retval", "_Arg"}
        assert ops - functions <= known, ops - functions - known
        compiled = [f.signature.name for f in graph.library.function if f.attr["_XlaMustCompile"].b]
        assert not compiled and not any(node.attr["_XlaMustCompile"].b for node in nodes)
        layers = {part.rstrip("_0123456789") for node in nodes for part in node.name.split("/")}
        assert "unet" in layers and "loss" not in layers  # the loss belongs to training


def test_the_card_says_what_the_model_is(exported):
    _, path, _ = exported(SOME[0])
    card = json.loads((path / saved_model.CARD).read_text())
    assert card["noise"] == {"kind": "gaussian", "sigma": [5.0, 50.0], "unit": "std in 255ths of the range"}
    assert card["name"] == "gauss5_50-blindspot-sigma_known-tiny" and card["channels"] == 3
    assert Experiment(**card["experiment"]) == SOME[0]
    assert card["network"] == {"design": "tiny", "grid": 2, "reach": 15}


def test_the_card_says_a_level_as_one_number():
    card = saved_model.model_card(Experiment())
    assert card["noise"]["sigma"] == 25.0 and card["name"] == "gauss25-blindspot-sigma_known"


@pytest.mark.parametrize(
    ("change", "network"),
    [
        ({"network": "paper"}, {"design": "paper", "grid": 32, "reach": 315}),
        ({}, {"design": "compact", "grid": 8, "reach": 75}),
        ({"pipeline": "n2c", "parameter_source": None}, {"design": "compact", "grid": 8, "reach": 37}),
    ],
)
def test_the_card_says_how_tiles_must_lie(change, network):
    assert saved_model.model_card(Experiment(**{"network": "compact"} | change))["network"] == network


@pytest.mark.parametrize("count", [1, 3])
def test_the_model_describes_itself(exported, count):
    """As many times as it is asked, since a server that batches splits the answer among the requests."""
    _, path, loaded = exported(SOME[0])
    found = loaded.signatures["describe"](request=tf.constant(["anything"] * count))["model_card"].numpy()
    card = json.loads((path / saved_model.CARD).read_text())
    assert [json.loads(text) for text in found] == [card] * count


def test_warm_up_requests_are_answered(exported):
    prediction_log_pb2 = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    # Of two numbers that are not known, as an adapted run has them.
    several = Experiment(noise="additive", low=None, high=None, network="tiny")
    for experiment in [*SOME[:2], several]:
        _, path, loaded = exported(experiment)
        seen = []
        for record in tf.data.TFRecordDataset(str(path / saved_model.WARM_UP)):
            log = prediction_log_pb2.PredictionLog.FromString(record.numpy())
            sent = log.predict_log.request
            inputs = {name: tf.constant(tf.make_ndarray(tensor)) for name, tensor in sent.inputs.items()}
            loaded.signatures[sent.model_spec.signature_name](**inputs)
            seen.append(sent.model_spec.signature_name)
        assert sorted(seen) == sorted(loaded.signatures)


# ---------------------------------------------------------------- pictures as bytes


def png(endpoint, experiment, *data):
    inputs = request(experiment, np.zeros((len(data), 1, 1, 1), np.float32))
    del inputs["noisy"]
    answer = endpoint(image_bytes=tf.constant(list(data)), **inputs)["image_bytes"].numpy()
    return [images.decode(bytes(part), "answer") for part in answer]


@pytest.mark.parametrize("dtype, name", [(np.uint8, "denoise_png"), (np.uint16, "denoise_png16")])
@pytest.mark.parametrize("experiment", SOME[:2], ids=lambda e: e.name)
def test_png_endpoints_match_the_float_endpoint(exported, experiment, dtype, name):
    _, _, loaded = exported(experiment)
    most = np.iinfo(dtype).max
    pixels = (pictures(2, 33, 47, experiment.channels) * most).astype(dtype)
    found = png(loaded.signatures[name], experiment, *map(images.encode_png, pixels))
    expected = loaded.signatures["serving_default"](**request(experiment, images.to_float(pixels)))["denoised"]
    assert all(part.dtype == dtype for part in found)
    rounded = np.floor(np.clip(most * expected.numpy().astype(np.float64) + 0.5, 0, most))
    np.testing.assert_array_equal(np.stack(found), rounded)
    assert np.stack(found).std() > 0


def test_colour_and_gray_are_converted_as_everywhere(exported):
    colour, gray = (pictures(1, 8, 9, c, seed=3)[0] * 255 for c in (3, 1))
    colour, gray = colour.astype(np.uint8), gray.astype(np.uint8)
    for experiment, sent in ((SOME[1], colour), (SOME[0], gray)):
        _, _, loaded = exported(experiment)
        endpoint = loaded.signatures["denoise_png"]
        (found,) = png(endpoint, experiment, images.encode_png(sent))
        (expected,) = png(endpoint, experiment, images.encode_png(images.to_channels(sent, experiment.channels)))
        np.testing.assert_array_equal(found, expected)


def test_jpeg_and_transparency_are_taken(exported, tmp_path):
    experiment = SOME[0]
    _, _, loaded = exported(experiment)
    pixels = np.full((16, 16, 4), 77, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels[..., :3]).save(tmp_path / "a.jpg", quality=100)
    endpoint = loaded.signatures["denoise_png"]
    (rgba,) = png(endpoint, experiment, (tmp_path / "a.png").read_bytes())
    (rgb,) = png(endpoint, experiment, images.encode_png(pixels[..., :3]))
    (jpeg,) = png(endpoint, experiment, (tmp_path / "a.jpg").read_bytes())
    np.testing.assert_array_equal(rgba, rgb)
    assert np.abs(jpeg.astype(int) - rgb).max() <= 3


# ---------------------------------------------------------------- requests that make no sense


def refused(function, **inputs):
    with pytest.raises((tf.errors.InvalidArgumentError, TypeError)) as error:
        function(**inputs)
    return str(error.value)


def test_requests_that_make_no_sense_are_refused_and_the_next_is_answered(exported):
    experiment = SOME[0]
    _, _, loaded = exported(experiment)
    good = pictures(2, 8, 8)
    bad = good.copy()
    bad[0, 3, 3, 0] = np.nan
    for name in ("serving_default", "posterior"):
        endpoint = loaded.signatures[name]
        for noisy in (bad, np.where(np.isnan(bad), np.inf, bad)):
            assert "expected finite intensities" in refused(endpoint, **request(experiment, noisy))
        assert "at least one picture" in refused(endpoint, **request(experiment, good[:0]))
        assert "at least one pixel" in refused(endpoint, **request(experiment, good[:, :0]))
        text = refused(endpoint, **request(experiment, good, parameter=25.0))
        assert "sigma in [0, 1]" in text and "sigma 25 of 255 is 0.098" in text and "25" in text.split("received")[1]
        assert "sigma in [0, 1]" in refused(endpoint, **request(experiment, good, parameter=-0.1))
        assert "sigma in [0, 1]" in refused(endpoint, **request(experiment, good, parameter=np.nan))
        one = request(experiment, good) | {"noise_parameter": tf.constant([0.1])}
        assert "expected one level for each picture" in refused(endpoint, **one)
        refused(endpoint, noisy=tf.constant(good))
        refused(endpoint, **request(experiment, good[..., :2]))
        refused(endpoint, **request(experiment, good[0]))
        assert np.isfinite(endpoint(**request(experiment, good))["denoised"]).all()


@pytest.fixture(scope="module")
def known():
    """Function kind of noise -> (experiment, Endpoints) with a known level, each made once."""

    @functools.cache
    def get(kind):
        experiment = bayesian(kind, "known", 3, "compact")
        return experiment, saved_model.Endpoints(build(experiment), experiment, {})

    return get


@pytest.mark.parametrize(
    "kind, wrong",
    [("poisson", 0.0), ("poisson", np.inf), ("poisson", 1e7), ("impulse", 1.5), ("impulse", -0.5), ("gaussian", 1.1)],
)
def test_levels_are_checked_and_the_ends_of_their_range_are_legal(known, kind, wrong):
    experiment, endpoints = known(kind)
    noisy = pictures(1, 8, 8)
    assert "noise_parameter: expected" in refused(endpoints.posterior, **request(experiment, noisy, parameter=wrong))
    level = levels.LEVELS[kind]
    for parameter in (None, level.to_parameter(level.low), level.to_parameter(level.high)):
        given = request(experiment, noisy, parameter=parameter)
        assert all(np.isfinite(value).all() for value in endpoints.posterior(**given).values())


def test_bytes_that_are_no_picture_are_refused(exported):
    experiment = MODELS["gray"]
    _, _, loaded = exported(experiment)
    whole = images.encode_png((pictures(1, 40, 40)[0] * 255).astype(np.uint8))
    other = images.encode_png(np.zeros((8, 9, 3), np.uint8))
    for name in ("denoise_png", "denoise_png16"):
        for data in ([b"no picture"], [b""], [whole[:60]], [whole, other], []):
            refused(loaded.signatures[name], image_bytes=tf.constant(data, tf.string))
        png(loaded.signatures[name], experiment, whole)


# ---------------------------------------------------------------- without this package


RUN_ALONE = """
import sys
import numpy as np, tensorflow as tf
for name in ("keras", "ssdn_tf"):
    try:
        __import__(name)
        sys.exit("not hidden")
    except ModuleNotFoundError:
        pass
data = np.load(sys.argv[2])
signature = tf.saved_model.load(sys.argv[1]).signatures["posterior"]
found = signature(noisy=tf.constant(data["noisy"]), noise_parameter=tf.constant(data["noise_parameter"]))
for name, value in found.items():
    assert np.array_equal(value, data[name]), name
print("equal")
"""


def test_the_saved_model_runs_where_neither_keras_nor_this_package_is(exported, tmp_path):
    experiment = SOME[0]
    _, path, loaded = exported(experiment)
    inputs = request(experiment, pictures(1, 33, 47))
    expected = {name: value.numpy() for name, value in loaded.signatures["posterior"](**inputs).items()}
    np.savez(tmp_path / "data.npz", noisy=inputs["noisy"], **expected)
    # -S: no site-packages; instead links to all in it but what is to be hidden.
    others = tmp_path / "packages"
    others.mkdir()
    for package in pathlib.Path(sysconfig.get_path("purelib")).iterdir():
        if not package.name.startswith(("keras", "tf_keras", "ssdn_tf", "__editable__")):
            os.symlink(package, others / package.name)
    command = [sys.executable, "-S", "-c", RUN_ALONE, str(path), str(tmp_path / "data.npz")]
    settings = {"capture_output": True, "text": True, "cwd": tmp_path, "timeout": 300}
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(others)}, **settings)
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")
def test_the_saved_model_runs_through_the_c_interface(exported, tmp_path):
    experiment = SOME[0]
    _, path, loaded = exported(experiment)
    noisy = pictures(1, 33, 47)
    expected = loaded.signatures["posterior"](**request(experiment, noisy))["posterior_std"].numpy()
    # And an error comes back as one: 25 is no level.
    levels = np.float32(experiment.parameter(experiment.low)), 25
    done, found = run_in_c(tmp_path, path, noisy, "posterior_std", levels)
    assert done.returncode == 1 and "sigma in [0, 1]" in done.stderr, done.stderr[-2000:]
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)


# ---------------------------------------------------------------- places


def fake_write(model, experiment, card, folder):
    folder.mkdir()
    (folder / "saved_model.pb").write_bytes(b"")


def test_versions_count_up_and_leave_the_others_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(saved_model, "_write", fake_write)
    output = tmp_path / "models" / "ssdn"
    found = [saved_model.export(None, None, {}, output).name for _ in range(2)]
    (output / "7").mkdir()
    (output / "notes").mkdir()
    found.append(saved_model.export(None, None, {}, output).name)
    assert found == ["1", "2", "8"]
    assert sorted(p.name for p in output.iterdir()) == ["1", "2", "7", "8", "notes"]


def test_a_number_that_another_export_takes_meanwhile_is_left_to_it(tmp_path, monkeypatch):
    def racing(model, experiment, card, folder):
        fake_write(model, experiment, card, folder)
        rename = os.rename

        def late(source, place):
            monkeypatch.setattr(os, "rename", rename)
            place.mkdir()
            (place / "saved_model.pb").write_bytes(b"theirs")
            rename(source, place)

        monkeypatch.setattr(os, "rename", late)

    monkeypatch.setattr(saved_model, "_write", racing)
    assert saved_model.export(None, None, {}, tmp_path).name == "2"
    assert (tmp_path / "1" / "saved_model.pb").read_bytes() == b"theirs"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
        tf.errors.ResourceExhaustedError(None, None, os.strerror(errno.ENOSPC)),
    ],
    ids=["Python's", "TensorFlow's"],
)
def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch, error):
    def full(model, experiment, card, folder):
        fake_write(model, experiment, card, folder)
        raise error

    monkeypatch.setattr(saved_model, "_write", full)
    with pytest.raises(UserError, match=r"cannot write the model \(No space left on device\)"):
        saved_model.export(None, None, {}, tmp_path / "a")
    assert list((tmp_path / "a").iterdir()) == []


def test_places_that_are_no_folder_of_versions_are_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "saved_model.pb").write_text("mine")
    for name in ("file", "model"):
        with pytest.raises(ValueError, match="expected a folder for the versions of a model"):
            saved_model.export(None, None, {}, tmp_path / name)
    assert (tmp_path / "file").read_text() == "mine"


def test_folders_that_are_no_model_of_ours_are_refused(exported, tmp_path):
    with pytest.raises(UserError, match="expected a SavedModel written by export/savedmodel.py"):
        saved_models.load(tmp_path)
    _, path, _ = exported(SOME[0])
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    (copy / "saved_model.pb").write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot be read"):
        saved_models.load(copy)


def test_a_loaded_model_answers_like_the_keras_one(exported):
    experiment = SOME[0]
    model, path, _ = exported(experiment)
    card, served = saved_models.load(path)
    assert card["experiment"] == experiment.to_dict() and set(served.input) == {"noisy", "noise_parameter"}
    inputs = keras_inputs(model, experiment, pictures(1, 32, 64))
    expected, found = model(inputs), served.predict_on_batch(inputs)
    for name in set(expected) - {"noise_parameter"}:
        np.testing.assert_array_equal(found[name], expected[name])


def test_a_predictor_of_a_saved_model_answers_like_one_of_the_keras_model(exported):
    for experiment in SOME[:2]:
        model, path, _ = exported(experiment)
        loaded = predictor.load(path.parent)
        assert loaded.experiment == experiment and loaded.source.path == path
        assert loaded.source.details["name"] == experiment.name
        noisy = pictures(1, 33, 47, channels=experiment.channels)[0]
        found = loaded.denoise(noisy, 0.1)
        expected = predictor.Predictor(model, experiment).denoise(noisy, 0.1)
        for name, image in expected.images().items():
            np.testing.assert_allclose(getattr(found, name), image, atol=1e-5)
        assert found.noise_parameter == pytest.approx(expected.noise_parameter, rel=1e-5)
