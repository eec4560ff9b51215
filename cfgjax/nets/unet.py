"""The U-Net of ADM, "Diffusion Models Beat GANs" (arXiv:2105.05233), which classifier-free guidance also uses."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cfgjax.nets.backbone import Backbone
from cfgjax.nets.blocks import GroupNorm, conv3, zero_init


class UNet(Backbone, kw_only=True):
    """ε_θ(z, time, label): z [B, H, W, C], time [B] in about 0 … 1000, label int [B] → float32 [B, H, W, out_channels].

    Fields besides those of `Backbone`, whose depth has one residual block more on the way up:
    out_channels: C, or 2C with learned variance (ε first).
    conditional: whether label is an input; otherwise it is ignored. null_label: a row K for "no condition".
    low_res: whether a smaller image is an input, low_res [B, h, w, C], which is resized (bilinear) to z's size and
    joined to its channels: ADM's upsampler. low_res_noise: whether low_res may have noise, of a level that is
    told as low_res_time [B] in the units of time (Ho et al. 2021, arXiv:2106.15282, conditioning augmentation).
    train: dropout on, drawing from the rng stream "dropout".
    """

    out_channels: int
    conditional: bool = True
    null_label: bool = True
    low_res: bool = False
    low_res_noise: bool = False

    @nn.compact
    def __call__(self, z, time, label, *, low_res=None, low_res_time=None, train=False):
        self._check(z.shape)
        if (low_res is None) == self.low_res or (low_res_time is None) == self.low_res_noise:
            given = {"low_res": low_res, "low_res_time": low_res_time}
            names = " and ".join(name for name, value in given.items() if value is not None) or "no low_res"
            fields = f"model.low_res is {self.low_res}, model.low_res_noise {self.low_res_noise}"
            raise ValueError(f"given {names}; {fields}")
        emb = self._embedding(time, label, low_res_time)
        if low_res is not None:
            resized = jax.image.resize(low_res, (len(z), *z.shape[1:3], low_res.shape[-1]), "bilinear")
            z = jnp.concatenate([z, resized.astype(z.dtype)], axis=-1)
        h, skips = self._down(z, emb, train)

        block = 0
        for level, width in reversed(list(enumerate(self.widths))):
            for i in range(self.depth + 1):
                h = self._block(jnp.concatenate([h, skips.pop()], axis=-1), emb, train, width, f"output_{block}")
                if level > 0 and i == self.depth:
                    position = 2 if h.shape[1] in self.attention_resolutions else 1
                    h = self._resample(h, emb, train, "up", f"output_{block}_{position}")
                block += 1

        dtype = jnp.dtype(self.dtype)
        h = GroupNorm(silu=True, dtype=dtype, name="out_norm")(h)
        return conv3(self.out_channels, dtype, name="out_conv", kernel_init=zero_init)(h).astype(jnp.float32)

    def _embedding(self, time, label, low_res_time):
        """The embedding of time plus the label's row, and that of the level of low_res, [B, 4 · channels]."""
        emb = self._time(time, "time")
        if self.low_res_noise:
            emb = emb + self._time(low_res_time, "low_res_time")
        if self.conditional:
            shape = (self.num_classes + self.null_label, emb.shape[-1])
            table = self.param("label", nn.initializers.normal(1.0), shape, jnp.float32)
            emb = emb + table[label].astype(emb.dtype)
        return emb
