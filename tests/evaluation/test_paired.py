"""Intervals of settings and of their differences: baselines, pairs, and the share of intervals that hold the truth."""

import dataclasses

import numpy as np
import pytest

from cfgjax.base.errors import UsageError
from cfgjax.evaluation.frontier.paired import (
    Design,
    baselines,
    design,
    paired_design,
    read_baseline,
    with_changes,
    with_intervals,
)
from cfgjax.evaluation.metrics.influence import frechet_influence, half_width, mean_influence
from cfgjax.evaluation.metrics.mind import mind_influence
from cfgjax.evaluation.metrics.scores import frechet_distance
from cfgjax.evaluation.report.differences import difference_figure, difference_table
from cfgjax.runs.sample_options import SampleOptions

KEYS = ("scores", "sampler", "num_steps", "rule")


def row(w=0.0, seed=0, rule="cfg()", scores="learned", **metrics):
    settings = {"guidance_weight": w, "seed": seed, "rule": rule, "scores": scores, "sampler": "ddim()"}
    return {**settings, "num_steps": 8, "num_samples": 100, "classifier_scale": None} | metrics


ROWS = [row(w, seed, rule) for rule in ("cfg()", "conditional()") for seed in (0, 1) for w in (1.0, 0.0, 2.0)]


def test_the_baseline_is_the_first_setting_without_guidance_of_the_same_seed():
    for found, own in zip(baselines(ROWS, {}), ROWS, strict=True):
        assert (found["guidance_weight"], found["rule"], found["seed"]) == (0, "cfg()", own["seed"])


def test_without_such_a_setting_the_baseline_is_the_first():
    guided = [r for r in ROWS if r["guidance_weight"]]
    assert {r["guidance_weight"] for r in baselines(guided, {})} == {1.0}


def test_the_baseline_can_be_chosen():
    wanted = read_baseline("2, rule=conditional")
    assert wanted == {"guidance_weight": 2.0, "rule": "conditional()"}
    assert {(r["guidance_weight"], r["rule"]) for r in baselines(ROWS, wanted)} == {(2.0, "conditional()")}
    assert read_baseline(None) == {}
    assert read_baseline("run='p_uncond=0.1,seed=0', 1", ("run",)) == {
        "run": "p_uncond=0.1,seed=0",
        "guidance_weight": 1,
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rules=cfg()", "--baseline=rules=cfg(): unknown option 'rules'"),
        ("rule=cgf()", "unknown rule 'cgf'"),
        ("guidance=x", "--baseline=x: need numbers"),
        ("5", "no setting has guidance_weight=5.0 (those measured have guidance_weight 1.0, 0.0, 2.0)"),
    ],
)
def test_an_unknown_baseline_is_one_line(text, told):
    with pytest.raises(UsageError) as e:
        baselines(ROWS, read_baseline(text))
    assert told in str(e.value) and "\n" not in str(e.value)


def paired_rows(count=200, noise=0.1):
    """Two settings whose metric "m" is the mean of values that differ little, and the values."""
    rng = np.random.default_rng(0)
    first = rng.normal(size=count)
    second = first + 0.5 + noise * rng.normal(size=count)
    values = [first, second]
    influences = [{"m": mean_influence(v)} for v in values]
    rows = [
        row(w, **with_intervals({"m": v.mean()}, i, Design()))
        for w, v, i in zip((0.0, 1.0), values, influences, strict=True)
    ]
    return with_changes(rows, influences.__getitem__, lambda i: Design(), baselines(rows, {}), KEYS), values


def test_the_paired_interval_is_that_of_the_mean_difference():
    (base, found), (first, second) = paired_rows()
    assert found["m_change"] == pytest.approx((second - first).mean())
    assert found["m_change_interval"] == pytest.approx(half_width(mean_influence(second - first)))
    assert found["m_change_interval"] < 0.2 * np.hypot(base["m_interval"], found["m_interval"])
    assert (base["m_change"], base["m_change_interval"]) == (0, 0)


def test_the_table_and_the_figure_show_the_differences():
    rows, _ = paired_rows()
    head, names, base, changed = difference_table(rows)
    assert head.startswith("difference from w=0") and names.split() == ["w", "m"]
    assert base.split() == ["0", "+0", "±", "0"]
    assert changed.split()[:2] == ["1", f"{rows[1]['m_change']:+.4g}"]
    (axis,) = difference_figure(rows).axes
    assert axis.get_title() == "m"
    assert difference_table(rows[:1]) == []


def test_only_balanced_labels_are_fixed_in_number():
    options = SampleOptions(label_policy="balanced", sampler="ddim()")
    found = design(options, 5, 3)
    assert found.labels.tolist() == [0, 1, 2, 0, 1] and found.group_size == 1
    assert design(dataclasses.replace(options, label_policy="random"), 5, 3) == (None, 1)


def test_a_group_of_samples_counts_once():
    groups = np.random.default_rng(3).normal(size=100)
    repeated = np.repeat(groups, 4)
    assert half_width(repeated, group_size=4) == pytest.approx(half_width(groups))
    assert half_width(repeated) < 0.6 * half_width(groups)
    labels = np.arange(100) % 2
    assert half_width(repeated, np.repeat(labels, 4), 4) == pytest.approx(half_width(groups, labels))


def test_pairs_of_groups_are_as_large_as_the_larger_ones():
    labels = np.arange(12) % 3
    assert paired_design(Design(labels), Design(labels)).labels is labels
    assert paired_design(Design(labels), Design(labels, 4)) == (None, 4)
    assert paired_design(Design(None, 2), Design(labels, 2)) == (None, 2)


def frechet(samples):
    """(Fréchet distance from the standard normal distribution, influences)."""
    dim = samples.shape[1]
    value = frechet_distance(np.zeros(dim), np.eye(dim), samples.mean(axis=0), np.cov(samples, rowvar=False))
    return value, frechet_influence(np.zeros(dim), np.eye(dim), samples)


REAL = np.random.default_rng(99).normal(size=(2000, 2))
METRICS_OF = {"FD": frechet, "MIND": lambda samples: mind_influence(REAL, samples, num_directions=20)}


@pytest.mark.slow
@pytest.mark.parametrize("name", METRICS_OF)
def test_intervals_hold_the_truth_as_often_as_they_say(name):
    """Two Gaussians with common noise: 95 % of the intervals of each and of their difference hold the expectation."""
    metric, repetitions, count = METRICS_OF[name], 300, 400
    found, widths, unpaired = [], [], []
    for seed in range(repetitions):
        noise = np.random.default_rng(seed).normal(size=(count, 2))
        (a, own), (b, other) = metric(1.2 * noise + 0.5), metric(1.3 * noise + [0.9, 0.4])
        found.append((a, b - a))
        widths.append((half_width(own), half_width(other - own)))
        unpaired.append(np.hypot(half_width(own), half_width(other)))
    found, widths = np.array(found), np.array(widths)
    held = (abs(found - found.mean(axis=0)) < widths).mean(axis=0)
    assert (abs(held - 0.95) < 0.04).all(), held  # three standard deviations of 300 repetitions
    assert widths[:, 1].mean() < 0.5 * np.mean(unpaired)
    np.testing.assert_allclose(widths.mean(axis=0), 1.96 * found.std(axis=0), rtol=0.15)


@pytest.mark.slow
def test_intervals_equal_those_of_the_bootstrap():
    samples = np.random.default_rng(1).normal(size=(500, 3)) * [1.3, 0.8, 1] + 0.4
    rng = np.random.default_rng(2)
    replicates = [frechet(samples[rng.integers(0, 500, 500)])[0] for _ in range(400)]
    np.testing.assert_allclose(half_width(frechet(samples)[1]), 1.96 * np.std(replicates), rtol=0.12)
