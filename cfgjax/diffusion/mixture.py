"""Gaussian mixtures with their exact denoiser: the oracle of tests, documents and toy experiments."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key
from numpy.typing import ArrayLike

from cfgjax.diffusion.prediction import Prediction
from cfgjax.diffusion.process import RealLike, alpha_sigma, broadcast_left

Label = Int[Array | np.ndarray | np.integer, "..."] | int | None


class GaussianMixture:
    """p(x) = Σ_k weights[k] N(x; means[k], stds[k]² I), with component k as class k.

    means: [K, …]. stds, weights: [K], positive; the weights sum to 1. Raises ValueError for parameters that do not fit.
    label, in every method: a scalar or [N]; k < K conditions on component k, the null label K, or None, on nothing.
    """

    def __init__(self, means: ArrayLike, stds: ArrayLike, weights: ArrayLike) -> None:
        means, stds, weights = np.asarray(means), np.asarray(stds), np.asarray(weights)
        if not (means.ndim >= 1 and stds.shape == weights.shape == means.shape[:1]):
            raise ValueError(f"means {means.shape}, stds {stds.shape}, weights {weights.shape}: need [K, …], [K], [K]")
        if not (np.all(stds > 0) and np.all(weights > 0) and abs(weights.sum() - 1) < 1e-5):
            raise ValueError(f"stds {stds} must be positive, weights {weights} positive with sum 1")
        self.means: Float[Array, "k ..."] = _floating(means)
        self.stds: Float[Array, " k"] = _floating(stds)
        self.weights: Float[Array, " k"] = _floating(weights)

    @property
    def num_components(self) -> int:
        """K, which is also the null label."""
        return self.means.shape[0]

    def sample(self, key: Key[Array, ""], n: int) -> tuple[Float[Array, "n ..."], Int[Array, " n"]]:
        """Returns n draws and their labels."""
        key_label, key_x = jax.random.split(key)
        label = jax.random.categorical(key_label, jnp.log(self.weights), shape=(n,)).astype(jnp.int32)
        noise = jax.random.normal(key_x, (n, *self.means.shape[1:]), self.means.dtype)
        return self.means[label] + broadcast_left(self.stds[label], noise) * noise, label

    def predict(self, z: Float[Array, "n ..."], logsnr: Float[RealLike, "..."], label: Label = None) -> Prediction:
        """Returns E[x | z_λ = z, label] and E[ε | z_λ = z, label] = −σ ∇_z log q(z_λ | label), exactly.

        logsnr: a scalar or [N].
        """
        responsibility = jax.nn.softmax(self._log_joint(z, logsnr, label), axis=-1)
        alpha, sigma, offset, variance = self._components_at(z, logsnr)

        def mean(components: Float[Array, "n k ..."]) -> Float[Array, "n ..."]:
            return jnp.sum(broadcast_left(responsibility, components) * components, axis=1)

        eps = broadcast_left(sigma[:, None] / variance, offset) * offset
        x = self.means + broadcast_left(alpha[:, None] * self.stds**2 / variance, offset) * offset
        return Prediction(mean(x), mean(eps))

    def log_prob(
        self,
        z: Float[Array, "n ..."],
        logsnr: Float[RealLike, "..."] = jnp.inf,
        label: Label = None,
    ) -> Float[Array, " n"]:
        """Returns log q(z_λ = z | label) in nats; at the default λ = ∞ the density log p(x) of the data."""
        joint = jax.nn.logsumexp(self._log_joint(z, logsnr, label), axis=-1)
        return joint - jax.nn.logsumexp(self._log_weights(label), axis=-1)

    def log_posterior(self, z: Float[Array, "n ..."], logsnr: Float[RealLike, "..."] = jnp.inf) -> Float[Array, "n k"]:
        """Returns log p(c | z_λ = z) of the exact classifier."""
        return jax.nn.log_softmax(self._log_joint(z, logsnr, None), axis=-1)

    def _components_at(
        self, z: Float[Array, "n ..."], logsnr: Float[RealLike, "..."]
    ) -> tuple[Float[Array, " n"], Float[Array, " n"], Float[Array, "n k ..."], Float[Array, "n k"]]:
        """Returns α, σ, the offset z − α μ_k from each component, and its variance α² s_k² + σ² at λ."""
        alpha, sigma = alpha_sigma(jnp.broadcast_to(jnp.asarray(logsnr, z.dtype), z.shape[:1]))
        offset = z[:, None] - broadcast_left(alpha, z[:, None]) * self.means
        return alpha, sigma, offset, alpha[:, None] ** 2 * self.stds**2 + sigma[:, None] ** 2

    def _log_weights(self, label: Label) -> Float[Array, "..."]:
        """Returns log weights, [K] or [N, K], −∞ for the components that label excludes."""
        log_weights = jnp.log(self.weights)
        if label is None:
            return log_weights
        label = jnp.asarray(label)[..., None]
        allowed = (label == jnp.arange(self.num_components)) | (label == self.num_components)
        return jnp.where(allowed, log_weights, -jnp.inf)

    def _log_joint(self, z: Float[Array, "n ..."], logsnr: Float[RealLike, "..."], label: Label) -> Float[Array, "n k"]:
        """Returns log weights[k] N(z; α μ_k, (α² s_k² + σ²) I), −∞ if label excludes component k."""
        _, _, offset, variance = self._components_at(z, logsnr)
        squares = jnp.sum(offset.reshape(*offset.shape[:2], -1) ** 2, axis=-1)
        dim = z[0].size
        return self._log_weights(label) - 0.5 * (squares / variance + dim * jnp.log(2 * jnp.pi * variance))


def _floating(values: np.ndarray) -> Float[Array, "..."]:
    """Returns values as float32, or as float64 if they are and JAX has it enabled."""
    array = jnp.asarray(values)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))
