"""A training run, built from its config and checked before any long work."""

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Int, PyTree
from ml_collections import ConfigDict

from cfgjax.base.errors import UsageError
from cfgjax.base.paths import check_path
from cfgjax.base.storage import Place, place
from cfgjax.data.dataset import Dataset
from cfgjax.data.pipeline import Batches
from cfgjax.data.sources.registry import data_hash, open_source
from cfgjax.distributed import collectives
from cfgjax.distributed.cpu_devices import devices_of_batch
from cfgjax.distributed.sharding import (
    batch_sharding,
    check_batch_size,
    make_mesh,
    own_rows,
    place_batch,
    place_parameters,
    replicated,
)
from cfgjax.models.network import check_network, check_upsampler, has_null_label, init_params, make_network
from cfgjax.models.network_inputs import check_own_inputs, own_inputs
from cfgjax.runs.averages import load_params
from cfgjax.runs.settings import Settings
from cfgjax.runs.training_settings import MeshSettings
from cfgjax.runs.workdir import read_settings
from cfgjax.training.extensions import check_hooks, check_writers, name_of
from cfgjax.training.hooks import make_hooks
from cfgjax.training.interrupt import StopFlag, signal_number
from cfgjax.training.objective import Objective, classification, denoising, noisy_classification
from cfgjax.training.optim import make_optimizer
from cfgjax.training.snapshots import Snapshots
from cfgjax.training.state import TrainState, abstract_state, create_state, make_state
from cfgjax.training.step import make_dispatch, make_train_step
from cfgjax.training.writers import check_named, check_writers_in

# keys of config.model in which a run may differ from its init_from
FREE = {"dropout", "dtype", "fused_attention", "remat", "null_label"}


def make_objective(settings: Settings, net: Any) -> Objective:
    """Returns the training objective. Raises UsageError if the network, the process and the data do not fit."""
    data, diffusion = settings.data, settings.diffusion
    if diffusion is None:
        return classification(net)
    if settings.is_noisy_classifier:
        return noisy_classification(net, diffusion)
    if diffusion.learned_variance and not data.is_image:
        given = f"data.image_shape is {data.image_shape}, data.kind {data.kind!r}"
        raise UsageError(f"diffusion.learned_variance is for images; {given}")
    check_upsampler(net, data)
    if has_null_label(net) and "p_uncond" not in settings.given["diffusion"]:
        raise UsageError("config.diffusion lacks p_uncond, the probability with which labels are dropped")
    return denoising(net, data.num_classes, diffusion)


def check_init_from(workdir: str, ours: Settings, theirs: Settings) -> None:
    """Raises UsageError unless both settings describe the same network. theirs: of the run in workdir."""
    there, here = meaning(theirs), meaning(ours)
    differing = [
        f"{key} is {there[key]} there, {here[key]} here"
        for key in sorted(there.keys() & here.keys())
        if there[key] != here[key]
    ]
    if differing:
        raise UsageError(f"train.init_from {workdir} has another network: {'; '.join(differing)}")


def meaning(settings: Settings) -> dict[str, Any]:
    """Returns {key: value} of the settings that determine the meaning of a network's parameters."""
    options = {"name": settings.model.name, **settings.model.options}
    found = {f"model.{key}": value for key, value in options.items() if key not in FREE}
    predicted = "eps" if settings.diffusion is None else settings.diffusion.predicts
    return found | {"diffusion.parametrisation": predicted}


def check_shapes(workdir: str, theirs: PyTree, ours: PyTree) -> None:
    """Raises UsageError unless parameters have the same names and shapes. theirs: of the run in workdir."""
    there, here = ({path: leaf.shape for path, leaf in flat(tree)} for tree in (theirs, ours))
    differing = [path for path in sorted(here.keys() | there.keys()) if here.get(path) != there.get(path)]
    if differing:
        path = differing[0]
        raise UsageError(
            f"train.init_from {workdir} has another network: {path} is {there.get(path, 'absent')} there, "
            f"{here.get(path, 'absent')} here ({len(differing)} differ in all)"
        )


def flat(tree: PyTree) -> list[tuple[str, Any]]:
    """Returns [("a/b", leaf)] of a tree of dicts."""
    return [("/".join(key.key for key in path), leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


def with_conditions(dataset: Dataset, taken: dict[str, jax.ShapeDtypeStruct]) -> Dataset:
    """Returns the data set with only the conditions that the network takes, checked. taken: see `own_inputs`."""
    given = {name: array for name, array in dataset.conditions.items() if name in taken}
    return dataclasses.replace(dataset, conditions=check_own_inputs(given, taken, len(dataset)))


def batch_parts(settings: Settings) -> int:
    """Returns the number of parts into which a batch may be split; 1 if the config sets a mesh."""
    return settings.train.batch_size // settings.train.accumulate_steps if settings.mesh == MeshSettings() else 1


class Program:
    """The training step that a config describes, without its data, built and checked before any long work.

    devices: for the mesh; by default all that `devices_of_batch` has. like: the state's shapes, dtypes and shardings.
    dispatch: the jitted steps.
    """

    def __init__(self, config: ConfigDict | Settings, devices: Sequence[jax.Device] | None = None) -> None:
        self.settings = settings = Settings.from_config(config)
        train, image_shape = settings.train, settings.data.image_shape
        devices = devices_of_batch(batch_parts(settings)) if devices is None else devices
        self.mesh = make_mesh(**dataclasses.asdict(settings.mesh), devices=devices)
        check_batch_size(train.batch_size, self.mesh, train.accumulate_steps)
        self.net = make_network(settings)
        check_network(self.net, image_shape)
        objective = self.objective = make_objective(settings, self.net)
        self.optimizer = make_optimizer(settings.optimizer)

        init_key, self.step_key = jax.random.split(jax.random.key(settings.seed))
        parts = self.optimizer, settings.ema.names, objective.init
        self.build_state = make_state(lambda: init_params(self.net, init_key, image_shape), *parts)
        self._build_from = lambda params: make_state(lambda: params, *parts)()
        self.like = abstract_state(self.build_state, self.mesh)
        train_step = make_train_step(
            objective,
            self.optimizer,
            ema_warmup=settings.ema.warmup,
            accumulate_steps=train.accumulate_steps,
        )
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.like), replicated(self.mesh)
        self.dispatch = make_dispatch(train_step, shardings)

    def abstract_batches(self, num_steps: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Returns the shapes, dtypes and shardings of batches [num_steps, B, …], as `Run.batches` has them."""
        data, sharding = self.settings.data, batch_sharding(self.mesh, leading=1)
        shapes = {"image": (data.image_shape, jnp.float32), "label": ((), jnp.int32)}
        if data.low_res_shape is not None:
            shapes["low_res"] = data.low_res_shape, jnp.float32
        shapes |= {name: (like.shape[1:], like.dtype) for name, like in own_inputs(self.net).items()}
        leading = num_steps, self.settings.train.batch_size
        like = lambda shape, dtype: jax.ShapeDtypeStruct((*leading, *shape), dtype, sharding=sharding)
        return {name: like(*of) for name, of in shapes.items()}


class Run(Program):
    """Everything that a config describes, including its data and hooks, checked before any long work.

    hooks, writers: of the caller, see `loop.train`. config_hooks: those of the config.
    """

    def __init__(
        self,
        config: ConfigDict | Settings,
        devices: Sequence[jax.Device] | None = None,
        *,
        hooks: Iterable[Any] = (),
        writers: Iterable[Any] = (),
    ) -> None:
        self.hooks, self.writers = check_hooks(hooks), check_writers(writers)
        check_named(Settings.from_config(config).log.writers)
        super().__init__(config, devices)
        train = self.settings.train
        self.dataset = with_conditions(open_source(self.settings.data), own_inputs(self.net))
        self.config_hooks = make_hooks(self.settings, self.mesh, self.dataset)
        self.snapshots = Snapshots(self.settings)
        self._check_cadence()
        self._rows, self._own_devices = (own_rows(self.mesh, n) for n in (train.batch_size, self.mesh.size))
        self._batches = Batches(
            self.dataset, self.settings.seed, train.batch_size, self._rows, train.steps_per_dispatch
        )
        self._ahead: tuple[int, PyTree] | None = None  # a step, and the batches from there on

    @functools.cached_property
    def data_hash(self) -> str | None:
        """The hash of the data set, see `registry.data_hash`."""
        return data_hash(self.settings.data, self.dataset)

    def check_step(self, step: int) -> None:
        """Raises UsageError if the run cannot continue from a step, which is no multiple of steps_per_dispatch."""
        k = self.settings.train.steps_per_dispatch
        if step % k:
            what = f"the run was saved at step {step}, which is not a multiple of train.steps_per_dispatch {k}"
            raise UsageError(f"{what}; use {math.gcd(step, k)}")

    def check_start(self, workdir: str | Place) -> None:
        """Raises UsageError if a writer cannot be used with workdir, or if a new run cannot begin there.

        A new run may not begin if the parameters of train.init_from do not fit. All processes call this.
        """
        check = lambda: check_writers_in(place(workdir), self.settings.log.writers)
        collectives.decided(check, "whether the writers can be used")  # only the first process writes
        origin = self.settings.train.init_from
        check_path("train.init_from", origin)
        if origin is not None and not (place(workdir) / "config.json").exists():
            check_init_from(origin, self.settings, read_settings(origin))

    def new_state(self) -> TrainState:
        """Returns the state at step 0, with fresh parameters or those of train.init_from."""
        workdir = self.settings.train.init_from
        if workdir is None:
            return create_state(self.build_state, self.mesh)
        theirs = read_settings(workdir)
        check_init_from(workdir, self.settings, theirs)
        params, _ = load_params(workdir, theirs)
        check_shapes(workdir, params, self.like.params)
        return create_state(self._build_from, self.mesh, place_parameters(self.mesh, params))

    def _check_cadence(self) -> None:
        """Raises UsageError unless every interval is a whole number of dispatches."""
        train, k = self.settings.train, self.settings.train.steps_per_dispatch
        cadences = {
            "train.num_steps": train.num_steps,
            "train.log_every_steps": train.log_every_steps,
            "checkpoint.every_steps": self.settings.checkpoint.every_steps,
            "ema.snapshot_every_steps": self.settings.ema.snapshot_every_steps or k,
        } | {f"{hook.section}.every_steps": hook.every_steps for hook in self.config_hooks}
        cadences |= {f"every_steps of hook {name_of(hook)}": hook.every_steps for hook in self.hooks}
        for name, value in cadences.items():
            if value % k:
                use = f"{value // k * k} or {value // k * k + k}" if value > k else f"{k}"
                raise UsageError(f"{name} {value} is not a multiple of train.steps_per_dispatch {k}; use {use}")

    def batches(self, step: int) -> PyTree:
        """Returns the batches of one dispatch from `step` on, [k, B, …] over the mesh."""
        ahead, self._ahead = self._ahead, None
        return ahead[1] if ahead is not None and ahead[0] == step else self._placed(step)

    def look_ahead(self, step: int) -> None:
        """Makes and places the batches from `step` on, which `batches` then returns, while the devices compute."""
        self._ahead = step, self._placed(step)

    def _placed(self, step: int) -> PyTree:
        made = self._batches.at(step)
        return place_batch(self.mesh, made, self._rows, self.settings.train.batch_size, leading=1)

    def close(self) -> None:
        """Ends the processes that make batches."""
        self._batches.close()

    def stop_signals(self, stop: StopFlag) -> Int[Array, " devices"] | None:
        """Returns the stop signal as the dispatch takes it, or None if there is no other process."""
        if jax.process_count() == 1:
            return None
        numbers = np.repeat(signal_number(stop.signal), len(self._own_devices))
        return place_batch(self.mesh, numbers, self._own_devices, self.mesh.size)
