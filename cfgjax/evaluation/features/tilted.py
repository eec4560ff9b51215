"""The frontier in closed form: what guidance would do to a Gaussian mixture if it sampled the tilted density."""

import itertools

import jax.numpy as jnp
import numpy as np

MOST_DIMENSIONS = 2  # that a grid can fill
POINTS_PER_AXIS, WIDTHS = 401, 6  # of the grid, which reaches so many standard deviations beyond the means


def tilted_frontier(mixture, weights):
    """[{guidance_weight, entropy, log_posterior}] of p_w(x|c) ∝ p(x|c) p(c|x)^w for each w, by quadrature, nats.

    log_posterior is the mean log p(c|x) over equally frequent classes, entropy that of their density together:
    -∫ p_w log p_w with p_w(x) the mean of p_w(x|c) over c. It is the density that CFG motivates guidance with
    (arXiv:2207.12598, section 3.1); diffusing it does not give the guided scores, so that even exact ones sample
    another. mixture: a `GaussianMixture` in one or two dimensions.
    """
    points, cell = quadrature(mixture)
    log_posterior = np.asarray(mixture.log_posterior(points), np.float64)
    labels = range(mixture.num_components)
    log_density = np.stack([mixture.log_prob(points, label=c) for c in labels], axis=1).astype(np.float64)
    found = []
    for w in weights:
        tilted = np.exp(log_density + w * log_posterior)  # [M, K]
        tilted /= tilted.sum(axis=0) * cell
        together = tilted.mean(axis=1)
        entropy = -cell * np.sum(together * np.log(together, out=np.zeros_like(together), where=together > 0))
        mean = cell * np.sum(tilted * log_posterior, where=tilted > 0) / mixture.num_components
        found.append({"guidance_weight": float(w), "entropy": float(entropy), "log_posterior": float(mean)})
    return found


def quadrature(mixture):
    """(points [M, D], volume of each one's cell) of a regular grid over all that has a density to speak of."""
    means = np.asarray(mixture.means, np.float64)
    margin = WIDTHS * float(np.max(mixture.stds))
    low, high = means.min(axis=0) - margin, means.max(axis=0) + margin
    axes = [np.linspace(a, b, POINTS_PER_AXIS) for a, b in zip(low, high, strict=True)]
    points = np.array(list(itertools.product(*axes)))
    return jnp.asarray(points, jnp.float32), float(np.prod([axis[1] - axis[0] for axis in axes]))
