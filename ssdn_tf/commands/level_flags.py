"""The flags of the noise level, --sigma, --lam and --alpha.

Loads neither Keras nor TensorFlow, as the client of a server uses it too.
"""

import csv

from absl import flags

from ssdn_tf.commands import cli
from ssdn_tf.data import images
from ssdn_tf.errors import UserError
from ssdn_tf.noise.levels import ADDITIVE_RANGE, LEVELS, NAMES


def define(values, more="", ranges=True):
    """Defines the flags in a FlagValues.

    more: what --help says after the unit.
    ranges: the command takes ranges too.
    """
    for level in NAMES.values():
        example = level.format(level.default, level.default)
        range_ = f", or a range such as {level.format(*level.example)}" if ranges else ""
        text = f"level of {level.kind} noise ({level.unit}), such as {example}{range_}{more}"
        flags.DEFINE_string(level.name, None, text, flag_values=values)


def given(values):
    """The names of the flags that are set."""
    return [name for name in NAMES if values[name].value is not None]


def choice(kind=None):
    """The flags of a noise model, or all, as part of a sentence: "--sigma, --lam or --alpha"."""
    *first, last = (f"--{name}" for name in (NAMES if kind is None else names_of(kind)))
    return f"{', '.join(first)} or {last}" if first else last


def names_of(kind):
    """The flags of a noise model, by name."""
    return [number.name for number in LEVELS[kind].numbers]


def read(values, kind):
    """(low, high), equal for one level, or None where no flag of a level is set.

    Of a noise model with two numbers, a flag that is not set stands for no such noise.

    Raises:
        UserError: not legal, or the flag of another noise model is set.
    """
    for name, level in NAMES.items():
        if name not in names_of(kind) and values[name].value is not None:
            raise UserError(
                f"--{name}: expected {choice(kind)} with {kind} noise, received the flag of {level.kind} noise."
            )
    if all(values[name].value is None for name in names_of(kind)):
        return None
    level = LEVELS[kind]
    return tuple(level.join(ends) for ends in zip(*(_read_number(values, number) for number in level.numbers)))


def _read_number(values, number):
    text = values[number.name].value
    if text is None:
        return number.absent, number.absent
    with cli.errors_about(number.name):
        low, high = number.parse(text)
    if number.scale != 1 and 0 < high < 1:
        images.warn(
            f"--{number.name} is a {number.unit}: {high:g} is almost no noise; "
            f"{high:g} in [0, 1] is --{number.name}={number.to_level(high):g}."
        )
    return low, high


def read_trainable(values, kind):
    """As `read`, and the levels must be ones that a training can learn from. The default where no flag is set.

    Raises:
        UserError: as `read`, or nothing to learn.
    """
    level = LEVELS[kind]
    default = ADDITIVE_RANGE if kind == "additive" else (level.default, level.default)
    low, high = read(values, kind) or default
    try:
        if kind == "additive" and low != high and len(given(values)) == 1:
            raise ValueError("expected both --lam and --sigma with additive noise, or neither, received one.")
        level.check_trainable(low, high)
    except ValueError as error:
        raise UserError(f"{choice(kind)}: {error}") from None
    return low, high


def read_any(values):
    """(kind, low, high) of the noise model that the set flags belong to, or None if none is set.

    Raises:
        UserError: no noise model has these flags together, or a number is not legal.
    """
    names = given(values)
    if not names:
        return None
    for kind in LEVELS:
        if set(names) == set(names_of(kind)):
            return (kind, *read(values, kind))
    listed = " and ".join(f"--{name}" for name in names)
    raise UserError(f"expected one noise level, received {listed}.")


def refuse_ranges(values):
    """For a command that takes no ranges.

    Raises:
        UserError: as `read_any`, or a range.
    """
    for name in given(values):
        with cli.errors_about(name):
            NAMES[name].parse_one(values[name].value)
    read_any(values)


def read_table(path):
    """{file name: {"sigma": 25.0}} of a CSV file with the columns `file` and those of the flags; cells may be empty.

    Raises:
        UserError: no such table, or a level that is not legal.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"expected a CSV file, received '{path}', which cannot be read ({reason}).") from error
    columns = set(rows[0]) if rows else set()
    if "file" not in columns or not columns & set(NAMES) or columns - {"file", *NAMES}:
        listed = ", ".join(name or "one without a name" for name in rows[0]) if rows else "none"
        raise UserError(f"{path}: expected the columns file and {' or '.join(NAMES)}, received {listed}.")
    levels = {}
    for row in rows:
        surplus = row.pop(None, [])  # where DictReader puts cells without a column
        if surplus or row["file"] is None:
            given = ",".join([cell for cell in row.values() if cell] + surplus)
            raise UserError(f"{path}: expected rows of {len(columns)} cells, received '{given}'.")
        if row["file"] in levels:
            raise UserError(f"{path}: expected each file once, received '{row['file']}' twice.")
        cells = {name: row[name] for name in NAMES if row.get(name)}
        try:
            levels[row["file"]] = {name: NAMES[name].parse_one(text) for name, text in cells.items()}
        except ValueError as error:
            raise UserError(f"{path}, {row['file']}: {error}") from None
    return levels
