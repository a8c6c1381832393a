"""The noise models by name.

How to add a noise model:

1. Write its `Level` into `noise/levels.py`, in LEVELS, and in NAMES if it has a flag of its own: name, unit, legal
   range, default. The flags of all commands, run names, the SavedModel's check and its client follow from it.
2. Write its class into a file of its own, decorated like `GaussianNoise`, with `level`, `corrupt`, `estimate`, and
   either `variance`, `basis` and `from_weights` (noise that is added: derive from AdditiveNoise) or
   `marginal_moments`, `posterior_mean`, `posterior_std`, `standard_deviation` and `fit` (derive from NoiseModel).
   Where the defaults do not suit: `bound_known`, `least`, `constrain`, `unconstrain`, `weight_range`, `loss_scale`,
   `regularization`. Options of the model are fields of the dataclass, and of `denoisers.experiments.Experiment`,
   which has their values.
3. Add the class to _CLASSES below, in the order of LEVELS.
4. For `diagnose`: FAMILIES in `inference/diagnosis.py` and a name in `commands/diagnose.py`.

All tests with `every_model` (tests/noise, tests/denoisers) then run for it: serialization, corruption, moments and
posterior against samples, float32 against float64, gradients, estimates, learned parameters. They need a typical
parameter (LEVELS in tests/noise/noise_cases.py, PARAMETERS in tests/denoisers/test_losses.py) and its formulas written
out once more (`reference_moments` and, unless noise is added, `reference_posterior`).
"""

from ssdn_tf.noise.gaussian import GaussianNoise
from ssdn_tf.noise.impulse import ImpulseNoise
from ssdn_tf.noise.poisson import PoissonNoise
from ssdn_tf.noise.poisson_gaussian import AnyAdditiveNoise, PoissonGaussianNoise

_CLASSES = (GaussianNoise, PoissonNoise, ImpulseNoise, PoissonGaussianNoise, AnyAdditiveNoise)
MODELS = {model.level.kind: model for model in _CLASSES}


def make(kind, **options):
    """A noise model.

    Args:
        kind: a key of MODELS.
        options: fields of its class.

    Raises:
        ValueError: unknown kind, or an illegal option.
    """
    if kind not in MODELS:
        raise ValueError(f"expected a noise model among {', '.join(MODELS)}, received '{kind}'.")
    return MODELS[kind](**options)
