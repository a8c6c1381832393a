"""Tiles on a Dask cluster: the files that one process writes, and nothing lost with a worker."""

import dataclasses
import os
import re
import signal
import threading
import time

import numpy as np
import pytest
import test_predictor
import tifffile

from ssdn_tf.commands import cli, denoise
from ssdn_tf.denoisers.experiments import Experiment
from ssdn_tf.errors import UserError
from ssdn_tf.inference import checkpoints, precision
from ssdn_tf.inference import cluster as cluster_module
from ssdn_tf.inference.cluster import ClusterDenoiser
from ssdn_tf.inference.file_denoiser import FileDenoiser
from ssdn_tf.inference.pictures import PictureDenoiser

distributed = pytest.importorskip("distributed")
TRAINED = Experiment(low=5.0, high=50.0, network="tiny")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return test_predictor.write_run(tmp_path_factory.mktemp("runs") / "run", test_predictor.built(TRAINED), TRAINED)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Small pictures, a stack, a picture of several tiles, a Zarr, and a damaged file."""
    path, rng = tmp_path_factory.mktemp("in"), np.random.default_rng(0)
    for i in range(4):
        tifffile.imwrite(path / f"{i}.tif", rng.integers(0, 65536, (40, 50), np.uint16))
    tifffile.imwrite(path / "stack.tif", rng.integers(0, 65536, (3, 24, 24), np.uint16), photometric="minisblack")
    tifffile.imwrite(path / "large.tif", rng.integers(0, 65536, (120, 200), np.uint16))
    zarr = pytest.importorskip("zarr")
    zarr.create_array(str(path / "x.zarr"), shape=(125, 130), dtype="u2", chunks=(64, 64))[:] = rng.integers(
        0, 65536, (125, 130), np.uint16
    )
    (path / "bad.tif").write_bytes((path / "0.tif").read_bytes()[:300])
    return path


def call(*arguments):
    return cli.execute(denoise.main, denoise.define, "TEXT", ["x.py", *map(str, arguments)])


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_the_files_are_those_of_one_process(eager, run_dir, folder, tmp_path, capsys):
    flags = [f"--model={run_dir}", f"--input={folder}", "--tile=120", "--uncertainty"]
    assert call(*flags, f"--output={tmp_path / 'one'}") == 1  # for the damaged one
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        flags.append(f"--cluster={cluster.scheduler_address}")
        capsys.readouterr()
        assert call(*flags, f"--output={tmp_path / 'cluster'}") == 1
    assert "bad.tif" in capsys.readouterr().err
    one, found = contents(tmp_path / "one"), contents(tmp_path / "cluster")
    assert found == one and len([name for name in one if name.endswith("-std.tif")]) == 7


def test_a_cluster_that_is_not_there_is_a_sentence(capsys, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_module, "_TIMEOUT", "1s")
    with distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=None) as cluster:
        with pytest.raises(UserError, match="expected workers at 'inproc.*', received none"):
            ClusterDenoiser(cluster.scheduler_address)
    assert call(f"--input={folder / '0.tif'}", f"--output={tmp_path / 'x.tif'}", "--cluster=tcp://127.0.0.1:1") == 1
    assert "--cluster: expected a Dask scheduler at 'tcp://127.0.0.1:1'" in capsys.readouterr().err
    assert call(f"--input={folder / '0.tif'}", f"--output={tmp_path / 'x.tif'}", "--cluster=here") == 1
    assert "--cluster: expected an address such as tcp://HOST:8786, received 'here'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_nothing(tmp_path):
    """Two processes on loopback, one of them killed in the middle."""
    experiment = dataclasses.replace(TRAINED, network="compact", width=2)  # the workers do not know the smallest one
    run_dir = test_predictor.write_run(tmp_path / "run", test_predictor.built(experiment), experiment)
    picture = np.random.default_rng(0).integers(0, 65536, (500, 900), np.uint16)
    tifffile.imwrite(tmp_path / "in.tif", picture)
    flags = [f"--model={run_dir}", f"--input={tmp_path / 'in.tif'}", "--tile=240"]
    assert call(*flags, f"--output={tmp_path / 'one.tif'}") == 0
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        victim = next(iter(cluster.workers.values())).process.process.pid
        target = tmp_path / "cluster.tif"

        def kill():
            log = tmp_path / ".cluster.tif.partial" / "done.jsonl"
            while not log.exists() or log.read_text().count("\n") < 5:
                time.sleep(0.01)
            os.kill(victim, signal.SIGKILL)
            killed.append(True)

        killed = []
        threading.Thread(target=kill, daemon=True).start()
        assert call(*flags, f"--output={target}", f"--cluster={cluster.scheduler_address}") == 0
    assert killed and np.array_equal(tifffile.imread(target), tifffile.imread(tmp_path / "one.tif"))


def test_what_a_worker_raises_is_a_sentence(eager, run_dir, folder, tmp_path, capsys, monkeypatch):
    def missing(*_):
        raise ModuleNotFoundError("No module named 'ssdn_tf'")

    monkeypatch.setattr(cluster_module, "_worker", missing)
    with distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster:
        flags = [f"--model={run_dir}", f"--input={folder / '0.tif'}", f"--cluster={cluster.scheduler_address}"]
        assert call(*flags, f"--output={tmp_path / 'x.tif'}") == 1
    error = capsys.readouterr().err
    sentence = "0.tif: a worker of the cluster cannot denoise (No module named 'ssdn_tf'); all need this package."
    assert "error: " in error and sentence in error


def test_a_worker_without_the_model_is_no_fault_of_the_picture(eager, run_dir, folder, tmp_path, capsys, monkeypatch):
    def missing(*_):
        raise UserError("expected the folder of a run, received 'x', which does not exist.")

    with distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster:
        flags = [f"--model={run_dir}", f"--input={folder}", f"--output={tmp_path / 'out'}"]
        monkeypatch.setattr(cluster_module, "_worker", missing)
        assert call(*flags, f"--cluster={cluster.scheduler_address}") == 1
    error = capsys.readouterr().err
    for name in ("0.tif", "large.tif"):  # each is named
        assert re.search(f"left out .*{name}: a worker of the cluster cannot denoise .*the same command goes on", error)


def test_workers_compute_in_the_precision_that_was_asked_for(run_dir, monkeypatch):
    """A worker outlives the command, so the next one may ask for another."""
    monkeypatch.setattr(precision, "_cpu_flags", lambda: frozenset({"amx_bf16"}))
    monkeypatch.setattr(precision, "_used", "auto")
    part = np.random.default_rng(0).integers(0, 65536, (32, 40, 3), np.uint16)
    one, other, again = (
        cluster_module._denoise_part(part, str(run_dir), 1, (0, 65535), 0.1, asked)[0]
        for asked in ("float32", "bfloat16", "float32")
    )
    assert np.array_equal(one, again) and 1e-5 < np.abs(one - other).max() / 65535 < 0.03


def test_what_was_done_before_a_worker_failed_stays_done(eager, run_dir, folder, tmp_path, capsys, monkeypatch):
    """A worker that fails, or a scheduler that is lost, is no fault of the picture."""
    flags, target = [f"--model={run_dir}", f"--input={folder / 'large.tif'}", "--tile=120"], tmp_path / "x.tif"
    assert call(*flags, f"--output={tmp_path / 'one.tif'}") == 0
    worker, asked = cluster_module._worker, []

    def failing(*arguments):
        asked.append(arguments)
        if len(asked) == 2:
            raise OSError("lost")
        return worker(*arguments)

    monkeypatch.setattr(cluster_module, "_worker", failing)
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        flags += [f"--output={target}", f"--cluster={cluster.scheduler_address}"]
        assert call(*flags) == 1
        assert "a worker of the cluster cannot denoise (lost); the same command goes on." in capsys.readouterr().err
        assert not target.exists() and (tmp_path / ".x.tif.partial").is_dir()
        first = len(asked)
        assert call(*flags) == 0
    assert target.read_bytes() == (tmp_path / "one.tif").read_bytes()
    tiles = PictureDenoiser(run_dir).predictor(1).tiles_of(np.zeros((120, 200, 3)), 120)
    assert len(asked) - first == len(tiles) - 1


def test_a_worker_gets_the_absolute_path_of_a_model(eager, run_dir, monkeypatch):
    worker, asked = cluster_module._worker, []
    monkeypatch.setattr(cluster_module, "_worker", lambda *args: asked.append(args[0]) or worker(*args))
    monkeypatch.chdir(run_dir.parent)
    with distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster:
        ClusterDenoiser(cluster.scheduler_address, run_dir.name).plane(np.zeros((16, 16, 3)), (0, 1))
    assert asked == [str(run_dir)]


def test_a_worker_sees_that_a_run_has_gone_on(eager, tmp_path):
    plane = np.random.default_rng(0).random((16, 16, 3))
    with distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster:
        found = []
        for seed in (0, 0, 1):
            path = tmp_path / "run" / "checkpoint.npz"
            if not path.exists():
                test_predictor.write_run(path.parent, test_predictor.built(TRAINED), TRAINED)
            elif seed:
                model = test_predictor.built(TRAINED)
                for variable in model.variables:
                    variable.assign(1.1 * variable)
                checkpoints.save(path, checkpoints.named_variables(model), {"step": 8})
            many = ClusterDenoiser(cluster.scheduler_address, path.parent)
            found.append(many.plane(plane, (0, 1), {"sigma": 25})[0])
            expected = PictureDenoiser(path.parent).plane(plane, (0, 1), {"sigma": 25})[0]
            np.testing.assert_allclose(found[-1], expected, atol=1e-6)
    assert np.array_equal(found[0], found[1]) and not np.allclose(found[0], found[2], atol=1e-3)


def test_a_stop_does_not_wait_for_whole_pictures(eager, run_dir, tmp_path, monkeypatch):
    """Of 40 tiles or so, those of a second, and those that are on their way."""
    rng, denoised = np.random.default_rng(0), []
    for i in range(2):
        tifffile.imwrite(tmp_path / f"{i}.tif", rng.integers(0, 65536, (100, 1600), np.uint16))
    of_cluster = cluster_module._worker

    def slow(*arguments):
        time.sleep(0.2)
        denoised.append(time.monotonic())
        return of_cluster(*arguments)

    monkeypatch.setattr(cluster_module, "_worker", slow)
    with distributed.LocalCluster(n_workers=2, processes=False, dashboard_address=None) as cluster:
        worker = ClusterDenoiser(cluster.scheduler_address, run_dir, tile=120)
        pairs = [(tmp_path / f"{i}.tif", tmp_path / "out" / f"{i}.tif") for i in range(2)]
        results = FileDenoiser(worker, (0, 65535)).all(pairs, {})
        timer = threading.Timer(1.0, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
        # A process that a shell has started in the background ignores Ctrl-C.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            next(results)
        signal.signal(signal.SIGINT, before)
        results.close()
        tiles = worker.predictor(1).tiles_of(np.zeros((100, 1600, 3)), 120)
        assert len(tiles) >= 18 and len(denoised) < 1.5 * len(tiles) and not list((tmp_path / "out").glob("*.tif"))


def test_the_tiles_of_a_picture_have_one_level_also_where_the_model_estimates_it(eager, tmp_path):
    experiment = dataclasses.replace(TRAINED, parameter_source="per_image")
    run = test_predictor.write_run(tmp_path / "run", test_predictor.built(experiment), experiment)
    plane = np.random.default_rng(0).normal(0.5, np.linspace(0.01, 0.3, 150)[:, None, None], (150, 150, 3))
    with distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster:
        many = ClusterDenoiser(cluster.scheduler_address, run, tile=120)
        found = list(many.tiles(plane, (0, 1)))
        expected = list(PictureDenoiser(run, tile=120).tiles(plane, (0, 1)))
        alone = list(PictureDenoiser(run, tile=None).tiles(found[0][1].cut(plane), (0, 1)))
    assert len(found) > 1 and len({str(noise) for *_, noise in found}) == 1
    assert alone[0][-1] != found[0][-1]  # a tile alone would have another
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one[2], other[2], atol=1e-6)
