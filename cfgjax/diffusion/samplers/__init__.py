"""Samplers: values that take z from one level to the next, and the driver that runs them.

A sampler knows neither conditions, guidance nor parameters: `denoise(z, logsnr) → Prediction` has them. It has

- `init(z) → state`, any tree of arrays (() for a sampler whose only state is z);
- `step(denoise, z, state, level, noise) → (z, state)`, z at level.logsnr_next; noise is N(0, I) of z's shape;
- `evaluations(num_steps)`, the number of calls of denoise for a grid of so many levels;
- `evaluated_levels(logsnrs)`, λ of these calls, if they are not one at each level: see the function of this name;
- optionally `draws_noise` (default True; False: no noise is drawn, and `noise` is None), `takes_shift` (default False):
  whether it adds `denoise.shift` to a mean, see `guidance.denoiser`, `needs_variance` (default False): whether the
  prediction must have a learned variance, and `uses_eps` (default False): whether it renoises x̃ with ε̃, as DDIM does;
- for a sampler that draws samples in groups, `group_size` (default 1): samples i with the same i // group_size are a
  group, with the same label and w; optionally `takes_keys`: `init` is called as init(z, keys); `finish(x, state) → x̃`,
  called after the last level; `needs_branches`: whether the rule must have `branches`, see `guidance.denoiser`.

At the last level the driver returns x̃ itself, guided as at every level. Numbers in a sampler are traced: changing one
compiles nothing.

| sampler | order | evaluations | noise |
| --- | --- | --- | --- |
| `ddim` | 1 | T | `eta` |
| `heun` | 2 | 2T − 1 | `s_churn` |
| `dpmpp_2m` | 2 | T | none |
| `dpmpp_2m_sde` | 2 in the drift | T | `eta` |
| `unipc` | 3 | T | none |
| `ancestral` | 1 | T | always |
| `tilted` | 1 | T | always, and resamples |

These are the orders for short steps and x̃ that is smooth in λ. The first and last steps of the cosine schedule are
long: the multistep samplers take them with order 1, and `heun` needs the grid `edm()`.

An interval of guidance makes x̃ jump at some λ between two levels. A grid does not resolve where between them, so that
every sampler has order 1 there. The history of multistep samplers is kept across the jump, because their result is
then, to second order, that of a jump halfway between the two levels; the same holds for `heun`. The error is at most
half a step times the jump. For `ddim`, or with the history dropped, it is up to a whole step times the jump.
"""

from typing import Any

from cfgjax.diffusion.samplers.ancestral import ancestral
from cfgjax.diffusion.samplers.ddim import ddim, ddim_encode, ddim_step
from cfgjax.diffusion.samplers.dpmpp_2m import dpmpp_2m
from cfgjax.diffusion.samplers.dpmpp_2m_sde import dpmpp_2m_sde
from cfgjax.diffusion.samplers.driver import (
    Evaluation,
    Level,
    clipped,
    evaluated_levels,
    initial_noise,
    noise_at,
    sample,
)
from cfgjax.diffusion.samplers.heun import heun
from cfgjax.diffusion.samplers.particles import tilted
from cfgjax.diffusion.samplers.unipc import unipc

SAMPLERS: dict[str, Any] = {
    "ancestral": ancestral,
    "ddim": ddim,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "heun": heun,
    "tilted": tilted,
    "unipc": unipc,
}

__all__ = [
    "SAMPLERS",
    "Evaluation",
    "Level",
    "ancestral",
    "clipped",
    "ddim",
    "ddim_encode",
    "ddim_step",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "evaluated_levels",
    "heun",
    "initial_noise",
    "noise_at",
    "sample",
    "tilted",
    "unipc",
]
