"""From a run, or a published file, to a SavedModel, and what the other commands do with it."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import serving_support
import support
import test_published

from ssdn_tf.commands import cli, denoise, evaluate, export, train, train_flags
from ssdn_tf.data import images
from ssdn_tf.denoisers import experiments
from ssdn_tf.inference import precision, predictor
from ssdn_tf.serving import saved_model as serving

ROOT = pathlib.Path(export.__file__).resolve().parents[2]
DEFINE = {
    train.main: train_flags.define,
    evaluate.main: evaluate.define,
    denoise.main: denoise.define,
    export.main: export.define,
}


def call(main, *arguments):
    return cli.execute(main, DEFINE[main], "TEXT", ["x.py", *map(str, arguments)])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return support.write_pictures(tmp_path_factory.mktemp("pictures"), 2, 5, 7)


def train_run(folder, pictures, *flags):
    size = ["--train_images=4", "--stages=32x2", "--network=tiny", "--learning_rate=0.01", "--jit=off"]
    assert call(train.main, f"--train_data={pictures}", f"--run_dir={folder}", *size, *flags) == 0
    return folder


@pytest.fixture(scope="module")
def run_dir(pictures, tmp_path_factory):
    """A short training, with a validation."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    return train_run(folder, pictures, "--noise=gaussian", "--sigma=5,50", "--validation=sample")


@pytest.fixture(scope="module")
def saved_model(run_dir, tmp_path_factory):
    output = tmp_path_factory.mktemp("models") / "ssdn"
    assert call(export.main, f"--model={run_dir}", f"--output={output}") == 0
    return output


def test_the_model_card_says_where_the_model_comes_from(saved_model):
    card = json.loads((saved_model / "1" / serving.CARD).read_text())
    assert card["noise"] == {"kind": "gaussian", "sigma": [5.0, 50.0], "unit": "std in 255ths of the range"}
    assert card["training"]["images_seen"] == 4 and card["training"]["seed"] == 0
    assert card["validation"]["psnr"] > 0 and card["package"].startswith("ssdn_tf ")
    assert card["network"] == {"design": "tiny", "grid": 2, "reach": 15} and card["precision"] == "float32"


def test_a_level_is_for_a_published_file(run_dir, tmp_path, capsys):
    for flag in ("--sigma=25", "--alpha=abc"):
        assert call(export.main, f"--model={run_dir}", f"--output={tmp_path / 'm'}", flag) == 1
        assert "is for a published network file" in capsys.readouterr().err
    assert not (tmp_path / "m").exists()


def test_a_saved_model_keeps_the_range_of_the_training(tmp_path):
    noisy = tmp_path / "noisy"
    noisy.mkdir()
    np.save(noisy / "a.npy", np.random.default_rng(0).integers(100, 4000, (64, 64)).astype(np.uint16))
    flags = ["--noisy", "--noise=gaussian", "--range=90,4100", "--validation=none", "--train_images=2", "--stages=32x1"]
    flags += [f"--train_data={noisy}", f"--run_dir={tmp_path / 'run'}", "--network=tiny", "--jit=off"]
    assert call(train.main, *flags) == 0
    assert call(export.main, f"--model={tmp_path / 'run'}", f"--output={tmp_path / 'm'}") == 0
    for model in ("run", "m"):
        assert predictor.load(tmp_path / model).trained_range == (90, 4100)


def test_bfloat16_is_exported_where_it_is_asked_for(run_dir, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "_cpu_flags", lambda: frozenset({"amx_bf16"}))
    monkeypatch.setattr(precision, "_used", "auto")
    for asked, expected in (("auto", "bfloat16"), ("bfloat16", "bfloat16"), (None, "float32")):
        flags = [f"--precision={asked}"] if asked else []
        assert call(export.main, f"--model={run_dir}", f"--output={tmp_path / str(asked)}", *flags) == 0
        card = json.loads((tmp_path / str(asked) / "1" / serving.CARD).read_text())
        assert card["precision"] == expected
    noisy = np.random.default_rng(0).random((40, 48, 3), dtype=np.float32)
    one, other = (predictor.load(tmp_path / name).denoise(noisy, 0.1).denoised for name in ("bfloat16", "None"))
    assert 1e-5 < np.abs(one - other).max() < 0.03


@pytest.mark.parametrize("versions", [True, False])
def test_evaluate_gives_the_table_of_the_run(run_dir, saved_model, pictures, tmp_path, versions, capsys):
    """To 0.001 dB; the compiled network rounds differently from the exported one."""
    found = []
    for name, model in (("run", run_dir), ("saved", saved_model if versions else saved_model / "1")):
        flags = [f"--model={model}", f"--dataset={pictures}", "--repeats=2", f"--output={tmp_path / name}"]
        assert call(evaluate.main, *flags) == 0
        found.append(json.loads((tmp_path / name / "results.json").read_text())["results"][0])
    one, other = found
    assert one["name"] == other["name"] and len(one["rows"]) == len(other["rows"]) == 4
    for row, again in zip(one["rows"], other["rows"]):
        for key in ("psnr", "psnr_mu_x", "psnr_noisy", "level"):
            assert row[key] == pytest.approx(again[key], abs=1e-3)
    assert len({round(row["psnr"], 2) for row in one["rows"]}) > 1


def test_nothing_is_written_into_a_saved_model(saved_model, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(saved_model.rglob("*"))
    assert call(evaluate.main, f"--model={saved_model}", f"--dataset={pictures}") == 0
    assert sorted(saved_model.rglob("*")) == before and (tmp_path / "evaluation" / "results.json").exists()


def test_a_saved_model_keeps_the_precision_of_its_export(saved_model, pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(precision, "_cpu_flags", lambda: frozenset({"amx_bf16"}))
    monkeypatch.setattr(precision, "_used", "float32")
    monkeypatch.chdir(tmp_path)
    file = next(iter(sorted(pictures.glob("*.png"))))
    commands = [
        (evaluate.main, "evaluation", [f"--dataset={pictures}"]),
        (denoise.main, "out.png", [f"--input={file}", "--sigma=25"]),
    ]
    for main, output, flags in commands:
        flags += [f"--model={saved_model}", f"--output={output}"]
        assert call(main, "--precision=bfloat16", *flags) == 1
        error = capsys.readouterr().err
        assert "--precision: expected float32, in which the SavedModel was exported, received bfloat16." in error
        assert not (tmp_path / output).exists()
        assert call(main, "--precision=float32", *flags) == 0
        assert (tmp_path / output).exists()


def test_denoise_gives_the_picture_of_the_run(run_dir, saved_model, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 65536, (33, 47, 3), np.uint16)
    images.write(tmp_path / "in.png", pixels)
    found = []
    for name, model in (("run", run_dir), ("saved", saved_model)):
        flags = [f"--model={model}", "--sigma=25", f"--input={tmp_path / 'in.png'}"]
        assert call(denoise.main, *flags, f"--output={tmp_path / name}.png") == 0
        found.append(images.read(tmp_path / f"{name}.png").astype(int))
    assert found[0].shape == (33, 47, 3) and found[0].max() > 255  # 16 bit in, 16 bit out
    assert np.abs(found[0] - found[1]).max() <= 1 and found[0].std() > 0


def only_the_card(model, experiment, card, folder):
    (folder / serving.CARD).parent.mkdir(parents=True)
    (folder / serving.CARD).write_text(json.dumps(card))


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_published_file_is_exported_with_its_licence(tmp_path, capsys, monkeypatch, whole):
    if not whole:
        monkeypatch.setattr(serving, "_write", only_the_card)
    experiment = experiments.PUBLISHED["poisson30-blindspot-sigma_global"]
    name = f"network-00013-{experiment.name}.pickle"
    path = test_published.write(tmp_path, test_published.small_state(experiment), name)
    assert call(export.main, f"--model={path}", f"--output={tmp_path / 'models'}") == 0
    assert "CC BY-NC 4.0" in capsys.readouterr().out
    card = json.loads((tmp_path / "models" / "1" / serving.CARD).read_text())
    assert "CC BY-NC 4.0" in card["licence"] and card["name"] == "poisson30-blindspot-sigma_global"
    assert card["noise"]["lam"] == 30


def test_a_level_that_the_published_file_does_not_say_is_left_unsaid_or_comes_from_the_flag(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(serving, "_write", only_the_card)
    experiment = experiments.PUBLISHED["gauss25-blindspot-sigma_known"]
    path = test_published.write(tmp_path, test_published.small_state(experiment), "network-00010000.pickle")
    flags = [f"--model={path}", f"--output={tmp_path / 'models'}"]
    assert call(export.main, *flags) == 0
    card = json.loads((tmp_path / "models" / "1" / serving.CARD).read_text())
    assert card["name"] == "gauss-blindspot-sigma_known" and "sigma" not in card["noise"]
    assert call(export.main, *flags, "--sigma=25") == 0
    card = json.loads((tmp_path / "models" / "2" / serving.CARD).read_text())
    assert card["name"] == experiment.name and card["noise"]["sigma"] == 25
    named = path.rename(tmp_path / f"network-final-{experiment.name}.pickle")
    assert call(export.main, f"--model={named}", flags[1], "--sigma=30") == 1
    assert "--sigma: expected the noise level of gauss25-blindspot-sigma_known" in capsys.readouterr().err


def test_export_refuses_what_it_cannot_do(run_dir, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "bad.pickle").write_bytes(b"no pickle")
    output = f"--output={tmp_path / 'models'}"
    for flags, words in {
        (f"--model={run_dir}",): "expected --output=DIR, received none",
        (f"--model={tmp_path}", output): "expected the folder of a run",
        (f"--model={run_dir}", f"--output={tmp_path / 'file'}"): "--output: expected a folder for the versions",
        (f"--model={tmp_path / 'bad.pickle'}", output): "expected",
        (f"--model={tmp_path / 'none.pickle'}", output): "none.pickle",
    }.items():
        assert call(export.main, *flags) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and re.search(words, error), error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.pickle", "file"]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.slow
def test_the_script_exports_whatever_backend_is_set(tmp_path):
    command = [sys.executable, str(ROOT / "export" / "savedmodel.py"), "--output=models"]
    settings = {"capture_output": True, "text": True, "cwd": tmp_path}
    done = subprocess.run(command, env=os.environ | {"KERAS_BACKEND": "jax"}, **settings)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("models/1: additive") and (tmp_path / "models/1/saved_model.pb").exists()


def test_the_network_of_the_package_needs_the_picture_alone(tmp_path):
    """The SavedModel finds the noise of each picture, as the predictor does."""
    assert call(export.main, f"--output={tmp_path / 'models'}") == 0
    card = json.loads((tmp_path / "models" / "1" / serving.CARD).read_text())
    assert card["parameter_source"] == "fitted" and card["licence"] == "Apache-2.0" and card["limits"]
    served, own = predictor.load(tmp_path / "models"), predictor.load("additive-rgb")
    assert tuple(served.model.input) == ("noisy",) and not served.can_fit
    rng = np.random.default_rng(3)
    clean = np.broadcast_to(np.linspace(0.2, 0.8, 72)[:, None, None], (72, 72, 3)).astype(np.float32)
    for sigma in (10, 40):
        noisy = (clean + sigma / 255 * rng.standard_normal(clean.shape)).astype(np.float32)
        found, expected = served.denoise(noisy), own.denoise(noisy)
        assert found.noise_parameter == pytest.approx(expected.noise_parameter, rel=0.01)
        assert found.noise_parameter[1] == pytest.approx(sigma / 255, rel=0.06)
        np.testing.assert_allclose(found.denoised, expected.denoised, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")
def test_the_noise_is_found_through_the_c_interface_too(tmp_path):
    assert call(export.main, f"--output={tmp_path / 'models'}") == 0
    noisy = (0.5 + 0.1 * np.random.default_rng(3).standard_normal((72, 72, 3))).astype(np.float32)
    found = predictor.load(tmp_path / "models").denoise(noisy)
    done, in_c = serving_support.run_in_c(tmp_path, tmp_path / "models" / "1", noisy[None], "noise_parameter")
    assert done.returncode == 0, done.stderr[-2000:]
    assert in_c == pytest.approx(found.noise_parameter, rel=1e-5)


def test_a_level_of_two_numbers_is_told_to_a_saved_model(pictures, tmp_path):
    run = train_run(tmp_path / "run", pictures, "--noise=additive", "--validation=none")
    assert call(export.main, f"--model={run}", "--parameter_source=known", f"--output={tmp_path / 'models'}") == 0
    served, own = predictor.load(tmp_path / "models"), predictor.load(run)
    assert sorted(served.model.input) == ["noise_parameter", "noisy"]
    noisy = np.random.default_rng(4).random((24, 24, 3), dtype=np.float32)
    for parameter in ((0.02, 0.05), (0.0, 0.1)):
        found, expected = served.denoise(noisy, parameter), own.denoise(noisy, parameter)
        np.testing.assert_allclose(found.denoised, expected.denoised, atol=1e-5)
        assert found.noise_parameter == pytest.approx(parameter)
    for wrong in ((-1.0, 0.1), (0.02, 1.5), (float("nan"), 0.1)):
        with pytest.raises(Exception, match="noise_parameter: expected gain in .* and sigma in"):
            served.denoise(noisy, wrong)
