"""Converts networks of openai/guided-diffusion (ADM) to cfgjax's, and back: constructor arguments and state dicts.

guided-diffusion's classes are `UNetModel`, `SuperResModel` and `EncoderUNetModel`; its arrays have PyTorch's layouts
(NCHW). Imported networks take the discrete t as time and have no null label.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, PyTree
from numpy.typing import ArrayLike

from cfgjax.base.errors import UsageError, nearest
from cfgjax.convert.layout import (
    Convertible,
    LeafPath,
    Slot,
    SlotOf,
    check_keys_and_shapes,
    params_from_state_dict,
    shapes_of,
    state_dict_from_params,
)
from cfgjax.convert.presets import Preset
from cfgjax.nets import NoisyClassifier, UNet

# cfgjax's module name → guided-diffusion's, inside and outside of blocks. Both number the blocks in the same way.
INSIDE = {
    "in_norm": "in_layers.0",
    "in_conv": "in_layers.2",
    "emb": "emb_layers.1",
    "out_norm": "out_layers.0",
    "out_conv": "out_layers.3",
    "skip": "skip_connection",
    "norm": "norm",
    "qkv": "qkv",
    "proj": "proj_out",
    "conv": "conv",
}
OUTSIDE = {"time_0": "time_embed.0", "time_2": "time_embed.2", "out_norm": "out.0", "out_conv": "out.2"}
POOLED = {
    "adaptive": {"pool": "out.3"},
    "attention": {"pool": "out.2", "pool/qkv": "out.2.qkv_proj", "pool/proj": "out.2.c_proj"},
    "spatial": {"pool_0": "out.0", "pool_1": "out.2"},
    "spatial_v2": {"pool_0": "out.0", "pool_norm": "out.1", "pool_1": "out.3"},
}
BLOCKS = {"input": "input_blocks", "middle": "middle_block", "output": "output_blocks"}
KINDS = {"kernel": "weight", "scale": "weight", "bias": "bias", "position": "positional_embedding"}
ONES = {"skip": 2, "pool": 2, "qkv": 1, "proj": 1}  # dense layers that are convolutions in guided-diffusion

# Constructor arguments of all three classes. use_checkpoint and use_fp16 have no effect here.
REQUIRED = ("image_size", "in_channels", "model_channels", "out_channels", "num_res_blocks", "attention_resolutions")
DEFAULTS: dict[str, Any] = {
    "dropout": 0.0,
    "channel_mult": (1, 2, 4, 8),
    "conv_resample": True,
    "dims": 2,
    "num_heads": 1,
    "num_head_channels": -1,
    "num_heads_upsample": -1,
    "use_scale_shift_norm": False,
    "resblock_updown": False,
    "use_new_attention_order": False,
    "use_checkpoint": False,
    "use_fp16": False,
}


def unet(config: dict[str, Any], state_dict: Mapping[str, ArrayLike]) -> tuple[UNet, dict[str, Any]]:
    """Returns (net, params) of guided-diffusion's `UNetModel`.

    config: its constructor arguments, where `attention_resolutions` are downsampling rates. If `num_classes` is None,
    net is unconditional and has num_classes 1.
    state_dict: {key: array}, numpy arrays or anything that `numpy.asarray` accepts; float32 arrays are not copied.
    Raises UsageError for keys that are missing, not used or have another shape, and for unknown arguments.
    """
    net, image_shape = make_unet(config)
    return net, params_of(net, image_shape, state_dict)


def upsampler(config: dict[str, Any], state_dict: Mapping[str, ArrayLike]) -> tuple[UNet, dict[str, Any]]:
    """Returns (net, params) of `SuperResModel`, as `unet` does. `in_channels` are the channels of one image."""
    net, image_shape = make_upsampler(config)
    return net, params_of(net, image_shape, state_dict)


def classifier(config: dict[str, Any], state_dict: Mapping[str, ArrayLike]) -> tuple[NoisyClassifier, dict[str, Any]]:
    """Returns (net, params) of `EncoderUNetModel`, as `unet` does. `out_channels` is the number of classes."""
    net, image_shape = make_classifier(config)
    return net, params_of(net, image_shape, state_dict)


def params_of(net: Convertible, image_shape: Sequence[int], state_dict: Mapping[str, ArrayLike]) -> dict[str, Any]:
    """Returns the parameters of a net of one of the MAKERS. Raises UsageError as `unet` does."""
    return params_from_state_dict(state_dict, shapes_of(net, image_shape), slots(net))


def fits(preset: Preset, state_dict: Mapping[str, ArrayLike]) -> bool:
    """Returns whether a state dict has the keys and shapes of a preset's network."""
    net, image_shape = MAKERS[preset.kind](preset.arguments)
    try:
        check_keys_and_shapes(state_dict, shapes_of(net, image_shape), slots(net))
    except UsageError:
        return False
    return True


def state_dict(net: object, params: PyTree) -> dict[str, Float32[np.ndarray, "..."]]:
    """Returns a network's state dict for guided-diffusion, {key: float32 array}. The exact inverse of `params_of`.

    A null label becomes the last row of `label_emb.weight`, an additional class.
    Raises UsageError for networks that guided-diffusion does not have.
    """
    if not isinstance(net, UNet | NoisyClassifier):
        raise UsageError(f"guided-diffusion has no counterpart of the network {type(net).__name__}")
    for name in ("rescale", "low_res_noise"):
        if getattr(net, name, False):
            raise UsageError(f"guided-diffusion has no network with model.{name}")
    return state_dict_from_params(params, slots(net))


def slots(net: Convertible) -> SlotOf:
    """Returns the function from a parameter's path to its `Slot` in a state dict."""
    outside = OUTSIDE | (POOLED[net.pool] if isinstance(net, NoisyClassifier) else {})

    def slot(path: LeafPath) -> Slot:
        if path == ("label",):
            return Slot(("label_emb.weight",))
        *modules, kind = path
        block, *numbers = modules[0].split("_")
        if (name := outside.get("/".join(modules))) is None:
            inner = ["op" if (block, m) == ("input", "conv") else INSIDE[m] for m in modules[1:]]
            name = ".".join([BLOCKS[block], *numbers, *inner])
        return Slot((f"{name}.{KINDS[kind]}",), ONES.get(modules[-1], 0) if kind == "kernel" else 0)

    return slot


def make_unet(config: dict[str, Any]) -> tuple[UNet, tuple[int, int, int]]:
    """Returns (net, image shape) for constructor arguments of `UNetModel`."""
    given = arguments("UNetModel", config, num_classes=None)
    conditional = given["num_classes"] is not None
    own = dict(out_channels=given["out_channels"], conditional=conditional, null_label=False)
    if given["num_head_channels"] == -1 and given["num_heads_upsample"] not in (-1, given["num_heads"]):
        heads = f"num_heads_upsample is {given['num_heads_upsample']}, num_heads is {given['num_heads']}"
        raise UsageError(f"{heads}; need the same number")
    return UNet(num_classes=given["num_classes"] if conditional else 1, **own, **backbone(given)), image_shape_of(given)


def make_upsampler(config: dict[str, Any]) -> tuple[UNet, tuple[int, int, int]]:
    """Returns (net, image shape) for constructor arguments of `SuperResModel`."""
    net, shape = make_unet(config)
    return net.clone(low_res=True), shape


def make_classifier(config: dict[str, Any]) -> tuple[NoisyClassifier, tuple[int, int, int]]:
    """Returns (net, image shape) for constructor arguments of `EncoderUNetModel`."""
    given = arguments("EncoderUNetModel", config, pool="adaptive")
    if given["pool"] not in POOLED:
        raise UsageError(f"unknown pool {given['pool']!r}{nearest(given['pool'], POOLED)}")
    net = NoisyClassifier(num_classes=given["out_channels"], pool=given["pool"], **backbone(given))
    return net, image_shape_of(given)


def arguments(name: str, config: dict[str, Any], **own: Any) -> dict[str, Any]:
    """Returns all constructor arguments of a guided-diffusion class, including defaults."""
    known = DEFAULTS | own
    for key in config:
        if key not in known and key not in REQUIRED:
            raise UsageError(f"guided-diffusion's {name} has no argument {key}{nearest(key, [*REQUIRED, *known])}")
    if missing := [key for key in REQUIRED if key not in config]:
        raise UsageError(f"the arguments of guided-diffusion's {name} lack {', '.join(missing)}")
    if config.get("dims", 2) != 2:
        raise UsageError(f"dims is {config['dims']}; need 2, a network of images")
    return known | config


def backbone(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields of `Backbone`, except num_classes, for guided-diffusion's constructor arguments."""
    head_channels, multipliers = given["num_head_channels"], tuple(given["channel_mult"])
    rates = [rate for rate in given["attention_resolutions"] if rate in [2**level for level in range(len(multipliers))]]
    return dict(
        channels=given["model_channels"],
        multipliers=multipliers,
        depth=given["num_res_blocks"],
        attention_resolutions=tuple(given["image_size"] // rate for rate in rates),
        num_heads=given["num_heads"] if head_channels == -1 else None,
        head_channels=None if head_channels == -1 else head_channels,
        legacy_attention_order=not given["use_new_attention_order"],
        scale_shift=given["use_scale_shift_norm"],
        resblock_resample=given["resblock_updown"],
        learned_resample=given["conv_resample"],
        dropout=given["dropout"],
    )


def image_shape_of(given: Mapping[str, Any]) -> tuple[int, int, int]:
    """Returns the shape [H, W, C] of the images."""
    return (given["image_size"], given["image_size"], given["in_channels"])


# Preset.kind → function that builds its network
MAKERS: dict[str, Callable[[dict[str, Any]], tuple[Convertible, tuple[int, int, int]]]] = {
    "unet": make_unet,
    "upsampler": make_upsampler,
    "classifier": make_classifier,
}
