"""Builds a `presets.Preset` from the flags of guided-diffusion's `script_util.py`."""

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from numpy.typing import ArrayLike

from cfgjax.base.errors import UsageError, nearest
from cfgjax.convert.adm_sizes import derived_arguments
from cfgjax.convert.presets import MAX_SIZE, MAX_TIMESTEPS, MULTIPLIERS, Preset

T = TypeVar("T")

LARGE_MULTIPLIERS = {64: MULTIPLIERS[64], 256: MULTIPLIERS[256], 512: MULTIPLIERS[256]}  # of upsamplers


def as_integer(value: object, least: int = 1, most: int = MAX_SIZE) -> int:
    """Returns value as an integer from least to most."""
    try:
        found = int(value) if isinstance(value, str) else value
    except ValueError:
        found = None
    if type(found) is not int or not least <= found <= most:
        raise ValueError(f"need an integer in {least} … {most}")
    return found


def as_integer_or_unset(value: object) -> int:
    """Returns value as a positive integer, or as −1, which means "not set"."""
    return -1 if value in (-1, "-1") else as_integer(value)


def as_timesteps(value: object) -> int:
    """Returns value as a number of timesteps."""
    return as_integer(value, 2, MAX_TIMESTEPS)


def as_truth(value: object) -> bool:
    """Returns value as a boolean."""
    words = {"true": True, "t": True, "1": True, "yes": True, "y": True}
    words |= {"false": False, "f": False, "0": False, "no": False, "n": False}
    if not isinstance(value, (bool, int, str)) or str(value).lower() not in words:
        raise ValueError("need true or false")
    return words[str(value).lower()]


def as_number(value: Any, least: float = 0.0, most: float = 1.0) -> float:
    """Returns value as a float in [least, most]."""
    try:
        found = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not least <= found <= most:
        raise ValueError(f"need a number in {least:g} … {most:g}")
    return found


def as_sequence(value: object, kind: Callable[[Any], T]) -> tuple[T, ...]:
    """Returns a list or a comma-separated string as a tuple. kind: function that converts each entry."""
    if isinstance(value, str):
        value = value.split(",") if value.strip() else []
    return tuple(map(kind, value if isinstance(value, (list, tuple)) else [value]))


def as_integers(value: object) -> tuple[int, ...]:
    """Returns value as a tuple of positive integers."""
    return as_sequence(value, as_integer)


def as_multipliers(value: object) -> tuple[float, ...]:
    """Returns value as a tuple of positive numbers; integral ones become ints."""
    found = as_sequence(value, lambda entry: as_number(entry, 2**-10, 2**10))
    return tuple(int(entry) if entry == int(entry) else entry for entry in found)


def one_word_of(*known: str) -> Callable[[Any], str]:
    """Returns a function that returns its argument if it is one of the known words."""

    def check(value: Any) -> str:
        if value not in known:
            raise ValueError(f"need one of {', '.join(known)}")
        return value

    return check


# {flag: (function that converts a value, guided-diffusion's default, description)}
FLAGS: dict[str, tuple[Callable[[Any], Any], Any, str]] = {
    "image_size": (as_integer, 64, "Height and width of the images."),
    "num_channels": (as_integer, 128, "Channels of the first level; also --channels."),
    "num_res_blocks": (as_integer, 2, "Residual blocks per level; also --depth."),
    "channel_mult": (
        as_multipliers,
        (),
        "Multipliers of num_channels per level, such as 1,2,3,4; by default by image_size.",
    ),
    "attention_resolutions": (as_integers, (16, 8), "Heights of the feature maps with attention."),
    "num_heads": (as_integer, 4, "Attention heads, if num_head_channels is not set."),
    "num_heads_upsample": (as_integer_or_unset, -1, "Attention heads of the decoder; -1 for num_heads."),
    "num_head_channels": (as_integer_or_unset, -1, "Channels per attention head; -1 if num_heads sets them."),
    "dropout": (as_number, 0.0, "Dropout rate in training."),
    "class_cond": (as_truth, False, "Whether the network takes class labels."),
    "num_classes": (as_integer, None, "Number of classes; by default that of the weights."),
    "learn_sigma": (as_truth, False, "Whether the variance is learned."),
    "use_scale_shift_norm": (as_truth, True, "Whether the embedding scales and shifts the normalised features."),
    "resblock_updown": (as_truth, False, "Whether residual blocks do the up- and downsampling."),
    "use_new_attention_order": (as_truth, False, "Whether attention uses the new order of queries, keys and values."),
    "diffusion_steps": (as_timesteps, 1000, "Number of timesteps."),
    "noise_schedule": (one_word_of("linear", "cosine"), "linear", "Noise schedule, linear or cosine."),
    "predict_xstart": (as_truth, False, "Whether the network predicts x; must be false."),
    "rescale_timesteps": (as_truth, False, "Whether timesteps are multiplied by 1000 / diffusion_steps."),
    "large_size": (as_integer, 256, "Upsampler: height of its output images."),
    "small_size": (as_integer, 64, "Upsampler: height of its input images."),
    "classifier_width": (as_integer, 128, "Classifier: as num_channels; also --channels."),
    "classifier_depth": (as_integer, 2, "Classifier: as num_res_blocks; also --depth."),
    "classifier_attention_resolutions": (as_integers, (32, 16, 8), "Classifier: as attention_resolutions."),
    "classifier_use_scale_shift_norm": (as_truth, True, "Classifier: as use_scale_shift_norm."),
    "classifier_resblock_updown": (as_truth, True, "Classifier: as resblock_updown."),
    "classifier_pool": (
        one_word_of("adaptive", "attention", "spatial", "spatial_v2"),
        "attention",
        "Classifier: its pooling.",
    ),
}
ALIASES = {"channels": "num_channels", "depth": "num_res_blocks"}
OF_CLASSIFIER = {"channels": "classifier_width", "depth": "classifier_depth"}
IGNORED_FLAGS = {  # flags of guided-diffusion's scripts that affect neither the network nor the process
    *("use_kl", "rescale_learned_sigmas", "timestep_respacing", "use_checkpoint", "use_fp16", "classifier_use_fp16"),
    *("data_dir", "schedule_sampler", "lr", "weight_decay", "lr_anneal_steps", "batch_size", "microbatch", "ema_rate"),
    *("log_interval", "save_interval", "resume_checkpoint", "fp16_scale_growth", "clip_denoised", "num_samples"),
    *("use_ddim", "model_path", "classifier_path", "classifier_scale", "val_data_dir", "noised", "iterations"),
    *("anneal_lr", "eval_interval", "base_samples"),
}

# Constructor argument of guided-diffusion → (flag of a diffusion model, flag of a classifier)
SET_BY = {
    "model_channels": ("num_channels", "classifier_width"),
    "num_res_blocks": ("num_res_blocks", "classifier_depth"),
    "channel_mult": ("channel_mult", "channel_mult"),
    "attention_resolutions": ("attention_resolutions", "classifier_attention_resolutions"),
    "use_scale_shift_norm": ("use_scale_shift_norm", "classifier_use_scale_shift_norm"),
    "resblock_updown": ("resblock_updown", "classifier_resblock_updown"),
    "pool": ("classifier_pool", "classifier_pool"),
    "out_channels": ("learn_sigma", "num_classes"),
    "num_classes": ("num_classes", "num_classes"),
}


def preset_of(given: Mapping[str, Any], state_dict: Mapping[str, ArrayLike], source: str = "--") -> Preset:
    """Returns the `Preset` of a state dict and the flags that its network was trained with, {name: value}.

    The state dict determines the kind of network and, without a flag, the number of classes. Missing flags have
    guided-diffusion's defaults. source: prefix of flag names in errors. Raises UsageError for unknown flags and invalid
    values.
    """
    found = derived_arguments(state_dict)
    kind = found.get("kind", "unet")
    flags = read_flags(given, kind, source)
    sizes = {"unet": "image_size", "classifier": "image_size", "upsampler": "large_size"}
    size = flags[sizes[kind]]
    of = lambda argument: flags[SET_BY[argument][kind == "classifier"]]
    defaults = LARGE_MULTIPLIERS if kind == "upsampler" else MULTIPLIERS
    multipliers = flags["channel_mult"] or defaults.get(size)
    if multipliers is None:
        raise UsageError(f"{source}channel_mult must be given for {size}×{size} images")
    if too_high := [height for height in of("attention_resolutions") if height > size]:
        raise UsageError(f"{source}{SET_BY['attention_resolutions'][0]} has {too_high[0]}; the images are {size} high")
    arguments = dict(
        image_size=size,
        in_channels=3,
        model_channels=of("model_channels"),
        num_res_blocks=of("num_res_blocks"),
        attention_resolutions=tuple(size // height for height in of("attention_resolutions")),
        channel_mult=multipliers,
        use_scale_shift_norm=of("use_scale_shift_norm"),
        resblock_updown=of("resblock_updown"),
    )
    process = dict(betas=flags["noise_schedule"], num_timesteps=flags["diffusion_steps"])
    if kind == "classifier":
        classes = flags["num_classes"] or found.get("out_channels", 1000)
        arguments |= dict(out_channels=classes, num_head_channels=64, pool=flags["classifier_pool"])
        return Preset(kind, arguments, num_classes=classes, **process)
    classes = (flags["num_classes"] or found.get("num_classes") or 1000) if flags["class_cond"] else None
    arguments |= dict(out_channels=6 if flags["learn_sigma"] else 3, num_classes=classes, dropout=flags["dropout"])
    arguments |= {name: flags[name] for name in ("num_heads", "num_heads_upsample", "num_head_channels")}
    if kind == "upsampler":
        if size <= flags["small_size"] or size % flags["small_size"]:
            what = f"{source}large_size {size} is not a larger multiple of {source}small_size {flags['small_size']}"
            raise UsageError(what)
        process["low_res_size"] = flags["small_size"]
    else:
        arguments["use_new_attention_order"] = flags["use_new_attention_order"]
    v = 0.0 if flags["learn_sigma"] else 1.0  # guided-diffusion samples with the large variance unless it is learned
    return Preset(kind, arguments, num_classes=classes or 1, v=v, **process)


def read_flags(given: Mapping[str, Any], kind: str, source: str = "--") -> dict[str, Any]:
    """Returns {name: value} of all FLAGS: the given values, with aliases resolved, and defaults."""
    flags = {name: default for name, (_, default, _) in FLAGS.items()}
    for name, value in given.items():
        if name in IGNORED_FLAGS or value is None:
            continue
        own = (OF_CLASSIFIER if kind == "classifier" else ALIASES).get(name, name)
        if own not in FLAGS:
            raise UsageError(f"guided-diffusion has no flag {name!r}{nearest(name, [*FLAGS, *ALIASES])}")
        if own != name and given.get(own) is not None:
            raise UsageError(f"{source}{name} and {source}{own} are both given; give one")
        try:
            flags[own] = FLAGS[own][0](value)
        except ValueError as e:
            raise UsageError(f"{source}{name} is {str(value)[:100]!r}; {e}") from None
    if flags["predict_xstart"]:
        raise UsageError(f"{source}predict_xstart is true; need a network that predicts the noise")
    if flags["rescale_timesteps"] and flags["diffusion_steps"] != 1000:
        steps = flags["diffusion_steps"]
        raise UsageError(f"{source}rescale_timesteps is true with {steps} diffusion_steps; need 1000 steps, or false")
    return flags


def explained(preset: Preset, state_dict: Mapping[str, ArrayLike], source: str = "--") -> str:
    """Returns text about the flags of a preset that a state dict contradicts; "" if there are none."""
    found, given = derived_arguments(state_dict), {"num_classes": None} | preset.arguments
    if not found:
        return "the weights are not guided-diffusion's: they have no input_blocks.0.0.weight or time_embed.0.weight"
    rates = [2**level for level in range(len(given["channel_mult"]))]
    given["attention_resolutions"] = tuple(rate for rate in rates if rate in given["attention_resolutions"])
    reasons = []
    if found.get("kind", preset.kind) != preset.kind:
        return f"the weights are those of a network of kind {found['kind']}, not {preset.kind}"
    for name, value in found.items():
        if name == "input_blocks":
            count = len(given["channel_mult"]) * (given["num_res_blocks"] + 1)
            if count != value and "num_res_blocks" not in found:
                depth = SET_BY["num_res_blocks"][preset.kind == "classifier"]
                reasons.append(f"{source}{depth} and {source}channel_mult make {count} input blocks, not {value}")
        elif name in given and not same_argument(given[name], value):
            reasons.append(reason(preset, name, given[name], value, source))
    return "; ".join(reasons)


def same_argument(a: object, b: object) -> bool:
    """Returns whether two arguments are equal; sequences are compared up to rounding."""
    if isinstance(a, (tuple, list)) and isinstance(b, (tuple, list)):
        return len(a) == len(b) and all(math.isclose(x, y, rel_tol=1e-2) for x, y in zip(a, b, strict=True))
    return a == b


def reason(preset: Preset, name: str, given: Any, found: Any, source: str) -> str:
    """Returns text such as "--num_channels is 128, but the weights have 64" for a constructor argument."""
    flag = SET_BY[name][preset.kind == "classifier"]
    show = lambda value: ",".join(f"{entry:g}" for entry in value) if isinstance(value, tuple) else str(value).lower()
    if name == "attention_resolutions":
        size = preset.arguments["image_size"]
        given, found = (tuple(size // rate for rate in rates if rate <= size) for rates in (given, found))
    if name == "num_classes" and None in (given, found):
        flag, given, found = "class_cond", given is not None, found is not None
    if flag == "learn_sigma":
        given, found = given == 6, found == 6
    return f"{source}{flag} is {show(given) or 'empty'}, but the weights have {show(found) or 'none'}"


def check_blocks(preset: Preset, state_dict: Mapping[str, ArrayLike], source: str = "--") -> None:
    """Raises UsageError if a network of this preset would have more blocks than the weights have arrays."""
    blocks = len(preset.arguments["channel_mult"]) * preset.arguments["num_res_blocks"]
    if blocks > len(state_dict):
        why = explained(preset, state_dict, source)
        raise UsageError(why or f"the flags make {blocks:,} blocks; the weights have {len(state_dict)} arrays")
