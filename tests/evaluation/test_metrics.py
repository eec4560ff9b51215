"""Laws of the Fréchet distance, the inception score and the kernel distance."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest

from cfgjax.base.errors import UsageError
from cfgjax.evaluation.metrics.scores import (
    Moments,
    SplitScores,
    frechet_distance,
    inception_score,
    kernel_distance,
    matrix_sqrt,
    split_bounds,
)

GOLDENS = json.loads((Path(__file__).parents[1] / "goldens" / "metrics.json").read_text())


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def feats(n, seed, shift):
    """The features of the goldens, by their recipe."""
    return np.maximum(normal(seed, n, 64) * (1 + 0.5 * np.sin(np.arange(64))) + shift, 0).astype(np.float32)


def moments(*chunks):
    found = Moments.zeros(chunks[0].shape[1])
    for chunk in chunks:
        found.update(chunk)
    return found


def distance(a, b):
    """The Fréchet distance of two Moments, or pairs of (mean, cov)."""
    a, b = ((m.mean, m.cov) if isinstance(m, Moments) else m for m in (a, b))
    return frechet_distance(*a, *b)


def gaussian(seed, dim):
    factor = normal(seed, dim, dim)
    return normal(seed + 100, dim), factor @ factor.T + np.eye(dim)


def rotation(seed, dim):
    return np.linalg.qr(normal(seed, dim, dim))[0]


A, B = feats(400, 0, 0.0), feats(300, 1, 0.1)
LOGITS = feats(230, 2, 0.0) @ (0.2 * normal(3, 64, 20))


def test_the_frechet_distance_of_a_set_to_itself_is_zero():
    assert abs(distance(moments(A), moments(A))) < 1e-9
    few = moments(A[:30])  # fewer samples than dimensions: a singular covariance
    assert abs(distance(few, few)) < 1e-5


def test_the_frechet_distance_is_symmetric_and_positive():
    a, b = moments(A), moments(B)
    assert distance(a, b) > 0.1
    np.testing.assert_allclose(distance(a, b), distance(b, a), rtol=1e-10)


def test_commuting_gaussians_differ_by_their_means_and_standard_deviations():
    std1, std2 = np.random.default_rng(0).uniform(0, 3, (2, 12))
    (mean1, mean2), axes = normal(1, 2, 12), rotation(2, 12)
    cov1, cov2 = ((axes * std**2) @ axes.T for std in (std1, std2))
    expected = np.sum((mean1 - mean2) ** 2) + np.sum((std1 - std2) ** 2)
    np.testing.assert_allclose(frechet_distance(mean1, cov1, mean2, cov2), expected, rtol=1e-9)


def test_the_frechet_distance_is_invariant_to_rigid_motions_and_quadratic_in_scale():
    a, b, axes, shift = gaussian(0, 8), gaussian(1, 8), rotation(2, 8), normal(3, 8)
    move = lambda mean, cov: (3 * axes @ mean + shift, 9 * axes @ cov @ axes.T)
    np.testing.assert_allclose(distance(move(*a), move(*b)), 9 * distance(a, b), rtol=1e-10)


def test_the_cross_term_is_the_trace_of_the_root_of_the_product():
    (mean1, cov1), (mean2, cov2) = gaussian(4, 6), gaussian(5, 6)
    cross = np.sqrt(np.linalg.eigvals(cov1 @ cov2).real).sum()  # of the product itself, which is not symmetric
    expected = np.sum((mean1 - mean2) ** 2) + np.trace(cov1 + cov2) - 2 * cross
    np.testing.assert_allclose(frechet_distance(mean1, cov1, mean2, cov2), expected, rtol=1e-10)


def test_the_root_squares_to_the_covariance_and_may_be_computed_once():
    a, b = gaussian(4, 6), gaussian(5, 6)
    root = matrix_sqrt(a[1])
    np.testing.assert_allclose(root @ root, a[1], rtol=1e-10, atol=1e-10)
    assert frechet_distance(*a, *b, sqrt1=root) == distance(a, b)


@pytest.mark.parametrize("offset", [0, 100])
@pytest.mark.parametrize("chunks", [1, 7, 400])
def test_streamed_moments_do_not_depend_on_chunks_and_order(offset, chunks):
    a, b = normal(0, 400, 24) + offset, 1.1 * normal(1, 300, 24) + offset
    in_memory = frechet_distance(a.mean(axis=0), np.cov(a.T), b.mean(axis=0), np.cov(b.T))
    parts = [moments(chunk) for chunk in np.array_split(a, chunks)]
    for order in (parts, parts[::-1]):
        merged = functools.reduce(Moments.merge, order, Moments.zeros(24))
        assert merged.count == 400
        np.testing.assert_allclose(distance(merged, moments(b[:13], b[13:])), in_memory, rtol=1e-9)


def test_merging_adds_the_fields_and_changes_neither_side():
    a, b = moments(A), moments(B)
    before = [(m.count, m.total.copy(), m.outer.copy()) for m in (a, b)]
    merged = a.merge(b)
    merged.update(A)
    for m, (count, total, outer) in zip((a, b), before, strict=True):
        assert m.count == count and np.array_equal(m.total, total) and np.array_equal(m.outer, outer)
    again = a.merge(b)
    assert np.array_equal(again.total, a.total + b.total) and np.array_equal(again.outer, a.outer + b.outer)


def test_the_frechet_distance_equals_that_of_other_implementations():
    found = distance(moments(feats(3000, 21, 0.0)), moments(feats(2500, 22, 0.1)))
    assert abs(found - GOLDENS["fd_pytorch_fid"]) < 1e-9
    assert abs(found - GOLDENS["fd_torch_fidelity"]) < 1e-6  # its means are float32


def test_uniform_logits_score_one():
    for constant in (0.0, -700.0):
        np.testing.assert_allclose(inception_score(np.full((50, 7), constant)), (1, 0), atol=1e-12)


def test_confident_and_balanced_classes_score_their_number():
    logits = 1000.0 * np.eye(6)[np.arange(120) % 6]
    np.testing.assert_allclose(inception_score(logits, splits=5), (6, 0), atol=1e-12)


def test_a_class_that_never_occurs_changes_nothing():
    never = np.concatenate([LOGITS, np.full((len(LOGITS), 1), -2000.0)], axis=1)
    np.testing.assert_allclose(inception_score(never), inception_score(LOGITS), rtol=1e-12)


def test_one_sample_per_split_scores_one():
    np.testing.assert_allclose(inception_score(LOGITS, split_size=1), (1, 0), atol=1e-12)


@pytest.mark.parametrize("options", [{"splits": 10}, {"split_size": 100}])
def test_streamed_scores_do_not_depend_on_the_order(options):
    bounds = split_bounds(len(LOGITS), **options)
    parts = np.array_split(np.random.default_rng(0).permutation(len(LOGITS)), 9)
    expected = inception_score(LOGITS, **options)
    for order in (parts, parts[::-1]):
        scores = SplitScores(20, bounds)
        for index in order:
            scores.update(index, LOGITS[index])
        np.testing.assert_allclose(scores.score(), expected, rtol=1e-12)


def test_splits_cover_the_samples_once():
    assert split_bounds(23, splits=4).tolist() == [0, 5, 11, 17, 23]
    assert split_bounds(12_000, split_size=5000).tolist() == [0, 5000, 10_000, 12_000]
    assert split_bounds(10_000, split_size=5000).tolist() == [0, 5000, 10_000]
    assert split_bounds(3, split_size=5000).tolist() == [0, 3]


def test_the_inception_score_equals_that_of_other_implementations():
    logits = feats(12_000, 31, 0.0) @ (normal(5, 64, 1008).astype(np.float32) * np.float32(0.2))
    found = inception_score(logits)
    np.testing.assert_allclose(found, GOLDENS["is_torch_fidelity_splits10_shuffleFalse"], atol=1e-9)
    mean, _ = inception_score(logits, split_size=5000)
    assert abs(mean - GOLDENS["is_openai_formula_f64_split5000_in_order"]) < 1e-9
    assert abs(mean - GOLDENS["is_openai_original_code"]) < 1e-6  # float32


def test_the_kernel_distance_is_unbiased():
    mean, std = kernel_distance(normal(0, 10_000, 4), normal(1, 10_000, 4), subset_size=25)
    assert abs(mean) < 4 * std / np.sqrt(400) < 0.3


def test_the_kernel_distance_of_numbers_compares_three_moments():
    # one dimension: E (xy + 1)³ = Σ_j binom(3, j) E xʲ E yʲ, so that MMD² = Σ_j binom(3, j) (E xʲ − E yʲ)²
    x, y = normal(0, 20_000, 1) + 0.5, np.random.default_rng(1).uniform(-1, 2, (20_000, 1))
    expected = 3 * (0.5 - 0.5) ** 2 + 3 * (1.25 - 1.0) ** 2 + (1.625 - 1.25) ** 2
    mean, std = kernel_distance(x, y, subset_size=200)
    assert abs(mean - expected) < 4 * std / np.sqrt(100) < 0.3


def test_the_kernel_distance_ignores_rotation():
    axes = rotation(0, 64)
    np.testing.assert_allclose(
        kernel_distance(A @ axes, B @ axes, subset_size=70), kernel_distance(A, B, subset_size=70)
    )


def test_subsets_are_disjoint_in_order_and_start_over_on_the_reference():
    pairs = [(A[0:150], B[0:150]), (A[150:300], B[150:300])]
    expected = [kernel_distance(a, b)[0] for a, b in pairs]
    np.testing.assert_allclose(kernel_distance(A, B, subset_size=150), (np.mean(expected), np.std(expected)))
    expected = [kernel_distance(A[:200], B[:200])[0], kernel_distance(A[:200], B[100:300])[0]]
    generated = np.concatenate([B[:200], B[100:300]])
    np.testing.assert_allclose(kernel_distance(A[:399], generated, subset_size=200)[0], np.mean(expected))


def test_an_unfinished_subset_is_left_out_unless_it_is_the_only_one():
    assert kernel_distance(A, B, subset_size=280) == kernel_distance(A, B[:280], subset_size=280)
    assert kernel_distance(A, B[:40]) == kernel_distance(A[:40], B[:40])


NAN = np.full((3, 64), np.nan)
SCORES = SplitScores(2, [0, 5])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: moments(A[:1]).cov, "at least 2 samples, got 1"),
        (lambda: Moments.zeros(64).mean, "at least 1"),
        (lambda: moments(A).update(A[:, :3]), r"shape \(400, 3\); need \[N, 64\]"),
        (lambda: moments(A).merge(Moments.zeros(3)), "64 and of 3"),
        (lambda: moments(A, NAN), "3 of 3 feature rows are not finite; the first is row 0"),
        (lambda: frechet_distance(np.zeros(2), np.eye(2), np.zeros(3), np.eye(3)), r"\(2, 2\), \(3,\)"),
        (lambda: frechet_distance(np.zeros(2), np.eye(2), np.zeros(2), np.full((2, 2), np.inf)), "not finite"),
        (lambda: inception_score(LOGITS[:9]), "10 splits of 9 samples"),
        (lambda: inception_score(LOGITS[0]), "need"),
        (lambda: inception_score(LOGITS, split_size=0), "splits of 0"),
        (lambda: split_bounds(10), "exactly one"),
        (lambda: split_bounds(10, 2, 5), "exactly one"),
        (lambda: SplitScores(2, [0, 5, 5]), "increasing"),
        (lambda: SCORES.update([5], np.zeros((1, 2))), "outside 0 … 4"),
        (lambda: SCORES.update([1, 2], np.zeros((1, 2))), "index has shape"),
        (lambda: SCORES.score(), "split 0 has 0 samples instead of 5"),
        (lambda: kernel_distance(A, B[:, :3]), "need"),
        (lambda: kernel_distance(A, B[:1]), "subsets have 1 of"),
        (lambda: kernel_distance(A, B, subset_size=1), "subsets have 1 of"),
    ],
)
def test_bad_input_is_an_early_error(call, words):
    with pytest.raises(UsageError, match=words):
        call()
