"""The networks that the package brings: cards, blindness, and what they do on a picture."""

import importlib.util
import json
import pathlib

import numpy as np
import pytest
from support import array

from ssdn_tf.data import images, samples
from ssdn_tf.errors import UserError
from ssdn_tf.inference import diagnosis, predictor, pretrained
from ssdn_tf.noise.registry import MODELS

pytestmark = pytest.mark.usefixtures("eager")
every_network = pytest.mark.parametrize("name", pretrained.names())


@pytest.fixture(scope="module")
def coffee():
    """The middle of a photograph that no training has seen, 192x256."""
    pixels = images.to_float(images.read(samples.sample_photographs()[1][0]))
    return pixels[100:292, 150:406]


def test_the_default_networks_are_there():
    assert set(pretrained.DEFAULTS.values()) <= set(pretrained.names())


@every_network
def test_a_card_says_where_a_network_comes_from(name):
    card = pretrained.card(name)
    assert card["name"] == name and card["licence"] == "Apache-2.0" and card["limits"]
    assert card["training"]["data"] and card["training"]["command"].startswith("python train.py ")
    assert card["training"]["crops"] > 1_000 and card["training"]["hours"] > 0
    assert name in pretrained.table() and card["description"] in pretrained.table()
    assert (pretrained.FOLDER / f"{name}.npz").stat().st_size < 2e6


def test_an_unknown_name_gets_the_list():
    with pytest.raises(UserError, match="expected one of .*additive-rgb.*, received 'other'"):
        pretrained.card("other")


@every_network
def test_a_network_is_blind_at_all_phases_of_its_grid(name):
    """Exactly: what it says of a pixel does not change with that pixel, at odd sizes too. What it says of the
    neighbours does."""
    model = predictor.load(name)
    channels, rng = model.experiment.channels, np.random.default_rng(0)
    pictures = np.repeat(rng.random((1, 21, 19, channels)).astype(np.float32), 64, axis=0)
    model = model.model.get_layer("unet")
    before = array(model(pictures))
    phases, rows, columns = np.arange(64), 5 + np.arange(64) // 8, 4 + np.arange(64) % 8
    pictures[phases, rows, columns] += 0.5
    moved = np.abs(array(model(pictures)) - before).max(axis=-1)
    assert (moved[phases, rows, columns] == 0.0).all()
    assert (moved[phases, rows, columns - 1] > 0).all() and (moved[phases, rows - 1, columns] > 0).all()


def test_the_network_for_colour_denoises_and_finds_the_noise(coffee):
    model = predictor.load("additive-rgb")
    noisy = MODELS["gaussian"]().corrupt(coffee, 25 / 255, np.random.default_rng(0))
    known, fitted = model.denoise(noisy, (0.0, 25 / 255)), model.denoise(noisy)
    gain, readout = fitted.noise_parameter
    assert readout == pytest.approx(25 / 255, rel=0.05) and gain < 0.005
    errors = [np.mean((image - coffee) ** 2) for image in (noisy, known.denoised, fitted.denoised)]
    assert errors[1] < errors[0] / 6 and errors[2] < 1.02 * errors[1]


@pytest.mark.slow
def test_tiles_get_the_noise_of_the_whole_picture(coffee):
    model = predictor.load("additive-rgb")
    noisy = MODELS["gaussian"]().corrupt(coffee[:, :190], 25 / 255, np.random.default_rng(0))
    whole, tiles = model.denoise(noisy), model.denoise(noisy, tile=168)
    assert tiles.noise_parameter[1] == pytest.approx(whole.noise_parameter[1], rel=0.02)
    assert np.abs(tiles.denoised - whole.denoised).max() < 5e-3
    told = model.denoise(noisy, whole.noise_parameter, tile=168)
    assert np.abs(told.denoised - whole.denoised).max() < 1e-5


NOISES = {
    "gaussian": 25 / 255,
    "poisson": 30.0,
    "poisson_gaussian": (1 / 50, 15 / 255),
    "impulse": 0.2,
}


@pytest.mark.parametrize("kind, parameter", NOISES.items(), ids=NOISES)
def test_the_noise_model_is_recognized(coffee, kind, parameter):
    model = predictor.load("additive-rgb")
    noisy = MODELS[kind]().corrupt(coffee, parameter, np.random.default_rng(1))
    found = diagnosis.diagnose(model, [noisy])
    assert found.best.kind == kind and not found.is_correlated, found
    if kind == "impulse":
        assert found.best.parameter > 1.3 * parameter  # a network for additive noise is misled
        found = diagnosis.with_impulses_of(found, predictor.load("impulse-rgb"), [noisy])
        assert [fit.kind for fit in found.fits][0] == kind
    # Three of the stated standard errors, and 7 % for what the network does not know.
    values, truth, error = map(np.atleast_1d, (found.best.parameter, parameter, found.best.error))
    assert (np.abs(values - truth) < 3 * error + 0.07 * truth).all(), found.best
    assert found.best.log_likelihood > found.fits[-1].log_likelihood + 0.1


def test_correlated_and_clipped_noise_get_a_warning(coffee):
    model = predictor.load("additive-rgb")
    rng = np.random.default_rng(2)
    noise = rng.standard_normal((coffee.shape[0] + 1, coffee.shape[1] + 1, 3))
    smooth = (noise[1:, 1:] + noise[:-1, 1:] + noise[1:, :-1] + noise[:-1, :-1]) / 4
    found = diagnosis.diagnose(model, [(coffee + 0.1 * smooth).astype(np.float32)])
    assert found.is_correlated and "correlated" in next(found.warnings())
    clipped = np.clip(coffee + 0.1 * noise[1:, 1:], 0, 1).astype(np.float32)
    assert any("cut off" in sentence for sentence in diagnosis.diagnose(model, [clipped]).warnings())
    # The control: white noise that is not clipped.
    white = (coffee + 0.1 * noise[1:, 1:]).astype(np.float32)
    assert not list(diagnosis.diagnose(model, [white]).warnings())


def test_colours_of_unequal_brightness_have_unequal_photon_noise_and_no_warning(coffee):
    model, rng = predictor.load("additive-rgb"), np.random.default_rng(3)
    reddish = coffee * np.array([1.0, 0.5, 0.25])
    found = diagnosis.diagnose(model, [MODELS["poisson"]().corrupt(reddish, 30.0, rng)])
    assert found.best.kind == "poisson" and found.channels < 1.2
    # The control: Gaussian noise of these stds, in a picture without colours.
    gray = np.repeat(coffee.mean(axis=-1, keepdims=True), 3, axis=-1)
    noise = np.array([0.12, 0.08, 0.06]) * rng.standard_normal(coffee.shape)
    found = diagnosis.diagnose(model, [(gray + noise).astype(np.float32)])
    assert found.channels == pytest.approx(2, rel=0.1)
    assert any("the noise of the colours differs by a factor of" in sentence for sentence in found.warnings())


def test_the_figures_of_a_card_are_those_of_the_network(tmp_path):
    path = pathlib.Path(__file__).parents[2] / "export" / "pretrained.py"
    spec = importlib.util.spec_from_file_location("export_pretrained", path)
    export = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(export)
    tested = {"noise": "gaussian", "low": 25.0, "high": 25.0, "channels": 3}
    own = {"name": "x", "dataset": "kodak", "experiment": {"noise": "gaussian"}, "tested": tested, "psnr": 31.5}
    results = [own, own | {"name": "median", "experiment": None, "psnr": 25.0}]
    (tmp_path / "a.json").write_text(json.dumps({"model": {"name": "some-rgb"}, "results": results}))
    assert export._figures("some-rgb", [tmp_path / "a.json"]) == {"kodak": {"sigma 25": "31.50 dB"}}
    with pytest.raises(UserError, match="expected results of other-rgb, received those of some-rgb"):
        export._figures("other-rgb", [tmp_path / "a.json"])
