"""What the benchmarks share: flags, cases in processes of their own, turns, and tables.

A script ends with `harness.main(__doc__, run, case)`. Its `run(arguments)` measures and prints a table. A case, which
has its own peak memory, backend or environment, is a process: `start(**options)` runs the same script again, where the
generator `case(**options)` yields one result after the other, each when it is asked for.
"""

import argparse
import contextlib
import functools
import itertools
import json
import os
import pathlib
import resource
import signal
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

_RESULT = "RESULT "
_LONGEST = 900  # seconds for one result


def main(text, run, case=None, flags=None):
    """Runs a benchmark, or one of its cases. flags: {name: arguments of `add_argument`}."""
    if sys.argv[1:2] == ["--case"]:
        _serve(case(**json.loads(sys.argv[2])))
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="toy sizes, to see that the benchmark works")
    for name, settings in (flags or {}).items():
        parser.add_argument(name, **settings)
    arguments = parser.parse_args()
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from ssdn_tf.errors import UserError

    try:
        run(arguments)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")
    except Failed as error:
        sys.exit(f"a case has failed:\n{error}")


def _serve(results):
    """Prints the first result, and one more for each line of standard input; then ends the process."""
    signal.alarm(_LONGEST)
    for result in results:
        print(_RESULT + json.dumps(result), flush=True)
        signal.alarm(0)
        if not sys.stdin.readline():
            break
        signal.alarm(_LONGEST)
    os._exit(0)  # threads that read ahead may still run


class Failed(Exception):
    """A case has ended without a result; the text is what it wrote to standard error."""


def start(environment=None, **options):
    """Yields the results of a case; its process lives as long as this generator.

    Args:
        environment: variables that differ from those of this process; None: unset.
        options: for `case`, as JSON.
    """
    command = [sys.executable, sys.argv[0], "--case", json.dumps(options)]
    variables = {name: value for name, value in (os.environ | (environment or {})).items() if value is not None}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with tempfile.TemporaryFile("w+") as errors:
        with subprocess.Popen(command, env=variables, stderr=errors, **pipes) as process:
            for line in process.stdout:
                if line.startswith(_RESULT):
                    yield json.loads(line[len(_RESULT) :])
                    print(file=process.stdin, flush=True)
        errors.seek(0)
        late = process.returncode == -signal.SIGALRM
        raise Failed(f"no result in {_LONGEST} s" if late else errors.read().strip() or f"exit {process.returncode}")


def first_result(**options):
    with contextlib.closing(start(**options)) as results:
        return next(results)


def results_in_turns(cases, turns):
    """{name: [first result, one more for each turn]} of cases {name: options}."""
    started = {name: start(**options) for name, options in cases.items()}
    found = in_turns({name: functools.partial(next, results) for name, results in started.items()}, 1 + turns)
    for results in started.values():
        results.close()
    return found


def in_turns(functions, turns):
    """{name: [what its function returns, each turn]}; they take turns, as a shared machine's speed changes."""
    found = {name: [] for name in functions}
    for _, (name, function) in itertools.product(range(turns), functions.items()):
        found[name].append(function())
    return found


def seconds(function, repeats=1):
    """The shortest of several calls."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return min(times)


def peak_mb():
    """The most memory (RSS) that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def print_table(columns, rows):
    """A Markdown table; each row is printed as soon as it is measured."""
    for row in itertools.chain([columns, ["---"] * len(columns)], rows):
        print(f"| {' | '.join(map(str, row))} |", flush=True)
