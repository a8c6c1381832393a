"""Which room may know which: imports run one way, and networks and noise meet only in `denoisers`.

`python tests/test_imports.py` prints the graph.
"""

import ast
import pathlib
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "ssdn_tf"

# What each room may import, besides itself and `ssdn_tf.errors`.
ALLOWED = {
    "noise": set(),
    "networks": set(),
    "data": set(),
    "denoisers": {"noise", "networks"},
    "inference": {"noise", "networks", "denoisers", "data"},
    "evaluation": {"noise", "networks", "denoisers", "data", "inference"},
    "training": {"noise", "networks", "denoisers", "data", "inference", "evaluation"},
    "serving": {"noise", "networks", "denoisers", "data", "inference"},
    "commands": {"noise", "networks", "denoisers", "data", "inference", "evaluation", "training", "serving"},
}
# These run on every backend of Keras: they and what they need import none.
ANY_BACKEND = ("noise", "networks", "denoisers")
WITHOUT_KERAS = [
    *("errors", "noise.levels", "denoisers.experiments", "evaluation.metrics"),
    *("data.images", "data.files", "data.samples"),
    *("inference.tiling", "commands.level_flags"),
    *("serving.remote", "serving.rpc", "serving.remote_denoiser", "serving.picture_files"),
]
DECLARED = {
    *(
        "absl",
        "bm3d",
        "distributed",
        "grpc",
        "google",
        "imagecodecs",
        "importlib_resources",
        "jax",
        "keras",
        "numpy",
        "PIL",
        "pywt",
    ),
    *("scipy", "skimage", "ssdn_tf", "tensorboard", "tensorflow", "tensorflow_datasets", "tifffile", "tqdm", "zarr"),
}


def sources():
    """{dotted module name below the package: source text}."""
    found = {}
    for path in sorted(FOLDER.rglob("*.py")):
        parts = path.relative_to(FOLDER).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return found


def imported(text, at_import=False):
    """Dotted names that a source imports, also by `importlib.import_module("...")`.

    at_import: only what runs when the module is imported, not what stands in functions.
    """
    pending, names = [ast.parse(text)], set()
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = [*(["ssdn_tf"] if node.level else []), *([node.module] if node.module else [])]
            names.update(".".join([*parts, alias.name]) for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            names.update(a.value for a in node.args[:1] if isinstance(a, ast.Constant))
        function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if not (function and at_import):
            pending.extend(ast.iter_child_nodes(node))
    return names


def modules(names, known):
    """The modules of the package among dotted names."""
    found = set()
    for name in names:
        if name.split(".")[0] == "ssdn_tf":
            inside = name.split(".")[1:]
            # "room.module.function" is an import of room.module.
            candidates = [".".join(inside[:i]) for i in range(len(inside), 0, -1)]
            found.update(next(([c] for c in candidates if c in known), []))
    return found


def graph(texts, at_import=False):
    """{module: modules that it imports}."""
    return {name: modules(imported(text, at_import), texts) for name, text in texts.items()}


def room(module):
    return module.split(".")[0]


def wrong_ways(edges):
    """Imports that ALLOWED does not allow."""
    return [
        (name, other)
        for name, others in edges.items()
        for other in others
        if room(name) in ALLOWED and room(other) in ALLOWED
        if room(other) != room(name) and room(other) not in ALLOWED[room(name)]
    ]


def cycle(edges):
    """A list of modules that import each other in a circle, or []."""
    done, path = set(), []

    def walk(name):
        if name in path:
            return path[path.index(name) :]
        if name in done:
            return []
        path.append(name)
        found = next((c for c in map(walk, sorted(edges.get(name, ()))) if c), [])
        path.pop()
        done.add(name)
        return found

    return next((c for c in map(walk, sorted(edges)) if c), [])


def needs(module, edges):
    """All modules that a module needs, itself included."""
    found, pending = set(), [module]
    while pending:
        name = pending.pop()
        if name not in found:
            found.add(name)
            pending.extend(edges[name])
    return found


def outside(text, at_import=False):
    """Top-level packages that a source imports."""
    return {name.split(".")[0] for name in imported(text, at_import)}


def test_every_module_is_in_a_room():
    assert {room(name) for name in sources() if name} - {"errors"} == set(ALLOWED)


def test_imports_between_rooms_run_one_way():
    assert wrong_ways(graph(sources())) == []


def test_there_is_no_cycle():
    assert cycle(graph(sources())) == []


def test_wrong_ways_and_cycles_are_seen():
    edges = graph(sources())
    assert wrong_ways(edges | {"noise.prior": {"networks.layers"}}) == [("noise.prior", "networks.layers")]
    assert wrong_ways(edges | {"data.images": {"training.run"}}) == [("data.images", "training.run")]
    assert cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) == ["a", "b", "c"]


@pytest.mark.parametrize("name", [name for name in sources() if room(name) in ANY_BACKEND])
def test_models_import_no_backend(name):
    """So the same model trains on each of them."""
    texts = sources()
    for needed in needs(name, graph(texts, at_import=True)):
        assert not outside(texts[needed], at_import=True) & {"tensorflow", "jax", "torch"}, needed


def test_no_module_imports_tensorflow_before_it_is_used():
    for name, text in sources().items():
        assert not outside(text, at_import=True) & {"tensorflow", "jax", "tensorflow_datasets"}, name


def test_nothing_draws_from_the_generators_of_tensorflow():
    """So tests need not seed them (conftest.py), and every backend starts from the same numbers."""
    for name, text in sources().items():
        assert "tf.random" not in text and "tensorflow.random" not in text, name


def test_every_import_is_a_declared_dependency():
    for name, text in sources().items():
        assert outside(text) - sys.stdlib_module_names <= DECLARED, name


def loaded_by(module):
    """Top-level packages that a fresh interpreter has loaded after the import."""
    program = f"import sys, ssdn_tf.{module}; print(*sys.modules)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=FOLDER.parent, capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize("module", WITHOUT_KERAS)
def test_modules_on_numpy_alone_load_neither_keras_nor_tensorflow(module):
    assert not loaded_by(module) & {"keras", "tensorflow", "jax", "torch"}


def test_the_check_of_loaded_modules_can_fail():
    assert "keras" in loaded_by("noise.linalg")


SOURCE = """
import os.path
import jax.numpy as jnp
from ssdn_tf.noise import gaussian, prior as p
from ssdn_tf.data.images import read
from . import errors
if True:
    import torch
def f():
    import tensorflow as tf
    from ssdn_tf.data import tfds
    importlib.import_module("ssdn_tf.training.run")
class C:
    import keras
"""


def test_imports_are_read_in_every_form():
    known = {"noise.gaussian", "noise.prior", "data.images", "errors", "data.tfds", "training.run"}
    assert modules(imported(SOURCE), known) == known
    assert modules(imported(SOURCE, at_import=True), known) == known - {"data.tfds", "training.run"}
    assert outside(SOURCE) == {"os", "jax", "ssdn_tf", "torch", "tensorflow", "keras"}
    assert outside(SOURCE, at_import=True) == {"os", "jax", "ssdn_tf", "torch", "keras"}


if __name__ == "__main__":
    for importer, others in graph(sources()).items():
        if others:
            print(f"{importer:28} -> {', '.join(sorted(others))}")
