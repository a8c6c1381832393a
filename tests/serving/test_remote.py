"""The transports over real sockets, against a double of TensorFlow Serving's protocol, and against TensorFlow
Serving itself where its binary is on the PATH or named by SSDN_MODEL_SERVER."""

import concurrent.futures
import re
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from serving_double import BINARY, ProtocolDouble, free_port
from serving_support import BOTH, SIGMA, byte_array, random_pixels

from ssdn_tf.data import images
from ssdn_tf.errors import UserError
from ssdn_tf.inference import tiling
from ssdn_tf.serving import remote, transport

BOTH = pytest.mark.parametrize("kind", BOTH)
GOOD = {"noisy": np.full((1, 8, 8, 3), 0.5, np.float32), "noise_parameter": SIGMA}


def test_tensorflow_serving_itself_is_among_the_servers():
    if BINARY is None:
        pytest.skip("only its double: no tensorflow_model_server on the PATH, and SSDN_MODEL_SERVER is not set")
    assert subprocess.run([BINARY, "--version"]).returncode == 0


# ---------------------------------------------------------------- answers


@BOTH
def test_floats_arrive_as_they_are(server, servables, kind):
    """Several outputs of a batch of two."""
    noisy = np.random.default_rng(0).random((2, 9, 13, 3), np.float32)
    inputs = {"noisy": noisy, "noise_parameter": np.float32([0.1, 0.2])}
    connection = remote.connect(server[kind], "ssdn")
    for name in ("serving_default", "posterior"):
        expected = servables["ssdn"][1].run(name, inputs)
        for output in expected:
            assert np.array_equal(connection.predict(name, inputs, output), expected[output])


@BOTH
def test_strings_arrive_as_bytes(server, servables, kind):
    inputs = {"request": byte_array(b"", b"anything")}
    found = remote.connect(server[kind], "ssdn").predict("describe", inputs, "model_card")
    expected = servables["ssdn"][1].run("describe", inputs)["model_card"]
    assert found.tolist() == expected.tolist() and found[0].startswith(b'{"name": "gauss5_50-')


@BOTH
def test_the_metadata_is_the_contract(server, kind):
    signatures = remote.connect(server[kind], "ssdn").signatures()
    assert {"serving_default", "posterior", "denoise_png", "denoise_png16", "describe"} <= set(signatures)
    assert signatures["serving_default"].inputs == {"noisy": (-1, -1, -1, 3), "noise_parameter": (-1,)}
    assert signatures["denoise_png16"].inputs == {"image_bytes": (-1,), "noise_parameter": (-1,)}
    assert set(signatures["denoise_png"].outputs) == {"image_bytes"}
    gray = remote.connect(server[kind], "gray").signatures()
    assert gray["serving_default"].inputs == {"noisy": (-1, -1, -1, 1)} and "posterior" not in gray


SIZES = [(1, 1), (33, 47), (64, 32), (40, 40), (31, 65), (96, 20), (64, 64), (5, 100)]


def from_eight_clients(urls, requests):
    """Each client has its own connection and sends its share, one after the other."""

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
        inputs = {"image_bytes": byte_array(images.encode_png(pixels)), "noise_parameter": SIGMA}
        key = (name, size)
        requests.append((key, (name, inputs, "image_bytes")))
        if key not in expected:
            expected[key] = servables["ssdn"][1].run(name, inputs)["image_bytes"]
    answers = from_eight_clients(server, requests)
    assert len(answers) == 200
    for key, answer in answers:
        assert answer.tolist() == expected[key].tolist()


@pytest.mark.slow
def test_200_tiles_of_8_clients_and_mixed_pictures_on_a_batching_server(servables):
    """Pictures of mixed sizes, cut into tiles of one size, which the server merges."""
    requests, expected = [], {}
    for number, (height, width) in enumerate([(64, 80), (100, 64), (130, 65), (90, 120), (64, 300)] * 20):
        height, width = tiling.to_grid(height, 32), tiling.to_grid(width, 32)
        picture = images.to_float(random_pixels(height, width, seed=number % 5))
        for tile in tiling.tiles(height, width, 64, 0, 32):
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
        # A batch of another size is rounded differently (2e-6 here).
        np.testing.assert_allclose(answer, expected[key], rtol=0, atol=5e-6)


# ---------------------------------------------------------------- bad requests


def bad(signature, words, **inputs):
    """A case: the signature, its inputs with some replaced (None: left out), and what the error says."""
    good = dict(GOOD) if "png" not in signature else {"image_bytes": byte_array(PNG), "noise_parameter": SIGMA}
    return signature, {k: v for k, v in (good | inputs).items() if v is not None}, words


NOISY = GOOD["noisy"]
PNG = images.encode_png(random_pixels(20, 20))
LEVELS = r"expected one level for each picture, received the shapes \(levels, pictures\) "
SHAPE = r"noisy: expected the shape \[N, H, W, 3\], received the shape "
BYTES = r"image_bytes: expected the shape \[N\] with at least one picture, received the shape "
BAD = {
    "rank 3": bad("serving_default", SHAPE + r"\[8 8 3\]$", noisy=NOISY[0]),
    "rank 1": bad("serving_default", SHAPE + r"\[1\]$", noisy=SIGMA),
    "scalar picture": bad("serving_default", SHAPE + r"\[\]$", noisy=np.float32(0.5)),
    "scalar picture, posterior": bad("posterior", SHAPE + r"\[\]$", noisy=np.float32(0.5)),
    "wrong channels": bad("serving_default", SHAPE + r"\[1 8 8 2\]$", noisy=NOISY[..., :2]),
    "NaN": bad("serving_default", "noisy: expected finite intensities, received NaN or infinity", noisy=NOISY * np.nan),
    "empty batch": bad("serving_default", "at least one|N, H, W", noisy=NOISY[:0], noise_parameter=SIGMA[:0]),
    "not a PNG": bad("denoise_png", "Unknown image file format", image_bytes=byte_array(b"GIFT")),
    "half a PNG": bad("denoise_png", ".", image_bytes=byte_array(PNG[:200])),
    "no pictures": bad("denoise_png", BYTES + r"\[0\]$", image_bytes=byte_array(), noise_parameter=SIGMA[:0]),
    "scalar bytes": bad("denoise_png", BYTES + r"\[\]$", image_bytes=np.array(PNG, object)),
    "scalar bytes, 16 bits": bad("denoise_png16", BYTES + r"\[\]$", image_bytes=np.array(PNG, object)),
    "bytes of rank 2": bad("denoise_png", BYTES + r"\[1 1\]$", image_bytes=byte_array(PNG)[None]),
    "no level": bad("serving_default", "noise_parameter", noise_parameter=None),
    "negative level": bad("serving_default", "sigma", noise_parameter=-SIGMA),
    "level of 255": bad("serving_default", "of 255", noise_parameter=255 * SIGMA),
    "two levels": bad("serving_default", LEVELS + r"\[2\] \[1 8 8 3\]$", noise_parameter=SIGMA.repeat(2)),
    "scalar level": bad("serving_default", LEVELS + r"\[\] \[1 8 8 3\]$", noise_parameter=SIGMA[0]),
    "scalar level, posterior": bad("posterior", LEVELS + r"\[\] \[1 8 8 3\]$", noise_parameter=SIGMA[0]),
    "scalar level, PNG": bad("denoise_png", LEVELS + r"\[\] \[1 20 20 3\]$", noise_parameter=SIGMA[0]),
    "scalar level, 16 bits": bad("denoise_png16", LEVELS + r"\[\] \[1 20 20 3\]$", noise_parameter=SIGMA[0]),
    "level of rank 2": bad("serving_default", LEVELS + r"\[1 1\] \[1 8 8 3\]$", noise_parameter=SIGMA[None]),
    "level of rank 2, PNG": bad("denoise_png", LEVELS + r"\[1 1\] \[1 20 20 3\]$", noise_parameter=SIGMA[None]),
    "unknown signature": bad("denoise_jpeg", "denoise_jpeg"),
    "unknown input": bad("serving_default", "noisy", noisy=None, picture=NOISY),
}


@BOTH
@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_refused_in_a_sentence_and_the_server_goes_on(server, kind, case):
    signature, inputs, words = BAD[case]
    connection = remote.connect(server[kind], "ssdn", timeout=30)
    with pytest.raises(remote.ServerError) as caught:
        connection.predict(signature, inputs, "denoised")
    text = str(caught.value)
    print(text)
    prefix = f"{server[kind]}: the server refused the request: "
    assert text.startswith(prefix) and not re.search("node|assertion|\n", text)
    assert re.search(words, text.removesuffix(".")), text
    assert not caught.value.transient
    assert connection.predict("serving_default", GOOD, "denoised").shape == (1, 8, 8, 3)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (
            "assertion failed: [noisy: expected the shape [N, H, W, 3], received the shape] [1 8 8 2]\n\t "
            "[[{{function_node __inference__compute_7972}}{{node Assert/Assert}}]]",
            "noisy: expected the shape [N, H, W, 3], received the shape [1 8 8 2]",
        ),
        (
            "2 root error(s) found.\n  (0) INVALID_ARGUMENT: assertion failed: [sigma in [0, 1], received] [25]\n\t "
            "[[{{node Assert_4/Assert}}]]\n\t [[StatefulPartitionedCall/_5]]\n  (1) INVALID_ARGUMENT: assertion fai",
            "sigma in [0, 1], received [25]",
        ),
        ("{{function_node __inference_f_1}} assertion failed: [none.]\n\t [[{{node A}}]]", "none."),
        ("assertion failed: [none.]\nmore", "none.\nmore"),
        ("assertion failed: [expected the shape [N] with, received] [0]", "expected the shape [N] with, received [0]"),
        ("assertion failed: [alpha in [0, 1), received] [1]", "alpha in [0, 1), received [1]"),
        ("Servable not found for request: Latest(x)", "Servable not found for request: Latest(x)"),
    ],
)
def test_errors_are_shown_without_places_in_the_graph(raw, expected):
    assert transport.readable(raw) == expected


def test_the_double_words_errors_as_the_server_does(servables):
    """A control of the tests above: there is something to remove."""
    with pytest.raises(
        Exception, match=r"^assertion failed: \[noisy.*\n\t \[\[\{\{function_node __inference__compute_"
    ):
        servables["ssdn"][1].run("serving_default", GOOD | {"noisy": NOISY[0]})


@BOTH
@pytest.mark.parametrize("signature", ["serving_default", "denoise_png"])
def test_sizes_that_meet_in_a_batch_are_explained(servables, kind, signature):
    """Two clients with different pictures, on a server that batches."""

    def ask(width):
        pixels = random_pixels(8, width)
        inputs = {"image_bytes": byte_array(images.encode_png(pixels))}
        if signature == "serving_default":
            inputs = {"noisy": images.to_float(pixels)[None]}
        with pytest.raises(remote.ServerError) as caught:
            remote.connect(urls[kind], "ssdn").predict(signature, inputs | {"noise_parameter": SIGMA}, "denoised")
        return str(caught.value)

    with ProtocolDouble(servables, batching=([1, 2], 10)) as double, concurrent.futures.ThreadPoolExecutor(2) as pool:
        urls = double.urls
        for text in pool.map(ask, (8, 9)):
            assert "takes pictures of one size only" in text


@BOTH
def test_a_batching_server_describes_its_models(servables, kind):
    """Which is why `describe` has an input: without one the server refuses it."""
    with ProtocolDouble(servables, batching=([1, 2], 0.01)) as double:
        connection = remote.connect(double.urls[kind], "ssdn")
        (card,) = connection.predict("describe", {"request": byte_array(b"")}, "model_card")
        assert b'"reach"' in card


# ---------------------------------------------------------------- connections


@BOTH
@pytest.mark.parametrize(("knob", "times"), [("drop", 1), ("busy", 3)])
def test_a_passing_failure_is_retried(double, kind, knob, times, short_pauses):
    setattr(double, knob, times)
    assert remote.connect(double.urls[kind], "ssdn").predict("serving_default", GOOD, "denoised").any()


@BOTH
def test_a_lasting_failure_is_an_error(double, kind, short_pauses):
    double.busy = 1000
    with pytest.raises(remote.ServerError, match=r"the server is busy \(The batch.*\)\. Tried 3 times\."):
        remote.connect(double.urls[kind], "ssdn", retries=2).predict("serving_default", GOOD, "denoised")
    double.drop = 1000
    with pytest.raises(remote.ServerError, match=r"broke before the answer came \(.*\)\. Tried 3 times\."):
        remote.connect(double.urls[kind], "ssdn", retries=2).signatures()


@BOTH
def test_a_request_whose_connection_breaks_twice_is_not_sent_again(double, kind, short_pauses):
    connection = remote.connect(double.urls[kind], "ssdn")
    connection.signatures()
    double.drop = 5
    with pytest.raises(remote.ServerError, match="broke 2 times .* This request may be what ended the server"):
        connection.predict("serving_default", GOOD, "denoised")
    assert double.drop == 3


DYING = """
import os, sys, time
sys.path[:0] = sys.argv[1:3]
import serving_double
class Dying:
    signatures = {"serving_default": None}
    def __getattr__(self, name):
        os._exit(1)
with serving_double.ProtocolDouble({"ssdn": {1: Dying()}}) as double:
    print(double.ports["rest"], double.ports["grpc"], flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
@BOTH
def test_a_server_that_dies_of_a_request_breaks_the_connection(kind, short_pauses):
    """What the double's `drop` stands for, with a process that ends."""
    path = [str(p) for p in (tiling.__file__.rsplit("/ssdn_tf", 1)[0], __file__.rsplit("/serving", 1)[0])]
    with subprocess.Popen([sys.executable, "-c", DYING, *path], stdout=subprocess.PIPE, text=True) as process:
        ports = dict(zip(("rest", "grpc"), process.stdout.readline().split()))
        address = f"{'http' if kind == 'rest' else 'grpc'}://127.0.0.1:{ports[kind]}"
        with pytest.raises(remote.ServerError) as caught:
            remote.connect(address, "ssdn", retries=0).predict("serving_default", GOOD, "denoised")
    assert caught.value.broken or "before the answer came" in str(caught.value), str(caught.value)


@BOTH
def test_a_server_that_is_not_there_is_named(kind, short_pauses):
    address = f"{'http' if kind == 'rest' else 'grpc'}://127.0.0.1:{free_port()}"
    with pytest.raises(remote.ServerError, match="(?i)cannot reach .*refused.* port 8501 .* Tried 2") as caught:
        remote.connect(address, "ssdn", retries=1).predict("serving_default", GOOD, "denoised")
    assert str(caught.value).startswith(address) and not caught.value.broken


@BOTH
def test_a_server_that_comes_up_late_is_waited_for(servables, kind):
    double = ProtocolDouble(servables)
    with double:
        connection = remote.connect(double.urls[kind], "ssdn")
    answers = []
    waiting = threading.Thread(target=lambda: answers.append(connection.signatures()), daemon=True)
    waiting.start()
    time.sleep(0.6)
    assert waiting.is_alive()
    with ProtocolDouble(servables, ports=double.ports):
        waiting.join(30)
    assert "posterior" in answers[0]


@BOTH
def test_a_slow_server_is_not_asked_again(double, kind):
    connection = remote.connect(double.urls[kind], "ssdn", timeout=1)
    connection.signatures()
    double.delay = 3
    with pytest.raises(remote.ServerError, match="no answer within 1 s"):
        connection.predict("serving_default", GOOD, "denoised")
    assert len(double.requests) == 1


@BOTH
@pytest.mark.parametrize(
    ("model", "version", "words"),
    [
        ("other", None, r"the server has no model 'other' \(Servable not found.*other"),
        ("ssdn", 7, r"the server has no model 'ssdn', version 7 \(Servable not found.*7"),
    ],
)
def test_another_model_or_version_is_named(server, kind, model, version, words):
    with pytest.raises(remote.ServerError, match=words):
        remote.connect(server[kind], model, version).signatures()


def test_the_wrong_port_is_noticed(double):
    """REST to the gRPC port and the other way round, and a path that the server does not have."""
    rest, grpc = double.urls["rest"], double.urls["grpc"]
    for address in (grpc.replace("grpc", "http"), rest.replace("http", "grpc"), f"{rest}/elsewhere"):
        with pytest.raises(remote.ServerError, match=f"^{address}: "):
            remote.connect(address, "ssdn", retries=0).signatures()


@pytest.mark.parametrize(
    "address", ["localhost:8501", "ftp://x", "http://", "http://x:port", "grpc://x:1/path", "http://x?y"]
)
def test_an_address_of_another_kind_is_refused(address):
    with pytest.raises(ValueError, match=r"expected http://HOST:PORT or grpc://HOST:PORT, received '"):
        remote.connect(address, "ssdn")


def test_without_grpcio_only_grpc_is_missing(double, monkeypatch):
    monkeypatch.setitem(sys.modules, "grpc", None)
    monkeypatch.delitem(sys.modules, "ssdn_tf.serving.rpc", raising=False)
    monkeypatch.delattr(sys.modules["ssdn_tf.serving"], "rpc", raising=False)
    with pytest.raises(UserError, match=r'needs the package grpcio \(pip install "ssdn_tf\[serving\]"; http:// works'):
        remote.connect(double.urls["grpc"], "ssdn")
    assert remote.connect(double.urls["rest"], "ssdn").signatures()
