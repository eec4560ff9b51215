"""A training run, built from its config and checked before any long work."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from cfgjax.base.errors import UsageError
from cfgjax.data.pipeline import Batches
from cfgjax.data.sources.registry import open_source
from cfgjax.distributed.sharding import (
    batch_sharding,
    check_batch_size,
    make_mesh,
    own_rows,
    place_batch,
    place_parameters,
    replicated,
)
from cfgjax.models.conditions import check_own_inputs, own_inputs
from cfgjax.models.diffusion_config import CONTINUOUS, DISCRETE, diffusion_of
from cfgjax.models.network import check_network, condition, has_null_label, init_params, make_network
from cfgjax.runs.checkpoint import Cadence, load_params
from cfgjax.runs.config import call, check_sections
from cfgjax.runs.kinds import is_classifier, is_image, is_noisy_classifier, sections
from cfgjax.runs.settings import check_settings
from cfgjax.runs.workdir import check_complete, read_config
from cfgjax.training.extensions import check_hooks, check_writers, name_of
from cfgjax.training.interrupt import wish_number
from cfgjax.training.objective import classification, denoising, noisy_classification
from cfgjax.training.optim import make_optimizer
from cfgjax.training.state import abstract_state, create_state, make_state
from cfgjax.training.step import make_dispatch, make_train_step
from cfgjax.training.watch import make_watchers


@dataclasses.dataclass(frozen=True)
class Pace:
    """config.train: number of steps, batch size, logging interval.

    batch_size: examples per optimizer step, over all devices. num_steps: optimizer steps. steps_per_dispatch: steps
    per call of the compiled program. accumulate_steps: parts in which a step's gradient is computed.
    max_skipped_in_row: non-finite steps in a row after which the run stops. init_from: workdir of a run whose averaged
    parameters this one starts from.
    """

    batch_size: int
    num_steps: int
    log_every_steps: int
    steps_per_dispatch: int = 1
    accumulate_steps: int = 1
    max_skipped_in_row: int = 10
    init_from: str | None = None


@dataclasses.dataclass(frozen=True)
class Averages:
    """config.ema: rates of the averages of the parameters; warmup lowers them in the first steps."""

    rates: tuple
    warmup: bool = False


FREE = {
    "dropout",
    "dtype",
    "fused_attention",
    "remat",
    "null_label",
}  # keys of config.model in which a run may differ from its init_from


def make_objective(config, net):
    """What the network of a config is trained for."""
    if is_noisy_classifier(config):
        if unused := set(config.diffusion) - {*CONTINUOUS, *DISCRETE}:
            raise UsageError(f"config.diffusion has {', '.join(sorted(unused))}, without meaning for a classifier")
        return noisy_classification(net, diffusion_of(config))
    if is_classifier(config):
        return classification(net)
    diffusion, image_shape = diffusion_of(config), config.data.image_shape
    if diffusion.learned_variance and not is_image(config.data):
        raise UsageError(f"diffusion.learned_variance is for images; data.image_shape is {tuple(image_shape)}")
    upsampler = "low_res" in condition(net, 1, image_shape)
    if upsampler != (config.data.get("low_res_size") is not None):
        low_res = f"model.low_res is {upsampler}, data.low_res_size {config.data.get('low_res_size')}"
        raise UsageError(f"{low_res}: an upsampler needs both")
    if has_null_label(net) and "p_uncond" not in config.diffusion:
        raise UsageError("config.diffusion lacks p_uncond, with which labels are dropped")
    return denoising(net, config.data.num_classes, diffusion)


def check_init_from(workdir, ours, theirs):
    """Raises UsageError unless the parameters of a run with the config theirs mean the same under the config ours."""
    keys = sorted((set(ours.model) & set(theirs.model)) - FREE)
    pairs = {f"model.{key}": (theirs.model[key], ours.model[key]) for key in keys}
    predicted = [config.get("diffusion", {}).get("parametrisation", "eps") for config in (theirs, ours)]
    pairs["diffusion.parametrisation"] = tuple(predicted)
    differing = [f"{key} is {there} there, {here} here" for key, (there, here) in pairs.items() if there != here]
    if differing:
        raise UsageError(f"train.init_from {workdir} has another network: {'; '.join(differing)}")


def check_shapes(workdir, theirs, ours):
    """Raises UsageError unless the parameters of a run, theirs, have the shapes of ours."""
    theirs, ours = ({path: leaf.shape for path, leaf in flat(tree)} for tree in (theirs, ours))
    differing = [path for path in sorted(ours.keys() | theirs.keys()) if ours.get(path) != theirs.get(path)]
    if differing:
        path = differing[0]
        raise UsageError(
            f"train.init_from {workdir} has another network: {path} is {theirs.get(path, 'absent')} there, "
            f"{ours.get(path, 'absent')} here ({len(differing)} differ in all)"
        )


def flat(tree):
    """[("a/b", leaf)] of a tree of dicts."""
    return [("/".join(key.key for key in path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def with_conditions(dataset, taken):
    """The data set with only the conditions that the network takes, checked. taken: see `own_inputs`."""
    given = {name: array for name, array in dataset.conditions.items() if name in taken}
    return dataclasses.replace(dataset, conditions=check_own_inputs(given, taken, len(dataset)))


class Program:
    """The training step that a config describes, built and checked before any long work; data and pictures apart.

    devices: for the mesh; by default all. like: the state's shapes, dtypes and shardings. dispatch: the jitted steps.
    """

    def __init__(self, config, devices=None):
        check_sections(config, sections(config))
        check_settings(config)
        self.config = config
        self.pace = call(Pace, "train", config.train)
        self.averages = call(Averages, "ema", config.ema)
        self.cadence = call(Cadence, "checkpoint", config.checkpoint)
        self.mesh = call(make_mesh, "mesh", config.mesh, devices=devices)
        check_batch_size(self.pace.batch_size, self.mesh, self.pace.accumulate_steps)
        self.net = make_network(config)
        image_shape = tuple(config.data.image_shape)
        check_network(self.net, image_shape)
        objective = self.objective = make_objective(config, self.net)
        self.optimizer = call(make_optimizer, "optimizer", config.optimizer)

        init_key, self.step_key = jax.random.split(jax.random.key(config.seed))
        parts = self.optimizer, self.averages.rates, objective.init
        self.build_state = make_state(lambda: init_params(self.net, init_key, image_shape), *parts)
        self._build_from = lambda params: make_state(lambda: params, *parts)()
        self.like = abstract_state(self.build_state, self.mesh)
        train_step = make_train_step(
            objective,
            self.optimizer,
            ema_warmup=self.averages.warmup,
            accumulate_steps=self.pace.accumulate_steps,
        )
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.like), replicated(self.mesh)
        self.dispatch = make_dispatch(train_step, shardings)

    def abstract_batches(self, num_steps):
        """The shapes, dtypes and shardings of batches [num_steps, B, …], as `Run.batches` has them."""
        data, sharding = self.config.data, batch_sharding(self.mesh, leading=1)
        shapes = {"image": (tuple(data.image_shape), jnp.float32), "label": ((), jnp.int32)}
        if (low := data.get("low_res_size")) is not None:
            height, width, channels = data.image_shape
            shapes["low_res"] = (low, width * low // height, channels), jnp.float32
        shapes |= {name: (like.shape[1:], like.dtype) for name, like in own_inputs(self.net).items()}
        leading = num_steps, self.pace.batch_size
        like = lambda shape, dtype: jax.ShapeDtypeStruct((*leading, *shape), dtype, sharding=sharding)
        return {name: like(*of) for name, of in shapes.items()}


class Run(Program):
    """Everything a config describes, its data and watchers too, checked against each other before any long work.

    hooks, writers: of the caller, see `loop.train`.
    """

    def __init__(self, config, devices=None, *, hooks=(), writers=()):
        self.hooks, self.writers = check_hooks(hooks), check_writers(writers)
        super().__init__(config, devices)
        check_complete(config, ("data",), "the config")
        self.dataset = with_conditions(open_source(**config.data), own_inputs(self.net))
        self.watchers = make_watchers(config, self.mesh, self.dataset)
        self._check_cadence()
        self._rows, self._own_devices = (own_rows(self.mesh, n) for n in (self.pace.batch_size, self.mesh.size))
        self._batches = Batches(
            self.dataset, config.seed, self.pace.batch_size, self._rows, self.pace.steps_per_dispatch
        )
        self._ahead: tuple = None, None  # a step, and the batches from there on

    def new_state(self):
        """The state at step 0, with fresh parameters or those of train.init_from."""
        if self.pace.init_from is None:
            return create_state(self.build_state, self.mesh)
        theirs = read_config(self.pace.init_from)
        check_init_from(self.pace.init_from, self.config, theirs)
        params, _ = load_params(self.pace.init_from, theirs)
        check_shapes(self.pace.init_from, params, self.like.params)
        return create_state(self._build_from, self.mesh, place_parameters(self.mesh, params))

    def _check_cadence(self):
        """Every cadence is a whole number of dispatches."""
        k = self.pace.steps_per_dispatch
        cadences = {
            "train.num_steps": self.pace.num_steps,
            "train.log_every_steps": self.pace.log_every_steps,
            "checkpoint.every_steps": self.cadence.every_steps,
        } | {f"{watcher.section}.every_steps": watcher.every_steps for watcher in self.watchers}
        cadences |= {f"every_steps of hook {name_of(hook)}": hook.every_steps for hook in self.hooks}
        for name, value in cadences.items():
            if value % k:
                use = f"{value // k * k} or {value // k * k + k}" if value > k else f"{k}"
                raise UsageError(f"{name} {value} is not a multiple of train.steps_per_dispatch {k}; use {use}")

    def batches(self, step):
        """The batches of one dispatch from `step` on, [k, B, …] over the mesh."""
        ahead, batches = self._ahead
        self._ahead = None, None
        return batches if ahead == step else self._placed(step)

    def look_ahead(self, step):
        """Makes and places the batches from `step` on now, while the devices are at work, for `batches` to return."""
        self._ahead = step, self._placed(step)

    def _placed(self, step):
        made = self._batches.at(step)
        return place_batch(self.mesh, made, self._rows, self.pace.batch_size, leading=1)

    def close(self):
        """Ends the processes that make batches."""
        self._batches.close()

    def wishes(self, stop):
        """The signal of a `StopRequest` as the dispatch takes it; None where there is no other process to tell."""
        if jax.process_count() == 1:
            return None
        wishes = np.repeat(wish_number(stop.signal), len(self._own_devices))
        return place_batch(self.mesh, wishes, self._own_devices, self.mesh.size)
