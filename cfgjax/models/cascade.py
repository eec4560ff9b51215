"""A cascade: a model of small images, and an upsampler of them; ADM (arXiv:2105.05233) section 5.3."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from jax.sharding import Mesh
from jaxtyping import UInt8

from cfgjax.base.errors import UsageError
from cfgjax.base.finite import check_finite_samples
from cfgjax.base.storage import Place
from cfgjax.data.batches import to_float, to_uint8
from cfgjax.diffusion.guidance import at_zero, conditional
from cfgjax.distributed.collectives import gather_rows
from cfgjax.models.binding import rule_value
from cfgjax.models.loading import default_mesh, load
from cfgjax.models.model import Model
from cfgjax.runs.averages import stored_digest
from cfgjax.runs.diffusion_settings import without_later_keys
from cfgjax.runs.sample_options import SampleOptions, fields

UPSAMPLER_SEED = 2**31  # added to the seed, so that the stages' noise is not the same numbers


def load_cascade(
    base: str | Place,
    upsampler: str | Place,
    mesh: Mesh | None = None,
    upsampling: dict[str, Any] | None = None,
    **options: Any,
) -> "Cascade":
    """Returns the `Cascade` of two runs. mesh: see `cfgjax.load`. options: step and ema of the base."""
    mesh = default_mesh() if mesh is None else mesh
    return Cascade(load(base, mesh=mesh, **options), load(upsampler, mesh=mesh), upsampling)


class Cascade:
    """A base model and an upsampler, which enlarges the base's samples after they are rounded to 8 bits.

    upsampling: options of `Model.sample` for the upsampler, by default those of its config.sample. Raises UsageError if
    the upsampler takes images of another shape than the base's, or their classes differ.
    """

    def __init__(self, base: Model, upsampler: Model, upsampling: dict[str, Any] | None = None) -> None:
        if upsampler.low_res_shape is None:
            raise UsageError(
                "the upsampler's network takes no low-resolution image; need a run with model.low_res=True"
            )
        if base.low_res_shape is not None:
            raise UsageError("the base model is an upsampler itself; need a run with model.low_res=False")
        if base.image_shape != upsampler.low_res_shape:
            raise UsageError(f"the base draws images {base.image_shape}, the upsampler needs {upsampler.low_res_shape}")
        if base.num_classes != upsampler.num_classes:
            raise UsageError(
                f"the base has {base.num_classes} classes, the upsampler {upsampler.num_classes}; need the same"
            )
        self.base, self.upsampler, self.upsampling = base, upsampler, dict(upsampling or {})
        self.settings, self.step, self.is_image = base.settings, base.step, True
        self.check_guidance, self.classes = base.check_guidance, base.classes
        self.num_classes, self.image_shape = upsampler.num_classes, upsampler.image_shape

    @property
    def mesh(self) -> Mesh:
        """The devices of both stages."""
        return self.base.mesh

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
        stage = {"seed": upsampler_seed(seed), **(self.upsampling if upsampling is None else upsampling)}
        self.upsampler.sampler(**stage, rule=conditional())  # raises errors before the base draws
        with stage_named("base"):
            low_res = self.base.sample(labels, guidance, seed=seed, **options)
        with stage_named("upsampler"):
            return to_uint8(self.upsampler.sample_float(labels, low_res=low_res, **stage))

    def sampler(self, *, seed: int = 0, **options: Any) -> Callable:
        """Returns draw(index [B], labels [B], weights [B]) → x̃ [B, …] of the upsampler, see `Model.sampler`.

        weights: of the base. options: of the base, whose levels a trajectory has; the upsampler's are .upsampling. draw
        raises ArithmeticError if a sample of the base is not finite.
        """
        rule = at_zero(rule_value(self.upsampler.options.rule))
        upsample = self.upsampler.sampler(**{"seed": upsampler_seed(seed), "rule": rule, **self.upsampling})
        draw_base = self.base.sampler(seed=seed, **options)

        def draw(index: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> Any:
            drawn = draw_base(index, labels, weights)
            small, *seen = drawn if options.get("trajectory") else (drawn,)
            small = gather_rows(small)
            with stage_named("base"):
                check_finite_samples(small, index, labels, weights)
            x = upsample(index, labels, np.zeros_like(weights), {"low_res": to_float(to_uint8(small))})
            return (x, *seen) if seen else x

        return draw

    def upsampler_identity(self, workdir: str | Place) -> dict[str, Any]:
        """Returns everything that the samples depend on besides the base's, as JSON values.

        workdir: of the upsampler, whose parameters are those of its step and average.
        """
        settings, step, ema = self.upsampler.settings, self.upsampler.step, float(self.upsampler.ema or 0)
        options = self.upsampler.options.with_changes(
            "Model", **{name: value for name, value in self.upsampling.items() if name != "low_res_logsnr"}
        )
        plain = lambda value: value if value is None or isinstance(value, str | int | float) else repr(value)
        changed = {name: plain(getattr(options, name)) for name in fields("Model") if name != "seed"}
        changed = {name: value for name, value in changed.items() if value != getattr(SampleOptions(), name)}
        config = {name: settings.given[name] for name in ("data", "diffusion", "model")}
        return {
            "checkpoint": stored_digest(workdir, settings, int(step or 0), ema),
            "step": step,
            "ema": ema,
            **config,
            "diffusion": without_later_keys(config["diffusion"]),
            "options": {**changed, "num_steps": options.num_steps},
            "low_res_logsnr": self.upsampling.get("low_res_logsnr"),
        }


def first_stage(model: Model | Cascade) -> Model:
    """Returns the base of a cascade, or the model itself."""
    return model.base if isinstance(model, Cascade) else model


def upsampler_seed(seed: int) -> int:
    """Returns the seed of the upsampler's noise."""
    return (seed + UPSAMPLER_SEED) % 2**32


@contextlib.contextmanager
def stage_named(stage: str) -> Iterator[None]:
    """Adds the name of a stage to an error about samples that are not finite."""
    try:
        yield
    except ArithmeticError as e:
        raise ArithmeticError(f"{stage}: {e}") from e
