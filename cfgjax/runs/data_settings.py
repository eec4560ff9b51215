"""The sections `data` and `model` of a config, whose further keys their data source and network take."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from cfgjax.base.errors import UsageError
from cfgjax.runs.values import (
    BELOW_ONE,
    COUNT,
    NONE,
    NOT_NEGATIVE,
    NUMBERS,
    POSITIVE,
    TEXT,
    YES_NO,
    Count,
    Kind,
    Seconds,
    Text,
    integer,
    one_of,
    real,
    several,
)

WIDTH = integer(1, 2**16)  # of a layer; XLA aborts the process if the size of an array overflows


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """config.data: the examples, how they are augmented, and who decodes them.

    source: a key of `SOURCES`. num_classes: K. image_shape: (height, width, channels), or (dimensions,) of points.
    kind: "image", or "latent" for unbounded float32 arrays [H, W, C] that are never drawn or rounded to uint8.
    split: "all", "holdout" (every sixth example by index) or "train" (the others). random_flip, random_crop:
    augmentation; random_crop is the smallest crop as a share of the side. low_res_size: height of an upsampler's input.
    num_workers: worker processes for images that are not in memory; 0 computes batches in this process.
    worker_timeout_seconds: see `Dataset`. options: keyword arguments of the source.
    """

    source: Text
    num_classes: Annotated[int, integer(1, 2**20)]
    image_shape: Annotated[tuple[int, ...], several(COUNT, "a tuple of 1 or 3 integers of at least 1", lengths=(1, 3))]
    kind: Annotated[str, one_of("image", "latent")] = "image"
    split: Text = "all"
    random_flip: bool = False
    random_crop: Annotated[float, real("a share of the side in (0, 1]", lambda v: 0 < v <= 1)] = 1.0
    low_res_size: Count | None = None
    num_workers: Annotated[int, integer(0, 1024)] = 0
    worker_timeout_seconds: Seconds = 600.0
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    KINDS: ClassVar[dict[str, Kind]] = {  # of the options of this package's sources
        "path": TEXT,
        "crop": TEXT | NONE,
        "class_order": TEXT,
        "data_dir": TEXT | NONE,
        "tfds_split": TEXT,
        "seed": integer(0, 2**32 - 1),
        "num_examples": COUNT,
        "means": several(NUMBERS, "a tuple of tuples of finite numbers"),
        "stds": several(POSITIVE, "a tuple of finite numbers above 0"),
        "weights": several(NOT_NEGATIVE, "a tuple of finite numbers of at least 0"),
    }

    def __post_init__(self) -> None:
        augmented = self.random_flip or self.random_crop != 1 or self.low_res_size is not None
        if augmented and not self.is_image:
            what = "data.random_flip, random_crop and low_res_size are for images"
            points = f"data.image_shape {self.image_shape} is that of points"
            given = f"data.kind is {self.kind!r}" if len(self.image_shape) == 3 else points
            raise UsageError(f"{what}; {given}: set them to False, 1 and None")
        if self.low_res_size is None:
            return
        height, width = self.image_shape[:2]
        if not self.low_res_size < height or height % self.low_res_size or width % (height // self.low_res_size):
            need = f"a divisor of the height {height}, less than it; the width {width} must shrink by the same factor"
            raise UsageError(f"data.low_res_size is {self.low_res_size}; need {need}")

    @property
    def is_image(self) -> bool:
        """Whether the examples are images, in [−1, 1], rather than points or latents."""
        return self.kind == "image" and len(self.image_shape) == 3

    @property
    def low_res_shape(self) -> tuple[int, ...] | None:
        """Returns the shape (height, width, channels) of an upsampler's input, or None for other networks."""
        if self.low_res_size is None:
            return None
        factor = self.image_shape[0] // self.low_res_size
        return (*(side // factor for side in self.image_shape[:2]), self.image_shape[2])


@dataclasses.dataclass(frozen=True)
class ModelSettings:
    """config.model: the network. name: a key of `NETS` or of the classifiers. options: the network's fields."""

    name: Text
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    KINDS: ClassVar[dict[str, Kind]] = {  # of the options of this package's networks
        "channels": WIDTH,
        "multipliers": several(POSITIVE, "a non-empty tuple of finite numbers above 0"),
        "depth": integer(1, 1000),
        "attention_resolutions": several(COUNT, "a tuple of integers of at least 1", least=0),
        "num_heads": WIDTH | NONE,
        "head_channels": WIDTH | NONE,
        "legacy_attention_order": YES_NO,
        "scale_shift": YES_NO,
        "resblock_resample": YES_NO,
        "learned_resample": YES_NO,
        "rescale": YES_NO,
        "dropout": BELOW_ONE,
        "conditional": YES_NO,
        "null_label": YES_NO,
        "low_res": YES_NO,
        "low_res_noise": YES_NO,
        "dtype": one_of("float32", "bfloat16"),
        "fused_attention": YES_NO,
        "remat": TEXT,
        "pool": TEXT,
        "num_features": WIDTH,
        "width": WIDTH,
    }
