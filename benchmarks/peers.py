"""Compares the speed of cfgjax, an ADM U-Net in PyTorch and diffusers' UNet2DModel, in training or in sampling.

python benchmarks/peers.py --configs=small8,small32 --repeats=15 --json=peers.json
python benchmarks/peers.py --configs=small32 --task=sample --contestants=eager,eager_tuned,eager_compiled,cfgjax

A training step is an optimizer step on one batch. A sampling step is a level of --sampler with guidance, two
evaluations of the network for each image, or as many as --rule needs.

Every contestant runs in its own process, so that its memory and compile time are measured separately. All processes
exist at once. In each round they take their steps in turn, while the others sleep.
"""

import contextlib
import functools
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import harness
import sampling
from absl import flags
from train_step import compile_step, open_step

from cfgjax.base.errors import choose
from cfgjax.base.exits import DONE

# name: (function that builds it, arguments)
CONTESTANTS = {
    "eager": ("torch", ("adm", "eager")),
    "eager_tuned": ("torch", ("adm", "channels_last")),
    "eager_compiled": ("torch", ("adm", "compile")),
    "fused_compiled": ("torch", ("adm_fused", "compile")),
    "diffusers": ("torch", ("diffusers", "eager")),
    "diffusers_tuned": ("torch", ("diffusers", "channels_last")),
    "diffusers_compiled": ("torch", ("diffusers", "compile")),
    "cfgjax": ("jax", (1,)),
    "cfgjax_8": ("jax", (8,)),
    "cfgjax_one_device": ("jax", (1, 1)),
}
DEFAULT = [name for name in CONTESTANTS if name != "cfgjax_one_device"]  # it differs from cfgjax only on a CPU
NEEDS = {"torch": ("torch",), "diffusers": ("torch", "diffusers")}
ROUND_STEPS = 8  # steps of a contestant in each round, unless sampling has --num_steps
REFERENCE = "eager"
PASSED = ("batch_size", "dtype", "cores", "clock", "task", "sampler", "rule", "num_steps")
SAMPLING = ("sampler", "rule", "num_steps")
COLUMNS = {
    "configuration": lambda f: f["config"],
    "task": lambda f: f["task"],
    "        contestant": lambda f: f["contestant"],
    "parameters": lambda f: f"{f['parameters']:,}",
    "batch": lambda f: str(f["batch_size"]),
    "ms/step": lambda f: f"{f['ms_per_step']:.1f}",
    **harness.RATE_COLUMNS,
    "× eager": lambda f: "-" if f["times_eager"] is None else f"{f['times_eager']:.2f}",
    "quartiles": lambda f: "–".join(f"{q:.2f}" for q in f["times_eager_quartiles"]) or "-",
    "compile s": lambda f: f"{f['compile_seconds']:.1f}",
    "resident MB": lambda f: harness.megabytes(f["resident_bytes"]),
}


def chosen(given):
    """Returns the contestants that can take part. In sampling there are no steps per dispatch."""
    return [name for name in given.contestants if not missing(name) and (given.task, name) != ("sample", "cfgjax_8")]


def missing(name):
    """Returns the missing library that a contestant needs, or None."""
    kind, (network, *_) = CONTESTANTS[name]
    needed = () if kind == "jax" else NEEDS["diffusers" if network == "diffusers" else "torch"]
    return next((library for library in needed if importlib.util.find_spec(library) is None), None)


def make_torch(given, config, network, mode):
    """Returns (function that takes the steps of a round, number of parameters) of a peer."""
    import torch_peers

    if given.task == "sample":
        draw = torch_peers.Sampler(config, network, mode, given.sampler.partition("(")[0], evaluations(given))
        return draw, draw.parameters
    step = torch_peers.Step(config, network, mode)
    return lambda: [step() for _ in range(ROUND_STEPS)], step.parameters


def evaluations(given):
    """Returns the number of network evaluations per image at each level: 2 with guidance, 1 without."""
    import jax
    import numpy as np

    from cfgjax.diffusion import guidance
    from cfgjax.diffusion.schedules import logsnr_grid
    from cfgjax.diffusion.specs import parse

    jax.config.update("jax_platforms", "cpu")  # leaves the memory of a GPU to torch
    grid = np.asarray(logsnr_grid(given.num_steps))
    return guidance.evaluations(guidance.on_grid(parse(given.rule, guidance.RULES), grid), grid).tolist()


def make_jax(given, config, steps_per_dispatch, num_devices=None):
    """Returns (function that takes the steps of a round, number of parameters) of `cfgjax train` or `cfgjax sample`.

    num_devices: of a CPU, by default as in the commands.
    """
    import jax
    import numpy as np

    if num_devices is not None:
        jax.config.update("jax_num_cpu_devices", num_devices)
    if given.task == "sample":
        model, index = sampling.fresh_model(config), np.arange(config.train.batch_size)
        draw = model.sampler(sampler=given.sampler, num_steps=given.num_steps, rule=given.rule, grid="schedule()")
        run = lambda: jax.block_until_ready(draw(index, index % model.num_classes, np.ones(len(index))))
        return run, sum(leaf.size for leaf in jax.tree.leaves(model.params))
    run, state, batches = open_step(config, steps_per_dispatch)
    dispatch, _ = compile_step(run, state, batches)
    kept = [state]

    def take():
        for _ in range(ROUND_STEPS // steps_per_dispatch):
            kept[0], metrics = dispatch(kept[0], batches, run.step_key)
        jax.block_until_ready((kept[0], metrics))

    return take, sum(leaf.size for leaf in jax.tree.leaves(state.params))


def contestant(given):
    """Runs one contestant: prints a JSON line when it is ready, one for each line that it reads, and one at the end."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # as in commands
    kind, arguments = CONTESTANTS[given.contestant]
    config = harness.load_config(given.configs[0], batch_size=given.batch_size, dtype=given.dtype)
    if given.cores:
        # before libraries count the cores to choose their number of threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])
    clock = time.process_time if given.clock == "cpu" else time.perf_counter
    counts = harness.count_programs() if kind == "jax" else {}
    start = clock()
    take, parameters = (make_torch if kind == "torch" else make_jax)(given, config, *arguments)
    take()
    ready, told = clock() - start, functools.partial(print, flush=True)
    start = clock()
    take()
    told(json.dumps({"parameters": parameters, "compile_seconds": ready - (clock() - start), **counts}))
    for _ in sys.stdin:
        start = clock()
        take()
        told(clock() - start)
    told(harness.resident_bytes())
    return DONE


def measure(given):
    """Returns a row for each contestant, whose time in each round is compared with eager's in the same round."""
    config = harness.load_config(given.configs[0], batch_size=given.batch_size, dtype=given.dtype)
    names = chosen(given)
    told, seconds, rows = {}, {name: [] for name in names}, []
    with contextlib.ExitStack() as stack:
        start = functools.partial(start_contestant, given, stack)
        running = {}
        for name in names:  # one after the other, because compilation is timed
            running[name] = start(name)
            told[name] = json.loads(running[name].stdout.readline())
        for turn in range(given.repeats):
            first = turn % len(names)
            for name in [*names[first:], *names[:first]]:
                print("go", file=running[name].stdin, flush=True)
                seconds[name].append(float(running[name].stdout.readline()))
        for name in names:
            running[name].stdin.close()
            told[name]["resident_bytes"] = int(running[name].stdout.readline())
    for name in names:
        ratios = [r / s for r, s in zip(seconds.get(REFERENCE, []), seconds[name], strict=False)]
        quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
        steps = given.num_steps if given.task == "sample" else ROUND_STEPS
        rates = harness.rate_figures(steps * config.train.batch_size, seconds[name])
        rows.append(
            {"config": given.configs[0], "task": given.task, "batch_size": config.train.batch_size}
            | ({name: given[name].value for name in SAMPLING} if given.task == "sample" else {})
            | {"contestant": name, **told[name]}
            | {"ms_per_step": 1000 * config.train.batch_size / rates["images_per_second"], **rates}
            | {"times_eager": statistics.median(ratios) if ratios else None}
            | {"times_eager_quartiles": quartiles[::2]}
        )
    return rows


def start_contestant(given, stack, name):
    """Starts the process of a contestant, which ends with the stack."""
    command = [sys.executable, str(Path(__file__)), f"--configs={given.configs[0]}", f"--contestant={name}"]
    command += [f"--{flag}={given[flag].value}" for flag in PASSED if given[flag].value is not None]
    pipe = subprocess.PIPE
    # without preallocation, which would take the memory of the other contestants on a GPU
    env = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    process = stack.enter_context(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env))
    stack.callback(process.kill)
    return process


def cases(given):
    """Returns a case for each configuration, and prints which contestants are left out and why."""
    for name in given.contestants:
        choose("contestant", name, CONTESTANTS)
        if library := missing(name):
            print(f"{name}: left out, {library} is not installed", file=sys.stderr)
    return harness.product(given, "configs")


def main(argv):
    """Runs `peers.py FLAGS`. Returns the exit code."""
    given = flags.FlagValues()
    flags.DEFINE_enum("task", "train", ["train", "sample"], "What a step is.", flag_values=given)
    flags.DEFINE_string("sampler", "ddim()", "Sampler: ddim() or dpmpp_2m().", flag_values=given)
    flags.DEFINE_string("rule", "cfg()", "Guidance rule: cfg(), or interval(…) of it.", flag_values=given)
    flags.DEFINE_integer("num_steps", ROUND_STEPS, "Levels T of the sampler.", flag_values=given, lower_bound=2)
    flags.DEFINE_list("contestants", DEFAULT, f"Which take part: {', '.join(CONTESTANTS)}.", flag_values=given)
    flags.DEFINE_integer(
        "cores", None, "Number of cores that each contestant may use; by default all.", flag_values=given, lower_bound=1
    )
    flags.DEFINE_enum(
        "clock",
        "wall",
        ["wall", "cpu"],
        "wall, or cpu for CPU seconds; use cpu with --cores=1 on busy machines.",
        flag_values=given,
    )
    flags.DEFINE_string("contestant", None, "Internal: the contestant that this process runs.", flag_values=given)
    if any(word.startswith("--contestant=") for word in argv):
        harness.define_flags(given, [])
        given(argv)
        return contestant(given)
    tables = {"peers": harness.Table(cases, measure, COLUMNS)}
    return harness.main(argv, __doc__, given, tables, configs=["small8", "small32"])


if __name__ == "__main__":
    sys.exit(main(sys.argv))
