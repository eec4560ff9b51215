"""Base of the ADM networks: their fields, the embedding of time, and the downward path through the levels."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float

from cfgjax.nets.blocks import Attention, Map, Resample, ResBlock, conv3, time_embedding, torch_init
from cfgjax.nets.ops.conv import CONVOLUTION

Embedding = Float[Array, "batch features"]

products = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable, jax.checkpoint_policies.save_only_these_names(CONVOLUTION)
)
# name: the policy of `jax.checkpoint` inside each block, or () for no checkpointing
REMAT = {
    "none": (),
    "blocks": (None,),  # saves nothing: each residual and attention block is recomputed
    "convolutions": (products,),  # saves convolutions and products; norms, SiLU and attention are recomputed
}


class Backbone(nn.Module, kw_only=True):
    """Shared fields and blocks of `UNet` and `NoisyClassifier`.

    num_classes: K.
    channels: width of the first level. Level l has int(multipliers[l] · channels) channels, divisible by 32.
    depth: residual blocks per level of the downward path.
    attention_resolutions: heights in pixels of the maps that get attention after each residual block.
    num_heads, head_channels: set exactly one of them; the other is None.
    legacy_attention_order: layout of qkv, see `blocks.Attention`.
    scale_shift: use AdaGN instead of adding the embedding.
    resblock_resample: resample inside a residual block (BigGAN) instead of by `Resample`.
    learned_resample: `Resample` has a 3×3 convolution.
    rescale: divide residual sums by √2.
    dtype: of convolutions and matrix products, "float32" or "bfloat16".
    fused_attention: compute attention in one operation, see `blocks.fused_attention`.
    remat: what the backward pass recomputes, a key of REMAT.

    Raises ValueError for sizes that do not halve at every level, widths not divisible by 32, and invalid heads.
    """

    num_classes: int
    channels: int
    multipliers: Sequence[float]
    depth: int
    attention_resolutions: Sequence[int]
    num_heads: int | None = None
    head_channels: int | None = 64
    legacy_attention_order: bool = True
    scale_shift: bool = True
    resblock_resample: bool = True
    learned_resample: bool = True
    rescale: bool = False
    dropout: float = 0.0
    dtype: str = "float32"
    fused_attention: bool = False
    remat: str = "none"

    @property
    def widths(self) -> list[int]:
        """Channels of each level."""
        return [int(multiplier * self.channels) for multiplier in self.multipliers]

    def _down(
        self, z: Map | Float[np.ndarray, "batch _height _width _channels"], emb: Embedding, train: bool
    ) -> tuple[Map, list[Map]]:
        """Returns (the map after the middle block, the maps of all blocks before it)."""
        dtype, widths = jnp.dtype(self.dtype), self.widths
        h = conv3(widths[0], dtype, name="input_0_0")(z.astype(dtype))
        maps, block = [h], 1
        for level, width in enumerate(widths):
            for _ in range(self.depth):
                h = self._block(h, emb, train, width, f"input_{block}")
                maps, block = [*maps, h], block + 1
            if level < len(widths) - 1:
                h = self._resample(h, emb, train, "down", f"input_{block}_0")
                maps, block = [*maps, h], block + 1
        h = self._resblock(h, emb, train, widths[-1], "middle_0")
        h = self._attention(h, "middle_1")
        return self._resblock(h, emb, train, widths[-1], "middle_2"), maps

    def _check(self, shape: tuple[Any, ...]) -> None:
        if len(shape) != 4:
            raise ValueError(f"the network takes images [B, H, W, C], not an array of shape {shape}")
        factor = 2 ** (len(self.multipliers) - 1)
        if shape[1] % factor or shape[2] % factor:
            raise ValueError(
                f"images of {shape[1]}×{shape[2]} cannot be halved {len(self.multipliers) - 1} times, once for each "
                f"of the multipliers {tuple(self.multipliers)} after the first; need multiples of {factor}"
            )
        heights = [shape[1] >> level for level in range(len(self.multipliers))]
        if unknown := set(self.attention_resolutions) - set(heights):
            raise ValueError(f"attention_resolutions has {min(unknown)}; the maps are {heights} high")
        if (self.num_heads is None) == (self.head_channels is None):
            raise ValueError(f"num_heads is {self.num_heads}, head_channels is {self.head_channels}: set exactly one")
        if self.depth < 1 or not 0 <= self.dropout <= 1:
            raise ValueError(
                f"depth is {self.depth}, dropout is {self.dropout}: need depth of at least 1 and dropout in [0, 1]"
            )

    def _time(self, time: Float[Array | np.ndarray, " batch"], name: str) -> Embedding:
        """Returns the MLP of the sinusoidal embedding of time, [B, 4 · channels]."""
        features, dtype = 4 * self.channels, jnp.dtype(self.dtype)
        emb = time_embedding(time, self.channels)
        emb = nn.Dense(features, dtype=dtype, kernel_init=torch_init, name=f"{name}_0")(emb)
        return nn.Dense(features, dtype=dtype, kernel_init=torch_init, name=f"{name}_2")(nn.silu(emb))

    def _block(self, h: Map, emb: Embedding, train: bool, width: int, name: str) -> Map:
        """Applies a residual block, and attention if this resolution has it."""
        h = self._resblock(h, emb, train, width, f"{name}_0")
        return self._attention(h, f"{name}_1") if h.shape[1] in self.attention_resolutions else h

    def _resblock(self, h: Map, emb: Embedding, train: bool, width: int, name: str, resample: str = "none") -> Map:
        return self._rematerialised(ResBlock, static_argnums=(3,))(  # 3: train; self is argument 0
            features=width,
            dropout=self.dropout,
            scale_shift=self.scale_shift,
            rescale=self.rescale,
            dtype=jnp.dtype(self.dtype),
            resample=resample,
            name=name,
        )(h, emb, train)

    def _attention(self, h: Map, name: str) -> Map:
        channels = h.shape[-1]
        head_channels = self.head_channels or channels // (self.num_heads or 1)  # one of them is set, see `_check`
        if channels % head_channels or (self.num_heads and channels % self.num_heads):
            field = f"head_channels {self.head_channels}" if self.head_channels else f"num_heads {self.num_heads}"
            raise ValueError(f"{field} does not divide the {channels} channels of the {h.shape[1]}×{h.shape[2]} maps")
        block = self._rematerialised(Attention)
        return block(
            head_channels=head_channels,
            legacy_order=self.legacy_attention_order,
            fused=self.fused_attention,
            rescale=self.rescale,
            dtype=jnp.dtype(self.dtype),
            name=name,
        )(h)

    def _rematerialised(self, block: type[nn.Module], *, static_argnums: tuple[int, ...] = ()) -> type[nn.Module]:
        """Returns the class of a block whose inside is recomputed as `remat` says."""
        if self.remat not in REMAT:
            raise ValueError(f"unknown remat {self.remat!r}; known: {', '.join(REMAT)}")
        if not REMAT[self.remat]:
            return block
        return nn.remat(block, policy=REMAT[self.remat][0], static_argnums=static_argnums)

    def _resample(self, h: Map, emb: Embedding, train: bool, resample: str, name: str) -> Map:
        if self.resblock_resample:
            return self._resblock(h, emb, train, h.shape[-1], name, resample)
        return Resample(resample, self.learned_resample, jnp.dtype(self.dtype), name=name)(h)
