"""Derives arguments of guided-diffusion's networks from the keys and shapes of their state dicts."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

ShapesByKey = Mapping[str, tuple[int, ...]]


def derived_arguments(state_dict: Mapping[str, ArrayLike]) -> dict[str, Any]:
    """Returns {name: value} of the constructor arguments that a state dict determines, and its "kind", as in `Preset`.

    "input_blocks" is the number of input blocks. attention_resolutions are increasing downsampling rates. Arguments
    that the shapes do not show are absent: the image size, the heads and, in some networks, the residual blocks.
    """
    shapes = {key: np.shape(value) for key, value in state_dict.items()}
    first, time = shapes.get("input_blocks.0.0.weight", ()), shapes.get("time_embed.0.weight", ())
    if len(first) != 4 or len(time) != 2 or not time[1]:
        return {}
    is_unet = any(key.startswith("output_blocks.") for key in shapes)
    kind = ("upsampler" if first[1] == 6 else "unet") if is_unet else "classifier"
    found: dict[str, Any] = {
        "kind": kind,
        "model_channels": time[1],
        "input_blocks": count_blocks(shapes, "input_blocks"),
    }
    if is_unet:
        found["num_classes"] = next(iter(shapes.get("label_emb.weight", ())), None)
        if out := shapes.get("out.2.weight"):
            found["out_channels"] = out[0]
    elif (outputs := classifier_outputs(shapes)) is not None:
        found |= outputs
    emb, width = shapes.get("input_blocks.1.0.emb_layers.1.weight"), shapes.get("input_blocks.1.0.out_layers.3.weight")
    if emb and width:
        found["use_scale_shift_norm"] = emb[0] == 2 * width[0]
    return found | levels(shapes, found)


def count_blocks(shapes: ShapesByKey, name: str) -> int:
    """Returns the number of blocks with this name."""
    return 1 + max((int(m[1]) for key in shapes if (m := re.match(rf"{name}\.(\d+)\.", key))), default=-1)


def levels(shapes: ShapesByKey, found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns num_res_blocks, channel_mult, attention_resolutions and resblock_updown, if the shapes show them."""
    count = found["input_blocks"]
    by_convolution = [i for i in range(count) if f"input_blocks.{i}.0.op.weight" in shapes]
    upsamplers = [
        i
        for i in range(count_blocks(shapes, "output_blocks"))
        for j in (1, 2)
        if f"output_blocks.{i}.{j}.in_layers.0.weight" in shapes or f"output_blocks.{i}.{j}.conv.weight" in shapes
    ]
    if by_convolution:
        depth = by_convolution[0] - 1
    elif upsamplers:
        depth = upsamplers[0]
    elif found["kind"] != "classifier":
        depth = count - 1  # one level
    else:
        return {}
    if depth < 1 or count % (depth + 1):
        return {}
    starts = range(1, count, depth + 1)
    widths = [shapes.get(f"input_blocks.{start}.0.out_layers.3.weight", (0,))[0] for start in starts]
    attended = [2**i for i, start in enumerate(starts) if f"input_blocks.{start}.1.qkv.weight" in shapes]
    known = {
        "num_res_blocks": depth,
        "channel_mult": tuple(width / found["model_channels"] for width in widths),
        "attention_resolutions": tuple(attended),
    }
    return known | ({"resblock_updown": not by_convolution} if len(widths) > 1 else {})


def classifier_outputs(shapes: ShapesByKey) -> dict[str, str | int] | None:
    """Returns the pool and the number of classes of a classifier, or None for an unknown pool."""
    for key, pool in (
        ("out.2.c_proj.weight", "attention"),
        ("out.3.weight", "adaptive"),
        ("out.2.weight", "spatial"),
    ):
        if shapes.get(key):
            spatial_v2 = key == "out.3.weight" and len(shapes[key]) == 2
            return {"pool": "spatial_v2" if spatial_v2 else pool, "out_channels": shapes[key][0]}
    return None
