"""What changes during training, as a function of the images seen."""

import math

import keras
from keras import ops


@keras.saving.register_keras_serializable("ssdn_tf")
class RampUpRampDown(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate: cosine up, flat, squared cosine down to 0.

    With t from 0 to 1 within each ramp: up as 1/2 - 1/2 cos(pi t) over the first
    `ramp_up` of the images, down as (1/2 + 1/2 cos(pi t))^2 over the last `ramp_down`.
    It is 0 at image 0, and a quarter of the peak half-way down.

    Args:
        peak: learning rate between the ramps (published: 3e-4).
        train_images: images in the whole training.
        batch_size: images a step.
        ramp_up, ramp_down: fractions of the training (published: 0.1, 0.3).
        final_images, final_weight: each of the last `final_images` counts `final_weight`
            times as much of the training as one before (larger crops, by their pixels).
    """

    def __init__(self, *, peak, train_images, batch_size, ramp_up=0.1, ramp_down=0.3, final_images=0, final_weight=1.0):
        self.peak = peak
        self.train_images = train_images
        self.batch_size = batch_size
        self.ramp_up = ramp_up
        self.ramp_down = ramp_down
        self.final_images = final_images
        self.final_weight = final_weight

    def __call__(self, step):
        # Steps and images are counted exactly in float32 up to 16.7 million.
        images = ops.cast(step, "float32") * self.batch_size
        first, extra = self.train_images - self.final_images, self.final_weight - 1.0
        seen = (images + extra * ops.maximum(images - first, 0.0)) / (self.train_images + extra * self.final_images)
        up = ops.minimum(seen / self.ramp_up, 1.0) if self.ramp_up else 1.0
        value = 0.5 - 0.5 * ops.cos(math.pi * up) if self.ramp_up else 1.0
        if self.ramp_down:
            down = ops.clip((seen - (1.0 - self.ramp_down)) / self.ramp_down, 0.0, 1.0)
            value = value * (0.5 + 0.5 * ops.cos(math.pi * down)) ** 2
        return self.peak * value

    def get_config(self):
        return {
            "peak": self.peak,
            "train_images": self.train_images,
            "batch_size": self.batch_size,
            "ramp_up": self.ramp_up,
            "ramp_down": self.ramp_down,
            "final_images": self.final_images,
            "final_weight": self.final_weight,
        }


def annealed_exponent(image, train_images):
    """Exponent of the Lp loss: from 2 linearly to 0.5 at three quarters of the training."""
    return max(0.5, 2.0 - 1.5 * (image / train_images) / 0.75)
