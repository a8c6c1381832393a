"""Exported models and servers for the tests of this folder."""

import fcntl
import os

import pytest
from serving_double import BINARY, ModelServer, ProtocolDouble, load
from serving_support import MODELS, build, random_pixels

from ssdn_tf.data import images
from ssdn_tf.serving import remote, saved_model


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """{model: folder of its versions}; of several test processes, the first one makes them for all."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    made = {name: root / "served" / name for name in MODELS}
    with (root / "served.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name, experiment in MODELS.items():
            if not (made[name] / "1").exists():
                saved_model.export(build(experiment), experiment, saved_model.model_card(experiment), made[name])
    return made


@pytest.fixture(scope="session")
def servables(folders):
    return {name: load(folder) for name, folder in folders.items()}


@pytest.fixture
def double(servables):
    """A server of its own for each test, with knobs."""
    with ProtocolDouble(servables) as double:
        yield double


@pytest.fixture(scope="module", params=["double", *(["tensorflow_model_server"] if BINARY else [])])
def server(request, folders, servables, tmp_path_factory):
    """{"rest": address, "grpc": address} of a server that a test leaves as it is."""
    if request.param == "double":
        with ProtocolDouble(servables) as double:
            yield double.urls
    else:
        with ModelServer(folders, tmp_path_factory.mktemp("server")) as urls:
            yield urls


@pytest.fixture
def one(tmp_path):
    """Flags for one small picture; nothing is written yet."""
    images.write(tmp_path / "in.png", random_pixels(8, 8))
    return [f"--input={tmp_path / 'in.png'}", f"--output={tmp_path / 'out.png'}", "--sigma=25"]


@pytest.fixture
def short_pauses(monkeypatch):
    """Between attempts."""
    monkeypatch.setattr(remote, "_FIRST_PAUSE", 0.01)
