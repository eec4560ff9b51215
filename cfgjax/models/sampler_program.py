"""The program of a model's sampler: the noise of each sample, its conditions, the rule, and all levels in one scan."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from cfgjax.diffusion.guidance import bind_rule
from cfgjax.diffusion.process import diffuse
from cfgjax.diffusion.samplers import initial_noise, noise_at, sample
from cfgjax.distributed.sharding import batch_sharding, replicated
from cfgjax.models.binding import Argument, translated, z_and_x
from cfgjax.models.network import null_condition

LOW_RES_STEP = 2**32 - 2  # of the noise in low-resolution images, where samplers have their step


def run_prediction(
    model: Any, params: PyTree, z: Float[Array, "b ..."], logsnr: Float[Array, " b"], cond: dict[str, Array]
) -> Any:
    """Returns what `Model.predict` returns, on all devices, each of which computes a part of the batch."""
    added = -len(z) % model.mesh.size
    constrain = jax.lax.with_sharding_constraint

    def split(a: Array) -> Array:
        return constrain(jnp.concatenate([a, jnp.repeat(a[-1:], added, axis=0)]), batch_sharding(model.mesh))

    found = model.bind(params)(*jax.tree.map(split, (z, logsnr, cond)))
    return jax.tree.map(lambda a: constrain(a, replicated(model.mesh))[: len(z)], found)


def run_program(
    model: Any,
    params: PyTree,
    key: PRNGKeyArray,
    batch: dict[str, Array],
    logsnrs: Float[Array, " t"],
    rule: Argument,
    sampler: Argument,
    low_res_logsnr: Float[Array, ""] | None,
    *,
    trajectory: bool | Callable,
    clip: str,
    mesh: Mesh,
) -> Any:
    """Returns what `draw` of `Model.sampler` returns, for a batch of indices, labels and weights, each [B, …].

    batch may have z, the noise at the first level, and the inputs of the network besides the label.
    """
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(batch["index"])
    z = batch["z"] if "z" in batch else initial_noise(keys, model.image_shape)
    z = jax.lax.with_sharding_constraint(z, batch_sharding(mesh))
    cond = {name: batch[name] for name in ("label", "low_res", *model.own_inputs) if name in batch}
    if low_res_logsnr is not None:
        cond["low_res_logsnr"] = jnp.full(len(cond["label"]), low_res_logsnr)
        fresh = noise_at(keys, LOW_RES_STEP, batch["low_res"].shape[1:])
        cond["low_res"] = diffuse(batch["low_res"], fresh, cond["low_res_logsnr"])
    null = null_condition(model.network, cond, model.num_classes)
    denoise = bind_rule(translated(rule.value, logsnrs, cond), model.bind(params), cond, null, batch["weight"])
    run = functools.partial(sample, sampler.value, denoise, keys, z, logsnrs, clip=clip)
    if not trajectory:
        return run()
    x, seen = run(save=trajectory if callable(trajectory) else z_and_x)
    return x, jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), seen)
