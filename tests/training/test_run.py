"""A run end to end at width 2: the same weights whether or not it was interrupted, and nothing lost."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import support
from PIL import Image

from ssdn_tf.commands import cli, main, train_flags
from ssdn_tf.data import images
from ssdn_tf.denoisers.experiments import Experiment
from ssdn_tf.errors import UserError
from ssdn_tf.inference import checkpoints, predictor
from ssdn_tf.training import folder as runs
from ssdn_tf.training import run as training
from ssdn_tf.training.reports import History

STEPS = 6


@pytest.fixture(scope="module", autouse=True)
def eager():
    """Without compilation, which would take most of the time here (test_a_compiled_... has it)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "_COMPILE", {"run_eagerly": True})
        yield


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return str(support.write_pictures(tmp_path_factory.mktemp("pictures"), 4, 6, 7))


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
    monkeypatch.setattr(training, "_COMPILE", None)
    _, expected, _ = uninterrupted
    run = training.Run(options(pictures), tmp_path / "jit", report_images=4, jit="on")
    assert run.denoiser.training.jit_compile and run.fit()
    # Adam divides by the size of the gradient: rounding grows where that is near zero.
    name = next(k for k in expected if k.endswith("enc_conv1/kernel"))
    assert np.abs(weights(run)[name] - expected[name]).max() < 1e-4


def history(run):
    return [json.loads(line) for line in (run.run_dir / "history.jsonl").read_text().splitlines()]


def checkpointed_steps(run, monkeypatch):
    """The steps at which a run writes checkpoints, in a list that grows."""
    steps, save = [], run.save
    monkeypatch.setattr(run, "save", lambda: (steps.append(run.step), save()))
    return steps


def test_checkpoints_are_written_between_reports_and_no_row_is_lost_or_doubled(
    pictures, tmp_path, uninterrupted, monkeypatch
):
    """One report in 6 steps; the process "dies" after 4 of them, 2 steps after its second checkpoint."""
    whole = training.Run(options(pictures), tmp_path / "whole", report_images=12)
    assert whole.fit()
    run = training.Run(options(pictures), tmp_path / "b", report_images=12)
    steps, step_end = checkpointed_steps(run, monkeypatch), training.Watch.on_train_batch_end

    class Death(Exception):
        pass

    def dies_after_four(watch, batch, logs=None):
        watch._due = 0.0 if batch < 2 else math.inf
        step_end(watch, batch, logs)
        if batch == 3:
            raise Death

    with monkeypatch.context() as patch, pytest.raises(Death):
        patch.setattr(training.Watch, "on_train_batch_end", dies_after_four)
        run.fit()
    assert steps == [1, 2] and not run.history.path.exists()
    again = training.Run(options(pictures), tmp_path / "b", report_images=12)
    assert again.step == 2 and again.unreported["steps"] == 2
    assert again.fit()
    assert all(np.array_equal(weights(again)[name], uninterrupted[1][name]) for name in uninterrupted[1])
    (row,), (expected,) = history(again), history(whole)
    assert row["images"] == expected["images"] == 12 and again.unreported["steps"] == 0
    # The mean of both parts, and not that of the second.
    assert row["loss"] == pytest.approx(expected["loss"], rel=1e-5)


@pytest.mark.parametrize("seconds, expected", [(0, [1, 2, 3, 4, 5, 6, 6]), (math.inf, [6])])
def test_checkpoints_come_after_the_time_given_or_at_the_end(pictures, tmp_path, monkeypatch, seconds, expected):
    run = training.Run(options(pictures), tmp_path / "a", report_images=8)
    steps = checkpointed_steps(run, monkeypatch)
    assert run.fit(checkpoint_seconds=seconds)
    assert steps == expected


def test_a_piece_of_no_time_takes_a_step_and_reports_are_those_of_a_run_in_one_piece(pictures, tmp_path, uninterrupted):
    _, expected, whole = uninterrupted
    for step in (1, 2, 3):
        run = training.Run(options(pictures), tmp_path / "b", report_images=4)
        assert not run.fit(deadline=time.monotonic())
        assert run.step == step and not run.stopped_by_signal
    run = training.Run(options(pictures), tmp_path / "b", report_images=4)
    assert run.fit(deadline=time.monotonic() + 3600)
    assert all(np.array_equal(weights(run)[name], expected[name]) for name in expected)
    for row, wanted in zip(history(run), history(whole), strict=True):
        assert row["images"] == wanted["images"]
        assert row["loss"] == pytest.approx(wanted["loss"], rel=1e-5)


def test_a_run_is_read_but_not_trained_while_it_is_trained(pictures, tmp_path):
    run = training.Run(options(pictures), tmp_path / "a", report_images=4)
    run.save()
    (run.run_dir / "history.jsonl").write_text('{"images": 8, "seconds": 1.0}\n')  # after the checkpoint
    before = {path.name: path.read_bytes() for path in run.run_dir.iterdir()}
    with pytest.raises(UserError, match=f"expected a run that nobody is training.*process {os.getpid()} on"):
        training.Run(options(pictures), run.run_dir, report_images=4)
    assert {path.name: path.read_bytes() for path in run.run_dir.iterdir()} == before
    assert predictor.from_run(run.run_dir).source.details["position"]["step"] == 0
    assert run.fit()  # which frees it
    training.Run(options(pictures), run.run_dir, report_images=4).lock.close()


def command(*arguments):
    """Exit code of train.py."""
    return cli.execute(main.train_main, train_flags.define, "TEXT", ["train.py", *arguments], True)


def test_the_command_ends_in_time_says_how_to_go_on_and_is_refused_meanwhile(pictures, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "a b"
    flags = [f"--train_data={pictures}", "--train_images=4", "--batch_size=2", "--crop=32", "--width=2"]
    monkeypatch.setattr(sys, "argv", ["train.py", *flags, "--max_minutes=0", "--run_dir", str(folder)])
    assert command(*sys.argv[1:]) == 0
    shown = " ".join([*flags, "--max_minutes=0", f"'--run_dir={folder}'"])
    assert f"saved after 2 images. To go on: python train.py {shown}\n" in capsys.readouterr().out
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with runs.claim(folder, runs.read_options(folder)):
        assert command(*sys.argv[1:]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: --run_dir: expected a run that nobody is training") and error.count("\n") == 1
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert command(*flags, f"--run_dir={folder}", "--checkpoint_minutes=0") == 0
    assert f"done: {folder}" in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["--max_minutes=-1", "--checkpoint_minutes=-1", "--max_minutes=soon", "--jit=maybe"])
def test_impossible_times_and_compilers_are_refused(flag, capsys):
    assert command(flag) == 1
    assert flag.split("=")[0][2:] in capsys.readouterr().err


@pytest.mark.parametrize(
    "jit, pixels, expected",
    [
        ("auto", 4 * 64 * 64, True), ("auto", 256 * 256, False), ("auto", None, False),
        ("on", 4 * 256 * 256, True), ("on", None, True), ("off", 32 * 32, False), ("off", None, False),
    ],
)  # fmt: skip
def test_xla_compiles_where_it_is_faster_or_wanted(jit, pixels, expected, monkeypatch):
    """Times: benchmarks/step.py."""
    monkeypatch.setattr(training, "_has_accelerator", lambda: False)
    assert training.jit_compile(jit, pixels) == expected


def test_with_an_accelerator_xla_compiles_every_training(monkeypatch):
    monkeypatch.setattr(training, "_has_accelerator", lambda: True)
    assert training.jit_compile("auto", 4 * 256 * 256)
    assert not training.jit_compile("auto")


def test_jax_always_compiles(monkeypatch):
    monkeypatch.setattr(training.keras.backend, "backend", lambda: "jax")
    assert training.jit_compile("auto") and training.jit_compile("on", 2**20)
    with pytest.raises(UserError, match="--jit: expected auto or on with JAX.*received off"):
        training.jit_compile("off")


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
    lines = history(run)
    assert [line["images"] for line in lines] == [4, 8, 12]
    assert all(np.isfinite(line["loss"]) and line["skipped"] == 0 for line in lines)


def test_of_a_history_only_whole_rows_up_to_the_checkpoint_are_kept(tmp_path):
    path = tmp_path / "history.jsonl"
    rows = [f'{{"images": {images}, "seconds": 1.5}}\n' for images in (4, 8, 12)]
    path.write_text("".join(rows) + '{"images": 4, "lo')  # as a full disk leaves it
    assert History(tmp_path, images_seen=8).seconds == 1.5
    assert path.read_text() == "".join(rows[:2])


def test_tensorboard_finds_an_event_file(uninterrupted):
    assert list(uninterrupted[2].run_dir.glob("events.out.tfevents.*"))


def test_a_finished_run_has_nothing_left_to_train(pictures, uninterrupted):
    before, expected, run = uninterrupted
    again = training.Run(options(pictures), run.run_dir)
    assert again.fit()
    assert all(np.array_equal(weights(again)[name], expected[name]) for name in expected)


def test_inference_loads_the_weights_of_the_run(uninterrupted):
    _, expected, run = uninterrupted
    loaded = predictor.from_run(run.run_dir)
    assert loaded.experiment.name == run.options.experiment.name
    assert loaded.source.details["position"]["step"] == STEPS
    for variable in loaded.model.variables:
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
from ssdn_tf.inference import checkpoints
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
    monkeypatch.setattr(training, "_COMPILE", None)
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


@pytest.mark.parametrize("at_once", [3, 100])
def test_steps_at_once_train_the_same(pictures, tmp_path, uninterrupted, at_once):
    _, expected, whole = uninterrupted
    run = training.Run(options(pictures), tmp_path / "b", report_images=4, steps_per_execution=at_once)
    assert run.fit() and run.step == STEPS
    result = weights(run)
    assert all(np.array_equal(result[name], expected[name]) for name in expected)
    assert [row["images"] for row in history(run)] == [row["images"] for row in history(whole)]
