"""The published models of openai/guided-diffusion, with the flags of its README as constructor arguments.

The classifiers have the default flags of its `script_util.py`, except for the depth at 64×64. They were trained with
the noise schedule of the diffusion model of their size.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

NUM_TIMESTEPS = 1000
MAX_SIZE = 2**16  # of any integer of a network; larger values are typing errors
MAX_TIMESTEPS = 100_000
MULTIPLIERS: dict[int, tuple[float, ...]] = {
    64: (1, 2, 3, 4),
    128: (1, 1, 2, 3, 4),
    256: (1, 1, 2, 2, 4, 4),
    512: (0.5, 1, 1, 2, 2, 4, 4),
}


class Preset(NamedTuple):
    """A published model.

    kind: "unet", "upsampler" or "classifier". arguments: of guided-diffusion's constructor, including whether the model
    is conditional. betas, num_timesteps: noise schedule. data: name of the training data. num_classes: of the data.
    low_res_size: height of an upsampler's input images. v: of the sampler's variance, if it is not learned.
    """

    kind: str
    arguments: dict[str, Any]
    betas: str = "linear"
    data: str = ""
    num_classes: int = 1000
    low_res_size: int | None = None
    num_timesteps: int = NUM_TIMESTEPS
    v: float = 0.0


def network(
    size: int,
    channels: int,
    depth: int,
    *,
    attention: Sequence[int] = (32, 16, 8),
    multipliers: Sequence[float] | None = None,
    **others: Any,
) -> dict[str, Any]:
    """Returns the constructor arguments of a network of any kind. attention: heights of feature maps with attention."""
    return dict(
        image_size=size,
        in_channels=3,
        model_channels=channels,
        num_res_blocks=depth,
        attention_resolutions=tuple(size // height for height in attention),
        channel_mult=multipliers or MULTIPLIERS[size],
        resblock_updown=True,
        use_scale_shift_norm=True,
        **others,
    )


def imagenet_preset(
    size: int,
    channels: int = 256,
    depth: int = 2,
    *,
    num_classes: int | None = 1000,
    betas: str = "linear",
    **others: Any,
) -> Preset:
    arguments = network(size, channels, depth, out_channels=6, num_classes=num_classes, **others)
    return Preset("unet", arguments, betas, f"imagenet{size}")


def lsun_preset(name: str, dropout: float) -> Preset:
    arguments = network(256, 256, 2, out_channels=6, num_head_channels=64, num_classes=None, dropout=dropout)
    return Preset("unet", arguments, data=name, num_classes=1)


def upsampler_preset(low_res_size: int, size: int, **others: Any) -> Preset:
    arguments = network(size, 192, 2, out_channels=6, num_classes=1000, multipliers=MULTIPLIERS[256], **others)
    return Preset("upsampler", arguments, data=f"imagenet{size}", low_res_size=low_res_size)


def classifier_preset(size: int, depth: int = 2, betas: str = "linear") -> Preset:
    arguments = network(size, 128, depth, out_channels=1000, num_head_channels=64, pool="attention")
    return Preset("classifier", arguments, betas, f"imagenet{size}")


PRESETS = {
    "imagenet64": imagenet_preset(
        64, 192, 3, betas="cosine", num_head_channels=64, use_new_attention_order=True, dropout=0.1
    ),
    "imagenet128": imagenet_preset(128, num_heads=4),
    "imagenet256": imagenet_preset(256, num_head_channels=64),
    "imagenet256_uncond": imagenet_preset(256, num_head_channels=64, num_classes=None),
    "imagenet512": imagenet_preset(512, num_head_channels=64),
    "lsun_bedroom": lsun_preset("lsun_bedroom", 0.1),
    "lsun_cat": lsun_preset("lsun_cat", 0.1),
    "lsun_horse": lsun_preset("lsun_horse", 0.1),
    "lsun_horse_nodropout": lsun_preset("lsun_horse", 0.0),
    "upsampler_64_256": upsampler_preset(64, 256, num_heads=4),
    "upsampler_128_512": upsampler_preset(128, 512, attention=(32, 16), num_head_channels=64),
    "classifier64": classifier_preset(64, depth=4, betas="cosine"),
    "classifier128": classifier_preset(128),
    "classifier256": classifier_preset(256),
    "classifier512": classifier_preset(512),
}
