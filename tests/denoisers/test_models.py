"""Every experiment as a pair of models: what goes in, what comes out, what is shared."""

import dataclasses
import functools
import json

import keras
import numpy as np
import pytest
import support
import tensorflow as tf

from ssdn_tf.denoisers import models, noise_layer
from ssdn_tf.denoisers.experiments import PUBLISHED, Experiment
from ssdn_tf.noise.impulse import ImpulseNoise

# Not published, but ours can: impulse noise in mono, and its exact likelihood.
MORE = [
    Experiment("impulse", 0.5, 0.5, channels=1),
    Experiment("impulse", 0.5, 0.5, parameter_source="global", likelihood="mixture"),
    Experiment("poisson", 30, 30, parameter_source="per_image", diagonal=True),
]
EXPERIMENTS = PUBLISHED | {experiment.name: experiment for experiment in MORE}
BAYESIAN = [name for name, experiment in EXPERIMENTS.items() if experiment.pipeline == "blindspot"]
ONE_OF_EACH = [
    "gauss25-blindspot-sigma_known",
    "gauss25-blindspot_diag-sigma_global",
    "poisson5_50-blindspot-sigma_per_image-mono",
    "impulse50-blindspot-sigma_global",
    "gauss25-n2c",
    "impulse0_100-n2n",
    "gauss25-blindspot_mean",
]


@functools.cache
def built(name):
    """The denoiser of an experiment, for tests that leave its weights alone."""
    return models.build(support.tiny(EXPERIMENTS[name]))


def samples(experiment, images=2, height=32, width=32):
    """Inputs of the training model, NumPy."""
    shape = (images, height, width, experiment.channels)
    inputs = {"noisy": np.random.uniform(size=shape).astype(np.float32)}
    if experiment.pipeline == "blindspot":
        level = experiment.parameter((experiment.low + experiment.high) / 2)
        inputs["noise_parameter"] = np.full((images, 1, 1, 1), level, np.float32)
    else:
        inputs["target"] = np.random.uniform(size=shape).astype(np.float32)
    if models.anneals(experiment):
        inputs["exponent"] = np.full((images, 1, 1, 1), 1.3, np.float32)
    return inputs


def infer(denoiser, inputs):
    outputs = denoiser.inference({key: inputs[key] for key in denoiser.inference.input})
    return {key: np.asarray(value) for key, value in outputs.items()}


def scatter(denoiser, scale=0.3):
    """Moves every weight away from its start."""
    for variable in denoiser.training.trainable_variables:
        step = np.random.standard_normal(variable.shape) / variable.shape[-1] ** 0.5
        variable.assign(variable + scale * step)


def expected_keys(experiment):
    """(inputs of training, inputs of inference, outputs of inference), as the docstring has them."""
    if experiment.pipeline == "blindspot":
        inputs = {"noisy", "noise_parameter"}
        return inputs, inputs, {"denoised", "mu_x", "prior_std", "posterior_std", "noise_parameter"}
    exponent = {"exponent"} if experiment.noise == "impulse" and experiment.pipeline != "n2c" else set()
    return {"noisy", "target"} | exponent, {"noisy"}, {"denoised"}


# ---------------------------------------------------------------- every experiment


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_runs(name):
    """One forward pass of both models: keys, shapes, dtypes, finite values."""
    experiment = EXPERIMENTS[name]
    denoiser = built(name)
    inputs = samples(experiment)
    noisy = inputs["noisy"]
    for_training, for_inference, outputs = expected_keys(experiment)
    assert set(denoiser.training.input) == set(inputs) == for_training
    assert set(denoiser.inference.input) == for_inference

    loss = denoiser.training(inputs)
    bayesian = experiment.pipeline == "blindspot"
    assert loss.shape == (noisy.shape[:-1] if bayesian else noisy.shape)
    assert loss.dtype == ("float64" if bayesian else "float32")
    assert np.isfinite(loss).all()
    (added,) = denoiser.training.losses
    np.testing.assert_allclose(added, np.mean(loss), rtol=1e-6)

    result = infer(denoiser, inputs)
    assert set(result) == outputs
    for key, value in result.items():
        assert value.dtype == np.float32
        assert np.isfinite(value).all()
        if key == "noise_parameter":
            images = 1 if experiment.parameter_source == "global" else len(noisy)
            assert value.shape == (images, 1, 1, 1)
        else:
            assert value.shape == noisy.shape
    assert denoiser.inference.losses == []


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_no_self_supervised_model_has_an_input_for_a_second_image(name):
    """mean alone has a target, which the samples fill with the noisy image (test_data.py)."""
    experiment = EXPERIMENTS[name]
    if experiment.pipeline == "blindspot":
        images = [x for x in built(name).training.inputs if x.shape[1] is None]
        assert [x.name for x in images] == ["noisy"]


# ---------------------------------------------------------------- weights and gradients


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_both_models_have_the_same_weights(name):
    denoiser = built(name)
    trained, used = denoiser.training.variables, denoiser.inference.variables
    assert {id(v) for v in used} == {id(v) for v in trained}
    paths = [v.path for v in trained]
    assert len(set(paths)) == len(paths)  # checkpoints go by path


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_every_weight_has_a_finite_gradient_that_is_not_zero(name):
    experiment = EXPERIMENTS[name]
    denoiser = models.build(support.tiny(experiment))
    scatter(denoiser)
    weights = denoiser.training.trainable_variables
    with tf.GradientTape() as tape:
        # At 32x32, the lowest level is one pixel, which may see nothing but padding.
        loss = tf.reduce_mean(denoiser.training(samples(experiment, images=4, height=64, width=64)))
    for variable, gradient in zip(weights, tape.gradient(loss, [v.value for v in weights])):
        assert np.isfinite(gradient).all() and np.any(gradient != 0), variable.path


@pytest.mark.parametrize("name", BAYESIAN)
def test_published_weights_of_likelihood_and_regulariser(name):
    """Twice the likelihood for impulse noise and mono; 0.1 for a learned Gaussian or Poisson parameter."""
    experiment = EXPERIMENTS[name]
    layer = built(name).training.get_layer("loss")
    assert layer.scale == (2.0 if experiment.channels == 1 or experiment.noise == "impulse" else 1.0)
    learned = experiment.parameter_source != "known" and experiment.noise != "impulse"
    assert layer.regularization == (0.1 if learned else 0.0)


def test_the_network_is_blind_except_in_n2c_and_n2n():
    for name, experiment in EXPERIMENTS.items():
        unet = built(name).training.get_layer("unet")
        assert unet.blindspot == (experiment.pipeline not in ("n2c", "n2n"))


# ---------------------------------------------------------------- the meaning of the outputs


@pytest.mark.parametrize("name", [name for name in ONE_OF_EACH if name in BAYESIAN])
def test_only_the_posterior_mean_sees_its_own_pixel(name):
    experiment = EXPERIMENTS[name]
    # Most seeds give a network that is sure that the pixel was replaced by an impulse, and answers mu_x.
    keras.utils.set_random_seed(0)
    denoiser = models.build(support.tiny(experiment))
    scatter(denoiser)
    inputs = samples(experiment, images=1)
    parameter = denoiser.training.get_layer("parameter")
    if experiment.parameter_source == "per_image":
        # The estimate is an average over the image, which has the pixel in it: hold it still.
        for variable in parameter.trainable_variables:
            variable.assign(np.zeros(variable.shape))
    before = infer(denoiser, inputs)
    inputs["noisy"][0, 13, 20] += 0.05
    after = infer(denoiser, inputs)
    for key in ("mu_x", "prior_std"):
        np.testing.assert_array_equal(after[key][0, 13, 20], before[key][0, 13, 20])
        assert (after[key][0, 13, 21] != before[key][0, 13, 21]).all()
    assert (after["denoised"][0, 13, 20] != before["denoised"][0, 13, 20]).all()


def test_the_given_parameter_matters_only_where_it_is_known():
    for source in ("known", "global", "per_image"):
        experiment = Experiment(parameter_source=source)
        denoiser = models.build(support.tiny(experiment))
        inputs = samples(experiment)
        before, loss = infer(denoiser, inputs), np.asarray(denoiser.training(inputs))
        inputs["noise_parameter"] *= 2
        same = np.array_equal(infer(denoiser, inputs)["denoised"], before["denoised"])
        assert same == np.array_equal(denoiser.training(inputs), loss) == (source != "known")


@pytest.mark.parametrize("source", ["global", "per_image"])
@pytest.mark.parametrize("noise", ["gaussian", "poisson", "impulse"])
def test_a_learned_parameter_starts_where_it_is_told_to(noise, source):
    experiment = Experiment(noise, parameter_source=source)
    published = np.log1p(np.exp(-4.0)) + 1e-3  # 4.88/255
    for start, expected in ((0.0, published), (3.0, np.log1p(np.exp(-1.0)) + 1e-3)):
        denoiser = models.build(support.tiny(experiment), start=start, rate=10.0)
        expected = 1.0 / expected if noise == "poisson" else expected
        reported = infer(denoiser, samples(experiment))["noise_parameter"]
        np.testing.assert_allclose(reported, expected, rtol=1e-5)


def test_the_prior_std_is_the_root_of_the_diagonal():
    experiment = Experiment()
    denoiser = models.build(support.tiny(experiment))
    inputs = samples(experiment)
    components = keras.Model(denoiser.inference.input, denoiser.inference.get_layer("unet").output)(inputs)
    a = np.asarray(components, np.float64)[..., 3:]
    # The rows of the triangular factor: a0 a1 a2, a3 a4, a5.
    rows = a[..., 0:3], a[..., 3:5], a[..., 5:6]
    expected = np.stack([np.sqrt((row**2).sum(axis=-1)) for row in rows], axis=-1)
    result = infer(denoiser, inputs)
    np.testing.assert_allclose(result["prior_std"], expected, rtol=1e-6)
    np.testing.assert_array_equal(result["mu_x"], np.asarray(components)[..., :3])


@pytest.mark.parametrize("noise, std", [("gaussian", 0.0), ("poisson", 0.0), ("impulse", 1e-3)])
def test_the_prior_std_of_a_certain_network_is_the_noise_models(noise, std):
    """Impulse noise adds 1e-6 to the variances throughout, the reported std included."""
    denoiser = models.build(support.tiny(Experiment(noise)))
    last = denoiser.inference.get_layer("unet").last
    last.kernel.assign(np.zeros(last.kernel.shape))
    result = infer(denoiser, samples(Experiment(noise)))
    np.testing.assert_allclose(result["prior_std"], std, rtol=1e-6)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_images_need_not_be_square(name):
    experiment = EXPERIMENTS[name]
    denoiser = built(name)
    inputs = samples(experiment, 1, 32, 64)
    assert infer(denoiser, inputs)["denoised"].shape == inputs["noisy"].shape
    assert np.isfinite(denoiser.training(inputs)).all()


def test_the_same_seed_gives_the_same_weights_and_another_does_not():
    results = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        denoiser = models.build(support.tiny(Experiment(parameter_source="per_image")))
        results.append(np.concatenate([w.ravel() for w in denoiser.training.get_weights()]))
    np.testing.assert_array_equal(results[0], results[1])
    assert np.abs(results[0] - results[2]).max() > 0.1


# ---------------------------------------------------------------- through JSON and back


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_models_survive_serialization(name):
    experiment = EXPERIMENTS[name]
    inputs = samples(experiment)
    denoiser = models.build(support.tiny(experiment), start=0.5, rate=10.0)
    scatter(denoiser, 0.1)
    for model in denoiser:
        copy = keras.models.model_from_json(model.to_json())
        assert json.loads(copy.to_json()) == json.loads(model.to_json())
        copy.set_weights(model.get_weights())
        given = {key: inputs[key] for key in model.input}
        results = [keras.tree.flatten(m(given)) for m in (model, copy)]
        for ours, again in zip(*results, strict=True):
            np.testing.assert_array_equal(ours, again)


@pytest.mark.parametrize("channels, diagonal", [(3, False), (3, True), (1, False)])
def test_the_prior_layer_keeps_the_boring_truths(channels, diagonal):
    count = channels + (6 if channels == 3 and not diagonal else channels)
    components = np.random.standard_normal((2, 4, 6, count)).astype(np.float32)
    support.check_layer(models.GaussianPrior(channels, diagonal), components)


def test_the_small_layers_keep_the_boring_truths():
    mu_x, sigma_x = np.random.uniform(size=(2, 4, 6, 3)), np.random.uniform(size=(2, 4, 6, 3, 3))
    support.check_layer(models.PriorStd(ImpulseNoise()), mu_x, sigma_x)


def test_the_algebra_is_float64():
    denoiser = models.build(support.tiny(Experiment()))
    assert noise_layer.algebra_dtype() == "float64"
    assert {tensor.dtype for tensor in denoiser.training.get_layer("prior").output} == {"float64"}
    assert denoiser.training.get_layer("unet").output.dtype == "float32"


def test_the_noise_model_is_that_of_the_experiment():
    for experiment in EXPERIMENTS.values():
        model = models.noise_model(experiment)
        assert model.kind == experiment.noise
        assert dataclasses.asdict(model).get("likelihood", "moments") == experiment.likelihood
