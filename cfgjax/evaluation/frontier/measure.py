"""All metrics of samples against a reference, in one pass over the samples.

It needs memory for a block of samples and, if precision and recall are requested, for the features, N·D float32, and
the blocks of distances described in `manifold`. Influences add N·K float16 for K logits.
"""

import logging
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from cfgjax.base.errors import UsageError
from cfgjax.evaluation.features.networks import FeatureNetwork
from cfgjax.evaluation.features.reference import NUM_NEIGHBOURS, Reference
from cfgjax.evaluation.metrics import METRICS
from cfgjax.evaluation.metrics.influence import frechet_influence, log_softmax, mean_influence, score_influence
from cfgjax.evaluation.metrics.manifold import in_manifolds, knn_entropy
from cfgjax.evaluation.metrics.recall import recall_influence
from cfgjax.evaluation.metrics.scores import Moments, cubic_mmd, frechet_distance, kernel_subset
from cfgjax.evaluation.metrics.sums import (
    BLOCK,
    Advance,
    FeatureMoments,
    IndexedRows,
    ReadImages,
    Scores,
    Verdict,
    feature_blocks,
)

log = logging.getLogger("cfgjax")


def measure(
    read: ReadImages,
    count: int,
    network: FeatureNetwork,
    reference: Reference,
    *,
    judge: FeatureNetwork | None = None,
    neighbours: bool = True,
    advance: Advance = lambda images: None,
) -> dict[str, Any]:
    """Returns {name: value} of all metrics of `count` samples against a reference of the same network.

    read: (start, stop) → (samples, labels) of these indices, where labels are the requested classes. judge: a network
    whose logits are those of the data's classes; by default `network`, if it is one. neighbours: whether to compute
    precision, recall and entropy, and the metrics of METRICS that take features. advance: called with the number of
    samples in each block.

    Names: FD, sFD, IS, IS_10, IS_10_std, KD and KD_std as `FeatureNetwork.metric` returns them; precision, recall;
    accuracy, log_posterior (mean log p(c|x)), accuracy_per_class; entropy of points, in nats; those of METRICS. Metrics
    for which the network or the reference has no arrays are left out. Raises UsageError for fewer than 2 samples.
    """
    options: Any = {"judge": judge, "neighbours": neighbours, "advance": advance}
    return measure_with_influences(read, count, network, reference, **options, influences=False)[0]


def measure_with_influences(
    read: ReadImages,
    count: int,
    network: FeatureNetwork,
    reference: Reference,
    *,
    judge: FeatureNetwork | None = None,
    neighbours: bool = True,
    advance: Advance = lambda images: None,
    influences: bool = True,
) -> tuple[dict[str, Any], dict[str, Float[np.ndarray, " n"]]]:
    """Returns (metrics as `measure`, {name: influence of each sample} of those that have one, see `metrics.influence`).

    Influences need the features and log p(y|x) of all samples in memory. influences, neighbours: both must be true for
    them to be computed; otherwise the second result is empty.
    """
    if count < 2:
        raise UsageError(f"num_samples is {count}; metrics need at least 2")
    one = read(0, 1)[0]
    sizes, judge = network.sizes(one), judge or (network if network.judges else None)
    moments, scores = FeatureMoments(sizes), Scores(sizes["logits"], count)
    kernel = None if reference.features is None else KernelDistance(reference.features, count)
    block_size = BLOCK // kernel.size * kernel.size if kernel else BLOCK
    rows = IndexedRows((sizes["features"],))
    verdict = None if judge is None else Verdict(judge.sizes(one)["logits"])  # also in a process without blocks
    own = SampleRecords(sizes["logits"], judge is not None) if influences and neighbours else None
    others = [make(network, reference) for make in METRICS.values()]
    streamed = [metric for metric in others if not takes_features(metric)]
    for index, labels, images, out in feature_blocks(read, count, network, block_size, advance):
        moments.update(out)
        scores.update(index, out["logits"])
        if kernel:
            kernel.update(index, out["features"])
        if neighbours:
            rows.add(index, out["features"])
        judged = None
        if judge is not None and verdict is not None:
            judged = (out if judge is network else judge(images))["logits"]
            verdict.update(labels, judged)
        if own is not None:
            own.update(index, out["logits"], labels, judged)
        for metric in streamed:
            metric.update(labels, images, out | {"index": index})

    found = distances(moments.reduced(), reference, network) | scores.metrics(network.metric("IS"))
    if kernel:
        found |= kernel.metrics(network.metric("KD"))
    features = rows.reduced() if neighbours else None
    shares: dict[str, np.ndarray] = {}
    if features is not None and count > NUM_NEIGHBOURS:
        if network.points:
            found["entropy"] = knn_entropy(features, k=NUM_NEIGHBOURS)
        if (known := many_features(reference)) is not None:
            radii = reference.radii(NUM_NEIGHBOURS)
            inside = in_manifolds(known, features, k=NUM_NEIGHBOURS, reference_radii=radii)
            found |= {name: float(part.mean()) for name, part in zip(("precision", "recall"), inside, strict=True)}
            if own is not None and count > NUM_NEIGHBOURS + 1:
                shares["precision"] = mean_influence(inside[0])
                shares["recall"] = recall_influence(known, features, k=NUM_NEIGHBOURS)
    if own is not None and features is not None:
        shares |= own.influences(features, network, reference)
    for metric in others:
        if takes_features(metric) and features is None:
            continue
        found |= metric.metrics(features) if takes_features(metric) else metric.metrics()
        if own is not None and hasattr(metric, "influences"):
            shares |= metric.influences()
    return found | (verdict.metrics() if verdict else {}), shares


def takes_features(metric: Any) -> bool:
    """Returns whether a metric of METRICS receives the features of all samples at once."""
    return getattr(metric, "takes_features", False)


def many_features(reference: Reference) -> Float[np.ndarray, "n d"] | None:
    """Returns the features of a reference if there are enough for precision and recall, or None."""
    known = reference.features
    return known if known is not None and len(known) > NUM_NEIGHBOURS else None


class SampleRecords:
    """What the influences of samples on the metrics of this module need besides the features.

    log p(y|x) is stored as float16, in the same memory as the features of Inception; the error of an interval is 0.1 %.
    """

    def __init__(self, num_classes: int, judged: bool) -> None:
        self._log_p = IndexedRows((num_classes,), np.float16)
        self._verdicts = IndexedRows((2,)) if judged else None

    def update(
        self,
        index: Int[np.ndarray, " b"],
        logits: Float[np.ndarray, "b k"],
        labels: Int[np.ndarray, " b"],
        judged: Float[np.ndarray, "b _c"] | None,
    ) -> None:
        """Adds a block. judged: logits of the classes of the data, or None without a judge."""
        smallest = float(np.finfo(np.float16).min)  # of which e^ is 0, as of −∞, but its product with 0 is 0
        self._log_p.add(index, np.maximum(log_softmax(logits), smallest).astype(np.float16))
        if self._verdicts is not None and judged is not None:
            own = np.take_along_axis(log_softmax(judged), labels[:, None], axis=1)[:, 0]
            rows = np.stack([judged.argmax(axis=1) == labels, own], axis=1)
            self._verdicts.add(index, rows.astype(np.float32))

    def influences(
        self, features: Float[np.ndarray, "n d"], network: FeatureNetwork, reference: Reference
    ) -> dict[str, Float[np.ndarray, " n"]]:
        """Returns {name: influence of each sample} on the Fréchet distance, the inception score and the verdict."""
        found = {
            network.metric("FD"): frechet_influence(reference.mean, reference.root, features),
            network.metric("IS"): score_influence(self._log_p.reduced()),
        }
        if self._verdicts is not None:
            correct, log_prob = self._verdicts.reduced().T
            found |= {"accuracy": mean_influence(correct), "log_posterior": mean_influence(log_prob)}
        return found


def distances(moments: dict[str, Moments], reference: Reference, network: FeatureNetwork) -> dict[str, float]:
    """Returns the Fréchet distances of the features and, if both sides have them, of the spatial features."""
    own, found = moments["features"], {}
    found[network.metric("FD")] = frechet_distance(
        reference.mean, reference.cov, own.mean, own.cov, sqrt1=reference.root
    )
    if "spatial" in moments and reference.spatial_mean is not None and reference.spatial_cov is not None:
        own = moments["spatial"]
        found[network.metric("sFD")] = frechet_distance(
            reference.spatial_mean, reference.spatial_cov, own.mean, own.cov, sqrt1=reference.spatial_root
        )
    return found


class KernelDistance:
    """`kernel_distance` of samples in blocks. All but the last block consist of complete subsets of `size` samples."""

    def __init__(self, reference: Float[np.ndarray, "n d"], count: int) -> None:
        self.size, self._reference = min(BLOCK, count, len(reference)), reference
        self._distances = IndexedRows(dtype=np.float64)

    def update(self, index: Int[np.ndarray, " b"], features: Float[np.ndarray, "b d"]) -> None:
        """Adds the complete subsets of a block, which starts at the beginning of a subset."""
        for start in range(0, len(index) - self.size + 1, self.size):
            subset = kernel_subset(self._reference, int(index[start]) // self.size, self.size)
            distance = cubic_mmd(subset, features[start : start + self.size])
            self._distances.add(index[start : start + 1], np.array([distance]))

    def metrics(self, name: str) -> dict[str, float]:
        """Returns {name, name_std: float} over the subsets of all processes."""
        values = self._distances.reduced()
        return {name: float(values.mean()), f"{name}_std": float(values.std())}


def warn_of_few(count: int, network: FeatureNetwork, reference: Reference) -> None:
    """Logs a warning with the bias of the Fréchet distance if there are fewer samples than features."""
    dim = len(reference.mean)
    if count >= dim:
        return
    rng = np.random.default_rng(0)
    draws = rng.standard_normal((count, dim)) @ reference.root + reference.mean
    cov = np.cov(draws, rowvar=False)
    floor = frechet_distance(reference.mean, reference.cov, draws.mean(axis=0), cov, sqrt1=reference.root)
    log.warning(
        "%d samples for %d features: %s is biased upwards; as many draws from the reference's own Gaussian have %.4g",
        *(count, dim, network.metric("FD"), floor),
    )
