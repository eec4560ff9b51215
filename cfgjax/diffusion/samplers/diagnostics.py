"""What guidance does at each level of a sampler: a `save` function of the driver for any rule that reports branches."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cfgjax.base.errors import UsageError
from cfgjax.diffusion.samplers.driver import Evaluation

NOT_ZERO = 1e-30  # added to squared norms, so that the angle to a zero vector is defined


class NoBranches(UsageError):
    """The rule does not combine two predictions."""


class GuidanceDiagnostics(NamedTuple):
    """Diagnostics of each sample at one level, [B], before clipping.

    difference: ‖ε_c − ε_u‖/√d, where c is the strong and u the weak prediction of the rule. cosine: cos(ε_c, ε_u).
    outside: share of the components of x̃ with |x̃| > 1. tilting: ½ w(1+w) ‖ε_c − ε_u‖², whose integral over λ is the
    logarithm of the weight by which a sample of guided ancestral sampling differs from the tilted density
    p(x|c)^(1+w) p(x)^(−w), with the weight w of this level.
    """

    difference: Float[Array, " b"]
    cosine: Float[Array, " b"]
    outside: Float[Array, " b"]
    tilting: Float[Array, " b"]


def guidance_diagnostics(evaluation: Evaluation) -> GuidanceDiagnostics:
    """Returns the `GuidanceDiagnostics` of a level. Raises NoBranches if the rule reports no branches."""
    if evaluation.branches is None:
        raise NoBranches("the rule combines no two predictions; diagnostics need one that does, such as cfg()")
    strong, weak, guided, w = evaluation.branches

    def flat(array: Float[Array, "b ..."]) -> Float[Array, "b d"]:
        return array.reshape(len(array), -1)

    eps_c, eps_u, x = flat(strong.eps), flat(weak.eps), flat(guided.x)
    squared = jnp.sum(jnp.square(eps_c - eps_u), axis=1)
    norms = jnp.sum(jnp.square(eps_c), axis=1) * jnp.sum(jnp.square(eps_u), axis=1)
    cosine = jnp.sum(eps_c * eps_u, axis=1) / jnp.sqrt(norms + NOT_ZERO)
    outside = jnp.mean((jnp.abs(x) > 1).astype(x.dtype), axis=1)
    w = jnp.asarray(w, x.dtype)
    return GuidanceDiagnostics(jnp.sqrt(squared / x.shape[1]), cosine, outside, 0.5 * w * (1 + w) * squared)


def tilting_integral(tilting: Float[np.ndarray, "n t"], logsnrs: Float[np.ndarray, " t"]) -> Float[np.ndarray, "n t"]:
    """Returns ∫ ½ w(1+w) ‖ε_c − ε_u‖² dλ from the first level to each level, by the trapezoidal rule."""
    steps = 0.5 * (tilting[:, 1:] + tilting[:, :-1]) * np.diff(logsnrs)
    return np.concatenate([np.zeros((len(tilting), 1)), np.cumsum(steps, axis=1)], axis=1)
