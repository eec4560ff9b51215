"""The frontier in closed form: guidance of a Gaussian mixture if it sampled from the tilted density."""

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from cfgjax.diffusion.mixture import GaussianMixture

MAX_DIMENSIONS = 2  # of a mixture for quadrature on a grid
POINTS_PER_AXIS, WIDTHS = 401, 6  # of the grid; WIDTHS: standard deviations by which it extends beyond the means


def tilted_frontier(mixture: GaussianMixture, weights: Sequence[float]) -> list[dict[str, float]]:
    """Returns [{guidance_weight, entropy, log_posterior}] of p_w(x|c) ∝ p(x|c) p(c|x)^w for each w, in nats.

    log_posterior is the mean log p(c|x) over equally frequent classes. entropy is -∫ p_w log p_w, where p_w(x) is the
    mean of p_w(x|c) over c. CFG motivates guidance by this density (arXiv:2207.12598, section 3.1), but its diffused
    scores are not the guided scores, so even exact scores sample from another density. Computed by quadrature.
    mixture: in one or two dimensions.
    """
    points, cell = quadrature(mixture)
    log_posterior = np.asarray(mixture.log_posterior(points), np.float64)
    labels = range(mixture.num_components)
    log_density = np.stack([mixture.log_prob(points, label=c) for c in labels], axis=1).astype(np.float64)
    result = []
    for w in weights:
        tilted = np.exp(log_density + w * log_posterior)  # [M, K]
        tilted /= tilted.sum(axis=0) * cell
        together = tilted.mean(axis=1)
        entropy = -cell * np.sum(together * np.log(together, out=np.zeros_like(together), where=together > 0))
        mean = cell * np.sum(tilted * log_posterior, where=tilted > 0) / mixture.num_components
        result.append({"guidance_weight": float(w), "entropy": float(entropy), "log_posterior": float(mean)})
    return result


def quadrature(mixture: GaussianMixture) -> tuple[Float[Array, "m d"], float]:
    """Returns (points, volume of the cell of each) of a regular grid that covers the mixture."""
    means = np.asarray(mixture.means, np.float64)
    margin = WIDTHS * float(np.max(mixture.stds))
    low, high = means.min(axis=0) - margin, means.max(axis=0) + margin
    axes = [np.linspace(a, b, POINTS_PER_AXIS) for a, b in zip(low, high, strict=True)]
    points = np.array(list(itertools.product(*axes)))
    return jnp.asarray(points, jnp.float32), float(np.prod([axis[1] - axis[0] for axis in axes]))
