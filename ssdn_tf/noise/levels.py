"""What a noise level is called, its unit and its legal range, for each noise model.

A level is the number that people say: sigma 25 (of 255), lam 30 photons, alpha 0.5. A parameter is the same
quantity in the unit of the formulas, where intensities are in [0, 1]: sigma 25/255. A noise model with two numbers
(`Levels`) has tuples of them, in one order; inside such a level, a lam of None or a sigma of 0 stands for noise that is
not there.

Flags, run names, data, the SavedModel and its client all read this table. It imports no Keras, because the client
does without. Error messages here do not name a flag; `commands.level_flags` adds its name.

A level is legal if the formulas are defined for it: sigma 0 (a known sigma is raised to 1e-3, see
`NoiseModel.bound_known`) and alpha 0 or 1 are legal. A training at such a fixed level would have nothing to learn, so
training refuses it (`check_trainable`).
"""

import dataclasses
import math

LIKELIHOODS = ("moments", "mixture", "combined")  # of impulse noise; see noise.impulse.ImpulseNoise


@dataclasses.dataclass(frozen=True)
class Level:
    """The level of one noise model.

    kind: noise model, a key of LEVELS.
    short: the noise model in run names, "gauss" in gauss25.
    name: of the parameter, in formulas and as a flag.
    unit: what the number counts.
    low, high: legal range, ends included, in `unit`.
    default: in `unit`.
    example: a range, for help texts.
    scale: level / parameter.
    label_scale: number in run names / level.
    trivial: legal fixed levels at which there is no noise, or nothing but noise.
    gain: name of the parameter where it is 1 / level (0 for the level None), else None.
    """

    kind: str
    short: str
    name: str
    unit: str
    low: float
    high: float
    default: float
    example: tuple
    scale: float = 1.0
    label_scale: float = 1.0
    trivial: tuple = ()
    gain: str | None = None

    @property
    def numbers(self):
        """What a level consists of: this number alone. `Levels` has several."""
        return (self,)

    def split(self, level):
        """A level, or a parameter, as a tuple of its numbers."""
        return (level,)

    def join(self, numbers):
        """The inverse of `split`, of any iterable."""
        (number,) = numbers
        return number

    def to_parameter(self, level):
        """A level in the unit of the noise model: sigma 25 becomes 25/255."""
        if self.gain:
            return 0.0 if level is None else 1.0 / level
        return level / self.scale

    def to_level(self, parameter):
        """The inverse of `to_parameter`."""
        if self.gain:
            return None if parameter == 0 else 1.0 / parameter
        return parameter * self.scale

    @property
    def absent(self):
        """The level that stands for no such noise."""
        return None if self.gain else 0.0

    @property
    def parameter_range(self):
        """(lowest, highest) legal parameter."""
        if self.gain:
            return 0.0, 1.0 / self.low
        return self.to_parameter(self.low), self.to_parameter(self.high)

    def draw(self, low, high, rng):
        """The level of one picture: uniform between `low` and `high`, without a draw where they are equal."""
        return low if low == high else rng.uniform(low, high)

    def describe(self, low, high=None):
        """In words: "sigma 25", "sigma 5 to 50"."""
        return f"{self.name} {low:.4g}" + ("" if high in (None, low) else f" to {high:.4g}")

    @property
    def allowed(self):
        """The legal levels, for error messages: "a number between 0 and 255 (std in 255ths of the range)"."""
        return f"a number between {_number(self.low)} and {_number(self.high)} ({self.unit})"

    @property
    def allowed_parameter(self):
        """The legal parameters, for error messages: "sigma in [0, 1] (sigma 25 of 255 is 0.098)"."""
        low, high = map(_number, self.parameter_range)
        range_ = f"{self.gain or self.name} in [{low}, {high}]"
        if self.gain:
            return f"{range_} (1 / {self.name})"
        if self.scale == 1:
            return f"{range_} ({self.unit})"
        example = self.to_parameter(self.default)
        return f"{range_} ({self.name} {self.default:g} of {self.scale:g} is {example:.3f})"

    def check(self, level):
        """Raises ValueError unless `level` is legal."""
        try:
            is_legal = not isinstance(level, str) and self.low <= float(level) <= self.high  # False for NaN
        except (TypeError, ValueError):
            is_legal = False
        if not is_legal:
            text = f"{level:g}" if isinstance(level, int | float) else repr(level)
            raise ValueError(f"expected {self.allowed}, received {text}.")

    def check_trainable(self, low, high):
        """Raises ValueError where all pictures of a training would have no noise, or nothing else."""
        if low == high and low in self.trivial:
            what = "no noise" if low == 0 else "nothing but noise"
            raise ValueError(f"expected a level to learn from, or a range, received {low:g}, which is {what}.")

    def parse(self, text):
        """(low, high) from "25" (both equal) or "5,50".

        Raises:
            ValueError: not one or two numbers, one of them is not legal, or the first is the larger one.
        """
        try:
            levels = [float(part) for part in text.split(",")]
            for level in levels:
                self.check(level)
            if len(levels) > 2 or levels[0] > levels[-1]:
                raise ValueError
        except ValueError:
            raise ValueError(f"expected {self.allowed}, or two as low,high, received '{text}'.") from None
        return levels[0], levels[-1]

    def parse_one(self, text):
        """One level from "25".

        Raises:
            ValueError: not one legal number.
        """
        try:
            level = float(text)
            self.check(level)
        except ValueError:
            raise ValueError(f"expected {self.allowed}, received '{text}'.") from None
        return level

    def format(self, low, high):
        """The inverse of `parse`: "25" or "5,50"."""
        return f"{low:g}" if low == high else f"{low:g},{high:g}"

    def label(self, low, high):
        """Noise and level as run names have them: gauss25, gauss5_50, impulse0_100 (percent); unknown levels: gauss."""
        if low is None:
            return self.short
        numbers = [f"{round(self.label_scale * level, 6):g}" for level in ((low,) if low == high else (low, high))]
        return self.short + "_".join(numbers)


@dataclasses.dataclass(frozen=True)
class Levels:
    """The level of a noise model with several numbers: a tuple with one for each, in the order of `numbers`.

    Methods as those of `Level`.
    """

    kind: str
    short: str
    numbers: tuple

    @property
    def default(self):
        return tuple(number.default for number in self.numbers)

    @property
    def absent(self):
        return tuple(number.absent for number in self.numbers)

    def split(self, level):
        return tuple(level)

    def join(self, numbers):
        return tuple(numbers)

    def to_parameter(self, level):
        return tuple(number.to_parameter(value) for number, value in zip(self.numbers, level))

    def to_level(self, parameter):
        return tuple(number.to_level(value) for number, value in zip(self.numbers, parameter))

    def parse_one(self, text):
        parts = text.split(",")
        if len(parts) != len(self.numbers):
            raise ValueError(f"expected {len(self.numbers)} numbers, received '{text}'.")
        return tuple(number.parse_one(part) for number, part in zip(self.numbers, parts))

    def check_trainable(self, low, high):
        if low == high == self.absent:
            raise ValueError("expected a level to learn from, or a range, received no noise.")

    def draw(self, low, high, rng):
        return tuple(number.draw(a, b, rng) for number, a, b in zip(self.numbers, low, high))

    def describe(self, low, high=None):
        ends = zip(self.numbers, low, low if high is None else high)
        parts = [number.describe(a, b) for number, a, b in ends if (a, b) != (number.absent, number.absent)]
        return ", ".join(parts) or "no noise"

    def label(self, low, high):
        """As run names have it: poisson_gauss-lam50-sigma10."""
        if low is None:
            return self.short
        ends = zip(self.numbers, low, high)
        parts = [dataclasses.replace(n, short=n.name).label(a, b) for n, a, b in ends if (a, b) != (n.absent, n.absent)]
        return "-".join([self.short, *parts])


class AdditiveLevels(Levels):
    """The levels of the mixture of all additive noises: each picture has Gaussian noise, Poisson noise, or both."""

    def draw(self, low, high, rng):
        """Half of the pictures have Gaussian noise, a quarter Poisson noise, a quarter both.

        Sigma is uniform between its ends, but beside Poisson noise below 0.4 of the highest; lam is log-uniform, so
        that weak noise is drawn as often as strong noise. Where only one of the two numbers is a range, the other one
        is the same in all pictures, and the range is drawn from uniformly.
        """
        (lam_low, sigma_low), (lam_high, sigma_high) = low, high
        if lam_low == lam_high or sigma_low == sigma_high:
            return super().draw(low, high, rng)
        part = rng.random()
        lam = math.exp(rng.uniform(math.log(lam_low), math.log(lam_high)))
        beside = max(sigma_low, 0.4 * sigma_high)
        sigma = rng.uniform(sigma_low, sigma_high if part < 0.5 else beside)
        return None if part < 0.5 else lam, 0.0 if part >= 0.75 else sigma


_SIGMA = Level(
    kind="gaussian",
    short="gauss",
    name="sigma",
    unit="std in 255ths of the range",
    low=0.0,
    high=255.0,
    default=25.0,
    example=(5.0, 50.0),
    scale=255.0,
    trivial=(0.0,),
)
# A million photons leave a std of 0.001 at white, which is also the least that a known sigma counts for; with a
# thousandth of a photon, a picture is black. (NumPy draws from a Poisson of at most 9.2e18.)
_LAM = Level(
    kind="poisson",
    short="poisson",
    name="lam",
    unit="photons at white",
    low=1e-3,
    high=1e6,
    default=30.0,
    example=(5.0, 50.0),
)
_ALPHA = Level(
    kind="impulse",
    short="impulse",
    name="alpha",
    unit="share of replaced pixels",
    low=0.0,
    high=1.0,
    default=0.5,
    example=(0.0, 1.0),
    label_scale=100.0,
    trivial=(0.0, 1.0),
)
# Each level that has a flag, by its name.
NAMES = {level.name: level for level in (_SIGMA, _LAM, _ALPHA)}
_GAIN = dataclasses.replace(_LAM, default=50.0, gain="gain")
_READOUT = dataclasses.replace(_SIGMA, default=10.0)
LEVELS = {
    level.kind: level
    for level in (
        _SIGMA,
        _LAM,
        _ALPHA,
        Levels("poisson_gaussian", "poisson_gauss", (_GAIN, _READOUT)),
        AdditiveLevels("additive", "additive", (_GAIN, _READOUT)),
    )
}
# What `additive` noise draws from where the user does not say: lam 5 to 200, sigma 1 to 50.
ADDITIVE_RANGE = ((5.0, 1.0), (200.0, 50.0))


def _number(value):
    return f"{value:,.10g}"
