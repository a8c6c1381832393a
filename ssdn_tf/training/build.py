"""From the options of a training to compiled models, samples and files."""

import dataclasses

import keras
import numpy as np

from ssdn_tf.data import files, images
from ssdn_tf.data.samples import Samples, hold_out, sample_photographs
from ssdn_tf.denoisers import models
from ssdn_tf.errors import UserError
from ssdn_tf.evaluation import protocol
from ssdn_tf.inference import precision
from ssdn_tf.networks.designs import DESIGNS
from ssdn_tf.training import distribution, schedules
from ssdn_tf.training.optimizers import SkippingAdam, SkippingMuon

# 0.07 dB better in 2,000 crops than the published ramps: 0.03 to 0.04 by the short way up, 0.04 by straight lines. Down
# all the way instead of over the last half: 0.04 and 0.05 dB more in 7,000 crops of Gaussian noise (two seeds).
_MUON_RAMPS = {"ramp_up": 0.02, "ramp_down": 0.98, "linear": True}
# Without it kernels grow to eight times their size in 90,000 steps, and then some crops are predicted absurdly: a mean
# of -184 where black is 0 and white 1. In a training of half an hour it changes no PSNR.
_MUON_DECAY = 0.05


def training_files(options, data_dir=None):
    """(training found, held-out files) of a training.

    Raises:
        UserError: no such data.
    """
    if options.train_data == "sample":
        found, held = sample_photographs()
    elif options.train_data.startswith("tfds:"):
        from ssdn_tf.data import tfds

        found, held = tfds.extract(options.train_data, data_dir), []
    else:
        find = find_any if options.noisy_already else images.find
        found, held = find(options.train_data), []
    if options.noisy_already or options.validation == "none":
        return found, []  # of noisy images, parts are held out
    if options.validation != "held_out":
        return found, protocol.image_set(options.validation, data_dir).files
    return (found, held) if held else hold_out(found)


def find_any(folder):
    """The files below a folder that hold pictures of any kind."""
    return [path for path, _ in files.find(folder)]


def fit_crops(options, sides):
    """The options with crops that at least half of the images hold, with a warning where that changes them.

    sides: the smaller side of each image.
    """
    grid = DESIGNS[options.experiment.network].grid
    most = int(np.median(sides)) // grid * grid
    stages = []
    for stage in options.stages:
        crop = min(stage.crop, max(most, grid))
        if crop < stage.crop:
            images.warn(f"most images are smaller than {stage.crop}x{stage.crop}; crops are {crop}x{crop} instead.")
        small = sum(side < crop for side in sides)
        if small:
            images.warn(f"{small} of {len(sides)} images are smaller than {crop}x{crop} and give no such crops.")
        stages.append(dataclasses.replace(stage, crop=crop))
    return dataclasses.replace(options, stages=tuple(stages))


def stage_samples(options, store, number):
    """Samples of a stage."""
    experiment, crop, exponent = options.experiment, options.stages[number].crop, None
    if models.anneals(experiment):

        def exponent(index):
            # Until the budget is planned, there is no end; those steps only measure the speed.
            return schedules.annealed_exponent(index, options.train_images) if options.planned else 2.0

    pictures = store.at_least(crop)
    return Samples(
        pictures,
        experiment,
        models.noise_model(experiment),
        crop=crop,
        seed=options.seed,
        exponent=exponent,
        noisy_already=options.noisy_already,
        augment=options.augment,
        # The six colour photographs lack whole colours, such as a blue sky. Among hundreds of photographs the order
        # of the channels is worth something: shuffled, held-out PSNR is 0.09 dB lower after 3,500 crops.
        shuffle_colours=options.augment and options.train_data == "sample",
        found=pictures.parameter if options.noisy_already else None,
    )


def start_of_parameter(options, samples):
    """Raw number that a learned noise parameter starts from."""
    experiment = options.experiment
    if experiment.parameter_source not in ("global", "per_image") or options.start == "published":
        return 0.0
    model = models.noise_model(experiment)
    if options.start != "estimate":
        return model.unconstrain(experiment.parameter(model.level.parse_one(options.start)))
    # Numbers that no training reaches, so that the estimate has crops of its own.
    crops = np.concatenate([samples.batch(2**40 + i, 1)["noisy"] for i in range(64)])
    return model.unconstrain(model.estimate(crops))


def jit_compile(jit, trained_in=None):
    """Whether XLA compiles the functions of a model.

    That makes a training step in float32 faster (benchmarks/step.py), but not one in bfloat16 on a CPU, where only
    oneDNN has the convolutions, and not denoising on a CPU; and XLA compiles again for each size of an image. JAX
    always compiles.

    Args:
        jit: "on", "off", or "auto".
        trained_in: precision of the network in a training step; None for a model that denoises.

    Raises:
        UserError: "off" under JAX.
    """
    if keras.backend.backend() == "jax":
        if jit == "off":
            raise UserError("JAX always compiles; expected 'auto' or 'on' for XLA, received 'off'.")
        return True
    if jit != "auto":
        return jit == "on"
    return trained_in is not None and not precision.is_for_onednn(trained_in)


def build(options, samples, devices=None):
    """The Denoiser of a run with fresh weights, its optimizer, and the schedule of the learning rate.

    Args:
        options: options.Options.
        samples: what a learned noise parameter starts from.
        devices: distribution.Devices, or None for one.

    Returns:
        (Denoiser, optimizer, RampUpRampDown); no model is compiled.
    """
    devices = devices or distribution.Devices()
    keras.utils.set_random_seed(options.seed)
    start = start_of_parameter(options, samples)
    with devices.scope():
        chosen = precision.choose(options.experiment.network)
        denoiser = models.build(options.experiment, start=start, rate=options.rate, precision=chosen)
        # Before the budget is planned, the number of images does not matter.
        stages = [(stage.images or 1, stage.batch_size, stage.share) for stage in options.stages]
        ramps = _MUON_RAMPS if options.optimizer == "muon" else {}
        schedule = schedules.RampUpRampDown(peak=options.learning_rate, stages=stages, **ramps)
        optimizer = _optimizer(options, schedule, denoiser)
        optimizer.build(denoiser.training.trainable_variables)
        for average, variable in zip(optimizer.averages, denoiser.training.trainable_variables):
            average.assign(variable.numpy())
    # Made outside of the scope, it answers on one device, without the other replicas.
    inference = keras.Model(denoiser.inference.input, denoiser.inference.output, name="inference")
    return models.Denoiser(denoiser.training, inference), optimizer, schedule


def _optimizer(options, schedule, denoiser):
    settings = {
        "learning_rate": schedule,
        "global_clipnorm": options.clip_norm or None,
        "use_ema": options.average > 0,
        "ema_momentum": options.average,
    }
    if options.optimizer == "muon":
        last = [network.last.kernel.path for network in models.networks(denoiser)]
        return SkippingMuon(name="muon", exclude_layers=last, weight_decay=_MUON_DECAY, **settings)
    return SkippingAdam(name="adam", beta_1=0.9, beta_2=0.99, epsilon=1e-8, **settings)
