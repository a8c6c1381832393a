"""SavedModels with the posterior inside: how they are made. `inference.saved_models` loads them.

    signature         inputs                                    outputs
    serving_default   noisy [N,H,W,C] (, noise_parameter [N])   denoised [N,H,W,C]
    posterior         the same                                  denoised, mu_x, prior_std, posterior_std,
                                                                noise_parameter [N]
    denoise_png       image_bytes [N] (, noise_parameter [N])   image_bytes [N], 8 bit
    denoise_png16     the same                                  the same, 16 bit

Pictures are float32 in [0, 1], of any height and width; `denoised` is not clipped. Models
that were trained with a known level take it as `noise_parameter`, in the unit of the noise
model (sigma in [0, 1]); the others find it. Only pipeline "blindspot" has `posterior`.

The graph is TensorFlow's own operations alone, none of which must be compiled by XLA. Requests
that make no sense (a level out of range, NaN, an empty batch) are refused in the graph, so
that every client gets the same answer. TensorFlow is imported when a function is called.
"""

import json
import os
import pathlib
import shutil
import uuid

import keras
import numpy as np

import ssdn_tf
from ssdn_tf.errors import UserError
from ssdn_tf.inference.saved_models import CARD
from ssdn_tf.noise.levels import LEVELS

WARM_UP = "assets.extra/tf_serving_warmup_requests"
_WARM_UP_SIDE = 64


def takes_level(experiment):
    """True where requests carry `noise_parameter`."""
    return experiment.parameter_source == "known"


class Endpoints:
    """The functions behind the signatures, over an inference model (`denoisers.Denoiser.inference`).

    Each takes `(pictures)` or, for a known level, `(pictures, noise_parameter)`.
    """

    def __init__(self, model, experiment):
        import tensorflow as tf

        self.model = model
        self.experiment = experiment
        level = [tf.TensorSpec([None], tf.float32, "noise_parameter")] if takes_level(experiment) else []
        self._noisy = [tf.TensorSpec([None, None, None, experiment.channels], tf.float32, "noisy"), *level]
        self._image_bytes = [tf.TensorSpec([None], tf.string, "image_bytes"), *level]
        # The network is drawn once, for all signatures. Its input may have any shape, so that the check of the
        # shape is not taken for settled: a server does not compare requests with the signature.
        anything = tf.TensorSpec(None, tf.float32, "noisy")
        self._outputs = tf.function(self._compute, input_signature=[anything, *level])

    def denoise(self, noisy, noise_parameter=None):
        return {"denoised": self.posterior(noisy, noise_parameter)["denoised"]}

    def posterior(self, noisy, noise_parameter=None):
        """All outputs of the model, [N,H,W,C] each; noise_parameter [N]."""
        return self._outputs(noisy) if noise_parameter is None else self._outputs(noisy, noise_parameter)

    def _compute(self, noisy, noise_parameter=None):
        import tensorflow as tf

        noisy = self._checked(noisy, noise_parameter)
        shape = tf.shape(noisy)
        inputs = {"noisy": noisy}
        if "noise_parameter" in self.model.input:
            given = tf.zeros(shape[:1]) if noise_parameter is None else noise_parameter
            inputs["noise_parameter"] = tf.reshape(given, [-1, 1, 1, 1])
        outputs = dict(self.model(inputs, training=False))
        parameter = outputs.pop("noise_parameter", None)
        results = outputs
        if parameter is not None:
            results["noise_parameter"] = tf.broadcast_to(tf.reshape(parameter, [-1]), shape[:1])
        return results

    def png(self, bits):
        """The function [N] strings -> [N] strings of PNG files with `bits` bits."""
        import tensorflow as tf

        dtype = tf.uint8 if bits == 8 else tf.uint16
        channels = self.experiment.channels
        picture = tf.TensorSpec([None, None, channels], dtype)

        def decode(data):
            # Colour first, also for gray: the decoder's own gray is luma, the paper's the channel mean.
            if bits == 8:
                pixels = tf.io.decode_image(data, channels=3, expand_animations=False)
            else:
                pixels = tf.io.decode_png(data, channels=3, dtype=dtype)
            if channels == 1:
                mean = tf.reduce_mean(tf.cast(pixels, tf.float64), axis=-1, keepdims=True)
                pixels = tf.cast(tf.round(mean), dtype)
            return tf.ensure_shape(pixels, picture.shape)

        def denoise_png(image_bytes, noise_parameter=None):
            some = tf.debugging.Assert(tf.size(image_bytes) > 0, ["expected at least one picture, received none."])
            with tf.control_dependencies([some]):
                pixels = tf.map_fn(decode, image_bytes, fn_output_signature=picture)
            # In float64: graph optimization multiplies by a rounded 1 / 255 instead of dividing.
            noisy = tf.cast(tf.cast(pixels, tf.float64) / float(dtype.max), tf.float32)
            denoised = tf.cast(self.denoise(noisy, noise_parameter)["denoised"], tf.float64)
            # The same rounding as images.to_uint8.
            whole = tf.cast(tf.clip_by_value(float(dtype.max) * denoised + 0.5, 0.0, float(dtype.max)), dtype)
            return {"image_bytes": tf.map_fn(tf.io.encode_png, whole, fn_output_signature=tf.string)}

        return denoise_png

    def _checked(self, noisy, noise_parameter):
        """`noisy`; what the mathematics is not defined for is refused when the graph runs."""
        import tensorflow as tf

        def require(condition, sentence, *values):
            return tf.debugging.Assert(tf.reduce_all(condition), [sentence, *values], summarize=8)

        shape, channels = tf.shape(noisy), self.experiment.channels
        known = (tf.size(shape) == 4) & (shape[-1] == channels)
        first = require(known, f"noisy: expected the shape [N, H, W, {channels}], received", shape)
        with tf.control_dependencies([first]):
            noisy = tf.ensure_shape(tf.identity(noisy), [None, None, None, channels])
        shape = tf.shape(noisy)
        require(shape > 0, "noisy: expected at least one picture of at least one pixel, received the shape", shape)
        require(tf.math.is_finite(noisy), "noisy: expected finite intensities, received NaN or infinity.")
        if noise_parameter is None:
            return noisy
        count = tf.shape(noise_parameter)
        require(count == shape[:1], "noise_parameter: expected one a picture, received", count, "values for", shape[0])
        level = LEVELS[self.experiment.noise]
        low, high = level.to_parameter(level.low), level.to_parameter(level.high)
        legal = (noise_parameter >= low) & (noise_parameter <= high)  # False for NaN
        require(legal, f"noise_parameter: expected {level.allowed_parameter}, received", noise_parameter)
        return noisy

    def signatures(self):
        """{signature: (function, [TensorSpec])}."""
        found = {"serving_default": (self.denoise, self._noisy)}
        if self.experiment.pipeline == "blindspot":
            found["posterior"] = (self.posterior, self._noisy)
        return found | {
            f"denoise_png{name}": (self.png(bits), self._image_bytes) for name, bits in (("", 8), ("16", 16))
        }


# ---------------------------------------------------------------- writing


def model_card(experiment, **more):
    """What a model is, as a JSON-able dict; `more` says where it comes from."""
    level = LEVELS[experiment.noise]
    number = experiment.low if experiment.fixed else [experiment.low, experiment.high]
    return {
        "name": experiment.name,
        "experiment": experiment.to_dict(),
        "noise": {"kind": experiment.noise, "unit": level.unit} | stated,
        "parameter_source": experiment.parameter_source,
        "channels": experiment.channels,
        "package": f"ssdn_tf {ssdn_tf.__version__}",
        **more,
    }


def run_card(options, position, history):
    """What the card of a run says beside the experiment.

    history: rows of history.jsonl; the last one has the validation.
    """
    last = history[-1] if history else {}
    names = ("train_images", "batch_size", "crop", "final_crop", "final_images", "learning_rate", "seed", "width")
    training = {name: getattr(options, name) for name in names}
    training["images_seen"] = position["step"] * options.batch_size
    training["pictures"] = "noisy" if options.noisy_already else "clean, noise added"
    keys = {"psnr": "psnr", "psnr_mu_x": "psnr_mu_x", "noise_level": "learned_level"}
    return {"training": training, "validation": {new: last[old] for old, new in keys.items() if old in last}}


def export(model, experiment, card, output):
    """Writes `output/<version>/`, the next free number, and returns that path.

    The folder is made beside its place and moved there whole, so that a server which watches
    `output` never sees half a model.

    Args:
        model: an inference model (`denoisers.Denoiser.inference`), with its weights.
        experiment: what it was trained for.
        card: dict, becomes the model card.
        output: folder of the versions of one model.

    Raises:
        UserError: the file system refuses, or `output` holds something else.
    """
    output = pathlib.Path(output)
    if output.is_file() or (output / "saved_model.pb").exists():
        raise UserError(f"--output: expected a folder for the versions of a model, received '{output}'.")
    temporary = output / f".{uuid.uuid4().hex}"
    try:
        output.mkdir(parents=True, exist_ok=True)
        _write(model, experiment, card, temporary)
        return _move_into_place(temporary, output)
    except OSError as error:
        raise UserError(f"{output}: expected to write a model, received '{error.strerror or error}'.") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(model, experiment, card, folder):
    archive = keras.export.ExportArchive()
    archive.track(model)
    signatures = Endpoints(model, experiment).signatures()
    for name, (function, inputs) in signatures.items():
        archive.add_endpoint(name, function, input_signature=inputs)
    archive.write_out(str(folder), verbose=False)
    (folder / CARD).parent.mkdir(exist_ok=True)
    (folder / CARD).write_text(json.dumps(card, indent=2) + "\n")
    _write_warm_up(experiment, signatures, folder / WARM_UP)


def _move_into_place(temporary, output):
    while True:
        numbers = [int(path.name) for path in output.iterdir() if path.name.isdigit()]
        place = output / str(max(numbers, default=0) + 1)
        try:
            os.rename(temporary, place)
            return place
        except OSError:
            if not place.exists():
                raise
            # Another export took this number.


def _write_warm_up(experiment, signatures, path):
    """One request a signature, which TF Serving plays back before it calls a model ready."""
    import tensorflow as tf

    from ssdn_tf.data import images
    from ssdn_tf.serving import messages

    pixels = np.full((_WARM_UP_SIDE, _WARM_UP_SIDE, experiment.channels), 128, np.uint8)
    # 1 is legal for every noise model; a published network may not say its level.
    level = np.array([1.0 if experiment.high is None else experiment.parameter(experiment.high)], np.float32)
    noisy = images.to_float(pixels)[None]
    png = {8: images.encode_png(pixels), 16: images.encode_png(pixels.astype(np.uint16) * 257)}
    with tf.io.TFRecordWriter(str(path)) as writer:
        for name, (_, specs) in signatures.items():
            values = {"noisy": noisy, "noise_parameter": level}
            values["image_bytes"] = np.array([png[16 if name.endswith("16") else 8]], object)
            inputs = {spec.name: values[spec.name] for spec in specs}
            writer.write(messages.warm_up_record(inputs, name))
