"""Samples are a function of (seed, index); what is in them, and what is left out."""

import concurrent.futures
import dataclasses
import itertools

import numpy as np
import pytest
import scipy.stats
import support
from PIL import Image

from ssdn_tf.data import batches, images
from ssdn_tf.data import samples as data
from ssdn_tf.denoisers import models
from ssdn_tf.denoisers.experiments import PUBLISHED, Experiment
from ssdn_tf.errors import UserError

CROP = 32
KINDS = [
    Experiment("gaussian", 5, 50),
    Experiment("poisson", 5, 50, parameter_source="per_image", channels=1),
    Experiment("impulse", 0, 1),
    Experiment("gaussian", 5, 50, pipeline="n2n", parameter_source=None),
    Experiment("poisson", 30, 30, pipeline="n2c", parameter_source=None),
    Experiment("impulse", 0, 1, pipeline="mean", parameter_source=None),
]
each_kind = pytest.mark.parametrize("experiment", KINDS, ids=lambda experiment: experiment.name)


def photograph(height=48, width=64, channels=3, seed=0, dtype=np.uint8):
    most = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, most, (height, width, channels), dtype, endpoint=True)


def coded(height, width):
    """uint16 [H, W, 1] whose values say where they stand."""
    return np.arange(height * width, dtype=np.uint16).reshape(height, width, 1)


def flat(value=128, side=CROP):
    return np.full((side, side, 3), value, np.uint8)


def samples(experiment, store=None, seed=1, crop=CROP, **options):
    store = [photograph(seed=i, channels=c) for i, c in enumerate((3, 1, 3))] if store is None else store
    noise = models.noise_model(experiment)
    return data.Samples(store, experiment, noise, crop=crop, seed=seed, **options)


def assert_same(one, other):
    assert set(one) == set(other)
    for key in one:
        assert one[key].dtype == other[key].dtype == np.float32
        np.testing.assert_array_equal(one[key], other[key])


# ---------------------------------------------------------------- a function of (seed, index)


@each_kind
def test_samples_are_the_same_in_any_order(experiment):
    ours = samples(experiment)
    forwards = [ours[i] for i in range(12)]
    for i in np.random.permutation(12):
        assert_same(ours[int(i)], forwards[i])
        assert_same(samples(experiment)[int(i)], forwards[i])


@each_kind
def test_samples_are_the_same_under_threads(experiment):
    ours = samples(experiment)
    indices = [int(i) for i in np.random.permutation(200) % 40]
    expected = [ours[i] for i in range(40)]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for i, sample in zip(indices, pool.map(ours.__getitem__, indices)):
            assert_same(sample, expected[i])


@each_kind
def test_another_index_or_another_seed_gives_another_sample(experiment):
    noisy = [samples(experiment, seed=seed)[i]["noisy"] for seed in range(4) for i in range(4)]
    assert len({image.tobytes() for image in noisy}) == 16


def test_seed_and_index_are_not_interchangeable():
    assert np.any(samples(KINDS[0], seed=3)[5]["noisy"] != samples(KINDS[0], seed=5)[3]["noisy"])


def test_indices_beyond_any_training_work():
    ours = samples(KINDS[0])
    assert np.any(ours[2**40]["noisy"] != ours[2**40 + 1]["noisy"])


@each_kind
def test_a_batch_is_its_samples_stacked(experiment):
    ours = samples(experiment)
    batch = ours.batch(np.int64(8), 4)
    for i in range(4):
        assert_same({key: value[i] for key, value in batch.items()}, ours[8 + i])


@pytest.mark.parametrize("carrier", ["tf.data", "PyDataset"])
def test_the_carriers_change_nothing(carrier):
    experiment = KINDS[0]
    ours = samples(experiment)
    if carrier == "tf.data":
        carried = [{k: v.numpy() for k, v in b.items()} for b in batches.batches(ours, 4, 12, 6)]
    else:
        dataset = batches._Batches(ours, 4, 12, 6)
        carried = [dataset[i] for i in range(len(dataset))]
    assert len(carried) == 6
    for step, batch in zip(range(3, 9), carried):
        assert_same(batch, ours.batch(4 * step, 4))


# ---------------------------------------------------------------- what is in a sample


@pytest.mark.parametrize("name", PUBLISHED)
def test_samples_are_what_the_training_model_takes(name):
    experiment = PUBLISHED[name]
    exponent = (lambda index: 1.5) if models.anneals(experiment) else None
    batch = samples(experiment, exponent=exponent).batch(0, 2)
    inputs = models.build(support.tiny(experiment)).training.input
    assert set(batch) == set(inputs)
    for key, symbol in inputs.items():
        assert batch[key].dtype == symbol.dtype
        assert all(a in (None, b) for a, b in zip(symbol.shape, batch[key].shape, strict=True))


@pytest.mark.parametrize("name", [n for n, e in PUBLISHED.items() if e.pipeline != "n2c"])
def test_the_clean_image_is_in_no_sample_without_a_clean_target(name):
    """No array of a batch holds it, in whole or (of Gaussian noise, which spares no pixel) in any pixel."""
    experiment = PUBLISHED[name]
    ours = samples(experiment, exponent=(lambda index: 1.5) if models.anneals(experiment) else None)
    for index in range(4):
        (clean,) = [v for k, v in clean_twin(ours, index).items() if k == "target"]
        for key, value in ours[index].items():
            if value.shape == clean.shape:
                differing = np.any(value != clean, axis=-1)
                assert differing.any(), key
                if experiment.noise == "gaussian":
                    assert differing.mean() > 0.999, key


def clean_twin(ours, index):
    """The sample of the same index, whose target is clean: crop and noise are drawn alike."""
    experiment = dataclasses.replace(ours.experiment, pipeline="n2c", parameter_source=None)
    twin = data.Samples(ours.store, experiment, ours.noise, crop=ours.crop, seed=ours.seed)[index]
    np.testing.assert_array_equal(twin["noisy"], ours[index]["noisy"])
    return twin


def test_the_target_of_n2c_is_the_clean_crop():
    ours = samples(Experiment(pipeline="n2c", parameter_source=None), store=[coded(64, 80)])
    for index in range(8):
        is_crop_of(ours[index]["target"][..., :1], coded(64, 80))


def test_the_target_of_mean_is_the_noisy_image_itself():
    ours = samples(Experiment(pipeline="mean", parameter_source=None))
    for index in range(4):
        np.testing.assert_array_equal(ours[index]["target"], ours[index]["noisy"])


def test_the_exponent_is_that_of_the_index():
    ours = samples(KINDS[-1], exponent=lambda index: 2.0 - index / 8)
    assert ours.batch(2, 3)["exponent"].ravel().tolist() == [1.75, 1.625, 1.5]
    assert ours[0]["exponent"].shape == (1, 1, 1)


@pytest.mark.parametrize("experiment", [e for e in KINDS if e.pipeline == "blindspot"], ids=lambda e: e.name)
def test_the_noise_parameter_is_that_of_the_noise(experiment):
    """From a flat gray picture: the noise alone, reproduced with the parameter that is told."""
    ours = samples(experiment, store=[flat()])
    gray = 128 / 255
    for index in range(40):
        sample = ours[index]
        parameter, noise = float(sample["noise_parameter"].item()), sample["noisy"].astype(np.float64) - gray
        if experiment.noise == "impulse":
            replaced = np.any(sample["noisy"] != np.float32(128) / np.float32(255), axis=-1)
            support.z_test(replaced.ravel(), parameter)
        else:
            variance = parameter**2 if experiment.noise == "gaussian" else gray / parameter
            support.z_test(noise.ravel() ** 2, variance)


# ---------------------------------------------------------------- Noise2Noise


def noise_of_pairs(count, experiment):
    """(noise of the input, noise of the target) over a flat picture, [count, pixels]."""
    ours = samples(experiment, store=[flat()])
    pairs = [ours[i] for i in range(count)]
    stacked = [np.stack([pair[key].ravel() for pair in pairs]) for key in ("noisy", "target")]
    return [images.astype(np.float64) - 128 / 255 for images in stacked]


def test_the_second_noisy_image_has_its_own_noise():
    """400 samples of 3072 values: a correlation of 0.005 is seen."""
    noisy, target = noise_of_pairs(400, Experiment(pipeline="n2n", parameter_source=None))
    support.z_test((noisy * target).ravel() * 100, 0.0)
    assert np.all(noisy != target, axis=1).mean() > 0.9


def test_the_second_noisy_image_has_its_own_level():
    """The levels, measured to 1.3 % by the spread of each image, are uncorrelated (500 pairs: 0.22 is
    seen; one level for both would be 1), and both uniform."""
    noisy, target = noise_of_pairs(500, KINDS[3])
    levels = [255 * part.std(axis=1) for part in (noisy, target)]
    normed = [(level - level.mean()) / level.std() for level in levels]
    support.z_test(normed[0] * normed[1], 0.0)
    for level in levels:
        assert scipy.stats.kstest(level, "uniform", args=(5, 45)).pvalue > 1e-6
    assert np.corrcoef(levels[0], levels[0])[0, 1] > 0.99


# ---------------------------------------------------------------- levels


def levels(experiment, count=2000):
    ours = samples(experiment, store=[flat(side=4)], crop=4)
    return np.array([ours[i]["noise_parameter"].item() for i in range(count)], np.float64)


@pytest.mark.parametrize("noise, low, high", [("gaussian", 5, 50), ("poisson", 5, 50), ("impulse", 0, 1)])
def test_levels_are_uniform_per_image(noise, low, high):
    """Kolmogorov-Smirnov on 2000 levels, refused at p < 1e-6: a distribution function that is off by
    0.06 anywhere is seen. Uniform in the logarithm (off by 0.28) or the variance (off by 0.25) is."""
    drawn = levels(Experiment(noise, low, high)) * (255 if noise == "gaussian" else 1)
    uniform = (low, high - low)
    assert scipy.stats.kstest(drawn, "uniform", args=uniform).pvalue > 1e-6
    assert len(set(drawn)) > 1990
    # The control.
    quantiles = (np.arange(2000) + 0.5) / 2000
    least = max(low, 0.01)
    in_logarithm = least * (high / least) ** quantiles
    in_square = np.sqrt(low**2 + quantiles * (high**2 - low**2))
    for wrong in (in_logarithm, in_square):
        assert scipy.stats.kstest(wrong, "uniform", args=uniform).pvalue < 1e-6


FIXED = [("gaussian", 25, 25 / 255), ("poisson", 30, 30), ("impulse", 0.5, 0.5)]


@pytest.mark.parametrize("noise, level, parameter", FIXED)
def test_a_fixed_level_is_the_same_for_every_image(noise, level, parameter):
    assert set(levels(Experiment(noise, level, level), 20)) == {float(np.float32(parameter))}


# ---------------------------------------------------------------- crops


def is_crop_of(image, picture):
    """Asserts that float [h, w, 1] is a crop of a coded picture; returns (top, left)."""
    codes = np.round(image[..., 0].astype(np.float64) * 65535).astype(int)
    top, left = divmod(codes[0, 0], picture.shape[1])
    height, width = codes.shape
    np.testing.assert_array_equal(codes, picture[top : top + height, left : left + width, 0])
    return top, left


def test_crops_come_from_the_image():
    """Every place is possible, with one probability each: chi-squared over all 7 x 11 of them."""
    picture = coded(14, 18)
    ours = samples(Experiment(channels=1), store=[picture], crop=8, noisy_already=True)
    counts = np.zeros((7, 11))
    for index in range(3000):
        counts[is_crop_of(ours[index]["noisy"], picture)] += 1
    assert counts.min() > 0
    assert scipy.stats.chisquare(counts.ravel()).pvalue > 1e-6


def test_a_picture_of_the_size_of_the_crop_is_taken_whole():
    ours = samples(Experiment(channels=1), store=[coded(8, 8)], crop=8, noisy_already=True)
    assert is_crop_of(ours[0]["noisy"], coded(8, 8)) == (0, 0)


def test_every_picture_is_drawn_equally_often():
    """Whatever its size."""
    store = [np.full((side, side, 1), value, np.uint8) for value, side in enumerate((8, 9, 40, 8))]
    ours = samples(Experiment(channels=1), store=store, crop=8, noisy_already=True)
    drawn = [round(float(ours[i]["noisy"].flat[0]) * 255) for i in range(2000)]
    assert scipy.stats.chisquare(np.bincount(drawn, minlength=4)).pvalue > 1e-6


def test_augmented_crops_take_all_eight_orientations():
    """The picture of the size of the crop comes back in each of the eight, about equally often."""
    picture = photograph(16, 16)
    plain = data.Samples([picture], Experiment(), None, crop=16, seed=0, noisy_already=True)
    samples = data.Samples([picture], Experiment(), None, crop=16, seed=0, noisy_already=True, augment=True)
    expected = [images.flip(plain[0]["noisy"], number) for number in range(8)]
    counts = [0] * 8
    for index in range(400):
        (which,) = [n for n in range(8) if np.array_equal(samples[index]["noisy"], expected[n])]
        counts[which] += 1
    # 50 expected each; the standard deviation is 6.6.
    assert min(counts) > 17 and max(counts) < 83


def test_shuffled_colours_come_in_all_six_orders():
    """The crop comes back with its channels in each order, about equally often; a gray one stays."""
    picture, gray = photograph(16, 16), photograph(16, 16)[..., :1]
    plain, shuffled, of_gray = (
        data.Samples([pixels], Experiment(), None, crop=16, seed=0, noisy_already=True, shuffle_colours=shuffle)
        for pixels, shuffle in ((picture, False), (picture, True), (gray, True))
    )
    orders = list(itertools.permutations(range(3)))
    counts = dict.fromkeys(orders, 0)
    for index in range(300):
        found = shuffled[index]["noisy"]
        (which,) = [order for order in orders if np.array_equal(found, plain[index]["noisy"][..., order])]
        counts[which] += 1
    # 50 expected each; the standard deviation is 6.5.
    assert min(counts.values()) > 17 and max(counts.values()) < 83
    assert np.ptp(of_gray[0]["noisy"], axis=-1).max() == 0


def test_large_crops_come_from_large_pictures(tmp_path):
    for name, side in (("a", 40), ("b", 80), ("c", 70), ("d", 63)):
        save(tmp_path / f"{name}.png", photograph(side, 90))
    store = data.ImageStore(sorted(tmp_path.glob("*.png")), 32)
    assert max(store.sides()) == 80
    assert [picture.shape[0] for picture in store.at_least(64)] == [80, 70]


def test_mono_is_the_rounded_channel_mean():
    colour = np.broadcast_to(np.uint8([200, 100, 50]), (8, 8, 3))
    noisy = samples(Experiment(channels=1), store=[colour], crop=8, noisy_already=True)[0]["noisy"]
    assert noisy.shape == (8, 8, 1)
    np.testing.assert_array_equal(noisy, np.float32(117) / np.float32(255))  # luma would be 124


def test_gray_in_colour_is_three_equal_channels():
    noisy = samples(Experiment(), store=[photograph(channels=1)], noisy_already=True)[0]["noisy"]
    assert noisy.shape == (CROP, CROP, 3)
    np.testing.assert_array_equal(noisy, noisy[..., :1].repeat(3, axis=-1))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_intensities_are_in_the_unit_interval(dtype):
    picture = photograph(8, 8, dtype=dtype)
    clean = samples(Experiment(), store=[picture], crop=8, noisy_already=True)[0]["noisy"]
    np.testing.assert_array_equal(clean, picture.astype(np.float32) / np.float32(np.iinfo(dtype).max))


@each_kind
def test_noisy_already_adds_nothing(experiment):
    store = [photograph(channels=experiment.channels)]
    clean = samples(dataclasses.replace(experiment, pipeline="n2c"), store)
    for index in range(4):
        noisy = samples(experiment, store, noisy_already=True)[index]["noisy"]
        np.testing.assert_array_equal(noisy, clean[index]["target"])


# ---------------------------------------------------------------- files


def save(path, pixels):
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    """Two good pictures, three broken files, two that are too small."""
    save(tmp_path / "a.png", photograph(40, 50, seed=1))
    save(tmp_path / "b.png", photograph(33, 32, channels=1, seed=2))
    save(tmp_path / "small1.png", photograph(31, 50))
    save(tmp_path / "small2.png", photograph(50, 31))
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no picture\n")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    return tmp_path


def all_files(folder):
    return sorted(folder.iterdir())


@pytest.mark.parametrize("memory_mb", [2048, 0])
def test_broken_and_small_files_are_named_and_left_out(folder, capsys, memory_mb):
    store = data.ImageStore(all_files(folder), CROP, memory_mb)
    assert [file.name for file in store.files] == ["a.png", "b.png"]
    assert len(store) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("warning: ") for line in lines)
    (broken,) = [line for line in lines if "no readable picture" in line]
    (small,) = [line for line in lines if "smaller than the crop of 32x32" in line]
    assert all(name in broken for name in ("cut.png", "empty.png", "text.jpg")) and "small" not in broken
    assert all(name in small for name in ("small1.png", "small2.png")) and "cut" not in small
    for name in ("a.png", "b.png"):
        assert not any(name in line for line in lines)


def test_good_files_cause_no_warning(folder, capsys):
    data.ImageStore([folder / "a.png", folder / "b.png"], CROP)
    assert capsys.readouterr().err == ""


def test_it_is_an_error_when_no_picture_is_left(folder):
    bad = [file for file in all_files(folder) if file.name not in ("a.png", "b.png")]
    with pytest.raises(UserError, match="32x32.*received none.*cut.png"):
        data.ImageStore(bad, CROP)
    with pytest.raises(UserError):
        data.ImageStore([], CROP)
    with pytest.raises(UserError):
        data.ImageStore(all_files(folder), 64)


@pytest.mark.parametrize("memory_mb", [2048, 1, 0])
def test_the_memory_budget_changes_no_sample(tmp_path, memory_mb):
    """1 MiB holds some of the pictures."""
    files = [save(tmp_path / f"{i}.png", photograph(300, 500, seed=i)) for i in range(5)]
    store = data.ImageStore(files, CROP, memory_mb)
    kept = len(store._decoded)
    assert kept == 5 if memory_mb == 2048 else kept == 0 if memory_mb == 0 else 0 < kept < 5
    ours, expected = samples(KINDS[0], store), samples(KINDS[0], data.ImageStore(files, CROP))
    for index in range(12):
        assert_same(ours[index], expected[index])
    for number, file in enumerate(files):
        np.testing.assert_array_equal(store[number], np.asarray(Image.open(file)))


def damage(path):
    """Takes bytes out of the middle of a file, and leaves its beginning and its end."""
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 3] + whole[-100:])


@pytest.mark.parametrize("memory_mb", [2048, 0])
@pytest.mark.parametrize("suffix", ["png", "bmp"])
def test_a_picture_damaged_in_the_middle_gives_its_place_to_the_next(tmp_path, capsys, memory_mb, suffix):
    """The same samples whatever is kept in memory, and whoever draws first."""
    files = [save(tmp_path / f"{i}.{suffix}", photograph(40, 50, seed=i)) for i in range(4)]
    pictures = [data.images.read(file) for file in files]
    expected = samples(KINDS[0], [pictures[i] for i in (1, 1, 2, 1)])
    damage(files[0])
    damage(files[3])
    store = data.ImageStore(files, CROP, memory_mb)
    assert len(store) == 4
    ours = samples(KINDS[0], store)
    for index in np.random.permutation(24):
        assert_same(ours[int(index)], expected[int(index)])
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.startswith("warning: another picture takes the place of") for line in lines)
    assert [picture.shape for picture in store.at_least(40)] == [(40, 50, 3)] * 4
    damage(files[1])
    damage(files[2])
    with pytest.raises(UserError, match="expected pictures"):
        data.ImageStore(files, CROP, 0)[0]


@pytest.mark.parametrize("memory_mb, decoded", [(0, 0), (2048, 4)])
def test_a_start_decodes_no_more_than_the_memory_holds(tmp_path, monkeypatch, memory_mb, decoded):
    files = [save(tmp_path / f"{i}.{suffix}", photograph()) for i, suffix in enumerate(("png", "jpg", "tif", "bmp"))]
    read, names = data.images.read, []
    monkeypatch.setattr(data.images, "read", lambda file: (names.append(file), read(file))[1])
    store = data.ImageStore(files, CROP, memory_mb)
    assert len(store) == 4 and len(names) == decoded


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_what_stands_behind_a_picture_does_not_make_it_a_broken_one(tmp_path, suffix):
    file = save(tmp_path / f"a.{suffix}", photograph())
    with file.open("ab") as stream:
        stream.write(b"a camera's own notes")
    assert len(data.ImageStore([file], CROP, 0)) == 1


def test_left_out_files_do_not_shift_the_others(folder):
    """Samples depend on the list of good pictures, not on what stood between them."""
    with_bad = samples(KINDS[0], data.ImageStore(all_files(folder), CROP))
    without = samples(KINDS[0], data.ImageStore([folder / "a.png", folder / "b.png"], CROP))
    for index in range(8):
        assert_same(with_bad[index], without[index])


def test_the_sample_photographs_are_there_and_the_held_out_are_others():
    train, held_out = data.sample_photographs()
    assert len(train) == 12 and len(held_out) == 2
    assert not {file.name for file in train} & {file.name for file in held_out}
    assert all(file.is_file() for file in (*train, *held_out))


@pytest.mark.parametrize("count, held", [(1, 0), (9, 0), (10, 1), (25, 2), (80, 8), (1000, 8)])
def test_holding_out_takes_a_tenth_and_at_most_eight(count, held):
    files = [f"{i:04d}" for i in range(count)]
    training_files, held_out = data.hold_out(files)
    assert len(held_out) == held
    assert sorted([*training_files, *held_out]) == files
    assert training_files == sorted(training_files)
