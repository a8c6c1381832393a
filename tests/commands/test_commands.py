"""The command line as a user meets it: exit codes, one sentence on stderr, nothing written on errors."""

import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ssdn_tf.commands import cli, train_flags
from ssdn_tf.commands import main as commands
from ssdn_tf.errors import UserError


@pytest.fixture(scope="module", autouse=True)
def eager():
    """Without compilation, which would take most of the time here."""
    from ssdn_tf.training import run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "_COMPILE", {"run_eagerly": True})
        yield


def call(main, *arguments):
    """Exit code of a command in this process."""
    return cli.execute(main, train_flags.define, "TEXT", ["x.py", *arguments], needs_flags=True)


def options(*arguments):
    from absl import flags

    values = flags.FlagValues()
    train_flags.define(values)
    values(["x.py", *arguments])
    return train_flags.options_from_flags(values)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(3):
        Image.fromarray(np.full((40, 48, 3), 40 * i + 60, np.uint8)).save(folder / f"{i}.png")
    return folder


WRONG = {
    "--sigma=abc": "--sigma: expected a number between 0 and 255.*received 'abc'",
    "--sigma=-3": "--sigma: expected .* received '-3'",
    "--sigma=0": "--sigma: expected a level to learn from, or a range, received 0, which is no noise",
    "--sigma=300": "--sigma: expected .* received '300'",
    "--sigma=nan": "--sigma: expected .* received 'nan'",
    "--sigma=50,5": "--sigma: expected .* received '50,5'",
    "--sigma=1,2,3": "--sigma: expected .* received '1,2,3'",
    "--sigma=": "--sigma: expected .* received ''",
    "--noise=impulse --alpha=1.5": "--alpha: expected a number between 0 and 1.*received '1.5'",
    "--noise=impulse --alpha=1": "--alpha: expected a level to learn from.* received 1, which is nothing but noise",
    "--noise=impulse --alpha=0": "--alpha: expected a level to learn from.* received 0, which is no noise",
    "--noise=poisson --lam=0": "--lam: expected a number between 0.001 and 1,000,000.*received '0'",
    "--noise=poisson --lam=1e25": "--lam: expected a number between 0.001 and 1,000,000.*received '1e25'",
    "--noise=poisson --lam=inf": "--lam: expected .* received 'inf'",
    "--noise=poisson --sigma=25": "--sigma: expected --lam with poisson noise, received the flag of gaussian noise",
    "--lam=30": "--lam: expected --sigma with gaussian noise, received the flag of poisson noise",
    "--noise=speckle": "noise.*speckle",
    "--nose=gaussian": "nose",
    "--crop=50": "--crop: expected a multiple of 32, received 50",
    "--crop=abc": "crop.*abc",
    "--final_images=5 --final_crop=100": "--final_crop: expected a multiple of 32, received 100",
    "--preset=quick --train_images=10 --final_images=11": "--final_images: expected at most --train_images=10, re.* 11",
    "--train_images=0": "train_images",
    "--batch_size=-1": "batch_size",
    "--learning_rate=0": "--learning_rate: expected a number above 0, received 0",
    "--learning_rate=nan": "--learning_rate: expected a number above 0, received nan",
    "--experiment=gauss25": "--experiment: expected one of .* received 'gauss25'",
    "--experiment=gauss25-n2c --sigma=5": "--experiment: expected no other description of the run, received --sigma",
    "--pipeline=n2c --parameter_source=known": "--parameter_source: expected with --pipeline=blindspot",
    "--pipeline=n2c --covariance=diagonal": "--covariance: expected with --pipeline=blindspot",
    "--likelihood=mixture": "--likelihood: expected with --noise=impulse",
    "--noisy --pipeline=n2n": "--noisy: expected a pipeline that needs no clean picture",
    "--noisy --validation=kodak": "--validation: expected none with --noisy",
    "--parameter_start=high": "--parameter_start: .* a level, a number between 0 and 255 .*, received 'high'",
    "--noise=impulse --parameter_start=1": "--parameter_start: .* a level, a number between 0 and 1 .*, received '1'",
    "--parameter_rate=-1": "--parameter_rate: expected a number above 0",
    "--train_data=/nowhere": "expected a folder with pictures, received '/nowhere'",
    "--train_data=tfds:mnist": "tfds",
    "--warm_start=/nowhere": "expected the folder of a run, received '/nowhere'",
    "--validation=kodak": "expected a data_dir with the folder 'kodak'",
    "gaussian": "expected flags .--name=value., received 'gaussian'",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_input_gets_one_sentence_and_writes_nothing(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SSDN_DATA_DIR", raising=False)
    assert call(commands.train_main, "--preset=quick", *arguments.split(" ")) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(WRONG[arguments], error), error
    assert not list(tmp_path.iterdir())


def test_no_flags_at_all_give_the_help(capsys):
    assert call(commands.train_main) == 0
    out = capsys.readouterr().out
    assert out.startswith("TEXT") and "--train_data" in out and "--parameter_source" in out


def test_a_script_ends_with_the_exit_code_and_without_a_traceback():
    command = [sys.executable, "train.py", "--noise=gaussian", "--sigma=abc"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: --sigma") and done.stderr.count("\n") == 1


def test_an_empty_folder_and_one_without_a_usable_picture_are_refused(tmp_path, capsys):
    empty, broken = tmp_path / "empty", tmp_path / "broken"
    empty.mkdir(), broken.mkdir()
    assert call(commands.train_main, "--preset=quick", f"--train_data={empty}") == 1
    assert "expected pictures" in capsys.readouterr().err
    (broken / "a.png").write_bytes(b"no picture")
    Image.fromarray(np.zeros((20, 90, 3), np.uint8)).save(broken / "small.png")
    (broken / "notes.txt").write_text("x")
    assert call(commands.train_main, "--preset=quick", f"--train_data={broken}") == 1
    lines = capsys.readouterr().err.splitlines()
    assert any("notes.txt" in line for line in lines)
    assert any("a.png" in line and "no readable picture" in line for line in lines)
    assert any("small.png" in line and "smaller than the crop" in line for line in lines)
    assert lines[-1].startswith("error: expected pictures of at least 64x64")


def test_defaults_are_the_papers_unless_the_preset_says_otherwise():
    paper = options("--noise=impulse", "--alpha=0.5")
    assert (paper.crop, paper.batch_size, paper.train_images) == (256, 4, 4_000_000)
    assert (paper.learning_rate, paper.start, paper.rate) == (3e-4, "published", 1.0)
    assert paper.experiment.name == "impulse50-blindspot-sigma_known"
    quick = options("--preset=quick", "--crop=96")
    assert quick.final_images == 0 and quick.clip_norm == 0
    impulse = options("--preset=quick", "--noise=impulse", "--train_images=1000")
    assert (impulse.final_images, impulse.final_crop, impulse.clip_norm) == (30, 256, 5.0)
    assert options("--preset=quick", "--noise=impulse", "--crop=256").final_images == 0
    assert quick.crop == 96 and quick.train_images < 10_000 and quick.experiment.name == "gauss25-blindspot-sigma_known"
    noisy = options("--noisy", "--train_data=x")
    assert noisy.experiment.parameter_source == "global" and noisy.validation == "none"


def test_a_named_experiment_is_the_published_row():
    assert options("--experiment=poisson5_50-blindspot-sigma_per_image-mono").experiment.name == (
        "poisson5_50-blindspot-sigma_per_image-mono"
    )


def test_a_long_training_names_the_quick_preset(pictures, tmp_path, capsys, monkeypatch):
    from ssdn_tf.training import run

    monkeypatch.setattr(run, "Run", lambda *a, **k: (_ for _ in ()).throw(UserError("enough")))
    call(commands.train_main, "--noise=gaussian", f"--train_data={pictures}", f"--runs={tmp_path}")
    assert "more than a day; --preset=quick" in capsys.readouterr().out
