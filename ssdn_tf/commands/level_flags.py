"""The flags of the noise level, --sigma, --lam and --alpha: one for each noise model.

Loads neither Keras nor TensorFlow, as the client of a server uses it too.
"""

from absl import flags

from ssdn_tf.data import images
from ssdn_tf.errors import UserError
from ssdn_tf.noise.levels import LEVELS


def define(values, more="", ranges=True):
    """Defines the flags in a FlagValues.

    more: what --help says after the unit.
    ranges: the command takes ranges too.
    """
    for level in LEVELS.values():
        example = level.format(level.default, level.default)
        range_ = f", or a range such as {level.format(*level.example)}" if ranges else ""
        text = f"level of {level.kind} noise ({level.unit}), such as {example}{range_}{more}"
        flags.DEFINE_string(level.name, None, text, flag_values=values)


def names():
    """The names of the flags."""
    return [level.name for level in LEVELS.values()]


def choice():
    """The flags as part of a sentence: "--sigma, --lam or --alpha"."""
    *first, last = (f"--{name}" for name in names())
    return f"{', '.join(first)} or {last}"


def read(values, kind):
    """(low, high), equal for one number, or None where no flag of a level is set.

    Raises:
        UserError: not legal, or the flag of another noise model is set.
    """
    expected = LEVELS[kind]
    for level in LEVELS.values():
        if level is not expected and values[level.name].value is not None:
            raise UserError(
                f"--{level.name}: expected --{expected.name} with {kind} noise, "
                f"received the flag of {level.kind} noise."
            )
    text = values[expected.name].value
    return None if text is None else _parsed(expected.name, expected.parse, text, expected)


def read_trainable(values, kind):
    """As `read`, and the levels must be ones that a training can learn from. The default where no flag is set.

    Raises:
        UserError: as `read`, or nothing to learn.
    """
    level = LEVELS[kind]
    low, high = read(values, kind) or (level.default, level.default)
    try:
        level.check_trainable(low, high)
    except ValueError as error:
        raise UserError(f"--{level.name}: {error}") from None
    return low, high


def read_any(values):
    """(Level, number) of the one flag that is set, or None.

    Raises:
        UserError: two are set, or the number is not legal.
    """
    given = [level for level in LEVELS.values() if values[level.name].value is not None]
    if not given:
        return None
    if len(given) > 1:
        raise UserError(f"expected one noise level, received --{given[0].name} and --{given[1].name}.")
    (level,) = given
    return level, _parsed(level.name, level.parse_one, values[level.name].value, level)


def _parsed(flag, parse, text, level):
    try:
        found = parse(text)
    except ValueError as error:
        raise UserError(f"--{flag}: {error}") from None
    highest = found[-1] if isinstance(found, tuple) else found
    if level.scale != 1 and 0 < highest < 1:
        images.warn(
            f"--{flag} is a {level.unit}: {highest:g} is almost no noise; "
            f"{highest:g} in [0, 1] is --{flag}={level.to_level(highest):g}."
        )
    return found
