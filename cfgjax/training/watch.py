"""What is drawn and measured while training, from the averaged parameters, at steps that are multiples of a cadence.

A watcher does its part once per step, also where a run is resumed at that step.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from cfgjax.base.errors import UsageError, choose
from cfgjax.base.files import writing
from cfgjax.data.batches import quantised, squares_averaged, to_float
from cfgjax.data.sources.registry import check_labels, open_source
from cfgjax.diffusion.guidance import conditional
from cfgjax.diffusion.process import diffuse
from cfgjax.diffusion.samplers import SAMPLERS
from cfgjax.distributed import collectives as processes
from cfgjax.distributed.collectives import gather_rows
from cfgjax.distributed.sharding import place_global, whole
from cfgjax.evaluation.features.networks import classifier, load_networks
from cfgjax.evaluation.features.reference import load_reference
from cfgjax.evaluation.frontier.frontier import Grid, find_reference, make_settings
from cfgjax.evaluation.frontier.generate import draw_samples
from cfgjax.evaluation.frontier.measure import measure
from cfgjax.evaluation.frontier.plan import Plan
from cfgjax.evaluation.metrics.sums import Verdict, feature_blocks
from cfgjax.evaluation.report.figures import sample_figure
from cfgjax.evaluation.report.plots_extra import require_matplotlib
from cfgjax.models.arguments import guidance_weights
from cfgjax.models.diffusion_config import diffusion_of
from cfgjax.models.guide import Guide
from cfgjax.models.model import Model
from cfgjax.models.options import guided_rule
from cfgjax.runs.config import call
from cfgjax.runs.kinds import is_classifier, is_image, is_noisy_classifier
from cfgjax.training.objective import LEVEL_BINS

EXAMPLES_AT_ONCE = 256  # of the held-out ones, on each device


def make_watchers(config, mesh, dataset):
    """The watchers of a run, checked against its config."""
    if is_classifier(config):
        kind = NoisyHeldOut if is_noisy_classifier(config) else HeldOut
        return [call(kind, "evaluate", config.evaluate, config=config, mesh=mesh)]
    grids = SampleGrids(config, mesh, dataset)
    drawable = is_image(config.data) or len(config.data.image_shape) != 3
    watchers: list = [grids] if drawable else []
    if call(Plan, "evaluate", config.evaluate).every_steps:
        if config.data.get("low_res_size") is not None:
            raise UsageError("evaluate.every_steps is set; an upsampler alone draws nothing to be measured: need None")
        if dataset.conditions:
            what = f"samples need conditions besides the label ({', '.join(dataset.conditions)})"
            raise UsageError(f"evaluate.every_steps is set; {what}, which evaluations do not have: need None")
        watchers.append(Frontier(config, mesh, dataset))
    return watchers


def averaged(state):
    """The parameters of the first EMA, or those themselves where there is none."""
    return state.ema[next(iter(state.ema))] if state.ema else state.params


@dataclasses.dataclass(frozen=True)
class Pictures:
    """config.sample: the sample grids drawn while training, and the defaults of `Model.sample`."""

    every_steps: int
    labels: tuple
    guidance: tuple
    per_cell: int
    num_steps: int
    sampler: str
    v: float | None
    eta: float

    def __post_init__(self):
        choose("sampler", self.sampler, SAMPLERS)


class SampleGrids:
    """Draws samples/step_*.png, whole or not at all."""

    section = "sample"

    def __init__(self, config, mesh, dataset):
        self.pictures = call(Pictures, "sample", config.sample)
        self.every_steps = self.pictures.every_steps
        check_labels(np.asarray(self.pictures.labels), config.data.num_classes, "sample.labels entry")
        guidance_weights(self.pictures.guidance, None, len(self.pictures.guidance))
        if len(config.data.image_shape) != 3:
            require_matplotlib()
        self._seed, self._model = config.seed, Model(config, None, mesh=mesh)
        self._model.grid(self.pictures.num_steps)
        self._model.check_guidance(self.pictures.guidance)
        self._model.sampler(rule=conditional())
        self._options: dict = {}
        if self._model.low_res_shape is not None:
            images, factor = dataset.images(self._examples(dataset)), dataset.image.shape[1] // dataset.low_res_size
            self._options["low_res"] = squares_averaged(to_float(images), factor)
        if dataset.conditions:
            index = self._examples(dataset)
            self._options["conditions"] = {name: array[index] for name, array in dataset.conditions.items()}

    def _examples(self, dataset):
        """Indices of examples whose conditions the grids have, as many of each label as a cell has."""
        found = []
        for label in self.pictures.labels:
            index = np.flatnonzero(dataset.label == label)
            found.append(np.resize(index if len(index) else np.arange(len(dataset)), self.pictures.per_cell))
        return np.concatenate(found)

    def __call__(self, state, step, workdir, runlog):
        path, pictures = workdir / "samples" / f"step_{step:08}.png", self.pictures
        if processes.decided(path.exists, f"whether {path.name} is there"):
            return
        self._model.params = averaged(state)
        picture = sample_figure(
            self._model,
            labels=pictures.labels,
            guidance=pictures.guidance,
            per_cell=pictures.per_cell,
            seed=self._seed,
            **self._options,
        )
        if jax.process_index() == 0:
            path.parent.mkdir(exist_ok=True)
            with writing(path) as new:
                picture.save(new)
        runlog.image(step, "samples", picture)
        runlog.say(f"wrote {path}")


class HeldOut:
    """Writes a classifier's accuracy and cross-entropy on the held-out examples into the metrics."""

    section = "evaluate"

    def __init__(self, config, mesh, *, every_steps):
        check_held_out(config, every_steps)
        self.every_steps, self._config, self._mesh = every_steps, config, mesh
        self._data = open_source(**{**config.data, "split": "holdout"})
        self._network = None

    def __call__(self, state, step, workdir, runlog):
        if runlog.has(step, "holdout_accuracy"):
            return
        params = whole(self._mesh, averaged(state))
        self._network = self._network.replace(params) if self._network else classifier(self._config, params)
        data, verdict = self._data, Verdict(self._config.data.num_classes)
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

    def __init__(self, config, mesh, *, every_steps):
        check_held_out(config, every_steps)
        self.every_steps, self._mesh = every_steps, mesh
        self._data = open_source(**{**config.data, "split": "holdout"})
        guide = Guide(config, None)
        levels = diffusion_of(config).levels

        def correct(params, key, x, label, u):
            logsnr = jnp.full(len(x), levels.logsnr(u))
            logits = guide.bind(params)(diffuse(x, jax.random.normal(key, x.shape), logsnr), logsnr)
            return logits.argmax(axis=-1) == label

        self._correct = jax.jit(correct)

    def __call__(self, state, step, workdir, runlog):
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


def check_held_out(config, every_steps):
    """Raises UsageError unless a classifier's config leaves out examples, to be looked at every so many steps."""
    if config.data.get("split") != "train":
        raise UsageError(f"data.split is {config.data.get('split')}; a classifier leaves out some: need 'train'")
    if every_steps is None:
        raise UsageError("evaluate.every_steps is None; a classifier needs an integer of at least 1")


class Frontier:
    """Writes metrics of samples at a few weights into the metrics, as `cfgjax evaluate` finds them."""

    section = "evaluate"

    def __init__(self, config, mesh, dataset):
        plan = call(Plan, "evaluate", config.evaluate)
        self.every_steps, self._plan = plan.every_steps, plan
        self._model = Model(config, None, mesh=mesh)
        grid = Grid(plan.every_guidance, (plan.num_steps,), seeds=(config.seed,))
        self._settings = [s for s in make_settings(grid, self._model, plan.label_policy) if s.scores == "learned"]
        self._network, self._judge = load_networks(plan, config.data)
        self._dataset, self._reference = dataset, None
        if plan.reference is not None:
            self._reference = load_reference(plan.reference, self._network, self._model.image_shape)

    def __call__(self, state, step, workdir, runlog):
        if self._reference is None:
            folder = workdir / "evaluation"
            folder.mkdir(exist_ok=True)
            shape, silent = self._model.image_shape, lambda images: None
            self._reference = find_reference(None, lambda: self._dataset, self._network, shape, folder, silent)
        rule = guided_rule(any(self._plan.every_guidance))
        self._model.params = averaged(state)
        for setting in self._settings:
            ending = f"w={setting.guidance_weight:g}"
            if runlog.has(step, f"{self._network.metric('FD')}/{ending}"):
                continue
            index = np.arange(self._plan.every_num_samples)
            parts = draw_samples(self._model, setting, index, self._plan.batch_size, rule=rule)
            drawn = zip(*parts, strict=True)
            index, labels, samples = (np.concatenate(arrays) for arrays in drawn)
            found = processes.concatenated({"index": index, "labels": labels, "samples": samples})
            order = np.argsort(found["index"])
            labels, samples = found["labels"][order], found["samples"][order]
            read = lambda start, stop, samples=samples, labels=labels: (samples[start:stop], labels[start:stop])
            metrics = measure(read, len(samples), self._network, self._reference, judge=self._judge)
            scalars = {name: value for name, value in metrics.items() if not isinstance(value, list)}
            runlog.record(step, {f"{name}/{ending}": value for name, value in scalars.items()})
