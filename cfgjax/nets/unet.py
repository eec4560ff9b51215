"""The U-Net of ADM, "Diffusion Models Beat GANs" (arXiv:2105.05233), which classifier-free guidance also uses."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jaxtyping import Float, Int

from cfgjax.nets.backbone import Backbone, Embedding
from cfgjax.nets.blocks import GroupNorm, conv3, zero_init


class UNet(Backbone, kw_only=True):
    """ε_θ(z, time, label): z [B, H, W, C], time [B] in about 0 … 1000, label [B] → float32 [B, H, W, out_channels].

    Fields besides those of `Backbone` (the upward path has depth + 1 residual blocks per level):
    out_channels: C, or 2C with learned variance (ε first).
    conditional: use the label; otherwise it is ignored. null_label: the label K means "no condition".
    low_res: ADM's upsampler. Takes a smaller image low_res [B, h, w, C], resizes it (bilinear) to z's size and appends
    its channels to those of z. low_res_noise: low_res may be noisy, and its noise level is the input low_res_time [B],
    in the units of time (conditioning augmentation, Ho et al. 2021, arXiv:2106.15282).
    train: enables dropout, drawn from the rng stream "dropout".
    """

    out_channels: int
    conditional: bool = True
    null_label: bool = True
    low_res: bool = False
    low_res_noise: bool = False

    @nn.compact
    def __call__(
        self,
        z: Float[Array | np.ndarray, "batch ..."],
        time: Float[Array | np.ndarray, " batch"],
        label: Int[Array | np.ndarray, " batch"],
        *,
        low_res: Float[Array | np.ndarray, "batch low_height low_width low_channels"] | None = None,
        low_res_time: Float[Array | np.ndarray, " batch"] | None = None,
        train: bool = False,
    ) -> Float[Array, "batch height width out_channels"]:
        self._check(z.shape)
        if (low_res is None) == self.low_res or (low_res_time is None) == self.low_res_noise:
            inputs = {"low_res": low_res, "low_res_time": low_res_time}
            names = " and ".join(name for name, value in inputs.items() if value is not None) or "no low_res"
            fields = f"model.low_res is {self.low_res}, model.low_res_noise is {self.low_res_noise}"
            raise ValueError(f"the network was called with {names}; {fields}")
        emb = self._embedding(time, label, low_res_time)
        if low_res is not None:
            resized = jax.image.resize(low_res, (z.shape[0], *z.shape[1:3], low_res.shape[-1]), "bilinear")
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

    def _embedding(
        self,
        time: Float[Array | np.ndarray, " batch"],
        label: Int[Array | np.ndarray, " batch"],
        low_res_time: Float[Array | np.ndarray, " batch"] | None,
    ) -> Embedding:
        """Returns the sum of the embeddings of time, label and low_res_time, [B, 4 · channels]."""
        emb = self._time(time, "time")
        if low_res_time is not None:
            emb = emb + self._time(low_res_time, "low_res_time")
        if self.conditional:
            shape = (self.num_classes + self.null_label, emb.shape[-1])
            table = self.param("label", nn.initializers.normal(1.0), shape, jnp.float32)
            emb = emb + table[label].astype(emb.dtype)
        return emb
