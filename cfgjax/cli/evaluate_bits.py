"""`cfgjax evaluate --bits_per_dim`: measures the likelihood of held-out examples."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, cast

from absl import flags

from cfgjax.base.errors import UsageError
from cfgjax.base.exits import DONE
from cfgjax.base.files import check_folder
from cfgjax.base.storage import place
from cfgjax.cli.common import begin_command, plan_of, sampling_axes, single
from cfgjax.distributed.cpu_devices import use_cores
from cfgjax.runs.sample_options import SampleOptions, combinations
from cfgjax.runs.sample_options import axes as axes_of

NUM_STEPS, V = 256, 0.3  # of the chain for a run whose sampler is not ancestral


def evaluate_bits(given: flags.FlagValues) -> int:
    """Measures the likelihood of held-out examples. Returns the exit code."""
    axes = sampling_axes(given, "evaluate")
    for name in ("num_steps", "sampler", "ema", "seed"):
        single(axes, name, "--bits_per_dim needs a single value")
    if given.out is not None:
        check_folder(given.out, f"--out={given.out}")

    begin_command(given, f"evaluating {given.workdir}")

    import cfgjax
    from cfgjax.base.progress import timed
    from cfgjax.data.sources.registry import npz_in_place_of, open_source
    from cfgjax.distributed.devices import open_devices
    from cfgjax.evaluation.held_out_bits import check_guidance, held_out_bits
    from cfgjax.evaluation.report.frontier_files import bits_lines, write_bits
    from cfgjax.models.arguments import check_num_steps
    from cfgjax.runs.workdir import read_settings

    check_guidance(axes.get("guidance", 0.0))
    use_cores()
    open_devices()
    plan = plan_of(given, read_settings(given.workdir))
    folder = place(given.out or place(given.workdir) / "evaluation")
    if given.out is None:
        check_folder(folder, f"{folder}, the default of --out,")
    model = cfgjax.load(given.workdir, step=given.step, ema=axes_of({}, plan.options, axes)["ema"][0])
    if not model.is_image:
        kind = "latents" if len(model.image_shape) == 3 else "points"
        raise UsageError(f"--bits_per_dim needs 8-bit images; the run's data are {kind} of shape {model.image_shape}")
    options = next(combinations(axes_of(model.defaults.options, plan.options, {**axes, "guidance": (0.0,)})))
    options = with_chain(options, axes, model.learned_variance)
    data, num_steps = model.settings.data, cast(int, options.num_steps)
    check_num_steps(num_steps)
    if given.images is not None:
        data = dataclasses.replace(npz_in_place_of(data, given.images), split="all", num_workers=0)
    elif data.split != "train":
        what = f"the run was trained on data.split {data.split!r}, which has no held-out examples"
        raise UsageError(f"{what}; give held-out data as --images=FILE.npz")
    else:
        data = dataclasses.replace(data, split="holdout")
    held_out = open_source(data)
    with timed(f"compiling and measuring the likelihood of {len(held_out):,} examples ({num_steps} steps)"):
        found = held_out_bits(
            model,
            held_out.image,
            held_out.label,
            num_steps=num_steps,
            v=options.sampler.v,
            seed=options.seed,
            batch_size=plan.batch_size,
            spacing=given.spacing,
            logsnr_max=given.logsnr_max,
        )
    rate = float(model.ema)
    print("\n".join(bits_lines(found)))
    print(f"wrote {', '.join(write_bits(folder, {'step': model.step, 'ema': rate, **found}))} in {folder}")
    return DONE


def with_chain(options: SampleOptions, axes: Mapping[str, Sequence[Any]], learned_variance: bool) -> SampleOptions:
    """Returns the options with a sampler of the type `ancestral`, whose chain has a likelihood.

    axes: the values of flags. A run's other sampler is replaced unless a flag gives one. Raises UsageError for a flag
    that gives another sampler, or a v where the variance is learned.
    """
    from cfgjax.diffusion.samplers import ancestral
    from cfgjax.models.binding import sampler_value

    sampler = sampler_value(options.sampler)
    if "sampler" not in axes and not isinstance(sampler, ancestral):
        num_steps = options.num_steps if "num_steps" in axes else NUM_STEPS
        return dataclasses.replace(options, sampler=ancestral(v=V), num_steps=num_steps)
    if not isinstance(sampler, ancestral):
        needed = "--bits_per_dim needs the chain of the sampler ancestral"
        raise UsageError(f"{needed}, not {sampler!r}; give --sampler='ancestral(v=0.3)'")
    if "sampler" in axes and sampler.v is not None and learned_variance:
        raise UsageError(f"--sampler={sampler!r}: the model's variance is learned; give --sampler=ancestral")
    return dataclasses.replace(options, sampler=sampler)
