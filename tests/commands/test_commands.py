"""The command line as a user meets it: exit codes, one sentence on stderr, nothing written on errors."""

import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ssdn_tf.commands import cli, train, train_flags
from ssdn_tf.training.options import Stage


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
    "--stages=50x1": "--stages: expected crops that are multiples of 8, received 50",
    "--stages=64": "--stages: expected crop x batch : share, .* received '64'",
    "--stages=64x1:0.5,128x1:0.4": "--stages: expected shares above 0 that sum to 1",
    "--stages=64x1:0.0,128x1:1.0": "--stages: expected shares above 0 that sum to 1",
    "--seed=4294967296": "seed.*4294967296",
    "--preset=paper --stages=72x1": "--stages: expected crops that are multiples of 32, received 72",
    "--budget=soon": "--budget: expected a time such as 90s, 30min or 2h, received 'soon'",
    "--budget=0min": "--budget: expected a time",
    "--budget=5min --train_images=10": "--train_images and --budget both say how long to train",
    "--train_images=0": "train_images",
    "--network=huge": "network.*huge",
    "--average=1": "average",
    "--learning_rate=0": "--learning_rate: expected a number above 0, received 0",
    "--learning_rate=nan": "--learning_rate: expected a finite number, received nan",
    "--experiment=gauss25": "--experiment: expected one of .* received 'gauss25'",
    "--experiment=gauss25-n2c --sigma=5": "--experiment describes the run already; remove --sigma",
    "--pipeline=n2c --parameter_source=known": "--parameter_source is only for --pipeline=blindspot",
    "--pipeline=n2c --covariance=diagonal": "--covariance is only for --pipeline=blindspot",
    "--likelihood=mixture": "--likelihood is only for impulse noise",
    "--noisy --pipeline=n2n": "--noisy needs a pipeline without clean images",
    "--noisy --sigma=5,50": "--sigma: expected one level of images that are noisy already, received a range",
    "--noisy --sigma=5,50 --parameter_source=known": "--sigma: expected one level of images that are noisy already",
    "--noisy --validation=kodak": "--validation: with --noisy, expected held_out or none",
    "--parameter_start=high": "--parameter_start: .* a level, a number between 0 and 255 .*, received 'high'",
    "--noise=impulse --parameter_start=1": "--parameter_start: expected a level to learn from, .* received 1, which is",
    "--parameter_rate=-1": "--parameter_rate: expected a number above 0",
    "--train_data=/nowhere": "expected a folder with pictures, received '/nowhere'",
    "--train_data=tfds:mnist": "tfds",
    "--warm_start=/nowhere": "'/nowhere' is not the folder of a run",
    "--validation=kodak": "expected a data_dir with the folder 'kodak'",
    "gaussian": "expected flags .--name=value., received 'gaussian'",
}


@pytest.mark.parametrize("arguments", WRONG)
def test_wrong_input_gets_one_sentence_and_writes_nothing(arguments, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SSDN_DATA_DIR", raising=False)
    assert call(train.main, "--preset=quick", *arguments.split(" ")) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(WRONG[arguments], error), error
    assert not list(tmp_path.iterdir())


def test_no_flags_at_all_give_the_help(capsys):
    assert call(train.main) == 0
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
    assert call(train.main, "--preset=quick", f"--train_data={empty}") == 1
    assert "expected pictures" in capsys.readouterr().err
    (broken / "a.png").write_bytes(b"no picture")
    Image.fromarray(np.zeros((20, 90, 3), np.uint8)).save(broken / "small.png")
    (broken / "notes.txt").write_text("x")
    assert call(train.main, "--preset=quick", f"--train_data={broken}") == 1
    lines = capsys.readouterr().err.splitlines()
    assert any("notes.txt" in line for line in lines)
    assert any("a.png" in line and "no readable picture" in line for line in lines)
    assert any("small.png" in line and "smaller than the crop" in line for line in lines)
    assert lines[-1].startswith("error: expected pictures of at least 64x64")


def test_presets_say_how_long_and_on_what():
    paper = options("--noise=impulse", "--alpha=0.5", "--preset=paper")
    assert paper.stages == (Stage(256, 4, 1.0, 4_000_000),) and paper.budget is None
    assert (paper.learning_rate, paper.optimizer, paper.average, paper.augment) == (3e-4, "adam", 0.0, False)
    assert (paper.start, paper.rate, paper.validation) == ("published", 1.0, "held_out")
    assert paper.experiment.name == "impulse50-blindspot-sigma_known"
    for name, seconds in (("quick", 300), ("hour", 3600), ("night", 8 * 3600)):
        preset = options(f"--preset={name}")
        assert preset.budget == seconds and not preset.planned
        assert (preset.optimizer, preset.average, preset.augment) == ("muon", 0.999, True)
        assert preset.experiment.name == "gauss25-blindspot-sigma_known-compact"
    assert options() == options("--preset=hour")


def test_flags_change_what_a_preset_says():
    fixed = options("--preset=quick", "--train_images=1000", "--stages=64x2:0.7,128x1:0.3", "--noaugment")
    assert fixed.stages == (Stage(64, 2, 0.7, 700), Stage(128, 1, 0.3, 300)) and fixed.budget is None
    assert not fixed.augment
    assert options("--budget=30min").budget == 1800 and options("--preset=paper", "--budget=2h").budget == 7200
    noisy = options("--noisy", "--train_data=x")
    assert noisy.experiment.parameter_source == "global" and noisy.validation == "held_out"
    assert options("--experiment=gauss25-n2c", "--network=compact").experiment.name == "gauss25-n2c-compact"


def test_the_next_command_denoises_noisy_images_and_measures_on_clean_ones():
    noisy, clean = options("--noisy", "--train_data=my pictures"), options("--train_data=x")
    expected = "python denoise.py --model=runs/a '--input=my pictures' --output=DENOISED"
    assert train._next_command(noisy, "runs/a") == expected
    assert train._next_command(clean, "runs/a") == "python evaluate.py --model=runs/a"
    of_tfds = options("--noisy", "--train_data=tfds:x:train")
    assert train._next_command(of_tfds, "runs/a") == "python denoise.py --model=runs/a --input=NOISY --output=DENOISED"


def test_the_next_command_is_called_as_this_one_was(monkeypatch):
    monkeypatch.setattr("sys.argv", ["/usr/local/bin/ssdn-train", "--preset=quick", "--run_dir", "old"])
    assert train._next_command(options("--train_data=x"), "runs/a") == "ssdn-evaluate --model=runs/a"
    assert train._same_command("runs/a") == "ssdn-train --preset=quick --run_dir=runs/a"
    monkeypatch.setattr("sys.argv", ["train.py", "--preset=quick"])
    assert train._same_command("runs/a") == "python train.py --preset=quick --run_dir=runs/a"


def test_noisy_images_of_an_unknown_level_are_not_named_by_one():
    noisy = ("--noisy", "--train_data=x")
    assert options(*noisy).experiment.name == "gauss-blindspot-sigma_global-compact"
    assert options(*noisy, "--sigma=30").experiment.name == "gauss30-blindspot-sigma_known-compact"
    assert isinstance(options(*noisy).experiment.draw_parameter(None), float)


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--noisy"], "--train_data: expected the noisy images, received none"),
        (["--preset=adapt"], "--train_data: expected the noisy images, received none"),
        (["--budget="], "--budget: expected a time such as"),
        (["--clip_norm=inf"], "--clip_norm: expected a finite number, received inf"),
        (["--average=nan"], "--average: expected a finite number, received nan"),
        (["--max_minutes=nan"], "--max_minutes: expected a finite number, received nan"),
    ],
)
def test_flags_that_would_train_something_else_are_refused(flags, words, tmp_path, capsys):
    arguments = ["x.py", f"--run_dir={tmp_path / 'run'}", *flags]
    assert cli.execute(train.main, train_flags.define, "TEXT", arguments) == 1
    assert words in capsys.readouterr().err and not (tmp_path / "run").exists()


def test_a_named_experiment_is_the_published_row():
    name = "poisson5_50-blindspot-sigma_per_image-mono"
    named = options(f"--experiment={name}")
    assert named.experiment.name == name and named.stages == (Stage(256, 4, 1.0, 2_000_000),)
