"""The PyTorch peers: the U-Net of ADM in plain modules and that of diffusers; how they train and sample."""

import functools
import math

import torch
from torch import nn
from torch.nn import functional

from cfgjax.base.errors import UsageError, choose

SAMPLERS = ("ddim", "dpmpp_2m")


class GroupNorm(nn.GroupNorm):
    """GroupNorm(32), computed in float32."""

    def __init__(self, channels):
        super().__init__(32, channels)

    def forward(self, x):
        return super().forward(x.float()).type(x.dtype)


def zeroed(module):
    """Sets the parameters of a module to zero and returns it."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class ResBlock(nn.Module):
    """GN, SiLU, conv3, AdaGN, SiLU, conv3, plus the skip; resample "none", "down" or "up" on both branches."""

    def __init__(self, channels, features, embedded, resample="none", dropout=0.0):
        super().__init__()
        self.in_norm, self.in_conv = GroupNorm(channels), nn.Conv2d(channels, features, 3, padding=1)
        self.emb = nn.Linear(embedded, 2 * features)
        self.out_norm, self.out_conv = GroupNorm(features), zeroed(nn.Conv2d(features, features, 3, padding=1))
        self.skip = nn.Conv2d(channels, features, 1) if channels != features else nn.Identity()
        self.resample, self.dropout = resample, nn.Dropout(dropout)

    def resampled(self, x):
        if self.resample == "down":
            return functional.avg_pool2d(x, 2)
        return functional.interpolate(x, scale_factor=2, mode="nearest") if self.resample == "up" else x

    def forward(self, x, emb):
        h = self.in_conv(self.resampled(functional.silu(self.in_norm(x))))
        scale, shift = self.emb(functional.silu(emb))[:, :, None, None].chunk(2, dim=1)
        h = self.dropout(functional.silu(self.out_norm(h) * (1 + scale) + shift))
        return self.skip(self.resampled(x)) + self.out_conv(h)


class Attention(nn.Module):
    """Self-attention over positions, plus x: two einsums and a softmax in float32, or PyTorch's operation (fused)."""

    def __init__(self, channels, head_channels, fused):
        super().__init__()
        self.head_channels, self.fused = head_channels, fused
        self.norm, self.qkv = GroupNorm(channels), nn.Conv1d(channels, 3 * channels, 1)
        self.proj = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x, emb):
        flat = x.flatten(2)
        qkv = self.qkv(self.norm(flat))
        q, k, v = qkv.reshape(-1, 3 * self.head_channels, qkv.shape[-1]).split(self.head_channels, dim=1)
        if self.fused:
            heads = [part.transpose(1, 2).unflatten(0, (len(x), -1)) for part in (q, k, v)]  # [B, heads, N, C]
            h = functional.scaled_dot_product_attention(*heads).transpose(2, 3).reshape(flat.shape)
            return (flat + self.proj(h)).reshape(x.shape)
        scale = self.head_channels**-0.25
        weight = torch.einsum("bct,bcs->bts", q * scale, k * scale).float().softmax(dim=-1).type(v.dtype)
        h = torch.einsum("bts,bcs->bct", weight, v).reshape(flat.shape)
        return (flat + self.proj(h)).reshape(x.shape)


class UNet(nn.Module):
    """ε_θ(z [B, C, H, W], time [B], label [B]) of a config.model with AdaGN and resampling in residual blocks."""

    def __init__(self, model, image_shape, num_classes, fused=False):
        super().__init__()
        size, _, colours = image_shape
        first, embedded = model.channels, 4 * model.channels
        widths = [int(m * first) for m in model.multipliers]
        self.first = first
        self.time = nn.Sequential(nn.Linear(first, embedded), nn.SiLU(), nn.Linear(embedded, embedded))
        self.label = nn.Embedding(num_classes + 1, embedded)

        residual = functools.partial(ResBlock, embedded=embedded, dropout=model.dropout)
        attention = functools.partial(Attention, head_channels=model.head_channels, fused=fused)

        def block(channels, width, height):
            made = [residual(channels, width)]
            attended = height in model.attention_resolutions
            return nn.ModuleList(made + [attention(width)] * attended)

        self.in_conv = nn.Conv2d(colours, first, 3, padding=1)
        self.down, self.up, kept, channels = nn.ModuleList(), nn.ModuleList(), [first], first
        for level, width in enumerate(widths):
            for _ in range(model.depth):
                self.down.append(block(channels, width, size >> level))
                kept, channels = [*kept, width], width
            if level < len(widths) - 1:
                self.down.append(nn.ModuleList([residual(channels, channels, resample="down")]))
                kept.append(channels)
        middle = [residual(channels, channels) for _ in range(2)]
        self.middle = nn.ModuleList([middle[0], attention(channels), middle[1]])
        for level, width in reversed(list(enumerate(widths))):
            for i in range(model.depth + 1):
                made = block(channels + kept.pop(), width, size >> level)
                channels = width
                if level and i == model.depth:
                    made.append(residual(channels, channels, resample="up"))
                self.up.append(made)
        self.out_norm, self.out_conv = GroupNorm(channels), zeroed(nn.Conv2d(channels, colours, 3, padding=1))

    def forward(self, z, time, label):
        half = self.first // 2
        omega = torch.exp(-math.log(10_000) * torch.arange(half, dtype=torch.float32, device=z.device) / half)
        angle = time[:, None] * omega
        emb = self.time(torch.cat([angle.cos(), angle.sin()], dim=-1)) + self.label(label)
        h, kept = self.in_conv(z), []
        kept.append(h)
        for block in self.down:
            for part in block:
                h = part(h, emb)
            kept.append(h)
        for part in self.middle:
            h = part(h, emb)
        for block in self.up:
            h = torch.cat([h, kept.pop()], dim=1)
            for part in block:
                h = part(h, emb)
        return self.out_conv(functional.silu(self.out_norm(h)))


def diffusers_unet(model, image_shape, num_classes):
    """diffusers' `UNet2DModel` of the same shape."""
    from diffusers import UNet2DModel

    size, _, colours = image_shape
    attended = [size >> level in model.attention_resolutions for level in range(len(model.multipliers))]
    names = lambda way, plain: tuple(f"Attn{way}Block2D" if a else plain for a in attended)
    net = UNet2DModel(
        sample_size=size, in_channels=colours, out_channels=colours, layers_per_block=model.depth,
        block_out_channels=tuple(int(m * model.channels) for m in model.multipliers),
        down_block_types=names("Down", "ResnetDownsampleBlock2D"),
        up_block_types=names("Up", "ResnetUpsampleBlock2D")[::-1],
        downsample_type="resnet", upsample_type="resnet", resnet_time_scale_shift="scale_shift",
        attention_head_dim=model.head_channels, attn_norm_num_groups=32, norm_num_groups=32, norm_eps=1e-5,
        num_class_embeds=num_classes + 1, freq_shift=0, dropout=model.dropout,
    )  # fmt: skip
    return net


class Peer:
    """A network with random parameters, on a GPU if present. In bfloat16 it runs under autocast.

    network: "adm", "adm_fused" with PyTorch's own attention, or "diffusers". mode: "eager"; "channels_last", which also
    lets cuDNN choose its algorithms by trial and fuses updates over all parameters; or "compile", which adds
    torch.compile. parameters: their number.
    """

    def __init__(self, config, network, mode):
        model = config.model
        if not (model.scale_shift and model.resblock_resample and model.conditional):
            raise UsageError("the peers have AdaGN, resampling in residual blocks and labels")
        if model.head_channels is None or not model.null_label:
            raise UsageError("the peers have model.head_channels and a null label")
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.cast = torch.autocast(self.device.type, torch.bfloat16, enabled=model.dtype == "bfloat16")
        torch.manual_seed(0)
        make = {"adm": UNet, "adm_fused": functools.partial(UNet, fused=True), "diffusers": diffusers_unet}[network]
        self.together = mode != "eager"
        torch.backends.cudnn.benchmark = self.together
        self.layout = torch.channels_last if self.together else torch.contiguous_format
        net = make(model, config.data.image_shape, config.data.num_classes)
        self.net = net.to(self.device, memory_format=self.layout)
        self.parameters = sum(parameter.numel() for parameter in self.net.parameters())
        call = torch.compile(self.net) if mode == "compile" else self.net
        self.call = lambda z, time, label: getattr(out := call(z, time, label), "sample", out)
        height, width, colours = config.data.image_shape
        self.shape, self.num_classes = (config.train.batch_size, colours, height, width), config.data.num_classes


class Sampler(Peer):
    """Draws a batch of images with guidance, w = 1, as a loop in Python.

    sampler: "ddim" or "dpmpp_2m". evaluations: of each level, 2 with guidance and 1 without.
    """

    def __init__(self, config, network, mode, sampler, evaluations):
        super().__init__(config, network, mode)
        self.net.eval()
        self.sampler, self.evaluations = choose("sampler of a peer", sampler, {s: s for s in SAMPLERS}), evaluations
        self.label = torch.arange(self.shape[0], device=self.device) % self.num_classes
        self.null = torch.full_like(self.label, self.num_classes)
        self.u = torch.linspace(0.99, 0.01, len(evaluations) + 1, device=self.device)

    @torch.no_grad()
    def __call__(self):
        """Returns the images, [B, C, H, W] in float32, which are complete on return."""
        z = torch.randn(self.shape, device=self.device).to(memory_format=self.layout)
        alphas, sigmas = torch.cos(self.u * math.pi / 2), torch.sin(self.u * math.pi / 2)
        steps = torch.log(alphas[1:] / sigmas[1:]) - torch.log(alphas[:-1] / sigmas[:-1])  # h, half of those in λ
        before = None
        with self.cast:  # around all steps: it keeps the weights that it casts
            for i, evaluations in enumerate(self.evaluations):
                x = ((z - sigmas[i] * self.eps(z, self.u[i], evaluations)) / alphas[i]).clamp(-1, 1)
                z = alphas[i + 1] * x + sigmas[i + 1] * (z - alphas[i] * x) / sigmas[i]
                if self.sampler == "dpmpp_2m" and i:
                    ratio = 0.5 * steps[i] / steps[i - 1]
                    z = z - alphas[i + 1] * torch.expm1(-steps[i]) * ratio * (x - before)
                before = x
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return x

    def eps(self, z, u, evaluations, w=1.0):
        """Returns the guided ε̃ = (1+w) ε(z,c) − w ε(z), or ε(z,c) for one evaluation."""
        if evaluations == 1:
            return self.call(z, (1000 * u).expand(len(z)), self.label).float()
        labels = torch.cat([self.label, self.null])
        out = self.call(torch.cat([z, z]), (1000 * u).expand(len(labels)), labels)
        conditional, unconditional = out.float().chunk(2)
        return (1 + w) * conditional - w * unconditional


class Step(Peer):
    """A training step on one batch of random images: noise, forward, loss, backward, AdamW, EMA; weights in float32."""

    def __init__(self, config, network, mode):
        super().__init__(config, network, mode)
        optimizer = config.optimizer
        self.net.train()
        self.params = list(self.net.parameters())
        self.ema = [parameter.detach().clone() for parameter in self.params]
        self.rate, self.clip_norm = config.ema.rates[0], optimizer.clip_norm
        rates = dict(lr=optimizer.learning_rate, betas=(optimizer.b1, optimizer.b2), eps=optimizer.eps)
        self.optimizer = torch.optim.AdamW(
            self.params, **rates, weight_decay=optimizer.weight_decay, fused=self.together or None
        )
        self.image = (torch.rand(self.shape) * 2 - 1).to(self.device, memory_format=self.layout)
        self.label = torch.randint(0, self.num_classes, self.shape[:1], device=self.device)

    def __call__(self):
        """Takes one step, which is complete on return. Returns the loss."""
        batch = len(self.image)
        u, eps = torch.rand(batch, device=self.device), torch.randn_like(self.image)
        alpha, sigma = torch.cos(u * math.pi / 2), torch.sin(u * math.pi / 2)
        z = alpha[:, None, None, None] * self.image + sigma[:, None, None, None] * eps
        label = torch.where(torch.rand(batch, device=self.device) < 0.1, self.num_classes, self.label)
        with self.cast:
            out = self.call(z, 1000 * u, label)
        loss = functional.mse_loss(out.float(), eps)
        self.optimizer.zero_grad()
        loss.backward()
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.params, self.clip_norm)
        self.optimizer.step()
        self.average()
        return loss.item()

    @torch.no_grad()
    def average(self):
        """Updates ema ← rate · ema + (1 − rate) · parameters."""
        if self.together:
            torch._foreach_lerp_(self.ema, self.params, 1 - self.rate)
            return
        for average, parameter in zip(self.ema, self.params, strict=True):
            average.mul_(self.rate).add_(parameter, alpha=1 - self.rate)
