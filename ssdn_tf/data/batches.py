"""Batches of samples for `fit`: a tf.data pipeline, one for each replica of tf.distribute, or a PyDataset."""

import concurrent.futures
import os

import keras


def batches(samples, size, first, steps, strategy=None):
    """The batches of `steps` steps, for `fit` with steps_per_epoch.

    Args:
        samples: samples.Samples.
        size: samples a step, over all replicas.
        first: number of the first sample.
        steps: how many.
        strategy: a tf.distribute.Strategy of several replicas, or None. Each worker then draws only the samples of its
            own replicas: replica r of R has those from r size / R on in a batch. A sample depends on its number alone.
    """
    if keras.backend.backend() != "tensorflow":
        return _Batches(samples, size, first, steps)
    if strategy is None:
        return _dataset(samples, size, [first + step * size for step in range(steps)])

    def share(context):
        part = size // context.num_replicas_in_sync
        own = context.num_replicas_in_sync // context.num_input_pipelines
        start = first + context.input_pipeline_id * own * part
        begins = [start + step * size + part * replica for step in range(steps) for replica in range(own)]
        # Without an end: workers would ask each other at every step whether there is more.
        return _dataset(samples, part, begins).repeat()

    return strategy.distribute_datasets_from_function(share)


def _dataset(samples, size, begins):
    """tf.data of the samples begin .. begin + size - 1 for each of `begins`."""
    import tensorflow as tf

    example = samples.batch(begins[0], size)
    keys = sorted(example)

    def fetch(begin):
        batch = samples.batch(begin, size)
        return [batch[key] for key in keys]

    def as_dict(begin):
        tensors = tf.numpy_function(fetch, [begin], [tf.float32] * len(keys))
        return {k: tf.ensure_shape(t, example[k].shape) for k, t in zip(keys, tensors)}

    workers = _workers()
    numbers = tf.data.Dataset.from_tensor_slices(tf.constant(begins, tf.int64))
    dataset = numbers.map(as_dict, num_parallel_calls=workers).prefetch(2 * workers)
    # With autotuning, the end of each `fit` waits ten seconds or more for a sleeping thread.
    tuning = tf.data.Options()
    tuning.autotune.enabled = False
    return dataset.with_options(tuning)


class _Batches(keras.utils.PyDataset):
    """Makes batches ahead in its own threads.

    Keras's threads (workers > 0) do not restart when `fit` starts over after a first look at the data: the batches then
    come in the order 1, 2, ..., 0.
    """

    def __init__(self, samples, size, first, steps):
        super().__init__(workers=0)
        self.samples, self.size, self.first, self.steps = samples, size, first, steps
        self.ahead = 2 * _workers()
        self._pool = concurrent.futures.ThreadPoolExecutor(_workers())
        self._pending = {}

    def __len__(self):
        return self.steps

    def __getitem__(self, i):
        for j in range(i, min(i + self.ahead, len(self))):
            if j not in self._pending:
                self._pending[j] = self._pool.submit(self.samples.batch, self.first + j * self.size, self.size)
        return self._pending.pop(i).result()


def _workers():
    return min(os.cpu_count() or 1, 16)
