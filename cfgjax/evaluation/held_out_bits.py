"""Bits per dimension of held-out images: the variational bound of `cfgjax.diffusion.likelihood` for a `Model`."""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jaxtyping import Float, Int, PyTree
from numpy.typing import ArrayLike

from cfgjax.base.errors import UsageError
from cfgjax.data.batches import quantised, to_float
from cfgjax.data.dataset import Stored
from cfgjax.data.sources.registry import check_images, check_labels, first_index
from cfgjax.diffusion.guidance import conditional
from cfgjax.diffusion.levels import Continuous, Discrete
from cfgjax.diffusion.likelihood import bits_per_dim
from cfgjax.diffusion.schedules import logsnr_grid, parse_schedule
from cfgjax.distributed.collectives import gather_rows
from cfgjax.distributed.sharding import batch_sharding, place_global
from cfgjax.models.arguments import check_num_steps, check_whole_number
from cfgjax.models.model import Model


def held_out_bits(
    model: Model,
    image: Stored | np.ndarray,
    label: Int[np.ndarray, " n"],
    *,
    num_steps: int,
    v: float | None,
    seed: int = 0,
    batch_size: int = 256,
    spacing: str = "uniform",
    logsnr_max: float | None = None,
) -> dict[str, Any]:
    """Returns the mean bound on −log₂ p(x | label) in bits/dim, under the ancestral chain of num_steps levels.

    image: uint8 [N, H, W, C], in memory or `Stored`, or float32 in [−1, 1], which is rounded to 8 bits first. label:
    int [N]; num_classes is "none", the unconditional model. v: reverse variance as in `ancestral`; ignored if the
    model has learned it.
    seed: the noise of image i depends only on seed and i. batch_size: images per call of the compiled function.
    spacing: of the levels, the text of a schedule, or "timesteps" of a process in discrete time. A step from λ to λ'
    costs ½ (e^(λ'−λ) − 1) ‖ε − ε_θ‖² nats at v = 0. Equal steps therefore give the smallest bound; the long steps at
    the ends of a cosine grid cost most.
    logsnr_max: λ_T, at which the decoder applies; by default that of config.diffusion.

    Returns means over the images {"bits_per_dim", "prior", "transitions", "decoder"}, the first of which is the sum of
    the others; "terms" [T], the T−1 transitions and the decoder, at "logsnr" [T]; "standard_error", None for one image;
    "num_examples", "num_steps", "seed", "spacing", "learned_variance"; "v", None if it is learned.
    Raises UsageError for points, and for images, labels or options that do not fit, and ArithmeticError if a bound is
    not finite.
    """
    if not model.is_image:
        kind = "latents" if len(model.image_shape) == 3 else "points"
        raise UsageError(f"bits/dim is defined for 8-bit images, not for {kind} of shape {model.image_shape}")
    image, label = image if isinstance(image, Stored) else np.asarray(image), np.asarray(label)
    check_images(image, model.image_shape)
    check_labels(label, model.num_classes + model.has_null_label)
    if len(image) != len(label):
        given = f"images of shape {image.shape} and labels of shape {label.shape}"
        raise UsageError(f"{given} differ in number; need a label for each image")
    check_num_steps(num_steps)
    for name, value, least in (("batch_size", batch_size, 1), ("seed", seed, 0)):
        check_whole_number(name, value, least)
    learned = model.learned_variance
    if not learned and (v is None or not 0 <= v <= 1):
        raise UsageError(f"v is {v}; need a value in [0, 1]")
    if model.low_res_shape is not None:
        raise UsageError("the model is an upsampler; bits/dim is measured only without a low-resolution image")
    if model.own_inputs:
        inputs = ", ".join(model.own_inputs)
        raise UsageError(f"the network takes {inputs} besides the label; bits/dim supports only the label")
    grid = level_grid(model.levels, num_steps, spacing, logsnr_max)

    total, prior, terms = np.zeros(0), 0.0, np.zeros(num_steps)
    for bound in bound_batches(model, image, label, grid, v=v, seed=seed, batch_size=batch_size):
        if not np.isfinite(bound["total"]).all():
            bad = len(total) + first_index(~np.isfinite(bound["total"]))
            raise ArithmeticError(f"image {bad} has a bound that is not finite; are the parameters finite?")
        total = np.append(total, bound["total"])
        prior += bound["prior"].sum()
        terms += bound["terms"].sum(axis=0)
    count = len(image)
    return {
        "bits_per_dim": float((prior + terms.sum()) / count),
        "standard_error": float(total.std(ddof=1) / np.sqrt(count)) if count > 1 else None,
        "prior": float(prior / count),
        "transitions": float(terms[:-1].sum() / count),
        "decoder": float(terms[-1] / count),
        "logsnr": grid.tolist(),
        "terms": (terms / count).tolist(),
        "num_examples": count,
        "num_steps": num_steps,
        "seed": seed,
        "spacing": spacing,
        "learned_variance": learned,
        "v": None if learned or v is None else float(v),
    }


def check_guidance(w: ArrayLike | Sequence[float]) -> None:
    """Raises UsageError unless every weight w, a number or an array, is 0: the guided ε̃ is no model's ε."""
    if np.any(np.asarray(w) != 0):
        weights = ", ".join(f"{x:g}" for x in np.unique(w))
        raise UsageError(
            f"bits/dim is a bound on the likelihood of the conditional model; "
            f"guidance (w = {weights}) defines no likelihood"
        )


def level_grid(
    levels: Continuous | Discrete, num_steps: int, spacing: str, logsnr_max: float | None = None
) -> Float[np.ndarray, " num_steps"]:
    """Returns λ float32 [num_steps] from the first level of a process to the last, or to logsnr_max if given.

    spacing: "timesteps", those that `levels.Discrete.grid` retains, is for discrete time.
    """
    if spacing == "timesteps":
        if not isinstance(levels, Discrete) or logsnr_max is not None:
            raise UsageError("spacing 'timesteps' is for a process in discrete time, and takes no logsnr_max")
        if num_steps > levels.num_timesteps:
            raise UsageError(f"num_steps is {num_steps}; the process has {levels.num_timesteps} timesteps")
        return levels.grid(num_steps).astype(np.float32)
    parse_schedule(spacing, "spacing")
    end = levels.logsnr_max if logsnr_max is None else logsnr_max
    if not levels.logsnr_min < end <= levels.logsnr_max:
        trained = f"above {levels.logsnr_min:g} and up to {levels.logsnr_max:g}"
        raise UsageError(f"logsnr_max is {end}; the model was trained {trained}")
    return logsnr_grid(num_steps, spacing, levels.logsnr_min, end).astype(np.float32)


def bound_batches(
    model: Model,
    image: Stored | np.ndarray,
    label: Int[np.ndarray, " n"],
    grid: Float[np.ndarray, " t"],
    *,
    v: float | None,
    seed: int,
    batch_size: int,
) -> Iterator[dict[str, Float[np.ndarray, "_b ..."]]]:
    """Yields `bits_per_dim` of consecutive images, {"total": [B], "prior": [B], "terms": [B, T]} in float64 numpy."""
    size = min(batch_size, len(image))
    size += -size % model.mesh.size

    @jax.jit
    def bound(
        params: PyTree,
        key: Array,
        index: Int[Array, " b"],
        x: Float[Array, "b ..."],
        label: Int[Array, " b"],
        v: Float[Array, ""],
    ) -> dict[str, Float[Array, "b ..."]]:
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(index)
        keys = jax.lax.with_sharding_constraint(keys, batch_sharding(model.mesh))
        denoise = conditional()(model.bind(params), {"label": label})
        return bits_per_dim(keys, denoise, x, grid, v=v)

    for start in range(0, len(image), size):
        index = np.arange(start, start + size) % len(image)  # rows past the end are dropped
        batch = index.astype(np.int32), to_float(quantised(image[index])), label[index].astype(np.int32)
        placed = [place_global(model.mesh, array) for array in batch]
        part = bound(model.params, jax.random.key(seed), *placed, np.float32(0.0 if v is None else v))
        yield {name: gather_rows(a)[: len(image) - start].astype(np.float64) for name, a in part.items()}
