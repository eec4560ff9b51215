"""A residual multi-layer perceptron for toy data without spatial structure."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from cfgjax.nets.blocks import time_embedding, zero_init


class MLP(nn.Module):
    """ε_θ(z, time, label) for z [B, D]: `depth` residual SiLU layers of `width`, conditioned by addition.

    Called like `nets.unet.UNet`, with D in place of [H, W, C]. out_channels: D. It has no dropout: `train` is ignored.
    """

    out_channels: int
    num_classes: int
    width: int
    depth: int

    @nn.compact
    def __call__(
        self,
        z: Float[Array | np.ndarray, "batch ..."],
        time: Float[Array | np.ndarray, " batch"],
        label: Int[Array | np.ndarray, " batch"],
        *,
        train: bool = False,
    ) -> Float[Array, "batch out_channels"]:
        if z.ndim != 2:
            raise ValueError(f"an MLP takes points [B, D], not an array of shape {z.shape}")
        table = self.param("label", nn.initializers.normal(1.0), (self.num_classes + 1, self.width), jnp.float32)
        emb = nn.Dense(self.width, name="time")(time_embedding(time, self.width)) + table[label]
        h = nn.Dense(self.width, name="in")(z)
        for i in range(self.depth):
            residual = nn.Dense(self.width, name=f"hidden_{i}_0")(nn.silu(h + emb))
            h = h + nn.Dense(self.width, kernel_init=zero_init, name=f"hidden_{i}_1")(nn.silu(residual))
        return nn.Dense(self.out_channels, kernel_init=zero_init, name="out")(nn.silu(h)).astype(jnp.float32)
