"""TF_CONFIG, the environment variable that names the workers of a training; read without TensorFlow."""

import dataclasses
import json
import os

from ssdn_tf.errors import UserError

STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker")


@dataclasses.dataclass(frozen=True)
class Task:
    """The addresses (host:port) of all workers, the chief's first, and the index of this one among them."""

    addresses: tuple
    index: int


def task_of(strategy):
    """The Task of this process, or None if `strategy` (see `distribution.make`) means one worker.

    Raises:
        UserError: TF_CONFIG is wrong, or not set where the strategy needs it.
    """
    text = os.environ.get("TF_CONFIG")
    if strategy not in ("auto", "multi_worker") or not text and strategy == "auto":
        return None
    if not text:
        raise UserError(
            "strategy multi_worker: expected TF_CONFIG, the environment variable that names the workers; it is not set."
        )
    task = parse_task(text)
    if strategy == "auto" and len(task.addresses) == 1:
        return None
    if os.environ.get("KERAS_BACKEND") == "jax":
        raise UserError(
            "strategy multi_worker: expected KERAS_BACKEND=tensorflow, received jax, which trains on one machine only."
        )
    return task


def parse_task(text):
    """The Task that the text of a TF_CONFIG describes (TensorFlow's tutorial "Multi-worker training with Keras").

    Raises:
        UserError: it is not JSON, names no workers, or has an address without a port or a task outside of the cluster.
    """
    example = '{"cluster": {"worker": ["host1:2222", "host2:2222"]}, "task": {"type": "worker", "index": 0}}'
    try:
        config = json.loads(text)
    except ValueError as error:
        raise UserError(f"TF_CONFIG: expected JSON such as {example}, received '{text}' ({error}).") from None
    wrong = UserError(f"TF_CONFIG: expected JSON such as {example}, received '{text}'.")
    try:
        cluster, kind, index = config["cluster"], config["task"]["type"], config["task"]["index"]
        groups = {name: list(cluster[name]) for name in ("chief", "worker") if name in cluster}
        addresses = [address for name in groups for address in groups[name]]
        ports = [int(address.rpartition(":")[2]) for address in addresses]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise wrong from None
    if not addresses or len(groups.get("chief", ())) > 1 or not all(0 < port < 65536 for port in ports):
        raise wrong
    if not isinstance(kind, str) or kind not in groups or type(index) is not int or not 0 <= index < len(groups[kind]):
        names = ", ".join(f"{name} {i}" for name in groups for i in range(len(groups[name])))
        raise UserError(f"TF_CONFIG: expected a task among {names}, received {kind} {index!r}.")
    before = len(groups.get("chief", ())) if kind == "worker" else 0
    return Task(tuple(addresses), before + index)
