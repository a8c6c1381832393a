"""Training on noisy pictures of any kind, from a network of the package."""

import json

import numpy as np
import pytest
import tifffile

from ssdn_tf.commands import cli, denoise, train, train_flags


def call(*arguments):
    return cli.execute(train.main, train_flags.define, "TEXT", ["x.py", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Float TIFFs of a shaded ground with noise of sigma 25 (of 255)."""
    path, rng = tmp_path_factory.mktemp("noisy"), np.random.default_rng(0)
    v, u = np.mgrid[:96, :96] / 96
    for i in range(3):
        clean = np.stack([0.4 + 0.2 * np.sin(3 * u + i + c) * np.cos(2 * v) for c in range(3)], axis=-1)
        noisy = (clean + 25 / 255 * rng.standard_normal(clean.shape)).astype(np.float32)
        tifffile.imwrite(path / f"{i}.tif", noisy, photometric="rgb")
    return path


def test_the_network_of_the_package_adapts_to_noisy_pictures(folder, tmp_path, capsys):
    flags = ["--preset=adapt", f"--train_data={folder}", f"--run_dir={tmp_path / 'run'}", "--stages=64x1"]
    flags += ["--train_images=6", "--jit=off", "--validation=none"]
    assert call(*flags, "--max_minutes=0") == 0  # stops after a step
    assert "Noise of the images: " in capsys.readouterr().out
    options = json.loads((tmp_path / "run" / "options.json").read_text())
    experiment = options["experiment"]
    assert experiment["noise"] == "additive" and experiment["parameter_source"] == "known"
    assert experiment["low"] == experiment["high"] and experiment["low"][1] == pytest.approx(25, rel=0.03)
    assert options["noisy_already"] and options["warm_start"] == "additive-rgb" and options["value_range"] == [0, 1]
    # The same command goes on, without looking for the noise again.
    assert call(*flags) == 0
    out = capsys.readouterr().out
    assert "continues after" in out and "Done." in out and "Noise of the images" not in out
    target = tmp_path / "out"
    arguments = ["x.py", f"--model={tmp_path / 'run'}", f"--input={folder}", f"--output={target}"]
    assert cli.execute(denoise.main, denoise.define, "TEXT", arguments) == 0
    noisy, denoised = (tifffile.imread(path / "0.tif") for path in (folder, target))
    assert denoised.dtype == np.float32 and np.std(np.diff(denoised, axis=0)) < 0.2 * np.std(np.diff(noisy, axis=0))


def test_what_does_not_go_with_adapting_is_refused(folder, tmp_path, capsys):
    for flag in ("--nonoisy", "--pipeline=n2c", "--experiment=gauss25-n2c"):
        run = f"--run_dir={tmp_path / 'run'}"
        assert call("--preset=adapt", f"--train_data={folder}", run, flag) == 1
        assert "--preset=adapt" in capsys.readouterr().err and not (tmp_path / "run").exists()
