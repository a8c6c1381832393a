"""SavedModels with the posterior inside: how they are made. `inference.saved_models` loads them.

    signature         inputs                                    outputs
    serving_default   noisy [N,H,W,C] (, noise_parameter [N])   denoised [N,H,W,C]
    posterior         the same                                  denoised, mu_x, prior_std, posterior_std,
                                                                noise_parameter [N], or [N,2] with two numbers
    denoise_png       image_bytes [N] (, noise_parameter [N])   image_bytes [N], 8 bit
    denoise_png16     the same                                  the same, 16 bit
    describe          request [N], of any content               model_card [N], JSON

Pictures are float32 in [0, 1], of any height and width; `denoised` is not clipped. Models trained with a known
level take it as `noise_parameter`, in the unit of the noise model (sigma in [0, 1]; gain and sigma, [N,2], for
poisson_gaussian and additive); the others find it themselves. Only
pipeline "blindspot" has `posterior`.

The graph holds TensorFlow's own operations only, none of which XLA must compile. It checks the requests itself (a
level out of range, NaN, an empty batch), so every client gets the same errors. TensorFlow is imported when a
function is called.
"""

import dataclasses
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
from ssdn_tf.networks.designs import DESIGNS
from ssdn_tf.noise.levels import LEVELS

WARM_UP = "assets.extra/tf_serving_warmup_requests"
_WARM_UP_SIDE = 64


def takes_level(experiment):
    """True where requests carry `noise_parameter`."""
    return experiment.parameter_source == "known"


class Endpoints:
    """The functions behind the signatures, over an inference model (`denoisers.Denoiser.inference`).

    Each takes `(pictures)` or, for a known level, `(pictures, noise_parameter)`; `describe` takes `(request)`.

    A server does not compare the shapes of a request with the signature, so the graph does. Each check sits in a
    tf.function whose inputs have open shapes: with the signature's shapes, TensorFlow would take the rank as given
    and remove the check.
    """

    def __init__(self, model, experiment, card):
        import tensorflow as tf

        def specs(kind, level, name, dtype):
            found = [tf.TensorSpec(kind, dtype, name)]
            return found + [tf.TensorSpec(level, tf.float32, "noise_parameter")] * takes_level(experiment)

        self.model = model
        self.experiment = experiment
        self.card = json.dumps(card)
        self.numbers = LEVELS[experiment.noise].numbers
        level = [None] if len(self.numbers) == 1 else [None, len(self.numbers)]
        self._noisy = specs([None, None, None, experiment.channels], level, "noisy", tf.float32)
        self._image_bytes = specs([None], level, "image_bytes", tf.string)
        self._open_image_bytes = specs(None, None, "image_bytes", tf.string)
        # All signatures share one trace of the network.
        self._outputs = tf.function(self._compute, input_signature=specs(None, None, "noisy", tf.float32))

    def denoise(self, noisy, noise_parameter=None):
        return {"denoised": self.posterior(noisy, noise_parameter)["denoised"]}

    def posterior(self, noisy, noise_parameter=None):
        """All outputs of the model, [N,H,W,C] each; noise_parameter [N], or [N,2] with two numbers."""
        return self._outputs(noisy) if noise_parameter is None else self._outputs(noisy, noise_parameter)

    def _compute(self, noisy, noise_parameter=None):
        import tensorflow as tf

        noisy, noise_parameter = self._checked(noisy, noise_parameter)
        shape = tf.shape(noisy)
        inputs = {"noisy": noisy}
        if "noise_parameter" in self.model.input:
            size = len(self.numbers)
            given = tf.zeros([shape[0], size]) if noise_parameter is None else noise_parameter
            inputs["noise_parameter"] = tf.reshape(given, [-1, 1, 1, size])
        outputs = dict(self.model(inputs, training=False))
        if "noise_parameter" in outputs:
            size = len(self.numbers)
            parameter = tf.reshape(outputs["noise_parameter"], [-1] if size == 1 else [-1, size])
            outputs["noise_parameter"] = tf.broadcast_to(parameter, shape[:1] if size == 1 else [shape[0], size])
        return outputs

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
            shape = tf.shape(image_bytes)
            is_list = (tf.size(shape) == 1) & tf.reduce_all(shape > 0)
            expected = "image_bytes: expected the shape [N] with at least one picture, received the shape"
            with tf.control_dependencies([_require(is_list, expected, shape)]):
                image_bytes = tf.ensure_shape(tf.identity(image_bytes), [None])
            pixels = tf.map_fn(decode, image_bytes, fn_output_signature=picture)
            # In float64: graph optimization multiplies by a rounded 1 / 255 instead of dividing.
            noisy = tf.cast(tf.cast(pixels, tf.float64) / float(dtype.max), tf.float32)
            denoised = tf.cast(self.denoise(noisy, noise_parameter)["denoised"], tf.float64)
            # The same rounding as images.to_uint8.
            whole = tf.cast(tf.clip_by_value(float(dtype.max) * denoised + 0.5, 0.0, float(dtype.max)), dtype)
            return {"image_bytes": tf.map_fn(tf.io.encode_png, whole, fn_output_signature=tf.string)}

        return tf.function(denoise_png, input_signature=self._open_image_bytes)

    def describe(self, request):
        """The model card as JSON, for each element of `request` [N].

        The input is there because TensorFlow Serving's REST and batching both refuse a signature without one.
        """
        import tensorflow as tf

        return {"model_card": tf.fill(tf.shape(request)[:1], self.card)}

    def _checked(self, noisy, noise_parameter):
        """Both inputs, which the graph gives on only if the model is defined for them."""
        import tensorflow as tf

        shape, channels = tf.shape(noisy), self.experiment.channels
        fits = (tf.size(shape) == 4) & tf.reduce_all(shape[-1:] == channels)
        checks = [_require(fits, f"noisy: expected the shape [N, H, W, {channels}], received the shape", shape)]
        with tf.control_dependencies(checks):
            noisy = tf.ensure_shape(tf.identity(noisy), [None, None, None, channels])
        expected = "noisy: expected at least one picture of at least one pixel, received the shape"
        checks += [_require(shape > 0, expected, shape)]
        checks += [_require(tf.math.is_finite(noisy), "noisy: expected finite intensities, received NaN or infinity.")]
        if noise_parameter is not None:
            count, numbers = tf.shape(noise_parameter), self.numbers
            rank = 1 if len(numbers) == 1 else 2
            one_each = (tf.size(count) == rank) & tf.reduce_all(count[:1] == shape[:1])
            one_each &= (rank == 1) | tf.reduce_all(count[1:] == len(numbers))
            expected = "noise_parameter: expected one level for each picture, received the shapes (levels, pictures)"
            checks += [_require(one_each, expected, count, shape)]
            low, high = map(np.float32, zip(*(number.parameter_range for number in numbers)))
            legal = (noise_parameter >= low) & (noise_parameter <= high)  # False for NaN
            allowed = " and ".join(number.allowed_parameter for number in numbers)
            expected = f"noise_parameter: expected {allowed}, received"
            checks += [_require(legal, expected, noise_parameter)]
        with tf.control_dependencies(checks):
            noisy = tf.identity(noisy)
            if noise_parameter is not None:
                noise_parameter = tf.ensure_shape(tf.identity(noise_parameter), [None] * rank)
        return noisy, noise_parameter

    def signatures(self):
        """{signature: (function, [TensorSpec])}"""
        import tensorflow as tf

        found = {"serving_default": (self.denoise, self._noisy)}
        if self.experiment.pipeline == "blindspot":
            found["posterior"] = (self.posterior, self._noisy)
        found |= {f"denoise_png{name}": (self.png(bits), self._image_bytes) for name, bits in (("", 8), ("16", 16))}
        return found | {"describe": (self.describe, [tf.TensorSpec([None], tf.string, "request")])}


def _require(condition, sentence, *values):
    """An operation that fails with the sentence and the values unless the whole condition holds."""
    import tensorflow as tf

    return tf.debugging.Assert(tf.reduce_all(condition), [sentence, *values], summarize=8)


# ---------------------------------------------------------------- writing


def model_card(experiment, **more):
    """What a model is, as a dict for JSON. `more`: where it comes from."""
    level, stated = LEVELS[experiment.noise], {}
    if experiment.low is not None:
        for number, low, high in zip(level.numbers, level.split(experiment.low), level.split(experiment.high)):
            stated[number.name] = low if low == high else [low, high]
    design = DESIGNS[experiment.network]
    return {
        "name": experiment.name,
        "experiment": experiment.to_dict(),
        "noise": {"kind": experiment.noise, "unit": "; ".join(n.unit for n in level.numbers)} | stated,
        "parameter_source": experiment.parameter_source,
        "channels": experiment.channels,
        "network": {"design": experiment.network, "grid": design.grid, "reach": design.reach(experiment.blindspot)},
        "package": f"ssdn_tf {ssdn_tf.__version__}",
        **more,
    }


def run_card(options, step, history):
    """What the card of a run says beside the experiment.

    Args:
        options: of the training.
        step: how many steps it has taken.
        history: rows of history.jsonl; the last one holds the validation.
    """
    names = ("train_images", "optimizer", "learning_rate", "seed")
    training = {name: getattr(options, name) for name in names} | {"images_seen": options.images_seen(step)}
    training["stages"] = [dataclasses.asdict(stage) for stage in options.stages]
    training["pictures"] = "noisy" if options.noisy_already else "clean, noise added"
    if options.value_range:
        training["value_range"] = list(options.value_range)
    last = history[-1] if history else {}
    keys = {"psnr": "psnr", "psnr_mu_x": "psnr_mu_x", "noise_level": "learned_level"}
    return {"training": training, "validation": {new: last[old] for old, new in keys.items() if old in last}}


def export(model, experiment, card, output):
    """Writes `output/<version>/`, the next free number, and returns that path.

    The folder is written under another name and then renamed, so a server that watches `output` never sees half a
    model.

    Args:
        model: an inference model (`denoisers.Denoiser.inference`), with its weights.
        experiment: what it was trained for.
        card: dict, becomes the model card.
        output: folder for the versions of one model.

    Raises:
        ValueError: `output` is a file or a single SavedModel.
        UserError: the file system refuses.
    """
    import tensorflow as tf

    output = pathlib.Path(output)
    if output.is_file() or (output / "saved_model.pb").exists():
        raise ValueError(f"expected a folder for the versions of a model, received '{output}'.")
    temporary = output / f".{uuid.uuid4().hex}"
    try:
        output.mkdir(parents=True, exist_ok=True)
        _write(model, experiment, card, temporary)
        return _move_into_place(temporary, output)
    except OSError as error:
        raise UserError(f"{output}: cannot write the model ({error.strerror or error}).") from error
    except tf.errors.OpError as error:  # what TensorFlow makes of an OSError
        raise UserError(f"{output}: cannot write the model ({error.message}).") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(model, experiment, card, folder):
    archive = keras.export.ExportArchive()
    archive.track(model)
    signatures = Endpoints(model, experiment, card).signatures()
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
            # Another export took this number: try the next one.


def _write_warm_up(experiment, signatures, path):
    """One request for each signature; TF Serving replays them before it reports a model as available."""
    import tensorflow as tf

    from ssdn_tf.data import images
    from ssdn_tf.serving import messages

    pixels = np.full((_WARM_UP_SIDE, _WARM_UP_SIDE, experiment.channels), 128, np.uint8)
    # 1 is legal for every number of a noise model; a published network may not say its level.
    numbers = len(LEVELS[experiment.noise].numbers)
    level = np.ones(numbers) if experiment.high is None else experiment.parameter(experiment.high)
    level = np.reshape(np.float32(level), (1,) if numbers == 1 else (1, numbers))
    noisy = images.to_float(pixels)[None]
    png = {8: images.encode_png(pixels), 16: images.encode_png(pixels.astype(np.uint16) * 257)}
    with tf.io.TFRecordWriter(str(path)) as writer:
        for name, (_, specs) in signatures.items():
            values = {"noisy": noisy, "noise_parameter": level, "request": np.array([b""], object)}
            values["image_bytes"] = np.array([png[16 if name.endswith("16") else 8]], object)
            inputs = {spec.name: values[spec.name] for spec in specs}
            writer.write(messages.warm_up_record(inputs, name))
