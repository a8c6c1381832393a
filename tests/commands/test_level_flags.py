"""The flags of the noise level: what each command takes, and its sentences."""

import pytest
from absl import flags

from ssdn_tf.commands import level_flags
from ssdn_tf.errors import UserError
from ssdn_tf.noise.levels import ADDITIVE_RANGE, NAMES


def parsed(*arguments):
    values = flags.FlagValues()
    level_flags.define(values)
    values(["program", *arguments])
    return values


@pytest.mark.parametrize("level", NAMES.values(), ids=NAMES)
def test_every_noise_model_has_its_flag_with_unit_and_example(level):
    flag = parsed()[level.name]
    assert level.unit in flag.help and f"{level.default:g}" in flag.help and flag.value is None


@pytest.mark.parametrize("level", NAMES.values(), ids=NAMES)
def test_the_ends_of_the_range_are_legal_and_the_flag_is_named_where_they_are_passed(level):
    for number in (level.low, level.high):
        values = parsed(f"--{level.name}={number!r}")
        assert level_flags.read(values, level.kind) == (number, number)
        assert level_flags.read_any(values) == (level.kind, number, number)
    for read in (lambda values: level_flags.read(values, level.kind), level_flags.read_any):
        with pytest.raises(UserError, match=f"^--{level.name}: expected a number between .* received '1e25'"):
            read(parsed(f"--{level.name}=1e25"))


def test_only_a_training_refuses_a_level_with_nothing_to_learn():
    for kind, name, number in (("gaussian", "sigma", 0), ("impulse", "alpha", 0), ("impulse", "alpha", 1)):
        values = parsed(f"--{name}={number}")
        assert level_flags.read(values, kind) == (number, number)
        with pytest.raises(UserError, match=f"^--{name}: expected a level to learn from"):
            level_flags.read_trainable(values, kind)
    assert level_flags.read_trainable(parsed("--alpha=0,1"), "impulse") == (0, 1)
    assert level_flags.read_trainable(parsed(), "poisson") == (30, 30)


def test_no_flag_is_no_level_and_the_flag_of_another_noise_model_is_refused():
    assert level_flags.read(parsed(), "gaussian") is None and level_flags.read_any(parsed()) is None
    with pytest.raises(UserError, match="^--lam: expected --sigma with gaussian noise"):
        level_flags.read(parsed("--lam=30"), "gaussian")
    with pytest.raises(UserError, match="received --sigma and --alpha"):
        level_flags.read_any(parsed("--sigma=25", "--alpha=0.5"))


@pytest.mark.parametrize("text, warned", [("0.1", True), ("0,0.5", True), ("0", False), ("1", False), ("0,50", False)])
def test_a_sigma_that_looks_like_a_share_of_one_gets_a_warning(text, warned, capsys):
    level_flags.read(parsed(f"--sigma={text}"), "gaussian")
    assert ("in [0, 1] is --sigma=" in capsys.readouterr().err) == warned


def test_small_numbers_of_the_others_get_none(capsys):
    level_flags.read(parsed("--alpha=0.1"), "impulse")
    assert capsys.readouterr().err == ""


def test_a_noise_model_with_two_numbers_takes_one_flag_or_both():
    def read(*arguments):
        return level_flags.read(parsed(*arguments), "poisson_gaussian")

    assert read() is None
    assert read("--lam=50", "--sigma=10") == ((50, 10), (50, 10))
    assert read("--sigma=5,50") == ((None, 5), (None, 50)) and read("--lam=30") == ((30, 0), (30, 0))
    with pytest.raises(UserError, match="^--alpha: expected --lam or --sigma with poisson_gaussian noise"):
        read("--alpha=0.5")
    found = level_flags.read_any(parsed("--lam=50", "--sigma=10"))
    assert found == ("poisson_gaussian", (50, 10), (50, 10))


def test_a_mixture_needs_both_ranges_or_neither():
    assert level_flags.read_trainable(parsed(), "additive") == ADDITIVE_RANGE
    assert level_flags.read_trainable(parsed("--sigma=25"), "additive") == ((None, 25), (None, 25))
    with pytest.raises(UserError, match="^--lam or --sigma: expected both"):
        level_flags.read_trainable(parsed("--sigma=5,50"), "additive")
    with pytest.raises(UserError, match="^--lam or --sigma: expected both"):
        level_flags.read_trainable(parsed("--lam=5,200"), "additive")
    with pytest.raises(UserError, match="received no noise"):
        level_flags.read_trainable(parsed("--sigma=0"), "poisson_gaussian")
