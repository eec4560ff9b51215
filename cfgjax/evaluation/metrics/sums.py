"""Passes over images in blocks, and what is summed up on the way: float64, shared and added up over the processes."""

import functools

import jax
import numpy as np

from cfgjax.distributed import collectives as processes
from cfgjax.evaluation.metrics.scores import Moments, SplitScores, split_bounds

BLOCK = 1000  # images
IS_SPLIT_SIZE, IS_SPLITS = 5000, 10  # of OpenAI's evaluator, and of the original paper


def feature_blocks(read, count, network, block_size=BLOCK, advance=lambda images: None):
    """Yields (index [b], labels [b], images, outputs) for this process's share of the blocks of `count` images.

    read: (start, stop) → (images, labels). advance: told of the images seen by all processes.
    """
    stride = jax.process_count() * block_size
    for start in range(0, count, stride):
        index = np.arange(start, min(start + stride, count))
        mine = index[jax.process_index() * block_size :][:block_size]
        if len(mine):
            images, labels = read(mine[0], mine[-1] + 1)
            yield mine, labels, images, network(images)
        advance(len(index))


class FeatureMoments:
    """Moments of the features and, where the network has them, of the spatial features."""

    def __init__(self, sizes):
        self.of = {name: Moments.zeros(sizes[name]) for name in ("features", "spatial") if name in sizes}

    def update(self, out):
        """Adds a block's outputs."""
        for name, moments in self.of.items():
            moments.update(out[name])

    def reduced(self):
        """{name: Moments} over all processes."""
        return {
            name: functools.reduce(Moments.merge, (Moments(**part) for part in processes.allgather(vars(moments))))
            for name, moments in self.of.items()
        }


class Scores:
    """Inception scores: one for every 5,000 samples (OpenAI's evaluator), and of ten splits."""

    def __init__(self, num_classes, count):
        bounds = {"IS": split_bounds(count, split_size=IS_SPLIT_SIZE)}
        if count >= IS_SPLITS:
            bounds["IS_10"] = split_bounds(count, splits=IS_SPLITS)
        self.of = {name: SplitScores(num_classes, b) for name, b in bounds.items()}

    def update(self, index, logits):
        """Adds a block's logits."""
        for scores in self.of.values():
            scores.update(index, logits)

    def metrics(self, name):
        """{name, name_10, name_10_std: float} over all processes."""
        for scores in self.of.values():
            vars(scores).update(processes.summed({k: v for k, v in vars(scores).items() if k != "bounds"}))
        found = {"": self.of["IS"].score()[0]}
        if "IS_10" in self.of:
            found["_10"], found["_10_std"] = self.of["IS_10"].score()
        return {f"{name}{ending}": value for ending, value in found.items()}


class Verdict:
    """What a classifier makes of the samples: the share read as the class asked for, and mean log p(c|x)."""

    def __init__(self, num_classes):
        self.sums = {name: np.zeros(num_classes) for name in ("asked", "correct", "log_prob")}

    def update(self, labels, logits):
        """Adds a block's logits [b, K] for the labels [b] asked for."""
        log_p = jax.nn.log_softmax(np.asarray(logits, np.float32))
        own = np.take_along_axis(np.asarray(log_p, np.float64), labels[:, None], axis=1)[:, 0]
        for name, values in {"asked": 1, "correct": logits.argmax(axis=1) == labels, "log_prob": own}.items():
            np.add.at(self.sums[name], labels, values)

    def metrics(self):
        """Over all processes; classes that were not asked for are None in the list per class."""
        sums = processes.summed(self.sums)
        asked, correct = sums["asked"], sums["correct"]
        return {
            "accuracy": correct.sum() / asked.sum(),
            "log_posterior": sums["log_prob"].sum() / asked.sum(),
            "accuracy_per_class": [float(c / n) if n else None for c, n in zip(correct, asked, strict=True)],
        }


class Rows:
    """Arrays [b, …] of some indices, put in order at the end."""

    def __init__(self, shape=(), dtype=np.float32):
        self._index, self._values = [np.empty(0, int)], [np.empty((0, *shape), dtype)]

    def add(self, index, values):
        """Keeps the values [b, …] of index [b]."""
        self._index.append(index)
        self._values.append(values)

    def reduced(self):
        """The values of all processes, in the order of their index."""
        rows = {"index": np.concatenate(self._index), "values": np.concatenate(self._values)}
        rows = processes.concatenated(rows)
        return rows["values"][np.argsort(rows["index"])]
