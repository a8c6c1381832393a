"""export/client.py from its flags to the files, over real sockets; see test_remote.py for the servers."""

import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from serving_double import ProtocolDouble
from serving_support import BOTH, SIGMA, byte_array, direct, random_pixels, to_16_bits

from export import client
from ssdn_tf.commands import cli
from ssdn_tf.data import images
from ssdn_tf.serving import remote

ROOT = pathlib.Path(__file__).parents[2]
BOTH = pytest.mark.parametrize("kind", BOTH)


def call(*arguments):
    """Exit code of the client in this process."""
    return cli.execute(client.main, client.define, "TEXT", ["client.py", *map(str, arguments)])


@pytest.fixture
def run(tmp_path):
    """Function (url, *flags) -> exit code, for tmp_path/"in" and tmp_path/"out" or what `source`, `target` name."""

    def run(url, *flags, source="in", target="out"):
        return call(f"--server={url}", f"--input={tmp_path / source}", f"--output={tmp_path / target}", *flags)

    return run


@pytest.fixture
def folder(tmp_path):
    """Four noisy pictures: two sizes, colour and gray, 8 and 16 bits, one in a subfolder."""
    place = tmp_path / "in"
    images.write(place / "a.png", random_pixels(33, 47))
    images.write(place / "b.png", random_pixels(40, 20, seed=1))
    images.write(place / "c.png", random_pixels(33, 47, dtype=np.uint16, seed=2))
    images.write(place / "below" / "d.tif", random_pixels(1, 1, channels=1))
    return place


def written(folder):
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def sent(double):
    """The requests for pictures: [(signature, inputs)]"""
    return [request for request in double.requests if request[0] != "describe"]


def changed_card(double, change):
    """The double describes the model with a changed card."""

    def answer(outputs):
        if "model_card" not in outputs:
            return outputs
        card = json.loads(outputs["model_card"][0])
        change(card)
        return {"model_card": byte_array(json.dumps(card).encode())}

    double.change = answer


# ---------------------------------------------------------------- round trips


@BOTH
@pytest.mark.parametrize("size", [(1, 1), (33, 47), (64, 32)])
@pytest.mark.parametrize("bits", [8, 16])
def test_a_file_comes_back_as_the_model_answers_it(server, servables, kind, size, bits, run, tmp_path):
    pixels = random_pixels(*size)
    images.write(tmp_path / "in.png", pixels)
    assert run(server[kind], "--sigma=25", f"--bits={bits}", source="in.png", target="out.png") == 0
    expected = direct(servables, to_16_bits(pixels) if bits == 16 else pixels)
    assert np.array_equal(images.read(tmp_path / "out.png"), expected)


@BOTH
def test_a_folder_keeps_its_names_and_its_bits(server, servables, kind, folder, run, tmp_path, capsys):
    assert run(server[kind], "--sigma=25") == 0
    assert "4 pictures, denoised by ssdn" in capsys.readouterr().out
    target = tmp_path / "out"
    assert written(target) == {"a.png", "b.png", "c.png", "below/d.png"}
    for name in ("a.png", "b.png", "c.png"):
        assert np.array_equal(images.read(target / name), direct(servables, images.read(folder / name)))
    gray = images.to_channels(images.read(folder / "below" / "d.tif"), 3)
    assert np.array_equal(images.read(target / "below" / "d.png"), direct(servables, gray))


@BOTH
def test_a_gray_model_without_a_level_gets_gray(server, servables, kind, run, tmp_path):
    pixels = random_pixels(20, 30)
    images.write(tmp_path / "in.png", pixels)
    assert run(server[kind], "--model=gray", "--version=1", source="in.png", target="out.png") == 0
    expected = direct(servables, images.to_channels(pixels, 1), "gray")
    assert np.array_equal(images.read(tmp_path / "out.png"), expected)


def test_sixteen_bits_become_eight_only_when_written(server, servables, run, tmp_path):
    pixels = random_pixels(20, 30, dtype=np.uint16)
    images.write(tmp_path / "in.png", pixels)
    assert run(server["rest"], "--bits=8", "--sigma=25", source="in.png", target="out.png") == 0
    expected = images.to_uint8(images.to_float(direct(servables, pixels)))
    assert np.array_equal(images.read(tmp_path / "out.png"), expected)


# ---------------------------------------------------------------- tiles


def test_tiles_that_overlap_by_the_reach_give_the_answer_of_the_whole_picture(double, servables, run, tmp_path):
    pixels = random_pixels(700, 650)
    images.write(tmp_path / "in.png", pixels)
    flags = ["--sigma=25", "--bits=16", "--tile=672", "--halo=320"]
    assert run(double.urls["grpc"], *flags, source="in.png", target="out.png") == 0
    assert len(sent(double)) == 2
    # One step of 16 bits: another size may differ in the last bit of a float.
    difference = images.read(tmp_path / "out.png").astype(int) - direct(servables, to_16_bits(pixels))
    assert np.abs(difference).max() <= 1


def test_tiles_have_at_most_one_size_and_pictures_that_fit_go_whole(double, run, tmp_path):
    changed_card(double, lambda card: card["network"].update(grid=32))
    for i, size in enumerate([(65, 200), (130, 70), (64, 64), (40, 90)]):
        images.write(tmp_path / "in" / f"{i}.png", random_pixels(*size))
    assert run(double.urls["rest"], "--sigma=25", "--tile=70", "--halo=0") == 0  # the grid makes it 64
    sizes = [images.decode(inputs["image_bytes"][0], "").shape[:2] for _, inputs in sent(double)]
    # On the grid of 32, (65, 200) is 96x224, so 2 x 4 tiles; (130, 70) is 160x96, so 3 x 2. The last ones are cut.
    assert len(sizes) == 8 + 6 + 1 + 1
    assert all(height <= 64 and width <= 64 or (height, width) == (40, 90) for height, width in sizes)
    assert sizes.count((64, 64)) > len(sizes) / 3
    assert images.read(tmp_path / "out" / "0.png").shape == (65, 200, 3)


def test_grid_and_reach_are_those_of_the_model_card(double, run, tmp_path):
    images.write(tmp_path / "in.png", random_pixels(65, 200))
    changed_card(double, lambda card: card["network"].update(grid=8, reach=5))
    assert run(double.urls["rest"], "--sigma=25", "--tile=64", source="in.png", target="out.png") == 0
    sizes = [images.decode(inputs["image_bytes"][0], "").shape[:2] for _, inputs in sent(double)]
    # On a grid of 8, 65 needs a second row, which begins at 8, and steps are of 48.
    assert sizes == 4 * [(64, 64)] + 4 * [(57, 64)]


def test_a_small_server_has_room_for_the_defaults(double, run, tmp_path):
    """At about 6 KB a pixel the requests under way take 3 GiB, and the overlap costs less than twice the pixels."""
    height, width = 1500, 2000
    images.write(tmp_path / "in.png", np.full((height, width, 3), 99, np.uint8))
    double.models = {"ssdn": {1: Echo(double.models["ssdn"][1])}}
    assert run(double.urls["grpc"], "--sigma=25", source="in.png", target="out.png") == 0
    sides = [images.decode(inputs["image_bytes"][0], "").shape[:2] for _, inputs in sent(double)]
    pixels = max(np.prod(side) for side in sides)
    assert double.peak * pixels * 6000 < 3.3e9
    assert sum(np.prod(side) for side in sides) < 2.2 * height * width


class Echo:
    """A model that answers pictures with themselves."""

    def __init__(self, servable):
        self.signatures = servable.signatures
        self.signature = servable.signature
        self.describe = servable.run

    def run(self, name, inputs):
        return self.describe(name, inputs) if name == "describe" else {"image_bytes": inputs["image_bytes"]}


@BOTH
def test_the_client_keeps_a_few_requests_in_flight(double, kind, run, tmp_path):
    images.write(tmp_path / "in.png", random_pixels(96, 96))
    double.delay = 0.4
    flags = ["--sigma=25", "--tile=32", "--halo=0", "--in_flight=3"]
    assert run(double.urls[kind], *flags, source="in.png", target="out.png") == 0
    assert len(sent(double)) == 9 and double.peak == 3


def test_one_client_does_not_mix_sizes_on_a_batching_server(servables, run, tmp_path):
    for i in range(8):
        images.write(tmp_path / "in" / f"{i}.png", random_pixels(*[(64, 32), (32, 64)][i % 2], seed=i))
    with ProtocolDouble(servables, batching=([1, 2, 4], 3)) as double:
        assert run(double.urls["rest"], "--sigma=25", "--bits=16", "--in_flight=4") == 0
        assert double.batching.sizes == [1, 4, 4]  # the first is `describe`
    for file in (tmp_path / "in").iterdir():
        expected = direct(servables, to_16_bits(images.read(file)))
        assert np.abs(images.read(tmp_path / "out" / file.name).astype(int) - expected).max() <= 1


# ---------------------------------------------------------------- noise levels


def test_a_level_is_required_or_refused_as_the_model_has_it(double, one, capsys):
    url = double.urls["rest"]
    for flags, words in {
        (): "model 'ssdn' needs the noise level: --sigma .sigma 5 to 50.",
        ("--lam=30",): "--lam: expected --sigma with gaussian noise, received the flag of poisson noise",
        ("--sigma=25", "--model=gray"): "--sigma: .* model 'gray' takes no noise level",
    }.items():
        assert call(f"--server={url}", *one[:2], *flags) == 1
        assert re.search(words, capsys.readouterr().err)
    assert not sent(double)


def test_a_model_for_one_level_has_it_as_the_default(double, one):
    changed_card(double, lambda card: card["experiment"].update(low=30.0, high=30.0))
    for flags, level in (((), 30), (("--sigma=20",), 20)):
        assert call(f"--server={double.urls['rest']}", *one[:2], *flags) == 0
        assert sent(double)[-1][1]["noise_parameter"].tolist() == [np.float32(level / 255)]


@pytest.mark.parametrize(
    ("noise", "flag", "parameter"),
    [("gaussian", "--sigma=25", 25 / 255), ("poisson", "--lam=30", 30), ("impulse", "--alpha=0.5", 0.5)],
)
def test_levels_travel_in_the_unit_of_the_model(double, one, noise, flag, parameter):
    changed_card(double, lambda card: card["experiment"].update(noise=noise))
    call(f"--server={double.urls['rest']}", *one[:2], flag)
    assert sent(double)[0][1]["noise_parameter"].tolist() == [np.float32(parameter)]


def test_a_sigma_that_looks_like_a_share_gets_a_warning(double, one, capsys):
    assert call(f"--server={double.urls['rest']}", *one[:2], "--sigma=0.1") == 0
    assert "is --sigma=25.5" in capsys.readouterr().err


def test_a_server_without_describe_serves_the_published_network(double, one, tmp_path, capsys, monkeypatch):
    """As models that were exported before there was that signature."""
    read = remote.Server.signatures
    old = lambda self: {name: value for name, value in read(self).items() if name != "describe"}
    monkeypatch.setattr(remote.Server, "signatures", old)
    url = double.urls["rest"]
    assert call(f"--server={url}", *one) == 0 and images.read(tmp_path / "out.png").shape == (8, 8, 3)
    assert len(double.requests) == 1
    assert call(f"--server={url}", *one[:2]) == 1
    assert "needs the noise level: --sigma, --lam or --alpha" in capsys.readouterr().err
    assert call(f"--server={url}", *one, "--halo=400") == 1
    assert "--tile: expected at least 832 with --halo=400, received 512" in capsys.readouterr().err


# ---------------------------------------------------------------- what goes wrong


CHANGES = {
    "missing output": (
        lambda outputs: {"png": outputs["image_bytes"], "size": SIGMA},
        "has no output 'image_bytes'",
    ),
    "not a PNG": (
        lambda outputs: {"image_bytes": byte_array(b"GIF89a")},
        "expected a PNG of 8x8 pixels, 8 bits, 3 channels, received something else",
    ),
    "cut PNG": (
        lambda outputs: {"image_bytes": byte_array(outputs["image_bytes"][0][:70])},
        "the answer: expected a picture",
    ),
    "wrong size": (
        lambda outputs: {"image_bytes": byte_array(images.encode_png(random_pixels(9, 8)))},
        "expected a PNG of 8x8 pixels, 8 bits, 3 channels, received 8x9 pixels, 8 bits, 3 channels",
    ),
    "wrong depth": (
        lambda outputs: {"image_bytes": byte_array(images.encode_png(random_pixels(8, 8, dtype=np.uint16)))},
        "16 bits",
    ),
    "two answers": (lambda outputs: {"image_bytes": outputs["image_bytes"].repeat(2)}, "received something else"),
    "numbers": (lambda outputs: {"image_bytes": SIGMA}, "received something else"),
}


@BOTH
@pytest.mark.parametrize("case", CHANGES)
def test_an_answer_against_the_contract_is_an_error(double, kind, case, one, tmp_path, capsys):
    change, words = CHANGES[case]
    double.change = lambda outputs: outputs if "model_card" in outputs else change(outputs)
    assert call(f"--server={double.urls[kind]}", *one) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize("card", [b"no JSON", b"{}", b"[1]", b'{"experiment": {"colour": 1}, "network": {}}'])
def test_a_model_card_that_cannot_be_read_is_an_error(double, card, one, capsys):
    double.change = lambda outputs: {"model_card": byte_array(card)}
    assert call(f"--server={double.urls['rest']}", *one) == 1
    assert "the model card cannot be read" in capsys.readouterr().err


def test_a_model_of_another_kind_is_refused(double, one, capsys, monkeypatch):
    signature = remote.Signature({"x": (-1, 2)}, {"y": (-1,)})
    monkeypatch.setattr(remote.Server, "signatures", lambda _: {"serving_default": signature})
    assert call(f"--server={double.urls['rest']}", *one) == 1
    assert "expected a model of export/savedmodel.py, received one with serving_default" in capsys.readouterr().err


def test_an_error_of_the_server_is_one_line_and_writes_nothing(double, one, tmp_path, capsys, short_pauses):
    double.busy = 1000
    assert call(f"--server={double.urls['rest']}", *one, "--retries=2") == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {double.urls['rest']}: the server is busy") and "Tried 3 times." in error
    assert error.count("\n") == 1 and [file.name for file in tmp_path.iterdir()] == ["in.png"]


def test_an_error_of_the_server_ends_a_folder_and_keeps_what_is_written(double, folder, run, tmp_path, capsys):
    answered = []

    def twice(outputs):
        answered.append(outputs)
        return outputs if len(answered) <= 3 else {"image_bytes": byte_array(b"nothing")}  # the first is `describe`

    double.change = twice
    assert run(double.urls["rest"], "--sigma=25", "--in_flight=1") == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert len(written(tmp_path / "out")) == 2


# Flags: what the sentence says. There is no server, which comes last.
WRONG = {
    "": "expected --server, received none",
    "--server=localhost:8501": "--server: expected http://HOST:PORT or grpc://HOST:PORT, received 'localhost:8501'",
    "--sigma=256": r"--sigma: expected a number between 0 and 255 \(std in 255ths of the range\), received '256'",
    "--sigma=-1": "--sigma: expected",
    "--sigma=nan": "--sigma: expected",
    "--sigma=5,50": "sigma.*5,50",
    "--lam=-1": "--lam: expected a number between 0.001 and 1,000,000 .*photons.* received '-1'",
    "--alpha=1.5": "--alpha: expected a number between 0 and 1 .*share.* received '1.5'",
    "--sigma=25 --alpha=0.5": "expected one noise level, received --sigma and --alpha",
    "--timeout=0": "--timeout: expected seconds above 0",
    "--in_flight=0": "in_flight",
    "--bits=12": "bits.*12",
    "--unknown=1": "unknown",
    "--input=/nowhere.png": "expected a picture or a folder as input, received '/nowhere.png', which does not exist",
    "--output=out.doc": "expected an output name ending in .*, received 'out.doc'",
    "--output=in.png": "input and output must differ, received 'in.png' for both",
    "--input=in.png": "cannot reach the server .Connection refused",
    "--input=.": "the input is a folder, so the output must be one too, received the file 'out.png'",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_flags_get_one_sentence_and_write_nothing(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images.write(tmp_path / "in.png", random_pixels(8, 8))
    (tmp_path / "out.png").write_bytes(b"old")
    flags = ["--server=http://127.0.0.1:1", "--input=in.png", "--output=out.png", "--retries=0"]
    assert call(*(flags if arguments else flags[1:]), *arguments.split()) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(WRONG[arguments], error), error
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.png", "out.png"]
    assert (tmp_path / "out.png").read_bytes() == b"old"


# ---------------------------------------------------------------- files


def test_sixteen_bits_need_a_png(double, run, tmp_path, capsys):
    images.write(tmp_path / "in.png", random_pixels(8, 8, dtype=np.uint16))
    assert run(double.urls["rest"], "--sigma=25", source="in.png", target="out.jpg") == 1
    assert "16 bits need an output name ending in .png" in capsys.readouterr().err
    assert not sent(double)


def test_pictures_of_a_folder_that_are_there_are_skipped_unless_told_otherwise(double, folder, run, tmp_path, capsys):
    target, url = tmp_path / "out", double.urls["rest"]
    images.write(target / "a.png", random_pixels(2, 2))
    before = (target / "a.png").read_bytes()
    assert run(url, "--sigma=25") == 0
    assert "skipping 1 of 4 pictures" in capsys.readouterr().err
    assert (target / "a.png").read_bytes() == before and len(sent(double)) == 3
    assert run(url, "--sigma=25") == 0 and len(sent(double)) == 3
    assert run(url, "--sigma=25", "--overwrite") == 0 and len(sent(double)) == 7
    assert images.read(target / "a.png").shape == (33, 47, 3)


def test_a_single_file_is_written_again_and_may_go_into_a_folder(double, one, tmp_path):
    (tmp_path / "out.png").write_bytes(b"old")
    assert call(f"--server={double.urls['rest']}", *one) == 0
    assert images.read(tmp_path / "out.png").shape == (8, 8, 3)
    (tmp_path / "clean").mkdir()
    assert call(f"--server={double.urls['rest']}", *one, f"--output={tmp_path / 'clean'}") == 0
    assert (tmp_path / "clean" / "in.png").exists()


def test_a_broken_picture_is_an_error_alone_and_a_warning_in_a_folder(double, folder, run, tmp_path, capsys):
    (folder / "broken.png").write_bytes(b"no picture")
    (folder / "half.png").write_bytes((folder / "a.png").read_bytes()[:500])
    url = double.urls["rest"]
    assert run(url, "--sigma=25") == 1
    error = capsys.readouterr().err.splitlines()
    for name, line in zip(("broken", "half"), error):
        assert re.match(f"warning: .*{name}.png: expected a picture", line)
    assert error[2:] == ["error: 2 of 6 pictures could not be denoised; see above."]
    assert len(written(tmp_path / "out")) == 4
    for name in ("broken.png", "half.png"):
        assert run(url, "--sigma=25", source=f"in/{name}", target="out.png") == 1
        assert re.match(f"error: .*{name}: expected a picture", capsys.readouterr().err)


def test_a_folder_inside_the_input_is_not_read_and_the_input_is_not_written(double, folder, run, capsys):
    url = double.urls["rest"]
    assert run(url, "--sigma=25", target="in/clean") == 0
    assert run(url, "--sigma=25", "--overwrite", target="in/clean") == 0
    assert len(sent(double)) == 8
    capsys.readouterr()
    assert run(url, "--sigma=25", target="in") == 1
    assert "input and output must differ" in capsys.readouterr().err


def test_the_output_may_be_above_the_input_but_not_replace_it(double, folder, run, tmp_path, capsys):
    assert run(double.urls["rest"], "--sigma=25", target=".") == 0
    assert written(tmp_path) >= {"a.png", "b.png", "c.png", "below/d.png"} and len(sent(double)) == 4
    images.write(folder / "in" / "a.png", random_pixels(8, 8))  # in/in/a.png would become in/a.png
    before = (folder / "a.png").read_bytes()
    for flags in ([], ["--overwrite"]):
        assert run(double.urls["rest"], "--sigma=25", *flags, target=".") == 1
        assert "would be written over the input" in capsys.readouterr().err
    assert (folder / "a.png").read_bytes() == before


def test_two_pictures_that_would_get_one_name_are_refused(double, folder, run, capsys):
    images.write(folder / "a.jpg", random_pixels(8, 8))
    assert run(double.urls["rest"], "--sigma=25") == 1
    assert re.search("a.jpg and .*a.png would both be written to .*a.png", capsys.readouterr().err)


# ---------------------------------------------------------------- the script


PROGRAM = """
import runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as stop:
    print("exit", stop.code)
print(*sorted({name.split(".")[0] for name in sys.modules}), *["google.protobuf"] * ("google.protobuf" in sys.modules))
"""


@BOTH
def test_the_client_loads_neither_tensorflow_nor_keras_and_over_rest_no_protobuf(double, kind, one, tmp_path):
    command = [sys.executable, "-c", PROGRAM, str(ROOT / "export" / "client.py"), f"--server={double.urls[kind]}", *one]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    *_, stop, modules = done.stdout.splitlines()
    assert stop == "exit 0", done.stderr
    loaded = set(modules.split())
    assert {"numpy", "ssdn_tf"} <= loaded
    assert ("grpc" in loaded, "google.protobuf" in loaded) == (kind == "grpc", kind == "grpc")
    assert not loaded & {"tensorflow", "keras", "jax", "torch", "tensorflow_serving"}
    assert images.read(tmp_path / "out.png").shape == (8, 8, 3)
    assert "request" not in done.stderr  # the progress bar is for terminals


def test_the_script_ends_with_the_exit_code_and_without_a_traceback():
    command = [sys.executable, str(ROOT / "export" / "client.py"), "--server=nowhere"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    done = subprocess.run(command[:2], capture_output=True, text=True)
    assert done.returncode == 0 and "--in_flight" in done.stdout and "1.4 GiB" in done.stdout
