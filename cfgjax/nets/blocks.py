"""The blocks of the ADM networks (arXiv:2105.05233, section 3 and appendix), NHWC.

Parameters are float32. `dtype` is what convolutions, matrix products and the residual stream compute in; normalisation,
softmax and the time embedding are float32 always. Submodule names are the checkpoint format.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from cfgjax.nets.ops.conv import conv_general
from cfgjax.nets.ops.group_norm import group_norm

# torch's default for convolutions and linear layers, U(−1/√fan_in, 1/√fan_in), which ADM trains from.
torch_init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
zero_init = nn.initializers.zeros_init()


def time_embedding(time, channels):
    """Sinusoid of time, cosine first: [cos(t ω), sin(t ω)], ω_i = exp(−log(10⁴) i / half), half = channels / 2.

    time: float [B], about 0 … 1000. Returns float32 [B, channels].
    """
    half = channels // 2
    omega = jnp.exp(-math.log(10_000) * jnp.arange(half, dtype=jnp.float32) / half)
    angle = time.astype(jnp.float32)[:, None] * omega
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


class GroupNorm(nn.Module):
    """GroupNorm of x [B, …, C] in float32, with SiLU behind it if silu; returned in dtype.

    scale_shift: optional (scale, shift), each [B, C]: AdaGN, GN(x) (1 + scale) + shift.
    """

    groups: int = 32
    epsilon: float = 1e-5
    silu: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x, scale_shift=None):
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
        gain, bias = (jnp.broadcast_to(a, (len(x), channels)) for a in (gain, bias))
        return group_norm(x, gain, bias, self.groups, self.epsilon, self.silu, jnp.dtype(self.dtype))


def conv3(features, dtype, *, name, stride=1, kernel_init=torch_init):
    """3×3 convolution padded by one on every side, as torch pads; XLA's SAME would pad (0, 1) at stride 2."""
    padding, how = ((1, 1), (1, 1)), {"dtype": dtype, "kernel_init": kernel_init, "name": name}
    return nn.Conv(features, (3, 3), strides=stride, padding=padding, conv_general_dilated=conv_general, **how)


def downsample(x):
    """2×2 average of x [B, H, W, C]."""
    b, h, w, c = x.shape
    return x.reshape(b, h // 2, 2, w // 2, 2, c).mean(axis=(2, 4))


def upsample(x):
    """Nearest-neighbour doubling of x [B, H, W, C]."""
    return x.repeat(2, axis=1).repeat(2, axis=2)


RESAMPLE = {"none": lambda x: x, "down": downsample, "up": upsample}


def residual_sum(x, h, rescale):
    """x + h, divided by √2 if rescale (which ADM's ablation finds to hurt)."""
    return (x + h) / math.sqrt(2) if rescale else x + h


class ResBlock(nn.Module):
    """GN, SiLU, conv3, AdaGN (or the embedding added), SiLU, dropout, zero conv3, plus the skip.

    x: [B, H, W, C], emb: [B, E]. resample: "none", "down" or "up", on both branches (BigGAN).
    """

    features: int
    dropout: float
    scale_shift: bool
    rescale: bool
    dtype: jnp.dtype
    resample: str = "none"

    @nn.compact
    def __call__(self, x, emb, train):
        resample = RESAMPLE[self.resample]
        h = GroupNorm(silu=True, dtype=self.dtype, name="in_norm")(x)
        h = conv3(self.features, self.dtype, name="in_conv")(resample(h))
        emb_features = 2 * self.features if self.scale_shift else self.features
        emb = nn.Dense(emb_features, dtype=self.dtype, kernel_init=torch_init, name="emb")(nn.silu(emb))
        out_norm = GroupNorm(silu=True, dtype=self.dtype, name="out_norm")
        h = out_norm(h, jnp.split(emb, 2, axis=-1)) if self.scale_shift else out_norm(h + emb[:, None, None])
        h = nn.Dropout(self.dropout, name="dropout")(h, deterministic=not train)
        h = conv3(self.features, self.dtype, name="out_conv", kernel_init=zero_init)(h)
        x = resample(x)
        if x.shape[-1] != self.features:
            x = nn.Dense(self.features, dtype=self.dtype, kernel_init=torch_init, name="skip")(x)  # a 1×1 convolution
        return residual_sum(x, h, self.rescale)


def attend(qkv, heads, legacy_order, fused=False):
    """softmax(q kᵀ / √C) v of qkv [B, N, 3 · heads · C], [B, N, heads · C]; legacy_order, fused as in `Attention`."""
    batch, positions, width = qkv.shape
    head_channels = width // (3 * heads)
    if legacy_order:
        q, k, v = jnp.split(qkv.reshape(batch, positions, heads, 3 * head_channels), 3, axis=-1)
    else:
        q, k, v = jnp.moveaxis(qkv.reshape(batch, positions, 3, heads, head_channels), 2, 0)
    return (fused_attention if fused else plain_attention)(q, k, v).reshape(batch, positions, width // 3)


def plain_attention(q, k, v):
    """softmax(q kᵀ / √C) v of q, k, v [B, N, heads, C], shaped as they are, by two products and a softmax."""
    scale = q.shape[-1] ** -0.25  # on q and on k, which is safer in bfloat16 than on the product
    logits = jnp.einsum("bqhc,bkhc->bhqk", q * scale, k * scale, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits, axis=-1).astype(q.dtype)
    return jnp.einsum("bhqk,bkhc->bqhc", weights, v)


def fused_attention(q, k, v):
    """`plain_attention` as one operation: on GPUs, in 16 bits, cuDNN's, which never holds all N² weights; else XLA's.

    cuDNN takes C a multiple of 8, up to 128. Softmax is float32 in both.
    """
    cudnn = jax.default_backend() == "gpu" and q.dtype.itemsize == 2
    return jax.nn.dot_product_attention(q, k, v, implementation="cudnn" if cudnn else "xla")


class Attention(nn.Module):
    """Self-attention over the positions of x [B, H, W, C], with a zero-initialised projection.

    head_channels: C per head. legacy_order: the 3C channels of qkv are laid out heads-major (each head's q, k, v
    adjacent); otherwise q, k, v are split first and each is heads-major. fused: by `fused_attention`.
    """

    head_channels: int
    legacy_order: bool
    fused: bool
    rescale: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        batch, height, width, channels = x.shape
        heads = channels // self.head_channels
        h = GroupNorm(dtype=self.dtype, name="norm")(x).reshape(batch, height * width, channels)
        qkv = nn.Dense(3 * channels, dtype=self.dtype, kernel_init=torch_init, name="qkv")(h)
        h = attend(qkv, heads, self.legacy_order, self.fused)
        h = nn.Dense(channels, dtype=self.dtype, kernel_init=zero_init, name="proj")(h)
        return residual_sum(x, h.reshape(x.shape), self.rescale)


class AttentionPool(nn.Module):
    """x [B, H, W, C] → [B, features]: attention of the mean over positions to all of them, after CLIP."""

    head_channels: int
    features: int

    @nn.compact
    def __call__(self, x):
        channels = x.shape[-1]
        h = x.reshape(len(x), -1, channels)
        h = jnp.concatenate([h.mean(axis=1, keepdims=True), h], axis=1)
        h = h + self.param("position", nn.initializers.normal(channels**-0.5), h.shape[1:], jnp.float32)
        h = attend(nn.Dense(3 * channels, kernel_init=torch_init, name="qkv")(h), channels // self.head_channels, False)
        return nn.Dense(self.features, kernel_init=torch_init, name="proj")(h[:, 0])


class Resample(nn.Module):
    """Resampling outside the residual blocks: a strided or a following 3×3 convolution if learned, else fixed."""

    resample: str
    learned: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        if not self.learned:
            return RESAMPLE[self.resample](x)
        if self.resample == "down":
            return conv3(x.shape[-1], self.dtype, name="conv", stride=2)(x)
        return conv3(x.shape[-1], self.dtype, name="conv")(upsample(x))
