"""The blocks of the ADM networks (arXiv:2105.05233, section 3 and appendix), NHWC.

Parameters are float32. Convolutions, matrix products and the residual stream are computed in `dtype`; normalisation,
softmax and the time embedding always in float32. Submodule names are the checkpoint format.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import DTypeLike
from jaxtyping import Float

from cfgjax.nets.ops.conv import conv_general
from cfgjax.nets.ops.group_norm import group_norm
from cfgjax.nets.ops.platform import traced_platform

# torch's default for convolutions and linear layers, U(−1/√fan_in, 1/√fan_in), which ADM trains from.
torch_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
zero_init = nn.initializers.zeros_init()

Map = Float[Array, "batch _height _width _channels"]  # an underscore: the size may change within a call
Heads = Float[Array, "batch positions heads channels"]
ScaleShift = tuple[Float[Array, "batch channels"], Float[Array, "batch channels"]]


def time_embedding(time: Float[Array | np.ndarray, " batch"], channels: int) -> Float[Array, "batch features"]:
    """Returns [cos(t ω), sin(t ω)], float32 [B, channels], with ω_i = exp(−log(10⁴) i / half), half = channels / 2.

    time: about 0 … 1000.
    """
    half = channels // 2
    omega = jnp.exp(-math.log(10_000) * jnp.arange(half, dtype=jnp.float32) / half)
    angle = time.astype(jnp.float32)[:, None] * omega
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class GroupNorm(nn.Module):
    """GroupNorm of x, computed in float32 and returned in dtype, followed by SiLU if `silu`.

    scale_shift: optional (scale, shift) of AdaGN, GN(x) (1 + scale) + shift.
    """

    groups: int = 32
    epsilon: float = 1e-5
    silu: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *positions channels"], scale_shift: ScaleShift | None = None
    ) -> Float[Array, "batch *positions channels"]:
        channels = x.shape[-1]
        if channels % self.groups:
            below = channels // self.groups * self.groups
            use = f"{below} or {below + self.groups}" if below else f"{self.groups}"
            raise ValueError(
                f"{channels} channels are not divisible by the {self.groups} groups of GroupNorm; use {use}"
            )
        gain = self.param("scale", nn.initializers.ones_init(), (channels,), jnp.float32)
        bias = self.param("bias", zero_init, (channels,), jnp.float32)
        if scale_shift is not None:
            scale, shift = (s.astype(jnp.float32) for s in scale_shift)
            gain, bias = gain * (1 + scale), bias * (1 + scale) + shift
        gain, bias = (jnp.broadcast_to(a, (x.shape[0], channels)) for a in (gain, bias))
        return group_norm(x, gain, bias, self.groups, self.epsilon, self.silu, jnp.dtype(self.dtype))


def conv3(
    features: int,
    dtype: DTypeLike,
    *,
    name: str,
    stride: int = 1,
    kernel_init: nn.initializers.Initializer = torch_init,
) -> nn.Conv:
    """Returns a 3×3 convolution padded by one on every side, as in torch; XLA's SAME would pad (0, 1) at stride 2."""
    return nn.Conv(
        features,
        (3, 3),
        strides=stride,
        padding=((1, 1), (1, 1)),
        conv_general_dilated=conv_general,
        dtype=dtype,
        kernel_init=kernel_init,
        name=name,
    )


def downsample(x: Map) -> Map:
    """Returns the means of x over 2×2 pixels."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def upsample(x: Map) -> Map:
    """Returns x at twice the height and width, by nearest neighbour."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


RESAMPLE: dict[str, Callable[[Map], Map]] = {"none": lambda x: x, "down": downsample, "up": upsample}


def residual_sum(x: Float[Array, "*shape"], h: Float[Array, "*shape"], rescale: bool) -> Float[Array, "*shape"]:
    """Returns x + h, divided by √2 if `rescale` (which hurts in ADM's ablation)."""
    return (x + h) / math.sqrt(2) if rescale else x + h


class ResBlock(nn.Module):
    """GN, SiLU, conv3, AdaGN (or the embedding added), SiLU, dropout, zero conv3, plus the skip.

    resample: "none", "down" or "up", applied to both branches (BigGAN).
    """

    features: int
    dropout: float
    scale_shift: bool
    rescale: bool
    dtype: DTypeLike
    resample: str = "none"

    @nn.compact
    def __call__(self, x: Map, emb: Float[Array, "batch features"], train: bool) -> Map:
        resample = RESAMPLE[self.resample]
        h = GroupNorm(silu=True, dtype=self.dtype, name="in_norm")(x)
        h = conv3(self.features, self.dtype, name="in_conv")(resample(h))
        emb_features = 2 * self.features if self.scale_shift else self.features
        emb = nn.Dense(emb_features, dtype=self.dtype, kernel_init=torch_init, name="emb")(nn.silu(emb))
        out_norm = GroupNorm(silu=True, dtype=self.dtype, name="out_norm")
        if self.scale_shift:
            scale, shift = jnp.split(emb, 2, axis=-1)
            h = out_norm(h, (scale, shift))
        else:
            h = out_norm(h + emb[:, None, None])
        h = nn.Dropout(self.dropout, name="dropout")(h, deterministic=not train)
        h = conv3(self.features, self.dtype, name="out_conv", kernel_init=zero_init)(h)
        x = resample(x)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype, kernel_init=torch_init, name="skip")(x)  # a 1×1 convolution
        return residual_sum(x, h, self.rescale)


def attend(
    qkv: Float[Array, "batch positions width"], heads: int, legacy_order: bool
) -> Float[Array, "batch positions channels"]:
    """Returns softmax(q kᵀ / √C) v, [B, N, heads · C], of qkv [B, N, 3 · heads · C]. See `Attention`."""
    batch, positions, width = qkv.shape
    return plain_attention(*split_heads(qkv, heads, legacy_order)).reshape(batch, positions, width // 3)


def split_heads(
    qkv: Float[Array, "batch positions width"], heads: int, legacy_order: bool
) -> tuple[Heads, Heads, Heads]:
    """Returns queries, keys and values, each [B, N, heads, C], of qkv [B, N, 3 · heads · C]. See `Attention`."""
    batch, positions, width = qkv.shape
    head_channels = width // (3 * heads)
    if legacy_order:
        q, k, v = jnp.split(qkv.reshape(batch, positions, heads, 3 * head_channels), 3, axis=-1)
    else:
        q, k, v = jnp.moveaxis(qkv.reshape(batch, positions, 3, heads, head_channels), 2, 0)
    return q, k, v


def plain_attention(q: Heads, k: Heads, v: Heads) -> Heads:
    """Returns softmax(q kᵀ / √C) v, computed as two products and a softmax."""
    scale = q.shape[-1] ** -0.25  # of q and of k: safer in bfloat16 than scaling their product
    logits = jnp.einsum("bqhc,bkhc->bhqk", q * scale, k * scale, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits, axis=-1).astype(q.dtype)
    return jnp.einsum("bhqk,bkhc->bqhc", weights, v)


def fused_attention(q: Heads, k: Heads, v: Heads) -> Heads:
    """Returns `plain_attention` as one operation: cuDNN's on GPUs in 16 bits, otherwise XLA's.

    The backward pass keeps no N² weights: cuDNN never stores all of them, and XLA's form recomputes them. cuDNN needs C
    to be a multiple of 8, up to 128. Softmax is float32 in both.
    """
    if traced_platform() == "gpu" and q.dtype.itemsize == 2:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    return jax.checkpoint(functools.partial(jax.nn.dot_product_attention, implementation="xla"))(q, k, v)


class Attention(nn.Module):
    """Self-attention over the positions of x, with a zero-initialised projection.

    head_channels: channels per head. legacy_order: the channels of qkv are laid out heads-major (q, k, v of each head
    are adjacent); otherwise they are split into q, k, v first, each heads-major. fused: use `fused_attention`.
    """

    head_channels: int
    legacy_order: bool
    fused: bool
    rescale: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch height width channels"]:
        batch, height, width, channels = x.shape
        heads = channels // self.head_channels
        h = GroupNorm(dtype=self.dtype, name="norm")(x).reshape(batch, height * width, channels)
        qkv = nn.Dense(3 * channels, dtype=self.dtype, kernel_init=torch_init, name="qkv")(h)
        q, k, v = split_heads(qkv, heads, self.legacy_order)
        h = self.mixed_values(q, k, v, (height, width)).reshape(batch, height * width, channels)
        h = nn.Dense(channels, dtype=self.dtype, kernel_init=zero_init, name="proj")(h)
        return residual_sum(x, h.reshape(x.shape), self.rescale)

    def mixed_values(self, q: Heads, k: Heads, v: Heads, grid: tuple[int, int]) -> Heads:
        """Returns softmax(q kᵀ / √C) v. grid: height and width of the positions, for `nets.perturbation`."""
        return (fused_attention if self.fused else plain_attention)(q, k, v)


class AttentionPool(nn.Module):
    """Attention pooling as in CLIP: the mean over positions attends to all positions, [B, H, W, C] → [B, features]."""

    head_channels: int
    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch features"]:
        channels = x.shape[-1]
        h = x.reshape(x.shape[0], -1, channels)
        h = jnp.concatenate([h.mean(axis=1, keepdims=True), h], axis=1)
        h = h + self.param("position", nn.initializers.normal(channels**-0.5), h.shape[1:], jnp.float32)
        h = attend(nn.Dense(3 * channels, kernel_init=torch_init, name="qkv")(h), channels // self.head_channels, False)
        return nn.Dense(self.features, kernel_init=torch_init, name="proj")(h[:, 0])


class Resample(nn.Module):
    """Resampling outside the residual blocks, by a factor of 2.

    learned: downsampling is a strided 3×3 convolution, and upsampling is followed by one; otherwise both are fixed.
    """

    resample: str
    learned: bool
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Map) -> Map:
        if not self.learned:
            return RESAMPLE[self.resample](x)
        if self.resample == "down":
            return conv3(x.shape[-1], self.dtype, name="conv", stride=2)(x)
        return conv3(x.shape[-1], self.dtype, name="conv")(upsample(x))
