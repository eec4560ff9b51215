"""Laws of samplers that draw samples in groups, through `Model` and evaluations."""

import logging

import jax
import numpy as np
import pytest
import runs
from tiny import mixture_config, of_mixture

from cfgjax.base.errors import UsageError
from cfgjax.cli import main as cli
from cfgjax.data.sources.registry import toy_mixture
from cfgjax.diffusion.samplers import ancestral, tilted
from cfgjax.distributed.sharding import make_mesh
from cfgjax.evaluation.frontier.generate import SampleStore, draw_samples, policy_labels
from cfgjax.evaluation.frontier.paired import design
from cfgjax.evaluation.metrics.influence import half_width
from cfgjax.models.groups import (
    batch_mesh,
    batch_rows,
    check_divisible,
    check_groups,
    complete_groups,
    rule_at_zero,
    ungrouped_metrics,
)
from cfgjax.models.model import Model
from cfgjax.models.sample_figures import sample_figure
from cfgjax.runs.sample_options import SampleOptions

CONFIG = mixture_config()
MIXTURE = toy_mixture(CONFIG.data.means, CONFIG.data.stds, CONFIG.data.weights)
LABELS = np.repeat([0, 1, 2, 1], 4)  # of four groups
FOUR = tilted(particles=4)


def make(devices=1):
    return Model(CONFIG, {}, mesh=make_mesh(devices=jax.devices()[:devices]), bind_params=of_mixture(MIXTURE))


@pytest.fixture(scope="module")
def model():
    return make()


def draw(model, w=2.0, sampler=FOUR, **options):
    return model.sample(LABELS, w, sampler=sampler, num_steps=8, **options)


@pytest.mark.slow
def test_samples_are_the_same_with_any_batch_size_and_number_of_devices(model):
    every = draw(model)
    np.testing.assert_allclose(draw(model, batch_size=5), every, atol=1e-4)  # two groups at a time
    np.testing.assert_allclose(draw(make(3)), every, atol=1e-4)
    np.testing.assert_allclose(model.sample(LABELS[:8], 2.0, sampler=FOUR, num_steps=8), every[:8], atol=1e-4)
    assert np.abs(every - draw(model, sampler=ancestral(0.0))).max() > 0.01


@pytest.mark.slow
def test_without_a_weight_it_is_the_ancestral_sampler(model):
    np.testing.assert_array_equal(draw(model, 0.0), draw(model, 0.0, sampler=ancestral(0.0), rule="cfg()"))


@pytest.mark.slow
def test_the_effective_sample_size_is_in_the_trajectory_and_in_the_log(model, caplog):
    with caplog.at_level(logging.INFO, "cfgjax.progress"):
        x, trajectory = draw(model, return_trajectory=True)
    np.testing.assert_array_equal(x, draw(model))
    assert trajectory.ess.shape == trajectory.z.shape[:2] == (8, 16)
    assert 1 <= trajectory.ess.min() < 3.9
    assert trajectory.ess.max() <= 4.001
    assert "effective sample size" in caplog.text and "of 4 particles" in caplog.text
    assert draw(model, sampler=ancestral(0.0), return_trajectory=True)[1].ess is None


def test_a_group_has_one_label_of_the_policy():
    options = SampleOptions(sampler=FOUR)
    np.testing.assert_array_equal(policy_labels(options, np.arange(16), 3), np.repeat([0, 1, 2, 0], 4))
    random = policy_labels(SampleOptions(sampler=FOUR, label_policy="random"), np.arange(64), 3)
    np.testing.assert_array_equal(random, np.repeat(random[::4], 4))
    np.testing.assert_array_equal(policy_labels(SampleOptions(sampler=ancestral(0.0)), np.arange(4), 3), [0, 1, 2, 0])


@pytest.mark.slow
def test_an_interrupted_evaluation_draws_complete_groups_again(model, tmp_path):
    options = SampleOptions(guidance=2.0, sampler=FOUR, rule="cfg()", num_steps=8)

    def drawn(index):
        ess = []
        parts = list(draw_samples(model, options, index, 8, num_samples=16, on_ess=ess.append))
        return [np.concatenate(arrays) for arrays in zip(*parts, strict=True)], np.concatenate(ess)

    (index, labels, samples), ess = drawn(np.arange(16))
    (some, some_labels, some_samples), some_ess = drawn(np.array([6, 7, 13]))
    np.testing.assert_array_equal(some, [4, 5, 6, 7, 12, 13, 14, 15])
    np.testing.assert_array_equal(some_labels, labels[some])
    np.testing.assert_allclose(some_samples, samples[some], atol=1e-4)
    np.testing.assert_allclose(some_ess, ess[some], rtol=1e-3)
    store = SampleStore(tmp_path, {})
    store.set_ess(ess)
    store.write(index, labels, samples)
    assert store.group_metrics() == {"effective_sample_size": pytest.approx(ess.mean())}
    assert SampleStore(tmp_path, {"other": 1}).group_metrics() == {}


def test_batches_and_requests_consist_of_complete_groups():
    np.testing.assert_array_equal(complete_groups(np.array([1, 9]), FOUR), [0, 1, 2, 3, 8, 9, 10, 11])
    np.testing.assert_array_equal(complete_groups(np.array([1, 9]), ancestral(0.0)), [1, 9])
    assert [batch_rows(5, sampler, 3) for sampler in (FOUR, ancestral(0.0))] == [12, 6]
    assert repr(rule_at_zero("cfg()", FOUR)) == "'cfg()'"


@pytest.mark.parametrize(
    ("samples", "sampler", "devices", "rows"),
    [
        (1, ancestral(0.0), 1, 1),
        (3, ancestral(0.0), 3, 3),
        (11, ancestral(0.0), 6, 12),
        (9, ancestral(0.0), 5, 10),
        (64, ancestral(0.0), 8, 64),
        (4, FOUR, 4, 4),
        (20, FOUR, 8, 24),
    ],
)
def test_a_batch_is_split_over_no_more_devices_than_it_needs(samples, sampler, devices, rows):
    mesh, found = batch_mesh(samples, sampler, make_mesh())
    assert (mesh.size, found) == (devices, rows)
    assert list(mesh.devices.flat) == jax.devices()[:devices]
    assert batch_mesh(3, ancestral(0.0), make_mesh(devices=jax.devices()[:2]))[1] == 3
    split = make_mesh(data=4, fsdp=2)
    assert batch_mesh(samples, ancestral(0.0), split)[0] == split


def test_bad_groups_are_one_line_errors(model):
    picture = [SampleOptions(guidance=2.0, sampler=FOUR)]
    for call, message in (
        (lambda: draw(model, sampler=tilted(particles=5)), "16 samples are not divisible by the 5 particles"),
        (lambda: model.sample(np.arange(8) % 3, 2.0, sampler=FOUR), "samples 0 … 3 are a group .* need equal labels"),
        (lambda: model.sample(LABELS, np.arange(16) * 1.0, sampler=FOUR), "need equal guidance; repeat each 4 times"),
        (lambda: draw(model, rule="conditional()"), "needs a rule that combines two predictions"),
        (lambda: draw(model, rule="apg()"), "with one w at all levels, which apg changes; use a rule such as cfg"),
        (lambda: draw(model, rule="interval(low=1)"), "which interval changes"),
        (lambda: check_divisible("num_samples 90 is", 90, FOUR), "num_samples 90 is not divisible .* use 88 or 92"),
        (lambda: check_groups(FOUR, labels=np.zeros(3)), "3 samples are not divisible by the 4 particles .* use 4"),
        (lambda: sample_figure(model, picture, labels=[0], per_cell=3), "per_cell 3 is not divisible by the 4"),
    ):
        with pytest.raises(UsageError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


@pytest.mark.slow
def test_an_evaluation_reports_the_effective_sample_size(tmp_path):
    workdir = tmp_path / "run"
    levels = {"diffusion.logsnr_min": -4.0, "diffusion.logsnr_max": 8.0}
    runs.train(mixture_config(**{"mesh.data": 1, "optimizer.learning_rate": 1e-2, **levels}), workdir)
    words = f"evaluate --workdir={workdir} --out={tmp_path}/e --num_samples=32 --num_steps=8 --guidance=0,0.5"
    samplers = "--sampler=tilted(particles=4),ancestral(v=0)"
    assert cli.run_command([*words.split(), "--features=mixture", samplers]) == 0
    head, *lines = (line.split(",") for line in (tmp_path / "e" / "frontier.csv").read_text().splitlines())
    assert "effective_sample_size" in head
    assert len(lines) == 8
    with pytest.raises(UsageError, match="num_samples 30 is not divisible by the 4 particles"):
        cli.run_command([*words.replace("=32", "=30").split(), "--features=mixture", samplers])


def test_the_interval_of_a_metric_counts_groups_and_not_their_samples():
    by_group = np.random.default_rng(0).standard_normal(40)
    copies = np.repeat(by_group, 4)  # groups that consist of copies of one sample
    found = design(SampleOptions(sampler=FOUR, label_policy="random"), 160, 3)
    np.testing.assert_allclose(half_width(copies, *found), half_width(by_group))
    assert ungrouped_metrics([ancestral(0.0), FOUR]) == {"effective_sample_size": 1.0}
    assert ungrouped_metrics([ancestral(0.0)]) == {}
