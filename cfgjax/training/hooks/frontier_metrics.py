"""Metrics of samples at a few guidance weights while training."""

import dataclasses

import jax
import numpy as np
from jax.sharding import Mesh

from cfgjax.base.errors import UsageError
from cfgjax.base.storage import Place
from cfgjax.data.dataset import Dataset
from cfgjax.distributed import collectives
from cfgjax.evaluation.features.networks import load_networks
from cfgjax.evaluation.features.reference import load_reference
from cfgjax.evaluation.frontier.frontier import find_reference
from cfgjax.evaluation.frontier.frontier_settings import make_settings
from cfgjax.evaluation.frontier.generate import draw_samples
from cfgjax.evaluation.frontier.measure import measure
from cfgjax.models.groups import check_divisible, rule_at_zero
from cfgjax.models.model import Model
from cfgjax.models.sample_figures import column_names
from cfgjax.runs.sample_options import axes
from cfgjax.runs.settings import Settings
from cfgjax.training.log import RunLog
from cfgjax.training.state import TrainState, averaged_params


class FrontierMetrics:
    """Writes metrics of samples at a few weights into the metrics, as `cfgjax evaluate` finds them."""

    section = "evaluate"

    def __init__(self, settings: Settings, mesh: Mesh, dataset: Dataset) -> None:
        self._plan, self._model = settings.evaluate, Model(settings, None, mesh=mesh)
        self.every_steps, weights = self._plan.every_steps, {"guidance": self._plan.every_guidance}
        options = axes(self._model.defaults.options, self._plan.options, weights)
        every = make_settings(options, self._model)
        self._columns = [setting.options for setting in every if setting.scores == "learned"]
        averages = self._model.settings.ema
        for ema in {float(options.ema or 0) for options in self._columns}:
            if averages.name(ema) not in (None, *averages.names):
                what = f"evaluate.ema is {ema:g}, a width that is synthesised after training"
                raise UsageError(f"{what}; evaluate.every_steps needs one that is tracked: {', '.join(averages.names)}")
        for column in self._columns:
            count = self._plan.every_num_samples
            check_divisible(f"evaluate.every_num_samples {count} is", count, column.sampler)
        self._names = column_names(self._columns, lambda w: f"w={w:g}", ",")
        self._network, self._judge = load_networks(self._plan, settings.data)
        self._dataset, self._reference = dataset, None
        if self._plan.reference is not None:
            self._reference = load_reference(self._plan.reference, self._network, self._model.image_shape)

    def __call__(self, state: TrainState, step: int, workdir: Place, runlog: RunLog) -> None:
        if self._reference is None:
            folder = workdir / "evaluation"
            folder.mkdir(exist_ok=True)
            shape, silent = self._model.image_shape, lambda images: None
            self._reference = find_reference(None, lambda: self._dataset, self._network, shape, folder, silent)
        for options, ending in zip(self._columns, self._names, strict=True):
            if runlog.has(step, f"{self._network.metric('FD')}/{ending}"):
                continue
            index = np.arange(self._plan.every_num_samples)
            guided = any(self._plan.every_guidance)
            rule = options.rule if guided else rule_at_zero(options.rule, options.sampler)
            self._model.params = averaged_params(state, self._model.settings.ema.name(float(options.ema or 0)))
            drawing = dataclasses.replace(options, rule=rule)
            parts = []
            for part in draw_samples(self._model, drawing, index, self._plan.batch_size):
                parts.append(part)
                runlog.check_stop()
            index, labels, samples = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
            found = collectives.concatenated({"index": index, "labels": labels, "samples": samples})
            order = np.argsort(found["index"])
            labels, samples = found["labels"][order], found["samples"][order]
            read = lambda start, stop, samples=samples, labels=labels: (samples[start:stop], labels[start:stop])
            alone = jax.process_count() == 1  # several processes differ in their number of blocks
            advance = lambda images, alone=alone: runlog.check_stop() if alone else None
            metrics = measure(read, len(samples), self._network, self._reference, judge=self._judge, advance=advance)
            scalars = {name: value for name, value in metrics.items() if not isinstance(value, list)}
            runlog.record(step, {f"{name}/{ending}": value for name, value in scalars.items()})
