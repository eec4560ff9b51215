"""Measures an accelerator: its ceilings, its agreement with the CPU, and the speed of training and sampling.

python benchmarks/device.py --json=device.json
python benchmarks/device.py --only=step --only=kernels --variants=plain,fused_attention --batch_size=64

Prints a table for each part. Every row is measured in its own process. To try it on a CPU, use --configs=tiny.
accelerator.py runs this and other benchmarks in calls of a few minutes that resume one another.
"""

import dataclasses
import statistics
import sys
import time

import harness
import kernel_groups
import sampling
import train_step
from absl import flags

from cfgjax.base.errors import choose

# name: what differs from the configuration
VARIANTS = {
    "plain": {"model.fused_attention": False},
    "fused_attention": {"model.fused_attention": True},
    "remat_convolutions": {"model.remat": "convolutions"},
    "remat_blocks": {"model.remat": "blocks"},
}
PARTS = ["ceilings", "agreement", "step", "kernels", "memory", "sampling"]
TRACED_STEPS = 3
KERNELS = 12  # number of kernels listed, the slowest first


def ceilings(given):
    """Returns rates that no program exceeds: of products of square matrices, and of copies (reads plus writes)."""
    import jax
    import jax.numpy as jnp

    n = given.ceiling_size
    rows = []
    for dtype in ("bfloat16", "float32"):
        a = jax.random.normal(jax.random.key(0), (n, n), dtype)
        chain = jax.jit(lambda a: jax.lax.fori_loop(0, 10, lambda _, x: (a @ x) / n**0.5, a))
        seconds = harness.time_repeats(lambda: chain(a), given.repeats)  # noqa: B023
        rows.append({"what": f"{n}³ product, {dtype}", "rate": 20 * n**3 / statistics.median(seconds) / 1e12})
        rows[-1] |= {"unit": "TFLOP/s", "dtype": dtype}
    copy = jax.jit(lambda x: x + 1)
    for size in (n * n // 4, n * n * 8):
        x = jnp.ones(size, jnp.float32)
        seconds = harness.time_repeats(lambda: copy(x), given.repeats)  # noqa: B023
        rate = 2 * x.nbytes / statistics.median(seconds) / 1e9
        rows.append({"what": f"copy of {x.nbytes / 1e9:.2g} GB", "rate": rate, "unit": "GB/s", "dtype": "float32"})
    return rows


CEILING_COLUMNS = {
    f"{'ceiling':>30}": lambda f: f["what"],
    "rate": lambda f: f"{f['rate']:,.4g}",
    "unit": lambda f: f["unit"],
}


def agreement(given):
    """Returns the largest difference between a network's ε here and on the CPU, relative to the largest value."""
    import jax
    import numpy as np

    import cfgjax.models.network as networks
    from cfgjax.runs.settings import Settings

    config = harness.load_config(given.configs[0], batch_size=4, dtype="float32")
    settings = Settings.from_config(config)
    shape, levels = settings.data.image_shape, settings.diffusion.levels
    rng = np.random.default_rng(0)
    inputs = [rng.normal(size=(4, *shape)), np.linspace(-5, 5, 4), np.arange(4)]
    inputs = [array.astype(kind) for array, kind in zip(inputs, ("f4", "f4", "i4"), strict=True)]
    network = networks.make_network(settings)
    params = jax.jit(lambda: networks.init_params(network, jax.random.key(0), shape))()
    # the last layers start at 0
    params = jax.tree.map(lambda a: np.asarray(a) + 0.02 * rng.normal(size=a.shape).astype(a.dtype), params)
    cpu = jax.devices("cpu")[0]
    predict_eps = lambda predict, z, logsnr, label: predict(z, logsnr, {"label": label}).eps

    def eps(device, dtype="float32", precision=None, fused=False):
        config.model.dtype = dtype
        if "fused_attention" in config.model:
            config.model.fused_attention = fused
        network = networks.make_network(Settings.from_config(config))
        with jax.default_device(device), jax.default_matmul_precision(precision):
            placed = jax.device_put((params, inputs), device)
            run = jax.jit(lambda params, inputs: predict_eps(networks.bind(network, params, levels=levels), *inputs))
            return np.asarray(run(*placed), np.float64)

    exact, here = eps(cpu, precision="highest"), jax.devices()[0]
    cases = {
        "float32, highest precision": dict(precision="highest"),
        "float32, default precision": {},
        "bfloat16": dict(dtype="bfloat16"),
        "bfloat16, fused attention": dict(dtype="bfloat16", fused=True),
    }
    rows = []
    for name, options in cases.items():
        found = eps(here, **options)
        difference = np.abs(found - exact)
        rows.append({"config": given.configs[0], "case": name, "largest": difference.max() / np.abs(exact).max()})
        rows[-1]["mean"] = difference.mean() / np.abs(exact).mean()
    return rows


AGREEMENT_COLUMNS = {
    "configuration": lambda f: f["config"],
    f"{'arithmetic':>28}": lambda f: f["case"],
    "largest difference": lambda f: f"{f['largest']:.1e}",
    "mean difference": lambda f: f"{f['mean']:.1e}",
}


def varied(config, given):
    """Changes config to a variant. Returns {"variant": its name}."""
    config.update_from_flattened_dict(VARIANTS[given.variants[0]])
    return {"variant": given.variants[0]}


def step(config, given):
    """Returns the figures of the training step, as train_step.py measures them."""
    return varied(config, given) | train_step.measure(config, given)


def kernels(given):
    """Returns the milliseconds per training step that the device spends in each group and kind of kernel."""
    import jax

    config = harness.load_config(given.configs[0], batch_size=given.batch_size, dtype=given.dtype)
    about = {"config": given.configs[0], "batch_size": config.train.batch_size} | varied(config, given)
    run, state, batches = train_step.open_step(config, 1)
    dispatch, about["compile_seconds"] = harness.compile_timed(run.dispatch, state, batches, run.step_key)
    for _ in range(3):
        state, metrics = dispatch(state, batches, run.step_key)
    jax.block_until_ready(metrics)
    with kernel_groups.traced_events() as events:
        start = time.perf_counter()
        for _ in range(TRACED_STEPS):
            state, metrics = dispatch(state, batches, run.step_key)
        jax.block_until_ready((state, metrics))
        wall = (time.perf_counter() - start) / TRACED_STEPS
    rows = kernel_groups.kernel_rows(events, dispatch.as_text())
    rows = [row | {"ms": row["ms"] / TRACED_STEPS, "count": row["count"] / TRACED_STEPS} for row in rows]
    groups = kernel_groups.group_rows(rows)
    total = {"ms": sum(row["ms"] for row in groups), "count": sum(row["count"] for row in groups)}
    rows = [{"kernel": "all of them", **total}, *groups, *rows[:KERNELS]]
    rows = [row | {"share": row["ms"] / total["ms"] if total["ms"] else 0.0} for row in rows]
    return [about | row for row in ({"kernel": "the step", "ms": 1000 * wall, "count": 1, "share": None}, *rows)]


def memory(config, given):
    """Returns the memory of the training step: preflight's counts, and what the program and the device report."""
    import jax

    from cfgjax.jobs.preflight.step_figures import memory_figures
    from cfgjax.training.run import Program

    about = varied(config, given)
    counted = memory_figures(Program(config))["bytes_per_device"]
    run, state, batches = train_step.open_step(config, 1)
    dispatch, compile_seconds = harness.compile_timed(run.dispatch, state, batches, run.step_key)
    for _ in range(2):
        state, metrics = dispatch(state, batches, run.step_key)
    jax.block_until_ready((state, metrics))
    found = {"peak_bytes": counted["peak"], "least_peak_bytes": counted["peak_least"]}
    return about | found | {"compile_seconds": compile_seconds} | harness.memory_figures(dispatch)


MEMORY_COLUMNS = {
    "configuration": lambda f: f["config"],
    f"{'variant':>18}": lambda f: f["variant"],
    "batch": lambda f: str(f["batch_size"]),
    "counted MB": lambda f: "–".join(harness.megabytes(f[name]) for name in ("least_peak_bytes", "peak_bytes")),
    "program MB": lambda f: harness.megabytes(f["program_bytes"]),
    "device MB": lambda f: harness.megabytes(f["device_bytes"]),
}
KERNEL_COLUMNS = {
    "configuration": lambda f: f["config"],
    f"{'variant':>18}": lambda f: f["variant"],
    f"{'kernel':>60}": lambda f: f["kernel"],
    "ms/step": lambda f: f"{f['ms']:.2f}",
    "share": lambda f: "-" if f["share"] is None else f"{f['share']:.1%}",
    "launches": lambda f: f"{f['count']:.0f}",
    "compile s": lambda f: f"{f['compile_seconds']:.0f}",
}


def cases(axes):
    """Returns the cases of every combination of --configs and the values of other list flags."""
    return lambda given: harness.product(given, "configs", *axes)


def part(name, table):
    """Returns the table, without cases if --only excludes it. Raises UsageError for unknown variants."""

    def chosen(given):
        for variant in given.variants:
            choose("variant", variant, VARIANTS)
        return table.cases(given) if name in given.only else []

    return dataclasses.replace(table, cases=chosen)


def main(argv):
    """Runs `device.py FLAGS`. Returns the exit code."""
    given = flags.FlagValues()
    flags.DEFINE_multi_enum("only", PARTS, PARTS, "A part to run; repeatable. All by default.", flag_values=given)
    flags.DEFINE_list("variants", ["plain"], f"Variants of the step: {', '.join(VARIANTS)}.", flag_values=given)
    flags.DEFINE_list("samplers", ["ancestral(v=0.3)"], "Samplers to measure.", flag_values=given)
    flags.DEFINE_integer("ceiling_size", 8192, "Number of rows of the matrices in the ceilings.", flag_values=given)
    flags.DEFINE_integer("num_steps", 16, "Number of network calls T of the sampler.", flag_values=given, lower_bound=2)
    flags.DEFINE_integer("steps_per_repeat", None, "As of train_step.py.", flag_values=given, lower_bound=1)
    flags.DEFINE_integer("steps_per_dispatch", None, "As of train_step.py.", flag_values=given, lower_bound=1)
    variant = {f"{'variant':>18}": lambda f: f["variant"]}
    columns = {"configuration": train_step.COLUMNS["configuration"]} | variant | train_step.COLUMNS
    tables = {
        "ceilings": harness.Table(lambda given: [[]], ceilings, CEILING_COLUMNS),
        "agreement": harness.Table(cases([]), agreement, AGREEMENT_COLUMNS),
        "step": harness.per_config(("variants",), columns, step),
        "kernels": harness.Table(cases(["variants"]), kernels, KERNEL_COLUMNS),
        "memory": harness.per_config(("variants",), MEMORY_COLUMNS, memory, shared=False),
        "sampling": harness.per_config(("samplers",), sampling.COLUMNS, sampling.measure),
    }
    tables = {name: part(name, table) for name, table in tables.items()}
    return harness.main(argv, __doc__, given, tables, configs=["imagenet64"])


if __name__ == "__main__":
    sys.exit(main(sys.argv))
