"""Conditions: trees of arrays with leading axis B. These functions know none of their keys."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, Shaped

from cfgjax.diffusion.prediction import Prediction
from cfgjax.diffusion.process import RealLike, broadcast_left


def drop_condition(key: Key[Array, ""], cond: Any, null: Any, p_uncond: float) -> Any:
    """Returns cond with each example replaced by that of null with probability p_uncond, CFG algorithm 1 line 2.

    Drawn once per example for all leaves, independently of how the batch is sharded.
    """
    dropped = jax.random.uniform(key, jax.tree.leaves(cond)[0].shape[:1]) < p_uncond

    def choose(given: Shaped[Array, "b ..."], none: Shaped[Array, "b ..."]) -> Shaped[Array, "b ..."]:
        return given if none is given else jnp.where(broadcast_left(dropped, given), none, given)

    return jax.tree.map(choose, cond, null)


def branches(
    predict: Callable, z: Float[Array, "b ..."], logsnr: Float[RealLike, "..."], conds: Sequence[Any]
) -> list[Prediction]:
    """Returns the predictions at z for each of k conditions, from one call of predict with k·B rows.

    The branches of a sample stand side by side in the batch, so that a batch sharded over devices is repeated in
    place, without moving data between them.
    """
    k, batch = len(conds), z.shape[0]

    def side_by_side(*leaves: Array) -> Array:
        return jnp.stack(leaves, axis=1).reshape(k * batch, *leaves[0].shape[1:])

    logsnr = jnp.broadcast_to(logsnr, (batch,))
    found = predict(jnp.repeat(z, k, axis=0), jnp.repeat(logsnr, k, axis=0), jax.tree.map(side_by_side, *conds))
    apart = jax.tree.map(lambda a: a.reshape(batch, k, *a.shape[1:]), found)
    return [jax.tree.map(lambda a, i=i: a[:, i], apart) for i in range(k)]
