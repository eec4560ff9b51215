"""Samplers: values that take z from one level to the next, and the driver that runs them.

A sampler knows neither conditions, guidance nor parameters: `denoise(z, logsnr) → Prediction` has them. It has

- `init(z) → state`, any tree of arrays (() for a sampler whose only state is z);
- `step(denoise, z, state, level, noise) → (z, state)`, z at level.logsnr_next; noise is N(0, I) of z's shape;
- `evaluations(num_steps)`, the number of calls of denoise for a grid of so many levels;
- optionally `draws_noise` (default True; False: no noise is drawn, and `noise` is None), `takes_shift` (default False):
  whether it adds `denoise.shift` to a mean, see `guidance.denoiser`, and `needs_variance` (default False): whether the
  prediction must have a learned variance;
- for a sampler that draws samples in groups, `group_size` (default 1): samples i with the same i // group_size are a
  group, with the same label and w; optionally `takes_keys`: `init` is called as init(z, keys); `finish(x, state) → x̃`,
  called after the last level; `needs_branches`: whether the rule must have `branches`, see `guidance.denoiser`.

At the last level the driver returns x̃ itself. Numbers in a sampler are traced: changing one compiles nothing.
"""

from typing import Any

from cfgjax.diffusion.samplers.ancestral import ancestral
from cfgjax.diffusion.samplers.ddim import ddim, ddim_encode, ddim_step
from cfgjax.diffusion.samplers.driver import Evaluation, Level, clipped, initial_noise, noise_at, sample
from cfgjax.diffusion.samplers.tilted import tilted

SAMPLERS: dict[str, Any] = {"ancestral": ancestral, "ddim": ddim, "tilted": tilted}

__all__ = [
    "SAMPLERS",
    "Evaluation",
    "Level",
    "ancestral",
    "clipped",
    "ddim",
    "ddim_encode",
    "ddim_step",
    "initial_noise",
    "noise_at",
    "sample",
    "tilted",
]
