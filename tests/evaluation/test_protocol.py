import json

import numpy as np
import pytest
import support
import tifffile
from PIL import Image

from ssdn_tf.denoisers.experiments import Experiment
from ssdn_tf.denoisers.models import noise_model
from ssdn_tf.errors import UserError
from ssdn_tf.evaluation import protocol, report
from ssdn_tf.inference.predictor import Prediction
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


def result(**changes):
    """A result as `protocol.evaluate` returns it, of the paper's first row on Kodak."""
    experiment = changes.pop("experiment", Experiment())
    tested = changes.pop("tested", experiment)
    values = {
        "name": experiment.name,
        "dataset": "kodak",
        "experiment": experiment.to_dict(),
        "tested": {key: getattr(tested, key) for key in ("noise", "low", "high", "channels")},
        "images": 24,
        "repeats": 1,
        "psnr": 30.0,
        "psnr_noisy": 20.0,
        "ssim": 0.8,
        "standard_error_images": 0.1,
        "standard_error_noise": None,
    }
    return values | changes


def write_picture(path, value=120, size=(16, 20)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)


def run(folder, tmp_path, tested=None, denoise=None, experiment=None, repeats=1):
    """Result of a denoiser on the pictures in a folder."""
    tested = tested or Experiment()
    cases = protocol.Protocol(tested, protocol.image_set(str(folder)), repeats, seed=1)
    denoiser = protocol.Method("test", denoise or (lambda case: Prediction(case.noisy)), experiment)
    return protocol.evaluate(cases, denoiser, tmp_path / "out", strips=10)


def test_the_share_inside_the_posterior_std_is_counted_over_values():
    """Errors 0.05, 0.15, 0.15, 0.35 of a std of 0.1: one of four within one, three within two."""
    clean = np.full((16, 16, 1), 0.5, np.float32)
    denoised = clean + np.tile(np.float32([0.05, -0.15, 0.15, 0.35]), 64).reshape(16, 16, 1)
    case = protocol.Corrupted(clean, clean, 0.1)
    row = protocol.scores(case, Prediction(denoised, posterior_std=np.full_like(clean, 0.1)))
    assert (row["inside_1_std"], row["inside_2_std"]) == (0.25, 0.75)
    text = report.table([result(**report.statistics([row | {"image": "a"}]))])
    assert "25.0% and 75.0% of the clean values lie within 1 and 2 posterior std" in text
    assert "inside_1_std" not in protocol.scores(case, Prediction(denoised))


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
    text = report.table([result()])
    assert "| 32.45 |" in text and "not verified" not in text
    text = report.table([result(experiment=Experiment(noise="impulse", low=0.5, high=0.5, likelihood="mixture"))])
    assert "| 32.98* |" in text and "not verified" in text
    assert "| - |" in report.table([result(experiment=Experiment(low=17, high=17))]).splitlines()[-1]


# ---------------------------------------------------------------- what was trained and what is tested


def test_the_papers_figure_is_given_only_for_the_papers_protocol():
    """The paper tests its networks for sigma 5 to 50 with sigma 5 to 50, not with 25."""
    several = Experiment(low=5.0, high=50.0)
    assert "| 32.47 |" in report.table([result(experiment=several)])
    row = report.table([result(experiment=several, tested=Experiment())]).splitlines()[-1]
    assert row.startswith("| gauss5_50-blindspot-sigma_known | kodak | sigma 25 |") and row.endswith("| - |")
    for trained in (Experiment(low=None, high=None), Experiment(network="compact"), Experiment(channels=1)):
        assert report.table([result(experiment=trained, tested=Experiment())]).endswith("| - |")


def test_the_papers_figure_for_cbm3d_follows_the_noise():
    for low, high, channels, row in ((25, 25, 3, 31.82), (5, 50, 3, 31.99), (17, 17, 3, None), (25, 25, 1, None)):
        tested = Experiment(low=low, high=high, channels=channels)
        line = report.table([result(name="cbm3d", tested=tested) | {"experiment": None}]).splitlines()[-1]
        assert line.endswith(f"| {row} |" if row else "| - |")


def test_results_from_before_the_tested_levels_were_stored_are_still_read():
    old = result()
    del old["tested"]
    assert "| sigma 25 |" in report.table([old]) and "| 32.45 |" in report.table([old])


def test_a_result_keeps_what_was_trained_apart_from_what_is_tested(tmp_path):
    write_picture(tmp_path / "set" / "a.png")
    trained = Experiment(low=5.0, high=50.0)
    found = run(tmp_path / "set", tmp_path, tested=Experiment(low=10.0, high=10.0), experiment=trained)
    assert found["experiment"] == trained.to_dict()
    assert found["tested"] == {"noise": "gaussian", "low": 10.0, "high": 10.0, "channels": 3}
    assert [row["level"] for row in found["rows"]] == [10.0]


def test_only_models_that_estimate_the_level_have_an_estimated_level(tmp_path):
    write_picture(tmp_path / "set" / "a.png")

    def denoise(case):
        return Prediction(case.noisy, noise_parameter=20 / 255)

    for source, expected in (("known", None), ("global", 20.0), ("per_image", 20.0)):
        found = run(tmp_path / "set", tmp_path, denoise=denoise, experiment=Experiment(parameter_source=source))
        assert found.get("estimated_level") == (expected and pytest.approx(expected))


def test_a_kind_of_noise_that_is_not_found_is_not_infinite(tmp_path):
    """Gaussian noise alone, found by a model of both kinds, in two of three pictures."""
    for name in "abc":
        write_picture(tmp_path / "set" / f"{name}.png")
    levels = iter([(0.0, 24 / 255), (0.0, 25 / 255), (1 / 50, 20 / 255)])
    experiment = Experiment(noise="additive", parameter_source="fitted", low=(None, 25.0), high=(None, 25.0))
    denoise = lambda case: Prediction(case.noisy, noise_parameter=next(levels))
    found = run(tmp_path / "set", tmp_path, experiment, denoise, experiment)
    assert found["estimated_level"] == [None, pytest.approx(24)]
    assert "the median of the levels found is sigma 24." in report.table([found])


# ---------------------------------------------------------------- pictures of equal name


def test_pictures_of_equal_name_in_subfolders_are_different_pictures(tmp_path):
    for name in ("one/a.png", "two/a.png", "two/a.bmp", "b.png"):
        write_picture(tmp_path / "set" / name)
    noisy = {}

    def denoise(case):
        noisy[len(noisy)] = case.noisy
        return Prediction(case.noisy)

    found = run(tmp_path / "set", tmp_path, denoise=denoise, repeats=2)
    assert [row["image"] for row in found["rows"][::2]] == ["b.png", "one/a.png", "two/a.bmp", "two/a.png"]
    draws = list(noisy.values())
    assert not any(np.array_equal(x, y) for i, x in enumerate(draws) for y in draws[:i])  # the pictures are equal
    strips = sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.png"))
    names = ["one/set-a-test.png", "set-b-test.png", "two/set-a.bmp-test.png", "two/set-a.png-test.png"]
    assert strips == names
    means = np.reshape([row["psnr"] for row in found["rows"]], (4, 2)).mean(axis=1)
    assert found["standard_error_images"] == pytest.approx(means.std(ddof=1) / 2)


def test_the_noise_of_a_picture_in_a_flat_folder_is_keyed_by_its_file_name():
    """So published results stay comparable: one draw, written down."""
    assert protocol.rng(1, "kodak", "kodim01.png", 0).random() == 0.19821404974262824


# ---------------------------------------------------------------- infinite PSNR


def test_an_infinite_psnr_is_left_out_of_the_mean_and_counted():
    rows = [{"image": name, "psnr": psnr, "psnr_noisy": 20.0, "ssim": 1.0} for name, psnr in
            [("a", 30.0), ("b", np.inf), ("c", 34.0)]]  # fmt: skip
    found = report.statistics(rows)
    assert found["psnr"] == 32.0 and found["psnr_noisy"] == 20.0 and found["infinite"] == {"psnr": 1}
    assert found["standard_error_images"] == pytest.approx(2.0)
    assert "the mean psnr leaves out 1 infinite values" in report.table([result(**found)])
    found = report.statistics(rows[1:2])
    assert found["psnr"] is None and found["standard_error_images"] is None
    assert "| - |" in report.table([result(**found)])
    assert np.isnan(report.statistics([rows[0] | {"psnr": np.nan}])["psnr"])  # a broken model does not pass


def test_results_are_strict_json(tmp_path):
    write_picture(tmp_path / "set" / "a.png")
    write_picture(tmp_path / "set" / "b.png", 90)
    found = run(tmp_path / "set", tmp_path, denoise=lambda case: Prediction(case.clean))
    report.write_json(tmp_path / "results.json", {"results": [found], "nan": np.nan})

    def refuse(constant):
        raise AssertionError(constant)

    text = (tmp_path / "results.json").read_text()
    values = json.loads(text, parse_constant=refuse)
    assert [line for line in text.splitlines() if '"image": ' in line] == [
        f"    {json.dumps(row)}{end}" for row, end in zip(values["results"][0]["rows"], [",", ""])
    ]
    assert values["nan"] is None and [row["psnr"] for row in values["results"][0]["rows"]] == [None, None]
    assert values["results"][0]["psnr"] is None and values["results"][0]["infinite"] == {"psnr": 2}


# ---------------------------------------------------------------- sets


def test_sets_that_are_missing_are_refused(tmp_path):
    for name, folder, words in [
        ("nothing", None, "expected one of kodak, bsd300, set14, sample or a folder, received 'nothing'"),
        ("kodak", None, "expected a data_dir with the folder 'kodak' in it for kodak, received none"),
        ("set14", tmp_path, r"expected \*.png in '.*Set14' for set14, received none"),
    ]:
        with pytest.raises(UserError, match=words):
            protocol.image_set(name, folder)


def test_a_folder_is_named_also_where_its_path_is_not(tmp_path, monkeypatch):
    place = support.write_pictures(tmp_path / "mine", 1, 5, 6)
    monkeypatch.chdir(place)
    (tmp_path / "link").symlink_to(place)
    assert [protocol.image_set(path).label for path in (".", "../mine", "../link")] == ["mine", "mine", "link"]


def test_a_picture_that_cannot_be_read_is_told_before_any_work(tmp_path):
    place = support.write_pictures(tmp_path / "mine", 1, 5, 6)
    tifffile.imwrite(place / "z.tif", np.zeros((20, 20), np.float32))  # its header is good
    with pytest.raises(UserError, match="z.tif: expected 8 or 16 bit"):
        protocol.image_set(place)


def test_baselines_are_for_additive_noise_but_for_the_median():
    impulses = Experiment(noise="impulse", low=0.5, high=0.5)
    with pytest.raises(UserError, match="nlm: expected additive noise, received impulse noise"):
        protocol.baseline_method("nlm", impulses)
    case = protocol.corrupt(
        np.full((40, 40, 3), 0.5, np.float32), impulses, noise_model(impulses), np.random.default_rng(0)
    )
    found = protocol.baseline_method("median", impulses).denoise(case).denoised
    assert np.abs(found - 0.5).max() < np.abs(case.noisy - 0.5).max()


@pytest.mark.parametrize(
    "noise, parameter, variance",
    [
        ("gaussian", 0.1, 0.1**2),
        ("poisson", 30.0, 0.4 / 30),
        ("poisson_gaussian", (1 / 50, 0.04), 0.4 / 50 + 0.04**2),
    ],
)
def test_a_baseline_is_told_the_std_of_the_mean_variance(noise, parameter, variance):
    model = noise_model(Experiment(noise=noise))
    clean = np.stack([np.linspace(0.2, 0.6, 256 * 256, dtype=np.float32).reshape(256, 256)] * 3, axis=-1)
    assert protocol.mean_std(model, clean, parameter) == pytest.approx(variance**0.5, rel=1e-6)
    noisy = model.corrupt(clean, parameter, np.random.default_rng(0))
    # 196,608 values: a relative standard error of 0.2 %.
    assert np.std(noisy - clean) == pytest.approx(protocol.mean_std(model, noisy, parameter), rel=0.01)
