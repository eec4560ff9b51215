"""Checks the types in diffusers' config.json, and its sizes against the weights, before the network is built."""

import re
from collections.abc import Mapping
from types import NoneType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from cfgjax.base.errors import UsageError, one_line
from cfgjax.base.json_files import check_type
from cfgjax.convert.presets import MAX_SIZE

TYPES: dict[str, type | tuple[type, ...]] = {
    "sample_size": (int, list, NoneType),
    "in_channels": int,
    "out_channels": int,
    "down_block_types": list,
    "up_block_types": list,
    "block_out_channels": list,
    "layers_per_block": int,
    "downsample_type": str,
    "upsample_type": str,
    "dropout": float,
    "attention_head_dim": (int, NoneType),
    "attn_norm_num_groups": (int, NoneType),
    "resnet_time_scale_shift": str,
    "num_class_embeds": (int, NoneType),
}
ENTRIES = {"down_block_types": str, "up_block_types": str, "block_out_channels": int, "sample_size": int}
POSITIVE_KEYS = ("in_channels", "out_channels", "layers_per_block", "attention_head_dim", "num_class_embeds")


def check_values(given: Mapping[str, Any]) -> None:
    """Raises UsageError unless every value of a config has its type in TYPES and all sizes are positive."""
    given = {key: list(value) if isinstance(value, tuple) else value for key, value in given.items()}
    try:
        for key, types in TYPES.items():
            check_type(f"its {key!r}", given[key], types)
            if key in ENTRIES and isinstance(given[key], list):
                for entry in given[key]:
                    check_type(f"an entry of its {key!r}", entry, ENTRIES[key])
    except ValueError as e:
        raise UsageError(f"config.json is not that of a UNet2DModel: {e}") from None
    for key in ("down_block_types", "block_out_channels"):
        if not given[key]:
            raise UsageError(f"config.json has an empty {key}")
    sizes = {key: given[key] for key in POSITIVE_KEYS if given[key] is not None}
    sizes |= {"block_out_channels": min(given["block_out_channels"])}
    for key, value in sizes.items():
        if value < 1:
            raise UsageError(f"config.json has {key} {given[key]}; need at least 1")
    if not 0 <= given["dropout"] <= 1:
        raise UsageError(f"config.json has dropout {given['dropout']}; need a value in 0 … 1")


def check_sizes(given: Mapping[str, Any], state_dict: Mapping[str, ArrayLike]) -> None:
    """Raises UsageError if a network of the config would be far larger than the weights."""
    blocks = len(given["block_out_channels"]) * given["layers_per_block"]
    widest = max(np.shape(value)[0] if np.ndim(value) else 0 for value in state_dict.values()) if state_dict else 0
    if blocks > len(state_dict) or max(given["block_out_channels"]) > max(widest, MAX_SIZE):
        raise UsageError(
            contradictions(given, state_dict) or f"config.json has {blocks} blocks; the weights have fewer arrays"
        )
    for key in ("in_channels", "attention_head_dim", "num_class_embeds"):
        if (given[key] or 0) > MAX_SIZE:
            raise UsageError(
                contradictions(given, state_dict) or f"config.json has {key} {given[key]}, above {MAX_SIZE}"
            )


def contradictions(given: Mapping[str, Any], state_dict: Mapping[str, ArrayLike]) -> str:
    """Returns text about the keys of a config that the weights contradict; "" if there are none."""
    found = derived_keys(state_dict)
    pairs = [(key, given[key], found[key]) for key in found if as_list(given[key]) != as_list(found[key])]
    return "; ".join(
        f"config.json has {key} {one_line(ours, 100)}, but the weights have {one_line(theirs, 100)}"
        for key, ours, theirs in pairs
    )


def as_list(value: object) -> object:
    """Returns a tuple as a list, and other values unchanged."""
    return list(value) if isinstance(value, tuple) else value


def derived_keys(state_dict: Mapping[str, ArrayLike]) -> dict[str, Any]:
    """Returns {key: value} of the keys of config.json that a state dict determines."""
    shapes = {key: np.shape(value) for key, value in state_dict.items()}
    count = lambda pattern: 1 + max((int(m[1]) for key in shapes if (m := re.match(pattern, key))), default=-1)
    levels, layers = count(r"down_blocks\.(\d+)\."), count(r"down_blocks\.0\.resnets\.(\d+)\.")
    widths = [shapes.get(f"down_blocks.{i}.resnets.0.conv1.weight", (0,))[0] for i in range(levels)]
    if not layers or not all(widths):
        return {}
    found: dict[str, Any] = {"layers_per_block": layers, "block_out_channels": widths}
    if len(conv_in := shapes.get("conv_in.weight", ())) == 4:
        found["in_channels"] = conv_in[1]
    if conv_out := shapes.get("conv_out.weight"):
        found["out_channels"] = conv_out[0]
    found["num_class_embeds"] = next(iter(shapes.get("class_embedding.weight", ())), None)
    if projection := shapes.get("down_blocks.0.resnets.0.time_emb_proj.weight"):
        found["resnet_time_scale_shift"] = "scale_shift" if projection[0] == 2 * widths[0] else "default"
    return found
