"""All metrics of samples against a reference, in one pass over the samples.

It needs memory for a block of samples and, if precision and recall are requested, for the features, N·D float32, and
the blocks of distances described in `manifold`.
"""

import logging
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from cfgjax.base.errors import UsageError
from cfgjax.evaluation.features.networks import FeatureNetwork
from cfgjax.evaluation.features.reference import NUM_NEIGHBOURS, Reference
from cfgjax.evaluation.metrics import METRICS
from cfgjax.evaluation.metrics.manifold import knn_entropy, precision_recall
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
    precision, recall and entropy. advance: called with the number of samples in each block.

    Names: FD, sFD, IS, IS_10, IS_10_std, KD and KD_std as `FeatureNetwork.metric` returns them; precision, recall;
    accuracy, log_posterior (mean log p(c|x)), accuracy_per_class; entropy of points, in nats; those of METRICS. Metrics
    for which the network or the reference has no arrays are left out. Raises UsageError for fewer than 2 samples.
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
    others = [make(network, reference) for make in METRICS.values()]
    for index, labels, images, out in feature_blocks(read, count, network, block_size, advance):
        moments.update(out)
        scores.update(index, out["logits"])
        if kernel:
            kernel.update(index, out["features"])
        if neighbours:
            rows.add(index, out["features"])
        if judge is not None and verdict is not None:
            verdict.update(labels, (out if judge is network else judge(images))["logits"])
        for metric in others:
            metric.update(labels, images, out)

    found = distances(moments.reduced(), reference, network) | scores.metrics(network.metric("IS"))
    if kernel:
        found |= kernel.metrics(network.metric("KD"))
    if neighbours and count > NUM_NEIGHBOURS:
        features = rows.reduced()
        if network.points:
            found["entropy"] = knn_entropy(features, k=NUM_NEIGHBOURS)
        if reference.features is not None and len(reference.features) > NUM_NEIGHBOURS:
            pair = precision_recall(reference.features, features, k=NUM_NEIGHBOURS, reference_radii=reference.radii)
            found |= dict(zip(("precision", "recall"), pair, strict=True))
    for metric in others:
        found |= metric.metrics()
    return found | (verdict.metrics() if verdict else {})


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
        "%d samples for %d features: %s is biased upwards; as many samples of the reference's own Gaussian get %.4g",
        *(count, dim, network.metric("FD"), floor),
    )
