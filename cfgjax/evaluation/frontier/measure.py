"""Every metric of samples against a reference, in one pass over them.

Its memory is that of a block of samples, plus, where precision and recall are wanted, that of the features, N·D
float32, and of the blocks of distances that `manifold` states.
"""

import logging

import numpy as np

from cfgjax.base.errors import UsageError
from cfgjax.evaluation.features.reference import NUM_NEIGHBOURS
from cfgjax.evaluation.metrics.manifold import knn_entropy, precision_recall
from cfgjax.evaluation.metrics.scores import cubic_mmd, frechet_distance, kernel_subset
from cfgjax.evaluation.metrics.sums import BLOCK, FeatureMoments, Rows, Scores, Verdict, feature_blocks

log = logging.getLogger("cfgjax")


def measure(read, count, network, reference, *, judge=None, neighbours=True, advance=lambda images: None):
    """{name: value} of every metric of `count` samples against reference, a `Reference` of the same network.

    read: (start, stop) → (samples, labels) of these indices, labels being the classes asked for. judge: a network
    whose logits are the classes of the data; by default `network`, where its are. neighbours: whether to find
    precision, recall and entropy. advance: told of samples seen.

    Names: FD, sFD, IS, IS_10, IS_10_std, KD and KD_std as `FeatureNetwork.metric` has them; precision, recall;
    accuracy, log_posterior (mean log p(c|x)), accuracy_per_class; entropy, in nats, of points. Left out: what the
    network or the reference lacks the arrays for. Raises UsageError for fewer than 2 samples.
    """
    if count < 2:
        raise UsageError(f"num_samples is {count}; metrics need at least 2")
    one = read(0, 1)[0]
    sizes, judge = network.sizes(one), judge or (network if network.judges else None)
    moments, scores = FeatureMoments(sizes), Scores(sizes["logits"], count)
    kernel = None if reference.features is None else Kernel(reference.features, count)
    block_size = BLOCK // kernel.size * kernel.size if kernel else BLOCK
    rows, verdict = Rows((sizes["features"],)), judge and Verdict(judge.sizes(one)["logits"])  # also where no block is
    for index, labels, images, out in feature_blocks(read, count, network, block_size, advance):
        moments.update(out)
        scores.update(index, out["logits"])
        if kernel:
            kernel.update(index, out["features"])
        if neighbours:
            rows.add(index, out["features"])
        if judge:
            verdict.update(labels, (out if judge is network else judge(images))["logits"])

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
    return found | (verdict.metrics() if verdict else {})


def distances(moments, reference, network):
    """The Fréchet distances of the features and, where both sides have them, of the spatial features."""
    own, found = moments["features"], {}
    found[network.metric("FD")] = frechet_distance(
        reference.mean, reference.cov, own.mean, own.cov, sqrt1=reference.root
    )
    if "spatial" in moments and reference.spatial_mean is not None:
        own = moments["spatial"]
        found[network.metric("sFD")] = frechet_distance(
            reference.spatial_mean, reference.spatial_cov, own.mean, own.cov, sqrt1=reference.spatial_root
        )
    return found


class Kernel:
    """`kernel_distance` of samples that come in blocks of whole subsets of `size`, but for the last."""

    def __init__(self, reference, count):
        self.size, self._reference = min(BLOCK, count, len(reference)), reference
        self._distances = Rows(dtype=np.float64)

    def update(self, index, features):
        """Adds the whole subsets of a block, which begins with one."""
        for start in range(0, len(index) - self.size + 1, self.size):
            subset = kernel_subset(self._reference, index[start] // self.size, self.size)
            distance = cubic_mmd(subset, features[start : start + self.size])
            self._distances.add(index[start : start + 1], np.array([distance]))

    def metrics(self, name):
        """{name, name_std: float} over the subsets of all processes."""
        values = self._distances.reduced()
        return {name: float(values.mean()), f"{name}_std": float(values.std())}


def warn_of_few(count, network, reference):
    """Tells how biased the Fréchet distance is where there are fewer samples than features; told, not an error."""
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
