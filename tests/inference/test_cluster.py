"""Tiles on a Dask cluster: the files that one process writes, and nothing lost with a worker."""

import dataclasses
import os
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
from ssdn_tf.inference import cluster as cluster_module
from ssdn_tf.inference.cluster import ClusterDenoiser
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
    assert "error: a worker of the cluster cannot denoise (No module named 'ssdn_tf'); all need this package" in error


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
