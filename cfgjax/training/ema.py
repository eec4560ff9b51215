"""Exponential moving averages of the parameters, at several rates at once."""

import jax
import jax.numpy as jnp


def init(params, rates):
    """{str(rate): copy of params}. Started as a copy, not at zero, so no bias has to be corrected."""
    return {str(float(rate)): jax.tree.map(jnp.copy, params) for rate in rates}


def update(ema, params, step, *, warmup):
    """e ← r e + (1−r) params for each rate r; with warmup, r is at most (1+n)/(10+n) after n steps.

    step: optimizer steps taken before this one, skipped ones included, int scalar.
    """

    def average(rate, old):
        r = jnp.minimum(rate, (1.0 + step) / (10.0 + step)) if warmup else rate
        return jax.tree.map(lambda e, p: e + (1 - r) * (p - e), old, params)

    return {rate: average(float(rate), old) for rate, old in ema.items()}
