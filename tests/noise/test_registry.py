"""The noise models by name."""

import inspect

import pytest
from noise_cases import LEVELS as PARAMETERS

from ssdn_tf.noise import levels, registry


def test_every_noise_model_has_its_level_and_every_level_its_noise_model():
    assert list(registry.MODELS) == list(levels.LEVELS) == list(PARAMETERS)
    for kind, model in registry.MODELS.items():
        assert registry.make(kind).kind == kind and model.level is levels.LEVELS[kind]


@pytest.mark.parametrize("kind", registry.MODELS)
def test_every_noise_model_has_all_methods(kind):
    own = registry.MODELS[kind]
    for name in ("corrupt", "estimate", "marginal_moments", "posterior_mean", "posterior_std", "standard_deviation"):
        assert callable(getattr(own, name)) and inspect.getdoc(getattr(own, name)), name


def test_options_are_passed_on_and_unknown_kinds_refused():
    assert registry.make("impulse", likelihood="mixture").likelihood == "mixture"
    with pytest.raises(ValueError, match="expected a noise model among gaussian, .*, received 'speckle'"):
        registry.make("speckle")
