"""Pixels to denoised pixels, by a model behind TensorFlow Serving. Loads neither TensorFlow nor Keras."""

import json

import numpy as np

from ssdn_tf.data import images
from ssdn_tf.denoisers.experiments import Experiment
from ssdn_tf.errors import UserError
from ssdn_tf.networks.designs import DESIGNS


class RemoteDenoiser:
    """A served model that keeps the contract of export/README.md.

    Attributes:
        channels: 3 or 1.
        takes_level: True where requests carry a noise level.
        noise_parameter: the level to send, in the unit of the noise model; set it where `takes_level`.
        experiment: Experiment of the model card; None where the server has no `describe`.
        grid: tiles start at its multiples.
        reach: how many pixels away a pixel can change an output.

    Args:
        server: remote.Server.

    Raises:
        UserError: the server cannot be reached, or the model is of another kind.
    """

    def __init__(self, server):
        self.server = server
        self.name = f"{server.transport.address}, model '{server.transport.model}'"
        signatures = server.signatures()
        self.channels = self._find_channels(signatures)
        self.takes_level = "noise_parameter" in signatures["denoise_png"].inputs
        self.noise_parameter = None
        self.experiment = None
        self.grid, self.reach = DESIGNS["paper"].grid, DESIGNS["paper"].reach()
        if "describe" in signatures:
            self._read_card()

    def _find_channels(self, signatures):
        try:
            channels = signatures["serving_default"].inputs["noisy"][3]
            complete = all("image_bytes" in signatures[name].inputs for name in ("denoise_png", "denoise_png16"))
        except (KeyError, IndexError, TypeError):
            channels, complete = None, False
        if channels not in (1, 3) or not complete:
            names = images.enumerate_names(sorted(signatures))
            raise UserError(f"{self.name}: expected a model of export/savedmodel.py, received one with {names}.")
        return channels

    def _read_card(self):
        (text,) = self.server.predict("describe", {"request": np.array([b""], object)}, "model_card")
        try:
            card = json.loads(text)
            self.experiment = Experiment(**card["experiment"])
            self.grid, self.reach = int(card["network"]["grid"]), int(card["network"]["reach"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.name}: the model card cannot be read ({error!r}).") from error

    def __call__(self, pixels):
        """uint8 or uint16 [H,W,C] -> the same, denoised.

        Raises:
            UserError: the server cannot be reached or refuses, or its answer is not a PNG of that size.
        """
        signature = "denoise_png" if pixels.dtype == np.uint8 else "denoise_png16"
        inputs = {"image_bytes": np.array([images.encode_png(pixels)], object)}
        if self.takes_level:
            inputs["noise_parameter"] = np.array([self.noise_parameter], np.float32)
        answer = self.server.predict(signature, inputs, "image_bytes")
        expected = f"a PNG of {_describe(pixels)}"
        if answer.shape != (1,) or not isinstance(answer[0], bytes) or not answer[0].startswith(b"\x89PNG"):
            raise UserError(f"{self.name}: expected {expected}, received something else.")
        found = images.decode(answer[0], f"{self.name}: the answer")
        if found.shape != pixels.shape or found.dtype != pixels.dtype:
            raise UserError(f"{self.name}: expected {expected}, received {_describe(found)}.")
        return found


def _describe(pixels):
    height, width, channels = pixels.shape
    return f"{width}x{height} pixels, {8 * pixels.itemsize} bits, {channels} channels"
