import importlib
import logging
import re
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest

from cfgjax.base.errors import UsageError
from cfgjax.evaluation.features.networks import FeatureNetwork
from cfgjax.evaluation.features.reference import make_reference
from cfgjax.evaluation.metrics.extrapolation import part_of
from cfgjax.evaluation.metrics.influence import frechet_influence, log_softmax, score_influence
from cfgjax.evaluation.metrics.manifold import density_coverage, knn_entropy, precision_recall
from cfgjax.evaluation.metrics.mind import mind
from cfgjax.evaluation.metrics.scores import frechet_distance, inception_score, kernel_distance
from cfgjax.evaluation.metrics.sums import FeatureMoments

module = importlib.import_module("cfgjax.evaluation.frontier.measure")  # whose name the package's function has too
RNG = np.random.default_rng(0)
SIZES = {"features": 6, "logits": 5, "spatial": 3}
WEIGHTS = {name: RNG.integers(-9, 10, (16, size)).astype(np.float32) for name, size in SIZES.items()}


def linear(name="classifier", judges=True, weights=WEIGHTS):
    """A network of whole-number weights, whose outputs float32 has exactly, whatever the order of summation."""
    scale = {"features": 1, "logits": 2.0**-9, "spatial": 1}
    flat = lambda images: images.reshape(len(images), -1).astype(jnp.float32)
    apply = lambda params, images: {key: flat(images) @ params[key] * scale[key] for key in params}
    return FeatureNetwork(name, name, apply, weights, judges=judges)


def reader(count, seed):
    """read of `count` images and labels, and these."""
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 256, (count, 4, 4, 1), np.uint8), rng.integers(0, 5, count)
    return (lambda start, stop: (images[start:stop], labels[start:stop])), images, labels


NETWORK = linear()
REFERENCE = make_reference(reader(300, 1)[0], 300, NETWORK, "noise")


def in_memory(images, labels, reference_images):
    """What `measure` finds, from whole arrays; the subsets of the kernel distance in the reference's own order."""
    own, real = NETWORK(images), NETWORK(reference_images)
    gaussian = lambda a: (a.mean(axis=0, dtype=np.float64), np.cov(a.astype(np.float64), rowvar=False))
    distance = lambda name, keep=...: frechet_distance(*gaussian(real[name]), *gaussian(own[name][keep]))
    log_p = own["logits"].astype(np.float64)
    log_p -= np.log(np.exp(log_p - log_p.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
    log_p -= own["logits"].max(axis=1, keepdims=True)
    right = own["logits"].argmax(axis=1) == labels
    kid = kernel_distance(REFERENCE.features, own["features"])
    ten = inception_score(own["logits"], splits=10)
    near = precision_recall(real["features"], own["features"])
    dense = density_coverage(real["features"], own["features"])
    quarters = part_of(np.arange(len(images)))
    halved = [np.isin(quarters, part) for part in ([0, 1, 2, 3], [0, 1], [2, 3], [0], [1], [2], [3])]
    levels = [[distance("features", keep) for keep in halved[a:b]] for a, b in ((0, 1), (1, 3), (3, 7))]
    inverse = [np.mean([1 / keep.sum() for keep in halved[a:b]]) for a, b in ((0, 1), (1, 3), (3, 7))]
    return {
        "density": dense[0],
        "coverage": dense[1],
        "MIND-classifier": mind(real["features"], own["features"]),
        "FD_inf-classifier": np.polyfit(inverse, list(map(np.mean, levels)), 1)[1],
        "FD-classifier": distance("features"),
        "sFD-classifier": distance("spatial"),
        "IS-classifier": inception_score(own["logits"], split_size=5000)[0],
        "IS-classifier_10": ten[0],
        "IS-classifier_10_std": ten[1],
        "KD-classifier": kid[0],
        "KD-classifier_std": kid[1],
        "precision": near[0],
        "recall": near[1],
        "accuracy": right.mean(),
        "log_posterior": log_p[np.arange(len(labels)), labels].mean(),
        "accuracy_per_class": [right[labels == c].mean() for c in range(5)],
    }


@pytest.mark.parametrize("count", [250, 600, 730])
def test_sums_over_blocks_equal_those_of_complete_arrays(count):
    read, images, labels = reader(count, 2)
    found = module.measure(read, count, NETWORK, REFERENCE)
    expected = in_memory(images, labels, reader(300, 1)[1])
    assert found.keys() == expected.keys()
    single = {"log_posterior", "MIND-classifier"}  # of float32 softmax and projections
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6 if name in single else 1e-9, err_msg=name)


def test_only_the_kernel_distance_depends_on_the_block_size(monkeypatch):
    read = reader(730, 2)[0]
    whole = module.measure(read, 730, NETWORK, REFERENCE)
    monkeypatch.setattr(module, "BLOCK", 64)
    small = module.measure(read, 730, NETWORK, REFERENCE)
    for name in whole.keys() - {"KD-classifier", "KD-classifier_std"}:
        np.testing.assert_allclose(small[name], whole[name], rtol=1e-12, err_msg=name)


@pytest.mark.optimised  # compares to the last bit
def test_a_set_has_distance_zero_from_itself():
    found = module.measure(reader(300, 1)[0], 300, NETWORK, REFERENCE)
    assert abs(found["FD-classifier"]) < 1e-9 * np.trace(REFERENCE.cov)
    assert abs(found["sFD-classifier"]) < 1e-9 * np.trace(REFERENCE.spatial_cov)
    assert (found["precision"], found["recall"], found["density"], found["coverage"]) == (1, 1, 1, 1)
    assert found["MIND-classifier"] == 0


def test_only_inceptions_distances_have_the_papers_names():
    read = reader(100, 2)[0]
    for name, judges in [("classifier", True), ("other", False)]:
        network = linear(name, judges)
        names = module.measure(read, 100, network, REFERENCE).keys()
        assert not any("FID" in key or "KID" in key or key.partition("_")[0] == "IS" for key in names)
        assert {f"{kind}-{name}" for kind in ("FD", "sFD", "IS", "KD")} < names
        assert ("accuracy" in names) == judges
    names = module.measure(read, 100, linear("inception", judges=False), REFERENCE).keys()
    of_manifolds = {"precision", "recall", "density", "coverage"}
    assert names == {"FID", "sFID", "FID_inf", "IS", "IS_10", "IS_10_std", "KID", "KID_std", "MIND"} | of_manifolds


def test_only_the_judge_determines_accuracy_and_posterior():
    read, images, labels = reader(130, 2)
    judge = linear("judge", weights={"logits": WEIGHTS["logits"][:, ::-1]})
    alone = module.measure(read, 130, linear("inception", judges=False), REFERENCE)
    judged = module.measure(read, 130, linear("inception", judges=False), REFERENCE, judge=judge)
    verdict = {"accuracy", "log_posterior", "accuracy_per_class"}
    assert judged.keys() - alone.keys() == verdict
    assert all(judged[name] == value for name, value in alone.items())
    assert judged["accuracy"] == (judge(images)["logits"].argmax(axis=1) == labels).mean()
    both = module.measure(read, 130, NETWORK, REFERENCE, judge=judge)
    assert all(both[name] == judged[name] for name in verdict)


def test_a_class_that_was_not_requested_has_no_accuracy():
    images = reader(20, 2)[1]
    read = lambda start, stop: (images[start:stop], np.full(stop - start, 3))
    found = module.measure(read, 20, NETWORK, REFERENCE)["accuracy_per_class"]
    assert [value is None for value in found] == [True, True, True, False, True]


def test_without_neighbours_only_metrics_that_need_all_features_are_left_out():
    read = reader(130, 2)[0]
    whole, less = (module.measure(read, 130, NETWORK, REFERENCE, neighbours=n) for n in (True, False))
    assert whole.keys() - less.keys() == {"precision", "recall", "density", "coverage", "MIND-classifier"}
    assert all(whole[name] == value for name, value in less.items())


@pytest.mark.parametrize("count", [130, 730])
def test_influences_are_those_of_complete_arrays_and_change_no_metric(count):
    read, images, labels = reader(count, 2)
    found, influences = module.measure_with_influences(read, count, NETWORK, REFERENCE)
    assert found == module.measure(read, count, NETWORK, REFERENCE)
    distances = {"FD-classifier", "IS-classifier", "MIND-classifier", "precision", "recall", "density", "coverage"}
    assert influences.keys() == distances | {"accuracy", "log_posterior"}
    own = NETWORK(images)
    expected = frechet_influence(REFERENCE.mean, REFERENCE.root, own["features"])
    np.testing.assert_allclose(influences["FD-classifier"], expected, rtol=1e-6)
    exact = score_influence(log_softmax(own["logits"]))
    np.testing.assert_allclose(influences["IS-classifier"], exact, atol=5e-3 * exact.std())  # stored as float16
    right = own["logits"].argmax(axis=1) == labels
    np.testing.assert_allclose(influences["accuracy"], right - right.mean(), atol=1e-6)
    assert all(abs(values.mean()) < 1e-9 * (1 + abs(values).max()) for values in influences.values())
    assert module.measure_with_influences(read, count, NETWORK, REFERENCE, neighbours=False)[1] == {}


def test_samples_that_a_network_is_sure_about_have_finite_influences():
    certain = {**WEIGHTS, "logits": WEIGHTS["logits"] * 1e5}
    found = module.measure_with_influences(reader(60, 2)[0], 60, linear(weights=certain), REFERENCE)[1]
    assert np.isfinite(found["IS-classifier"]).all()


def test_the_entropy_of_points_is_measured():
    points = np.random.default_rng(0).standard_normal((200, 2)).astype(np.float32)
    apply = lambda params, x: {"features": x, "logits": x}
    network = FeatureNetwork("mixture", "mixture", apply, {}, judges=True, points=True)
    read = lambda start, stop: (points[start:stop], np.zeros(stop - start, int))
    found = module.measure(read, 200, network, make_reference(read, 200, network, "itself"))
    assert found["entropy"] == knn_entropy(points)
    assert "sFD-mixture" not in found


def test_progress_is_reported_for_every_sample():
    seen = []
    module.measure(reader(730, 2)[0], 730, NETWORK, REFERENCE, advance=seen.append)
    assert sum(seen) == 730


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_samples_are_refused(count):
    with pytest.raises(UsageError, match=f"num_samples is {count}; metrics need at least 2"):
        module.measure(reader(3, 2)[0], count, NETWORK, REFERENCE)


def test_too_few_samples_give_a_warning_with_the_bias(caplog):
    rng = np.random.default_rng(0)
    dim, count = 40, 30
    weights = {**WEIGHTS, "features": rng.integers(-9, 10, (16, dim)).astype(np.float32)}
    network = linear("inception", weights=weights)
    reference = make_reference(reader(2000, 1)[0], 2000, network, "noise")
    biases = []
    for seed in range(20):
        moments = FeatureMoments({"features": dim})
        moments.update(network(reader(count, 100 + seed)[1]))
        biases.append(module.distances(moments.of, reference, network)["FID"])
    with caplog.at_level(logging.WARNING, "cfgjax"):
        module.warn_of_few(dim, network, reference)
        assert not caplog.text
        module.warn_of_few(count, network, reference)
    told = re.search(r"30 samples for 40 features: FID is biased upwards; .* have (\S+)", caplog.text)
    assert abs(float(told[1]) / np.mean(biases) - 1) < 0.3


@pytest.mark.slow
def test_without_neighbours_memory_does_not_grow_with_the_samples():
    def peak(count):
        def read(start, stop):
            rng = np.random.default_rng(start)
            return rng.integers(0, 256, (stop - start, 4, 4, 1), np.uint8), np.arange(start, stop) % 5

        tracemalloc.start()
        try:
            module.measure(read, count, NETWORK, REFERENCE, neighbours=False)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2000)  # what is compiled and kept
    few, many = peak(4000), peak(20_000)
    assert many < 1.1 * few
