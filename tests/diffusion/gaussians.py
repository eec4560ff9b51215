"""Predictors of centred Gaussians, for which guidance has solutions in closed form."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from cfgjax.diffusion.guidance import on_grid, on_labels
from cfgjax.diffusion.prediction import Prediction
from cfgjax.diffusion.process import alpha_sigma, broadcast_left
from cfgjax.diffusion.samplers import ddim, sample

STD, WIDE, NULL = 0.5, 1.0, 7  # of p(x|c) and of p(x); the null label is neither 0 nor the number of classes
LO, HI, W = 0.3, 2.0, 1.5


def predict(z, logsnr, label):
    """Of p(x|c) = N(0, STD²) for every label c but NULL, whose x is N(0, WIDE²)."""
    alpha, sigma = (broadcast_left(scale, z) for scale in alpha_sigma(logsnr))
    variance = broadcast_left(jnp.where(label == NULL, WIDE, STD), z) ** 2
    total = alpha**2 * variance + sigma**2
    return Prediction(alpha * variance * z / total, sigma * z / total)


def bind(rule, w=W, n=1, grid=None, predict=predict):
    """The denoiser of a rule for labels 0, with what it gives in steps of the grid."""
    cond = jnp.zeros(n, int)
    rule = on_labels(rule if grid is None else on_grid(rule, grid), lambda label: jnp.broadcast_to(label, (n,)))
    return rule(predict, cond, jnp.full_like(cond, NULL), w)


def keys(n):
    return jax.random.split(jax.random.key(0), n)


def grid(num_steps=8001, edges=(LO, HI)):
    """λ from −14 to 14, with the λ of the edges ς in it, between two levels each."""
    points = [-14.0, *(-2 * np.log(edge) for edge in sorted(edges, reverse=True)), 14.0]
    parts = [np.linspace(a, b, num_steps // len(points)) for a, b in itertools.pairwise(points)]
    return np.unique(np.concatenate(parts))


def final_std(rule, w=W, levels=None):
    """The standard deviation of the samples that DDIM draws, in float64."""
    levels = grid() if levels is None else levels
    with jax.enable_x64(True):
        z = jnp.ones((1, 1))  # the sampler is linear in z
        draw = jax.jit(lambda rule, levels: sample(ddim(), bind(rule, w, grid=levels), keys(1), z, levels))
        return float(draw(rule, jnp.asarray(levels))[0, 0])


def solution(w, low=0.0, high=np.inf):
    """The factor by which weight w in (low, high] of ς changes the standard deviation STD."""
    ratio = lambda variance: (variance + low**2) / (variance + high**2) if np.isfinite(high) else variance + low**2
    return (ratio(STD**2) / ratio(WIDE**2)) ** (w / 2)
