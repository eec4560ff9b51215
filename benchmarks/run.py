"""Runs the benchmarks one after the other and prints their results in one table.

python benchmarks/run.py                                        # digits; five minutes on one core
python benchmarks/run.py --only=train_step,input --configs=digits,small32 --repeats=5 --json=all.json
python benchmarks/run.py --only=train_step,peers --configs=small8

Each benchmark runs as a separate command, with quick settings. Its tables go to stderr while it runs.
"""

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import harness
from absl import flags

from cfgjax.base.cells import aligned
from cfgjax.base.errors import UsageError, choose
from cfgjax.base.exits import BAD_USAGE, DONE
from cfgjax.cli.common import check_writable, no_arguments
from cfgjax.runs.config import parse_flags

FOLDER = Path(__file__).resolve().parent
# name: flags, in addition to those of all benchmarks
BENCHMARKS = {
    "train_step": [],
    "sampling": ["--samplers=ancestral(v=0.3)", "--num_steps=16"],
    "input": ["--encodings=webp", "--workers=0,1", "--crops=adm", "--megabytes=100", "--num_examples=1024",
              "--images_per_repeat=1024", "--num_jpegs=20"],
    "evaluation": ["--guidance=1", "--num_batches=1", "--networks=classifier", "--network_batch_sizes=64",
                   "--num_samples=2000", "--num_features=64"],
    "peers": [],
}  # fmt: skip
DEFAULT = [name for name in BENCHMARKS if name != "peers"]


def images(figures):
    """Returns images per second: median, minimum and maximum of the repeats."""
    return [figures[f"images_per_second{which}"] for which in ("", "_min", "_max")]


def spread(rates):
    """Returns the median, minimum and maximum of rates."""
    return [statistics.median(rates), min(rates), max(rates)]


def ratio_of(seconds, other):
    """Returns the function of figures that gives the spread of the ratios of two of them."""
    return lambda f: spread([a / b for a, b in zip(f[seconds], f[other], strict=True)])


@dataclasses.dataclass(frozen=True)
class Told:
    """How the figures of one table of a benchmark are reported.

    case: a format of figures. unit, rates: the main rate, figures → [median, minimum, maximum], or a single value.
    alone: flags that omit the other tables of the benchmark.
    """

    case: str
    unit: str = "images/s"
    rates: Callable = images
    alone: tuple = ()


TABLES = {
    "training": Told("{config}"),
    "sampling": Told("{config}, {sampler}, T = {num_steps}", alone=("--nooverhead",)),
    "overhead": Told(
        "guidance: {guidance}",
        "× the evaluations' time",
        ratio_of("guided_seconds", "needed_seconds"),
        ("--configs=",),
    ),
    "attention": Told(
        "guidance: {guidance}",
        "× the time of cfg",
        ratio_of("seconds", "cfg_seconds"),
        ("--configs=", "--nooverhead"),
    ),
    "input": Told("{config}", alone=("--encodings=", "--crops=", "--megabytes=")),
    "prepared": Told("64×64, {encoding}, workers: {num_workers}", alone=("--configs=", "--crops=", "--megabytes=")),
    "preparing": Told(
        "JPEGs 500×375, {crop}",
        "images/CPU s",
        lambda f: [f["jpegs_per_cpu_second"]],
        ("--configs=", "--encodings=", "--megabytes="),
    ),
    "saving": Told(
        "checkpoint of {state_bytes:,} bytes",
        "MB/s",
        lambda f: [f["state_bytes"] / f["write_seconds"] / 1e6],
        ("--configs=", "--encodings=", "--crops="),
    ),
    "generation": Told("{config}, w = {guidance_weight:g}, T = {num_steps}", alone=("--parts=generation",)),
    "networks": Told("{network}, batches of {batch_size}", alone=("--parts=networks",)),
    "metrics": Told(
        "{metric}, D = {num_features}",
        "samples/s",
        lambda f: spread([f["num_samples"] / seconds for seconds in f["repeat_seconds"]]),
        ("--parts=metrics",),
    ),
    "peers": Told("{config}, {contestant}"),
}


def row(benchmark, words, figures):
    """A row of the summary: the figures of a benchmark's row, and the command that reproduces them."""
    table = TABLES[figures["table"]]
    rate, *ends = table.rates(figures)
    memory = {name: figures.get(name) for name in ("compile_seconds", "resident_bytes", "device_bytes")}
    told = {"benchmark": benchmark, "table": figures["table"], "case": table.case.format(**figures)}
    told |= {"unit": table.unit, "rate": rate, "spread": ends or None}
    return told | memory | {"command": command(benchmark, [*words, *table.alone, *figures["flags"]])}


def command(benchmark, words):
    """Returns the command line of a benchmark, with only the last of each flag."""
    return " ".join([f"python benchmarks/{benchmark}.py", *{word.partition("=")[0]: word for word in words}.values()])


def report(found, rows):
    """Returns the report as lines: device, versions, commands, and the table of the rows."""
    commands = list(dict.fromkeys(row["command"] for row in rows))
    number = lambda value, form: "-" if value is None else f"{value:{form}}"
    lines = [["", "benchmark", "case", "rate", "", "min–max", "compile s", "resident MB", "device MB"]]
    for r in rows:
        ends = "–".join(f"{end:.4g}" for end in r["spread"] or ()) or "-"
        memory = [harness.megabytes(r[name]) for name in ("resident_bytes", "device_bytes")]
        told = [f"{r['rate']:.4g}", r["unit"], ends, number(r["compile_seconds"], ".1f"), *memory]
        lines.append([f"[{commands.index(r['command']) + 1}]", r["benchmark"], r["case"], *told])
    about = "device: {device} × {num_devices}, jax {jax}, commit {commit}".format(**found)
    numbered = [f"[{i}] {line}" for i, line in enumerate(commands, 1)]
    return [about, *numbered, "", *aligned(lines, right=False)]


def commit():
    """Returns the commit of the code, marked if the code has changed since; "unknown" outside a repository."""
    asked = ["git", "-C", str(FOLDER), "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def measure(benchmark, words):
    """Returns (exit code of a benchmark, its report or None)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.json"
        ran = subprocess.run([sys.executable, FOLDER / f"{benchmark}.py", *words, f"--json={path}"], stdout=sys.stderr)
        return ran.returncode, json.loads(path.read_text()) if path.exists() else None


def run(given):
    """Runs the benchmarks and prints a report of those that succeed. Returns the first exit code that is not DONE."""
    shared = [f"--configs={','.join(given.configs)}", f"--repeats={given.repeats}"]
    shared += [f"--{name}={given[name].value}" for name in ("batch_size", "dtype") if given[name].value is not None]
    reports, rows, codes = {}, [], {}
    for benchmark in given.only:
        words = [*shared, *BENCHMARKS[benchmark]]
        print(command(benchmark, words), file=sys.stderr, flush=True)
        codes[benchmark], reports[benchmark] = measure(benchmark, words)
        if reports[benchmark]:
            rows += [row(benchmark, words, figures) for figures in reports[benchmark]["results"]]
    machine = next((report for report in reports.values() if report), None)
    if machine:
        found = {name: machine[name] for name in ("device", "num_devices", "jax")} | {"commit": commit()}
        print(*report(found, rows), sep="\n", file=sys.stderr if given.json == "-" else sys.stdout)
        text = json.dumps(found | {"rows": rows, "reports": reports}, indent=2)
        if given.json == "-":
            print(text)
        elif given.json:
            Path(given.json).write_text(text + "\n")
    failed = {benchmark: code for benchmark, code in codes.items() if code != DONE}
    for benchmark, code in failed.items():
        print(f"{benchmark} ended with exit code {code}", file=sys.stderr)
    return next(iter(failed.values()), DONE)


def main(argv):
    """Runs `run.py FLAGS`. Returns the exit code."""
    given = flags.FlagValues()
    try:
        flags.DEFINE_list("only", DEFAULT, f"Benchmarks to run: {', '.join(BENCHMARKS)}.", flag_values=given)
        harness.define_flags(given, ["digits"], repeats=3)
        if "--help" in argv:
            print(f"{__doc__}\n{given.get_help()}")
            return DONE
        no_arguments(parse_flags(given, argv))
        harness.product(given, "configs")
        for name in given.only:
            choose("benchmark", name, BENCHMARKS)
        if given.json not in (None, "-"):
            check_writable("json", given.json)
    except UsageError as e:
        print(f"{Path(argv[0]).name}: error: {e}", file=sys.stderr)
        return BAD_USAGE
    return run(given)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
