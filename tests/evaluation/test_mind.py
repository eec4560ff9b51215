"""Laws of MIND, density, coverage and FID∞."""

import numpy as np
import pytest

from cfgjax.evaluation.metrics import density_coverage, frechet_distance, mind
from cfgjax.evaluation.metrics.extrapolation import ExtrapolatedDistance, part_of
from cfgjax.evaluation.metrics.mind import common_steps, unit_directions
from cfgjax.evaluation.metrics.scores import matrix_sqrt


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def test_shifting_a_set_by_delta_gives_three_times_its_square():
    points, delta = normal(0, 50, 6), normal(1, 6)
    exact = 3 * 6 * np.square(unit_directions(1000, 6, 0) @ delta).mean()
    np.testing.assert_allclose(mind(points, points + delta), exact, rtol=1e-5)
    np.testing.assert_allclose(exact, 3 * np.square(delta).sum(), rtol=0.1)  # by 1,000 directions
    assert mind(points, points[::-1]) == 0


@pytest.mark.parametrize(("n", "m"), [(40, 40), (40, 60), (31, 47), (1, 9)])
def test_different_numbers_of_samples_are_compared_as_their_common_multiples_are(n, m):
    x, y = normal(2, n, 3), normal(3, m, 3)
    repeated = mind(np.repeat(x, m, axis=0), np.repeat(y, n, axis=0), num_directions=30)
    np.testing.assert_allclose(mind(x, y, num_directions=30), repeated, rtol=1e-5)
    np.testing.assert_allclose(mind(y, x, num_directions=30), repeated, rtol=1e-5)
    assert abs(common_steps(n, m)[2].sum() - 1) < 1e-12


def test_a_larger_set_of_the_same_points_has_distance_zero():
    points = normal(4, 20, 3)
    assert mind(points, np.repeat(points, 3, axis=0), num_directions=20) == 0


@pytest.mark.optimised  # compares to the last bit
def test_density_and_coverage_of_a_set_and_itself_are_one():
    points = normal(5, 90, 2)
    assert density_coverage(points, points) == (1, 1)
    assert density_coverage(points, points + 100) == (0, 0)


def test_a_point_at_the_radius_is_outside_the_ball():
    line = np.arange(4.0)[:, None]
    assert density_coverage(line, line, k=1) == (1, 1)
    assert density_coverage(line, line + 1, k=1) == (0.75, 0.75)  # of the neighbours at distance 1 none is inside


@pytest.mark.slow
def test_coverage_of_equal_distributions_has_its_expectation():
    """E coverage = 1 − Π_{i=1..k} (N−i)/(N+M−i), and E density = 1."""
    n, m, k = 60, 40, 3
    found = [density_coverage(normal(i, n, 2), normal(1000 + i, m, 2), k=k, block_size=64) for i in range(200)]
    density, coverage = np.mean(found, axis=0)
    expected = 1 - np.prod([(n - i) / (n + m - i) for i in range(1, k + 1)])
    assert abs(expected - 0.7927) < 5e-5
    assert abs(coverage - expected) < 4 * np.std(found, axis=0)[1] / 200**0.5
    assert abs(density - 1) < 4 * np.std(found, axis=0)[0] / 200**0.5


@pytest.mark.parametrize("num_classes", [1, 4, 10, 1000])
def test_parts_have_equal_sizes_and_their_share_of_every_class(num_classes):
    index = np.arange(20_000)
    counts = np.zeros((4, num_classes))
    np.add.at(counts, (part_of(index), index % num_classes), 1)
    assert abs(counts - 5000 / num_classes).max() <= 6
    assert abs(counts.sum(axis=1) - 5000).max() <= 4


class Known:
    """A reference of the standard normal distribution."""

    def __init__(self, dim):
        self.mean, self.cov, self.root = np.zeros(dim), np.eye(dim), np.eye(dim)


class Named:
    metric = staticmethod(lambda kind: kind)


def extrapolated(features, blocks=3):
    metric = ExtrapolatedDistance(Named, Known(features.shape[1]))
    for index in np.array_split(np.arange(len(features)), blocks):
        metric.update(index, index, {"features": features[index], "index": index})
    return metric.metrics()


def test_extrapolation_removes_the_bias_of_few_samples():
    dim, count = 20, 400
    biased, found = [], []
    for seed in range(15):
        features = normal(seed, count, dim)
        biased.append(frechet_distance(np.zeros(dim), np.eye(dim), features.mean(axis=0), np.cov(features.T)))
        found.append(extrapolated(features)["FD_inf"])
    assert np.mean(biased) > 0.2
    assert abs(np.mean(found)) < 0.1 * np.mean(biased)


def test_extrapolation_needs_more_samples_in_a_quarter_than_features():
    assert extrapolated(normal(0, 80, 20)) == {}
    assert extrapolated(normal(0, 120, 20)).keys() == {"FD_inf"}


def test_extrapolation_keeps_a_true_distance():
    covariance = np.diag([4.0, 1.0, 0.25])
    features = normal(0, 4000, 3) @ matrix_sqrt(covariance) + [0.5, 0, 0]
    exact = frechet_distance(np.zeros(3), np.eye(3), [0.5, 0, 0], covariance)
    assert abs(extrapolated(features)["FD_inf"] - exact) < 0.1 * exact
