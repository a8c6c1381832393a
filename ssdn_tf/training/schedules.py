"""What changes during training, as a function of its progress."""

import math

import keras
from keras import ops


@keras.saving.register_keras_serializable("ssdn_tf")
class RampUpRampDown(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate: up from 0, flat, down to 0.

    With t from 0 to 1 within each ramp: up as 1/2 - 1/2 cos(pi t) over the first `ramp_up` of the training, down as
    (1/2 + 1/2 cos(pi t))^2 over the last `ramp_down`, a quarter of the peak half-way down. Or `linear`: t and 1 - t.

    Progress is counted in images, and within a stage it is proportional to them: each stage is `share` of the training.

    Args:
        peak: learning rate between the ramps (published: 3e-4).
        stages: (images, batch size, share) of each stage; shares sum to 1. Published: one, (images, 4, 1).
        ramp_up, ramp_down: fractions of the training (published: 0.1, 0.3).
        linear: straight ramps, not the published cosines.

    Reference: Laine et al. 2019, supplement.
    """

    def __init__(self, *, peak, stages, ramp_up=0.1, ramp_down=0.3, linear=False):
        self.peak = peak
        self.ramp_up = ramp_up
        self.ramp_down = ramp_down
        self.linear = linear
        self.stages = [tuple(stage) for stage in stages]
        self._images = keras.Variable([0.0] * len(stages), trainable=False, dtype="float32", name="images")
        self._first = keras.Variable([0.0] * len(stages), trainable=False, dtype="float32", name="first_step")
        self.plan([images for images, _, _ in stages])

    def plan(self, images):
        """Sets the number of images of each stage, also after the schedule has been compiled (but not under JAX)."""
        self.stages = [(n, batch_size, share) for n, (_, batch_size, share) in zip(images, self.stages)]
        steps = [math.ceil(n / batch_size) for n, batch_size, _ in self.stages]
        self._images.assign([float(n) for n in images])
        self._first.assign([float(sum(steps[:i])) for i in range(len(steps))])

    def progress(self, step):
        """Fraction of the training that is done after `step` steps; exceeds 1 after the end."""
        # Steps and images are exact in float32 up to 16.7 million.
        step, done, last = ops.cast(step, "float32"), 0.0, len(self.stages) - 1
        for i, (_, batch_size, share) in enumerate(self.stages):
            part = share * ((step - self._first[i]) * batch_size / self._images[i])
            part = ops.maximum(part, 0.0) if i else part
            done = done + (ops.minimum(part, share) if i < last else part)
        return done

    def __call__(self, step):
        done = self.progress(step)
        value = 1.0
        if self.ramp_up:
            up = ops.minimum(done / self.ramp_up, 1.0)
            value = up if self.linear else 0.5 - 0.5 * ops.cos(math.pi * up)
        if self.ramp_down:
            down = ops.clip((done - (1.0 - self.ramp_down)) / self.ramp_down, 0.0, 1.0)
            value = value * (1.0 - down if self.linear else (0.5 + 0.5 * ops.cos(math.pi * down)) ** 2)
        return self.peak * value

    def get_config(self):
        names = ("peak", "stages", "ramp_up", "ramp_down", "linear")
        return {name: getattr(self, name) for name in names}


def annealed_exponent(image, train_images):
    """Exponent of the Lp loss: from 2 linearly to 0.5 at three quarters of the training.

    Reference: Lehtinen et al., Noise2Noise, 2018.
    """
    return max(0.5, 2.0 - 1.5 * (image / train_images) / 0.75)
