"""Compiles a model's sampler into a file that jax alone runs, for several platforms.

The file is an .npz: `program_PLATFORM` is a program of `jax.export`, `param_0`, `param_1`, … are its first arguments,
and `about` is JSON. README.md of a model card and docs/how_to/exporting.md have the script that runs it.
"""

import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

import cfgjax
from cfgjax.base.errors import UsageError
from cfgjax.diffusion.guidance import uses_null
from cfgjax.models.binding import as_argument, check_together, on_mesh, rule_value, sampler_value
from cfgjax.models.model import Model
from cfgjax.models.sampler_program import run_program
from cfgjax.nets.ops.platform import tracing_for

PLATFORMS = ("cpu", "cuda", "tpu")


def export_program(model: Model, platforms: Sequence[str] = PLATFORMS, **options: Any) -> dict[str, np.ndarray]:
    """Returns the arrays of the file: the sampler with rule, sampler, number of steps, grid and clip of the options.

    model: on a mesh of one device. options: of `SampleOptions`, by default those of config.sample. The program takes
    the parameters, labels int32 [B], weights w float32 [B] and a seed uint32, for any B, and returns images uint8
    [B, H, W, C], or float32 if the data are no images. Sample i has the noise of sample i of `Model.sample`.

    Raises UsageError for a platform that is not in PLATFORMS, and for options that the model cannot use.
    """
    if unknown := [name for name in platforms if name not in PLATFORMS]:
        raise UsageError(f"there is no platform {unknown[0]!r}; known: {', '.join(PLATFORMS)}")
    if model.low_res_shape is not None or model.own_inputs:
        raise UsageError("the network takes more than a label; only `cfgjax export` without --format=stablehlo has it")
    chosen = model.options.with_changes("Model", **options)
    rule, sampler = rule_value(chosen.rule), sampler_value(chosen.sampler)
    check_together(rule, sampler, model)
    model.check_guidance([uses_null(rule)])
    grid = jnp.asarray(model.grid(chosen.num_steps, chosen.grid))
    placed, values = as_argument(on_mesh(rule, model.settings, model.mesh)), as_argument(sampler)
    clip = chosen.clip if model.is_image else "none"
    leaves, tree = jax.tree.flatten(model.params)

    def program(leaves: list[Array], labels: Array, weights: Array, seed: Array) -> Array:
        batch = {"index": jnp.arange(labels.shape[0]), "label": labels, "weight": weights}
        params, key = jax.tree.unflatten(tree, leaves), jax.random.key(seed)
        given = model, params, key, batch, grid, placed, values, None
        x = run_program(*given, trajectory=False, clip=clip, mesh=model.mesh)
        return as_uint8(x) if model.is_image else x

    (size,) = jax.export.symbolic_shape("b")
    shape = lambda dtype, *dims: jax.ShapeDtypeStruct(dims, dtype)
    arguments = (
        [shape(leaf.dtype, *leaf.shape) for leaf in leaves],
        *(shape(jnp.int32, size), shape(jnp.float32, size), shape(jnp.uint32)),
    )
    found = {f"param_{i}": np.asarray(leaf) for i, leaf in enumerate(leaves)}
    for name in platforms:
        with tracing_for(name):
            exported = jax.export.export(jax.jit(program), platforms=[name])(*arguments)
        found[f"program_{name}"] = np.frombuffer(exported.serialize(), np.uint8)
    about = {
        "cfgjax": cfgjax.__version__,
        "jax": jax.__version__,
        "image_shape": list(model.image_shape),
        "classes": model.classes,
        "num_classes": model.num_classes,
        "step": model.step,
        "ema": model.ema,
        **{name: str(getattr(chosen, name)) for name in ("rule", "sampler", "num_steps", "grid", "clip")},
    }
    return found | {"about": np.array(json.dumps(about))}


def as_uint8(x: Array) -> Array:
    """Returns images in [−1, 1] as `to_uint8` does."""
    return jnp.clip(jnp.rint((x + 1) * 127.5), 0, 255).astype(jnp.uint8)
