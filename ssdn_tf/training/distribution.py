"""Where a training runs: one device, the devices of this machine, or several machines.

TensorFlow: tf.distribute with MirroredStrategy, or MultiWorkerMirroredStrategy as TF_CONFIG describes it.
JAX: keras.distribution.DataParallel over the devices of this machine.

Samples depend on their number alone, and gradients are summed, so all of them train the same
network up to the rounding of sums.
"""

import contextlib
import functools
import json
import os
import signal
import sys
import zlib

import keras
import numpy as np

from ssdn_tf.data import images
from ssdn_tf.errors import UserError
from ssdn_tf.training import supervisor, tf_config

STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker")


class Devices:
    """One device; also what the others have in common.

    Attributes:
        strategy: tf.distribute.Strategy of several replicas, or None.
        replicas: parts of a batch, on all machines run_on_all.
        workers, worker: number of processes, and which of them this one is.
    """

    strategy = None
    replicas = 1
    workers, worker = 1, 0

    @property
    def is_chief(self):
        """True in the process that writes the run's folder and reports."""
        return self.worker == 0

    def scope(self):
        """Where models and optimizers are made."""
        return contextlib.nullcontext()

    def all_gather(self, number):
        """`number`, an integer, of each worker: a list. All workers must call this."""
        return [int(number)]

    def broadcast(self, variables):
        """Sets variables to the values that they have on the chief. All workers must call this."""


class JaxDevices(Devices):
    """Several devices of one machine under JAX, which splits batches by itself."""

    def __init__(self, devices):
        self.replicas = len(devices)
        keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices))


class TensorFlowDevices(Devices):
    """Replicas of a tf.distribute strategy, in one process or several."""

    def __init__(self, strategy, workers=1, worker=0):
        self.strategy = strategy
        self.replicas = strategy.num_replicas_in_sync
        self.workers, self.worker = workers, worker

    def scope(self):
        return self.strategy.scope()

    @functools.cached_property
    def _sum_of_firsts(self):
        """tf.function: sums over workers, of the tensors that the first replica of each has."""
        import tensorflow as tf

        own = self.replicas // self.workers

        def add(parts):
            context = tf.distribute.get_replica_context()
            first = context.replica_id_in_sync_group % own == 0
            parts = [tf.where(first, part, tf.zeros_like(part)) for part in parts]
            return context.all_reduce(tf.distribute.ReduceOp.SUM, parts)

        @tf.function
        def run(parts):
            return [self.strategy.experimental_local_results(s)[0] for s in self.strategy.run(add, args=(parts,))]

        return run

    def _sum(self, tensors):
        sums = [None] * len(tensors)
        # The exchange joins tensors, so each has those of one type.
        for dtype in sorted({tensor.dtype for tensor in tensors}, key=str):
            where = [i for i, tensor in enumerate(tensors) if tensor.dtype == dtype]
            for i, total in zip(where, self._sum_of_firsts([tensors[i] for i in where])):
                sums[i] = total.numpy()
        return sums

    def all_gather(self, number):
        if self.workers == 1:
            return super().all_gather(number)
        import tensorflow as tf

        own = np.zeros(self.workers, np.int64)
        own[self.worker] = number
        return [int(n) for n in self._sum([tf.constant(own)])[0]]

    def broadcast(self, variables):
        if self.workers == 1:
            return
        import tensorflow as tf

        # Counters as int64: on GPUs, TensorFlow keeps int32 in the memory of the host.
        values = [tf.constant(v.numpy()) for v in variables]
        values = [tf.cast(value, tf.int64) if value.dtype == tf.int32 else value for value in values]
        if not self.is_chief:
            values = [tf.zeros_like(value) for value in values]
        with self.scope():
            for variable, value in zip(variables, self._sum(values)):
                variable.assign(value)


class Replicated(keras.Model):
    """A training model (its loss is added inside) for `fit` under a tf.distribute strategy.

    XLA compiles what one replica computes: `compile(jit_compile=True)` would compile the exchange
    between replicas too, which fails. Logs have shape [1], as `fit` averages them over workers along
    their first axis (keras-team/keras#20585).

    Set `jit` before `fit`.
    """

    jit = False

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Keras averages a batch over the workers here, to build a model; ours is built, and a dict fails."""

    def train_step(self, data):
        import tensorflow as tf

        @tf.function(jit_compile=self.jit)
        def loss_and_gradients(x):
            with tf.GradientTape() as tape:
                loss = self.compute_loss(x=x, y_pred=self(x, training=True), training=True)
            return loss, tape.gradient(loss, self.trainable_variables)

        loss, gradients = loss_and_gradients(data)
        gradients = tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables))
        # The loss of a replica is scaled, so that the sum over replicas is the loss of the batch.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        for metric in self.metrics:
            metric.update_state(tf.cast(replicas, loss.dtype) * loss)
        return {name: tf.reshape(value, [1]) for name, value in self.get_metrics_result().items()}


def training_model(model, devices, **compile_arguments):
    """The model to `fit` in place of `model` on these devices, compiled."""
    if devices.strategy is None:
        model.compile(**compile_arguments)
        return model
    jit = compile_arguments.pop("jit_compile", False)
    with devices.scope():
        replicated = Replicated(model.input, model.output, name=model.name)
        replicated.jit = jit
        replicated.compile(jit_compile=False, **compile_arguments)
    return replicated


def run_on_all(devices, function):
    """function(), by each worker; where one raises a UserError, all do.

    Returns:
        What it returns here.
    """
    result = problem = None
    try:
        result = function()
    except UserError as error:
        problem = error
    failed = [worker for worker, bad in enumerate(devices.all_gather(problem is not None)) if bad]
    if problem:
        raise problem
    if failed:
        raise UserError(f"expected all workers to be ready, received an error from worker {failed[0]}, which tells it.")
    return result


def require_same(devices, description):
    """Raises a UserError unless each worker has the same `description`, which is JSON-able."""
    digest = zlib.crc32(json.dumps(description).encode())
    digests = devices.all_gather(digest)
    others = [worker for worker, other in enumerate(digests) if other != digests[0]]
    if others:
        raise UserError(
            "expected the same flags and pictures on all workers, "
            f"received others on worker {others[0]} than on worker 0."
        )


# ---------------------------------------------------------------- choosing


def make(strategy, batch_size):
    """The Devices of a training. To be called before TensorFlow computes anything.

    Args:
        strategy: one of STRATEGIES. auto: multi_worker where TF_CONFIG names several workers; else all GPUs,
            or as many as share a batch evenly.
        batch_size: crops a step, over all replicas.

    Raises:
        UserError: TF_CONFIG is wrong, devices or workers are missing, or they cannot share a batch.
    """
    task = tf_config.task_of(strategy)
    if task:
        devices = _multi_worker(task)
    elif strategy == "one_device":
        return Devices()
    else:
        devices = _mirrored(_local_devices(), strategy == "mirrored", batch_size)
    if batch_size % devices.replicas:
        raise UserError(
            f"--batch_size: expected a multiple of the {devices.replicas} devices that share a batch, "
            f"received {batch_size}."
        )
    return devices


def _is_jax():
    return keras.backend.backend() == "jax"


def _local_devices():
    """Accelerators, or where there is none, the logical CPU devices."""
    if _is_jax():
        import jax

        return jax.local_devices()
    import tensorflow as tf

    return tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")


def _mirrored(found, demanded, batch_size):
    count = len(found)
    if demanded and count < 2:
        name = found[0].device_kind if _is_jax() else found[0].name
        raise UserError(
            f"--strategy=mirrored: expected two devices or more, received one ({name}); "
            "--strategy=one_device trains on it."
        )
    if not demanded:
        count = max(n for n in range(1, count + 1) if batch_size % n == 0)
        if count < len(found):
            images.warn(f"{count} of {len(found)} devices are used, which share a batch of {batch_size} evenly.")
    if count == 1:
        return Devices()
    if _is_jax():
        return JaxDevices(found[:count])
    import tensorflow as tf

    return TensorFlowDevices(tf.distribute.MirroredStrategy([device.name for device in found[:count]]))


def require_bfloat16():
    """Raises a UserError unless the device computes with bfloat16 (on CPUs it is emulated, many times slower)."""
    if _is_jax():
        import jax

        name, has = jax.devices()[0].device_kind, jax.default_backend() != "cpu"
    else:
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        details = tf.config.experimental.get_device_details(gpus[0]) if gpus else {}
        name, has = details.get("device_name", "a CPU"), details.get("compute_capability", (0, 0)) >= (8, 0)
    if not has:
        raise UserError(f"--precision=bfloat16: expected a device that computes with it, received {name}.")


def split_cpu(count):
    """Makes `count` devices of the CPU, to try a strategy on. To be called before anything is computed."""
    if _is_jax():
        import jax

        jax.config.update("jax_num_cpu_devices", count)
    else:
        import tensorflow as tf

        parts = [tf.config.LogicalDeviceConfiguration()] * count
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], parts)


# ---------------------------------------------------------------- several workers


def _multi_worker(task):
    import tensorflow as tf

    supervisor.report_loaded()
    with loses_workers():
        strategy = tf.distribute.MultiWorkerMirroredStrategy()
    # TensorFlow has taken the signal for itself, and does nothing on it.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    supervisor.report_connected()
    return TensorFlowDevices(strategy, len(task.addresses), task.index)


@contextlib.contextmanager
def loses_workers():
    """Ends the process with the exit code that tells its supervisor that another worker is lost, where it is."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        if not _is_a_loss(error):
            raise
        print(" ".join(str(error.message).split())[:300], file=sys.stderr, flush=True)
        os._exit(supervisor.LOST)  # TensorFlow's threads still wait for the others


def _is_a_loss(error):
    """True for what the others see when a worker ends, or is back before they have noticed."""
    from tensorflow import errors

    lost = (errors.UnavailableError, errors.AbortedError, errors.DeadlineExceededError, errors.CancelledError)
    text = str(error.message)
    if isinstance(error, errors.FailedPreconditionError):
        return "incarnation" in text
    if isinstance(error, errors.InternalError):
        return "NCCL" in text or "ollective" in text
    return isinstance(error, lost)
