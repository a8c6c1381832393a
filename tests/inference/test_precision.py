"""Which precision networks compute in, and what bfloat16 changes of a picture."""

import os
import subprocess
import sys

import numpy as np
import pytest

from ssdn_tf.commands import cli, denoise, evaluate, train, train_flags
from ssdn_tf.data import images, samples
from ssdn_tf.denoisers import models
from ssdn_tf.errors import UserError
from ssdn_tf.evaluation import metrics
from ssdn_tf.inference import pictures, precision, predictor

AMX, AVX512, OLD = {"amx_bf16", "avx512_bf16", "avx2"}, {"avx512_bf16", "avx2"}, {"avx2"}


@pytest.fixture
def machine(monkeypatch):
    """A function that sets device and instructions of the machine; the precision is auto at first."""

    def become(device, flags=frozenset()):
        monkeypatch.setattr(precision, "_device", lambda: device)
        monkeypatch.setattr(precision, "_cpu_flags", lambda: frozenset(flags))

    monkeypatch.setattr(precision, "_used", "auto")
    return become


@pytest.mark.parametrize(
    "network, device, flags, expected",
    [
        ("compact", "cpu", AMX, "bfloat16"), ("compact", "cpu", AVX512, "float32"), ("compact", "cpu", OLD, "float32"),
        ("paper", "cpu", AMX, "float32"), ("compact", "gpu", AMX, "float32"), ("compact", "jax cpu", AMX, "float32"),
    ],
)  # fmt: skip
def test_auto_is_bfloat16_where_that_is_faster(machine, network, device, flags, expected):
    """Times: benchmarks/denoise.py, benchmarks/step.py."""
    machine(device, flags)
    assert precision.choose(network) == expected
    precision.use("float32")
    assert precision.choose(network) == "float32"


@pytest.mark.parametrize("device, flags", [("cpu", AMX), ("cpu", AVX512), ("jax gpu", OLD)])
def test_bfloat16_is_for_devices_that_compute_in_it(machine, device, flags):
    machine(device, flags)
    precision.use("bfloat16")
    assert precision.choose("compact") == precision.choose("paper") == "bfloat16"
    assert precision.is_for_onednn("bfloat16") == (device == "cpu") and not precision.is_for_onednn("float32")


@pytest.mark.parametrize(
    "device, found", [("cpu", "found a CPU without them"), ("jax cpu", "found a CPU under JAX")], ids=str
)
def test_bfloat16_is_refused_where_it_is_emulated(machine, device, found):
    machine(device, OLD)
    with pytest.raises(UserError, match=f"expected a CPU with AMX or AVX-512 BF16 .*{found}"):
        precision.use("bfloat16")
    assert precision.used() == "auto"


COMMANDS = {
    "train": (train.main, train_flags.define, ["--run_dir=FOLDER/run", "--train_images=1"]),
    "evaluate": (evaluate.main, evaluate.define, ["--output=FOLDER/out"]),
    "denoise": (denoise.main, denoise.define, ["--input=noisy.png", "--output=FOLDER/out.png"]),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_refuse_it_in_one_sentence_and_write_nothing(machine, tmp_path, capsys, name):
    machine("cpu", OLD)
    main, define, given = COMMANDS[name]
    given = [flag.replace("FOLDER", str(tmp_path)) for flag in given]
    assert cli.execute(main, define, "TEXT", ["x", "--precision=bfloat16", *given]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: precision bfloat16: expected a CPU with AMX") and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_an_unknown_precision_is_refused(machine):
    machine("cpu")
    with pytest.raises(UserError, match="expected one of auto, float32, bfloat16, received 'half'"):
        precision.use("half")


@pytest.mark.parametrize("value, code", [("float32", 0), ("half", 1)])
def test_the_environment_says_the_precision_that_is_used(value, code):
    program = "from ssdn_tf.commands import cli, evaluate; import sys; from ssdn_tf.inference import precision\n"
    program += "sys.exit(cli.execute(lambda values: print(values.precision), evaluate.define, '', ['x']))"
    environment = os.environ | {"SSDN_PRECISION": value}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == code and "Traceback" not in done.stderr
    assert value in (done.stderr if code else done.stdout)


@pytest.mark.parametrize("name", ["additive-rgb", "additive-gray", "impulse-rgb"])
def test_bfloat16_denoises_as_float32_does(machine, name):
    """As far apart as 8 bits explain: PSNR to the clean picture within 0.02 dB, of each other's results above 50 dB."""
    machine("cpu", AMX)
    results = {}
    for chosen in ("float32", "bfloat16"):
        precision.use(chosen)
        model = predictor.from_pretrained(name)
        assert model.model.get_layer("unet").compute_dtype == chosen
        photograph = images.middle(images.read(samples.sample_photographs()[1][0]), 128)
        clean = images.to_float(images.to_channels(photograph, model.experiment.channels))
        level = 0.3 if name == "impulse-rgb" else (0.01, 0.05)
        noisy = models.noise_model(model.experiment).corrupt(clean, level, np.random.default_rng(0))
        results[chosen] = model.denoise(noisy, level)
    one, other = (results[chosen].denoised for chosen in ("float32", "bfloat16"))
    assert 50 < -10 * np.log10(np.mean((one - other) ** 2)) < 90
    assert abs(metrics.psnr(one, clean) - metrics.psnr(other, clean)) < 0.02
    ratio = results["bfloat16"].posterior_std.mean() / results["float32"].posterior_std.mean()
    assert abs(ratio - 1) < 0.01


def test_a_network_is_loaded_again_for_another_precision(machine):
    machine("cpu", AMX)
    found = []
    for chosen in ("float32", "bfloat16", "float32"):
        precision.use(chosen)
        found.append(pictures.load_once("additive-gray").model.get_layer("unet").compute_dtype)
    assert found == ["float32", "bfloat16", "float32"]


def test_models_made_of_a_model_keep_its_precision(machine):
    machine("cpu", AMX)
    model = predictor.from_pretrained("additive-gray")
    precision.use("float32")
    assert model.with_source("fitted").model.get_layer("unet").compute_dtype == "bfloat16"
