"""Which module may know which: imports point downwards, and the halves meet only in `denoisers`."""

import ast
import pathlib
import subprocess
import sys

import pytest

import ssdn_tf

FOLDER = pathlib.Path(ssdn_tf.__file__).parent

# From the bottom up: a module imports only from rows above its own in this list. A new module takes a
# place here.
ROWS = [
    "errors linalg blindspot experiments schedules optimizers watch supervisor",
    "images prior networks baselines inert",
    "metrics noise checkpoints datasets tiling protocol cli tasks feeds",
    "remote distribution",
    "parameters data runs report",
    "losses",
    "denoisers",
    "evaluation official",
    "progress",
    "training",
    "serving train_flags",
    "commands",
]
RANK = {name: rank for rank, row in enumerate(ROWS) for name in row.split()}

NETWORK_HALF = {"blindspot", "networks"}
NOISE_HALF = {"linalg", "prior", "noise"}
MODEL_SIDE = [
    *("linalg", "prior", "noise", "blindspot", "networks", "parameters"),
    *("losses", "denoisers", "schedules", "optimizers"),
]
NUMPY_ONLY = ["errors", "experiments", "images", "metrics"]


def sources():
    """{module: source text} of the package."""
    return {file.stem: file.read_text() for file in FOLDER.glob("*.py") if file.stem != "__init__"}


def statements(text, at_import):
    """Import statements; `at_import`: only those that run when the module is imported."""
    pending, found = [ast.parse(text)], []
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            found.append(node)
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if not (function and at_import):
            pending.extend(ast.iter_child_nodes(node))
    return found


def imported(text, at_import=False):
    """Dotted names of what is imported: `from a import b` gives a.b, and a relative import ssdn_tf.b."""
    names = set()
    for node in statements(text, at_import):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        else:
            parts = [*(["ssdn_tf"] if node.level else []), *([node.module] if node.module else [])]
            names.update(".".join([*parts, alias.name]) for alias in node.names)
    return names


def siblings(text, at_import=False):
    """The modules of this package that a source imports."""
    inside = [name.split(".") for name in imported(text, at_import)]
    return {parts[1] for parts in inside if parts[0] == "ssdn_tf" and len(parts) > 1} - {"__version__"}


def packages(text, at_import=False):
    """The top-level packages that a source imports."""
    return {name.split(".")[0] for name in imported(text, at_import)}


def reachable(module, graph):
    """All modules that a module needs, itself included."""
    found, pending = set(), [module]
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending.extend(graph[name])
    return found


def graph(at_import=False):
    return {name: siblings(text, at_import) for name, text in sources().items()}


def upward(graph):
    """Imports that do not point to a lower row."""
    return [(name, other) for name in graph for other in graph[name] if RANK[other] >= RANK[name]]


def test_every_module_has_a_place():
    assert set(sources()) <= set(RANK), "a new module: give it a row in ROWS"


def test_imports_point_downwards():
    """Imports inside functions too; so there is no cycle."""
    assert upward(graph()) == []


def test_an_import_upwards_is_seen():
    assert upward(graph() | {"noise": {"prior", "denoisers"}}) == [("noise", "denoisers")]
    assert upward(graph() | {"prior": {"images"}}) == [("prior", "images")]


@pytest.mark.parametrize("module", sorted(NOISE_HALF))
def test_noise_models_know_neither_networks_nor_files(module):
    assert reachable(module, graph()) <= NOISE_HALF


@pytest.mark.parametrize("module", sorted(NETWORK_HALF))
def test_networks_know_neither_noise_nor_files(module):
    assert reachable(module, graph()) <= NETWORK_HALF


def test_the_registry_of_experiments_imports_nothing_of_the_package():
    assert graph()["experiments"] == set()


@pytest.mark.parametrize("module", MODEL_SIDE)
def test_the_model_side_imports_no_backend(module):
    """So that the same model trains on each of them; nor does anything that it needs."""
    texts = sources()
    for name in reachable(module, graph(at_import=True)):
        assert not packages(texts[name], at_import=True) & {"tensorflow", "jax", "torch"}, name


def test_no_module_imports_tensorflow_before_it_is_used():
    for name, text in sources().items():
        assert not packages(text, at_import=True) & {"tensorflow", "jax", "tensorflow_datasets"}, name


def test_every_import_is_one_that_the_project_declares():
    """Hidden dependencies would show only on another machine."""
    declared = {
        *("absl", "keras", "numpy", "PIL", "skimage", "tensorboard", "tensorflow", "tensorflow_datasets"),
        *("imagecodecs", "importlib_resources", "jax", "bm3d", "ssdn_tf"),
        *("google", "grpc"),  # protobuf; the client's extra
    }
    for name, text in sources().items():
        assert packages(text) - sys.stdlib_module_names <= declared, name


def loaded_by(module):
    """Top-level packages that a fresh interpreter has loaded after the import."""
    program = f"import sys, ssdn_tf.{module}; print(*sys.modules)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("module", NUMPY_ONLY)
def test_importing_a_numpy_only_module_loads_neither_keras_nor_tensorflow(module):
    assert not loaded_by(module) & {"keras", "tensorflow", "jax", "torch"}


def test_the_check_of_loaded_modules_can_fail():
    assert "keras" in loaded_by("linalg")


# ---------------------------------------------------------------- the reading of the sources, itself


SOURCE = """
import os.path
import jax.numpy as jnp
from ssdn_tf import noise, prior as p
from ssdn_tf.images import read
from . import data
if True:
    import torch
def f():
    import tensorflow as tf
    from ssdn_tf import datasets
class C:
    import keras
    def g(self):
        from ssdn_tf.training import build
"""


def test_imports_are_read_in_every_form():
    assert siblings(SOURCE) == {"noise", "prior", "images", "data", "datasets", "training"}
    assert siblings(SOURCE, at_import=True) == {"noise", "prior", "images", "data"}
    assert packages(SOURCE) == {"os", "jax", "ssdn_tf", "torch", "tensorflow", "keras"}
    assert packages(SOURCE, at_import=True) == {"os", "jax", "ssdn_tf", "torch", "keras"}
