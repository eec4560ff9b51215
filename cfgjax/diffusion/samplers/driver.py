"""The driver of all samplers: the scan over the levels, the noise of each sample, memories and trajectories.

The noise of sample i comes from `keys[i]` and the step alone, whatever the batch around it: step t = 1 … T uses
`fold_in(keys[i], t)`, and `initial_noise` uses t = 0. Step T leads to x̃, so that only noise that a sampler adds before
it evaluates has an effect there.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, Key

from cfgjax.base.errors import UsageError
from cfgjax.diffusion.contracts import ContractError, check_arrays, check_same, described
from cfgjax.diffusion.guidance.denoiser import Branches, Denoiser, checked
from cfgjax.diffusion.prediction import Prediction
from cfgjax.diffusion.process import RealLike, alpha_sigma, broadcast_left
from cfgjax.diffusion.specs import check_choice


def noise_at(
    keys: Key[Array, " b"], step: int | Int[Array, ""], shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> Float[Array, "b ..."]:
    """Returns N(0, I) of shape [B, *shape], row i from `fold_in(keys[i], step)` alone."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, step), shape, dtype))(keys)


def initial_noise(
    keys: Key[Array, " b"], shape: tuple[int, ...], dtype: DTypeLike = jnp.float32
) -> Float[Array, "b ..."]:
    """Returns z at λ_1: N(0, I) of shape [B, *shape], row i from keys[i] alone."""
    return noise_at(keys, 0, shape, dtype)


class Level(NamedTuple):
    """A step of a sampler: λ, the λ' to which it leads, its number from 0, whether λ is the last one, and T."""

    logsnr: Float[Array, "..."]
    logsnr_next: Float[Array, "..."]
    step: Int[Array, "..."]
    last: Bool[Array, "..."]
    num_steps: Int[Array, "..."]


class Evaluation(NamedTuple):
    """The argument of `save` at each level: the level, z, and the prediction after guidance and clipping.

    branches: the predictions before clipping that the rule has combined; None if it does not combine two. state: of
    the sampler, after the step.
    """

    level: Level
    z: Float[Array, "b ..."]
    prediction: Prediction
    branches: Branches | None
    state: Any = None


CLIP_MODES = ("consistent", "x_only", "none")


def clipped(prediction: Prediction, logsnr: Float[RealLike, "..."], mode: str = "consistent") -> Prediction:
    """Returns the prediction with x̃ clipped to [−1, 1].

    mode: "consistent" changes ε̃ so that α x̃ + σ ε̃ stays the same, as ADM does; "x_only" leaves ε̃ as predicted, as
    diffusers' DDIMScheduler does by default; "none" clips nothing.
    """
    if mode == "none":
        return prediction
    # clip alone would turn an overflow into a white pixel
    x = jnp.where(jnp.isfinite(prediction.x), jnp.clip(prediction.x, -1, 1), jnp.nan)
    if mode == "x_only":
        return prediction._replace(x=x)
    alpha, sigma = alpha_sigma(broadcast_left(logsnr, prediction.x))
    # ε of the clipped x̃, (z − α x̃)/σ, as a correction: exact if nothing was clipped
    return prediction._replace(x=x, eps=prediction.eps + (alpha / sigma) * (prediction.x - x))


class _AtOneLevel:
    """The denoiser that a step calls, `denoise(z, logsnr) → Prediction`. It clips predictions and holds the memory.

    The first call is the level's evaluation: it updates the memory, and its result is passed to `save`. Further calls,
    of correctors, read the memory without changing it; only these may be inside `jax.lax` control flow.
    """

    def __init__(self, denoise: Denoiser, memory: Any, clip: str) -> None:
        self._denoise, self._clip = denoise, clip
        self.shift, self.memory = denoise.shift, memory
        self.prediction: Any = None
        self.branches: Branches | None = None

    def __call__(self, z: Float[Array, "b ..."], logsnr: Float[RealLike, ""]) -> Prediction:
        args = z, jnp.full(z.shape[:1], logsnr), self.memory
        if self._denoise.branches is None:
            branches, (prediction, memory) = None, self._denoise(*args)
        else:
            branches, memory = self._denoise.branches(*args)
            prediction = branches.guided
        prediction = clipped(prediction, logsnr, self._clip)
        if self.prediction is None:
            self.prediction, self.branches, self.memory = prediction, branches, memory
        return prediction


def evaluated_levels(sampler: Any, logsnrs: Float[RealLike, " t"]) -> Float[np.ndarray, " n"]:
    """Returns λ of each evaluation that a sampler makes on a grid, in order; λ of a churned level is the noisier one.

    The network evaluations of a sample are the sum of `guidance.evaluations(rule, ·)` over them. Raises ContractError
    if their number is not the sampler's `evaluations`.
    """
    logsnrs = np.asarray(logsnrs)
    found = sampler.evaluated_levels(logsnrs) if hasattr(sampler, "evaluated_levels") else logsnrs
    if len(found) != (stated := sampler.evaluations(len(logsnrs))):
        problem = f"states {stated} evaluations for {len(logsnrs)} levels, and the λ of {len(found)}"
        raise ContractError("sampler", sampler, f"{problem}; need a method evaluated_levels that returns each λ")
    return found


def sample(
    sampler: Any,
    denoise: Callable,
    keys: Key[Array, " b"],
    z: Float[Array, "b ..."],
    logsnrs: Float[RealLike, " t"],
    *,
    clip: bool | str = False,
    save: Callable | None = None,
) -> Any:
    """Returns x̃ of the last level, with no noise added; with save, (x̃, trajectory).

    denoise: (z [B, …], logsnr [B]) → `Prediction`, or a denoiser with memory. z: noise at logsnrs[0], see
    `initial_noise`. logsnrs: increasing. clip: whether x̃ is clipped to [−1, 1] after guidance at every level
    (images; never unbounded data), or a mode of `clipped`; True is "consistent". save: `Evaluation` → any tree of
    arrays; the trajectory has its leaves as [T, …].
    """
    logsnrs = jnp.asarray(logsnrs, z.dtype)
    following = jnp.append(logsnrs[1:], logsnrs[-1] + 1)  # the last one is a placeholder, finite and unused
    levels = steps_between(logsnrs, following, last=True)
    return run_sampler(sampler, denoise, keys, z, levels, clip=clip, save=save)


def steps_between(logsnrs: Float[Array, " t"], following: Float[Array, " t"], *, last: bool) -> Level:
    """Returns the steps from each λ to the one that follows it. last: whether the last step is to x̃."""
    num_steps = logsnrs.shape[0]
    steps = jnp.arange(num_steps)
    is_last = (steps == num_steps - 1) & last
    return Level(logsnrs, following, steps, is_last, jnp.full_like(steps, num_steps))


def run_sampler(
    sampler: Any,
    denoise: Callable,
    keys: Key[Array, " b"] | None,
    z: Float[Array, "b ..."],
    levels: Level,
    *,
    clip: bool | str,
    save: Callable | None = None,
) -> Any:
    """Returns z after the levels [T], which is x̃ if the last of them has `last`; with save, (z, trajectory).

    keys: of the samples' noise; None for a sampler that draws none.
    """
    guided = checked("denoiser", denoise, denoise)
    mode = clip if isinstance(clip, str) else "consistent" if clip else "none"
    check_choice("clip", mode, CLIP_MODES)
    for name in ("init", "step"):
        if not callable(getattr(sampler, name, None)):
            raise ContractError("sampler", sampler, f"has no method {name}; need init(z) and step(…)")
    keys = keys if getattr(sampler, "draws_noise", True) else None
    if guided.shift is not None and not getattr(sampler, "takes_shift", False):
        raise UsageError(f"{sampler!r} has no mean for the rule to shift; take the sampler ancestral")

    def body(carry: Any, level: Level) -> Any:
        z, state, memory = carry
        at_level = _AtOneLevel(guided, memory, mode)
        noise = None if keys is None else noise_at(keys, level.step + 1, z.shape[1:], z.dtype)
        returned = sampler.step(at_level, z, state, level, noise)
        _check_step(sampler, z, state, returned)
        if at_level.prediction is None:
            raise ContractError("sampler", sampler, "never calls denoise in its step; need at least one call")
        z_next, state = returned
        found = Evaluation(level, z, at_level.prediction, at_level.branches, state)
        z_next = jnp.where(level.last, found.prediction.x, z_next)
        return (z_next, state, at_level.memory), None if save is None else save(found)

    state = sampler.init(z, keys) if getattr(sampler, "takes_keys", False) else sampler.init(z)
    check_arrays("sampler", sampler, "state", state)
    (z, state, _), trajectory = jax.lax.scan(body, (z, state, guided.init(z)), levels)
    z = sampler.finish(z, state) if hasattr(sampler, "finish") else z
    return z if save is None else (z, trajectory)


def _check_step(sampler: Any, z: Float[Array, "b ..."], state: Any, returned: Any) -> None:
    """Raises ContractError unless a step has returned (z, state) like those it was given."""
    if not isinstance(returned, tuple) or len(returned) != 2:
        raise ContractError("sampler", sampler, f"returns {described(returned)} from its step; need (z, state)")
    check_same("sampler", sampler, "z", z, returned[0])
    check_same("sampler", sampler, "state", state, returned[1])
