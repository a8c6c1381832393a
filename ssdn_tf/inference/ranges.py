"""The range of intensities of pictures that were taken alike, (black, white): what a network takes as 0 and 1."""

import numpy as np

from ssdn_tf.data import images
from ssdn_tf.data.planes import UnitView, measured_range, readable, spread
from ssdn_tf.inference.predictor import MIDDLE

PLANES = 16  # most that the black level is fitted to
_ALIKE = 4.0  # a range of a training is taken if that of the pictures meets it, at most this much wider or narrower


def find(planes, predictor_of, noise_is_known=False):
    """The range of a set of pictures.

    That of the training, where the network was trained on noisy pictures of a similar range. Else the measured one
    (`planes.measured_range`), with the black level at which photon noise ends (`Predictor.black_level`).

    Args:
        planes: iterable of planes [H,W,C] of one dtype, of a large set `planes.spread` over it; each is taken once, as
            it may be a file that is read. Damaged ones are left out.
        predictor_of: function of a number of channels that gives a Predictor, as `PictureDenoiser.predictor`.
        noise_is_known: the user says the noise level, in the unit of the measured range: then no black level is fitted.

    Returns:
        ((black, white), in words where it is from).
    """
    middles = []

    def watched(plane):
        middles.append(np.array(images.middle(plane, MIDDLE)))
        return plane

    rest = readable(planes, watched)
    limits = measured_range(rest)
    if not middles:  # all of them are damaged, which is said when their turn comes
        return limits, "measured"
    channels = middles[0].shape[-1]

    def views():
        for _ in rest:  # of 8 bit, the range is known before all planes are read
            pass
        alike = [middle for middle in middles if middle.shape[-1] == channels]
        return [UnitView(alike[i], limits, channels) for i in spread(len(alike), PLANES)]

    return refined(limits, predictor_of(channels), views, noise_is_known)


def refined(limits, model, planes, noise_is_known=False):
    """The same, of measured limits, a Predictor and a function that gives planes in the unit of these limits."""
    trained = model.trained_range
    if trained and _are_alike(limits, trained):
        return trained, "as in the training"
    if noise_is_known or not model.finds_black_level:
        return limits, "measured"
    black = round(model.black_level([model.middle_pixels(plane) for plane in planes()]), 3)
    if not black:
        return limits, "measured"
    return (limits[0] + black * _width(limits), limits[1]), "black found by the noise"


def _are_alike(one, other):
    overlap = one[0] < other[1] and other[0] < one[1]
    return overlap and 1 / _ALIKE <= _width(one) / _width(other) <= _ALIKE


def _width(limits):
    return limits[1] - limits[0]
