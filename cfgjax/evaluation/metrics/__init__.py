"""The metrics: Fréchet and kernel distances, Inception Score, precision and recall, of features or logits."""

from cfgjax.evaluation.metrics.manifold import knn_entropy, neighbour_radii, precision_recall
from cfgjax.evaluation.metrics.scores import frechet_distance, inception_score, kernel_distance

__all__ = [
    "frechet_distance",
    "inception_score",
    "kernel_distance",
    "knn_entropy",
    "neighbour_radii",
    "precision_recall",
]
