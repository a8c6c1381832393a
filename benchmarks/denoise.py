"""Denoising of one picture of 512x768: time, peak memory, and what bfloat16 changes in the result.

    python benchmarks/denoise.py                 the paper's network and the compact one, with fresh weights
    python benchmarks/denoise.py RUN [RUN ...]   trained runs

Each row is a process of its own. The rows take turns, and the best turn counts. "XLA off" in float32 is what
`denoise.py` of the project does on a CPU. bfloat16 without XLA needs a CPU with `avx512_bf16`; on others it takes
minutes and is left out.

    slower                time against the first row
    peak MB               most memory of the process after the first call
    PSNR to float32       in dB, of the denoised picture against that of the network's first row
    largest difference    of a pixel of the two, in steps of 255; "nan" and 0 where both are the same
"""

import os
import pathlib
import tempfile

import harness

FORMS = [("float32", False), ("float32", True), ("bfloat16", True)]
CPU = pathlib.Path("/proc/cpuinfo")
if CPU.exists() and "avx512_bf16" in CPU.read_text():
    FORMS.append(("bfloat16", False))


def case(network, precision, jit, height, width, features, output):
    """A row: what it costs to start, then the time of each turn. Writes the denoised picture to `output`."""
    import keras
    import numpy as np

    from ssdn_tf.data import images, samples
    from ssdn_tf.denoisers import experiments, models
    from ssdn_tf.evaluation import protocol
    from ssdn_tf.inference import checkpoints
    from ssdn_tf.training import folder

    trained = network not in ("paper", "compact")
    keras.utils.set_random_seed(0)
    experiment, rate = experiments.Experiment(network=network, width=features), 1.0
    if trained:
        options = folder.read_options(network)
        experiment, rate = options.experiment, options.rate
    model = models.build(experiment, rate=rate, precision=precision).inference
    if trained:
        checkpoints.load_weights(f"{network}/checkpoint.npz", model)
    model.compile(jit_compile=jit)
    photograph = images.to_channels(images.read(samples.sample_photographs()[1][0]), experiment.channels)
    clean = protocol.reflect_pad(images.to_float(photograph), (512, 768))[:height, :width]
    noisy = protocol.corrupt(clean, experiment, models.noise_model(experiment), np.random.default_rng(0))
    parameter = np.reshape(np.float32(noisy.parameter), (1, 1, 1, -1))
    inputs = {"noisy": noisy.noisy[None], "noise_parameter": parameter}
    inputs = {name: inputs[name] for name in model.input}
    first = harness.seconds(lambda: np.save(output, model.predict_on_batch(inputs)["denoised"]))
    yield {"first": first, "peak": harness.peak_mb()}
    while True:
        yield harness.seconds(lambda: model.predict_on_batch(inputs))


def rows(networks, turns, **options):
    import numpy as np

    with tempfile.TemporaryDirectory() as made:
        cases = {
            key: {"network": key[0], "precision": key[1], "jit": key[2], "output": f"{made}/{i}.npy", **options}
            for i, key in enumerate((network, *form) for network in networks for form in FORMS)
        }
        found = harness.results_in_turns(cases, turns)
        pictures = {key: np.load(case["output"]).astype("float64") for key, case in cases.items()}
    least = min(next(iter(found.values()))[1:])
    for (network, precision, jit), (start, *times) in found.items():
        error = pictures[network, precision, jit] - pictures[(network, *FORMS[0])]
        psnr = -10 * np.log10(np.mean(error**2) or np.nan)
        yield (
            network, precision, "on" if jit else "off", f"{min(times):.3f}", f"{min(times) / least:.2f}",
            f"{start['first']:.1f}", f"{start['peak']:.0f}", f"{psnr:.1f}", f"{255 * np.abs(error).max():.2g}",
        )  # fmt: skip


def run(arguments):
    height, width, features, turns = (64, 96, 4, 1) if arguments.quick else (512, 768, None, 3)
    print(f"1 x {height}x{width}, {os.cpu_count()} CPU cores\n")
    columns = ["network", "precision", "XLA", "seconds", "slower", "first call", "peak MB", "PSNR to float32"]
    columns += ["largest difference"]
    sizes = {"height": height, "width": width, "features": features}
    harness.print_table(columns, rows(arguments.runs or ["paper", "compact"], turns, **sizes))


if __name__ == "__main__":
    harness.main(__doc__, run, case, {"runs": {"nargs": "*", "metavar": "RUN", "help": "folders of trained runs"}})
