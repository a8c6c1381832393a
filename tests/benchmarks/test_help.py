"""`--help` of a benchmark shows help and measures nothing."""

import pathlib
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.mark.parametrize("name", sorted(p.stem for p in FOLDER.glob("*.py") if p.stem != "harness"))
def test_help_shows_help(name):
    done = subprocess.run([sys.executable, FOLDER / f"{name}.py", "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "--quick" in done.stdout and "| ---" not in done.stdout, done.stderr


@pytest.mark.parametrize("arguments", ["found_noise.py /nowhere", "real_noise.py /nowhere x", "curves.py /nowhere"])
def test_what_is_not_there_is_one_sentence(arguments):
    script, *rest = arguments.split()
    done = subprocess.run([sys.executable, FOLDER / script, *rest], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "\nerror: " in f"\n{done.stderr}" and "Traceback" not in done.stderr
    assert "/nowhere" in done.stderr
