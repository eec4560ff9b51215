"""Discrete-time processes: β tables, their λ, and the timesteps that respacing keeps. numpy float64 on the host.

DDPM = Ho et al. 2020 (arXiv:2006.11239), IDDPM = Nichol & Dhariwal 2021 (arXiv:2102.09672). Timestep t = 0 … T−1 is
noisier as t grows, so λ_t decreases. The posterior and both reverse variances are those of `process.posterior` between
λ_t and λ_{t−1}.
"""

import math
import re
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Float64, Int

DIGITS = re.compile("[0-9]+")


def linear_betas(num_timesteps: int) -> Float64[np.ndarray, " num_timesteps"]:
    """Returns β_t from 1e-4 to 0.02 at equal distances for T = 1000, scaled by 1000/T for others; DDPM section 4."""
    scale = 1000 / num_timesteps
    return np.linspace(scale * 1e-4, scale * 0.02, num_timesteps)


def cosine_betas(num_timesteps: int) -> Float64[np.ndarray, " num_timesteps"]:
    """Returns β_t = 1 − ᾱ(t+1)/ᾱ(t), at most 0.999, with ᾱ(t) = cos²((t/T + 0.008)/1.008 · π/2).

    Source: IDDPM eq. (17).
    """
    alpha_bar = np.cos((np.arange(num_timesteps + 1) / num_timesteps + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


BETAS: dict[str, Callable] = {"linear": linear_betas, "cosine": cosine_betas}


def logsnr_table(betas: Float[np.ndarray, " t"]) -> Float64[np.ndarray, " t"]:
    """Returns λ_t = log(ᾱ_t / (1 − ᾱ_t)), decreasing. It is not computed from 1 − ᾱ, which is 0 at small β."""
    log_alpha_bar = np.cumsum(np.log1p(-np.asarray(betas, np.float64)))
    return log_alpha_bar - np.log(-np.expm1(log_alpha_bar))


def respaced(betas: Float[np.ndarray, " t"], kept: Int[np.ndarray, " k"]) -> Float64[np.ndarray, " k"]:
    """Returns β of the process at the retained timesteps: 1 − ᾱ_t / ᾱ of the previous retained one; IDDPM section 4."""
    alpha_bar = np.cumprod(1 - np.asarray(betas, np.float64))[np.asarray(kept)]
    return 1 - alpha_bar / np.append(1.0, alpha_bar[:-1])


def kept_timesteps(num_timesteps: int, spacing: int | np.integer | str) -> Int[np.ndarray, " k"]:
    """Returns the timesteps that a respaced process retains, increasing, as guided-diffusion's `space_timesteps`.

    spacing: their number K; "ddimK", equal integer strides from 0 (DDIM); or, for "10+15+20" or "10,15,20", the number
    in each of several equally long sections, from the clean end.
    Raises ValueError if there are fewer timesteps, or no such stride.
    """
    text = str(spacing)
    if text.startswith("ddim") and DIGITS.fullmatch(text[4:]):
        wanted = int(text[4:])
        for stride in range(1, num_timesteps):
            if len(range(0, num_timesteps, stride)) == wanted:
                return np.arange(0, num_timesteps, stride)
        raise ValueError(f"num_steps is {spacing}: no integer stride takes {wanted} of {num_timesteps} timesteps")
    words = text.replace("+", ",").split(",")
    if not all(map(DIGITS.fullmatch, words)):
        raise ValueError(f"num_steps is {spacing!r}: need a number, 'ddimK', or numbers of sections such as '10+15+20'")
    counts, kept, start = [int(word) for word in words], [], 0
    for i, count in enumerate(counts):
        size = num_timesteps // len(counts) + (i < num_timesteps % len(counts))
        if not 1 <= count <= size:
            raise ValueError(f"num_steps is {spacing}: cannot take {count} of {size} timesteps")
        step = (size - 1) / (count - 1) if count > 1 else 1.0
        position: float = 0.0
        for _ in range(count):  # summed, not multiplied, to round halves as guided-diffusion does
            kept.append(start + round(position))
            position += step
        start += size
    return np.array(kept)
