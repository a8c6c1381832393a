"""The description of a training (noise, pipeline, network), and the 46 configurations of the paper."""

import dataclasses

from ssdn_tf.noise.levels import LEVELS

NOISES = tuple(LEVELS)
PIPELINES = ("blindspot", "mean", "n2c", "n2n")
SOURCES = ("known", "global", "per_image", "fitted")


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One denoiser to train.

    noise: a key of `noise.levels.LEVELS`.
    low, high: range of the noise level, drawn for each picture (equal: fixed), as a level of `noise.levels`: sigma 25
        (of 255), lam 30 photons, alpha 0.5; tuples (lam, sigma) for poisson_gaussian and additive, where None and 0
        stand for no such noise. Both None: unknown.
    pipeline: blindspot (ours), mean (blind spot, squared error, the network's mean is the
        answer), n2c (noisy to clean), n2n (noisy to another noisy).
    parameter_source: known, global, per_image or fitted (see `denoisers.parameters`); None for pipelines without a
        likelihood.
    diagonal: no covariance between channels.
    channels: 3 or 1.
    likelihood: of impulse noise, "moments" (published), "mixture" (exact) or "combined".
    network: "paper" or "compact"; see networks.designs.
    width: features of its first convolution; None for the design's own.
    """

    noise: str = "gaussian"
    low: float | None = 25.0
    high: float | None = 25.0
    pipeline: str = "blindspot"
    parameter_source: str | None = "known"
    diagonal: bool = False
    channels: int = 3
    likelihood: str = "moments"
    network: str = "paper"
    width: int | None = None

    def __post_init__(self):
        for end in ("low", "high"):  # JSON makes lists of tuples
            if isinstance(getattr(self, end), list):
                object.__setattr__(self, end, tuple(getattr(self, end)))

    @property
    def fixed(self):
        return self.low == self.high

    @property
    def blindspot(self):
        """True if the network never sees the pixel that it predicts."""
        return self.pipeline in ("blindspot", "mean")

    @property
    def name(self):
        """The published name, `{noise}-{pipeline}[_diag][-sigma_{source}][-mono]`."""
        pipeline = "blindspot_mean" if self.pipeline == "mean" else self.pipeline
        name = f"{LEVELS[self.noise].label(self.low, self.high)}-{pipeline}"
        name += "_diag" if self.diagonal else ""
        name += f"-sigma_{self.parameter_source}" if self.parameter_source else ""
        name += "-mono" if self.channels == 1 else ""
        name += "" if self.likelihood == "moments" else f"-{self.likelihood}"
        return name + ("" if self.network == "paper" else f"-{self.network}")

    @property
    def paper_images(self):
        """Length of the published training, in images."""
        if self.noise != "impulse":
            return 2_000_000
        return {"blindspot": 4_000_000, "mean": 8_000_000}.get(self.pipeline, 16_000_000)

    def parameter(self, level):
        """A level in the unit of the noise model (sigma in [0, 1]): a number or a tuple."""
        return LEVELS[self.noise].to_parameter(level)

    def draw_parameter(self, rng):
        """The noise parameter of one picture, between `low` and `high`; where they are unknown, one of no meaning."""
        level = LEVELS[self.noise]
        return self.parameter(level.default if self.low is None else level.draw(self.low, self.high, rng))

    def level(self, parameter):
        """The inverse of `parameter`."""
        return LEVELS[self.noise].to_level(parameter)

    def to_dict(self):
        return dataclasses.asdict(self)


def _published():
    """The rule behind the 46 published rows."""
    levels = {"gaussian": ((25, 25), (5, 50)), "poisson": ((30, 30), (5, 50)), "impulse": ((0.5, 0.5), (0, 1))}
    for channels in (3, 1):
        for noise in levels if channels == 3 else ("gaussian", "poisson"):
            for low, high in levels[noise]:
                common = {"noise": noise, "low": low, "high": high, "channels": channels}
                unknown = "global" if low == high else "per_image"
                bayes = [{"parameter_source": source} for source in ("known", unknown)]
                rows = [{"pipeline": "n2c", "parameter_source": None}, *bayes]
                if channels == 3:
                    rows += [{"pipeline": p, "parameter_source": None} for p in ("n2n", "mean")]
                    rows += [row | {"diagonal": True} for row in bayes if noise == "gaussian"]
                for row in rows:
                    yield Experiment(**common, **row)


PUBLISHED = {experiment.name: experiment for experiment in _published()}

# PSNR in dB on Kodak, BSD300, Set14: Laine et al. 2019, table 1 (Gaussian rows). The Poisson and
# impulse rows could not be checked against the paper's text; tables print them with that remark.
_COLUMNS = {
    "gauss25": {
        "n2c": (32.46, 31.08, 31.26),
        "n2n": (32.45, 31.07, 31.23),
        "blindspot-sigma_known": (32.45, 31.03, 31.25),
        "blindspot-sigma_global": (32.44, 31.02, 31.22),
        "blindspot_diag-sigma_known": (31.60, 29.91, 30.58),
        "blindspot_diag-sigma_global": (31.55, 29.87, 30.53),
        "blindspot_mean": (30.64, 28.65, 29.57),
        "cbm3d": (31.82, 30.40, 30.68),
    },
    "gauss5_50": {
        "n2c": (32.57, 31.29, 31.27),
        "n2n": (32.57, 31.29, 31.26),
        "blindspot-sigma_known": (32.47, 31.19, 31.21),
        "blindspot-sigma_per_image": (32.46, 31.18, 31.13),
        "blindspot_diag-sigma_known": (31.59, 30.06, 30.54),
        "blindspot_diag-sigma_per_image": (31.58, 30.05, 30.45),
        "blindspot_mean": (30.54, 28.56, 29.41),
        "cbm3d": (31.99, 30.67, 30.78),
    },
    "poisson30": {
        "n2c": (31.81, 30.40, 30.45),
        "n2n": (31.80, 30.39, 30.44),
        "blindspot-sigma_known": (31.65, 30.25, 30.29),
        "blindspot-sigma_global": (31.70, 30.28, 30.35),
        "blindspot_mean": (30.22, 28.29, 29.23),
    },
    "poisson5_50": {
        "n2c": (31.33, 29.91, 29.96),
        "n2n": (31.32, 29.90, 29.96),
        "blindspot-sigma_known": (31.16, 29.75, 29.82),
        "blindspot-sigma_per_image": (31.02, 29.69, 29.65),
    },
    "impulse50": {
        "n2c": (33.32, 31.20, 31.42),
        "n2n": (32.88, 30.85, 30.94),
        "blindspot-sigma_known": (32.98, 30.78, 31.06),
        "blindspot-sigma_global": (32.93, 30.71, 31.09),
        "blindspot_mean": (30.82, 28.52, 29.05),
    },
    "impulse0_100": {
        "n2c": (31.69, 30.27, 29.77),
        "n2n": (31.53, 30.11, 29.51),
        "blindspot-sigma_known": (31.36, 30.00, 29.47),
        "blindspot-sigma_per_image": (31.40, 29.98, 29.51),
        "blindspot_mean": (27.16, 25.55, 25.56),
    },
}
PUBLISHED_PSNR = {
    f"{noise}-{row}": dict(zip(("kodak", "bsd300", "set14"), values))
    for noise, rows in _COLUMNS.items()
    for row, values in rows.items()
}


def unchecked(name):
    """True where the published figure of a row could not be checked against the paper."""
    return name.startswith(("poisson", "impulse"))
