"""The metrics of a classifier on held-out examples while training."""

import dataclasses

import numpy as np
from jax.sharding import Mesh

from cfgjax.base.errors import UsageError
from cfgjax.base.storage import Place
from cfgjax.data.batches import quantised
from cfgjax.data.sources.registry import open_source
from cfgjax.distributed.sharding import whole
from cfgjax.evaluation.features.networks import FeatureNetwork, classifier_features
from cfgjax.evaluation.metrics.sums import Verdict, feature_blocks
from cfgjax.runs.settings import Settings
from cfgjax.training.log import RunLog
from cfgjax.training.state import TrainState, averaged_params


class HeldOut:
    """Writes a classifier's accuracy and cross-entropy on the held-out examples into the metrics."""

    section = "evaluate"

    def __init__(self, settings: Settings, mesh: Mesh) -> None:
        self.every_steps, self._settings, self._mesh = held_out_steps(settings), settings, mesh
        self._data = open_source(dataclasses.replace(settings.data, split="holdout"))
        self._network: FeatureNetwork | None = None

    def __call__(self, state: TrainState, step: int, workdir: Place, runlog: RunLog) -> None:
        if runlog.has(step, "holdout_accuracy"):
            return
        params = whole(self._mesh, averaged_params(state, self._settings.ema.default_name))
        self._network = self._network.replace(params) if self._network else classifier_features(self._settings, params)
        data, verdict = self._data, Verdict(self._settings.data.num_classes)
        read = lambda start, stop: (quantised(data.images(np.arange(start, stop))), data.label[start:stop])
        for _, labels, _, out in feature_blocks(read, len(data), self._network):
            verdict.update(labels, out["logits"])
        found = verdict.metrics()
        runlog.record(step, {"holdout_accuracy": found["accuracy"], "holdout_loss": -found["log_posterior"]})


def held_out_steps(settings: Settings) -> int:
    """Returns the interval at which a classifier is evaluated. Raises UsageError unless its data leave out examples."""
    if settings.data.split != "train":
        raise UsageError(
            f"data.split is {settings.data.split}; a classifier is tested on held-out examples: need 'train'"
        )
    if settings.evaluate.every_steps is None:
        raise UsageError("evaluate.every_steps is None; a classifier needs an integer of at least 1")
    return settings.evaluate.every_steps
