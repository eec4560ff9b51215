"""Converts networks of huggingface/diffusers that equal ADM's: the folder of a `UNet2DModel`.

A config is accepted if its network computes the same as `cfgjax.nets.UNet`:

- Every level of the encoder is `ResnetDownsampleBlock2D`, `DownBlock2D` or `AttnDownBlock2D`, and the decoder has its
  counterpart: `ResnetUpsampleBlock2D`, `UpBlock2D` or `AttnUpBlock2D`.
- All levels are resampled in the same way: by residual blocks (`Resnet…`, or `downsample_type` and `upsample_type`
  "resnet") or by convolutions.
- `resnet_time_scale_shift` is "default", or "scale_shift" with `attn_norm_num_groups` 32.
- `num_class_embeds` has any value. Every other key has its value in `ONLY`.
"""

import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import ArrayLike

from cfgjax.base.errors import UsageError, nearest, one_line
from cfgjax.base.json_files import read_json
from cfgjax.base.weights import Weights, read_weights
from cfgjax.convert.diffusers_folder import network_folder, weights_file
from cfgjax.convert.diffusers_sizes import check_sizes, check_values, contradictions
from cfgjax.convert.layout import LeafPath, Slot, SlotOf, params_from_state_dict, shapes_of
from cfgjax.convert.presets import MAX_SIZE, MAX_TIMESTEPS
from cfgjax.nets import UNet

# Keys of config.json. ONLY: keys with one accepted value, which is also the default. DEFAULTS: the other keys.
ONLY = {
    "_class_name": "UNet2DModel",
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "mid_block_type": "UNetMidBlock2D",
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "add_attention": True,
    "class_embed_type": None,
}
DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "attention_head_dim": 8,
    "attn_norm_num_groups": None,
    "resnet_time_scale_shift": "default",
    "num_class_embeds": None,
}
VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned_range")
PREDICTION_TYPES = {"epsilon": "eps", "v_prediction": "v", "sample": "x"}  # of a scheduler → diffusion.parametrisation
IGNORED_KEYS = (
    "num_train_timesteps",  # of time embeddings that are not supported
    *("decay", "min_decay", "inv_gamma", "power", "optimization_step", "update_after_step", "use_ema_warmup"),  # of EMA
)

# diffusers' block → (whether it has attention, how it resamples; None: as in downsample_type or upsample_type)
DOWN = {"ResnetDownsampleBlock2D": (False, "resnet"), "DownBlock2D": (False, "conv"), "AttnDownBlock2D": (True, None)}
UP = {"ResnetUpsampleBlock2D": (False, "resnet"), "UpBlock2D": (False, "conv"), "AttnUpBlock2D": (True, None)}

# cfgjax's module name → diffusers'
INSIDE = {
    "in_norm": "norm1",
    "in_conv": "conv1",
    "emb": "time_emb_proj",
    "out_norm": "norm2",
    "out_conv": "conv2",
    "skip": "conv_shortcut",
    "norm": "group_norm",
    "proj": "to_out.0",
    "conv": "conv",
}
OUTSIDE = {
    "time_0": "time_embedding.linear_1",
    "time_2": "time_embedding.linear_2",
    "input_0_0": "conv_in",
    "out_norm": "conv_norm_out",
    "out_conv": "conv_out",
}
MIDDLE = {"middle_0": "resnets.0", "middle_1": "attentions.0", "middle_2": "resnets.1"}
KINDS = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def read_unet(folder: str | os.PathLike[str]) -> tuple[UNet, tuple[int, int, int], dict[str, Any], Path, Weights]:
    """Returns (net, image shape, config, path of the weights, weights) of a network's or a pipeline's folder.

    Raises UsageError for missing or damaged files, and for a config that is not accepted or whose sizes are far from
    those of the weights.
    """
    folder = network_folder(folder)
    config = read_json(folder / "config.json")
    check_config(config)
    file = weights_file(folder)
    weights = read_weights(file)
    net, image_shape = make_unet(config, weights.arrays)
    return net, image_shape, config, file, weights


def unet(config: Mapping[str, Any], state_dict: Mapping[str, ArrayLike]) -> tuple[UNet, dict[str, Any]]:
    """Returns (net, params) of a `UNet2DModel`, from the dict of its config.json and its state dict, {key: array}.

    Raises UsageError with the key of the config that is not accepted (see above), or with the keys of the state dict
    that are missing, not used or have another shape.
    """
    net, image_shape = make_unet(config, state_dict)
    return net, params_of(net, image_shape, state_dict, config)


def params_of(
    net: UNet, image_shape: Sequence[int], state_dict: Mapping[str, ArrayLike], config: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the parameters of net, which `make_unet` built from config. Raises UsageError as `unet` does."""
    try:
        return params_from_state_dict(state_dict, shapes_of(net, image_shape), slots(net))
    except UsageError as e:
        if reasons := contradictions({**DEFAULTS, **config}, state_dict):
            raise UsageError(f"{e}; {reasons}") from e
        raise


def make_unet(config: Mapping[str, Any], state_dict: Mapping[str, ArrayLike]) -> tuple[UNet, tuple[int, int, int]]:
    """Returns (net, image shape) for a config.json's dict. Raises UsageError if its sizes do not fit the weights."""
    check_config(config)
    given = {**DEFAULTS, **config}
    channels, types = given["block_out_channels"], given["down_block_types"]
    attention, resample = attention_and_resampling(given)
    size, head_channels = sample_size(given), given["attention_head_dim"]
    check_sizes(given, state_dict)
    net = UNet(
        num_classes=given["num_class_embeds"] or 1,
        conditional=given["num_class_embeds"] is not None,
        out_channels=given["out_channels"],
        channels=channels[0],
        multipliers=tuple(multiplier(width, channels[0]) for width in channels),
        depth=given["layers_per_block"],
        attention_resolutions=tuple(size >> level for level in range(len(types)) if attention[level]),
        num_heads=1 if head_channels is None else None,
        head_channels=head_channels,
        legacy_attention_order=False,
        scale_shift=given["resnet_time_scale_shift"] == "scale_shift",
        resblock_resample=resample == "resnet",
        dropout=given["dropout"],
        null_label=False,
    )
    return net, (size, size, given["in_channels"])


def check_config(config: Mapping[str, Any]) -> None:
    """Raises UsageError if config.json has an unknown key or a value that is not accepted."""
    for key, value in config.items():
        if (key.startswith("_") and key != "_class_name") or key in IGNORED_KEYS:
            continue
        if key not in ONLY and key not in DEFAULTS:
            raise UsageError(f"config.json has the unknown key {key}{nearest(key, [*ONLY, *DEFAULTS])}")
        if key in ONLY and value != ONLY[key]:
            raise UsageError(f"config.json has {key} {one_line(repr(value), 100)}; accepted: {ONLY[key]!r}")
    given = {**DEFAULTS, **config}
    check_values(given)
    if len({len(given[key]) for key in ("down_block_types", "up_block_types", "block_out_channels")}) > 1:
        raise UsageError("config.json has down_block_types, up_block_types and block_out_channels of different lengths")
    time, groups = given["resnet_time_scale_shift"], given["attn_norm_num_groups"]
    if time not in ("default", "scale_shift"):
        raise UsageError(f"config.json has resnet_time_scale_shift {time!r}; accepted: 'default', 'scale_shift'")
    if groups != 32 and (groups, time) != (None, "default"):
        raise UsageError(f"config.json has attn_norm_num_groups {groups}; accepted with {time!r}: 32")
    if given["out_channels"] not in (given["in_channels"], 2 * given["in_channels"]):
        accepted = f"{given['in_channels']}, or {2 * given['in_channels']} with learned variance"
        raise UsageError(f"config.json has out_channels {given['out_channels']}; accepted: {accepted}")


def attention_and_resampling(given: Mapping[str, Any]) -> tuple[list[bool], str]:
    """Returns ([whether each level has attention], how levels are resampled: "conv" or "resnet")."""
    found = {}
    for key, known, manner in (("down_block_types", DOWN, "downsample_type"), ("up_block_types", UP, "upsample_type")):
        types = given[key]
        if unknown := [name for name in types if name not in known]:
            raise UsageError(f"config.json has {key} with {unknown[0]!r}; accepted: {', '.join(known)}")
        manners = [known[name][1] or given[manner] for name in types[:-1]]  # the last level is not resampled
        found[key] = [known[name][0] for name in types], manners
    (down, down_manners), (up, up_manners) = found.values()
    if down != up[::-1]:
        raise UsageError("config.json has up_block_types that are not down_block_types reversed")
    if wrong := set(down_manners + up_manners) - {"conv", "resnet"}:
        raise UsageError(f"config.json has downsample_type or upsample_type {wrong.pop()!r}; accepted: conv, resnet")
    if len(set(down_manners + up_manners)) > 1:
        raise UsageError("config.json has down_block_types and up_block_types that resample in different ways")
    return down, (down_manners or ["conv"])[0]


def sample_size(given: Mapping[str, Any]) -> int:
    """Returns the height of the images, which must equal their width."""
    size = given["sample_size"]
    sides = set(size) if isinstance(size, list | tuple) else {size}
    if len(sides) != 1 or not isinstance(side := sides.pop(), int):
        raise UsageError(f"config.json has sample_size {size}; need one number, the height and width of the images")
    if not 1 <= side <= MAX_SIZE:
        raise UsageError(f"config.json has sample_size {one_line(size, 100)}; need a height in 1 … {MAX_SIZE}")
    return side


def multiplier(width: int, channels: int) -> float:
    """Returns the multiplier for which int(multiplier · channels) equals width despite rounding."""
    ratio = width / channels
    return ratio if int(ratio * channels) == width else math.nextafter(ratio, math.inf)


def slots(net: UNet) -> SlotOf:
    """Returns the function from a parameter's path to its `Slot` in a `UNet2DModel`'s state dict."""

    def slot(path: LeafPath) -> Slot:
        if path == ("label",):
            return Slot(("class_embedding.weight",))
        block, *inner, kind = path
        prefix = OUTSIDE.get(block) or f"{place(block, inner[0])}."
        if inner == ["qkv"]:
            return Slot(tuple(f"{prefix}to_{which}.{KINDS[kind]}" for which in "qkv"))
        name = prefix + "".join(INSIDE[module] for module in inner)
        return Slot((f"{name}.{KINDS[kind]}",), 2 if inner == ["skip"] and kind == "kernel" else 0)

    def place(block: str, inner: str) -> str:
        """Returns the key prefix of a block, such as "down_blocks.1.resnets.0"."""
        if block in MIDDLE:
            return f"mid_block.{MIDDLE[block]}"
        side, number, position = block.split("_")
        if side == "input":
            level, i = divmod(int(number) - 1, net.depth + 1)
            if i == net.depth:
                return f"down_blocks.{level}.downsamplers.0"
        else:
            level, i = divmod(int(number), net.depth + 1)
        if inner in ("norm", "qkv", "proj"):
            return f"{'down' if side == 'input' else 'up'}_blocks.{level}.attentions.{i}"
        if position != "0":
            return f"up_blocks.{level}.upsamplers.0"
        return f"{'down' if side == 'input' else 'up'}_blocks.{level}.resnets.{i}"

    return slot


def process(folder: str | os.PathLike[str]) -> tuple[str, int, float]:
    """Returns (betas, num_timesteps, v) of the scheduler next to a network's folder in a pipeline.

    They are read from ../scheduler/scheduler_config.json, which must have the betas of `cfgjax.diffusion.discrete`.
    v: interpolation of the reverse variance if it is not learned. Without a scheduler returns the default of ADM and
    diffusers, ("linear", 1000, 0.0).
    Raises UsageError with the key that is not accepted.
    """
    path = scheduler_file(folder)
    if not path.is_file():
        return "linear", 1000, 0.0
    given = read_json(path)
    steps, known = given.get("num_train_timesteps", 1000), {"linear": "linear", "squaredcos_cap_v2": "cosine"}
    only: dict[str, tuple[Any, ...]] = {"beta_schedule": tuple(known), "trained_betas": (None,)}
    only |= {"rescale_betas_zero_snr": (False, None), "variance_type": (None, *VARIANCES)}
    if type(steps) is not int or not 2 <= steps <= MAX_TIMESTEPS:
        raise UsageError(f"{path} has num_train_timesteps {steps!r}; need an integer in 2 … {MAX_TIMESTEPS}")
    if given.get("beta_schedule") == "linear":
        only |= {"beta_start": (0.1 / steps, None), "beta_end": (20 / steps, None)}
    for key, accepted in only.items():
        check_accepted(path, given, key, accepted)
    v = 1.0 if str(given.get("variance_type")).startswith("fixed_large") else 0.0
    return known[given["beta_schedule"]], steps, v


def parametrisation(folder: str | os.PathLike[str]) -> str:
    """Returns what the network in a folder of a pipeline predicts, "eps", "v" or "x", by its scheduler's config.

    Without a scheduler, and for a scheduler without the key prediction_type, this is "eps". Raises UsageError for
    another value of the key.
    """
    path = scheduler_file(folder)
    given = read_json(path) if path.is_file() else {}
    check_accepted(path, given, "prediction_type", (*PREDICTION_TYPES, None))
    return PREDICTION_TYPES[given.get("prediction_type") or "epsilon"]


def scheduler_file(folder: str | os.PathLike[str]) -> Path:
    """Returns the path of the scheduler's config next to a network's folder in a pipeline, which need not exist."""
    return Path(folder).absolute().parent / "scheduler" / "scheduler_config.json"


def check_accepted(path: Path, given: Mapping[str, Any], key: str, accepted: Collection[Any]) -> None:
    """Raises UsageError unless the value of a key of the config in a file is accepted. None: it may be absent."""
    if given.get(key) not in accepted:
        listed = ", ".join(str(value) for value in accepted if value is not None) or "none"
        raise UsageError(f"{path} has {key} {one_line(repr(given.get(key)), 100)}; accepted: {listed}")
