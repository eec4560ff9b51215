"""`cfgjax evaluate --bits_per_dim`: measures the likelihood of held-out examples."""

from pathlib import Path

from cfgjax.base.errors import UsageError
from cfgjax.base.exits import DONE
from cfgjax.cli.common import begin, plan_of, single, weights


def bits_per_dim(given):
    """Measures the likelihood of held-out examples. Returns the exit code."""
    one = {name: single(name, given[name].value, kind) for name, kind in
           {"num_steps": int, "v": float, "ema": float, "seeds": int}.items()}  # fmt: skip

    begin(given, f"evaluating {given.workdir}")

    import cfgjax
    from cfgjax.base.progress import timed
    from cfgjax.data.sources.registry import npz_in_place_of, open_source
    from cfgjax.distributed.devices import open_devices
    from cfgjax.evaluation.likelihood import check_guidance, held_out_bits
    from cfgjax.evaluation.report.files import bits_lines, write_bits
    from cfgjax.models.arguments import check_num_steps

    check_guidance(weights(given) or 0.0)
    open_devices()
    model = cfgjax.load(given.workdir, step=given.step, ema=one["ema"])
    if not model.is_image:
        kind = "latents" if len(model.image_shape) == 3 else "points"
        raise UsageError(f"--bits_per_dim needs 8-bit images; the run's data are {kind} of shape {model.image_shape}")
    if one["v"] is not None and model.learned_variance:
        raise UsageError(f"--v={one['v']:g}: the model's variance is learned; leave out --v")
    data, plan = dict(model.config.data), plan_of(given, model.config)
    num_steps = plan.num_steps if one["num_steps"] is None else one["num_steps"]
    check_num_steps(num_steps)
    if given.images is not None:
        data = npz_in_place_of(data, given.images) | {"split": "all", "num_workers": 0}
    elif data.get("split") != "train":
        what = f"the run was trained on data.split {data.get('split', 'all')!r}, which has no held-out examples"
        raise UsageError(f"{what}; give held-out data as --images=FILE.npz")
    else:
        data |= {"split": "holdout"}
    held_out = open_source(**data)
    with timed(f"compiling and measuring the likelihood of {len(held_out):,} examples ({num_steps} steps)"):
        found = held_out_bits(
            model,
            held_out.image,
            held_out.label,
            num_steps=num_steps,
            v=model.config.sample.v if one["v"] is None else one["v"],
            seed=one["seeds"],
            batch_size=plan.batch_size,
            spacing=given.spacing,
            logsnr_max=given.logsnr_max,
        )
    folder, rates = Path(given.out or Path(given.workdir) / "evaluation"), model.config.ema.rates or (0.0,)
    rate = rates[0] if one["ema"] is None else one["ema"]
    print("\n".join(bits_lines(found)))
    print(f"wrote {', '.join(write_bits(folder, {'step': model.step, 'ema': rate, **found}))} in {folder}")
    return DONE
