"""What a noise level is called, its unit and its legal range, for each noise model.

A level is the number that people say: sigma 25 (of 255), lam 30 photons, alpha 0.5. A parameter is the same
quantity in the unit of the formulas, where intensities are in [0, 1]: sigma 25/255.

Flags, run names, data, the SavedModel and its client all read this table. It imports no Keras, so the client
can read it too. Sentences here never name a flag; `commands.level_flags` adds it.

One rule holds everywhere: legal is what the formulas are defined for. Sigma 0 (bounded below where sigma is
known, see `NoiseModel.bound_known`) and alpha 0 or 1 are legal; only a training refuses a fixed level at which
there is nothing to learn (`check_trainable`).
"""

import dataclasses


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

    A noise model with two parameters can have two of these: all but `kind` and `short` concern one number.
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

    def to_parameter(self, level):
        """A level in the unit of the noise model: sigma 25 becomes 25/255."""
        return level / self.scale

    def to_level(self, parameter):
        """The inverse of `to_parameter`."""
        return parameter * self.scale

    @property
    def allowed(self):
        """The legal levels, for error messages: "a number between 0 and 255 (std, of 255)"."""
        return f"a number between {_number(self.low)} and {_number(self.high)} ({self.unit})"

    @property
    def allowed_parameter(self):
        """The legal parameters, for error messages: "sigma in [0, 1] (sigma 25 of 255 is 0.098)"."""
        low, high = (_number(self.to_parameter(level)) for level in (self.low, self.high))
        range_ = f"{self.name} in [{low}, {high}]"
        if self.scale == 1:
            return f"{range_} ({self.unit})"
        example = self.to_parameter(self.default)
        return f"{range_} ({self.name} {self.default:g} of {self.scale:g} is {example:.3f})"

    def check(self, level):
        """Raises ValueError unless `level` is legal."""
        if not self.low <= level <= self.high:  # False for NaN
            raise ValueError(f"expected {self.allowed}, received {level:g}.")

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


_SIGMA = Level(
    kind="gaussian",
    short="gauss",
    name="sigma",
    unit="std, of 255",
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
LEVELS = {level.kind: level for level in (_SIGMA, _LAM, _ALPHA)}


def _number(value):
    return f"{value:,.10g}"
