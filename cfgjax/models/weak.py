"""The weak model of `autoguidance`: another run, another step or another average, as a part of a rule."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import Array, Float, PyTree

from cfgjax.base.errors import UsageError
from cfgjax.base.numerals import is_whole_number, real_number, whole_number
from cfgjax.diffusion.prediction import Prediction
from cfgjax.distributed.sharding import on_part, part_of_mesh
from cfgjax.models.guide import process_description
from cfgjax.runs.averages import stored_digest
from cfgjax.runs.settings import Settings


@dataclasses.dataclass(frozen=True)
class Bound:
    """predict(params, z, logsnr, cond), equal for equal `bind`, so that programs are reused."""

    bind: Callable

    def __call__(self, params: PyTree, z: Float[Array, "b ..."], logsnr: Float[Array, " b"], cond: Any) -> Prediction:
        return self.bind(params)(z, logsnr, cond)


def predictor(bind: Callable, params: PyTree, own_mesh: Mesh, mesh: Mesh) -> Callable:
    """Returns predict(z, logsnr [B], cond) of a `Model` on own_mesh, a tree of its parameters.

    Raises UsageError unless mesh is that of the model to be guided or a part of it (`part_of_mesh`).
    """
    if mesh != part_of_mesh(own_mesh, mesh.size):
        raise UsageError("the weak model and the model are on different meshes; load both with the same mesh=")
    return jax.tree_util.Partial(Bound(bind), on_part(mesh, params))


def check_weak(weak: Settings, model: Settings) -> None:
    """Raises UsageError unless a model of the settings weak can guide one of the settings model by autoguidance."""
    pairs = {
        "number of classes": (weak.data.num_classes, model.data.num_classes),
        "image size": (weak.data.image_shape, model.data.image_shape),
        "data.kind": (weak.data.kind, model.data.kind),
        "process": (process_description(weak), process_description(model)),
        "low-resolution input": (low_res_description(weak), low_res_description(model)),
    }
    for what, (weaks, models) in pairs.items():
        if weaks != models:
            raise UsageError(f"the weak model's {what} is {weaks}, the model's {models}; need the same")


def low_res_description(settings: Settings) -> str:
    """Returns the size of an upsampler's input, with the smallest λ of its noise, or "none" for other models."""
    if settings.data.low_res_size is None or settings.diffusion is None:
        return "none"
    least = settings.diffusion.low_res_logsnr_min
    return f"{settings.data.low_res_size}" + ("" if least is None else f" with noise of λ ≥ {least:g}")


@dataclasses.dataclass(frozen=True)
class WeakRun:
    """The weak model of a frontier or picture and the workdir that it was loaded from."""

    model: Any
    workdir: str

    @functools.cached_property
    def identity(self) -> dict[str, Any]:
        """Returns what the weak predictions depend on: the checkpoint's digest, its step, and the average."""
        step, ema = self.model.step, float(self.model.ema)
        return {"checkpoint": stored_digest(self.workdir, self.model.settings, step, ema), "step": step, "ema": ema}


def weak_text(identity: dict[str, Any] | None) -> str | None:
    """Returns the text of a `WeakRun.identity` in tables, such as "8c8b7a6d, step 600, ema 0.999"."""
    if identity is None:
        return None
    average = f"ema {identity['ema']:g}" if identity["ema"] else "no ema"
    return f"{identity['checkpoint'][:8]}, step {identity['step']}, {average}"


def parse_weak(text: str) -> tuple[str, int | None, float | None]:
    """Returns (workdir, step, ema) of WORKDIR[@STEP][,ema=RATE]; None where step or ema is not given.

    A workdir with an @ in its name needs a step. Raises UsageError.
    """
    rest, comma, rate = text.rpartition(",ema=")
    ema = None
    if comma:
        try:
            ema = real_number(rate)
        except ValueError as e:
            raise UsageError(f"--weak={text}: ema needs a number; {e}") from None
    workdir, at, step = (rest if comma else text).rpartition("@")
    if not at:
        return step, None, ema
    if not is_whole_number(step) or not workdir:
        raise UsageError(f"--weak={text}: need WORKDIR[@STEP][,ema=RATE], with an integer after @")
    return workdir, whole_number(step), ema
