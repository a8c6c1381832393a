"""Training on noisy pictures of any kind, from a network of the package."""

import json

import numpy as np
import pytest
import tifffile

from ssdn_tf.commands import cli, denoise, train, train_flags
from ssdn_tf.data import images, samples
from ssdn_tf.denoisers.experiments import Experiment
from ssdn_tf.training import build
from ssdn_tf.training import folder as folder_
from ssdn_tf.training.options import Options, Stage


def call(*arguments):
    return cli.execute(train.main, train_flags.define, "TEXT", ["x.py", *map(str, arguments)])


def denoised_by(*arguments):
    """Exit code of denoise.py."""
    return cli.execute(denoise.main, denoise.define, "TEXT", ["x.py", *map(str, arguments)])


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


@pytest.mark.slow
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
    assert denoised_by(f"--model={tmp_path / 'run'}", f"--input={folder}", f"--output={target}") == 0
    noisy, denoised = (tifffile.imread(path / "0.tif") for path in (folder, target))
    assert denoised.dtype == np.float32 and np.std(np.diff(denoised, axis=0)) < 0.2 * np.std(np.diff(noisy, axis=0))


@pytest.mark.slow
def test_each_file_is_trained_on_with_its_own_noise(tmp_path, monkeypatch):
    """Sigma 10 and 40: a training that is told less noise than there is takes the rest for detail."""
    v, u = np.mgrid[:96, :96] / 96
    clean = np.stack([0.4 + 0.2 * np.sin(3 * u + c) * np.cos(2 * v) for c in range(3)], axis=-1)
    for name, sigma in (("a/x", 10), ("b/x", 40)):
        noisy = clean + sigma / 255 * np.random.default_rng(0).standard_normal(clean.shape)
        path = tmp_path / "in" / f"{name}.tif"
        path.parent.mkdir(parents=True)
        tifffile.imwrite(path, noisy.astype(np.float32), photometric="rgb")
    told = {}
    batch = samples.Samples.__getitem__

    def watched(self, index):
        sample = batch(self, index)
        told[round(float(np.std(np.diff(sample["noisy"], axis=0)) * 255 / 2**0.5))] = sample["noise_parameter"]
        return sample

    monkeypatch.setattr(samples.Samples, "__getitem__", watched)
    flags = ["--preset=adapt", "--stages=64x1", "--train_images=12", "--jit=off", "--validation=none"]
    assert call(*flags, f"--train_data={tmp_path / 'in'}", f"--run_dir={tmp_path / 'run'}") == 0
    assert min(told) < 12 and max(told) > 35
    for std, parameter in told.items():
        expected = 10 if std < 25 else 40
        gain, readout = parameter.ravel()
        assert 255 * (0.4 * gain + readout**2) ** 0.5 == pytest.approx(expected, rel=0.1), (std, parameter)
    stored = json.loads((tmp_path / "run" / "noise.json").read_text())
    assert stored["by_file"].keys() == {"a/x.tif", "b/x.tif"}
    # The run finds the noise of each picture, too.
    assert denoised_by(f"--model={tmp_path / 'run'}", f"--input={tmp_path / 'in'}", f"--output={tmp_path / 'out'}") == 0


def test_denoising_trains_on_the_pictures_first_where_it_is_asked_to(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(train_flags.PRESETS, "adapt", train_flags.PRESETS["adapt"] | {"stages": "64x1"})
    monkeypatch.setattr(build, "jit_compile", lambda *_, **__: False)
    target = tmp_path / "out"
    arguments = [f"--input={folder}", f"--output={target}", "--adapt=1s"]
    assert denoised_by(*arguments) == 0
    out = capsys.readouterr().out
    assert "Noise of the images: " in out and "python evaluate.py" not in out and "held-out loss" in out
    levels = [float(line.rsplit("sigma ", 1)[1]) for line in out.splitlines() if "96x96" in line]
    assert len(set(levels)) == 3 and levels == pytest.approx([25.0] * 3, rel=0.15)  # each file has its own
    options = json.loads((tmp_path / "out-network" / "options.json").read_text())
    assert options["budget"] == 1.0 and options["train_data"] == str(folder)
    # The network is there for more pictures, and the same command trains no second time.
    (target / "1.tif").unlink()
    assert denoised_by(*arguments) == 0 and "continues after" in capsys.readouterr().out
    assert denoised_by(f"--model={tmp_path / 'out-network'}", f"--input={folder}", f"--output={tmp_path / 'x'}") == 0
    assert denoised_by(*arguments, "--overwrite", "--adapt=2s") == 1
    assert "was started with other options: expected budget=1.0, received budget=2.0" in capsys.readouterr().err


def test_the_noise_model_is_that_of_the_network_it_starts_from(folder, tmp_path):
    values = cli.parse(
        train_flags.define, ["x.py", "--preset=adapt", f"--train_data={folder}", "--warm_start=impulse-rgb"]
    )
    options = train_flags.options_from_flags(values)
    assert options.experiment.noise == "impulse" and options.experiment.likelihood == "combined"
    values = cli.parse(train_flags.define, ["x.py", "--preset=adapt", f"--train_data={folder}"])
    assert train_flags.options_from_flags(values).experiment.noise == "additive"


def test_adapting_takes_the_size_of_the_network_it_starts_from(folder, tmp_path):
    start = tmp_path / "start"
    flags = ["--noise=poisson_gaussian", "--lam=50", "--sigma=10", "--width=2", "--covariance=diagonal", "--jit=off"]
    assert call(*flags, "--preset=quick", "--train_images=1", f"--run_dir={start}", "--stages=32x1") == 0
    flags = ["--preset=adapt", f"--train_data={folder}", f"--warm_start={start}", f"--run_dir={tmp_path / 'run'}"]
    assert call(*flags, "--train_images=1", "--stages=32x1", "--jit=off", "--validation=none") == 0
    experiment = json.loads((tmp_path / "run" / "options.json").read_text())["experiment"]
    assert experiment["width"] == 2 and experiment["diagonal"] and experiment["noise"] == "poisson_gaussian"


def test_a_network_for_other_pictures_is_no_start(folder, tmp_path, capsys):
    words = "expected a network for gray pictures to start from, received impulse-rgb, which is for pictures in colour"
    flags = ["--preset=adapt", "--channels=1", "--warm_start=impulse-rgb", f"--run_dir={tmp_path / 'run'}"]
    assert call(*flags, f"--train_data={folder}") == 1 and words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_network_that_sees_the_pixel_is_no_start(folder, tmp_path, capsys):
    start = tmp_path / "start"
    start.mkdir()
    folder_.write_options(start, Options(Experiment(pipeline="n2c", parameter_source=None), stages=(Stage(64, 1),)))
    assert call("--preset=adapt", f"--warm_start={start}", f"--train_data={folder}") == 1
    assert "expected a network with a blind spot to start from" in capsys.readouterr().err


def test_a_black_level_is_found_and_goes_from_the_training_to_the_denoising(tmp_path, capsys, monkeypatch):
    """Photon noise, 30 photons at white, above an offset of 25 in 8 bit."""
    monkeypatch.setitem(train_flags.PRESETS, "adapt", train_flags.PRESETS["adapt"] | {"stages": "64x1"})
    monkeypatch.setattr(build, "jit_compile", lambda *_, **__: False)
    rng, source = np.random.default_rng(0), tmp_path / "in"
    source.mkdir()
    v, u = np.mgrid[:128, :128] / 128
    for i in range(2):
        clean = 0.1 + 0.6 * (0.5 + 0.5 * np.sin(9 * u + i) * np.cos(7 * v))
        images.write(source / f"{i}.png", np.clip(25 / 255 + rng.poisson(30 * clean) / 30, 0, 1)[..., None])
    assert denoised_by(f"--input={source}", f"--output={tmp_path / 'out'}", "--adapt=1s") == 0
    out = capsys.readouterr().out
    black, white = json.loads((tmp_path / "out-network" / "options.json").read_text())["value_range"]
    assert black == pytest.approx(25, abs=7) and white == 255
    said = f"black {black:.6g}, white 255"
    assert out.count(said) == 2 and f"{said} (as in the training" in out
    # The network of the package alone finds the same; a level that is given is one of 255.
    assert denoised_by(f"--input={source}", f"--output={tmp_path / 'shipped'}") == 0
    assert f"{said} (black found by the noise" in capsys.readouterr().out
    assert denoised_by(f"--input={source}", f"--output={tmp_path / 'told'}", "--lam=30") == 0
    assert "Range" not in capsys.readouterr().out
    # A network that is adapted again keeps its range, for pictures of a similar one.
    (source / "1.png").unlink()
    flags = [f"--model={tmp_path / 'out-network'}", f"--input={source}", f"--output={tmp_path / 'again'}"]
    assert denoised_by(*flags, "--adapt=1s") == 0
    assert f"{said} (as in the training)" in capsys.readouterr().out
    assert json.loads((tmp_path / "again-network" / "options.json").read_text())["value_range"] == [black, white]


def test_adapting_needs_pictures_of_one_kind(folder, tmp_path, capsys):
    mixed = tmp_path / "in"
    mixed.mkdir()
    for channels, name in ((1, "gray"), (3, "colour")):
        np.save(mixed / f"{name}.npy", np.full((96, 96, channels), 0.5, np.float32))
    assert denoised_by(f"--input={mixed}", f"--output={tmp_path / 'out'}", "--adapt=5min") == 1
    assert "--adapt: expected pictures that are all gray or all colour" in capsys.readouterr().err
    assert denoised_by(f"--input={folder}", f"--output={tmp_path / 'out'}", "--adapt=soon") == 1
    assert "--adapt: expected a time such as 90s, 30min or 2h, received 'soon'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (tmp_path / "out-network").exists()


def test_noisy_images_are_trained_on_with_the_channels_they_have(folder, tmp_path):
    def options(images, *flags):
        values = cli.parse(train_flags.define, ["x.py", f"--train_data={images}", *flags])
        return train_flags.options_from_flags(values)

    gray, mixed = tmp_path / "gray", tmp_path / "mixed"
    for path, channels in ((gray / "0.npy", 1), (gray / "1.npy", 1), (mixed / "0.npy", 1), (mixed / "1.npy", 3)):
        path.parent.mkdir(exist_ok=True)
        np.save(path, np.full((96, 96, channels), 0.5, np.float32))
    (gray / "2.tif").write_bytes(b"damaged")
    for images_, expected in ((folder, 3), (gray, 1), (mixed, 3)):
        assert options(images_, "--noisy", "--noise=gaussian").experiment.channels == expected
    assert options(gray, "--noisy", "--noise=gaussian", "--channels=3").experiment.channels == 3
    assert options(gray, "--noise=gaussian").experiment.channels == 3  # each channel has noise of its own
    adapted = options(gray, "--preset=adapt")
    assert adapted.experiment.channels == 1 and adapted.warm_start == "additive-gray"


def test_a_range_is_for_noisy_images(folder, tmp_path, capsys):
    flags = [f"--train_data={folder}", f"--run_dir={tmp_path / 'run'}", "--range=0,2"]
    assert call(*flags) == 1 and "--range is for images that are noisy already" in capsys.readouterr().err
    values = cli.parse(train_flags.define, ["x.py", "--preset=adapt", *flags])
    assert train_flags.options_from_flags(values).value_range == (0, 2)


@pytest.mark.slow
def test_a_range_that_is_given_stays_with_the_run(folder, tmp_path):
    flags = [f"--train_data={folder}", f"--run_dir={tmp_path / 'run'}", "--range=0,2"]
    steps = ["--preset=adapt", "--stages=64x1", "--train_images=6", "--jit=off", "--validation=none", "--max_minutes=0"]
    assert call(*flags, *steps) == 0
    assert json.loads((tmp_path / "run" / "options.json").read_text())["value_range"] == [0, 2]


def test_what_does_not_go_with_adapting_is_refused(folder, tmp_path, capsys):
    for flag in ("--nonoisy", "--pipeline=n2c", "--experiment=gauss25-n2c"):
        run = f"--run_dir={tmp_path / 'run'}"
        assert call("--preset=adapt", f"--train_data={folder}", run, flag) == 1
        assert "--preset=adapt" in capsys.readouterr().err and not (tmp_path / "run").exists()
