"""Adam that leaves a step out when its gradient is not finite."""

import keras
from keras import ops


@keras.saving.register_keras_serializable("ssdn_tf")
class SkippingAdam(keras.optimizers.Adam):
    """Adam; a step with a non-finite gradient changes neither weights nor moments.

    The step still counts for the schedule and for the bias correction. `skipped` counts
    such steps, `skipped_in_a_row` the latest run of them.

    Reference: the published optimizer skips silently; without it one bad batch ends a run.
    """

    def build(self, variables):
        super().build(variables)
        count = {"shape": (), "initializer": "zeros", "dtype": "int32"}
        self.skipped = self.add_variable(name="skipped", **count)
        self.skipped_in_a_row = self.add_variable(name="skipped_in_a_row", **count)

    def apply(self, grads, trainable_variables=None):
        if trainable_variables is not None and not self.built:
            self.build(trainable_variables)
        finite = ops.all(ops.stack([ops.all(ops.isfinite(g)) for g in grads]))
        # The arithmetic form of "if": it compiles, and it works where variables are
        # values handed from step to step (JAX).
        state = [*self._trainable_variables, *self._momentums, *self._velocities]
        before = [ops.copy(ops.convert_to_tensor(v)) for v in state]  # a conversion alone may be the variable
        grads = [ops.where(finite, g, ops.zeros_like(g)) for g in grads]
        super().apply(grads, trainable_variables)
        for variable, value in zip(state, before):
            variable.assign(ops.where(finite, ops.convert_to_tensor(variable), value))
        one = ops.cast(ops.logical_not(finite), "int32")
        self.skipped.assign(self.skipped + one)
        self.skipped_in_a_row.assign((self.skipped_in_a_row + 1) * one)
