"""What the networks of ADM have in common: the fields, the embedding of time, and the way down through the levels."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from cfgjax.nets.blocks import Attention, Resample, ResBlock, conv3, time_embedding, torch_init
from cfgjax.nets.ops.conv import CONVOLUTION

products = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable, jax.checkpoint_policies.save_only_these_names(CONVOLUTION)
)
# name: for `jax.checkpoint`, what is kept of inside the blocks; () is no checkpoint
REMAT = {
    "none": (),
    "blocks": (None,),  # nothing: all of each residual and attention block is computed again
    "convolutions": (products,),  # their results; norms, SiLU and attention are computed again
}


class Backbone(nn.Module, kw_only=True):
    """Fields and blocks of `UNet` and `NoisyClassifier`.

    num_classes: K.
    channels: width of the first level; level l has int(multipliers[l] · channels), which 32 must divide.
    depth: residual blocks per level on the way down.
    attention_resolutions: heights of the maps, in pixels, that get attention after each residual block.
    num_heads or head_channels: one of them sets the attention heads, the other is None.
    legacy_attention_order: the layout of qkv, see `blocks.Attention`.
    scale_shift: AdaGN; otherwise the embedding is added.
    resblock_resample: resampling inside a residual block (BigGAN); otherwise by `Resample`, learned or fixed.
    rescale: residual sums divided by √2.
    dtype: of convolutions and matrix products, "float32" or "bfloat16".
    fused_attention: one operation in place of products and softmax, see `blocks.fused_attention`.
    remat: what the backward pass computes again, a name in REMAT.

    Raises ValueError for sizes that do not halve at every level, widths that 32 does not divide, and bad heads.
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
    def widths(self):
        """Channels of each level."""
        return [int(multiplier * self.channels) for multiplier in self.multipliers]

    def _down(self, z, emb, train):
        """(the map after the middle, the maps of every block before it)."""
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

    def _check(self, shape):
        if len(shape) != 4:
            raise ValueError(f"the network takes images [B, H, W, C]; given an array of shape {shape}")
        factor = 2 ** (len(self.multipliers) - 1)
        if shape[1] % factor or shape[2] % factor:
            raise ValueError(
                f"images of {shape[1]}×{shape[2]} cannot be halved {len(self.multipliers) - 1} times, as the "
                f"{len(self.multipliers)} multipliers {tuple(self.multipliers)} ask; need multiples of {factor}"
            )
        heights = [shape[1] >> level for level in range(len(self.multipliers))]
        if unknown := set(self.attention_resolutions) - set(heights):
            raise ValueError(f"attention_resolutions has {min(unknown)}; the maps are {heights} high")
        if (self.num_heads is None) == (self.head_channels is None):
            raise ValueError(f"num_heads is {self.num_heads}, head_channels is {self.head_channels}: set exactly one")
        if self.depth < 1 or not 0 <= self.dropout <= 1:
            raise ValueError(f"depth is {self.depth}, dropout is {self.dropout}: need at least 1, and one in [0, 1]")

    def _time(self, time, name):
        """MLP of the sinusoid of time, [B, 4 · channels]."""
        features, dtype = 4 * self.channels, jnp.dtype(self.dtype)
        emb = time_embedding(time, self.channels)
        emb = nn.Dense(features, dtype=dtype, kernel_init=torch_init, name=f"{name}_0")(emb)
        return nn.Dense(features, dtype=dtype, kernel_init=torch_init, name=f"{name}_2")(nn.silu(emb))

    def _block(self, h, emb, train, width, name):
        """A residual block, and attention where the resolution has it."""
        h = self._resblock(h, emb, train, width, f"{name}_0")
        return self._attention(h, f"{name}_1") if h.shape[1] in self.attention_resolutions else h

    def _resblock(self, h, emb, train, width, name, resample="none"):
        return self._rematerialised(ResBlock, static_argnums=(3,))(  # 3: train, self counting
            features=width,
            dropout=self.dropout,
            scale_shift=self.scale_shift,
            rescale=self.rescale,
            dtype=jnp.dtype(self.dtype),
            resample=resample,
            name=name,
        )(h, emb, train)

    def _attention(self, h, name):
        channels = h.shape[-1]
        head_channels = self.head_channels or channels // self.num_heads
        if channels % head_channels or (self.num_heads and channels % self.num_heads):
            given = f"head_channels {self.head_channels}" if self.head_channels else f"num_heads {self.num_heads}"
            raise ValueError(f"{given} does not divide the {channels} channels of the {h.shape[1]}×{h.shape[2]} maps")
        block = self._rematerialised(Attention)
        how = head_channels, self.legacy_attention_order, self.fused_attention, self.rescale, jnp.dtype(self.dtype)
        return block(*how, name=name)(h)

    def _rematerialised(self, block, **options):
        """A block's class, its insides computed again as `remat` says."""
        if self.remat not in REMAT:
            raise ValueError(f"unknown remat {self.remat!r}; known: {', '.join(REMAT)}")
        return nn.remat(block, policy=REMAT[self.remat][0], **options) if REMAT[self.remat] else block

    def _resample(self, h, emb, train, resample, name):
        if self.resblock_resample:
            return self._resblock(h, emb, train, h.shape[-1], name, resample)
        return Resample(resample, self.learned_resample, jnp.dtype(self.dtype), name=name)(h)
