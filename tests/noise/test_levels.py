"""The table of noise levels."""

import dataclasses
import math

import numpy as np
import pytest

from ssdn_tf.noise.levels import ADDITIVE_RANGE, LEVELS, NAMES

every_level = pytest.mark.parametrize("level", NAMES.values(), ids=NAMES)
both = pytest.mark.parametrize("level", [LEVELS["poisson_gaussian"], LEVELS["additive"]], ids=lambda level: level.kind)


@every_level
def test_each_level_agrees_with_itself(level):
    assert LEVELS[level.kind] is level
    for number in (level.low, level.high, level.default, *level.example, *level.trivial):
        level.check(number)
        assert level.to_level(level.to_parameter(number)) == number
    level.check_trainable(level.default, level.default)
    assert level.example[0] < level.example[1]


def test_names_are_told_apart():
    for field in ("kind", "short"):
        assert len({getattr(level, field) for level in LEVELS.values()}) == len(LEVELS)
    assert [level.name for level in NAMES.values()] == list(NAMES) == ["sigma", "lam", "alpha"]


def test_levels_are_what_people_say_and_parameters_what_the_formulas_take():
    assert LEVELS["gaussian"].to_parameter(25) == 25 / 255
    assert LEVELS["poisson"].to_parameter(30) == 30 and LEVELS["impulse"].to_parameter(0.5) == 0.5


@every_level
def test_the_ends_are_legal_and_what_is_outside_is_refused(level):
    inside = (level.low, level.high)
    outside = (math.nextafter(level.low, -1), math.nextafter(level.high, math.inf), -1, math.inf, -math.inf, math.nan)
    for number in inside:
        assert level.parse(f"{number!r}") == (number, number)
    for number in outside:
        with pytest.raises(ValueError, match="^expected a number between .* received"):
            level.check(number)
        with pytest.raises(ValueError, match="^expected a number between .* received"):
            level.parse(f"{number!r}")
        with pytest.raises(ValueError, match="^expected a number between .* received"):
            level.parse_one(f"{number!r}")


@every_level
def test_text_becomes_levels_and_text_again(level):
    for levels in ((level.default, level.default), level.example):
        assert level.parse(level.format(*levels)) == levels
    assert LEVELS["gaussian"].format(25.0, 25.0) == "25" and LEVELS["gaussian"].format(5.0, 50.0) == "5,50"


@pytest.mark.parametrize("text", ["", "abc", "50,5", "1,2,3", "5,", "5,abc", "5;50", "nan,5"])
def test_text_that_is_no_level_is_refused(text):
    with pytest.raises(ValueError) as error:
        LEVELS["gaussian"].parse(text)
    sentence = (
        f"expected a number between 0 and 255 (std in 255ths of the range), or two as low,high, received '{text}'."
    )
    assert str(error.value) == sentence


@pytest.mark.parametrize("text", ["", "abc", "5,50"])
def test_text_that_is_not_one_level_is_refused(text):
    with pytest.raises(ValueError, match="^expected a number between 0 and 1 "):
        LEVELS["impulse"].parse_one(text)


@pytest.mark.parametrize(
    "kind, low, high, what",
    [
        ("gaussian", 0, 0, "no noise"),
        ("impulse", 0, 0, "no noise"),
        ("impulse", 1, 1, "nothing but noise"),
        ("gaussian", 0, 50, None),
        ("impulse", 0, 1, None),
        ("poisson", 1e-3, 1e-3, None),
    ],
)
def test_a_fixed_level_with_nothing_to_learn_is_legal_but_not_trainable(kind, low, high, what):
    level = LEVELS[kind]
    level.check(low)
    if what:
        with pytest.raises(ValueError, match=f"which is {what}"):
            level.check_trainable(low, high)
    else:
        level.check_trainable(low, high)


def test_labels_are_the_published_ones():
    labels = {level.label(level.default, level.default) for level in NAMES.values()}
    labels |= {level.label(*level.example) for level in NAMES.values()}
    assert labels == {"gauss25", "gauss5_50", "poisson30", "poisson5_50", "impulse50", "impulse0_100"}


@every_level
def test_sentences_name_no_flag(level):
    assert "--" not in level.allowed + level.allowed_parameter
    assert level.unit in level.allowed


def test_a_level_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        LEVELS["gaussian"].low = 1.0


# ---------------------------------------------------------------- two numbers


@both
def test_two_numbers_become_parameters_and_levels_again(level):
    for value in ((50.0, 10.0), (None, 25.0), (30.0, 0.0), (None, 0.0)):
        assert level.to_level(level.to_parameter(value)) == value
    assert level.to_parameter((50.0, 25.5)) == (0.02, 0.1) and level.to_parameter((None, 0.0)) == (0.0, 0.0)
    assert [number.allowed_parameter.split(" in ")[0] for number in level.numbers] == ["gain", "sigma"]


@pytest.mark.parametrize("kind", LEVELS)
def test_a_level_is_split_into_its_numbers_and_joined_again(kind):
    level = LEVELS[kind]
    assert level.join(level.split(level.default)) == level.default
    assert len(level.split(level.default)) == len(level.numbers)


def test_one_number_is_not_joined_from_two():
    with pytest.raises(ValueError):
        LEVELS["gaussian"].join([25.0, 10.0])


def test_two_numbers_are_described_and_named_without_the_noise_that_is_not_there():
    level = LEVELS["poisson_gaussian"]
    assert level.describe((50.0, 10.0)) == "lam 50, sigma 10" and level.describe((None, 25.0)) == "sigma 25"
    assert level.describe((5.0, 1.0), (200.0, 50.0)) == "lam 5 to 200, sigma 1 to 50"
    assert level.describe((None, 0.0)) == "no noise" and LEVELS["gaussian"].describe(0.0) == "sigma 0"
    assert level.label((50.0, 10.0), (50.0, 10.0)) == "poisson_gauss-lam50-sigma10"
    assert (
        level.label((None, 1.0), (None, 50.0)) == "poisson_gauss-sigma1_50" and level.label(None, None) == level.short
    )


@both
def test_no_noise_of_either_kind_is_not_trainable(level):
    with pytest.raises(ValueError, match="received no noise"):
        level.check_trainable((None, 0.0), (None, 0.0))
    level.check_trainable((None, 25.0), (None, 25.0))


def test_additive_levels_are_half_gaussian_a_quarter_poisson_and_a_quarter_both():
    rng, level = np.random.default_rng(0), LEVELS["additive"]
    drawn = [level.draw(*ADDITIVE_RANGE, rng) for _ in range(4_000)]
    gaussian = [sigma for lam, sigma in drawn if lam is None]
    poisson = [lam for lam, sigma in drawn if sigma == 0]
    mixed = [(lam, sigma) for lam, sigma in drawn if lam is not None and sigma > 0]
    # 4,000 draws see a share that is 4 % off.
    assert abs(len(gaussian) / 4_000 - 0.5) < 0.04 and abs(len(poisson) / 4_000 - 0.25) < 0.04
    assert len(gaussian) + len(poisson) + len(mixed) == 4_000
    assert 1 <= min(gaussian) and 45 < max(gaussian) <= 50 and abs(np.mean(gaussian) - 25.5) < 2
    # Log-uniform: the median is the geometric mean of the ends, far below the middle.
    assert 5 <= min(poisson) and 150 < max(poisson) <= 200 and 25 < np.median(poisson) < 40
    assert max(sigma for _, sigma in mixed) <= 20
    assert level.draw((None, 25.0), (None, 25.0), None) == (None, 25.0)


def test_a_range_of_one_number_leaves_the_other_as_it_is():
    rng, level = np.random.default_rng(0), LEVELS["additive"]
    for low, high in (((None, 5.0), (None, 50.0)), ((5.0, 0.0), (50.0, 0.0)), ((5.0, 10.0), (50.0, 10.0))):
        drawn = [level.draw(low, high, rng) for _ in range(400)]
        for number, (a, b) in enumerate(zip(low, high)):
            found = {one[number] for one in drawn}
            if a == b:
                assert found == {a}
            else:  # 400 draws see a mean that is 2 off
                assert len(found) == 400 and abs(np.mean(list(found)) - 27.5) < 2
