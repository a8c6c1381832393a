"""Where a training runs: on one device, on the devices of this machine, or on several machines.

TensorFlow: tf.distribute with MirroredStrategy, or with MultiWorkerMirroredStrategy as TF_CONFIG describes it.
JAX: keras.distribution.DataParallel over the devices of this machine.

A sample depends on its number alone, and gradients are summed over replicas, so all of them train the same network up
to the rounding of sums.
"""

import contextlib
import json
import math
import zlib

import keras
import numpy as np

from ssdn_tf.data import images
from ssdn_tf.errors import UserError
from ssdn_tf.training import tf_config, workers


class Devices:
    """One device; also what the other kinds have in common.

    Attributes:
        strategy: tf.distribute.Strategy of several replicas, or None.
        replicas: number of parts that a batch is split into, over all machines.
        workers, worker: number of processes, and the number of this one.
    """

    strategy = None
    replicas = 1
    workers, worker = 1, 0

    @property
    def is_chief(self):
        """True in the process that writes the run's folder and the reports."""
        return self.worker == 0

    def scope(self):
        """Context in which models and optimizers are made."""
        return contextlib.nullcontext()

    def all_gather(self, number):
        """The `number`, an integer below 2**53, of every worker: a list. All workers must call this."""
        return [int(number)]

    def broadcast(self, variables):
        """Sets variables to the values that they have on the chief. All workers must call this."""


class JaxDevices(Devices):
    """Several devices of one machine under JAX, which splits batches itself."""

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

    def _sum(self, vector):
        """The sum of the float64 vectors that the workers pass."""
        import tensorflow as tf

        replicas_here = self.replicas // self.workers

        def value(context):
            # The strategy sums over replicas, so only the first one of each worker counts.
            first = context.replica_id_in_sync_group % replicas_here == 0
            return tf.constant(vector if first else np.zeros_like(vector))

        values = self.strategy.experimental_distribute_values_from_function(value)
        return self.strategy.reduce(tf.distribute.ReduceOp.SUM, values, axis=None).numpy()

    def all_gather(self, number):
        if self.workers == 1:
            return super().all_gather(number)
        numbers = np.zeros(self.workers, np.float64)
        numbers[self.worker] = number
        return [int(n) for n in self._sum(numbers)]

    def broadcast(self, variables):
        if self.workers == 1:
            return
        values = [np.asarray(variable.numpy()) for variable in variables]
        # float64 holds every float32 and every counter exactly.
        vector = np.concatenate([value.ravel().astype(np.float64) for value in values])
        vector = self._sum(vector if self.is_chief else np.zeros_like(vector))
        ends = np.cumsum([value.size for value in values])
        with self.scope():
            for variable, value, part in zip(variables, values, np.split(vector, ends[:-1])):
                variable.assign(part.reshape(value.shape).astype(value.dtype))


class Replicated(keras.Model):
    """A training model (its loss is added inside) for `fit` under a tf.distribute strategy.

    `compile(jit_compile=True)` fails, because it compiles the exchange between replicas too. Set `jit` before `fit`
    instead: then XLA compiles what one replica computes.

    Logs have shape [1], because `fit` averages them over workers along their first axis (keras-team/keras#20585).
    """

    jit = False

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Does nothing: the model is built. Keras would average a batch over the workers, which fails for a dict."""

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
        # compute_loss divides by the number of replicas, so that the gradients add up to that of the batch.
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        for metric in self.metrics:
            metric.update_state(tf.cast(replicas, loss.dtype) * loss)
        return {name: tf.reshape(value, [1]) for name, value in self.get_metrics_result().items()}


def training_model(model, devices, **compile_arguments):
    """A new model of the same layers to `fit` in place of `model` on these devices, compiled."""
    if devices.strategy is None:
        single = keras.Model(model.input, model.output, name=model.name)
        single.compile(**compile_arguments)
        return single
    jit = compile_arguments.pop("jit_compile", False)
    with devices.scope():
        replicated = Replicated(model.input, model.output, name=model.name)
        replicated.jit = jit
        replicated.compile(jit_compile=False, **compile_arguments)
    return replicated


def run_on_all(devices, function):
    """Runs function() on every worker; if it raises a UserError on one, all raise one. All workers must call this.

    Returns:
        What it returns here.
    """
    result = problem = None
    try:
        result = function()
    except UserError as error:
        problem = error
    failed = devices.all_gather(problem is not None)
    if problem:
        raise problem
    if any(failed):
        raise UserError(f"worker {failed.index(1)} has stopped with an error; its own output says why.")
    return result


def digest(description):
    """A checksum of what fits into JSON."""
    return zlib.crc32(json.dumps(description).encode())


def require_same(devices, description):
    """Raises a UserError unless every worker has the same `description`, which must fit into JSON."""
    digests = devices.all_gather(digest(description))
    different = [worker for worker, found in enumerate(digests) if found != digests[0]]
    if different:
        raise UserError(f"worker {different[0]} has other flags or pictures than worker 0; all workers need the same.")


# ---------------------------------------------------------------- choosing devices


def make(strategy, batch_sizes, wait_seconds=600):
    """Returns the Devices of a training. Call it before TensorFlow computes anything.

    Args:
        strategy: one of `tf_config.STRATEGIES`. auto: multi_worker if TF_CONFIG names several workers; else all GPUs,
            or as many as share a batch evenly.
        batch_sizes: crops in a step of each stage, over all replicas.
        wait_seconds: how long to wait for other workers at most.

    Raises:
        UserError: TF_CONFIG is wrong, devices or workers are missing, or they cannot share a batch evenly.
    """
    task = tf_config.task_of(strategy)
    if task:
        devices = TensorFlowDevices(workers.connect(task, wait_seconds), len(task.addresses), task.index)
    elif strategy == "one_device":
        return Devices()
    else:
        devices = _mirrored(_local_devices(), strategy == "mirrored", math.gcd(*batch_sizes))
    if math.gcd(*batch_sizes) % devices.replicas:
        raise UserError(
            f"expected a batch size that is a multiple of {devices.replicas}, the number of devices that share a "
            f"batch, received {' and '.join(map(str, batch_sizes))}."
        )
    return devices


def _is_jax():
    return keras.backend.backend() == "jax"


def _local_devices():
    """GPUs and other accelerators, or the logical CPU devices if there is none."""
    if _is_jax():
        import jax

        return jax.local_devices()
    import tensorflow as tf

    return tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")


def _mirrored(found, use_all, batch_size):
    count = len(found)
    if use_all and count < 2:
        name = found[0].device_kind if _is_jax() else found[0].name
        raise UserError(
            f"strategy mirrored: expected two devices or more, found one ({name}); strategy one_device trains on it."
        )
    if not use_all:
        count = max(n for n in range(1, count + 1) if batch_size % n == 0)
        if count < len(found):
            images.warn(f"using {count} of {len(found)} devices, so that they share a batch of {batch_size} evenly.")
    if count == 1:
        return Devices()
    if _is_jax():
        return JaxDevices(found[:count])
    import tensorflow as tf

    return TensorFlowDevices(tf.distribute.MirroredStrategy([device.name for device in found[:count]]))


def split_cpu(count):
    """Splits the CPU into `count` devices, to try a strategy on. Call it before anything is computed."""
    if _is_jax():
        import jax

        jax.config.update("jax_num_cpu_devices", count)
    else:
        import tensorflow as tf

        parts = [tf.config.LogicalDeviceConfiguration()] * count
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], parts)
