"""The metrics of a noise-aware classifier on held-out examples while training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree

from cfgjax.base.storage import Place
from cfgjax.data.batches import to_float
from cfgjax.data.sources.registry import open_source
from cfgjax.diffusion.process import diffuse
from cfgjax.distributed.collectives import gather_rows
from cfgjax.distributed.sharding import place_global
from cfgjax.models.guide import Guide
from cfgjax.runs.settings import Settings
from cfgjax.training.hooks.held_out import held_out_steps
from cfgjax.training.log import RunLog
from cfgjax.training.objective import LEVEL_BINS
from cfgjax.training.state import TrainState, averaged_params

EXAMPLES_AT_ONCE = 256  # of the held-out ones, on each device


class NoisyHeldOut:
    """Writes a noise-aware classifier's accuracy on the held-out examples, at a few levels, into the metrics.

    holdout_accuracy_i is at the middle of part i of LEVEL_BINS of u, 0 the cleanest; holdout_accuracy is their mean.
    """

    section = "evaluate"

    def __init__(self, settings: Settings, mesh: Mesh) -> None:
        self.every_steps, self._mesh = held_out_steps(settings), mesh
        self._average = settings.ema.default_name
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

    def __call__(self, state: TrainState, step: int, workdir: Place, runlog: RunLog) -> None:
        if runlog.has(step, "holdout_accuracy"):
            return
        params, data, found = averaged_params(state, self._average), self._data, {}
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
