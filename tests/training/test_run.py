"""A run end to end with a small network: the same weights whether or not it was interrupted, and nothing lost."""

import dataclasses
import errno
import json
import math
import os
import pathlib
import shlex
import shutil
import signal
import sys
import time
import types
from unittest import mock

import numpy as np
import pytest
import support
import tensorflow as tf
from PIL import Image

from ssdn_tf.commands import cli, train, train_flags
from ssdn_tf.data.samples import ImageStore, Samples
from ssdn_tf.denoisers.experiments import Experiment
from ssdn_tf.errors import UserError
from ssdn_tf.inference import predictor
from ssdn_tf.networks import layers
from ssdn_tf.training import build, callbacks, folder
from ssdn_tf.training import run as training
from ssdn_tf.training.options import Options, Stage, parse_stages
from ssdn_tf.training.reports import History, Validation

STEPS = 6


@pytest.fixture(scope="module", autouse=True)
def eager():
    """Without graphs, whose tracing would take most of the time here (test_a_compiled_... has them)."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return str(support.write_pictures(tmp_path_factory.mktemp("pictures"), 4, 6, 7))


def options(pictures, **changes):
    values = {"stages": (Stage(32, 2, 1.0, 2 * STEPS),), "learning_rate": 1e-3, "average": 0.9}
    return Options(Experiment(network="tiny"), train_data=pictures, **values | changes)


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
    count = callbacks.Counter.on_train_batch_end

    def count_and_interrupt(counter, batch, logs=None):
        count(counter, batch, logs)
        if run.step == steps:
            os.kill(os.getpid(), signal.SIGINT)

    return mock.patch.object(callbacks.Counter, "on_train_batch_end", count_and_interrupt)


def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(pictures, tmp_path, uninterrupted):
    before, expected, _ = uninterrupted
    moved = [np.abs(expected[k] - before[k]).max() for k in before if k.endswith("kernel")]
    assert min(moved) > 1e-4  # else equality would say nothing
    run = training.Run(options(pictures), tmp_path / "b", report_images=4)
    with interrupt_after(run, 3):
        assert not run.fit()
    assert run.step == 3 and run.stopped_by_signal
    again = training.Run(options(pictures), tmp_path / "b", report_images=4)
    assert again.step == run.step
    assert again.fit()
    result = weights(again)
    assert all(np.array_equal(result[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_a_compiled_run_equals_an_uncompiled_one_up_to_rounding(pictures, tmp_path, uninterrupted):
    tf.config.run_functions_eagerly(False)
    _, expected, _ = uninterrupted
    run = training.Run(options(pictures), tmp_path / "jit", report_images=4, jit="on")
    assert run.fit() and all(model.jit_compile for model in run.trainings.values())
    tf.config.run_functions_eagerly(True)
    # Adam divides by the size of the gradient: rounding grows where that is near zero.
    name = next(k for k in expected if k.endswith("enc_conv1/kernel"))
    assert np.abs(weights(run)[name] - expected[name]).max() < 1e-4


def history(run):
    return [json.loads(line) for line in (run.run_dir / "history.jsonl").read_text().splitlines()]


def checkpointed_steps(run, monkeypatch):
    """The steps at which a run writes checkpoints, in a list that grows."""
    steps, save = [], run.save
    monkeypatch.setattr(run, "save", lambda **settings: (steps.append(run.step), save(**settings)))
    return steps


def test_checkpoints_are_written_between_reports_and_no_row_is_lost_or_doubled(
    pictures, tmp_path, uninterrupted, monkeypatch
):
    """One report in 6 steps; the process "dies" after 4 of them, 2 steps after its second checkpoint."""
    run = training.Run(options(pictures), tmp_path / "b", report_images=12)
    steps = checkpointed_steps(run, monkeypatch)
    step_end = callbacks.Checkpoint.on_train_batch_end

    class Death(Exception):
        pass

    def dies_after_four(checkpoint, batch, logs=None):
        checkpoint._due = 0.0 if batch < 2 else math.inf
        step_end(checkpoint, batch, logs)
        if batch == 3:
            raise Death

    with monkeypatch.context() as patch, pytest.raises(Death):
        patch.setattr(callbacks.Checkpoint, "on_train_batch_end", dies_after_four)
        run.fit()
    assert steps == [1, 2] and not run.history.path.exists()
    again = training.Run(options(pictures), tmp_path / "b", report_images=12)
    assert again.step == 2 and again.position.steps == 2
    assert again.fit()
    assert all(np.array_equal(weights(again)[name], uninterrupted[1][name]) for name in uninterrupted[1])
    (row,) = history(again)
    assert row["images"] == 12 and again.position.steps == 0
    # The mean of both parts, and not that of the second: as of three reports of two steps each.
    expected = [line["loss"] for line in history(uninterrupted[2])]
    assert row["loss"] == pytest.approx(np.mean(expected), rel=1e-5)
    assert row["loss"] != pytest.approx(np.mean(expected[1:]), rel=1e-5)


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
    with pytest.raises(UserError, match=f"already being trained by process {os.getpid()} on"):
        training.Run(options(pictures), run.run_dir, report_images=4)
    assert {path.name: path.read_bytes() for path in run.run_dir.iterdir()} == before
    assert predictor.from_run(run.run_dir).source.details["position"]["step"] == 0
    assert run.fit()  # which frees it
    training.Run(options(pictures), run.run_dir, report_images=4).lock.close()


def command(*arguments):
    """Exit code of train.py."""
    return cli.execute(train.main, train_flags.define, "TEXT", ["train.py", *arguments], True)


def test_the_command_ends_in_time_says_how_to_go_on_and_is_refused_meanwhile(pictures, tmp_path, capsys, monkeypatch):
    path = tmp_path / "a b"
    flags = [f"--train_data={pictures}", "--train_images=4", "--stages=32x2", "--network=tiny"]
    monkeypatch.setattr(sys, "argv", ["train.py", *flags, "--max_minutes=0", "--run_dir", str(path)])
    assert command(*sys.argv[1:]) == 0
    shown = " ".join([*flags, "--max_minutes=0", f"'--run_dir={path}'"])
    assert f"Saved after 2 crops. To continue: python train.py {shown}\n" in capsys.readouterr().out
    before = {path.name: path.read_bytes() for path in path.iterdir()}
    with folder.claim(path, folder.read_options(path))[0]:
        assert command(*sys.argv[1:]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: The run") and "already being trained" in error and error.count("\n") == 1
    assert {path.name: path.read_bytes() for path in path.iterdir()} == before
    assert command(*flags, f"--run_dir={path}", "--checkpoint_minutes=0") == 0
    next_command = shlex.join(["python", "evaluate.py", f"--model={path}"])  # the path has a space
    assert f"Done. Next: {next_command}\n" in capsys.readouterr().out


def test_a_value_that_is_called_as_a_flag_stays_in_the_command(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--runs", "run_dir", "--run_dir", "old", "--seed", "3"])
    assert train._same_command("new") == "python train.py --runs run_dir --seed 3 --run_dir=new"


def test_other_images_than_before_are_a_warning(pictures, tmp_path, capsys):
    data = shutil.copytree(pictures, tmp_path / "in")
    flags = [f"--train_data={data}", f"--run_dir={tmp_path / 'run'}", "--network=tiny", "--validation=none"]
    flags += ["--train_images=8", "--stages=32x2"]
    assert command(*flags, "--max_minutes=0") == 0 and command(*flags, "--max_minutes=0") == 0
    assert "warning" not in capsys.readouterr().err
    first = min(data.glob("*.png"))
    shutil.copy(first, first.with_name("another.png"))
    assert command(*flags) == 0
    assert "the images are not those that" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--max_minutes=-1", "--checkpoint_minutes=-1", "--max_minutes=soon", "--jit=maybe"])
def test_impossible_times_and_compilers_are_refused(flag, capsys):
    assert command(flag) == 1
    assert flag.split("=")[0][2:] in capsys.readouterr().err


@pytest.mark.parametrize(
    "jit, trained_in, expected",
    [
        ("auto", "float32", True), ("auto", "bfloat16", False), ("auto", None, False),
        ("on", "float32", True), ("on", "bfloat16", True), ("on", None, True),
        ("off", "float32", False), ("off", "bfloat16", False), ("off", None, False),
    ],
)  # fmt: skip
def test_xla_compiles_where_it_is_faster_or_wanted(monkeypatch, jit, trained_in, expected):
    """Times: benchmarks/step.py."""
    monkeypatch.setattr(build.precision, "_device", lambda: "cpu")
    assert build.jit_compile(jit, trained_in) == expected


def test_xla_compiles_a_training_in_bfloat16_on_a_gpu(monkeypatch):
    monkeypatch.setattr(build.precision, "_device", lambda: "gpu")
    assert build.jit_compile("auto", "bfloat16")


def test_jax_always_compiles(monkeypatch):
    monkeypatch.setattr(build.keras.backend, "backend", lambda: "jax")
    assert build.jit_compile("auto") and build.jit_compile("on", "float32") and build.jit_compile("auto", "bfloat16")
    with pytest.raises(UserError, match="JAX always compiles.*received 'off'"):
        build.jit_compile("off", "float32")


STAGES = {"stages": (Stage(32, 2, 0.6, 8), Stage(64, 1, 0.4, 3))}


@pytest.fixture(scope="module")
def large_pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    for i in range(2):
        pixels = np.random.default_rng(i).integers(0, 256, (70, 80, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return str(folder)


def test_each_stage_is_compiled_for_its_own_crops(large_pictures, tmp_path, monkeypatch):
    """One compiled model for both would be for batches of any shape, which is slower."""
    tf.config.run_functions_eagerly(False)
    seen, all_rotations = [], layers.all_rotations

    def watched(x, trunk, together):
        seen.append((*x.shape, together))
        return all_rotations(x, trunk, together)

    monkeypatch.setattr(layers, "all_rotations", watched)
    assert training.Run(options(large_pictures, validation="none", **STAGES), tmp_path / "a", jit="off").fit()
    tf.config.run_functions_eagerly(True)
    assert seen == [(2, 32, 32, 3, True), (1, 64, 64, 3, True)]


IN_TWO_STAGES = STAGES | {"optimizer": "muon", "augment": True}


@pytest.fixture(scope="module")
def two_stages(large_pictures, tmp_path_factory):
    """A run of 4 steps of 2 small crops and 3 of one large crop, not interrupted."""
    folder = tmp_path_factory.mktemp("two") / "a"
    whole = training.Run(options(large_pictures, **IN_TWO_STAGES), folder, report_images=6)
    assert whole.fit()
    return whole


@pytest.mark.parametrize("stop", [2, 4, 5])
def test_a_run_in_two_stages_resumes_to_the_bit(large_pictures, tmp_path, two_stages, stop):
    """Interrupted in the first stage, between both, in the second."""
    run = training.Run(options(large_pictures, **IN_TWO_STAGES), tmp_path / "b", report_images=6)
    with interrupt_after(run, stop):
        assert not run.fit() and run.step == stop
    again = training.Run(options(large_pictures, **IN_TWO_STAGES), tmp_path / "b", report_images=6)
    assert again.fit()
    expected, result = weights(two_stages), weights(again)
    assert any(name.startswith("average/") for name in expected)
    assert all(np.array_equal(result[name], expected[name]) for name in expected)
    for row, wanted in zip(history(again), history(two_stages), strict=True):
        assert row["images"] == wanted["images"] and row["loss"] == pytest.approx(wanted["loss"], rel=1e-5)


def test_the_second_stage_makes_a_difference(large_pictures, tmp_path, two_stages):
    """Control of the test above: the large crops."""
    assert [line["images"] for line in history(two_stages)] == [6, 8, 11]
    one_stage = IN_TWO_STAGES | {"stages": (Stage(32, 2, 1.0, 14),)}
    small = training.Run(options(large_pictures, **one_stage), tmp_path / "c")
    assert small.fit()
    expected = weights(two_stages)
    assert any(not np.array_equal(weights(small)[name], expected[name]) for name in expected)


def test_crops_are_those_that_most_images_hold(capsys):
    """16 of 20 images hold 96x96, none 128x128: the last stage has crops of 96x96, from those 16."""
    stages = (Stage(64, 1, 0.5, 10), Stage(128, 1, 0.5, 10))
    fitted = build.fit_crops(Options(Experiment(), stages=stages), [64] * 4 + [100] * 16)
    assert [stage.crop for stage in fitted.stages] == [64, 96]
    error = capsys.readouterr().err
    assert "most images are smaller than 128x128; crops are 96x96 instead" in error
    assert "4 of 20 images are smaller than 96x96" in error


def test_stages_are_read_from_text():
    assert parse_stages("64x1") == (Stage(64, 1),)
    assert parse_stages("64x1:0.6, 128x2:.4") == (Stage(64, 1, 0.6), Stage(128, 2, 0.4))
    for text in ("", "64", "64x0", "x1", "64x1:0.5", "64x1,128x1", "64x1:0.6,128x1:0.5", "64x1:-1,64x1:2", "64x1:a"):
        with pytest.raises(ValueError, match="expected"):
            parse_stages(text)


def test_images_are_counted_through_stages():
    two = Options(Experiment(), **STAGES)
    assert (two.steps, two.train_images) == (7, 11)
    assert [two.images_seen(step) for step in (0, 3, 4, 6, 7)] == [0, 6, 8, 10, 11]
    assert [two.place(step) for step in (3, 4)] == [(0, 0, 0), (1, 4, 8)]
    assert [stage.images for stage in two.with_images(1000).stages] == [600, 400]
    # 60 s for steps of 0.1 s on two crops, 40 s for steps of 1 s.
    assert [stage.images for stage in two.with_seconds(100, [0.1, 1.0]).stages] == [1200, 40]


@pytest.mark.parametrize(
    "step, steps, every, expected",
    [(0, 12, 4, [(4, 3)]), (0, 10, 4, [(4, 2), (2, 1)]), (3, 10, 4, [(1, 1), (4, 1), (2, 1)]), (9, 10, 4, [(1, 1)])],
)
def test_intervals_end_at_multiples_and_at_the_end(step, steps, every, expected):
    assert training.intervals(step, steps, every) == expected


def test_a_budget_can_be_planned_for_several_steps_at_once(large_pictures, tmp_path, monkeypatch):
    """With steps that are measured for longer than the least; eager mode has none at once."""
    monkeypatch.setattr(training, "_MEASURED_STEPS", 2)
    tf.config.run_functions_eagerly(False)
    fitted, fit = [], training.Run._fit

    def watched(run, number, first, steps, *rest):
        fitted.append(steps)
        fit(run, number, first, steps, *rest)

    monkeypatch.setattr(training.Run, "_fit", watched)
    run = training.Run(
        options(large_pictures, stages=(Stage(32, 2),), budget=120.0, validation="none"),
        tmp_path / "a",
        jit="off",
        steps_per_execution=3,
    )
    tf.config.run_functions_eagerly(True)
    assert run.options.train_images >= 1 and fitted[:2] == [6, 6]
    assert len(fitted) == 3 and fitted[2] > 6 and fitted[2] % 3 == 0


def test_a_budget_is_planned_once_and_trained_from_the_untouched_start(large_pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "_MEASURED_STEPS", 2)
    unplanned = tuple(dataclasses.replace(stage, images=None) for stage in STAGES["stages"])
    settings = {"stages": unplanned, "budget": 6.0, "optimizer": "muon"}
    run = training.Run(options(large_pictures, **settings), tmp_path / "a")
    images = [stage.images for stage in run.options.stages]
    assert min(images) >= 1 and folder.read_options(run.run_dir) == run.options
    fixed = settings | {"stages": run.options.stages, "budget": None}
    planned = training.Run(options(large_pictures, **fixed), tmp_path / "b")
    before, expected = weights(run), weights(planned)
    assert all(np.array_equal(before[name], expected[name]) for name in expected)
    run.lock.close()
    again = training.Run(options(large_pictures, **settings), tmp_path / "a")
    assert again.options == run.options
    assert again.schedule.stages == [(n, s.batch_size, s.share) for n, s in zip(images, unplanned)]


def test_an_annealed_loss_can_have_a_budget(large_pictures, tmp_path, monkeypatch):
    """Its exponent follows from the number of images, which is not known before the budget is planned."""
    monkeypatch.setattr(training, "_MEASURED_STEPS", 2)
    experiment = Experiment("impulse", 0.5, 0.5, pipeline="n2n", parameter_source=None, network="tiny")
    stages = tuple(dataclasses.replace(stage, images=None) for stage in STAGES["stages"])
    asked = dataclasses.replace(options(large_pictures, stages=stages, budget=6.0), experiment=experiment)
    run = training.Run(asked, tmp_path / "a")
    assert run.options.planned
    samples = [build.stage_samples(run.options, run.store, number) for number in (0, 1)]
    exponents = [float(np.ravel(samples[n].batch(at, 1)["exponent"])[0]) for n, at in ((0, 0), (1, 10**9))]
    assert exponents == [2.0, 0.5]


def test_validation_uses_the_averaged_weights_and_gives_the_others_back(pictures, tmp_path):
    run = training.Run(options(pictures), tmp_path / "a")
    run.fit()
    model = run.denoiser.training
    own = [v.numpy().copy() for v in model.trainable_variables]
    with run.averaged_weights():
        for variable, average in zip(model.trainable_variables, run.optimizer.averages, strict=True):
            assert np.array_equal(variable.numpy(), average.numpy())
    assert any(np.any(a.numpy() != w) for a, w in zip(run.optimizer.averages, own))
    assert all(np.array_equal(v.numpy(), w) for v, w in zip(model.trainable_variables, own))


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


def test_a_full_disk_at_a_report_costs_the_report_alone(tmp_path, capsys):
    history = History(tmp_path, images_seen=0)

    def full(row):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    history.writer, writer = full, history.writer
    history.add({"images": 4, "seconds": 1.0, "loss": math.nan, "noise_level": (1.0, math.inf)})
    assert "a report is not written" in capsys.readouterr().err
    history.writer = writer
    history.add({"images": 8, "seconds": 2.0})
    rows = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert rows[0] == {"images": 4, "seconds": 1.0, "loss": None, "noise_level": [1.0, None]}
    assert rows[1]["images"] == 8


def test_tensorboard_finds_an_event_file(uninterrupted):
    assert list(uninterrupted[2].run_dir.glob("events.out.tfevents.*"))


def test_a_finished_run_has_nothing_left_to_train(pictures, uninterrupted):
    before, expected, run = uninterrupted
    again, stamp = training.Run(options(pictures), run.run_dir), run.checkpoint.stat().st_mtime_ns
    assert again.fit() and run.checkpoint.stat().st_mtime_ns == stamp
    assert all(np.array_equal(weights(again)[name], expected[name]) for name in expected)


def test_inference_loads_the_averaged_weights_of_the_run(uninterrupted):
    _, expected, run = uninterrupted
    loaded = predictor.from_run(run.run_dir)
    assert loaded.experiment.name == run.options.experiment.name
    assert loaded.source.details["position"]["step"] == STEPS
    for variable in loaded.model.variables:
        assert np.array_equal(np.asarray(variable), expected[f"average/{variable.path}"])
        assert not np.array_equal(np.asarray(variable), expected[variable.path])


def test_other_options_do_not_touch_a_run(pictures, uninterrupted):
    run = uninterrupted[2]
    before = (run.run_dir / "checkpoint.npz").read_bytes()
    with pytest.raises(UserError, match="expected learning_rate=0.001, received learning_rate=0.002"):
        training.Run(options(pictures, learning_rate=2e-3), run.run_dir)
    assert (run.run_dir / "checkpoint.npz").read_bytes() == before


def test_a_folder_with_other_files_is_no_run(pictures, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="holds files that are not from a run"):
        training.Run(options(pictures), tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_steps_without_a_finite_gradient_end_the_run_with_advice(pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(callbacks, "_TOO_MANY_SKIPS", 2)
    run = training.Run(options(pictures), tmp_path / "d", report_images=2)
    before = weights(run)
    batch = Samples.batch
    spoiled = lambda self, start, size: {k: v * np.float32(np.nan) for k, v in batch(self, start, size).items()}
    monkeypatch.setattr(Samples, "batch", spoiled)
    with pytest.raises(UserError, match="2 steps in a row.*lower learning rate"):
        run.fit()
    after = weights(run)
    kernels = [k for k in before if k.endswith("kernel")]
    assert all(np.array_equal(before[k], after[k]) for k in kernels)
    assert json.loads((tmp_path / "d" / "history.jsonl").read_text().splitlines()[0])["loss"] is None


def test_a_warm_start_begins_with_the_weights_of_another_run(pictures, tmp_path, uninterrupted):
    _, expected, source = uninterrupted
    run = training.Run(options(pictures, warm_start=str(source.run_dir)), tmp_path / "e")
    assert run.step == 0
    assert all(np.array_equal(np.asarray(v), expected[f"average/{v.path}"]) for v in run.denoiser.inference.variables)


def test_a_warm_start_has_the_level_that_was_learned_or_the_one_that_is_told(pictures, tmp_path):
    experiment = Experiment(parameter_source="global", network="tiny")
    opts = dataclasses.replace(options(pictures), experiment=experiment, start="40", rate=10.0)
    first = training.Run(opts, tmp_path / "first")
    first.save()
    for start, rate, expected in (("estimate", 1.0, 40), ("published", 10.0, 40), ("80", 2.0, 80)):
        again = dataclasses.replace(opts, start=start, rate=rate, warm_start=str(first.run_dir))
        run = training.Run(again, tmp_path / f"{start}-{rate}")
        assert run.learned_level() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("source", ["global", "per_image"])
def test_a_level_that_the_start_was_told_is_learned_anew(pictures, tmp_path, uninterrupted, source):
    _, expected, start = uninterrupted
    assert start.options.experiment.parameter_source == "known"
    opts = options(pictures, warm_start=str(start.run_dir), start="40", rate=10.0)
    opts = dataclasses.replace(opts, experiment=dataclasses.replace(opts.experiment, parameter_source=source))
    run = training.Run(opts, tmp_path / "e")
    network = run.denoiser.inference.get_layer("unet").variables
    assert all(np.array_equal(np.asarray(v), expected[f"average/{v.path}"]) for v in network)
    if source == "global":
        assert run.learned_level() == pytest.approx(40, rel=1e-5)


def test_a_learned_level_of_two_numbers_is_reported(pictures, tmp_path, capsys):
    experiment = Experiment(
        noise="poisson_gaussian", low=(50.0, 10.0), high=(50.0, 10.0), parameter_source="global", network="tiny"
    )
    opts = dataclasses.replace(options(pictures), experiment=experiment, start="published")
    assert training.Run(opts, tmp_path / "h").fit()
    assert "lam" in capsys.readouterr().out.splitlines()[-1]
    row = json.loads((tmp_path / "h" / "history.jsonl").read_text().splitlines()[-1])
    assert len(row["noise_level"]) == 2


def test_a_worker_takes_the_plan_that_the_first_one_has_read():
    """And does not measure again, which the others would not join."""
    answers, planned = iter([1, 600]), []
    worker = types.SimpleNamespace(
        devices=types.SimpleNamespace(all_gather=lambda number: [next(answers), number]),
        options=options("pictures", stages=(Stage(32, 2),), budget=6.0),
        schedule=types.SimpleNamespace(plan=planned.append),
    )
    training.Run._plan(worker)
    assert planned == [[600]] and worker.options.train_images == 600


def test_a_damaged_held_out_image_is_left_out_with_a_warning(pictures, tmp_path, capsys):
    good = next(pathlib.Path(pictures).iterdir())
    (tmp_path / "bad.png").write_bytes(good.read_bytes()[:60])
    assert len(Validation([tmp_path / "bad.png", good], options(pictures)).cases) == 1
    assert "left out" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["per_image", "global", "fitted"])
def test_noisy_images_of_unknown_levels_are_validated(pictures, source):
    experiment = Experiment(low=5.0, high=50.0, network="tiny", parameter_source=source)
    settings = dataclasses.replace(options(pictures), experiment=experiment, noisy_already=True)
    plane = np.random.default_rng(0).random((32, 32, 3), np.float32)
    (case,) = Validation([], settings, [(plane, None)]).noisy
    assert np.array_equal(case[0], plane) and np.isfinite(case[1])


def test_validation_reports_mu_x_and_the_posterior_mean(pictures, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(20):
        Image.fromarray(np.full((40, 50, 3), 10 * i, np.uint8)).save(folder / f"{i:02d}.png")
    run = training.Run(options(str(folder), validation="held_out", stages=(Stage(32, 2, 1.0, 2),)), tmp_path / "f")
    assert len(run.validation.cases) == 2 and len(run.store) == 18
    run.fit()
    row = json.loads((tmp_path / "f" / "history.jsonl").read_text())
    assert 0 < row["psnr_mu_x"] < 60 and 0 < row["psnr"] < 60


@pytest.mark.parametrize("level, start", [(25.0, "estimate"), (25.0, "50"), (25.0, "12.5")])
def test_a_learned_level_starts_where_it_is_told_to(pictures, tmp_path, level, start):
    experiment = Experiment(low=level, high=level, parameter_source="global", network="tiny")
    opts = dataclasses.replace(options(pictures), experiment=experiment, start=start, rate=10.0)
    run = training.Run(opts, tmp_path / "g")
    told = level if start == "estimate" else float(start)
    # The estimate is a median over 64 crops of blocks: a few per cent.
    assert run.learned_level() == pytest.approx(told, rel=0.1 if start == "estimate" else 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["12.5", "50"])
def test_a_global_sigma_is_recovered_from_a_start_wrong_by_two(tmp_path, start, monkeypatch):
    """On flat pictures, where nothing but noise is unpredictable; a small network and a few minutes."""
    tf.config.run_functions_eagerly(False)
    flat = tmp_path / "flat"
    flat.mkdir()
    for i in range(16):
        Image.fromarray(np.full((64, 64, 3), 60 + 8 * i, np.uint8)).save(flat / f"{i}.png")
    opts = Options(
        Experiment(parameter_source="global", width=8), train_data=str(flat), stages=(Stage(32, 4, 1.0, 2400),),
        learning_rate=1e-3, start=start, rate=10.0,
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


def test_only_the_sample_photographs_are_trained_on_with_shuffled_colours(tmp_path):
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    for train_data, augment, expected in (
        ("sample", True, True),
        ("sample", False, False),
        (str(tmp_path), True, False),
    ):
        options = Options(Experiment(), train_data, augment=augment, stages=(Stage(32, 1, 1.0, 10),))
        store = ImageStore(build.training_files(options)[0], 32)
        assert build.stage_samples(options, store, 0).shuffle_colours == expected
