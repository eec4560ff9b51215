"""Gaussian mixtures with their exact denoiser: the oracle of tests, documents and toy experiments."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

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
    def num_components(self):
        """K, which is also the null label."""
        return self.means.shape[0]

    def sample(self, key, n):
        """n draws: (x [n, …], label int32 [n])."""
        key_label, key_x = jax.random.split(key)
        label = jax.random.categorical(key_label, jnp.log(self.weights), shape=(n,)).astype(jnp.int32)
        noise = jax.random.normal(key_x, (n, *self.means.shape[1:]), self.means.dtype)
        return self.means[label] + broadcast_left(self.stds[label], noise) * noise, label

    def eps(self, z, logsnr, label=None):
        """E[ε | z_λ = z, label] = −σ ∇_z log q(z_λ | label), exactly.

        z: [N, …]. logsnr: a scalar or [N]. Returns [N, …].
        """
        responsibility = jax.nn.softmax(self._log_joint(z, logsnr, label), axis=-1)
        sigma, offset, variance = self._components_at(z, logsnr)
        eps = broadcast_left(sigma[:, None] / variance, offset) * offset
        return jnp.sum(broadcast_left(responsibility, eps) * eps, axis=1)

    def log_prob(self, z, logsnr=jnp.inf, label=None):
        """log q(z_λ = z | label) in nats, [N]; at the default λ = ∞ the density log p(x) of the data."""
        joint = jax.nn.logsumexp(self._log_joint(z, logsnr, label), axis=-1)
        return joint - jax.nn.logsumexp(self._log_weights(label), axis=-1)

    def log_posterior(self, z, logsnr=jnp.inf):
        """log p(c | z_λ = z) of the exact classifier, [N, K]."""
        return jax.nn.log_softmax(self._log_joint(z, logsnr, None), axis=-1)

    def _components_at(self, z, logsnr):
        """σ [N], z − α μ_k [N, K, …], and the variance α² s_k² + σ² of component k at λ, [N, K]."""
        alpha, sigma = alpha_sigma(jnp.broadcast_to(jnp.asarray(logsnr, z.dtype), z.shape[:1]))
        offset = z[:, None] - broadcast_left(alpha, z[:, None]) * self.means
        return sigma, offset, alpha[:, None] ** 2 * self.stds**2 + sigma[:, None] ** 2

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
        _, offset, variance = self._components_at(z, logsnr)
        squares = jnp.sum(offset.reshape(*offset.shape[:2], -1) ** 2, axis=-1)
        dim = z[0].size
        return self._log_weights(label) - 0.5 * (squares / variance + dim * jnp.log(2 * jnp.pi * variance))
