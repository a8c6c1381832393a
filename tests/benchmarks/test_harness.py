"""The protocol of the benchmarks' cases, in a script that measures nothing."""

import pathlib
import subprocess
import sys

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"
SCRIPT = f"""
import os
import sys

sys.path.insert(0, {str(FOLDER)!r})
import harness


def case(start, fails=False):
    if fails:
        raise ValueError("no such memory")
    print("something else")
    for i in range(3):
        yield [start + i, os.environ.get("GIVEN")]


def run(arguments):
    if arguments.fails:
        harness.first_result(start=0, fails=True)
    cases = {{"a": {{"start": 0, "environment": {{"GIVEN": "here"}}}}, "b": {{"start": 10}}}}
    harness.print_table(["name", "results"], harness.results_in_turns(cases, 2).items())


if __name__ == "__main__":
    harness.main("What it measures.", run, case, {{"--fails": {{"action": "store_true"}}}})
"""


@pytest.fixture
def script(tmp_path):
    def start(*flags):
        return subprocess.run([sys.executable, path, *flags], capture_output=True, text=True, timeout=60)

    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return start


def test_cases_take_turns_and_their_results_come_in_order(script):
    done = script()
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "| name | results |",
        "| --- | --- |",
        "| a | [[0, 'here'], [1, 'here'], [2, 'here']] |",
        "| b | [[10, None], [11, None], [12, None]] |",
    ]


def test_a_case_that_fails_says_why(script):
    done = script("--fails")
    assert done.returncode == 1 and "ValueError: no such memory" in done.stderr and not done.stdout
