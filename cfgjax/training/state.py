"""The state of a training run, which a checkpoint stores."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Int, PyTree

from cfgjax.base.compilation import optimised
from cfgjax.distributed.sharding import parameter_sharding
from cfgjax.training import ema


class TrainState(NamedTuple):
    """Arrays only. It has no random state, since step n draws from fold_in(key, n).

    step: optimizer steps taken, including skipped ones, int32. params: of the network. ema: {name: parameters} of the
    averages, see `EMASettings.names`. opt_state: of optax. level_losses: arrays that the objective keeps, () for most.
    """

    step: Int[Array, ""] | Any
    params: PyTree
    ema: PyTree
    opt_state: PyTree
    level_losses: PyTree = ()


def make_state(
    init: Callable,
    optimizer: optax.GradientTransformationExtraArgs,
    averages: Sequence[str],
    level_losses: Callable = tuple,
) -> Callable[..., TrainState]:
    """Returns a function () → TrainState at step 0, to be run inside jit.

    init: () → params. averages: their names, of `EMASettings`. level_losses: () → arrays of the objective.
    """

    def build() -> TrainState:
        params = init()
        return TrainState(jnp.int32(0), params, ema.init(params, averages), optimizer.init(params), level_losses())

    return build


def abstract_state(build: Callable[..., TrainState], mesh: Mesh) -> TrainState:
    """Returns the shapes, dtypes and shardings of the state that build() makes on the mesh."""
    shapes = jax.eval_shape(build)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        parameter_sharding(mesh, shapes),
    )


def create_state(build: Callable[..., TrainState], mesh: Mesh, *inputs: PyTree) -> TrainState:
    """Returns the state that build(*inputs) makes, each array created in its place on the mesh."""
    shardings = parameter_sharding(mesh, jax.eval_shape(build, *inputs))
    return jax.jit(build, out_shardings=shardings, compiler_options=optimised(1))(*inputs)


def averaged_params(state: TrainState, name: str | None) -> PyTree:
    """Returns the average called `name`, or the parameters themselves for None."""
    return state.params if name is None else state.ema[name]
