"""A cascade: a model of small images, and an upsampler of them; ADM (arXiv:2105.05233) section 5.3."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8

from cfgjax.base.errors import UsageError
from cfgjax.data.batches import to_uint8
from cfgjax.diffusion.guidance import conditional
from cfgjax.models.loading import load
from cfgjax.models.model import Model

UPSAMPLER_SEED = 2**31  # added to the seed, so that the stages' noise is not the same numbers


def load_cascade(base: str | Path, upsampler: str | Path, mesh: Mesh | None = None, **options: Any) -> "Cascade":
    """Returns the `Cascade` of two runs. mesh: see `cfgjax.load`. options: step and ema of the base."""
    return Cascade(load(base, mesh=mesh, **options), load(upsampler, mesh=mesh))


class Cascade:
    """A base model and an upsampler, which enlarges the base's samples after they are rounded to 8 bits.

    Raises UsageError if the upsampler takes images of another shape than the base's, or their classes differ.
    """

    def __init__(self, base: Model, upsampler: Model) -> None:
        if upsampler.low_res_shape is None:
            raise UsageError("the upsampler's network takes no low-resolution image")
        if base.low_res_shape is not None:
            raise UsageError("the base model is an upsampler itself")
        if base.image_shape != upsampler.low_res_shape:
            raise UsageError(f"the base draws images {base.image_shape}, the upsampler takes {upsampler.low_res_shape}")
        if base.num_classes != upsampler.num_classes:
            raise UsageError(f"the base has {base.num_classes} classes, the upsampler {upsampler.num_classes}")
        self.base, self.upsampler = base, upsampler
        self.settings, self.step, self.is_image = base.settings, base.step, True
        self.check_guidance = base.check_guidance
        self.num_classes, self.image_shape = upsampler.num_classes, upsampler.image_shape

    def sample(
        self,
        labels: Any,
        guidance: Any = None,
        *,
        seed: int = 0,
        upsampling: dict[str, Any] | None = None,
        **options: Any,
    ) -> UInt8[np.ndarray, "n height width channels"]:
        """Returns an image for each label. options, upsampling: those of `Model.sample` for the two stages."""
        stage = {"seed": (seed + UPSAMPLER_SEED) % 2**32, **(upsampling or {})}
        self.upsampler.sampler(**stage, rule=conditional())  # raises errors before the base draws
        with stage_named("base"):
            low_res = self.base.sample(labels, guidance, seed=seed, **options)
        with stage_named("upsampler"):
            return to_uint8(self.upsampler.sample_float(labels, low_res=low_res, **stage))


@contextlib.contextmanager
def stage_named(stage: str) -> Iterator[None]:
    """Adds the name of a stage to an error about samples that are not finite."""
    try:
        yield
    except ArithmeticError as e:
        raise ArithmeticError(f"{stage}: {e}") from e
