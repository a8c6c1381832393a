"""What changes during training, at its landmarks and against the published graph."""

import json
import math
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from support import array, tensor

from ssdn_tf.training import schedules
from ssdn_tf.training.schedules import RampUpRampDown, annealed_exponent

REFERENCE = pathlib.Path(__file__).parents[1] / "reference" / "values.npz"
PEAK = 3e-4


def rate(images, batch_size=1, train_images=2_000_000, **kwargs):
    schedule = RampUpRampDown(peak=PEAK, stages=[(train_images, batch_size, 1.0)], **kwargs)
    assert images % batch_size == 0
    return float(array(schedule(tensor(images // batch_size, "int64"))))


def test_schedule_matches_the_published_graph():
    """Values of the published training graph at 14 counts of images; see reference/values.npz."""
    with np.load(REFERENCE) as values:
        seen, expected = values["learning_rate/images_seen"], values["learning_rate/value"]
    assert len(seen) == 14
    found = [rate(int(images)) for images in seen]
    # A float32 of 3e-4 is good to 2e-11.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)


def test_schedule_landmarks():
    # Shares of the training; 1e-6 of the peak is a few units of float32.
    landmarks = {
        0.0: 0.0,
        0.05: 0.5,
        0.1: 1.0,
        0.4: 1.0,
        0.7: 1.0,
        0.85: 0.25,  # squared: half-way down is a quarter
        1.0: 0.0,
    }
    for share, height in landmarks.items():
        assert rate(round(share * 2_000_000)) == pytest.approx(height * PEAK, abs=1e-6 * PEAK)


def test_ramps_are_the_written_cosines():
    for t in (0.1, 0.25, 0.6, 0.9):
        up = 0.5 - 0.5 * math.cos(math.pi * t)
        down = (0.5 + 0.5 * math.cos(math.pi * t)) ** 2
        # Float32: t is good to a few 1e-7, the height then to 1e-6 of the peak.
        assert rate(round(0.1 * t * 2_000_000)) == pytest.approx(up * PEAK, abs=1e-6 * PEAK)
        assert rate(round((0.7 + 0.3 * t) * 2_000_000)) == pytest.approx(down * PEAK, abs=1e-6 * PEAK)


def test_schedule_stays_at_zero_after_the_training():
    assert rate(2_400_000) == pytest.approx(0.0, abs=1e-6 * PEAK)


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_schedule_counts_images_not_steps(batch_size):
    for images in (0, 48_000, 160_000, 1_600_000, 1_920_000):
        assert rate(images, batch_size) == rate(images, 1)


@pytest.mark.parametrize(
    "ramps, share, height",
    [
        ({"linear": True}, 0.0, 0.0),
        ({"linear": True}, 0.02, 0.2),
        ({"linear": True}, 0.4, 1.0),
        ({"linear": True}, 0.85, 0.5),
        ({"linear": True}, 1.0, 0.0),
        ({"ramp_up": 0.0}, 0.0, 1.0),
        ({"ramp_up": 0.0}, 0.85, 0.25),
        ({"ramp_down": 0.0}, 1.0, 1.0),
        ({"ramp_down": 0.0}, 0.05, 0.5),
        ({"ramp_up": 0.0, "ramp_down": 0.0}, 0.5, 1.0),
    ],
)
def test_ramps_can_be_left_out_and_straight(ramps, share, height):
    schedule = RampUpRampDown(peak=PEAK, stages=[(1000, 1, 1.0)], **ramps)
    found = float(array(schedule(tensor(round(share * 1000), "int64"))))
    assert found == pytest.approx(height * PEAK, rel=1e-5, abs=1e-6 * PEAK)


STAGES = [(600, 1, 0.6), (200, 2, 0.4)]  # 600 steps, then 100


def test_progress_runs_through_the_stages_by_their_shares():
    schedule = RampUpRampDown(peak=PEAK, stages=STAGES)
    for step, done in ((0, 0.0), (300, 0.3), (600, 0.6), (650, 0.8), (700, 1.0)):
        assert float(array(schedule.progress(tensor(step, "int64")))) == pytest.approx(done, abs=1e-6)


def test_a_plan_can_change_after_the_schedule_was_compiled():
    schedule = RampUpRampDown(peak=PEAK, stages=[(1, 1, 0.6), (1, 2, 0.4)])
    progress = tf.function(schedule.progress)
    assert float(progress(tf.constant(300))) > 100
    schedule.plan([600, 200])
    assert schedule.stages == STAGES
    assert float(progress(tf.constant(300))) == pytest.approx(0.3, abs=1e-6)


def test_arguments_are_named():
    with pytest.raises(TypeError):
        RampUpRampDown(PEAK, [(2_000_000, 4, 1.0)], 0.1, 0.3)


def test_schedule_survives_serialization():
    schedule = RampUpRampDown(peak=PEAK, stages=STAGES, ramp_up=0.2, ramp_down=0.4, linear=True)
    text = json.dumps(keras.saving.serialize_keras_object(schedule))
    again = keras.saving.deserialize_keras_object(json.loads(text))
    assert isinstance(again, schedules.RampUpRampDown)
    assert again.get_config() == schedule.get_config()
    assert again.get_config()["ramp_up"] == 0.2 and again.get_config()["ramp_down"] == 0.4
    assert again.get_config()["linear"]


def test_an_optimizer_takes_its_rate_from_the_schedule():
    schedule = RampUpRampDown(peak=1.0, stages=[(100, 5, 1.0)], ramp_down=0.0)
    optimizer = keras.optimizers.SGD(schedule)
    weight = keras.Variable(0.0)
    found = []
    for _ in range(4):
        optimizer.apply([tensor(1.0, "float32")], [weight])
        found.append(float(array(weight + 0.0)))
    # Rates 0, 0.5, 1, 1 at images 0, 5, 10, 15.
    np.testing.assert_allclose(found, [0.0, -0.5, -1.5, -2.5], atol=1e-6)


def test_exponent_anneals_from_two_to_one_half():
    shares = (0.0, 0.375, 0.75, 0.9, 1.0)
    assert [annealed_exponent(round(s * 1000), 1000) for s in shares] == [2.0, 1.25, 0.5, 0.5, 0.5]


def test_exponent_falls_linearly():
    found = np.diff([annealed_exponent(image, 1000) for image in range(0, 751, 50)])
    np.testing.assert_allclose(found, -0.1, rtol=1e-12)
