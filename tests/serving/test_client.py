"""The client over real sockets. The server is a double of TensorFlow Serving's protocol, and TensorFlow
Serving itself where its binary is on the PATH or named by SSDN_MODEL_SERVER."""

import concurrent.futures
import io
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import absl.flags
import keras
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from serving_double import ProtocolDouble, load
from tensorflow_serving.config import model_server_config_pb2

from export import client
from ssdn_tf.commands import cli
from ssdn_tf.data import images
from ssdn_tf.denoisers import models
from ssdn_tf.denoisers.experiments import Experiment
from ssdn_tf.inference import tiling
from ssdn_tf.serving import remote, saved_model

ROOT = pathlib.Path(__file__).parents[2]
BINARY = os.environ.get("SSDN_MODEL_SERVER") or shutil.which("tensorflow_model_server")
MODELS = {
    "ssdn": Experiment(),  # Gaussian, sigma known, colour
    "gray": Experiment(pipeline="n2c", parameter_source=None, channels=1),
}
SIGMA = np.float32([25 / 255])
BOTH = pytest.mark.parametrize("kind", ["rest", "grpc"])


@pytest.fixture(autouse=True)
def seeds():
    """Instead of that of conftest.py, which empties TensorFlow's caches: every test would prepare the models
    anew, for seconds. Nothing here draws from TensorFlow's or Keras's generators."""


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """{model: folder of its versions}."""
    made = {}
    for name, experiment in MODELS.items():
        keras.utils.set_random_seed(1)
        model = models.build(experiment, width=4).inference
        rng = np.random.default_rng(0)
        for variable in model.variables:
            if variable.path.endswith("bias"):
                variable.assign(rng.normal(0.1, 0.05, variable.shape))
        made[name] = tmp_path_factory.mktemp("models") / name
        saved_model.export(model, experiment, saved_model.model_card(experiment), made[name])
    return made


@pytest.fixture(scope="session")
def servables(folders):
    return {name: load(folder) for name, folder in folders.items()}


@pytest.fixture
def double(servables):
    """A server of its own for each test, with knobs."""
    with ProtocolDouble(servables) as double:
        yield double


@pytest.fixture(scope="module", params=["double", *(["tensorflow_model_server"] if BINARY else [])])
def server(request, folders, servables, tmp_path_factory):
    """{"rest": address, "grpc": address} of a server that a test leaves as it is."""
    if request.param == "double":
        with ProtocolDouble(servables) as double:
            yield double.urls
    else:
        with model_server(folders, tmp_path_factory.mktemp("server")) as urls:
            yield urls


class model_server:  # noqa: N801
    """TensorFlow Serving's binary, as a context manager that gives its addresses."""

    def __init__(self, folders, place):
        self.ports = {"rest": free_port(), "grpc": free_port()}
        entries = [
            f'config {{ name: "{n}" base_path: "{p}" model_platform: "tensorflow" }}' for n, p in folders.items()
        ]
        config = place / "models.config"
        config.write_text(f"model_config_list {{ {' '.join(entries)} }}")
        ports = [f"--port={self.ports['grpc']}", f"--rest_api_port={self.ports['rest']}"]
        self.command = [BINARY, *ports, f"--model_config_file={config}"]

    def __enter__(self):
        self.process = subprocess.Popen(self.command)
        rest = f"http://127.0.0.1:{self.ports['rest']}"
        for name in MODELS:
            wait_for(f"{rest}/v1/models/{name}", b"AVAILABLE")
        return {"rest": rest, "grpc": f"grpc://127.0.0.1:{self.ports['grpc']}"}

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()


def wait_for(url, text, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(url) as response:
                if text in response.read():
                    return
        except OSError:
            pass
        time.sleep(0.2)
    raise TimeoutError(url)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def call(*arguments):
    """Exit code of the client in this process."""
    return cli.execute(client.main, client.define, "TEXT", ["client.py", *map(str, arguments)])


def random_pixels(height, width, channels=3, dtype=np.uint8, seed=0):
    rng = np.random.default_rng((seed, height, width))
    return rng.integers(0, np.iinfo(dtype).max + 1, (height, width, channels), dtype)


def direct(servables, pixels, model="ssdn"):
    """What the SavedModel answers to uint8 or uint16 pixels when it is called in this process."""
    inputs = {"image_bytes": np.array([images.encode_png(pixels)], object)}
    if model == "ssdn":
        inputs["noise_parameter"] = SIGMA
    name = "denoise_png" if pixels.dtype == np.uint8 else "denoise_png16"
    return images.decode(servables[model][1].run(name, inputs)["image_bytes"][0], "")


def to_16_bits(pixels):
    return pixels.astype(np.uint16) * 257


@pytest.fixture
def folder(tmp_path):
    """Four noisy pictures: two sizes, colour and gray, 8 and 16 bits, one in a subfolder."""
    place = tmp_path / "noisy"
    images.write(place / "a.png", random_pixels(33, 47))
    images.write(place / "b.png", random_pixels(40, 20, seed=1))
    images.write(place / "c.png", random_pixels(33, 47, dtype=np.uint16, seed=2))
    images.write(place / "below" / "d.tif", random_pixels(1, 1, channels=1))
    return place


def test_tensorflow_serving_itself_is_among_the_servers():
    if BINARY is None:
        pytest.skip("only its double: no tensorflow_model_server on the PATH, and SSDN_MODEL_SERVER is not set")
    assert subprocess.run([BINARY, "--version"]).returncode == 0


# ---------------------------------------------------------------- round trips


@BOTH
@pytest.mark.parametrize("size", [(1, 1), (33, 47), (64, 32)])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_file_comes_back_as_the_saved_model_answers_it(server, servables, kind, size, bits, tmp_path):
    pixels = random_pixels(*size)
    source, target = tmp_path / "in.png", tmp_path / "out.png"
    images.write(source, pixels)
    flags = [f"--server={server[kind]}", f"--input={source}", f"--output={target}", "--sigma=25", f"--bits={bits}"]
    assert call(*flags) == 0
    expected = direct(servables, to_16_bits(pixels) if bits == 16 else pixels)
    assert np.array_equal(images.read(target), expected)


@BOTH
def test_a_folder_keeps_its_names_and_its_bits(server, servables, kind, folder, tmp_path, capsys):
    target = tmp_path / "clean"
    flags = [f"--server={server[kind]}", f"--input={folder}", f"--output={target}", "--sigma=25"]
    assert call(*flags) == 0
    assert "4 pictures, denoised by ssdn" in capsys.readouterr().out
    found = {str(file.relative_to(target)) for file in target.rglob("*") if file.is_file()}
    assert found == {"a.png", "b.png", "c.png", "below/d.png"}
    for name in ("a.png", "b.png", "c.png"):
        assert np.array_equal(images.read(target / name), direct(servables, images.read(folder / name)))
    gray = images.to_channels(images.read(folder / "below" / "d.tif"), 3)
    assert np.array_equal(images.read(target / "below" / "d.png"), direct(servables, gray))


@BOTH
def test_a_gray_model_without_a_level_gets_gray(server, servables, kind, tmp_path):
    pixels = random_pixels(20, 30)
    images.write(tmp_path / "in.png", pixels)
    flags = [f"--input={tmp_path / 'in.png'}", f"--output={tmp_path / 'out.png'}", "--model=gray", "--version=1"]
    assert call(f"--server={server[kind]}", *flags) == 0
    expected = direct(servables, images.to_channels(pixels, 1), "gray")
    assert np.array_equal(images.read(tmp_path / "out.png"), expected)


def test_sixteen_bits_become_eight_only_when_written(server, servables, tmp_path):
    pixels = random_pixels(20, 30, dtype=np.uint16)
    images.write(tmp_path / "in.png", pixels)
    flags = [f"--input={tmp_path / 'in.png'}", f"--output={tmp_path / 'out.jpg'}", "--bits=8", "--sigma=25"]
    assert call(f"--server={server['rest']}", *flags, f"--output={tmp_path / 'out.png'}") == 0
    expected = images.to_uint8(images.to_float(direct(servables, pixels)))
    assert np.array_equal(images.read(tmp_path / "out.png"), expected)


@BOTH
def test_floats_arrive_as_they_are(server, servables, kind):
    """Over both transports, also several outputs and a batch of two."""
    noisy = np.random.default_rng(0).random((2, 9, 13, 3), np.float32)
    inputs = {"noisy": noisy, "noise_parameter": np.float32([0.1, 0.2])}
    connection = remote.connect(server[kind], "ssdn")
    for name, outputs in servables["ssdn"][1].module.signatures.items():
        if name in ("serving_default", "posterior"):
            expected = servables["ssdn"][1].run(name, inputs)
            for output in outputs.structured_outputs:
                assert np.array_equal(connection.predict(name, inputs, output), expected[output])


@BOTH
def test_the_server_describes_the_contract(server, kind):
    signatures = remote.connect(server[kind], "ssdn").signatures()
    assert {"serving_default", "posterior", "denoise_png", "denoise_png16"} <= set(signatures)
    assert signatures["serving_default"].inputs == {"noisy": (-1, -1, -1, 3), "noise_parameter": (-1,)}
    assert signatures["denoise_png16"].inputs == {"image_bytes": (-1,), "noise_parameter": (-1,)}
    assert set(signatures["denoise_png"].outputs) == {"image_bytes"}
    gray = remote.connect(server[kind], "gray").signatures()
    assert gray["serving_default"].inputs == {"noisy": (-1, -1, -1, 1)} and "posterior" not in gray


# ---------------------------------------------------------------- tiles


def test_tiles_with_the_halo_give_the_answer_of_the_whole_picture(double, servables, tmp_path):
    pixels = random_pixels(700, 650)
    images.write(tmp_path / "in.png", pixels)
    flags = [f"--input={tmp_path / 'in.png'}", f"--output={tmp_path / 'out.png'}", "--sigma=25", "--bits=16"]
    assert call(f"--server={double.urls['grpc']}", *flags, "--tile=672") == 0
    assert len(double.requests) == 2
    # One step of 16 bits: a batch of another size may differ in the last bit of a float.
    off = images.read(tmp_path / "out.png").astype(int) - direct(servables, to_16_bits(pixels))
    assert np.abs(off).max() <= 1


def test_tiles_have_one_size_and_the_pictures_that_fit_in_go_whole(double, tmp_path):
    for i, size in enumerate([(65, 200), (130, 70), (64, 64), (40, 90)]):
        images.write(tmp_path / "in" / f"{i}.png", random_pixels(*size))
    flags = [f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}", "--sigma=25", "--tile=64", "--halo=0"]
    assert call(f"--server={double.urls['rest']}", *flags) == 0
    sizes = [images.decode(inputs["image_bytes"][0], "").shape[:2] for _, inputs in double.requests]
    # (65, 200) fills 96x224, so 2 x 4 tiles; (130, 70) fills 160x96, 3 x 2; 64x96 = 40x90 filled is 2.
    assert sizes == [(64, 64)] * (8 + 6 + 1 + 2)
    assert images.read(tmp_path / "out" / "0.png").shape == (65, 200, 3)


@BOTH
def test_the_client_keeps_a_few_requests_in_flight(double, kind, tmp_path):
    images.write(tmp_path / "in.png", random_pixels(96, 96))
    double.delay = 0.4
    flags = [f"--input={tmp_path / 'in.png'}", f"--output={tmp_path / 'out.png'}", "--sigma=25"]
    assert call(f"--server={double.urls[kind]}", *flags, "--tile=32", "--halo=0", "--in_flight=3") == 0
    assert len(double.requests) == 9 and double.peak == 3


def test_one_client_does_not_mix_sizes_on_a_batching_server(servables, tmp_path):
    for i in range(8):
        images.write(tmp_path / "in" / f"{i}.png", random_pixels(*[(64, 32), (32, 64)][i % 2], seed=i))
    flags = [f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}", "--sigma=25", "--bits=16"]
    with ProtocolDouble(servables, batching=([1, 2, 4], 10)) as double:
        assert call(f"--server={double.urls['rest']}", *flags) == 0
        assert double.batching.sizes == [4, 4]
    for file in (tmp_path / "in").iterdir():
        off = images.read(tmp_path / "out" / file.name).astype(int) - direct(servables, to_16_bits(images.read(file)))
        assert np.abs(off).max() <= 1


@BOTH
@pytest.mark.parametrize("signature", ["serving_default", "denoise_png"])
def test_sizes_that_meet_in_a_batch_are_explained(servables, kind, signature):
    """Two clients with different pictures, on a server that batches."""

    def ask(width):
        pixels = random_pixels(8, width)
        inputs = {"image_bytes": png(images.encode_png(pixels))}
        if signature == "serving_default":
            inputs = {"noisy": images.to_float(pixels)[None]}
        with pytest.raises(remote.ServerError) as caught:
            remote.connect(urls[kind], "ssdn").predict(signature, inputs | {"noise_parameter": SIGMA}, "denoised")
        return str(caught.value)

    with ProtocolDouble(servables, batching=([1, 2], 10)) as double, concurrent.futures.ThreadPoolExecutor(2) as pool:
        urls = double.urls
        for text in pool.map(ask, (8, 9)):
            assert "expected requests of one size where the server batches them" in text


# ---------------------------------------------------------------- many clients


SIZES = [(1, 1), (33, 47), (64, 32), (40, 40), (31, 65), (96, 20), (64, 64), (5, 100)]


def from_eight_clients(urls, requests):
    """Each client has its own connection, and asks for its share, one after the other."""

    def ask(number):
        connection = remote.connect(urls[("rest", "grpc")[number % 2]], "ssdn")
        return [(key, connection.predict(*request)) for key, request in requests[number::8]]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return [pair for answers in pool.map(ask, range(8)) for pair in answers]


def test_200_requests_of_8_clients_and_mixed_sizes_equal_the_direct_calls(server, servables):
    requests, expected = [], {}
    for i in range(200):
        name = "denoise_png16" if i % 5 == 0 else "denoise_png"
        size = SIZES[i % len(SIZES)]
        pixels = random_pixels(*size, dtype=np.uint16 if name.endswith("16") else np.uint8)
        inputs = {"image_bytes": np.array([images.encode_png(pixels)], object), "noise_parameter": SIGMA}
        key = (name, size)
        requests.append((key, (name, inputs, "image_bytes")))
        if key not in expected:
            expected[key] = servables["ssdn"][1].run(name, inputs)["image_bytes"]
    answers = from_eight_clients(server, requests)
    assert len(answers) == 200
    for key, answer in answers:
        assert answer.tolist() == expected[key].tolist()


def test_200_tiles_of_8_clients_and_mixed_pictures_on_a_batching_server(servables):
    """Pictures of mixed sizes, cut to tiles of one size, which the server merges."""
    requests, expected = [], {}
    for number, (height, width) in enumerate([(64, 80), (100, 64), (130, 65), (90, 120), (64, 300)] * 20):
        picture = tiling.fill(images.to_float(random_pixels(height, width, seed=number % 5)))
        for tile in tiling.tiles(height, width, 64, 0):
            inputs = {"noisy": tile.cut(picture)[None], "noise_parameter": SIGMA}
            key = (number % 5, tile)
            requests.append((key, ("serving_default", inputs, "denoised")))
            if key not in expected:
                expected[key] = servables["ssdn"][1].run("serving_default", inputs)["denoised"]
    with ProtocolDouble(servables, batching=([1, 2, 4, 8], 0.01)) as double:
        answers = from_eight_clients(double.urls, requests[:200])
        assert max(double.batching.sizes) > 1
    assert len(answers) == 200
    for key, answer in answers:
        np.testing.assert_allclose(answer, expected[key], rtol=0, atol=1e-6)


# ---------------------------------------------------------------- requests that make no sense


def picture(*shape):
    return np.full(shape, 0.5, np.float32)


def png(data):
    return np.array([data], object)


# name: (signature, inputs, what the answer says).
BAD = {
    "wrong rank": ("serving_default", {"noisy": picture(8, 8, 3), "noise_parameter": SIGMA}, r"\[8[ ,]8[ ,]3\]"),
    "wrong channels": (
        "serving_default",
        {"noisy": picture(1, 8, 8, 2), "noise_parameter": SIGMA},
        r"W, 3\], received \[1 8 8 2\]",
    ),
    "NaN": ("serving_default", {"noisy": picture(1, 8, 8, 3) * np.nan, "noise_parameter": SIGMA}, "finite"),
    "empty batch": (
        "serving_default",
        {"noisy": picture(0, 8, 8, 3), "noise_parameter": SIGMA[:0]},
        "at least one|N, H, W",
    ),
    "no PNG": ("denoise_png", {"image_bytes": png(b"GIFT"), "noise_parameter": SIGMA}, "image"),
    "half a PNG": (
        "denoise_png",
        {"image_bytes": png(images.encode_png(random_pixels(20, 20))[:200]), "noise_parameter": SIGMA},
        ".",
    ),
    "no pictures": ("denoise_png", {"image_bytes": np.array([], object), "noise_parameter": SIGMA[:0]}, "at least one"),
    "no level": ("serving_default", {"noisy": picture(1, 8, 8, 3)}, "noise_parameter"),
    "negative level": ("serving_default", {"noisy": picture(1, 8, 8, 3), "noise_parameter": -SIGMA}, "sigma"),
    "level of 255": ("serving_default", {"noisy": picture(1, 8, 8, 3), "noise_parameter": 255 * SIGMA}, "of 255"),
    "two levels": ("serving_default", {"noisy": picture(1, 8, 8, 3), "noise_parameter": SIGMA.repeat(2)}, "one a pic"),
    "unknown signature": ("denoise_jpeg", {"image_bytes": png(b"")}, "denoise_jpeg"),
    "unknown input": (
        "serving_default",
        {"picture": picture(1, 8, 8, 3), "noise_parameter": SIGMA},
        "noisy",
    ),
}


@BOTH
@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_refused_and_the_server_goes_on(server, kind, case):
    signature, inputs, words = BAD[case]
    connection = remote.connect(server[kind], "ssdn", timeout=30)
    with pytest.raises(remote.ServerError) as caught:
        connection.predict(signature, inputs, "denoised")
    text = str(caught.value)
    print(text)
    assert text.startswith(f"{server[kind]} refuses the request: ") and "node" not in text
    assert re.search(words, text), text
    assert not caught.value.transient
    good = {"noisy": picture(1, 8, 8, 3), "noise_parameter": SIGMA}
    assert connection.predict("serving_default", good, "denoised").shape == (1, 8, 8, 3)


# ---------------------------------------------------------------- what goes wrong on the way


@pytest.fixture
def one(tmp_path):
    """Flags for one small picture; nothing is written yet."""
    images.write(tmp_path / "in.png", random_pixels(8, 8))
    return [f"--input={tmp_path / 'in.png'}", f"--output={tmp_path / 'out.png'}", "--sigma=25"]


@pytest.fixture
def hasty(monkeypatch):
    """Pauses between tries that suit a test."""
    monkeypatch.setattr(remote, "_FIRST_PAUSE", 0.01)


@BOTH
@pytest.mark.parametrize("knob", ["drop", "busy"])
def test_a_passing_trouble_is_waited_out(double, kind, knob, one, tmp_path, hasty):
    setattr(double, knob, 3)
    assert call(f"--server={double.urls[kind]}", *one) == 0
    assert (tmp_path / "out.png").exists()


@BOTH
@pytest.mark.parametrize("knob", ["drop", "busy"])
def test_a_lasting_trouble_is_an_error(double, kind, knob, one, tmp_path, hasty, capsys):
    setattr(double, knob, 1000)
    assert call(f"--server={double.urls[kind]}", *one, "--retries=2") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {double.urls[kind]}: expected a") and "Tried 3 times." in error
    assert error.count("\n") == 1 and not (tmp_path / "out.png").exists()


@BOTH
def test_a_server_that_is_not_there_is_named(kind, one, tmp_path, capsys, hasty):
    address = f"{'http' if kind == 'rest' else 'grpc'}://127.0.0.1:{free_port()}"
    assert call(f"--server={address}", *one, "--retries=1") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {address}: expected a server, received '") and "refused" in error.lower()
    assert error.count("\n") == 1 and [file.name for file in tmp_path.iterdir()] == ["in.png"]


@BOTH
def test_a_server_that_comes_up_late_is_waited_for(servables, kind, one, tmp_path):
    double = ProtocolDouble(servables)
    with double:
        address = double.urls[kind]
    waiting = threading.Thread(target=call, args=(f"--server={address}", *one), daemon=True)
    waiting.start()
    time.sleep(0.6)
    assert waiting.is_alive()
    with ProtocolDouble(servables, ports=double.ports):
        waiting.join(30)
    assert (tmp_path / "out.png").exists()


@BOTH
def test_a_slow_server_is_not_asked_again(double, kind, one, capsys):
    remote.connect(double.urls[kind], "ssdn").signatures()
    double.delay = 6
    assert call(f"--server={double.urls[kind]}", *one, "--timeout=2") == 1
    assert "expected an answer within --timeout=2 s, received none" in capsys.readouterr().err
    assert len(double.requests) == 1


@BOTH
@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model=other"], r"--model: expected a model that .* serves, received 'other' \(Servable not found.*other"),
        (["--version=7"], r"--model: expected a model .* received 'ssdn, version 7' \(Servable not found.*7"),
    ],
)
def test_another_model_or_version_is_named(server, kind, one, flags, words, capsys):
    assert call(f"--server={server[kind]}", *one, *flags) == 1
    error = capsys.readouterr().err
    assert re.search(words, error) and error.count("\n") == 1


def test_the_wrong_port_is_noticed(double, one, capsys, hasty):
    """REST to the gRPC port, and the other way round; something that is no TensorFlow Serving."""
    rest, grpc = double.urls["rest"], double.urls["grpc"]
    for address in (grpc.replace("grpc", "http"), rest.replace("http", "grpc"), f"{rest}/elsewhere"):
        assert call(f"--server={address}", *one, "--retries=0") == 1
        error = capsys.readouterr().err
        assert error.startswith(f"error: {address}") and error.count("\n") == 1


CHANGES = {
    "missing output": (
        lambda outputs: {"png": outputs["image_bytes"], "size": SIGMA},
        "expected the output 'image_byt",
    ),
    "no PNG": (
        lambda outputs: {"image_bytes": png(b"GIF89a")},
        "expected a PNG of 32x32 with 8 bits, received so",
    ),
    "cut PNG": (lambda outputs: {"image_bytes": png(outputs["image_bytes"][0][:70])}, "the answer: expected a picture"),
    "wrong size": (
        lambda outputs: {"image_bytes": png(images.encode_png(random_pixels(9, 8)))},
        "expected a PNG of 32x32 with 8 bits and 3 channels, received 8x9, 8 bits, 3 channels",
    ),
    "wrong depth": (
        lambda outputs: {"image_bytes": png(images.encode_png(random_pixels(8, 8, dtype=np.uint16)))},
        "16 b",
    ),
    "two answers": (lambda outputs: {"image_bytes": outputs["image_bytes"].repeat(2)}, "received something else"),
    "numbers": (lambda outputs: {"image_bytes": SIGMA}, "received something else"),
}


@BOTH
@pytest.mark.parametrize("case", CHANGES)
def test_an_answer_against_the_contract_is_an_error(double, kind, case, one, tmp_path, capsys):
    double.change, words = CHANGES[case]
    assert call(f"--server={double.urls[kind]}", *one) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "out.png").exists()


def test_a_model_of_another_kind_is_refused(double, one, capsys, monkeypatch):
    signature = remote.Signature({"x": (-1, 2)}, {"y": (-1,)})
    monkeypatch.setattr(remote.Server, "signatures", lambda _: {"serving_default": signature})
    assert call(f"--server={double.urls['rest']}", *one) == 1
    assert "expected a model of export/savedmodel.py, received one with serving_default" in capsys.readouterr().err


# ---------------------------------------------------------------- flags and files


# Flags: what the sentence says. There is no server, which comes last.
WRONG = {
    "": "expected --server, received none",
    "--server=localhost:8501": "--server: expected http://HOST:PORT or grpc://HOST:PORT, received 'localhost:8501'",
    "--server=ftp://x": "--server: expected http",
    "--server=http://": "--server: expected http",
    "--server=http://x:port": "--server: expected http",
    "--server=grpc://x:1/path": "--server: expected http",
    "--sigma=256": r"--sigma: expected a number between 0 and 255 \(std, of 255\), received '256'",
    "--sigma=-1": "--sigma: expected",
    "--sigma=nan": "--sigma: expected",
    "--sigma=5,50": "sigma.*5,50",
    "--lam=-1": "--lam: expected a number between 0.001 and 1,000,000 .*photons.* received '-1'",
    "--alpha=1.5": "--alpha: expected a number between 0 and 1 .*share.* received '1.5'",
    "--sigma=25 --alpha=0.5": "expected one noise level, received --sigma and --alpha",
    "--tile=1000": "--tile: expected a multiple of 32, with --halo=320 at least 672, received 1000",
    "--tile=512": "--tile: expected .* at least 672, received 512",
    "--timeout=0": "--timeout: expected seconds above 0",
    "--in_flight=0": "in_flight",
    "--bits=12": "bits.*12",
    "--unknown=1": "unknown",
    "--input=/nowhere.png": "--input: expected a picture or a folder, received '/nowhere.png', which does not exist",
    "--output=out.doc": "--output: expected a name ending in .*, received 'out.doc'",
    "--output=in.png": "--output: expected another file than --input, received 'in.png' for both",
    "--input=text.png": "text.png: expected a picture, received a file that cannot be read",
    "--input=in.png": "expected a server, received 'Connection refused'",
    "--input=.": "--output: expected a folder, as --input is one, received the file|another folder",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_flags_get_one_sentence_and_write_nothing(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images.write(tmp_path / "in.png", random_pixels(8, 8))
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "out.png").write_bytes(b"old")
    flags = ["--server=http://127.0.0.1:1", "--input=in.png", "--output=out.png", "--retries=0"]
    assert call(*(flags if arguments else flags[1:]), *arguments.split()) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(WRONG[arguments], error), error
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.png", "out.png", "text.png"]
    assert (tmp_path / "out.png").read_bytes() == b"old"


def test_a_level_is_asked_for_or_refused_as_the_model_has_it(double, one, capsys):
    assert call(f"--server={double.urls['rest']}", *one[:2]) == 1
    assert "expected --sigma, --lam or --alpha, as it must be told, received none" in capsys.readouterr().err
    assert call(f"--server={double.urls['rest']}", *one, "--model=gray") == 1
    assert "--sigma: expected no level, as model 'gray' takes none, received one" in capsys.readouterr().err
    assert not double.requests


@pytest.mark.parametrize(
    ("flag", "parameter"),
    [("--sigma=25", 25 / 255), ("--sigma=0", 0), ("--lam=30", 30), ("--alpha=0.5", 0.5), ("--alpha=1", 1)],
)
def test_levels_travel_in_the_models_unit(double, one, flag, parameter):
    call(f"--server={double.urls['rest']}", *one[:2], flag)
    (_, inputs), *_ = double.requests
    assert inputs["noise_parameter"].tolist() == [np.float32(parameter)]


def test_a_sigma_that_looks_like_a_share_gets_a_warning(double, one, capsys):
    assert call(f"--server={double.urls['rest']}", *one[:2], "--sigma=0.1") == 0
    assert "is --sigma=25.5" in capsys.readouterr().err


def test_sixteen_bits_need_a_png(double, tmp_path, capsys):
    images.write(tmp_path / "in.png", random_pixels(8, 8, dtype=np.uint16))
    flags = [f"--input={tmp_path / 'in.png'}", f"--output={tmp_path / 'out.jpg'}", "--sigma=25"]
    assert call(f"--server={double.urls['rest']}", *flags) == 1
    assert "--output: expected a name ending in .png for 16 bit" in capsys.readouterr().err
    assert not double.requests


def test_pictures_of_a_folder_that_are_there_are_left_unless_told_otherwise(double, folder, tmp_path, capsys):
    target = tmp_path / "clean"
    images.write(target / "a.png", random_pixels(2, 2))
    before = (target / "a.png").read_bytes()
    flags = [f"--server={double.urls['rest']}", f"--input={folder}", f"--output={target}", "--sigma=25"]
    assert call(*flags) == 0
    assert "1 of 4 pictures are there already" in capsys.readouterr().err
    assert (target / "a.png").read_bytes() == before and len(double.requests) == 3
    assert call(*flags) == 0 and len(double.requests) == 3
    assert call(*flags, "--overwrite") == 0 and len(double.requests) == 7
    assert images.read(target / "a.png").shape == (33, 47, 3)


def test_a_single_file_is_written_anew(double, one, tmp_path):
    (tmp_path / "out.png").write_bytes(b"old")
    assert call(f"--server={double.urls['rest']}", *one) == 0
    assert images.read(tmp_path / "out.png").shape == (8, 8, 3)


def test_the_other_pictures_of_a_folder_are_done_where_one_is_broken(double, folder, tmp_path, capsys):
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "half.png").write_bytes((folder / "a.png").read_bytes()[:500])
    flags = [f"--input={folder}", f"--output={tmp_path / 'clean'}", "--sigma=25"]
    assert call(f"--server={double.urls['rest']}", *flags) == 1
    error = capsys.readouterr().err.splitlines()
    assert [word in error[i] for i, word in enumerate(["broken.png: expected a pict", "half.png: expected a picture"])]
    assert error[-1] == "error: 2 of 6 pictures could not be denoised; see above."
    assert len([file for file in (tmp_path / "clean").rglob("*") if file.is_file()]) == 4


def test_an_error_of_the_server_ends_a_folder_and_keeps_what_is_written(double, folder, tmp_path, capsys, hasty):
    answered = []

    def twice(outputs):
        answered.append(outputs)
        return outputs if len(answered) <= 2 else {"image_bytes": png(b"nothing")}

    double.change = twice
    flags = [f"--input={folder}", f"--output={tmp_path / 'clean'}", "--sigma=25", "--in_flight=1"]
    assert call(f"--server={double.urls['rest']}", *flags) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert len([file for file in (tmp_path / "clean").rglob("*") if file.is_file()]) == 2


def test_a_folder_inside_the_input_is_not_read_and_the_input_is_not_written(double, folder, capsys):
    flags = [f"--server={double.urls['rest']}", f"--input={folder}", "--sigma=25"]
    assert call(*flags, f"--output={folder / 'clean'}") == 0
    assert call(*flags, f"--output={folder / 'clean'}", "--overwrite") == 0
    assert len(double.requests) == 8
    capsys.readouterr()
    assert call(*flags, f"--output={folder}") == 1
    assert "expected another folder than --input" in capsys.readouterr().err


def test_two_pictures_that_would_get_one_name_are_refused(double, folder, tmp_path, capsys):
    images.write(folder / "a.jpg", random_pixels(8, 8))
    flags = [f"--input={folder}", f"--output={tmp_path / 'clean'}", "--sigma=25"]
    assert call(f"--server={double.urls['rest']}", *flags) == 1
    assert "expected names that differ before the suffix" in capsys.readouterr().err


def test_a_file_may_go_into_a_folder(double, one, tmp_path):
    (tmp_path / "clean").mkdir()
    assert call(f"--server={double.urls['rest']}", *one, f"--output={tmp_path / 'clean'}") == 0
    assert (tmp_path / "clean" / "in.png").exists()


# ---------------------------------------------------------------- progress, dependencies


def test_progress_is_drawn_on_a_terminal_only():
    terminal, file = io.StringIO(), io.StringIO()
    terminal.isatty = lambda: True
    for stream in (terminal, file):
        with client.Line(4, 2, stream) as line:
            line.requests, line.pictures = 2, 1
            line.draw()
    assert re.search(r"\r1/2 pictures, 2/4 requests, \d+ s left", terminal.getvalue())
    assert file.getvalue() == ""


PROGRAM = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    print("exit", stop.code)
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""


@BOTH
def test_the_client_loads_neither_tensorflow_nor_keras(double, kind, one, tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(ROOT / "export" / "client.py"), f"--server={double.urls[kind]}", *one]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    *_, stop, modules = done.stdout.splitlines()
    assert stop == "exit 0", done.stderr
    loaded = set(modules.split())
    assert {"numpy", "ssdn_tf"} <= loaded and ("grpc" in loaded) == (kind == "grpc")
    assert not loaded & {"tensorflow", "keras", "jax", "torch", "tensorflow_serving"}
    assert images.read(tmp_path / "out.png").shape == (8, 8, 3)


def test_without_grpcio_only_grpc_is_missing(double, one, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "grpc", None)
    assert call(f"--server={double.urls['grpc']}", *one) == 1
    error = capsys.readouterr().err
    assert "expected the package grpcio" in error and "pip install 'ssdn_tf[serving]'" in error
    assert call(f"--server={double.urls['rest']}", *one) == 0


def test_the_script_ends_with_the_exit_code_and_without_a_traceback():
    command = [sys.executable, str(ROOT / "export" / "client.py"), "--server=nowhere"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    done = subprocess.run(command[:2], capture_output=True, text=True)
    assert done.returncode == 0 and "--in_flight" in done.stdout


# ---------------------------------------------------------------- what a deployment needs


SERVING = ROOT / "export" / "serving"


FIELD = descriptor_pb2.FieldDescriptorProto
WRAPPERS = wrappers_pb2.DESCRIPTOR.serialized_pb


def read_config(name, kinds):
    """The message in a text file.

    kinds: {message: {field: (number, type)}}, the last one is the file's. tensorflow-serving-api has no
    class for these; names and numbers are those of the server's .proto files.
    """
    file = descriptor_pb2.FileDescriptorProto(name=name, syntax="proto3", dependency=["google/protobuf/wrappers.proto"])
    for kind, fields in kinds.items():
        message = file.message_type.add(name=kind)
        for field, (number, type_name) in fields.items():
            added = message.field.add(name=field, number=number, label=FIELD.LABEL_OPTIONAL)
            if type_name.startswith("repeated "):
                added.label, type_name = FIELD.LABEL_REPEATED, type_name.removeprefix("repeated ")
            if type_name.startswith("."):
                added.type, added.type_name = FIELD.TYPE_MESSAGE, type_name
            else:
                added.type = FIELD.Type.Value(f"TYPE_{type_name.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(WRAPPERS)
    pool.Add(file)
    made = message_factory.GetMessageClass(pool.FindMessageTypeByName(kind))
    return text_format.Parse((SERVING / name).read_text(), made())


def test_models_config_is_one():
    text = (SERVING / "models.config").read_text()
    (config,) = text_format.Parse(text, model_server_config_pb2.ModelServerConfig()).model_config_list.config
    assert (config.name, config.base_path, config.model_platform) == ("ssdn", "/models/ssdn", "tensorflow")
    values = absl.flags.FlagValues()
    client.define(values)
    assert values["model"].default == config.name


def test_batching_config_is_one():
    number = ".google.protobuf.Int64Value"
    names = ("max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads")
    fields = {name: (i, number) for i, name in enumerate(names, start=1)}
    config = read_config("batching.config", {"Batching": fields | {"allowed_batch_sizes": (6, "repeated int64")}})
    sizes = list(config.allowed_batch_sizes)
    # What the server asks of them.
    assert sizes == sorted(set(sizes)) and sizes[-1] == config.max_batch_size.value
    assert all(getattr(config, name).value > 0 for name in names)


def test_monitoring_config_is_one():
    inner = {"enable": (1, "bool"), "path": (2, "string")}
    kinds = {"Prometheus": inner, "Monitoring": {"prometheus_config": (1, ".Prometheus")}}
    config = read_config("monitoring.config", kinds)
    assert config.prometheus_config.enable and config.prometheus_config.path.startswith("/monitoring/")


def test_compose_starts_the_official_image_with_files_that_are_there():
    text = (SERVING / "compose.yaml").read_text()
    assert "image: tensorflow/serving:" in text and "\t" not in text
    assert {"127.0.0.1:8500:8500", "127.0.0.1:8501:8501"} == set(re.findall(r'- "(.*)"', text))
    named = re.findall(r"--(\w+)=/config/(\S+)", text)
    assert [flag for flag, _ in named] == ["model_config_file", "monitoring_config_file", "batching_parameters_file"]
    assert all((SERVING / file).is_file() for _, file in named)
    assert re.search(r"^\s+# - --enable_batching=true$", text, re.MULTILINE), "only for clients that send one size"
    assert "- .:/config:ro" in text and re.search(r"- \$\{MODELS:-\S+\}:/models:ro", text)
