"""What decides the result of a training."""

import dataclasses
import math
import re

from ssdn_tf.denoisers.experiments import Experiment


@dataclasses.dataclass(frozen=True)
class Stage:
    """A part of a training with crops of one size.

    crop: side of the crops.
    batch_size: crops a step, over all devices.
    share: of the whole training; the shares of all stages sum to 1.
    images: crops in this stage; None where a time budget decides later.
    """

    crop: int
    batch_size: int
    share: float = 1.0
    images: int | None = None

    @property
    def steps(self):
        return math.ceil(self.images / self.batch_size)


def parse_stages(text):
    """Stages from text such as "64x1:0.6,128x1:0.4": crop x batch size : share. A single stage needs no share.

    Raises:
        ValueError: the text is not of this form, or the shares do not sum to 1.
    """
    stages = []
    for part in text.split(","):
        found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})(?::(0?\.\d+|1|1\.0*))?", part.strip())
        if not found or (found[3] is None and "," in text):
            raise ValueError(f"expected crop x batch : share, such as 64x1:0.6,128x1:0.4, received '{text}'.")
        stages.append(Stage(int(found[1]), int(found[2]), float(found[3] or 1)))
    if abs(sum(stage.share for stage in stages) - 1) > 1e-6 or not all(stage.share for stage in stages):
        raise ValueError(f"expected shares above 0 that sum to 1, received '{text}'")
    return tuple(stages)


@dataclasses.dataclass(frozen=True)
class Options:
    """What decides the result of a run; the folder of a run belongs to one set of options.

    stages: Stage, in their order; one is the ordinary case.
    budget: seconds that the training may take; the images of the stages are then measured once and written into
        the folder of the run, so nothing depends on the clock afterwards. None: the stages have their images.
    value_range: (black, white) of noisy images; None where a training adds the noise, or until it is measured.
    augment: crops are flipped and transposed at random; those of "sample" get their colours shuffled.
    optimizer: "adam", or "muon" for convolution kernels and Adam for the rest.
    average: momentum of the averaged weights (0.999 averages over the last 1,000 steps or so); 0 for none.
    clip_norm: gradients longer than this (all weights together) are shortened to it; 0: never.
    start, rate: of a learned noise parameter (`parameters.GlobalParameter`); start "estimate" takes a robust estimate
        from noisy crops, "published" raw 0, a number is a level.
    validation: "held_out", "none", or the name of a set (`evaluation.protocol.image_set`).
    warm_start: run, or network of the package, whose weights to start from, or "".
    """

    experiment: Experiment
    train_data: str = "sample"
    noisy_already: bool = False
    value_range: tuple | None = None
    stages: tuple = (Stage(256, 4, 1.0, 2_000_000),)
    budget: float | None = None
    augment: bool = False
    optimizer: str = "adam"
    learning_rate: float = 3e-4
    average: float = 0.0
    clip_norm: float = 0.0
    seed: int = 0
    start: str = "published"
    rate: float = 1.0
    validation: str = "none"
    warm_start: str = ""

    def to_dict(self):
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values):
        values = {name: value for name, value in values.items() if name != "precision"}  # older runs have it
        made = {"experiment": Experiment(**values["experiment"]), "stages": tuple(Stage(**s) for s in values["stages"])}
        if values.get("value_range"):
            made["value_range"] = tuple(values["value_range"])
        return cls(**values | made)

    @property
    def planned(self):
        """True once the number of images is known."""
        return all(stage.images for stage in self.stages)

    @property
    def steps(self):
        return sum(stage.steps for stage in self.stages)

    @property
    def train_images(self):
        return sum(stage.images for stage in self.stages)

    def place(self, step):
        """(stage number, first step of the stage, images before the stage) for a step of the training."""
        first = images = 0
        for number, stage in enumerate(self.stages):
            if step < first + stage.steps or number + 1 == len(self.stages):
                return number, first, images
            first, images = first + stage.steps, images + stage.steps * stage.batch_size

    def images_seen(self, step):
        """Images in the first `step` steps."""
        number, first, images = self.place(step)
        return images + (step - first) * self.stages[number].batch_size

    def with_images(self, train_images):
        """These options with so many images, spread over the stages by their shares."""
        return self.with_counts([max(round(stage.share * train_images), 1) for stage in self.stages])

    def with_counts(self, counts):
        """These options with the number of images of each stage."""
        stages = [dataclasses.replace(stage, images=int(n)) for stage, n in zip(self.stages, counts)]
        return dataclasses.replace(self, stages=tuple(stages))

    def with_seconds(self, seconds, step_seconds):
        """These options with the images that fit into a time.

        Args:
            seconds: for all stages.
            step_seconds: measured duration of a step, a number for each stage.
        """
        pairs = zip(self.stages, step_seconds)
        return self.with_counts([max(int(s.share * seconds / duration), 1) * s.batch_size for s, duration in pairs])
