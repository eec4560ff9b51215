"""Classifiers: of clean images, for features of the embedded evaluation, and of noisy ones, for classifier guidance."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from cfgjax.nets.backbone import Backbone
from cfgjax.nets.blocks import AttentionPool, GroupNorm, Map, conv3, downsample, torch_init, zero_init
from cfgjax.nets.inception import SPATIAL_CHANNELS


class ConvNet(nn.Module):
    """A residual convolutional network: x [B, H, W, C] → {"logits": [B, K], "features": [B, F], "spatial": [B, S]}.

    channels: width of the first level. Level l has int(multipliers[l] · channels) channels, divisible by 32, on maps
    halved l times. depth: residual blocks per level. num_features: F, width of the layer before the logits.
    dropout: of the features, before the logits only. The spatial features are the first seven channels of the last
    map, flattened.
    """

    num_classes: int
    channels: int
    multipliers: Sequence[float]
    depth: int
    num_features: int
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x: Float[Array | np.ndarray, "batch ..."], *, train: bool = False
    ) -> dict[str, Float[Array, "batch _size"]]:
        factor = 2 ** (len(self.multipliers) - 1)
        if x.ndim != 4 or x.shape[1] % factor or x.shape[2] % factor:
            raise ValueError(f"need images [B, H, W, C] with H and W multiples of {factor}; the shape is {x.shape}")
        widths = [int(multiplier * self.channels) for multiplier in self.multipliers]
        h = conv3(widths[0], jnp.float32, name="in")(x)
        for level, width in enumerate(widths):
            h = downsample(h) if level else h
            for i in range(self.depth):
                h = self._residual(h, width, f"block_{level}_{i}")
        h = GroupNorm(silu=True, name="out_norm")(h)
        features = nn.silu(nn.Dense(self.num_features, name="features")(h.mean(axis=(1, 2))))
        dropped = nn.Dropout(self.dropout, name="dropout")(features, deterministic=not train)
        logits = nn.Dense(self.num_classes, name="logits")(dropped)
        spatial = h[..., :SPATIAL_CHANNELS].reshape(len(h), -1)
        return {"logits": logits, "features": features, "spatial": spatial}

    def _residual(self, x: Map, width: int, name: str) -> Map:
        """Returns x + conv(silu(norm(conv(silu(norm(x)))))), with x projected to `width` channels if it has others."""
        h = conv3(width, jnp.float32, name=f"{name}_conv_0")(GroupNorm(silu=True, name=f"{name}_norm_0")(x))
        h = conv3(width, jnp.float32, name=f"{name}_conv_1")(GroupNorm(silu=True, name=f"{name}_norm_1")(h))
        return h + (x if x.shape[-1] == width else nn.Dense(width, name=f"{name}_skip")(x))


class NoisyClassifier(Backbone, kw_only=True):
    """The downward half of ADM's U-Net: (z [B, H, W, C], time [B]) → logits float32 [B, K] of the classes.

    pool: how the last map becomes logits. "adaptive": its mean. "attention": `AttentionPool`, which fixes the image
    size, since it has a parameter for each position. "spatial" and "spatial_v2": two dense layers on the means of the
    maps of all blocks. The other fields are those of `Backbone`.
    """

    pool: str = "attention"
    POOL_WIDTH = 2048

    @nn.compact
    def __call__(
        self,
        z: Float[Array | np.ndarray, "batch ..."],
        time: Float[Array | np.ndarray, " batch"],
        *,
        train: bool = False,
    ) -> Float[Array, "batch classes"]:
        self._check(z.shape)
        if self.pool not in POOLS:
            raise ValueError(f"unknown pool {self.pool!r}; known: {', '.join(POOLS)}")
        h, maps = self._down(z, self._time(time, "time"), train)
        if self.pool in ("spatial", "spatial_v2"):
            means = [h.astype(jnp.float32).mean(axis=(1, 2)) for h in [*maps, h]]
            h = nn.Dense(self.POOL_WIDTH, kernel_init=torch_init, name="pool_0")(jnp.concatenate(means, axis=-1))
            h = nn.relu(h) if self.pool == "spatial" else GroupNorm(silu=True, name="pool_norm")(h)
            return nn.Dense(self.num_classes, kernel_init=torch_init, name="pool_1")(h)
        h = GroupNorm(silu=True, name="out_norm")(h)
        if self.pool == "adaptive":
            return nn.Dense(self.num_classes, kernel_init=zero_init, name="pool")(h.mean(axis=(1, 2)))
        if self.head_channels is None:
            raise ValueError("the attention pool needs head_channels, not num_heads")
        return AttentionPool(self.head_channels, self.num_classes, name="pool")(h)


POOLS = ("adaptive", "attention", "spatial", "spatial_v2")
