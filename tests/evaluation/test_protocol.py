import numpy as np
import pytest
from PIL import Image

from ssdn_tf.denoisers import models
from ssdn_tf.denoisers.experiments import Experiment
from ssdn_tf.evaluation import protocol, report
from ssdn_tf.noise.gaussian import GaussianNoise


def test_images_are_padded_to_their_own_next_multiples_of_32():
    assert protocol.padded_size(321, 481) == (352, 512)
    assert protocol.padded_size(32, 64) == (32, 64)
    assert protocol.padded_size(321, 481, square=512) == (512, 512)


def test_the_published_padding_is_one_square_for_the_set(tmp_path):
    for name, size in (("a.png", (50, 70)), ("b.png", (20, 97))):
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / name)
    assert protocol.set_square(sorted(tmp_path.iterdir())) == 128


def test_padding_reflects_at_bottom_and_right_without_repeating_the_edge():
    image = np.arange(3.0).reshape(3, 1, 1) * np.ones((1, 2, 1))
    padded = protocol.reflect_pad(image, (5, 2))
    assert padded[:, 0, 0].tolist() == [0, 1, 2, 1, 0]


def test_noise_is_added_after_padding():
    """The padded part has noise of its own: a mirror image of the noise would show a pixel itself."""
    clean = np.full((20, 20, 3), 0.5, np.float32)
    case = protocol.corrupt(clean, Experiment(), GaussianNoise(), protocol.rng(1, "s", "a", 0))
    assert case.padded.shape == (32, 32, 3) and case.noisy.shape == (20, 20, 3)
    mirrored = case.noisy[18:8:-1]
    assert np.abs(case.padded[20:30, :20] - mirrored[:10]).min() > 0
    assert case.padded.std() == pytest.approx(25 / 255, rel=0.1)


def test_the_share_inside_the_posterior_std_is_counted_over_values():
    """Errors 0.05, 0.15, 0.15, 0.35 of a std of 0.1: one of four within one, three within two."""
    clean = np.full((16, 16, 1), 0.5, np.float32)
    denoised = clean + np.tile(np.float32([0.05, -0.15, 0.15, 0.35]), 64).reshape(16, 16, 1)
    case = protocol.Corrupted(clean, clean, 0.1)
    row = protocol.scores(case, {"denoised": denoised, "posterior_std": np.full_like(clean, 0.1)})
    assert (row["inside_1_std"], row["inside_2_std"]) == (0.25, 0.75)
    result = report.statistics([row | {"image": "a"}]) | {"name": "n", "dataset": "d", "images": 1, "repeats": 1}
    text = report.table([result | {"experiment": Experiment().to_dict()}])
    assert "25.0% and 75.0% of the clean values lie within 1 and 2 posterior std" in text
    assert "inside_1_std" not in protocol.scores(case, {"denoised": denoised})


def test_standard_errors_over_pictures_and_over_noise():
    rows = [
        {"image": image, "psnr": psnr, "psnr_noisy": 20.0, "ssim": 0.5}
        for image, psnr in [("a", 30.0), ("a", 32.0), ("b", 20.0), ("b", 20.0)]
    ]
    result = report.statistics(rows)
    assert result["psnr"] == 25.5
    assert result["standard_error_images"] == pytest.approx(11 / np.sqrt(2) / np.sqrt(2))
    # variance of the mean of a: 2 / 2; of b: 0; of their mean: 1 / 4
    assert result["standard_error_noise"] == pytest.approx(0.5)
    assert report.statistics(rows[:1])["standard_error_noise"] is None


def test_the_table_names_the_papers_figure_and_says_which_were_not_checked():
    def row(**experiment):
        values = {"psnr": 30.0, "psnr_noisy": 20.0, "ssim": 0.8, "standard_error_images": 0.1}
        experiment = Experiment(**experiment)
        return values | {
            "standard_error_noise": None, "images": 24, "repeats": 1, "dataset": "kodak",
            "name": experiment.name, "experiment": experiment.to_dict(),
        }  # fmt: skip

    text = report.table([row()])
    assert "| 32.45 |" in text and "not checked" not in text
    text = report.table([row(noise="impulse", low=0.5, high=0.5, likelihood="mixture")])
    assert "| 32.98* |" in text and "not checked" in text
    assert "| - |" in report.table([row(low=17, high=17)]).splitlines()[-1]


def test_a_picture_in_tiles_is_the_whole_picture_up_to_rounding():
    model = models.build(Experiment(), width=2).inference
    noisy = np.random.default_rng(0).random((1010, 700, 3), dtype=np.float32)
    whole = protocol.denoise_any_size(model, noisy, 0.1)
    tiled = protocol.denoise_any_size(model, noisy, 0.1, tile=704)
    assert tiled["denoised"].shape == noisy.shape
    for name in ("denoised", "mu_x", "posterior_std"):
        np.testing.assert_allclose(tiled[name], whole[name], atol=1e-5)
    shifted = protocol.denoise_any_size(model, noisy[8:], 0.1, tile=704)  # control: off the grid it is another
    assert np.abs(shifted["mu_x"][400:500] - whole["mu_x"][408:508]).max() > 1e-4
