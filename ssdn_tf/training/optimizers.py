"""Adam and Muon, leaving out steps whose gradient is not finite, and averaging the weights."""

import math

import keras
from keras import ops


class Skipping:
    """What both optimizers add to those of Keras.

    A step whose gradient has no finite length changes neither weights nor moments. It still counts for the schedule and
    for the bias correction. `skipped` counts such steps, `skipped_in_a_row` the latest run of them.

    With `use_ema`, `averages` hold the weights averaged over steps. The momentum of the average grows to
    `ema_momentum`, as (1 + t) / (10 + t) after t steps, so that the start is forgotten. Unlike in Keras, the end of a
    `fit` does not replace the weights by their averages, because training may go on.

    Under tf.distribute it expects gradients that are already summed over the replicas (`distribution.Replicated`), so
    that the whole gradient decides, and the clip norm limits the whole gradient; Keras clips that of each replica.

    Reference: the published optimizer skips silently; without it one bad batch ends a run.
    """

    def build(self, variables):
        super().build(variables)
        count = {"shape": (), "initializer": "zeros", "dtype": "int32", "aggregation": "only_first_replica"}
        self.skipped = self.add_variable(name="skipped", **count)
        self.skipped_in_a_row = self.add_variable(name="skipped_in_a_row", **count)

    @property
    def averages(self):
        """The averaged weights, in the order of the trainable variables; [] without `use_ema`."""
        return list(self._model_variables_moving_average) if self.use_ema else []

    def apply(self, grads, trainable_variables=None):
        if trainable_variables is not None and not self.built:
            self.build(trainable_variables)
        # Of the length, as Keras clips by it: the square of a finite number may not be finite.
        finite = ops.isfinite(ops.sum(ops.stack([ops.sum(ops.square(g)) for g in grads])))
        # NaN everywhere tells `update_step`, which sees one variable at a time.
        super().apply([ops.where(finite, g, ops.full_like(g, float("nan"))) for g in grads], trainable_variables)
        one = ops.cast(ops.logical_not(finite), "int32")
        self.skipped.assign(self.skipped + one)
        self.skipped_in_a_row.assign((self.skipped_in_a_row + 1) * one)

    def update_step(self, gradient, variable, learning_rate):
        finite = ops.isfinite(ops.reshape(gradient, (-1,))[0])
        changing = [variable, *self.moments(variable)]
        # Copies, as a conversion alone may be the variable. "If" in its arithmetic form compiles, and works where
        # variables are values that are handed from step to step (JAX).
        before = [ops.copy(ops.convert_to_tensor(v)) for v in changing]
        super().update_step(gradient, variable, ops.convert_to_tensor(learning_rate))
        for v, old in zip(changing, before):
            self.assign(v, ops.where(finite, ops.convert_to_tensor(v), old))

    def _all_reduce_sum_gradients(self, grads_and_vars):
        """Keras sums over replicas here, which is already done."""
        return grads_and_vars

    def _update_model_variables_moving_average(self, trainable_variables):
        if self.use_ema:
            t = ops.cast(self.iterations, "float32")
            share = 1.0 - ops.minimum(self.ema_momentum, (1.0 + t) / (10.0 + t))
            share = ops.where(t > 0, share, 1.0)
            for variable, average in zip(trainable_variables, self._model_variables_moving_average):
                # In this form, the average of equal weights is exact.
                average.assign(average + share * (variable - average))

    def finalize_variable_values(self, var_list):
        """Keeps the weights as they are."""


@keras.saving.register_keras_serializable("ssdn_tf")
class SkippingAdam(Skipping, keras.optimizers.Adam):
    """Adam with what `Skipping` adds; otherwise equal to Keras's to the bit."""

    def moments(self, variable):
        index = self._get_variable_index(variable)
        return [self._momentums[index], self._velocities[index]]


@keras.saving.register_keras_serializable("ssdn_tf")
class SkippingMuon(Skipping, keras.optimizers.Muon):
    """Muon for convolution kernels, Adam for all else, with what `Skipping` adds.

    Keras applies Muon to matrices only. Here a kernel [rows, columns, inputs, outputs] with more than 3 inputs is taken
    as the matrix [rows * columns * inputs, outputs]. Its step is the orthogonal factor of the Nesterov momentum, by
    five Newton-Schulz steps, times 0.2 sqrt(larger side), so that rates that suit Adam suit it too. Biases, first
    layers (which see the image) and the variables in `exclude_layers` get Adam. Only what gets Muon decays, by
    `weight_decay` times the rate in each step.

    References: K. Jordan et al., Muon, 2024; Liu et al., arXiv 2502.16982 (the factor 0.2).
    """

    def __init__(self, learning_rate=1e-3, *, adam_beta_2=0.99, epsilon=1e-8, rms_rate=0.2, **kwargs):
        super().__init__(
            learning_rate,
            adam_beta_2=adam_beta_2,
            epsilon=epsilon,
            rms_rate=rms_rate,
            **{"weight_decay": None, "adam_weight_decay": None} | kwargs,
        )

    def _apply_weight_decay(self, variables):
        """Keras decays here, where a skipped step would not undo it."""

    def _muon_update_step(self, gradient, variable, lr, m):
        if self.weight_decay:
            self.assign_sub(variable, self.weight_decay * lr * variable)
        super()._muon_update_step(gradient, variable, lr, m)

    def moments(self, variable):
        index = self._get_variable_index(variable)
        return [m for m in (self.momentums[index], self.adam_velocities[index]) if m is not None]

    def _should_use_adamw(self, variable):
        shape = variable.shape
        return len(shape) != 4 or shape[2] <= 3 or any(name in variable.path for name in self.exclude_layers)

    def zeropower_via_newtonschulz5(self, x, steps):
        """As Keras's in exact arithmetic, with less work: each step multiplies m by a polynomial in the small m^T m.

        Rounding in m^T m grows twelvefold with each step, where singular values are small; so it is made anew half-way.
        """
        matrix = ops.reshape(x, (-1, x.shape[-1]))
        wide = matrix.shape[0] < matrix.shape[1]
        m = ops.transpose(matrix) if wide else matrix
        m = m / (ops.norm(m) + 1e-7)
        for count in (steps // 2, steps - steps // 2):
            m = ops.matmul(m, self._product_of_steps(ops.matmul(ops.transpose(m), m), count))
        return ops.reshape(ops.transpose(m) if wide else m, x.shape)

    def _product_of_steps(self, g, count):
        """What `count` steps multiply m by, where g = m^T m; it commutes with g."""
        product = identity = ops.eye(g.shape[0], dtype=g.dtype)
        for _ in range(count):
            p = self.muon_a * identity + self.muon_b * g + self.muon_c * ops.matmul(g, g)
            product = ops.matmul(product, p)
            g = ops.matmul(p, ops.matmul(g, p))
        return product

    def lr_adjust(self, x):
        return x * self.rms_rate * math.sqrt(max(math.prod(x.shape[:-1]), x.shape[-1]))
