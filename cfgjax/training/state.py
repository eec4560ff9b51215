"""What a training run carries from step to step, and what a checkpoint holds."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cfgjax.base.compilation import optimised
from cfgjax.distributed.sharding import parameter_sharding
from cfgjax.training import ema


class TrainState(NamedTuple):
    """Arrays only. Randomness is no part of it: step n draws from fold_in(key, n).

    step: int32 scalar, optimizer steps taken (skipped ones included).
    params: the network's parameters. ema: {str(rate): parameters}. opt_state: optax's. level_losses: the
    objective's, () for most.
    """

    step: Any
    params: Any
    ema: Any
    opt_state: Any
    level_losses: Any = ()


def make_state(init, optimizer, rates, level_losses=tuple):
    """() → TrainState at step 0, to be run inside jit. init: () → params. rates: of the EMAs, which start as copies.

    level_losses: () → the objective's.
    """

    def build():
        params = init()
        return TrainState(jnp.int32(0), params, ema.init(params, rates), optimizer.init(params), level_losses())

    return build


def abstract_state(build, mesh):
    """The shapes, dtypes and shardings of build()'s state on the mesh."""
    shapes = jax.eval_shape(build)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        parameter_sharding(mesh, shapes),
    )


def create_state(build, mesh, *inputs):
    """build(*inputs)'s state, each array made in its place on the mesh."""
    shardings = parameter_sharding(mesh, jax.eval_shape(build, *inputs))
    return jax.jit(build, out_shardings=shardings, compiler_options=optimised(1))(*inputs)
