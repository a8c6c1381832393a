"""Arrays of any dtype and range in, the same out."""

import dataclasses

import numpy as np
import pytest
import test_predictor

import ssdn_tf
from ssdn_tf.denoisers.experiments import Experiment
from ssdn_tf.errors import UserError
from ssdn_tf.inference import pictures, predictor, ranges

ADDITIVE = {"noise": "additive", "low": (5.0, 1.0), "high": (200.0, 50.0), "width": 2, "network": "compact"}


@pytest.fixture(scope="module")
def models():
    """A small network for each number of channels."""
    found = {}
    for channels in (3, 1):
        experiment = Experiment(channels=channels, **ADDITIVE)
        found[channels] = predictor.Predictor(test_predictor.built(experiment), experiment)
    return found


@pytest.fixture(autouse=True)
def small(models, monkeypatch):
    monkeypatch.setattr(predictor, "load", lambda name: models[1 if "gray" in str(name) else 3])
    pictures._load_at.cache_clear()
    yield
    pictures._load_at.cache_clear()


def test_a_model_is_loaded_once_and_again_when_it_changes(models, monkeypatch, tmp_path):
    loaded = []
    monkeypatch.setattr(predictor, "load", lambda name: loaded.append(name) or models[1])
    run = tmp_path / "gray"
    run.mkdir()
    for expected in (1, 1, 2, 2):
        if expected == 2 and len(loaded) == 1:
            (run / "checkpoint.npz").write_text("a training has gone on")
        ssdn_tf.denoise(image("uint8", (9, 9)), model=run)
        assert len(loaded) == expected


def image(dtype, shape, low=0, high=255):
    return np.random.default_rng(0).uniform(low, high, shape).astype(dtype)


@pytest.mark.parametrize(
    "dtype, shape",
    [("uint8", (20, 17)), ("uint8", (9, 11, 3)), ("uint16", (2, 9, 11)), ("int16", (9, 11)), ("float32", (2, 9, 11, 3)),
     ("float64", (9, 11, 1))],
)  # fmt: skip
def test_shape_and_dtype_are_kept(dtype, shape):
    result = ssdn_tf.denoise(image(dtype, shape))
    assert result.denoised.shape == result.std.shape == shape and result.denoised.dtype == dtype
    count = np.prod(shape[:-3] if len(shape) > 3 else shape[:-2] if shape[-1] not in (1, 3) else 1)
    assert (len(result.noise) if isinstance(result.noise, list) else 1) == count
    assert np.isfinite(result.std).all()


def test_the_result_is_the_predictors_in_the_unit_of_the_image(models):
    pixels = image("float64", (16, 16, 3), 100, 900)
    result = ssdn_tf.denoise(pixels, value_range=(100, 900), noise={"sigma": 25})
    expected = models[3].denoise(((pixels - 100) / 800).astype(np.float32), (0.0, 25 / 255))
    np.testing.assert_allclose(result.denoised, expected.denoised * 800 + 100, rtol=1e-5)
    np.testing.assert_allclose(result.std, expected.posterior_std * 800, rtol=1e-5)
    assert result.noise == {"sigma": pytest.approx(25)}
    other = ssdn_tf.denoise(pixels, value_range=(100, 900), noise={"sigma": 50})
    assert np.abs(other.denoised - result.denoised).max() > 1  # control: the level matters


@dataclasses.dataclass
class Knows:
    """A predictor that was trained on a range, and finds a black level."""

    trained_range: tuple | None
    finds_black_level: bool = True

    def middle_pixels(self, plane):
        return plane[:64, :64]

    def black_level(self, pixels):
        assert len(pixels) == 2 and pixels[0].dtype == np.float32 and pixels[0].max() <= 1
        return 0.02


@pytest.mark.parametrize(
    "model, known, expected",
    [
        (Knows(None), False, (20, 1000)),
        (Knows(None), True, (0, 1000)),
        (Knows(None, False), False, (0, 1000)),
        (Knows((5.0, 900.0)), False, (5, 900)),
        (Knows((5.0, 900.0)), True, (5, 900)),
        (Knows((0.0, 1.0)), False, (20, 1000)),
        (Knows((0.0, 65535.0)), False, (20, 1000)),
        (Knows((5000.0, 6000.0)), False, (20, 1000)),
    ],
    ids=["found", "level told", "not of this noise", "trained", "trained, told", "of floats", "of 16 bit", "elsewhere"],
)
def test_the_range_is_that_of_the_training_or_measured_with_the_black_level(model, known, expected):
    planes = [np.tile(np.uint16([[[0]], [[1000]]]), (8, 8, 1))] * 2
    limits, origin = ranges.find(planes, {1: model}.get, known)
    assert limits == pytest.approx(expected)
    assert ("training" in origin) == (expected[0] == 5) and ("noise" in origin) == (expected[0] == 20)


def test_without_a_picture_that_can_be_read_there_is_a_range():
    assert ranges.find([], {}.get) == ((0.0, 1.0), "measured")


def test_the_noise_that_is_found_is_named_without_what_is_not_there():
    experiment = Experiment(**ADDITIVE)
    assert pictures.noise_found(experiment, (0.02, 0.1)) == pytest.approx({"lam": 50, "sigma": 25.5})
    assert pictures.noise_found(experiment, (0.0, 0.1)) == pytest.approx({"sigma": 25.5})
    assert pictures.noise_found(experiment, (0.02, 0.0)) == pytest.approx({"lam": 50})
    assert pictures.noise_found(experiment, (0.0, 0.0)) == {"sigma": 0}
    assert pictures.describe({"lam": 50.0, "sigma": 25.5}) == "lam 50, sigma 25.5"


def test_a_set_can_have_one_noise_level(models):
    worker = pictures.PictureDenoiser()
    planes = [image("float32", (24, 24, 3), 0, 1), image("float32", (24, 24, 3), 0.4, 0.6)]
    alone = [worker.plane(plane, (0, 1))[2] for plane in planes]
    worker.fit_set(planes, (0, 1))
    together = [worker.plane(plane, (0, 1))[2] for plane in planes]
    assert together[0] == together[1] and alone[0] != alone[1]


@pytest.mark.parametrize(
    "wrong, options, words",
    [
        (np.zeros(5), {}, r"expected an image \[H,W\]"),
        (np.zeros((0, 5)), {}, r"expected an image \[H,W\]"),
        (np.zeros((3, 1, 1, 3)), {}, "expected more than one pixel"),
        (np.full((4, 4), np.nan), {}, "expected finite numbers"),
        (np.array([["a", "b"]]), {}, "of numbers"),
        (np.zeros((4, 4)), {"noise": {"alpha": 0.5}}, "noise: expected lam or sigma"),
        (np.zeros((4, 4)), {"noise": {"sigma": -1}}, "noise: expected a number between 0 and 255"),
        (np.zeros((4, 4)), {"value_range": (0, 0)}, r"expected a range of black and white such as \(100, 4095\)"),
        (np.zeros((4, 4)), {"value_range": (4095, 100)}, "expected a range of black and white"),
        (np.zeros((4, 4)), {"value_range": (0, np.inf)}, "expected a range of black and white"),
        (np.zeros((4, 4)), {"value_range": 255}, "expected a range of black and white"),
        (np.zeros((4, 4, 3)), {"model": "gray"}, "expected a network for colour, received gray"),
    ],
)
def test_wrong_input_gets_a_sentence(wrong, options, words):
    with pytest.raises(UserError, match=words):
        ssdn_tf.denoise(wrong, **options)


def test_a_range_may_be_an_array_and_an_ensemble_has_eight_at_most():
    pixels = image("uint8", (9, 11))
    one, other = (ssdn_tf.denoise(pixels, value_range=limits).denoised for limits in ((0, 255), np.array([0, 255])))
    assert np.array_equal(one, other)
    for ensemble in (0, 9):
        with pytest.raises(ValueError, match="expected an ensemble of 1 to 8"):
            ssdn_tf.denoise(pixels, ensemble=ensemble)


@pytest.mark.parametrize("shape", [(1, 2), (2, 1, 3), (5, 5)])
@pytest.mark.parametrize("value", [0, 255])
def test_pictures_with_nothing_in_them_are_finite(shape, value):
    result = ssdn_tf.denoise(np.full(shape, value, np.uint8))
    assert np.isfinite(result.denoised).all() and np.isfinite(result.std).all()


@pytest.mark.parametrize("noise", [25, {"sigma": "25"}, {"gamma": 1}, {"sigma": None}, {"sigma": float("nan")}])
def test_a_noise_that_is_none_is_one_sentence(noise):
    with pytest.raises(UserError, match="^noise: expected"):
        ssdn_tf.denoise(image("uint8", (9, 9)), noise=noise)
