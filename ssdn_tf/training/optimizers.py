"""Adam that leaves a step out when its gradient is not finite."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("ssdn_tf")
class SkippingAdam(keras.optimizers.Adam):
    """Adam; a step with a non-finite gradient changes neither weights nor moments.

    The step still counts for the schedule and for the bias correction. `skipped` counts
    such steps, `skipped_in_a_row` the latest run of them.

    Under tf.distribute it expects gradients that are summed over the replicas already (see
    `distribution.Replicated`), so that the whole gradient decides, and is what a clip norm limits.
    Keras adds up after it has clipped those of each replica.

    Reference: the published optimizer skips silently; without it one bad batch ends a run.
    """

    def build(self, variables):
        super().build(variables)
        count = {"shape": (), "initializer": "zeros", "dtype": "int32", "aggregation": "only_first_replica"}
        self.skipped = self.add_variable(name="skipped", **count)
        self.skipped_in_a_row = self.add_variable(name="skipped_in_a_row", **count)

    def apply(self, grads, trainable_variables=None):
        if trainable_variables is not None and not self.built:
            self.build(trainable_variables)
        finite = ops.all(ops.stack([ops.all(ops.isfinite(g)) for g in grads]))
        # NaN everywhere tells `update_step`, which sees one variable at a time.
        super().apply([ops.where(finite, g, ops.full_like(g, float("nan"))) for g in grads], trainable_variables)
        one = ops.cast(ops.logical_not(finite), "int32")
        self.skipped.assign(self.skipped + one)
        self.skipped_in_a_row.assign((self.skipped_in_a_row + 1) * one)

    def update_step(self, gradient, variable, learning_rate):
        finite = ops.isfinite(ops.reshape(gradient, (-1,))[0])
        index = self._get_variable_index(variable)
        m, v = self._momentums[index], self._velocities[index]
        # The arithmetic form of "if": it compiles, and it works where variables are values handed from step
        # to step (JAX). m moves towards itself, the weight by 0 m, and v is put back.
        gradient = ops.where(finite, gradient, ops.convert_to_tensor(m))
        before = ops.copy(ops.convert_to_tensor(v))  # a conversion alone may be the variable
        # A constant rate arrives as a variable, which JAX does not take for a value here.
        rate = ops.where(finite, ops.convert_to_tensor(learning_rate), 0.0)
        super().update_step(gradient, variable, rate)
        self.assign(v, ops.where(finite, ops.convert_to_tensor(v), before))

    def _all_reduce_sum_gradients(self, grads_and_vars):
        """Keras adds up here, which has been done."""
        return grads_and_vars
