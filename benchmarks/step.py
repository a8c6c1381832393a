"""Time and memory of a training step, and of denoising, for each way to run the network.

    python benchmarks/step.py
    python benchmarks/step.py --only="train 1"        the cases whose names contain this

The first cases compare the networks, the precision and XLA; "train 1 x 64x64" is a step on one crop of 64x64. The
other cases compare, for the paper's network, the fused upsampling (`UpsampleConvolution`), XLA and oneDNN with what
Keras does by default: plain upsampling, no XLA, and oneDNN only where TensorFlow turns it on by itself.

Each row is a process of its own. The rows of a case take turns, and the best turn counts.

    slower        time against the first row of the case
    first call    seconds, with tracing and compilation
    peak MB       most memory of the process
    GFLOP/s       2 for each multiply-add that the network carries out; backward counts twice
    convolution   the same rate of one 3x3 convolution of 96 to 96 features (16 x 64x64, forward and backward, in
                  the precision of the row): the best rate of all rows of the case, by XLA or oneDNN
    reached       GFLOP/s over that rate
    nominal       the same, but with the multiply-adds of plain upsampling
"""

import functools
import itertools

import harness

FORMS = {
    "": {},
    ", plain upsampling": {"fused": False},
    ", not compiled": {"jit": False},
    ", Keras's default": {"fused": False, "jit": False, "environment": {"TF_ENABLE_ONEDNN_OPTS": None}},
    ", Keras's default, no oneDNN": {"fused": False, "jit": False, "environment": {"TF_ENABLE_ONEDNN_OPTS": "0"}},
}
NETWORKS = {
    f", {network}, {precision}, XLA {'on' if jit else 'off'}": {"network": network, "precision": precision, "jit": jit}
    for network, precision, jit in itertools.product(("paper", "compact"), ("float32", "bfloat16"), (True, False))
}
CASES = {
    "train 1 x 64x64": (("train", 1, 64, 64), NETWORKS),
    "train 1 x 128x128": (("train", 1, 128, 128), NETWORKS),
    "train 4 x 64x64": (("train", 4, 64, 64), FORMS),
    "train 1 x 256x256": (("train", 1, 256, 256), FORMS),
    "denoise 1 x 512x768": (("denoise", 1, 512, 768), FORMS),
}
QUICK = {
    "train 1 x 32x32": (("train", 1, 32, 32), NETWORKS),
    "denoise 1 x 32x64": (("denoise", 1, 32, 64), FORMS),
}
COLUMNS = ["case", "seconds", "slower", "first call", "peak MB", "GFLOP/s", "convolution", "reached", "nominal"]


def work(network, fused=True):
    """Multiply-adds per pixel of a built blind-spot UNet, forward."""
    total, levels = 0.0, len(network.decoder_a)
    for i, layer in enumerate(network.encoder):
        total += 4 * 9 * layer.kernel.shape[2] * layer.filters / 4 ** max(0, i - 1)
    lower = [network.encoder[-1], *network.decoder_b]
    for i, (low, first, second) in enumerate(zip(lower, network.decoder_a, network.decoder_b)):
        # The four 2x2 convolutions of the fused form read 4 pixels where a 3x3 kernel reads 9.
        inputs = (4 if fused else 9) * low.filters + 9 * (first.kernel.shape[2] - low.filters)
        total += 4 * (inputs * first.filters + 9 * first.filters * second.filters) / 4 ** (levels - 1 - i)
    return total + sum(layer.kernel.shape[2] * layer.filters for layer in (*network.head, network.last))


def convolution(precision, side):
    """The reference convolution, forward and backward, as two functions (XLA and oneDNN); and its GFLOP."""
    import tensorflow as tf

    x = tf.cast(tf.random.normal((16, side, side, 96)), precision)
    kernel = tf.cast(tf.random.normal((3, 3, 96, 96)), precision)

    def run(x, kernel):
        with tf.GradientTape() as tape:
            tape.watch([x, kernel])
            loss = tf.reduce_sum(tf.nn.conv2d(x, kernel, 1, "SAME") ** 2)
        return tape.gradient(loss, [x, kernel])

    forms = [tf.function(run, jit_compile=jit) for jit in (True, False)]
    gflop = 3 * 2 * 16 * side * side * 9 * 96 * 96 / 1e9
    return [lambda form=form: form(x, kernel)[0].numpy() for form in forms], gflop


def plain_upsampling(layer, low, skip):
    """`UpsampleConvolution.call` as it is usually written: upsample, concatenate, convolve."""
    from keras import ops

    up = ops.repeat(ops.repeat(low, 2, axis=1), 2, axis=2)
    return layer._activate(layer._convolve(ops.concatenate([up, skip], axis=-1), layer.kernel))


def prepare(mode, batch, height, width, network="paper", precision="float32", features=None, fused=True, jit=True):
    """(compiled model, its inputs) of a training step or of denoising."""
    import keras
    import numpy as np

    from ssdn_tf.denoisers import experiments, models
    from ssdn_tf.networks import layers
    from ssdn_tf.training.optimizers import SkippingAdam

    if not fused:
        layers.UpsampleConvolution.call = plain_upsampling
    keras.utils.set_random_seed(0)
    denoiser = models.build(experiments.Experiment(network=network, width=features), precision=precision)
    model = denoiser.training if mode == "train" else denoiser.inference
    model.compile(optimizer=SkippingAdam(3e-4), jit_compile=jit)
    noisy = np.random.rand(batch, height, width, 3).astype("float32")
    return model, {"noisy": noisy, "noise_parameter": np.full((batch, 1, 1, 1), 0.1, "float32")}


def case(mode, batch, height, width, reference_side, precision="float32", **options):
    """A row: what it costs to start, then the times of each turn."""
    model, samples = prepare(mode, batch, height, width, precision=precision, **options)
    step = functools.partial(model.train_on_batch if mode == "train" else model.predict_on_batch, samples)
    first, second, peak = harness.seconds(step), harness.seconds(step), harness.peak_mb()
    references, reference_gflop = convolution(precision, reference_side)
    for reference in references:
        reference()
    pixels, unet = (3 if mode == "train" else 1) * batch * height * width, model.get_layer("unet")
    plain, carried_out = (2e-9 * pixels * work(unet, fused) for fused in (False, options.get("fused", True)))
    yield {"first": first, "peak": peak, "precision": precision, "plain": plain, "carried_out": carried_out}
    while True:
        rate = reference_gflop / min(harness.seconds(reference, 3) for reference in references)
        yield {"rate": rate, "seconds": harness.seconds(step, 3 if second < 1 else 1)}


def measure(name, sizes, forms, turns, **options):
    """The rows of a case."""
    options |= dict(zip(("mode", "batch", "height", "width"), sizes))
    found = harness.results_in_turns({form: options | changes for form, changes in forms.items()}, turns)
    rates, reference = {}, None
    for start, *timed in found.values():
        rates.setdefault(start["precision"], []).extend(turn["rate"] for turn in timed)
    for form, (start, *timed) in found.items():
        seconds, rate = min(turn["seconds"] for turn in timed), max(rates[start["precision"]])
        reference = reference or seconds
        reached, nominal = start["carried_out"] / seconds, start["plain"] / seconds
        yield (
            name + form, f"{seconds:.3f}", f"{seconds / reference:.2f}", f"{start['first']:.1f}",
            f"{start['peak']:.0f}", f"{reached:.3g}", f"{rate:.3g}", f"{reached / rate:.0%}", f"{nominal / rate:.0%}",
        )  # fmt: skip


def run(arguments):
    cases, turns, options = CASES, 4, {"features": None, "reference_side": 64}
    if arguments.quick:
        cases, turns, options = QUICK, 1, {"features": 4, "reference_side": 16}
    chosen = [(name, *case, turns) for name, case in cases.items() if arguments.only in name]
    harness.print_table(COLUMNS, itertools.chain.from_iterable(measure(*case, **options) for case in chosen))


if __name__ == "__main__":
    harness.main(__doc__, run, case, {"--only": {"default": "", "help": "part of the names of the cases to run"}})
