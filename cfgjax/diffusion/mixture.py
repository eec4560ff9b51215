"""Gaussian mixtures with their exact denoiser: the oracle of tests, documents and toy experiments."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from cfgjax.diffusion.prediction import Prediction
from cfgjax.diffusion.process import alpha_sigma, broadcast_left


@dataclasses.dataclass(frozen=True, eq=False)
class GaussianMixture:
    """p(x) = Σ_k weights[k] N(x; means[k], stds[k]² I), with component k as class k.

    means: [K, …], stds: [K], weights: [K], positive and summing to 1. In every method label is int, a scalar or [N]:
    k < K conditions on component k; the null label K, or None, conditions on nothing.
    """

    means: jax.Array
    stds: jax.Array
    weights: jax.Array

    def __post_init__(self):
        means, stds, weights = (np.asarray(a) for a in (self.means, self.stds, self.weights))
        if not (means.ndim >= 1 and stds.shape == weights.shape == means.shape[:1]):
            raise ValueError(f"means {means.shape}, stds {stds.shape}, weights {weights.shape}: need [K, …], [K], [K]")
        if not (np.all(stds > 0) and np.all(weights > 0) and abs(weights.sum() - 1) < 1e-5):
            raise ValueError(f"stds {stds} must be positive, weights {weights} positive with sum 1")
        for name, value in (("means", means), ("stds", stds), ("weights", weights)):
            array = jnp.asarray(value)  # float64 only where JAX has it enabled
            object.__setattr__(self, name, array.astype(jnp.promote_types(array.dtype, jnp.float32)))

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

    def predict(
        self, z: Float[Array, "n ..."], logsnr: Any, label: Int[Array, "..."] | int | None = None
    ) -> Prediction:
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
        self, z: Float[Array, "n ..."], logsnr: Any = jnp.inf, label: Int[Array, "..."] | int | None = None
    ) -> Float[Array, " n"]:
        """Returns log q(z_λ = z | label) in nats; at the default λ = ∞ the density log p(x) of the data."""
        joint = jax.nn.logsumexp(self._log_joint(z, logsnr, label), axis=-1)
        return joint - jax.nn.logsumexp(self._log_weights(label), axis=-1)

    def log_posterior(self, z: Float[Array, "n ..."], logsnr: Any = jnp.inf) -> Float[Array, "n k"]:
        """Returns log p(c | z_λ = z) of the exact classifier."""
        return jax.nn.log_softmax(self._log_joint(z, logsnr, None), axis=-1)

    def _components_at(self, z, logsnr):
        """Returns α [N], σ [N], z − α μ_k [N, K, …], and the variance α² s_k² + σ² of component k at λ, [N, K]."""
        alpha, sigma = alpha_sigma(jnp.broadcast_to(jnp.asarray(logsnr, z.dtype), z.shape[:1]))
        offset = z[:, None] - broadcast_left(alpha, z[:, None]) * self.means
        return alpha, sigma, offset, alpha[:, None] ** 2 * self.stds**2 + sigma[:, None] ** 2

    def _log_weights(self, label):
        """log weights [K] or [N, K], −∞ for the components that label excludes."""
        log_weights = jnp.log(self.weights)
        if label is None:
            return log_weights
        label = jnp.asarray(label)[..., None]
        allowed = (label == jnp.arange(self.num_components)) | (label == self.num_components)
        return jnp.where(allowed, log_weights, -jnp.inf)

    def _log_joint(self, z, logsnr, label):
        """log weights[k] N(z; α μ_k, (α² s_k² + σ²) I), [N, K], −∞ where label excludes component k."""
        _, _, offset, variance = self._components_at(z, logsnr)
        squares = jnp.sum(offset.reshape(*offset.shape[:2], -1) ** 2, axis=-1)
        dim = z[0].size
        return self._log_weights(label) - 0.5 * (squares / variance + dim * jnp.log(2 * jnp.pi * variance))
