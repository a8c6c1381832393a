"""One object denoises pictures of any size, wherever its model comes from."""

import dataclasses
import json
import math

import keras
import numpy as np
import pytest
import test_published

from ssdn_tf.data import images
from ssdn_tf.denoisers import models
from ssdn_tf.denoisers.experiments import Experiment
from ssdn_tf.errors import UserError
from ssdn_tf.inference import checkpoints, predictor, saved_models
from ssdn_tf.inference.predictor import Predictor
from ssdn_tf.noise import registry
from ssdn_tf.noise.prior import Prior

PER_IMAGE = Experiment(low=5.0, high=50.0, parameter_source="per_image", network="tiny")
# For the compact network: a grid of 8 and a halo of 80.
TILE = 176


def built(experiment, seed=0):
    """An inference model that runs without compilation, with weights everywhere, also in the estimator's last layer."""
    keras.utils.set_random_seed(seed)
    model = models.build(experiment).inference
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        if variable.path.startswith("parameter"):
            variable.assign(0.3 * rng.standard_normal(variable.shape))
    model.compile(run_eagerly=True)
    return model


def picture(height, width, channels=3):
    """Noise on a ramp: no two parts are alike."""
    rng = np.random.default_rng(height * width)
    ramp = np.linspace(0, 1, height * width, dtype=np.float32).reshape(height, width, 1)
    return (ramp + 0.2 * rng.standard_normal((height, width, channels))).astype(np.float32)


def assert_equal(found, expected, atol=0.0):
    assert found.images().keys() == expected.images().keys()
    for name, image in expected.images().items():
        np.testing.assert_allclose(getattr(found, name), image, rtol=0, atol=atol, err_msg=name)
    assert found.noise_parameter == (expected.noise_parameter and pytest.approx(expected.noise_parameter, rel=1e-5))


# ---------------------------------------------------------------- one picture


@pytest.mark.parametrize("size", [(1, 1), (33, 47), (64, 32)])
@pytest.mark.parametrize("network", ["paper", "compact"])
def test_all_outputs_have_the_size_of_the_picture(size, network):
    experiment = Experiment(network=network, width=2)
    prediction = Predictor(built(experiment), experiment).denoise(picture(*size), 0.1)
    assert set(prediction.images()) == {"denoised", "mu_x", "prior_std", "posterior_std"}
    for image in prediction.images().values():
        assert image.shape == (*size, 3) and image.dtype == np.float32 and np.isfinite(image).all()
    assert prediction.noise_parameter == pytest.approx(0.1)


def test_a_model_without_a_noise_model_gives_a_picture_only():
    experiment = Experiment(pipeline="n2c", parameter_source=None, channels=1, width=2)
    prediction = Predictor(built(experiment), experiment).denoise(picture(40, 50, 1))
    assert prediction._replace(denoised=None) == (None,) * 5


def test_the_level_of_a_model_that_must_be_told():
    experiment = Experiment(width=2)
    model = built(experiment)
    noisy = picture(16, 16)
    assert Predictor(model, experiment).denoise(noisy).noise_parameter == pytest.approx(25 / 255)
    for other in ({"low": 5.0, "high": 50.0}, {"low": None, "high": None}):
        several = Predictor(model, dataclasses.replace(experiment, **other))
        assert several.needs_level and several.denoise(noisy, 0.2).noise_parameter == pytest.approx(0.2)
        fitted = several.denoise(noisy)  # it is found by itself, and the result is that of the level
        again = several.denoise(noisy, fitted.noise_parameter)
        np.testing.assert_allclose(again.denoised, fitted.denoised, atol=1e-5)
        # What is no Keras model cannot fit.
        several.model = type("Served", (), {"input": ("noisy", "noise_parameter")})()
        for level in (None, "fitted"):
            with pytest.raises(UserError, match="expected a noise level|cannot fit the noise"):
                several.denoise(noisy, level)


def pixels_with_noise(sigma, count, seed=0):
    """What `Predictor.pixels` gives, of three channels."""
    rng = np.random.default_rng(seed)
    mu_x, sigma_x = rng.uniform(0.2, 0.8, (count, 3)), np.full((count, 3, 3), 1e-4) + 1e-4 * np.eye(3)
    return mu_x + rng.normal(0, (sigma**2 + 2e-4) ** 0.5, mu_x.shape), mu_x, sigma_x


def test_a_default_level_stands_where_another_is_hardly_more_likely():
    """Three channels, 30,000 pixels: 1e-3 nats a pixel are 1.8 % of sigma."""
    sets, noise = [[pixels_with_noise(0.1, 30_000)]], registry.make("gaussian")
    found = Predictor.fit(None, *sets, noise)
    assert found == pytest.approx(0.1, rel=0.01)
    for factor in (0.975, 0.99, 1.01, 1.025):
        default = factor * found
        assert Predictor.fit_each(None, sets, default, noise) == [
            default if abs(factor - 1) < 0.018 else pytest.approx(found, rel=1e-9)
        ]


@pytest.mark.parametrize(
    "noise",
    [registry.make("gaussian"), registry.make("poisson_gaussian"), registry.make("impulse", likelihood="combined")],
    ids=lambda noise: noise.kind,
)
def test_a_fit_of_each_set_is_that_of_the_set_alone(noise, monkeypatch):
    """Sets of unequal size too: there, some pixels count twice as much as others."""
    monkeypatch.setattr(predictor, "SET_PIXELS", 9_000)  # two at once
    sizes = [(0.05, [4_000]), (0.1, [2_500, 1_500]), (0.2, [4_000]), (0.1, [3_000])]
    sets = [[pixels_with_noise(sigma, n, seed=n) for n in counts] for sigma, counts in sizes]
    alone = [Predictor.fit(None, pixels, noise) for pixels in sets]
    unlikely = predictor.plain(np.full(noise.parameter_size, 0.01))
    each = Predictor.fit_each(None, sets, unlikely, noise)
    assert len(set(alone)) == 4
    np.testing.assert_allclose(each[:3], alone[:3], rtol=1e-9)
    np.testing.assert_allclose(each[3], alone[3], rtol=0.03)


def test_a_model_that_fits_the_level_fits_one_to_all_tiles():
    found = of_width(2, network="tiny", low=5.0, high=50.0).with_source("fitted")
    noisy = picture(56, 50)
    noisy[:20] = 0.5
    levels = {part.noise_parameter for _, _, part in found.denoise_tiles(noisy, tile=48)}
    assert len(levels) == 1 and found.denoise(noisy, 0.3, tile=48).noise_parameter in levels


def test_a_picture_whose_tiles_are_done_is_not_fitted_again(monkeypatch):
    model = of_width(2, network="tiny", low=5.0, high=50.0).with_source("fitted")
    noisy, asked = picture(56, 50), []
    monkeypatch.setattr(model, "fit", lambda pixels: asked.append(pixels) or 0.1)
    tiles = model.tiles_of(noisy, 48)
    assert len(list(model.denoise_tiles(noisy, tile=48, done=range(len(tiles) - 1)))) == 1 and len(asked) == 1
    assert not list(model.denoise_tiles(noisy, tile=48, done=range(len(tiles)))) and len(asked) == 1
    assert not list(model.denoise_tiles(noisy, tile=None, done=[0])) and len(asked) == 1


def test_a_model_that_estimates_the_level_ignores_the_given_one():
    estimating = Predictor(built(PER_IMAGE), PER_IMAGE)
    noisy = picture(24, 24)
    assert not estimating.needs_level
    assert estimating.denoise(noisy, 0.5).noise_parameter == estimating.denoise(noisy).noise_parameter


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (1, 8, 8, 3), (0, 8, 3)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"expected a picture of the shape \[H, W, 3\], received"):
        Predictor(None, Experiment()).denoise(np.zeros(shape, np.float32))


# ---------------------------------------------------------------- the level of a picture off the grid


def test_the_level_of_a_picture_is_the_mean_over_the_picture_alone():
    """33x33 pixels are filled up to 64x64 for the paper's network: the estimate must not count the filling."""
    experiment = dataclasses.replace(PER_IMAGE, network="paper", width=2)
    model = built(experiment)
    noisy = picture(33, 33)
    layer = model.get_layer("parameter")

    def level(estimates):
        return layer.noise.constrain(np.float32(estimates.mean())).numpy().item()

    filled = np.pad(noisy, ((0, 31), (0, 31), (0, 0)))
    estimates = keras.ops.convert_to_numpy(layer.network(filled[None]))[0]
    found = Predictor(model, experiment).denoise(noisy).noise_parameter
    assert found == pytest.approx(level(estimates[:33, :33]), rel=1e-5)
    assert abs(found / level(estimates) - 1) > 1e-3  # control: the filling matters


# ---------------------------------------------------------------- tiles


@pytest.mark.parametrize("size", [(200, 181), (176, 300), (321, 33)])
def test_a_picture_in_tiles_is_the_whole_picture_up_to_rounding(size):
    """Also off the grid at the far edges, where the last tiles are smaller."""
    experiment = Experiment(network="compact", width=2)
    whole = Predictor(built(experiment), experiment)
    noisy = picture(*size)
    assert_equal(whole.denoise(noisy, 0.1, tile=TILE), whole.denoise(noisy, 0.1, tile=None), atol=1e-5)


def test_tiles_have_the_grid_and_the_halo_of_the_network():
    plain = Experiment(pipeline="n2c", parameter_source=None, width=2)
    found = [Predictor(None, e) for e in (Experiment(), plain, Experiment(network="compact"))]
    assert [(p.grid, p.halo) for p in found] == [(32, 320), (32, 160), (8, 80)]
    predictor_, noisy = Predictor(built(plain), plain), picture(400, 340)
    assert_equal(predictor_.denoise(noisy, tile=352), predictor_.denoise(noisy), atol=1e-5)
    with pytest.raises(ValueError, match="expected a tile side that is a multiple of 32 from 352 on, received 320"):
        predictor_.denoise(noisy, tile=320)


def test_all_tiles_of_a_picture_get_the_level_of_the_whole():
    predictor_ = Predictor(built(PER_IMAGE), PER_IMAGE)
    noisy = picture(200, 181)
    whole = predictor_.denoise(noisy, tile=None)
    assert_equal(predictor_.denoise(noisy, tile=TILE), whole, atol=1e-5)
    parts = [predictor_.denoise(part, tile=None).noise_parameter for part in (noisy[:100], noisy[100:])]
    assert max(abs(part / whole.noise_parameter - 1) for part in parts) > 1e-3  # control: it differs between parts


def of_width(width, **experiment):
    """A Predictor."""
    experiment = Experiment(width=width, **experiment)
    return Predictor(built(experiment), experiment)


def test_an_ensemble_of_all_orientations_has_none():
    found, image = of_width(4, network="tiny"), picture(32, 48)

    def turned(number, ensemble):
        result = found.denoise(images.flip(image, number), 0.1, ensemble=ensemble)
        return result._replace(**{k: images.unflip(v, number) for k, v in result.images().items()})

    for number in (1, 2, 4, 7):
        assert_equal(turned(number, 8), turned(0, 8), atol=1e-5)
    assert np.abs(turned(5, 1).denoised - turned(0, 1).denoised).max() > 1e-4  # control: one orientation has one
    mu_x = np.mean([turned(number, 1).mu_x for number in range(8)], axis=0)
    assert np.allclose(turned(0, 8).mu_x, mu_x, atol=1e-6)


def test_an_ensemble_averages_the_prior_and_not_the_answer():
    found, image = of_width(4, network="tiny"), picture(32, 48)
    priors = [found._prior.predict_on_batch(images.flip(image, k)[None]) for k in range(2)]
    mu_x, sigma_x = (np.mean([images.unflip(p[i][0], k) for k, p in enumerate(priors)], axis=0) for i in range(2))
    noise = models.noise_model(found.experiment)
    expected = noise.posterior_mean(image[None], Prior(mu_x[None], sigma_x[None]), np.full((1, 1, 1, 1), 0.1))
    result = found.denoise(image, 0.1, ensemble=2)
    assert np.allclose(result.denoised, expected[0], atol=1e-6)
    answers = [images.unflip(found.denoise(images.flip(image, k), 0.1).denoised, k) for k in range(2)]
    assert not np.allclose(result.denoised, np.mean(answers, axis=0), atol=1e-6)


def test_an_ensemble_in_tiles_and_without_a_noise_model():
    found, image = of_width(2, network="tiny"), picture(56, 50)
    assert_equal(found.denoise(image, 0.1, 48, ensemble=3), found.denoise(image, 0.1, ensemble=3), atol=1e-5)
    assert 0.0 < found.denoise(image, "fitted", ensemble=2).noise_parameter < 1.0
    plain = of_width(2, network="tiny", pipeline="n2c", parameter_source=None)
    answers = [images.unflip(plain.denoise(images.flip(picture(32, 48), k)).denoised, k) for k in range(8)]
    assert np.allclose(plain.denoise(picture(32, 48), ensemble=8).denoised, np.mean(answers, axis=0), atol=1e-6)


def test_tiles_follow_a_model_in_training():
    model = built(PER_IMAGE)
    predictor_ = Predictor(model, PER_IMAGE)
    noisy = picture(200, 181)
    before = predictor_.denoise(noisy, tile=TILE)
    for variable in model.variables:
        variable.assign(1.1 * variable)
    after = predictor_.denoise(noisy, tile=TILE)
    assert np.abs(after.mu_x - before.mu_x).max() > 1e-3
    assert_equal(after, predictor_.denoise(noisy, tile=None), atol=1e-5)


# ---------------------------------------------------------------- where models come from


def write_run(folder, model, experiment, **more):
    """The files of a run that a predictor reads."""
    folder.mkdir()
    options = {"experiment": experiment.to_dict(), "rate": 1.0} | more
    (folder / "options.json").write_text(json.dumps(options))
    checkpoints.save(folder / "checkpoint.npz", checkpoints.named_variables(model), {"step": 7})
    return folder


def test_a_run(tmp_path):
    experiment = Experiment(low=5.0, high=50.0, width=2)
    model = built(experiment)
    loaded = predictor.load(write_run(tmp_path / "run", model, experiment))
    assert loaded.experiment == experiment
    assert (loaded.source.kind, loaded.source.path) == ("run", tmp_path / "run")
    assert loaded.source.details["position"] == {"step": 7}
    assert_equal(loaded.denoise(picture(33, 20), 0.1), Predictor(model, experiment).denoise(picture(33, 20), 0.1), 1e-6)


def test_the_rate_of_a_global_parameter_is_read(tmp_path):
    experiment = Experiment(parameter_source="global", width=2)
    model = models.build(experiment, start=-2.0, rate=10.0).inference
    loaded = predictor.load(write_run(tmp_path / "run", model, experiment, rate=10.0))
    # softplus(raw - 4) + 1e-3
    assert loaded.denoise(picture(8, 8)).noise_parameter == pytest.approx(math.log1p(math.exp(-6)) + 1e-3, rel=1e-5)


def test_a_published_file(tmp_path):
    name = "gauss25-blindspot-sigma_known"
    state = test_published.small_state(test_published.PUBLISHED[name])
    loaded = predictor.load(test_published.write(tmp_path, state, f"network-final-{name}.pickle"))
    assert loaded.experiment.name == name and loaded.source.kind == "published"
    assert loaded.source.details["published_network"] == f"network-final-{name}"
    assert "CC BY-NC 4.0" in loaded.source.details["licence"]
    assert loaded.denoise(picture(20, 33)).denoised.shape == (20, 33, 3)
    snapshot = test_published.write(tmp_path, state, "network-00010000.pickle")
    assert predictor.load(snapshot).experiment.low is None


def test_what_cannot_be_loaded_is_refused(tmp_path):
    for path, words in {
        tmp_path: "expected the folder of a run",
        tmp_path / "missing": "received '.*missing', which does not exist",
    }.items():
        with pytest.raises(UserError, match=words):
            predictor.load(path)
    (tmp_path / "file").write_text("no pickle")
    with pytest.raises(UserError, match="expected a published network file"):
        predictor.load(tmp_path / "file")
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "saved_model.pb").write_bytes(b"")
    with pytest.raises(UserError, match="expected a SavedModel written by export/savedmodel.py"):
        predictor.load(tmp_path)


def test_the_newest_version_of_a_saved_model_is_found(tmp_path):
    for name in ("2", "10", "notes"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "saved_model.pb").write_bytes(b"")
    assert saved_models.find(tmp_path) == tmp_path / "10"
    assert saved_models.find(tmp_path / "2") == tmp_path / "2"
    assert saved_models.find(tmp_path / "missing") is None
