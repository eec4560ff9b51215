"""Runs of classifiers, and what is measured while training."""

import json

import jax
import numpy as np
import pytest
from runs import metrics, train
from tiny import EXPERIMENTS, digits_config, mixture_config, settings, update

import cfgjax
from cfgjax.base.errors import UsageError
from cfgjax.evaluation.features import networks as features
from cfgjax.evaluation.features.networks import load_classifier, load_features
from cfgjax.runs.config import load_file
from cfgjax.training.run import Run


def classifier_config(**overrides):
    """experiments/digits_classifier.py with a small network and 100 steps."""
    config = load_file(EXPERIMENTS / "digits_classifier.py")
    shrunk = {
        "model.multipliers": (1,),
        "model.num_features": 16,
        "train.num_steps": 100,
        "train.log_every_steps": 50,
        "optimizer.learning_rate": 1e-2,
        "optimizer.warmup_steps": 5,
        "ema.rates": (0.9,),
        "checkpoint.every_steps": 50,
        "evaluate.every_steps": 50,
        "mesh.data": 1,
    }
    return update(config, {**shrunk, **overrides})


def having(workdir, name):
    """The steps of the lines that have a metric."""
    return [line["step"] for line in metrics(workdir) if name in line]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A classifier of the digits."""
    path = tmp_path_factory.mktemp("classifier") / "run"
    train(classifier_config(), path)
    return path


@pytest.fixture(scope="module")
def mixture_run(tmp_path_factory):
    """A diffusion run that was measured at steps 4, 8, … and the last, 10."""
    path = tmp_path_factory.mktemp("mixture") / "run"
    train(watched_config(), path)
    return path


def watched_config(**overrides):
    shrunk = {
        "train.num_steps": 10,
        "train.log_every_steps": 5,
        "train.steps_per_dispatch": 1,
        "checkpoint.every_steps": 5,
        "diffusion.logsnr_min": -4.0,
        "diffusion.logsnr_max": 8.0,
        "evaluate.num_steps": 3,
        "evaluate.every_steps": 4,
        "evaluate.every_num_samples": 50,
        "evaluate.every_guidance": (0.0, 1.5),
        "evaluate.batch_size": 32,
        "mesh.data": 1,
    }
    return mixture_config(**shrunk, **overrides)


@pytest.mark.slow
def test_a_classifier_learns_and_its_accuracy_is_logged(workdir):
    for name in ("accuracy", "holdout_accuracy", "holdout_loss"):
        assert having(workdir, name) == [50, 100]
    first, first_held_out, last, last_held_out = metrics(workdir)
    assert first["loss"] > last["loss"]
    assert first["accuracy"] < last["accuracy"] < 1
    assert first_held_out["holdout_loss"] > last_held_out["holdout_loss"]
    assert 0.4 < last_held_out["holdout_accuracy"] < 1


@pytest.mark.slow
def test_a_stopped_and_resumed_classifier_equals_an_uninterrupted_one(workdir, tmp_path):
    train(classifier_config(), tmp_path, stops=(5,))
    assert metrics(tmp_path) == metrics(workdir)


@pytest.mark.slow
def test_a_finished_classifier_is_not_measured_again(workdir):
    before = (workdir / "metrics.jsonl").read_bytes()
    train(classifier_config(), workdir)
    assert (workdir / "metrics.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_classifier_draws_no_samples(workdir):
    with pytest.raises(UsageError, match=f"{workdir} holds a classifier .convnet., which draws no samples"):
        cfgjax.load(workdir)


@pytest.mark.slow
def test_a_classifier_is_a_feature_network_of_its_averages(workdir):
    data = settings(digits_config()).data
    network = load_features("classifier", data, classifier=workdir)
    assert network.judges and not network.points
    assert network.metric("FD") == "FD-classifier"
    run = Run(classifier_config(), devices=jax.devices()[:1])
    images = np.random.default_rng(0).integers(0, 256, (200, 8, 8, 1), np.uint8)
    out = network(images)
    assert {name: array.shape for name, array in out.items()} == {
        "logits": (200, 10),
        "features": (200, 16),
        "spatial": (200, 8 * 8 * 7),
    }
    assert network.sizes(images) == {"logits": 10, "features": 16, "spatial": 448}
    averages = features.load_params(workdir, run.settings)[0]
    given = images.astype(np.float32) / 127.5 - 1
    expected = run.net.apply({"params": averages}, given)
    for name, array in expected.items():
        np.testing.assert_allclose(out[name], array, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(network(given)["logits"], out["logits"], atol=1e-5)
    assert np.array_equal(network(images[:7])["logits"], out["logits"][:7])


@pytest.mark.slow
def test_the_digest_of_a_classifier_is_that_of_its_parameters(workdir):
    config = settings(classifier_config())
    params = features.load_params(workdir, config)[0]
    same, other = (features.classifier_features(config, tree) for tree in (params, {**params, "logits": {
        "kernel": params["logits"]["kernel"] + 1e-3, "bias": params["logits"]["bias"]}}))  # fmt: skip
    assert same.digest == load_classifier(workdir, config.data, "").digest != other.digest


@pytest.mark.parametrize("missing", ["none", None])
def test_a_missing_classifier_is_reported_with_a_remedy(tmp_path, missing):
    given = missing and tmp_path / missing
    with pytest.raises(UsageError) as e:
        load_features("classifier", settings(digits_config()).data, classifier=given)
    assert "cfgjax train --config=experiments/digits_classifier.py" in str(e.value)
    assert "--classifier=WORKDIR" in str(e.value)
    assert len(str(e.value).splitlines()) == 1


def test_a_diffusion_run_is_not_accepted_as_a_classifier(tmp_path):
    train(mixture_config(**{"mesh.data": 1}), tmp_path, stops=(10,), ends=False)
    with pytest.raises(UsageError, match=f"{tmp_path} holds a mlp, not a classifier of clean images; train one"):
        load_features("classifier", settings(digits_config()).data, classifier=tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"data.num_classes": 11}, "was trained on data.num_classes 10, not 11"),
        ({"data.image_shape": (16, 16, 1)}, r"was trained on data.image_shape \(8, 8, 1\), not \(16, 16, 1\)"),
        ({"data.source": "npz"}, "was trained on data.source digits, not npz"),
    ],
)
def test_a_classifier_of_other_data_is_reported(workdir, change, told):
    with pytest.raises(UsageError, match=f"the classifier in {workdir} {told}"):
        load_features("classifier", settings(digits_config(**change)).data, classifier=workdir)


def test_features_that_do_not_fit_the_data_are_refused():
    with pytest.raises(UsageError, match="features 'classifier' are for images; the run's data are mixture"):
        load_features("classifier", settings(mixture_config()).data)
    with pytest.raises(UsageError, match="features 'mixture' are for points of a known mixture"):
        load_features("mixture", settings(digits_config()).data)
    with pytest.raises(UsageError, match="unknown feature network 'inseption', did you mean 'inception'"):
        load_features("inseption", settings(digits_config()).data)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"data.split": "all"}, "data.split is all; a classifier is tested on held-out examples: need 'train'"),
        ({"evaluate.every_steps": 15}, "evaluate.every_steps 15 is not a multiple of train.steps_per_dispatch 10"),
        ({"evaluate.every_steps": 0}, "evaluate.every_steps is 0; need"),
        ({"model.num_featurs": 8}, "unknown config key 'model.num_featurs', did you mean 'num_features'"),
        ({"evaluate.evry_steps": 8}, "unknown config key 'evaluate.evry_steps', did you mean 'every_steps'"),
        ({"data.image_shape": (7, 8, 1)}, "asks for|config.model"),
    ],
)
def test_invalid_classifiers_are_refused_before_any_work(change, told):
    config = classifier_config()
    with config.unlocked():
        config.update_from_flattened_dict(change)
        for name, value in change.items():
            section, _, key = name.partition(".")
            config[section][key] = value
    with pytest.raises(UsageError, match=told):
        Run(config, devices=jax.devices()[:1])


@pytest.mark.slow
def test_samples_are_measured_at_their_steps_while_training(mixture_run):
    for w in ("0", "1.5"):
        for name in ("FD-mixture", "KD-mixture", "precision", "recall", "accuracy", "entropy", "log_posterior"):
            assert having(mixture_run, f"{name}/w={w}") == [4, 8, 10]
    assert not having(mixture_run, "FD-mixture")
    values = [line["FD-mixture/w=0"] for line in metrics(mixture_run) if "FD-mixture/w=0" in line]
    assert len(set(values)) == 3
    assert np.isfinite(values).all()


@pytest.mark.slow
def test_a_stopped_and_resumed_run_has_the_metrics_of_an_uninterrupted_one(mixture_run, tmp_path):
    train(watched_config(), tmp_path, stops=(4,))
    assert metrics(tmp_path) == metrics(mixture_run)


@pytest.mark.slow
def test_metrics_during_training_equal_those_of_the_command(mixture_run, tmp_path):
    from cfgjax.cli.evaluate import evaluate

    flags = ["--guidance=0,1.5", "--num_samples=50", "--num_steps=3", "--batch_size=32"]
    assert evaluate(["evaluate", f"--workdir={mixture_run}", f"--out={tmp_path}", *flags]) == 0
    rows = json.loads((tmp_path / "frontier.json").read_text())["rows"]
    last = {name: value for line in metrics(mixture_run) if line["step"] == 10 for name, value in line.items()}
    for row in rows[:2]:
        for name in ("FD-mixture", "IS-mixture", "entropy", "precision", "log_posterior"):
            np.testing.assert_allclose(last[f"{name}/w={row['guidance_weight']:g}"], row[name], rtol=1e-5, err_msg=name)
