"""What the benchmarks share: named configurations, a process for each, and the figures of a compiled program."""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from absl import flags

from cfgjax.cli import BAD_USAGE, DONE, no_arguments
from cfgjax.config import load_file, parse_flags
from cfgjax.errors import UsageError, choose

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
CELL_WIDTH = 9
RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes, of getrusage

SMALL8 = {
    "data.image_shape": (8, 8, 1), "model.channels": 32, "model.multipliers": (1, 2), "model.depth": 2,
    "model.attention_resolutions": (4,), "model.head_channels": 32, "train.batch_size": 64,
    "train.steps_per_dispatch": 1, "sample.num_steps": 16,
}  # fmt: skip
SMALL32 = {
    "data.image_shape": (32, 32, 3), "model.channels": 64, "model.multipliers": (1, 2, 2), "model.depth": 2,
    "model.attention_resolutions": (16, 8), "model.head_channels": 64, "train.batch_size": 8,
    "train.steps_per_dispatch": 1, "sample.num_steps": 16,
}  # fmt: skip
TINY = {
    "model.multipliers": (1,), "model.depth": 1, "model.attention_resolutions": (), "train.batch_size": 4,
    "train.steps_per_dispatch": 2, "sample.num_steps": 4,
}  # fmt: skip

# name: the experiment file, and what differs from it
CONFIGS = {
    "digits": ("digits", {}),
    "small8": ("digits", SMALL8),
    "small32": ("digits", SMALL32),
    "cifar10": ("cifar10", {}),
    "imagenet64": ("imagenet64", {"train.batch_size": 32}),
    "imagenet128": ("imagenet128", {"train.batch_size": 16}),
    "tiny": ("digits", TINY),
}
DEFAULT = ["digits", "small8", "small32"]


def load_config(name, *, batch_size=None, dtype=None):
    """The ConfigDict of a named configuration, gradients in one part: XLA counts the FLOPs of a loop's body once."""
    file, changes = choose("configuration", name, CONFIGS)
    config = load_file(EXPERIMENTS / f"{file}.py")
    given = {"train.batch_size": batch_size, "model.dtype": dtype, "train.accumulate_steps": 1}
    config.update_from_flattened_dict(changes | {key: value for key, value in given.items() if value is not None})
    return config


def define_flags(given):
    """The flags of both benchmarks."""
    flags.DEFINE_list("configs", DEFAULT, f"Which to measure, of {', '.join(CONFIGS)}.", flag_values=given)
    flags.DEFINE_integer("repeats", 5, "Timed repeats; one more before them is not.", flag_values=given, lower_bound=1)
    flags.DEFINE_integer("batch_size", None, "Images, in place of train.batch_size.", flag_values=given, lower_bound=1)
    flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "In place of model.dtype.", flag_values=given)
    flags.DEFINE_string("json", None, "File for the figures; - is stdout, the table then on stderr.", flag_values=given)
    flags.DEFINE_bool("child", False, "Internal: measures one case in this process.", flag_values=given)


def main(argv, doc, given, axes, columns, measure):
    """The exit code of a benchmark's command line; each case is measured in a process of its own.

    given: FlagValues with the benchmark's own flags. axes: names of list flags whose product, with --configs, makes
    the cases. columns: {heading: figures → cell}, before the shared ones. measure: (config, flags) → figures.
    """
    try:
        define_flags(given)
        if "--help" in argv:
            print(f"{doc}\n{given.get_help()}")
            return DONE
        no_arguments(parse_flags(given, argv))
        return child(given, measure) if given.child else parent(argv, given, axes, columns | COLUMNS)
    except UsageError as e:
        print(f"{Path(argv[0]).name}: error: {e}", file=sys.stderr)
        return BAD_USAGE


def child(given, measure):
    """Measures the one configuration of --configs here and prints its figures."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import jax

    jax.config.update("jax_enable_compilation_cache", False)
    config = load_config(given.configs[0], batch_size=given.batch_size, dtype=given.dtype)
    figures = measure(config, given)
    device = {"device": jax.devices()[0].device_kind, "num_devices": jax.device_count(), "jax": jax.__version__}
    about = {"config": given.configs[0], "batch_size": config.train.batch_size, "dtype": config.model.dtype}
    print(json.dumps({"machine": device, "figures": about | figures}))
    return DONE


def parent(argv, given, axes, columns):
    """Measures every case, prints the table row by row, and writes the JSON after each row."""
    for name in given.configs:
        choose("configuration", name, CONFIGS)
    if given.json not in (None, "-") and not os.access(Path(given.json).absolute().parent, os.W_OK):
        raise UsageError(f"--json={given.json}: the folder {Path(given.json).absolute().parent} cannot be written")
    table = sys.stderr if given.json == "-" else sys.stdout
    widths = [max(len(heading), CELL_WIDTH) for heading in columns]
    row = lambda cells: print(*map(str.rjust, cells, widths), sep=" | ", file=table, flush=True)
    cases = [[]]
    for axis in ("configs", *axes):
        cases = [[*case, f"--{axis}={value}"] for case in cases for value in given[axis].value]
    results, text = [], "{}"
    for case in cases:
        ran = subprocess.run([sys.executable, *argv, *case, "--child"], stdout=subprocess.PIPE, text=True)
        if ran.returncode:
            print(f"{' '.join(case)} ended with exit code {ran.returncode}", file=sys.stderr)
            return ran.returncode
        told = json.loads(ran.stdout.splitlines()[-1])
        if not results:
            print("device: {device} × {num_devices}, jax {jax}".format(**told["machine"]), file=table)
            row(columns)
        results.append(told["figures"])
        row([cell(told["figures"]) for cell in columns.values()])
        text = json.dumps({"benchmark": Path(argv[0]).stem, **told["machine"], "results": results}, indent=2)
        if given.json not in (None, "-"):
            Path(given.json).write_text(text + "\n")
    if given.json == "-":
        print(text)
    return DONE


def compile_timed(jitted, *arguments, **static):
    """(the compiled program, the seconds that tracing, lowering and compiling it took)."""
    start = time.perf_counter()
    program = jitted.lower(*arguments, **static).compile()
    return program, time.perf_counter() - start


def time_repeats(run, repeats):
    """Seconds of each of `repeats` calls of run(), which returns arrays to wait for; a first call is not counted."""
    import jax

    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def figures(program, compile_seconds, repeat_seconds, images, flops_per_image):
    """What both benchmarks report of a program that made `images` images in each repeat.

    program_bytes: its arguments, results and temporaries, on each device. device_bytes: the device's own peak, None
    where it keeps no count (CPU). resident_bytes: the process's peak, compiling included.
    """
    import jax

    memory = program.memory_analysis()
    peaks = [stats["peak_bytes_in_use"] for device in jax.local_devices() if (stats := device.memory_stats())]
    rate = images / statistics.median(repeat_seconds)
    return {
        "images_per_second": rate,
        "images_per_second_min": images / max(repeat_seconds),
        "images_per_second_max": images / min(repeat_seconds),
        "repeat_seconds": repeat_seconds,
        "compile_seconds": compile_seconds,
        "flops_per_image": flops_per_image,
        "flops_per_second": rate * flops_per_image,
        "program_bytes": memory.argument_size_in_bytes + memory.output_size_in_bytes
        + memory.temp_size_in_bytes - memory.alias_size_in_bytes,
        "device_bytes": max(peaks, default=None),
        "resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT,
    }  # fmt: skip


megabytes = lambda count: "-" if count is None else f"{count / 1e6:,.0f}"
COLUMNS = {
    "images/s": lambda f: f"{f['images_per_second']:.4g}",
    "images/s min–max": lambda f: f"{f['images_per_second_min']:.4g}–{f['images_per_second_max']:.4g}",
    "compile s": lambda f: f"{f['compile_seconds']:.1f}",
    "GFLOP/image": lambda f: f"{f['flops_per_image'] / 1e9:.4g}",
    "GFLOP/s": lambda f: f"{f['flops_per_second'] / 1e9:,.0f}",
    "program MB": lambda f: megabytes(f["program_bytes"]),
    "device MB": lambda f: megabytes(f["device_bytes"]),
    "resident MB": lambda f: megabytes(f["resident_bytes"]),
}
