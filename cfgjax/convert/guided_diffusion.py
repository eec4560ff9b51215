"""Networks of openai/guided-diffusion (ADM): constructor arguments and state dicts → our networks and parameters."""

import re

import jax
import numpy as np

from cfgjax.nets.unet import UNet

# Their module names inside a block → ours; blocks themselves are numbered alike.
RENAMED = {
    "in_layers.0": "in_norm",
    "in_layers.2": "in_conv",
    "emb_layers.1": "emb",
    "out_layers.0": "out_norm",
    "out_layers.3": "out_conv",
    "skip_connection": "skip",
    "norm": "norm",
    "qkv": "qkv",
    "proj_out": "proj",
    "op": "conv",
    "conv": "conv",
}
TOP_LEVEL: dict[str, tuple[str, ...]] = {
    "time_embed.0": ("time_0",),
    "time_embed.2": ("time_2",),
    "input_blocks.0.0": ("input_0_0",),
    "out.0": ("out_norm",),
    "out.2": ("out_conv",),
}
BLOCK = re.compile(r"(input|output)_blocks\.(\d+)\.(\d+)\.(.+)|(middle)_block\.(\d+)\.(.+)")

# Constructor arguments that change no parameter and no output here.
IGNORED = {"use_checkpoint", "use_fp16", "dims"}


def unet(config, state_dict):
    """(net, params) of guided-diffusion's `UNetModel`.

    config: its constructor arguments; `attention_resolutions` there are downsampling rates.
    state_dict: its key names → arrays (NCHW layouts), numpy or anything `numpy.asarray` takes.
    The networks take the discrete t as time and have no null label.
    Raises ValueError naming keys that are missing, left over, or of another shape, and arguments not understood.
    """
    config = {k: v for k, v in config.items() if k not in IGNORED}
    size, in_channels = config.pop("image_size"), config.pop("in_channels")
    head_channels = config.pop("num_head_channels", -1)
    num_heads = config.pop("num_heads", 1)
    num_heads_up = config.pop("num_heads_upsample", -1)
    if head_channels == -1 and num_heads_up not in (-1, num_heads):
        raise ValueError(f"num_heads_upsample is {num_heads_up}, num_heads is {num_heads}; ours are the same both ways")
    net = UNet(
        out_channels=config.pop("out_channels"),
        num_classes=config.pop("num_classes", None) or 0,
        channels=config.pop("model_channels"),
        multipliers=tuple(config.pop("channel_mult", (1, 2, 4, 8))),
        depth=config.pop("num_res_blocks"),
        attention_resolutions=tuple(size // rate for rate in config.pop("attention_resolutions")),
        num_heads=num_heads if head_channels == -1 else None,
        head_channels=None if head_channels == -1 else head_channels,
        legacy_attention_order=not config.pop("use_new_attention_order", False),
        scale_shift=config.pop("use_scale_shift_norm", False),
        resblock_resample=config.pop("resblock_updown", False),
        learned_resample=config.pop("conv_resample", True),
        dropout=config.pop("dropout", 0.0),
        null_label=False,
    )
    if config:
        raise ValueError(f"arguments of guided-diffusion's UNetModel not understood: {', '.join(config)}")
    image = jax.ShapeDtypeStruct((1, size, size, in_channels), np.float32)
    time, label = jax.ShapeDtypeStruct((1,), np.float32), jax.ShapeDtypeStruct((1,), np.int32)
    expected = jax.eval_shape(net.init, jax.random.key(0), image, time, label)["params"]
    return net, convert(state_dict, expected)


def convert(state_dict, expected):
    """state_dict as a parameter tree with the paths and shapes of `expected`, every key used exactly once."""
    flat: dict = {}
    for key, value in state_dict.items():
        path, array = rename(key, np.asarray(value, np.float32))
        if path in flat:
            raise ValueError(f"{key} and {flat[path][0]} are the same parameter")
        flat[path] = (key, array)
    wanted = {
        tuple(entry.key for entry in path): leaf.shape
        for path, leaf in jax.tree_util.tree_flatten_with_path(expected)[0]
    }
    missing = sorted("/".join(path) for path in wanted.keys() - flat.keys())
    unused = sorted(flat[path][0] for path in flat.keys() - wanted.keys())
    if missing or unused:
        raise ValueError(f"state dict does not fit the network; without a key: {missing}; keys unused: {unused}")
    for path, shape in wanted.items():
        key, array = flat[path]
        if array.shape != shape:
            raise ValueError(f"{key} has shape {array.shape} in our layout, the network has {shape}")
    tree: dict = {}
    for path, (_, array) in flat.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = array
    return tree


def rename(key, value):
    """Their (key, array) → our (path, array): OIHW → HWIO, [out, in] → [in, out], 1×1 convolutions → dense."""
    if key == "label_emb.weight":
        return ("label",), value
    module, _, kind = key.rpartition(".")
    if module in TOP_LEVEL:
        path = TOP_LEVEL[module]
    elif match := BLOCK.fullmatch(module):
        side, i, j, inner, middle, k, middle_inner = match.groups()
        block = f"{side}_{i}_{j}" if side else f"{middle}_{k}"
        path = (block, RENAMED.get(inner or middle_inner, inner or middle_inner))
    else:
        path = tuple(module.split("."))
    if kind == "bias":
        return (*path, "bias"), value
    if value.ndim == 1:
        return (*path, "scale"), value
    if value.ndim > 2 and set(value.shape[2:]) == {1}:  # convolutions of width one are dense layers here
        value = value.reshape(value.shape[:2])
    return (*path, "kernel"), value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
