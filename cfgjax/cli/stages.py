"""Flags of a model, --workdir, or of a cascade, --base and --upsampler, and how they are loaded."""

from typing import TYPE_CHECKING, Any

from absl import flags

from cfgjax.base.errors import UsageError
from cfgjax.base.paths import define_path
from cfgjax.cli.common import mesh_of, required, single
from cfgjax.runs.sample_options import read_values

if TYPE_CHECKING:
    from cfgjax.models.cascade import Cascade
    from cfgjax.models.model import Model


def define_stage_folders(given: flags.FlagValues) -> None:
    """Adds the flags of the two runs of a cascade."""
    what = "Workdir of a cascade's base model, instead of --workdir; --step and --ema apply to it."
    define_path("base", None, what, flag_values=given)
    define_path("upsampler", None, "Workdir of a cascade's upsampler.", flag_values=given)


def define_stages(given: flags.FlagValues) -> None:
    """Adds the flags of a cascade."""
    define_stage_folders(given)
    what = "--num_steps of the upsampler; by default config.sample.num_steps of its run."
    flags.DEFINE_string("upsampler_num_steps", None, what, flag_values=given)
    flags.DEFINE_float(
        "low_res_logsnr", None, "λ of the noise added to the upsampler's input; by default no noise.", flag_values=given
    )


def check_stages(given: flags.FlagValues) -> None:
    """Raises UsageError unless the flags name either a model or both stages of a cascade."""
    if given.base is None and given.upsampler is None:
        for name in ("upsampler_num_steps", "low_res_logsnr"):
            if given[name].value is not None:
                raise UsageError(f"--{name} needs --base and --upsampler")
        return required(given, "workdir")
    if given.diagnostics:
        raise UsageError("--diagnostics is for one model, --workdir, not for a cascade")
    if given.workdir is not None:
        raise UsageError("give either --workdir (one model) or --base and --upsampler (a cascade)")
    return required(given, "base", "upsampler")


def upsampling_options(given: flags.FlagValues) -> dict[str, Any]:
    """Returns the given options of the upsampler's `Model.sample`."""
    found = {}
    if (text := given.upsampler_num_steps) is not None:
        steps = read_values("num_steps", text, "upsampler_num_steps")
        found["num_steps"] = single({"upsampler_num_steps": steps}, "upsampler_num_steps", "give one")
    if given.low_res_logsnr is not None:
        found["low_res_logsnr"] = given.low_res_logsnr
    return found


def load_model(given: flags.FlagValues, ema: float | None) -> "Model | Cascade":
    """Returns the `Model` of --workdir, or the `Cascade` of --base and --upsampler."""
    import cfgjax

    if given.base is None:
        return cfgjax.load(given.workdir, step=given.step, ema=ema, mesh=mesh_of(given))

    from cfgjax.models.cascade import load_cascade

    stages: dict[str, Any] = {"upsampling": upsampling_options(given), "mesh": mesh_of(given)}
    return load_cascade(given.base, given.upsampler, step=given.step, ema=ema, **stages)
