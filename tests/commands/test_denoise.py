"""denoise.py as a user meets it: a file of the size of the input, or one sentence and no file."""

import numpy as np
import pytest
import test_predictor
from PIL import Image

from ssdn_tf.commands import cli, denoise
from ssdn_tf.data import images
from ssdn_tf.denoisers.experiments import Experiment
from ssdn_tf.inference import predictor

TRAINED = Experiment(low=5.0, high=50.0, width=2)


pytestmark = pytest.mark.usefixtures("eager")


def write_run(folder, experiment):
    return test_predictor.write_run(folder, test_predictor.built(experiment), experiment)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "run", TRAINED)


def call(*arguments):
    """Exit code of denoise.py in this process."""
    return cli.execute(denoise.main, denoise.define, "TEXT", ["x.py", *map(str, arguments)])


@pytest.mark.parametrize("size", [(33, 47), (1, 1), (64, 32)])
def test_any_size_is_denoised(run_dir, size, tmp_path):
    source, target = tmp_path / "in.png", tmp_path / "out.png"
    Image.fromarray(np.full((*size, 3), 120, np.uint8)).save(source)
    assert call(f"--model={run_dir}", "--sigma=25", f"--input={source}", f"--output={target}") == 0
    with Image.open(target) as image:
        assert (image.height, image.width) == size and image.mode == "RGB"


def test_the_output_is_what_the_predictor_says(run_dir, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65536, (20, 30, 3), np.uint16)
    images.write(tmp_path / "in.png", pixels)
    flags = [f"--model={run_dir}", f"--input={tmp_path / 'in.png'}", f"--output={tmp_path / 'out.png'}"]
    assert call(*flags, "--sigma=10") == 0
    expected = predictor.load(run_dir).denoise(images.to_float(pixels), 10 / 255).denoised
    found = images.read(tmp_path / "out.png")  # 16 bit in, 16 bit out
    assert np.array_equal(found, images.to_uint16(expected))
    assert call(*flags, "--sigma=40") == 0
    assert not np.array_equal(found, images.read(tmp_path / "out.png"))  # control: the level matters


def test_wrong_flags_get_one_sentence_and_write_nothing(run_dir, tmp_path, capsys):
    source = tmp_path / "in.png"
    Image.fromarray(np.full((32, 32, 3), 120, np.uint8)).save(source)
    before = source.read_bytes()
    output = f"--output={tmp_path / 'x.png'}"
    for flags, words in {
        (f"--input={source}", f"--output={source}", "--sigma=25"): "--output must differ from --input.",
        (f"--input={source}",): "expected --output=FILE, received none",
        (output,): "expected --input=FILE, received none",
        (f"--input={source}", f"--output={tmp_path / 'x.doc'}", "--sigma=25"): "--output: expected a name ending in",
        (f"--input={source}", f"--output={tmp_path / 'x.jpg'}", "--bits=16"): "--bits=16: expected an --output",
        (f"--input={tmp_path / 'no.png'}", output): "cannot be read",
        (f"--input={source}", output): "expected --sigma between 5 and 50, as the model must be told the noise level",
        (f"--input={source}", output, "--sigma=5,9"): "received a range",
        (f"--input={source}", output, "--tile=640"): "--tile: expected a tile side that is a multiple of 32 from 672",
        (f"--input={source}", output, "--lam=3"): "--lam: expected --sigma",
    }.items():
        assert call(f"--model={run_dir}", *flags) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and words in error, error
    assert source.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_level_for_a_model_that_needs_none_is_a_warning(tmp_path, capsys):
    experiment = Experiment(pipeline="n2c", parameter_source=None, channels=1, width=2)
    run = write_run(tmp_path / "run", experiment)
    images.write(tmp_path / "in.png", np.full((9, 9, 1), 100, np.uint8))
    flags = [f"--model={run}", f"--input={tmp_path / 'in.png'}", f"--output={tmp_path / 'out.png'}"]
    assert call(*flags, "--sigma=25") == 0
    assert "warning: --sigma has no effect: gauss25-n2c-mono needs no noise level." in capsys.readouterr().err
    assert call(*flags) == 0
    assert capsys.readouterr().err == ""
