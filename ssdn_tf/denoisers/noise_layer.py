"""The base of all layers that apply a noise model."""

import keras


def algebra_dtype():
    """float64 where the backend has it: written out, the 3x3 algebra costs the same on a CPU.

    A sure prior beside a low noise (sigma_x 0.1 along one colour, sigma 1e-3) has a
    condition number of 1e5, where float32 loses the last pivot. JAX has float64 only
    with JAX_ENABLE_X64=1.
    """
    if keras.backend.backend() == "jax":
        import jax

        return "float64" if jax.config.jax_enable_x64 else "float32"
    return "float64"


class NoiseLayer(keras.layers.Layer):
    """A layer that has a NoiseModel, and is serialized with it."""

    def __init__(self, noise, **kwargs):
        super().__init__(**kwargs)
        self.noise = noise

    def get_config(self):
        return super().get_config() | {"noise": keras.saving.serialize_keras_object(self.noise)}

    @classmethod
    def from_config(cls, config):
        noise = keras.saving.deserialize_keras_object(config["noise"])
        return cls(**config | {"noise": noise})


class AlgebraLayer(NoiseLayer):
    """A NoiseLayer that computes in `algebra_dtype`."""

    def __init__(self, noise, **kwargs):
        kwargs.setdefault("dtype", algebra_dtype())
        super().__init__(noise, **kwargs)
