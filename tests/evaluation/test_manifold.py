"""Laws of precision, recall, neighbours' distances and the entropy made of them."""

import json
import math
from pathlib import Path

import jax
import numpy as np
import pytest

from cfgjax.base.errors import UsageError
from cfgjax.evaluation.metrics import manifold
from cfgjax.evaluation.metrics.manifold import knn_entropy, neighbour_radii, precision_recall

GOLDENS = json.loads((Path(__file__).parents[1] / "goldens" / "metrics.json").read_text())


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def feats(n, seed, shift, dim, scale):
    """The features of the goldens, by their recipe."""
    signal = normal(seed, n, dim) * (1 + 0.5 * np.sin(np.arange(dim)))
    return (np.maximum(signal + shift, 0) * scale).astype(np.float32)


A, B = normal(0, 150, 12), normal(1, 120, 12) * 1.1 + 0.2


@pytest.mark.parametrize("dim", [2, 12])
def test_a_subset_has_precision_one(dim):
    whole = normal(0, 200, dim)
    precision, recall = precision_recall(whole, whole[:50])
    assert precision == 1 and 0 < recall < 1
    assert precision_recall(whole, whole) == (1, 1)


def test_sets_far_apart_have_precision_and_recall_zero():
    assert precision_recall(A, A + 100) == (0, 0)


def test_recall_equals_precision_with_the_sets_exchanged():
    (precision, recall), exchanged = precision_recall(A, B), precision_recall(B, A)
    assert (recall, precision) == exchanged
    assert precision != recall


def test_narrow_samples_have_high_precision_and_wide_samples_high_recall():
    narrow, wide = precision_recall(A, 0.5 * B), precision_recall(A, 2 * B)
    assert narrow[0] > 0.9 > 0.5 > narrow[1]
    assert wide[0] < 0.2 < 0.7 < wide[1]


@pytest.mark.parametrize("k", [1, 3, 119])
def test_manifolds_grow_with_k(k):
    assert all(np.less_equal(precision_recall(A, B, k=min(k, 2)), precision_recall(A, B, k=max(k, 2))))


@pytest.mark.parametrize(("block_size", "dim"), [(2, 3), (7, 12), (512, 3)])
def test_the_result_does_not_depend_on_the_block_size(block_size, dim):
    a, b = A[:60, :dim], B[:50, :dim]
    np.testing.assert_allclose(neighbour_radii(a, 4, block_size=block_size), neighbour_radii(a, 4), rtol=1e-5)
    assert precision_recall(a, b, block_size=block_size) == precision_recall(a, b)


def test_the_references_radii_may_be_computed_once():
    assert precision_recall(A, B, k=5, reference_radii=neighbour_radii(A, 5)) == precision_recall(A, B, k=5)


def test_radii_on_a_line_equal_those_computed_by_hand():
    points = np.array([[0.0], [1.0], [3.0], [7.0]])
    np.testing.assert_array_equal(neighbour_radii(points, 1), [1, 1, 2, 4])
    np.testing.assert_array_equal(neighbour_radii(points, 2), [3, 2, 3, 6])
    np.testing.assert_array_equal(neighbour_radii(points, 3), [7, 6, 4, 7])


@pytest.mark.parametrize("dim", [2, 12, 300])
def test_radii_are_the_sorted_distances_whatever_the_offset(dim):
    points = normal(0, 90, dim) + 1000
    exact = np.sort(np.linalg.norm(points[:, None] - points, axis=-1), axis=1)
    for k in (1, 3, 89):
        np.testing.assert_allclose(neighbour_radii(points, k), exact[:, k], rtol=1e-5)


@pytest.mark.parametrize("dim", [2, 12, 300])
def test_duplicates_are_neighbours_at_distance_zero(dim):
    points = normal(0, 40, dim).astype(np.float32)
    points[[3, 20, 31]] = points[5]
    coincide = np.isin(np.arange(40), [3, 5, 20, 31])
    np.testing.assert_array_equal(neighbour_radii(points, 3, block_size=16) == 0, coincide)
    assert (neighbour_radii(points, 4) > 0).all()
    # four equal points span a manifold of that point alone
    assert precision_recall(points[coincide], points) == (0.1, 1)


def test_every_number_of_samples_shares_one_compilation(monkeypatch):
    traces = []
    distances = manifold.pairwise_distances
    monkeypatch.setattr(manifold, "pairwise_distances", lambda x, y: traces.append(x.shape) or distances(x, y))
    jax.clear_caches()
    for num in (30, 64, 100):
        precision_recall(normal(0, num, 5), normal(1, 2 * num, 5), block_size=64)
    assert traces == [(64, 5)] * 2  # one of the radii, one of the manifolds


@pytest.mark.parametrize(
    ("name", "sizes", "dim", "shift", "scale"),
    [("d64", (1500, 1200), 64, 0.15, 1), ("d2048", (1000, 1000), 2048, 0.02, 0.6), ("big", (600, 700), 2048, 0.02, 6)],
)
def test_precision_and_recall_equal_those_of_other_implementations(name, sizes, dim, shift, scale):
    reference, generated = feats(sizes[0], 11, 0.0, dim, scale), feats(sizes[1], 12, shift, dim, scale)
    found = precision_recall(reference, generated)
    np.testing.assert_allclose(found, GOLDENS[f"pr_squared_f64_{name}"], atol=1e-9)
    np.testing.assert_allclose(found, GOLDENS[f"pr_torch_fidelity_f64_{name}"], atol=1e-7)  # rounded to float32


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_the_entropy_of_a_gaussian(k, dim):
    factor = np.triu(normal(0, dim, dim)) + 2 * np.eye(dim)
    expected = dim / 2 * math.log(2 * math.pi * math.e) + np.linalg.slogdet(factor)[1]
    assert abs(knn_entropy(normal(1, 4000, dim) @ factor, k=k) - expected) < 0.1


def test_the_entropy_of_a_small_cube_is_the_logarithm_of_its_volume():
    for side in (1e-3, 1.0, 50.0):
        points = 7 + side * np.random.default_rng(0).random((4000, 2))
        assert abs(knn_entropy(points) - 2 * math.log(side)) < 0.06


def test_scaling_points_adds_its_logarithm_to_the_entropy_and_shifting_adds_nothing():
    np.testing.assert_allclose(knn_entropy(3 * A + 5), knn_entropy(A) + 12 * math.log(3), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: neighbour_radii(A, 150), "k is 150 for 150 points; need 1 ≤ k < 150"),
        (lambda: neighbour_radii(A, 0), "k is 0"),
        (lambda: precision_recall(A, B[:3]), "k is 3 for 3 points"),
        (lambda: precision_recall(A, B[:, :5]), r"\(120, 5\); need \[N, 12\]"),
        (lambda: precision_recall(A, B, reference_radii=np.ones(3)), r"shape \(3,\) for 150 samples"),
        (lambda: precision_recall(A, np.where(B > 1, np.nan, B)), "not finite"),
        (lambda: knn_entropy(A[0]), "need"),
        (lambda: knn_entropy(np.repeat(A, 4, axis=0)), "600 of 600 points have 3 duplicates or more"),
    ],
)
def test_bad_input_is_an_early_error(call, words):
    with pytest.raises(UsageError, match=words):
        call()
