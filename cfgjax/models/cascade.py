"""A cascade: a model of small images, and an upsampler of them; ADM (arXiv:2105.05233) section 5.3."""

import contextlib

from cfgjax.base.errors import UsageError
from cfgjax.data.batches import to_uint8
from cfgjax.diffusion.guidance import conditional
from cfgjax.models.model import load

UPSAMPLER_SEED = 2**31  # added to the seed, so that the stages' noise is not the same numbers


def load_cascade(base, upsampler, mesh=None, **options):
    """The `Cascade` of two runs, on a mesh as in `cfgjax.load`. options: step and ema of `cfgjax.load`, of the base."""
    return Cascade(load(base, mesh=mesh, **options), load(upsampler, mesh=mesh))


class Cascade:
    """Two `Model`s as one: .sample(labels, …) are the upsampler's images of the base's samples, rounded to 8 bits.

    Raises UsageError where the base's images are not those that the upsampler takes, or their classes differ.
    """

    def __init__(self, base, upsampler):
        if upsampler.low_res_shape is None:
            raise UsageError("the model given as upsampler is none: its network takes no low-resolution image")
        if base.low_res_shape is not None:
            raise UsageError("the model given as base is an upsampler itself")
        if base.image_shape != upsampler.low_res_shape:
            raise UsageError(f"the base draws images {base.image_shape}, the upsampler takes {upsampler.low_res_shape}")
        if base.num_classes != upsampler.num_classes:
            raise UsageError(f"the base has {base.num_classes} classes, the upsampler {upsampler.num_classes}")
        self.base, self.upsampler = base, upsampler
        self.settings, self.step, self.is_image = base.settings, base.step, True
        self.check_guidance = base.check_guidance
        self.num_classes, self.image_shape = upsampler.num_classes, upsampler.image_shape

    def sample(self, labels, guidance=None, *, seed=0, upsampling=None, **options):
        """Samples uint8 [N, H, W, C], one per label. options: of the base's `Model.sample`; upsampling: the other's."""
        stage = {"seed": (seed + UPSAMPLER_SEED) % 2**32, **(upsampling or {})}
        self.upsampler.sampler(**stage, rule=conditional())  # or an error, before the base draws
        with naming("base"):
            low_res = self.base.sample(labels, guidance, seed=seed, **options)
        with naming("upsampler"):
            return to_uint8(self.upsampler.sample_float(labels, low_res=low_res, **stage))


@contextlib.contextmanager
def naming(stage):
    """Adds the name of a stage to an error about samples that are not finite."""
    try:
        yield
    except ArithmeticError as e:
        raise ArithmeticError(f"{stage}: {e}") from e
