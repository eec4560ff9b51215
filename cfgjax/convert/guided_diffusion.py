"""Networks of openai/guided-diffusion (ADM): constructor arguments and state dicts → ours, and back.

Their classes are `UNetModel`, `SuperResModel` and `EncoderUNetModel`, their arrays PyTorch's (NCHW layouts). Imported
networks take the discrete t as time and have no null label.
"""

from cfgjax.base.errors import UsageError, nearest
from cfgjax.convert.layout import Slot, check, load, save, shapes_of
from cfgjax.nets import NoisyClassifier, UNet

# Our module names → theirs: in a block, and outside of them. Blocks themselves are numbered alike.
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
ONES = {"skip": 2, "pool": 2, "qkv": 1, "proj": 1}  # dense layers that are convolutions there

# Constructor arguments of all three classes. The last three change no parameter and no output here.
REQUIRED = ("image_size", "in_channels", "model_channels", "out_channels", "num_res_blocks", "attention_resolutions")
DEFAULTS = {
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


def unet(config, state_dict):
    """(net, params) of guided-diffusion's `UNetModel`.

    config: its constructor arguments; `attention_resolutions` there are downsampling rates. Where `num_classes` is
    None net is unconditional, with num_classes 1.
    state_dict: its key names → arrays, numpy or anything `numpy.asarray` takes; float32 ones are not copied.
    Raises UsageError for keys that are missing, left over or of another shape, and for arguments not understood.
    """
    net, image_shape = make_unet(config)
    return net, parameters(net, image_shape, state_dict)


def upsampler(config, state_dict):
    """(net, params) of `SuperResModel`, as `unet`; `in_channels` there are the image's, and the network joins two."""
    net, image_shape = make_upsampler(config)
    return net, parameters(net, image_shape, state_dict)


def classifier(config, state_dict):
    """(net, params) of `EncoderUNetModel`, as `unet`; `out_channels` there are the classes."""
    net, image_shape = make_classifier(config)
    return net, parameters(net, image_shape, state_dict)


def parameters(net, image_shape, state_dict):
    """The parameters of net, which `make_unet` or another made, out of a state dict; errors as in `unet`."""
    return load(state_dict, shapes_of(net, image_shape), slots(net))


def fits(preset, state_dict):
    """Whether a state dict is of the network of a `presets.Preset`, by its keys and shapes."""
    net, image_shape = MAKERS[preset.kind](preset.arguments)
    try:
        check(state_dict, shapes_of(net, image_shape), slots(net))
    except UsageError:
        return False
    return True


def state_dict(net, params):
    """guided-diffusion's state dict of our network: {key: float32 array}, exactly inverse to the functions above.

    A null label stays the last row of `label_emb.weight`, a class of its own there.
    Raises UsageError for networks that guided-diffusion does not have.
    """
    if not isinstance(net, UNet | NoisyClassifier):
        raise UsageError(f"guided-diffusion has no counterpart of the network {type(net).__name__}")
    for name in ("rescale", "low_res_noise"):
        if getattr(net, name, False):
            raise UsageError(f"guided-diffusion has no network with model.{name}")
    return save(params, slots(net))


def slots(net):
    """The function of a parameter's path that gives its `Slot` in a state dict."""
    outside = OUTSIDE | (POOLED[net.pool] if isinstance(net, NoisyClassifier) else {})

    def slot(path):
        if path == ("label",):
            return Slot(("label_emb.weight",))
        *modules, kind = path
        block, *numbers = modules[0].split("_")
        if (name := outside.get("/".join(modules))) is None:
            inner = ["op" if (block, m) == ("input", "conv") else INSIDE[m] for m in modules[1:]]
            name = ".".join([BLOCKS[block], *numbers, *inner])
        return Slot((f"{name}.{KINDS[kind]}",), ONES.get(modules[-1], 0) if kind == "kernel" else 0)

    return slot


def make_unet(config):
    """(net, image shape) for the constructor arguments of `UNetModel`."""
    given = arguments("UNetModel", config, num_classes=None)
    conditional = given["num_classes"] is not None
    own = dict(out_channels=given["out_channels"], conditional=conditional, null_label=False)
    if given["num_head_channels"] == -1 and given["num_heads_upsample"] not in (-1, given["num_heads"]):
        heads = f"num_heads_upsample is {given['num_heads_upsample']}, num_heads is {given['num_heads']}"
        raise UsageError(f"{heads}; ours are the same both ways")
    return UNet(num_classes=given["num_classes"] if conditional else 1, **own, **backbone(given)), shape_of(given)


def make_upsampler(config):
    """(net, image shape) for the constructor arguments of `SuperResModel`."""
    net, shape = make_unet(config)
    return net.clone(low_res=True), shape


def make_classifier(config):
    """(net, image shape) for the constructor arguments of `EncoderUNetModel`."""
    given = arguments("EncoderUNetModel", config, pool="adaptive")
    if given["pool"] not in POOLED:
        raise UsageError(f"unknown pool {given['pool']!r}{nearest(given['pool'], POOLED)}")
    net = NoisyClassifier(num_classes=given["out_channels"], pool=given["pool"], **backbone(given))
    return net, shape_of(given)


def arguments(name, config, **own):
    """All constructor arguments of a class of theirs, the defaults filled in."""
    known = DEFAULTS | own
    for key in config:
        if key not in known and key not in REQUIRED:
            raise UsageError(f"guided-diffusion's {name} takes no {key}{nearest(key, [*REQUIRED, *known])}")
    if missing := [key for key in REQUIRED if key not in config]:
        raise UsageError(f"the arguments of guided-diffusion's {name} lack {', '.join(missing)}")
    if config.get("dims", 2) != 2:
        raise UsageError(f"dims is {config['dims']}; ours are networks of images, dims 2")
    return known | config


def backbone(given):
    """The fields of `Backbone` but num_classes for their constructor arguments."""
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


def shape_of(given):
    """[H, W, C] of the images."""
    return (given["image_size"], given["image_size"], given["in_channels"])


# Preset.kind → what makes its network
MAKERS = {"unet": make_unet, "upsampler": make_upsampler, "classifier": make_classifier}
