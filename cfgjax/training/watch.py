"""What is drawn and measured while training, from the averaged parameters, at steps that are multiples of a cadence.

A watcher does its part once per step, also where a run is resumed at that step.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from cfgjax.base.errors import UsageError
from cfgjax.base.files import writing
from cfgjax.data.batches import quantised, squares_averaged, to_float
from cfgjax.data.dataset import Dataset
from cfgjax.data.sources.registry import check_labels, open_source
from cfgjax.diffusion.guidance import at_zero
from cfgjax.diffusion.process import diffuse
from cfgjax.distributed import collectives
from cfgjax.distributed.collectives import gather_rows
from cfgjax.distributed.sharding import place_global, whole
from cfgjax.evaluation.features.networks import FeatureNetwork, classifier, load_networks
from cfgjax.evaluation.features.reference import load_reference
from cfgjax.evaluation.frontier.frontier import find_reference
from cfgjax.evaluation.frontier.generate import draw_samples
from cfgjax.evaluation.frontier.measure import measure
from cfgjax.evaluation.frontier.settings import make_settings, resolved
from cfgjax.evaluation.metrics.sums import Verdict, feature_blocks
from cfgjax.evaluation.report.figures import column_names, sample_figure
from cfgjax.evaluation.report.plots_extra import require_matplotlib
from cfgjax.models.guide import Guide
from cfgjax.models.model import Model
from cfgjax.runs.options import axes, combinations
from cfgjax.runs.settings import Settings
from cfgjax.training.log import RunLog
from cfgjax.training.objective import LEVEL_BINS
from cfgjax.training.state import TrainState

EXAMPLES_AT_ONCE = 256  # of the held-out ones, on each device


def make_watchers(settings: Settings, mesh: Mesh, dataset: Dataset) -> list:
    """Returns the watchers of a run, checked against its settings."""
    if settings.is_noisy_classifier:
        return [NoisyHeldOut(settings, mesh)]
    if settings.is_classifier:
        return [HeldOut(settings, mesh)]
    grids = SampleGrids(settings, mesh, dataset)
    latents = settings.data.kind == "latent"  # which cannot be drawn
    watchers: list = [] if latents else [grids]
    if settings.evaluate.every_steps:
        if settings.data.low_res_size is not None:
            raise UsageError("evaluate.every_steps is set; an upsampler alone draws nothing to be measured: need None")
        if dataset.conditions:
            what = f"samples need conditions besides the label ({', '.join(dataset.conditions)})"
            raise UsageError(f"evaluate.every_steps is set; {what}, which evaluations do not have: need None")
        watchers.append(Frontier(settings, mesh, dataset))
    return watchers


def averaged(state: TrainState) -> PyTree:
    """Returns the parameters of the first EMA, or the parameters themselves without averaging."""
    return state.ema[next(iter(state.ema))] if state.ema else state.params


class SampleGrids:
    """Draws samples/step_*.png, each atomically."""

    section = "sample"

    def __init__(self, settings: Settings, mesh: Mesh, dataset: Dataset) -> None:
        self._model = Model(settings, None, mesh=mesh)
        self.pictures = self._model.defaults
        self.every_steps = self.pictures.every_steps
        check_labels(np.asarray(self.pictures.labels), settings.data.num_classes, "sample.labels entry")
        if len(settings.data.image_shape) != 3:
            require_matplotlib()
        self._columns = [resolved(options, self._model) for options in combinations(axes(self.pictures.options))]
        self._options: dict[str, Any] = {}
        if (shape := self._model.low_res_shape) is not None:
            images, factor = dataset.images(self._examples(dataset)), dataset.image.shape[1] // shape[0]
            self._options["low_res"] = squares_averaged(to_float(images), factor)
        if dataset.conditions:
            index = self._examples(dataset)
            self._options["conditions"] = {name: array[index] for name, array in dataset.conditions.items()}

    def _examples(self, dataset: Dataset) -> Int[np.ndarray, " n"]:
        """Returns indices of examples whose conditions the grids have, as many of each label as a cell has."""
        found = []
        for label in self.pictures.labels:
            index = np.flatnonzero(dataset.label == label)
            found.append(np.resize(index if len(index) else np.arange(len(dataset)), self.pictures.per_cell))
        return np.concatenate(found)

    def __call__(self, state: TrainState, step: int, workdir: Path, runlog: RunLog) -> None:
        path, pictures = workdir / "samples" / f"step_{step:08}.png", self.pictures
        if collectives.decided(path.exists, f"whether {path.name} is there"):
            return
        self._model.params = averaged(state)
        shown: dict = dict(labels=pictures.labels, per_cell=pictures.per_cell)
        picture = sample_figure(self._model, self._columns, **shown, **self._options)
        if jax.process_index() == 0:
            path.parent.mkdir(exist_ok=True)
            with writing(path) as new:
                picture.save(new)
        runlog.image(step, "samples", picture)
        runlog.say(f"wrote {path}")


class HeldOut:
    """Writes a classifier's accuracy and cross-entropy on the held-out examples into the metrics."""

    section = "evaluate"

    def __init__(self, settings: Settings, mesh: Mesh) -> None:
        self.every_steps, self._settings, self._mesh = held_out_steps(settings), settings, mesh
        self._data = open_source(dataclasses.replace(settings.data, split="holdout"))
        self._network: FeatureNetwork | None = None

    def __call__(self, state: TrainState, step: int, workdir: Path, runlog: RunLog) -> None:
        if runlog.has(step, "holdout_accuracy"):
            return
        params = whole(self._mesh, averaged(state))
        self._network = self._network.replace(params) if self._network else classifier(self._settings, params)
        data, verdict = self._data, Verdict(self._settings.data.num_classes)
        read = lambda start, stop: (quantised(data.images(np.arange(start, stop))), data.label[start:stop])
        for _, labels, _, out in feature_blocks(read, len(data), self._network):
            verdict.update(labels, out["logits"])
        found = verdict.metrics()
        runlog.record(step, {"holdout_accuracy": found["accuracy"], "holdout_loss": -found["log_posterior"]})


class NoisyHeldOut:
    """Writes a noise-aware classifier's accuracy on the held-out examples, at a few levels, into the metrics.

    holdout_accuracy_i is at the middle of part i of LEVEL_BINS of u, 0 the cleanest; holdout_accuracy is their mean.
    """

    section = "evaluate"

    def __init__(self, settings: Settings, mesh: Mesh) -> None:
        self.every_steps, self._mesh = held_out_steps(settings), mesh
        self._data = open_source(dataclasses.replace(settings.data, split="holdout"))
        guide = Guide(settings, None)
        levels = guide.levels

        def correct(
            params: PyTree,
            key: PRNGKeyArray,
            x: Float[Array, "b ..."],
            label: Int[Array, " b"],
            u: Float[Array, ""] | np.float32,
        ) -> Bool[Array, " b"]:
            logsnr = jnp.full(len(x), levels.logsnr(u))
            logits = guide.bind(params)(diffuse(x, jax.random.normal(key, x.shape), logsnr), logsnr)
            return logits.argmax(axis=-1) == label

        self._correct = jax.jit(correct)

    def __call__(self, state: TrainState, step: int, workdir: Path, runlog: RunLog) -> None:
        if runlog.has(step, "holdout_accuracy"):
            return
        params, data, found = averaged(state), self._data, {}
        size = EXAMPLES_AT_ONCE * self._mesh.size
        for part in range(LEVEL_BINS):
            right = []
            for start in range(0, len(data), size):
                index = np.arange(start, start + size) % len(data)
                key, u = jax.random.fold_in(jax.random.key(part), start), np.float32((part + 0.5) / LEVEL_BINS)
                batch = [place_global(self._mesh, a) for a in (to_float(data.images(index)), data.label[index])]
                right.append(gather_rows(self._correct(params, key, *batch, u))[: len(data) - start])
            found[f"holdout_accuracy_{part}"] = float(np.concatenate(right).mean())
        runlog.record(step, {"holdout_accuracy": float(np.mean(list(found.values()))), **found})


def held_out_steps(settings: Settings) -> int:
    """Returns the interval at which a classifier is evaluated. Raises UsageError unless its data leave out examples."""
    if settings.data.split != "train":
        raise UsageError(f"data.split is {settings.data.split}; a classifier leaves out some: need 'train'")
    if settings.evaluate.every_steps is None:
        raise UsageError("evaluate.every_steps is None; a classifier needs an integer of at least 1")
    return settings.evaluate.every_steps


class Frontier:
    """Writes metrics of samples at a few weights into the metrics, as `cfgjax evaluate` finds them."""

    section = "evaluate"

    def __init__(self, settings: Settings, mesh: Mesh, dataset: Dataset) -> None:
        self._plan, self._model = settings.evaluate, Model(settings, None, mesh=mesh)
        self.every_steps, weights = self._plan.every_steps, {"guidance": self._plan.every_guidance}
        options = axes(self._model.defaults.options, self._plan.options, weights)
        every = make_settings(options, self._model)
        self._columns = [setting.options for setting in every if setting.scores == "learned"]
        self._names = column_names(self._columns, lambda w: f"w={w:g}", ",")
        self._network, self._judge = load_networks(self._plan, settings.data)
        self._dataset, self._reference = dataset, None
        if self._plan.reference is not None:
            self._reference = load_reference(self._plan.reference, self._network, self._model.image_shape)

    def __call__(self, state: TrainState, step: int, workdir: Path, runlog: RunLog) -> None:
        if self._reference is None:
            folder = workdir / "evaluation"
            folder.mkdir(exist_ok=True)
            shape, silent = self._model.image_shape, lambda images: None
            self._reference = find_reference(None, lambda: self._dataset, self._network, shape, folder, silent)
        for options, ending in zip(self._columns, self._names, strict=True):
            if runlog.has(step, f"{self._network.metric('FD')}/{ending}"):
                continue
            index = np.arange(self._plan.every_num_samples)
            rule = options.rule if any(self._plan.every_guidance) else at_zero(options.rule)
            self._model.params = state.ema[str(options.ema)] if options.ema else state.params
            drawing = dataclasses.replace(options, rule=rule)
            parts = draw_samples(self._model, drawing, index, self._plan.batch_size)
            drawn = zip(*parts, strict=True)
            index, labels, samples = (np.concatenate(arrays) for arrays in drawn)
            found = collectives.concatenated({"index": index, "labels": labels, "samples": samples})
            order = np.argsort(found["index"])
            labels, samples = found["labels"][order], found["samples"][order]
            read = lambda start, stop, samples=samples, labels=labels: (samples[start:stop], labels[start:stop])
            metrics = measure(read, len(samples), self._network, self._reference, judge=self._judge)
            scalars = {name: value for name, value in metrics.items() if not isinstance(value, list)}
            runlog.record(step, {f"{name}/{ending}": value for name, value in scalars.items()})
