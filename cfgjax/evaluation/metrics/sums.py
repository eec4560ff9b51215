"""Passes over images in blocks, which the processes share, and the float64 sums that they add up."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy.typing import DTypeLike

from cfgjax.distributed import collectives
from cfgjax.evaluation.metrics.scores import Moments, SplitScores, split_bounds

Indices = Int[np.ndarray, " b"]
Labels = Int[np.ndarray, " b"]
Outputs = dict[str, Float[np.ndarray, "b _size"]]
FeatureFunction = Callable[[np.ndarray], Outputs]
ReadImages = Callable[[int, int], tuple[np.ndarray, np.ndarray]]  # (start, stop) → (images, labels)
Advance = Callable[[int], object]  # called with a number of images

BLOCK = 1000  # images
IS_SPLIT_SIZE, IS_SPLITS = 5000, 10  # those of OpenAI's evaluator and of the original paper


def feature_blocks(
    read: ReadImages,
    count: int,
    network: FeatureFunction,
    block_size: int = BLOCK,
    advance: Advance = lambda images: None,
) -> Iterator[tuple[Indices, Labels, np.ndarray, Outputs]]:
    """Yields (index, labels, images, outputs) of this process's share of the blocks of `count` images.

    read: (start, stop) → (images, labels). advance: called with the number of images that all processes went through.
    """
    stride = jax.process_count() * block_size
    for start in range(0, count, stride):
        index = np.arange(start, min(start + stride, count))
        mine = index[jax.process_index() * block_size :][:block_size]
        if len(mine):
            images, labels = read(int(mine[0]), int(mine[-1]) + 1)
            yield mine, labels, images, network(images)
        advance(len(index))


class FeatureMoments:
    """Moments of the features and, if the network has them, of the spatial features."""

    def __init__(self, sizes: Mapping[str, int]) -> None:
        self.of = {name: Moments.zeros(sizes[name]) for name in ("features", "spatial") if name in sizes}

    def update(self, out: Outputs) -> None:
        """Adds the outputs of a block."""
        for name, moments in self.of.items():
            moments.update(out[name])

    def reduced(self) -> dict[str, Moments]:
        """Returns {name: Moments} over all processes."""
        return {
            name: functools.reduce(Moments.merge, (Moments(**part) for part in collectives.allgather(vars(moments))))
            for name, moments in self.of.items()
        }


class Scores:
    """Inception scores with splits of 5,000 samples (OpenAI's evaluator), and with ten splits."""

    def __init__(self, num_classes: int, count: int) -> None:
        bounds = {"IS": split_bounds(count, split_size=IS_SPLIT_SIZE)}
        if count >= IS_SPLITS:
            bounds["IS_10"] = split_bounds(count, splits=IS_SPLITS)
        self.of = {name: SplitScores(num_classes, b) for name, b in bounds.items()}

    def update(self, index: Indices, logits: Float[np.ndarray, "b k"]) -> None:
        """Adds a block's logits."""
        for scores in self.of.values():
            scores.update(index, logits)

    def metrics(self, name: str) -> dict[str, float]:
        """Returns {name, name_10, name_10_std: float} over all processes."""
        for scores in self.of.values():
            vars(scores).update(collectives.summed({k: v for k, v in vars(scores).items() if k != "bounds"}))
        values = {"": self.of["IS"].score()[0]}
        if "IS_10" in self.of:
            values["_10"], values["_10_std"] = self.of["IS_10"].score()
        return {f"{name}{ending}": value for ending, value in values.items()}


class Verdict:
    """A classifier's accuracy on samples of requested classes, and its mean log p(c|x)."""

    def __init__(self, num_classes: int) -> None:
        self.sums = {name: np.zeros(num_classes) for name in ("requested", "correct", "log_prob")}

    def update(self, labels: Labels, logits: Float[np.ndarray, "b k"]) -> None:
        """Adds the logits of a block of samples of the requested labels."""
        log_p = jax.nn.log_softmax(np.asarray(logits, np.float32))
        own = np.take_along_axis(np.asarray(log_p, np.float64), labels[:, None], axis=1)[:, 0]
        np.add.at(self.sums["requested"], labels, 1)
        np.add.at(self.sums["correct"], labels, logits.argmax(axis=1) == labels)
        np.add.at(self.sums["log_prob"], labels, own)

    def metrics(self) -> dict[str, Any]:
        """Returns the metrics over all processes. accuracy_per_class has None for classes that were not requested."""
        sums = collectives.summed(self.sums)
        requested, correct = sums["requested"], sums["correct"]
        return {
            "accuracy": correct.sum() / requested.sum(),
            "log_posterior": sums["log_prob"].sum() / requested.sum(),
            "accuracy_per_class": [float(c / n) if n else None for c, n in zip(correct, requested, strict=True)],
        }


class IndexedRows:
    """Rows of an array, added in any order with their indices."""

    def __init__(self, shape: tuple[int, ...] = (), dtype: DTypeLike = np.float32) -> None:
        self._index, self._values = [np.empty(0, int)], [np.empty((0, *shape), dtype)]

    def add(self, index: Indices, values: Shaped[np.ndarray, "b ..."]) -> None:
        """Adds the rows of these indices."""
        self._index.append(index)
        self._values.append(values)

    def reduced(self) -> np.ndarray:
        """Returns the rows of all processes in the order of their index."""
        rows = {"index": np.concatenate(self._index), "values": np.concatenate(self._values)}
        rows = collectives.concatenated(rows)
        return rows["values"][np.argsort(rows["index"])]
