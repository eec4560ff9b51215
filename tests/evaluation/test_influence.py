"""The influence of a sample on a metric: derivatives, exact leave-one-out changes, and the intervals made of them."""

import numpy as np
import pytest

from cfgjax.evaluation.metrics.density import DENSITY_NEIGHBOURS
from cfgjax.evaluation.metrics.influence import (
    coverage_influence,
    frechet_influence,
    half_width,
    log_softmax,
    mean_influence,
    score_influence,
)
from cfgjax.evaluation.metrics.manifold import ball_counts, density_coverage, precision_recall
from cfgjax.evaluation.metrics.mind import mind, mind_influence
from cfgjax.evaluation.metrics.recall import recall_influence
from cfgjax.evaluation.metrics.scores import frechet_distance, inception_score, matrix_sqrt


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def left_out(metric, samples):
    """(N − 1) (θ − θ without sample i) − its mean, of every i."""
    whole = metric(samples)
    changes = [whole - metric(np.delete(samples, i, axis=0)) for i in range(len(samples))]
    return mean_influence((len(samples) - 1) * np.array(changes))


REAL = normal(0, 70, 3)
SAMPLES = normal(1, 40, 3) * 0.7 + 0.4


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("block_size", [16, pytest.param(64, marks=pytest.mark.slow)])
def test_the_influence_on_recall_is_that_of_leaving_a_sample_out(k, block_size):
    expected = left_out(lambda y: precision_recall(REAL, y, k=k)[1], SAMPLES)
    found = recall_influence(REAL, SAMPLES, k=k, block_size=block_size)
    np.testing.assert_allclose(found, expected, atol=1e-9)
    assert (found > 0).any() and (found < 0).any()


@pytest.mark.slow
def test_the_influences_on_density_and_coverage_are_those_of_leaving_a_sample_out():
    counts = ball_counts(REAL, SAMPLES, k=DENSITY_NEIGHBOURS, block_size=16)
    np.testing.assert_allclose(
        mean_influence(counts.balls / counts.k), left_out(lambda y: density_coverage(REAL, y)[0], SAMPLES), atol=1e-9
    )
    expected = left_out(lambda y: density_coverage(REAL, y)[1], SAMPLES)
    np.testing.assert_allclose(coverage_influence(counts), expected, atol=1e-9)


def gaussian(samples):
    return samples.mean(axis=0), np.cov(samples, rowvar=False)


def test_the_influence_on_the_frechet_distance_is_its_derivative():
    samples, (mean, cov) = normal(2, 2000, 3) * [1, 2, 0.5] + 0.3, gaussian(normal(3, 500, 3))
    root = matrix_sqrt(cov)
    found = frechet_influence(mean, root, samples)
    expected = left_out(lambda y: frechet_distance(mean, cov, *gaussian(y), sqrt1=root), samples)
    np.testing.assert_allclose(found, expected, rtol=0.02, atol=0.02)


def test_the_influence_on_the_frechet_distance_is_finite_with_fewer_samples_than_features():
    found = frechet_influence(np.zeros(30), np.eye(30), normal(0, 12, 30))
    assert np.isfinite(found).all() and found.std() > 0


@pytest.mark.slow
def test_the_influence_on_the_inception_score_is_its_derivative():
    logits = normal(4, 1500, 6) * 2
    found = score_influence(log_softmax(logits))
    expected = left_out(lambda rows: inception_score(rows, splits=1)[0], logits)
    np.testing.assert_allclose(found, expected, rtol=0.02, atol=0.02)


def test_splits_share_the_influence_on_the_inception_score():
    logits = np.tile(normal(4, 300, 6), (2, 1))
    found = score_influence(log_softmax(logits), split_size=300)
    np.testing.assert_allclose(found[:300], score_influence(log_softmax(logits[:300])), rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("num_real", [300, 451])
def test_the_influence_on_mind_is_its_derivative(num_real):
    real, samples = normal(5, num_real, 2), normal(6, 300, 2) * 1.3 + 0.5
    value, found = mind_influence(real, samples, num_directions=40)
    assert value == mind(real, samples, num_directions=40)
    expected = left_out(lambda y: mind(real, y, num_directions=40), samples)
    np.testing.assert_allclose(found, expected, atol=0.2 * expected.std())
    assert np.corrcoef(found, expected)[0, 1] > 0.999


def test_the_half_width_of_a_mean_is_that_of_the_normal_distribution():
    values = normal(7, 500)
    assert abs(half_width(mean_influence(values)) - 1.959964 * values.std(ddof=1) / 500**0.5) < 1e-7


def test_differences_between_classes_do_not_widen_the_interval_of_balanced_samples():
    labels = np.arange(600) % 3
    values = normal(8, 600) + 100 * labels
    assert half_width(mean_influence(values), labels) < 0.1
    assert half_width(mean_influence(values)) > 6
    assert half_width(mean_influence(labels * 1.0), labels) == 0


def test_equal_settings_differ_by_exactly_nothing():
    influence = mean_influence(normal(9, 50))
    assert half_width(influence - influence) == 0


def test_classes_of_one_sample_count_as_drawn_at_random():
    values = mean_influence(normal(10, 20))
    assert half_width(values, np.arange(20)) == half_width(values)
