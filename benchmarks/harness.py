"""Shared by the benchmarks: named configurations, a process for each case, and the figures of a compiled program."""

import collections
import dataclasses
import itertools
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from absl import flags

from cfgjax.base.errors import UsageError, choose
from cfgjax.base.exits import BAD_USAGE, DONE
from cfgjax.cli.common import no_arguments
from cfgjax.runs.config import load_file, parse_flags, variants

EXPERIMENTS = Path(__file__).resolve().parents[1] / "experiments"
WITHOUT = ("base", "own_images")  # own_images needs a prepared set
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
SMALL64 = SMALL32 | {
    "data.image_shape": (64, 64, 3), "model.channels": 32, "model.multipliers": (1, 2, 2, 2), "model.head_channels": 32,
    "train.batch_size": 2, "sample.num_steps": 4,
}  # fmt: skip
TINY = {
    "model.multipliers": (1,), "model.depth": 1, "model.attention_resolutions": (), "train.batch_size": 4,
    "train.steps_per_dispatch": 2, "sample.num_steps": 4,
}  # fmt: skip

# name: (experiment file, overrides)
CONFIGS = {
    "digits": ("digits", {}),
    "small8": ("digits", SMALL8),
    "small32": ("digits", SMALL32),
    "small64": ("digits", SMALL64),
    "cifar10": ("cifar10", {}),
    "imagenet64": ("imagenet64", {"train.batch_size": 32}),
    "imagenet128": ("imagenet128", {"train.batch_size": 16}),
    "tiny": ("digits", TINY),
}
DEFAULT = ["digits", "small8", "small32"]


def experiments():
    """Returns {"digits": FILE, "adm:64": FILE:ARGUMENT, …} of all experiments."""
    files = [path for path in EXPERIMENTS.glob("*.py") if path.stem not in WITHOUT]
    return {Path(text).name.replace(".py", ""): text for path in files for text in variants(path)}


def load_config(name, *, batch_size=None, dtype=None):
    """Returns the ConfigDict of a named configuration, with accumulate_steps 1: XLA counts a loop's FLOPs only once."""
    file, changes = choose("configuration", name, CONFIGS)
    config = load_file(EXPERIMENTS / f"{file}.py")
    given = {"train.batch_size": batch_size, "model.dtype": dtype, "train.accumulate_steps": 1}
    config.update_from_flattened_dict(changes | {key: value for key, value in given.items() if value is not None})
    return config


@dataclasses.dataclass(frozen=True)
class Table:
    """Cases of one kind.

    cases: flags → [[word, …], …], the flags of each case; [] omits the table. measure: flags → [figures, …], the rows
    of one case, which runs in its own process. columns: {heading: figures → cell}.
    """

    cases: Callable
    measure: Callable
    columns: dict


def per_config(axes, columns, measure, *, shared=True):
    """Returns the `Table` of a program per configuration, by default with the shared columns after its own.

    axes: names of list flags; the cases are their product with --configs. measure: (config, flags) → figures.
    """

    def rows(given):
        config = load_config(given.configs[0], batch_size=given.batch_size, dtype=given.dtype)
        about = {"config": given.configs[0], "batch_size": config.train.batch_size, "dtype": config.model.dtype}
        return [about | measure(config, given)]

    return Table(lambda given: product(given, "configs", *axes), rows, columns | (COLUMNS if shared else {}))


def product(given, *axes):
    """Returns the cases of every combination of list flags. Raises UsageError for an unknown configuration."""
    for name in given.configs:
        choose("configuration", name, CONFIGS)
    return [list(words) for words in itertools.product(*[[f"--{a}={v}" for v in given[a].value] for a in axes])]


def define_flags(given, configs, repeats=5):
    """Returns the flags that all benchmarks share. configs, repeats: their defaults."""
    flags.DEFINE_list("configs", configs, f"Configurations to measure: {', '.join(CONFIGS)}.", flag_values=given)
    flags.DEFINE_integer(
        "repeats", repeats, "Number of timed repeats, after one that is not timed.", flag_values=given, lower_bound=1
    )
    flags.DEFINE_integer(
        "batch_size", None, "Batch size, instead of the configuration's.", flag_values=given, lower_bound=1
    )
    flags.DEFINE_enum(
        "dtype", None, ["float32", "bfloat16"], "Dtype of the network, instead of model.dtype.", flag_values=given
    )
    flags.DEFINE_string(
        "json", None, "File for the figures; - prints them to stdout, and the tables to stderr.", flag_values=given
    )
    flags.DEFINE_string("child", None, "Internal: the table whose case this process measures.", flag_values=given)


def main(argv, doc, given, tables, configs=DEFAULT):
    """Runs the command line of a benchmark, with a process for each case. Returns the exit code.

    given: FlagValues with the benchmark's own flags. tables: {name: `Table`}. configs: the default of --configs.
    """

    def measure():
        return child(given, tables[given.child]) if given.child else parent(argv, given, tables)

    return command(argv, doc, given, measure, lambda: define_flags(given, configs))


def command(argv, doc, given, run, define=lambda: None):
    """Parses a script's flags and returns the exit code: that of run(), 0 for None, and 2 for a usage error.

    doc: for --help. given: FlagValues, to which define() adds more flags.
    """
    try:
        define()
        if "--help" in argv:
            print(f"{doc}\n{given.get_help()}")
            return DONE
        no_arguments(parse_flags(given, argv))
        return run() or DONE
    except UsageError as e:
        print(f"{Path(argv[0]).name}: error: {e}", file=sys.stderr)
        return BAD_USAGE


def child(given, table):
    """Measures one case in this process and prints its figures."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import jax

    counts = count_programs()
    rows = table.measure(given)
    device = {"device": jax.devices()[0].device_kind, "num_devices": jax.device_count(), "jax": jax.__version__}
    print(json.dumps({"machine": device, "rows": [dict(counts) | row for row in rows]}))
    return DONE


def count_programs():
    """Disables the cache of compiled programs unless JAX_COMPILATION_CACHE_DIR is set.

    Returns a Counter of "cache_hits", programs read from it, and "cache_misses", programs compiled for it, from now on.
    """
    import jax

    jax.config.update("jax_enable_compilation_cache", bool(os.environ.get("JAX_COMPILATION_CACHE_DIR")))
    counts, names = collections.Counter(), ("cache_hits", "cache_misses")
    jax.monitoring.register_event_listener(lambda event, **_: counts.update(n for n in names if event.endswith(n)))
    return counts


def parent(argv, given, tables):
    """Measures every case, prints the tables row by row, and writes the JSON after each case."""
    cases = [(name, case) for name, table in tables.items() for case in table.cases(given)]
    if given.json not in (None, "-") and not os.access(Path(given.json).absolute().parent, os.W_OK):
        raise UsageError(f"--json={given.json}: the folder {Path(given.json).absolute().parent} cannot be written")
    file = sys.stderr if given.json == "-" else sys.stdout
    results, text, shown = [], "{}", None
    for name, case in cases:
        ran = subprocess.run([sys.executable, *argv, *case, f"--child={name}"], stdout=subprocess.PIPE, text=True)
        if ran.returncode:
            print(f"{' '.join(case)} ended with exit code {ran.returncode}", file=sys.stderr)
            return ran.returncode
        told = json.loads(ran.stdout.splitlines()[-1])
        columns = tables[name].columns
        if not results:
            print("device: {device} × {num_devices}, jax {jax}".format(**told["machine"]), file=file)
        if name != shown:
            print_row(columns, columns, file)
            shown = name
        for figures in told["rows"]:
            results.append({"table": name, "flags": case} | figures)
            print_row(columns, [cell(figures) for cell in columns.values()], file)
        text = json.dumps({"benchmark": Path(argv[0]).stem, **told["machine"], "results": results}, indent=2)
        if given.json not in (None, "-"):
            Path(given.json).write_text(text + "\n")
    if given.json == "-":
        print(text)
    return DONE


def print_row(columns, cells, file):
    """Prints cells below the headings that are the keys of columns."""
    widths = [max(len(heading), CELL_WIDTH) for heading in columns]
    print(*map(str.rjust, cells, widths), sep=" | ", file=file, flush=True)


def compile_timed(jitted, *arguments, **static):
    """Returns (compiled program, seconds of tracing, lowering and compilation)."""
    start = time.perf_counter()
    program = jitted.lower(*arguments, **static).compile()
    return program, time.perf_counter() - start


def time_repeats(run, repeats):
    """Returns the seconds of `repeats` calls of run(), after an untimed one. run returns the arrays to wait for."""
    import jax

    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def resident_bytes():
    """Returns the peak resident set of the process so far. getrusage may include the process that started it."""
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT


def rate_figures(images, repeat_seconds):
    """Returns the images per second of repeats of `images` images each: median, minimum and maximum."""
    return {
        "images_per_second": images / statistics.median(repeat_seconds),
        "images_per_second_min": images / max(repeat_seconds),
        "images_per_second_max": images / min(repeat_seconds),
        "repeat_seconds": repeat_seconds,
    }


def figures(program, compile_seconds, repeat_seconds, images, flops_per_image):
    """Returns the figures of a program that made `images` images in each repeat.

    program_bytes: arguments, results and temporaries on each device. device_bytes: peak reported by the device, None
    if it has no count (CPU). resident_bytes: peak of the process, including compilation.
    """
    rates = rate_figures(images, repeat_seconds)
    return rates | {
        "compile_seconds": compile_seconds,
        "flops_per_image": flops_per_image,
        "flops_per_second": rates["images_per_second"] * flops_per_image,
        **memory_figures(program),
    }


def memory_figures(program):
    """Returns the memory of a compiled program, of the devices and of this process, as in `figures`."""
    import jax

    memory = program.memory_analysis()
    peaks = [stats["peak_bytes_in_use"] for device in jax.local_devices() if (stats := device.memory_stats())]
    return {
        "program_bytes": memory.argument_size_in_bytes + memory.output_size_in_bytes
        + memory.temp_size_in_bytes - memory.alias_size_in_bytes,
        "device_bytes": max(peaks, default=None),
        "resident_bytes": resident_bytes(),
    }  # fmt: skip


megabytes = lambda count: "-" if count is None else f"{count / 1e6:,.0f}"
RATE_COLUMNS = {
    "images/s": lambda f: f"{f['images_per_second']:.4g}",
    "images/s min–max": lambda f: f"{f['images_per_second_min']:.4g}–{f['images_per_second_max']:.4g}",
}
COLUMNS = {
    **RATE_COLUMNS,
    "compile s": lambda f: f"{f['compile_seconds']:.1f}",
    "GFLOP/image": lambda f: f"{f['flops_per_image'] / 1e9:.4g}",
    "GFLOP/s": lambda f: f"{f['flops_per_second'] / 1e9:,.0f}",
    "program MB": lambda f: megabytes(f["program_bytes"]),
    "device MB": lambda f: megabytes(f["device_bytes"]),
    "resident MB": lambda f: megabytes(f["resident_bytes"]),
}


def markdown_table(headings, rows):
    """Returns the lines of a table in Markdown."""
    lines = [headings, ["---"] * len(headings), *rows]
    return ["| " + " | ".join(line) + " |" for line in lines]
