"""The precision that networks compute in: float32, or bfloat16 where the machine is faster in it.

Weights, the last layer and all that follows a network are float32 or better in any case.
"""

import functools
import os
import pathlib

from ssdn_tf.errors import UserError

CHOICES = ("auto", "float32", "bfloat16")
DEFAULT = os.environ.get("SSDN_PRECISION", "auto")
_used = DEFAULT


def use(precision):
    """Sets the precision of the networks that are loaded from now on in this process, one of CHOICES.

    Raises:
        UserError: another word; or bfloat16, where the device would emulate it, many times slower.
    """
    global _used
    _check(precision)
    _used = precision


def used():
    """What `use` has set; else the environment variable SSDN_PRECISION, else auto."""
    return _used


def choose(network):
    """Whether a network computes in "float32" or "bfloat16".

    Args:
        network: its design, a key of `designs.DESIGNS`.

    Returns:
        `used()`; for auto, bfloat16 for the compact network on a CPU with AMX, where it is about twice as fast
        (benchmarks/denoise.py, benchmarks/step.py). A CPU with AVX-512 BF16 alone took 1.4 times as long, GPUs have
        not been measured, and the paper's network stays as published.

    Raises:
        UserError: as `use`, for a word that comes from SSDN_PRECISION.
    """
    _check(_used)
    if _used != "auto":
        return _used
    return "bfloat16" if network != "paper" and _device() == "cpu" and "amx_bf16" in _cpu_flags() else "float32"


def is_for_onednn(precision):
    """True for bfloat16 on a CPU. oneDNN alone computes in it there; XLA converts every convolution to float32."""
    return precision == "bfloat16" and _device() == "cpu"


def _check(precision):
    if precision not in CHOICES:
        raise UserError(f"precision: expected one of {', '.join(CHOICES)}, received '{precision}'.")
    if precision == "bfloat16":
        _require_bfloat16()


def _require_bfloat16():
    device, flags = _device(), _cpu_flags()
    if device == "gpu":
        import tensorflow as tf

        details = tf.config.experimental.get_device_details(tf.config.list_physical_devices("GPU")[0])
        device, has = details.get("device_name", device), details.get("compute_capability", (0, 0)) >= (8, 0)
    else:
        has = bool(flags & {"amx_bf16", "avx512_bf16"}) if device == "cpu" else device != "jax cpu"
    if not has:
        found = "a CPU without them" if device == "cpu" else "a CPU under JAX" if device == "jax cpu" else device
        raise UserError(
            "precision bfloat16: expected a CPU with AMX or AVX-512 BF16 under TensorFlow, or a GPU of compute "
            f"capability 8 or more, found {found}."
        )


def _device():
    """ "cpu" or "gpu" under TensorFlow; "jax cpu", "jax gpu" or the like under JAX."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        return f"jax {jax.default_backend()}"
    import tensorflow as tf

    return "gpu" if tf.config.list_physical_devices("GPU") else "cpu"


@functools.cache
def _cpu_flags():
    """What /proc/cpuinfo calls the instructions of the CPU; none where oneDNN, which has the kernels, is turned off."""
    cpu = pathlib.Path("/proc/cpuinfo")
    if os.environ.get("TF_ENABLE_ONEDNN_OPTS") == "0" or not cpu.exists():
        return frozenset()
    lines = (line for line in cpu.read_text().splitlines() if line.startswith("flags"))
    return frozenset(next(lines, "").split())
