"""A run end to end at width 2: the same weights whether or not it was interrupted, and nothing lost."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ssdn_tf import checkpoints, images, runs, training
from ssdn_tf.errors import UserError
from ssdn_tf.experiments import Experiment

STEPS = 6


@pytest.fixture(scope="module", autouse=True)
def eager():
    """Without compilation, which would take most of the time here (test_compiled_... has it)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_COMPILE", {"run_eagerly": True})
        yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(4):
        smooth = np.kron(rng.integers(0, 256, (6, 7, 3)), np.ones((8, 8, 1)))
        Image.fromarray(smooth.astype(np.uint8)).save(folder / f"{i}.png")
    return str(folder)


def options(pictures, **changes):
    values = {"train_images": 2 * STEPS, "batch_size": 2, "crop": 32, "learning_rate": 1e-3, "width": 2}
    return runs.Options(Experiment(), train_data=pictures, **values | changes)


def weights(run):
    return {name: np.asarray(v) for name, v in run.variables.items()}


@pytest.fixture(scope="module")
def uninterrupted(pictures, tmp_path_factory):
    run = training.Run(options(pictures), tmp_path_factory.mktemp("run") / "a", report_images=4)
    before = weights(run)
    assert run.fit()
    return before, weights(run), run


def interrupt_after(run, steps):
    """SIGINT arrives while step number `steps` of the next `fit` runs."""
    batch = run.samples.batch

    def batch_with_signal(start, size):
        if start // size == steps:
            os.kill(os.getpid(), signal.SIGINT)
        return batch(start, size)

    run.samples.batch = batch_with_signal


def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(pictures, tmp_path, uninterrupted):
    before, expected, _ = uninterrupted
    moved = [np.abs(expected[k] - before[k]).max() for k in before if k.endswith("kernel")]
    assert min(moved) > 1e-4  # else equality would say nothing
    run = training.Run(options(pictures), tmp_path / "b", report_images=4)
    interrupt_after(run, 3)
    assert not run.fit()
    assert 0 < run.step < STEPS
    again = training.Run(options(pictures), tmp_path / "b", report_images=4)
    assert again.step == run.step
    assert again.fit()
    result = weights(again)
    assert all(np.array_equal(result[name], expected[name]) for name in expected)


def test_a_compiled_run_equals_an_uncompiled_one_up_to_rounding(pictures, tmp_path, uninterrupted, monkeypatch):
    monkeypatch.setattr(training, "_COMPILE", {"jit_compile": True})
    _, expected, _ = uninterrupted
    run = training.Run(options(pictures), tmp_path / "jit", report_images=4)
    assert run.fit()
    # Adam divides by the size of the gradient: rounding grows where that is near zero.
    name = next(k for k in expected if k.endswith("enc_conv1/kernel"))
    assert np.abs(weights(run)[name] - expected[name]).max() < 1e-4


STAGES = {"crop": 32, "final_crop": 64, "final_images": 5}


@pytest.fixture(scope="module")
def large_pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (70, 80, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return str(folder)


def test_a_run_in_two_crop_sizes_resumes_to_the_bit(large_pictures, tmp_path):
    """12 images in batches of 2, the last 5 large: as a batch has one size, those are the last 2 batches."""
    whole = training.Run(options(large_pictures, **STAGES), tmp_path / "a", report_images=100)
    assert whole.fit()
    lines = [json.loads(line)["images"] for line in (tmp_path / "a/history.jsonl").read_text().splitlines()]
    assert lines == [8, 12]
    run = training.Run(options(large_pictures, **STAGES), tmp_path / "b", report_images=100)
    interrupt_after(run, 4)
    assert not run.fit() and 4 <= run.step < 6
    again = training.Run(options(large_pictures, **STAGES), tmp_path / "b", report_images=100)
    assert again.fit()
    expected, result = weights(whole), weights(again)
    assert all(np.array_equal(result[name], expected[name]) for name in expected)
    small = training.Run(options(large_pictures), tmp_path / "c", report_images=100)
    assert small.fit()  # control: the large crops make a difference
    assert any(not np.array_equal(weights(small)[name], expected[name]) for name in expected)


def test_the_final_crop_is_cut_to_the_pictures(large_pictures, tmp_path, capsys):
    run = training.Run(options(large_pictures, **STAGES | {"final_crop": 256}), tmp_path / "a")
    assert run.options.final_crop == 64
    assert capsys.readouterr().err == "warning: the last crops are of 64x64, as no picture holds 256x256.\n"
    assert run.samples.batch(10, 2)["noisy"].shape[1] == 64


def test_pixels_are_counted_through_both_stages():
    two = runs.Options(Experiment(), train_images=12, batch_size=2, **STAGES)
    assert (two.steps, two.final_step) == (6, 4)
    assert [two.pixels(step) for step in (0, 4, 6)] == [0, 8 * 32**2, 8 * 32**2 + 4 * 64**2]


def test_another_seed_gives_other_weights(pictures, tmp_path, uninterrupted):
    run = training.Run(options(pictures, seed=1), tmp_path / "c")
    run.fit()
    name = next(k for k in run.variables if k.endswith("enc_conv1/kernel"))
    assert np.abs(weights(run)[name] - uninterrupted[1][name]).max() > 1e-2


def test_the_history_has_one_line_a_report_and_none_of_what_was_lost(uninterrupted):
    run = uninterrupted[2]
    lines = [json.loads(line) for line in (run.run_dir / "history.jsonl").read_text().splitlines()]
    assert [line["images"] for line in lines] == [4, 8, 12]
    assert all(np.isfinite(line["loss"]) and line["skipped"] == 0 for line in lines)
    from ssdn_tf.progress import History

    History(run.run_dir, images_seen=8)
    assert len((run.run_dir / "history.jsonl").read_text().splitlines()) == 2


def test_tensorboard_finds_an_event_file(uninterrupted):
    assert list(uninterrupted[2].run_dir.glob("events.out.tfevents.*"))


def test_a_finished_run_has_nothing_left_to_train(pictures, uninterrupted):
    before, expected, run = uninterrupted
    again = training.Run(options(pictures), run.run_dir)
    assert again.fit()
    assert all(np.array_equal(weights(again)[name], expected[name]) for name in expected)


def test_inference_loads_the_weights_of_the_run(uninterrupted):
    _, expected, run = uninterrupted
    loaded, model, position = training.load_inference(run.run_dir)
    assert loaded == run.options and position["step"] == STEPS
    for variable in model.variables:
        assert np.array_equal(np.asarray(variable), expected[variable.path])


def test_other_options_do_not_touch_a_run(pictures, uninterrupted):
    run = uninterrupted[2]
    before = (run.run_dir / "checkpoint.npz").read_bytes()
    with pytest.raises(UserError, match="expected learning_rate=0.001, received learning_rate=0.002"):
        training.Run(options(pictures, learning_rate=2e-3), run.run_dir)
    assert (run.run_dir / "checkpoint.npz").read_bytes() == before


def test_a_folder_with_other_files_is_no_run(pictures, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="holds other files"):
        training.Run(options(pictures), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_steps_without_a_finite_gradient_end_the_run_with_advice(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_TOO_MANY_SKIPS", 2)
    run = training.Run(options(pictures), tmp_path / "d", report_images=4)
    before = weights(run)
    batch = run.samples.batch
    run.samples.batch = lambda start, size: {k: v * np.float32(np.nan) for k, v in batch(start, size).items()}
    with pytest.raises(UserError, match="2 steps in a row without.*--learning_rate"):
        run.fit()
    after = weights(run)
    kernels = [k for k in before if k.endswith("kernel")]
    assert all(np.array_equal(before[k], after[k]) for k in kernels)
    assert json.loads((tmp_path / "d" / "history.jsonl").read_text())["loss"] is None


def test_a_full_disk_at_a_checkpoint_keeps_the_one_before(uninterrupted, tmp_path):
    """The limit on file sizes stands in for the disk: a real error of the system, half-way through the file."""
    _, _, run = uninterrupted
    path = tmp_path / "checkpoint.npz"
    run.checkpoint = path
    run.save()
    before = path.read_bytes()
    code = f"""
import resource, numpy as np
from ssdn_tf import checkpoints
from ssdn_tf.errors import UserError
resource.setrlimit(resource.RLIMIT_FSIZE, ({len(before) // 2}, {len(before) // 2}))
try:
    checkpoints.save({str(path)!r}, {{"a": np.zeros({len(before)})}}, {{}})
except UserError as error:
    print("one sentence:", error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "one sentence:" in done.stdout and "checkpoint.npz" in done.stdout
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.npz"]
    checkpoints.load(path, run.variables)


def test_a_warm_start_begins_with_the_weights_of_another_run(pictures, tmp_path, uninterrupted):
    _, expected, source = uninterrupted
    run = training.Run(options(pictures, warm_start=str(source.run_dir)), tmp_path / "e")
    assert run.step == 0
    assert all(np.array_equal(np.asarray(v), expected[v.path]) for v in run.denoiser.inference.variables)


def test_validation_reports_mu_x_and_the_posterior_mean(pictures, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(20):
        Image.fromarray(np.full((40, 50, 3), 10 * i, np.uint8)).save(folder / f"{i:02d}.png")
    run = training.Run(options(str(folder), validation="held_out", train_images=2), tmp_path / "f")
    assert len(run.validation.cases) == 2 and len(run.samples.store) == 18
    run.fit()
    row = json.loads((tmp_path / "f" / "history.jsonl").read_text())
    assert 0 < row["psnr_mu_x"] < 60 and 0 < row["psnr"] < 60


@pytest.mark.parametrize("level, start", [(25.0, "estimate"), (25.0, "50"), (25.0, "12.5")])
def test_a_learned_level_starts_where_it_is_told_to(pictures, tmp_path, level, start):
    experiment = Experiment(low=level, high=level, parameter_source="global")
    opts = dataclasses.replace(options(pictures), experiment=experiment, start=start, rate=10.0)
    run = training.Run(opts, tmp_path / "g")
    told = level if start == "estimate" else float(start)
    # The estimate is a median over 64 crops of blocks: a few per cent.
    assert run.learned_level() == pytest.approx(told, rel=0.1 if start == "estimate" else 1e-5)


def test_the_newest_run_is_the_one_with_the_newest_checkpoint(tmp_path):
    with pytest.raises(UserError, match="train first"):
        runs.newest_run(tmp_path)
    for i, name in enumerate(("00001-b", "00000-a")):
        images.write_whole(tmp_path / name / "checkpoint.npz", lambda file: file.write(b"x"))
        os.utime(tmp_path / name / "checkpoint.npz", (i, i))
    assert runs.newest_run(tmp_path).name == "00000-a"
    assert runs.new_run_dir(tmp_path, "c").name == "00002-c"


@pytest.mark.slow
@pytest.mark.parametrize("start", ["12.5", "50"])
def test_a_global_sigma_is_recovered_from_a_start_wrong_by_two(tmp_path, start, monkeypatch):
    """On flat pictures, where nothing but noise is unpredictable; a small network and a few minutes."""
    monkeypatch.setattr(training, "_COMPILE", {"jit_compile": True})
    folder = tmp_path / "flat"
    folder.mkdir()
    for i in range(16):
        Image.fromarray(np.full((64, 64, 3), 60 + 8 * i, np.uint8)).save(folder / f"{i}.png")
    opts = runs.Options(
        Experiment(parameter_source="global"), train_data=str(folder), train_images=2400, batch_size=4, crop=32,
        learning_rate=1e-3, start=start, rate=10.0, width=8,
    )  # fmt: skip
    run = training.Run(opts, tmp_path / "run")
    run.fit()
    assert run.learned_level() == pytest.approx(25.0, rel=0.05)
