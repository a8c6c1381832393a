"""The base of all layers that apply a noise model."""

import keras


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
