"""Runs of what ADM trains besides the plain model: noise-aware classifiers, upsamplers, levels by their loss."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from runs import metrics, train
from tiny import digits_config, mixture_config, same_trees, update

import cfgjax
from cfgjax.base.errors import UsageError
from cfgjax.models.loading import load_guide
from cfgjax.runs.averages import load_params
from cfgjax.runs.workdir import read_settings
from cfgjax.training.loop import Run

DISCRETE = dict(betas="cosine", num_timesteps=100)


def noisy_classifier_config(**overrides):
    """A noise-aware classifier of the digits, 4 steps."""
    config = digits_config(**{"mesh.data": 1, "data.split": "train"}).to_dict()
    shared = ("seed", "data", "optimizer", "ema", "train", "log", "storage", "checkpoint", "mesh", "cluster")
    network = dict(channels=32, multipliers=(1,), depth=1, attention_resolutions=(), head_channels=32, pool="attention")
    network["name"] = "noisy_classifier"
    sections = dict(model=network, diffusion=DISCRETE, evaluate=dict(every_steps=2))
    return update(ConfigDict({name: config[name] for name in shared} | sections), overrides)


@pytest.mark.slow
def test_a_noisy_classifier_is_trained_stopped_resumed_and_loaded(tmp_path):
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    train(noisy_classifier_config(), straight)
    train(noisy_classifier_config(), stopped, stops=[1])
    assert metrics(straight) == metrics(stopped)
    last = metrics(straight)[-1]
    assert {f"holdout_accuracy_{i}" for i in range(4)} | {"holdout_accuracy"} <= last.keys()
    classifier = load_guide(straight)
    log_prob = classifier.log_prob(np.zeros((10, 8, 8, 1)), 0.0, np.arange(10))
    np.testing.assert_allclose(np.exp(log_prob).sum(), 1, rtol=1e-5)
    with pytest.raises(UsageError, match=r"holds a classifier .noisy_classifier., which draws no samples"):
        cfgjax.load(straight)


@pytest.mark.slow
def test_a_run_that_is_not_a_classifier_is_refused_as_guide(tmp_path):
    train(mixture_config(**{"mesh.data": 1}), tmp_path)
    with pytest.raises(UsageError, match="holds a mlp, not a noise-aware classifier"):
        load_guide(tmp_path)


@pytest.mark.slow
def test_a_resumed_run_draws_the_levels_of_an_uninterrupted_one(tmp_path):
    config = mixture_config(**{"mesh.data": 1})
    config.diffusion.time_sampler = "second_moment"
    train(config, tmp_path / "straight")
    train(config, tmp_path / "stopped", stops=[15, 12])
    assert metrics(tmp_path / "straight") == metrics(tmp_path / "stopped")
    run = Run(config, jax.devices()[:1])
    assert run.like.level_losses["losses"].shape == (1000, 10)


@pytest.mark.slow
def test_a_run_can_start_from_the_averages_of_another(tmp_path):
    first = mixture_config(**{"mesh.data": 1})
    train(first, tmp_path)
    config = mixture_config(**{"mesh.data": 1})
    config.train.init_from = str(tmp_path)
    state = Run(config, jax.devices()[:1]).new_state()
    params, _ = load_params(tmp_path, read_settings(tmp_path))
    assert same_trees(jax.device_get(state.params), params)
    assert all(same_trees(jax.device_get(average), params) for average in state.ema.values())
    config.model.width = 48
    with pytest.raises(UsageError, match="another network: model.width is 32 there, 48 here"):
        Run(config, jax.devices()[:1]).new_state()


@pytest.mark.slow
def test_a_resumed_run_does_not_need_its_init_from(tmp_path):
    train(mixture_config(**{"mesh.data": 1}), tmp_path / "first")
    config = mixture_config(**{"mesh.data": 1})
    config.train.init_from = str(tmp_path / "first")
    train(config, tmp_path / "straight")
    train(config, tmp_path / "stopped", stops=[3])
    assert metrics(tmp_path / "straight") == metrics(tmp_path / "stopped")
    train(config, tmp_path / "begun", stops=[3], ends=False)
    (tmp_path / "first").rename(tmp_path / "gone")
    train(config, tmp_path / "begun")
    assert metrics(tmp_path / "begun") == metrics(tmp_path / "straight")


@pytest.mark.slow
def test_an_upsampler_trains_on_pairs_of_images(tmp_path):
    config = digits_config(**{"mesh.data": 1})
    config.data.low_res_size = 4
    with pytest.raises(UsageError, match="model.low_res is False, data.low_res_size 4: an upsampler needs both"):
        Run(config, jax.devices()[:1])
    config.model.low_res = True
    run = Run(config, jax.devices()[:1])
    batch = jax.device_get(run.batches(0))
    image = batch["image"].reshape(-1, 4, 2, 4, 2, 1)
    np.testing.assert_allclose(batch["low_res"].reshape(-1, 4, 4, 1), image.mean(axis=(2, 4)), atol=1e-6)
    picture = run.config_hooks[0]
    assert picture._options["low_res"].shape == (len(config.sample.labels) * config.sample.per_cell, 4, 4, 1)
    config.evaluate.every_steps = 2
    with pytest.raises(UsageError, match="an upsampler alone draws nothing to be measured"):
        Run(config, jax.devices()[:1])


def test_a_learned_variance_is_only_for_images():
    config = mixture_config()
    config.diffusion.learned_variance = True
    with pytest.raises(UsageError, match=r"learned_variance is for images; data.image_shape is \(2,\)"):
        Run(config)


def test_weights_without_a_null_label_are_refused_before_training():
    config = digits_config(**{"model.null_label": False, "diffusion.p_uncond": 0.0, "sample.guidance": (0.0, 1.0)})
    with pytest.raises(UsageError, match=r"trained with dropped labels .* w = 0 .*conditional\(\).*classifier\("):
        Run(config)
