"""Networks of huggingface/diffusers that are ADM's: a `UNet2DModel`'s folder → ours.

Accepted are the configs whose network is `cfgjax.nets.UNet`, number for number. Every level is
`ResnetDownsampleBlock2D`, `DownBlock2D` or `AttnDownBlock2D` on the way down, and its counterpart on the way up:
`ResnetUpsampleBlock2D`, `UpBlock2D`, `AttnUpBlock2D`. All are resampled in one manner, by residual blocks (`Resnet…`,
`downsample_type` and `upsample_type` "resnet") or by convolutions. `resnet_time_scale_shift` is "scale_shift", with
`attn_norm_num_groups` 32, or "default". `num_class_embeds` may be given. Every other key has the value in `ONLY`.
"""

import math
from pathlib import Path

from cfgjax.base.errors import UsageError, nearest, one_line
from cfgjax.base.json_files import read_json
from cfgjax.base.weights import read_weights
from cfgjax.convert.diffusers_folder import network_folder, weights_file
from cfgjax.convert.diffusers_sizes import check_sizes, check_values, differences
from cfgjax.convert.layout import Slot, load, shapes_of
from cfgjax.convert.presets import MAX_SIZE, MAX_TIMESTEPS
from cfgjax.nets import UNet

# The keys of config.json: those with one value that is accepted, which is the default too, and defaults of the others.
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
DEFAULTS = {
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
IGNORED = (
    "num_train_timesteps",  # of time embeddings that are not accepted
    *("decay", "min_decay", "inv_gamma", "power", "optimization_step", "update_after_step", "use_ema_warmup"),  # of EMA
)

# Their blocks → (whether they have attention, how they resample; None: as downsample_type or upsample_type says)
DOWN = {"ResnetDownsampleBlock2D": (False, "resnet"), "DownBlock2D": (False, "conv"), "AttnDownBlock2D": (True, None)}
UP = {"ResnetUpsampleBlock2D": (False, "resnet"), "UpBlock2D": (False, "conv"), "AttnUpBlock2D": (True, None)}

# Our module names → theirs
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


def read_unet(folder):
    """Returns (net, image shape, config, file, `Weights`) of a network's or a pipeline's folder; file has the weights.

    Raises UsageError for files that are missing or damaged, and for a config that is not accepted or whose sizes are
    far from those of the weights.
    """
    folder = network_folder(folder)
    config = read_json(folder / "config.json")
    check(config)
    file = weights_file(folder)
    weights = read_weights(file)
    net, image_shape = make_unet(config, weights.arrays)
    return net, image_shape, config, file, weights


def unet(config, state_dict):
    """(net, params) of a `UNet2DModel`: the dict of its config.json and its state dict, key names → arrays.

    Raises UsageError naming the key of a config that is not accepted, see above, or the keys of the state dict that
    are missing, left over or of another shape.
    """
    net, image_shape = make_unet(config, state_dict)
    return net, parameters(net, image_shape, state_dict, config)


def parameters(net, image_shape, state_dict, config):
    """The parameters of net, which `make_unet` made of config, out of a state dict; errors as in `unet`."""
    try:
        return load(state_dict, shapes_of(net, image_shape), slots(net))
    except UsageError as e:
        if reasons := differences({**DEFAULTS, **config}, state_dict):
            raise UsageError(f"{e}; {reasons}") from e
        raise


def make_unet(config, state_dict):
    """(net, image shape) of the dict of a config.json, whose sizes are those of a state dict."""
    check(config)
    given = {**DEFAULTS, **config}
    channels, types = given["block_out_channels"], given["down_block_types"]
    attention, resample = levels(given)
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


def check(config):
    """Raises UsageError for a key of config.json that is unknown or whose value, by itself, is not accepted."""
    for key, value in config.items():
        if (key.startswith("_") and key != "_class_name") or key in IGNORED:
            continue
        if key not in ONLY and key not in DEFAULTS:
            raise UsageError(f"config.json has {key}, which is not understood{nearest(key, [*ONLY, *DEFAULTS])}")
        if key in ONLY and value != ONLY[key]:
            raise UsageError(f"config.json has {key} {one_line(repr(value), 100)}; accepted is {ONLY[key]!r}")
    given = {**DEFAULTS, **config}
    check_values(given)
    if len({len(given[key]) for key in ("down_block_types", "up_block_types", "block_out_channels")}) > 1:
        raise UsageError("config.json has down_block_types, up_block_types and block_out_channels of different lengths")
    time, groups = given["resnet_time_scale_shift"], given["attn_norm_num_groups"]
    if time not in ("default", "scale_shift"):
        raise UsageError(f"config.json has resnet_time_scale_shift {time!r}; accepted are 'default' and 'scale_shift'")
    if groups != 32 and (groups, time) != (None, "default"):
        raise UsageError(f"config.json has attn_norm_num_groups {groups}; accepted with {time!r} is 32")
    if given["out_channels"] not in (given["in_channels"], 2 * given["in_channels"]):
        accepted = f"{given['in_channels']}, or {2 * given['in_channels']} with learned variance"
        raise UsageError(f"config.json has out_channels {given['out_channels']}; accepted are {accepted}")


def levels(given):
    """(whether each level has attention, how all but the last are resampled, "conv" or "resnet")."""
    found = {}
    for key, known, manner in (("down_block_types", DOWN, "downsample_type"), ("up_block_types", UP, "upsample_type")):
        types = given[key]
        if unknown := [name for name in types if name not in known]:
            raise UsageError(f"config.json has {key} with {unknown[0]!r}; accepted are {', '.join(known)}")
        manners = [known[name][1] or given[manner] for name in types[:-1]]  # the last is not resampled
        found[key] = [known[name][0] for name in types], manners
    (down, down_manners), (up, up_manners) = found.values()
    if down != up[::-1]:
        raise UsageError("config.json has up_block_types that are not down_block_types reversed")
    if wrong := set(down_manners + up_manners) - {"conv", "resnet"}:
        raise UsageError(f"config.json has downsample_type or upsample_type {wrong.pop()!r}; accepted: conv, resnet")
    if len(set(down_manners + up_manners)) > 1:
        raise UsageError("config.json has down_block_types and up_block_types that resample in two manners")
    return down, (down_manners or ["conv"])[0]


def sample_size(given):
    """Height and width of the images, which must be equal."""
    size = given["sample_size"]
    sides = set(size) if isinstance(size, list | tuple) else {size}
    if len(sides) != 1 or not isinstance(side := sides.pop(), int):
        raise UsageError(f"config.json has sample_size {size}; need the one height and width of the images")
    if not 1 <= side <= MAX_SIZE:
        raise UsageError(f"config.json has sample_size {one_line(size, 100)}; need a height in 1 … {MAX_SIZE}")
    return side


def multiplier(width, channels):
    """The multiplier with int(multiplier · channels) = width, rounded up where division rounds down."""
    ratio = width / channels
    return ratio if int(ratio * channels) == width else math.nextafter(ratio, math.inf)


def slots(net):
    """The function of a parameter's path that gives its `Slot` in a `UNet2DModel`'s state dict."""

    def slot(path):
        if path == ("label",):
            return Slot(("class_embedding.weight",))
        block, *inner, kind = path
        prefix = OUTSIDE.get(block) or f"{place(block, inner[0])}."
        if inner == ["qkv"]:
            return Slot(tuple(f"{prefix}to_{which}.{KINDS[kind]}" for which in "qkv"))
        name = prefix + "".join(INSIDE[module] for module in inner)
        return Slot((f"{name}.{KINDS[kind]}",), 2 if inner == ["skip"] and kind == "kernel" else 0)

    def place(block, inner):
        """Where a block is there: "down_blocks.1.resnets.0"."""
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


def process(folder):
    """(betas, num_timesteps, v) of the scheduler of the pipeline that a network's folder is part of.

    That is ../scheduler/scheduler_config.json, whose network must predict ε, and whose betas must be those of
    `cfgjax.diffusion.discrete`. v: of the reverse variance, where it is not learned. Without a scheduler they are those
    of ADM and diffusers' default, ("linear", 1000, 0.0).
    Raises UsageError naming the key that is not accepted.
    """
    path = Path(folder).absolute().parent / "scheduler" / "scheduler_config.json"
    if not path.is_file():
        return "linear", 1000, 0.0
    given = read_json(path)
    steps, known = given.get("num_train_timesteps", 1000), {"linear": "linear", "squaredcos_cap_v2": "cosine"}
    only: dict = {"beta_schedule": tuple(known), "prediction_type": ("epsilon", None), "trained_betas": (None,)}
    only |= {"rescale_betas_zero_snr": (False, None), "variance_type": (None, *VARIANCES)}
    if type(steps) is not int or not 2 <= steps <= MAX_TIMESTEPS:
        raise UsageError(f"{path} has num_train_timesteps {steps!r}; need an integer in 2 … {MAX_TIMESTEPS}")
    if given.get("beta_schedule") == "linear":
        only |= {"beta_start": (0.1 / steps, None), "beta_end": (20 / steps, None)}
    for key, accepted in only.items():
        if given.get(key) not in accepted:
            listed = ", ".join(str(value) for value in accepted if value is not None) or "none"
            raise UsageError(f"{path} has {key} {one_line(repr(given.get(key)), 100)}; accepted: {listed}")
    v = 1.0 if str(given.get("variance_type")).startswith("fixed_large") else 0.0
    return known[given["beta_schedule"]], steps, v
