"""Measures peak memory and compile seconds of every experiment, and the cost of larger data sets, for performance.md.

python benchmarks/memory.py                   # everything, docs/memory.json and the section; twenty minutes on one core
python benchmarks/memory.py --only=digits     # only this experiment; the others are taken from docs/memory.json
python benchmarks/memory.py --render          # only writes the section, from docs/memory.json

Programs are compiled for virtual CPU devices, as many as the experiment is meant for. No data is read and no step run.
"""

import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness
import numpy as np
from absl import flags
from scaling import DOCS, span

from cfgjax.base.errors import choose
from cfgjax.jobs.preflight.advice import passes_needed
from cfgjax.jobs.preflight.memory import USABLE
from cfgjax.jobs.preflight.sizes import bytes_text
from cfgjax.runs.config import load_file

NAMES = sorted(harness.experiments())
SOURCES = ("npz", "prepared")  # data sources for which the cost of a larger set is measured
NODE = 8  # devices of the experiments on ImageNet, those of one node; the others have one device
HBM = 80e9  # bytes of a device's memory, for the number of passes
LIMIT_SECONDS = 240  # CPU seconds after which a compilation is stopped
BEGIN, END = "<!-- benchmarks/memory.py writes from here -->", "<!-- to here -->"
SIDE, EXAMPLES, BATCH = 16, 20_000, 256  # data sets: EXAMPLES images SIDE×SIDE×3, and ten times as many


def devices_of(config):
    """Returns the number of devices for which a config is compiled."""
    return NODE if config.data.num_classes == 1000 else 1


def experiment_figures(name):
    """Prints two lines of JSON: the counts of an experiment's step before compilation, and the cost of compiling it.

    One device is compiled as in `cfgjax train`, several devices without XLA's optimisation of machine code.
    """
    from cfgjax.cli.preflight import use_virtual_devices

    config = load_file(harness.experiments()[name])
    count = devices_of(config)
    use_virtual_devices(count)

    import jax

    jax.config.update("jax_enable_compilation_cache", False)
    jax.config.update("jax_disable_most_optimizations", count > 1)

    from cfgjax.jobs.preflight.step_figures import batch_figures, memory_figures
    from cfgjax.training.run import Program

    program = Program(config)
    known = {"experiment": name, "devices": count, "jax": jax.__version__}
    known |= {"dtype": config.model.get("dtype", "float32")}
    known |= {"parameters": sum(leaf.size for leaf in jax.tree.leaves(program.like.params))}
    print(json.dumps(known | {"batch": batch_figures(program), **memory_figures(program)}), flush=True)
    start = time.process_time()
    resource.setrlimit(resource.RLIMIT_CPU, (int(start) + LIMIT_SECONDS, resource.RLIM_INFINITY))
    batches = program.abstract_batches(program.settings.train.steps_per_dispatch)
    memory = program.dispatch.lower(program.like, batches, program.step_key).compile().memory_analysis()
    made = {"compile_seconds": time.process_time() - start, "resident_bytes": harness.resident_bytes()}
    program_bytes = {"arguments": memory.argument_size_in_bytes, "temporaries": memory.temp_size_in_bytes}
    print(json.dumps({"program_bytes": program_bytes, **made}))


def measure(name):
    """Returns the figures of an experiment, measured in its own process. compile_seconds is None if it was stopped."""
    known, made = in_a_process(f"--child={name}")
    return known | (made or dict.fromkeys(("program_bytes", "compile_seconds", "resident_bytes")))


def in_a_process(*words):
    """Returns the two JSON objects that this file prints with these flags, None for those it did not reach."""
    ran = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True)
    told = [json.loads(line) for line in ran.stdout.splitlines()]
    if not told:
        raise SystemExit(f"{' '.join(words)} ended with exit code {ran.returncode}")
    return (*told, None)[:2]


def growth(source, num_examples=EXAMPLES):
    """Returns the peak resident bytes of a process that makes an epoch of batches, for two sizes of the data set.

    The sizes are num_examples and ten times as many. per_example: the difference in bytes, divided by the difference
    in examples. image_bytes: size of an image in memory.
    """
    from input import write_prepared

    images = np.random.default_rng(0).integers(0, 256, (10 * num_examples, SIDE, SIDE, 3), np.uint8)
    found = {"source": source, "image_bytes": images[0].nbytes, "num_examples": num_examples}
    with tempfile.TemporaryDirectory() as folder:
        for name, count in {"small": num_examples, "large": 10 * num_examples}.items():
            path = f"{folder}/{name}"
            data = write_npz(path, images[:count]) if source == "npz" else write_prepared(path, "raw", images[:count])
            told, _ = in_a_process(f"--data={json.dumps(data)}")
            found[f"{name}_bytes"] = told["resident_bytes"]
    return found | {"per_example": (found["large_bytes"] - found["small_bytes"]) / (9 * num_examples)}


def write_npz(path, images):
    """Writes images with labels of ten classes to path.npz. Returns config.data for them."""
    np.savez(path, image=images, label=np.arange(len(images), dtype=np.int32) % 10)
    return {"source": "npz", "path": f"{path}.npz", "num_classes": 10, "image_shape": images.shape[1:]}


def epoch_figures(data):
    """Prints the peak resident bytes of this process after an epoch of batches of config.data and two of the next."""
    from cfgjax.data.pipeline import Batches
    from cfgjax.data.sources.registry import open_source
    from cfgjax.runs.data_settings import DataSettings
    from cfgjax.runs.sections import read_section

    dataset = open_source(read_section(DataSettings, "data", data))
    batches = Batches(dataset, 0, BATCH, np.arange(BATCH), 1)
    for step in range(len(dataset) // BATCH + 2):
        batches.at(step)
    print(json.dumps({"resident_bytes": harness.resident_bytes()}))


def experiment_row(found):
    """Returns the table cells of an experiment."""
    parts, program, compiled = found["bytes_per_device"], found["program_bytes"], found["compile_seconds"] is not None
    return [
        f"`{found['experiment']}`", f"{found['parameters'] / 1e6:.3g}", found["dtype"], f"{found['batch']['global']:,}",
        str(found["devices"]), span(parts["peak_least"], parts["peak"]),
        bytes_text(sum(program.values())) if compiled else "-",
        str(passes_needed(found, USABLE * HBM) or "does not fit"),
        f"{found['compile_seconds']:.0f}" if compiled else f"over {LIMIT_SECONDS}",
        f"{found['resident_bytes'] / 1e9:.1f}" if compiled else "-",
    ]  # fmt: skip


def growth_row(found):
    """Returns the table cells of a data source."""
    cells = [f"`{found['source']}`", f"{found['num_examples']:,}", f"{found['image_bytes']:,}"]
    sizes = [harness.megabytes(found[f"{name}_bytes"]) for name in ("small", "large")]
    return [*cells, *sizes, f"{found['per_example']:,.0f}"]


def section(measured):
    """Returns the lines of docs/performance.md between BEGIN and END."""
    headings = ["experiment", "10⁶ parameters", "dtype", "batch", "devices", "peak", "XLA's for CPU",
                "passes in 80 GB", "compile s", "compiling, GB"]  # fmt: skip
    sources = ["source", "images N", "bytes of one", "MB with N", "MB with 10 N", "bytes for each more"]
    experiments = harness.markdown_table(headings, map(experiment_row, measured["experiments"]))
    text = (Path(__file__).parent / "memory.template.md").read_text()
    values = {
        "experiments": experiments,
        "growth": harness.markdown_table(sources, map(growth_row, measured["growth"])),
    }
    values["jax"] = [measured["experiments"][0]["jax"]]
    for name, lines in values.items():
        text = text.replace("{{" + name + "}}", "\n".join(lines))
    return text


def document(page, measured):
    """Returns the page with the section replaced."""
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{section(measured)}{END}{after}"


def write_figures(only):
    """Measures the experiments and sources named in `only`, or all, and writes docs/memory.json after each."""
    path = DOCS / "memory.json"
    measured = json.loads(path.read_text()) if path.exists() else {"experiments": [], "growth": []}
    for name in only or [*NAMES, *SOURCES]:
        kind, key, figures = ("growth", "source", growth) if name in SOURCES else ("experiments", "experiment", measure)
        others = [found for found in measured[kind] if found[key] != name]
        measured[kind] = sorted([*others, figures(name)], key=lambda found: found[key])
        path.write_text(json.dumps(measured, indent=1) + "\n")
        print(name, flush=True)


def main(argv):
    """Runs `memory.py FLAGS`. Returns the exit code."""
    given = flags.FlagValues()
    flags.DEFINE_list(
        "only", [], "Experiments, or npz and prepared, to measure again; by default all.", flag_values=given
    )
    flags.DEFINE_bool("render", False, "Only write the section, from the existing figures.", flag_values=given)
    flags.DEFINE_string("child", None, "Internal: the experiment that this process measures.", flag_values=given)
    flags.DEFINE_string("data", None, "Internal: the config.data that this process reads.", flag_values=given)

    def write():
        for name in given.only:
            choose("experiment", name, dict.fromkeys([*NAMES, *SOURCES]))
        if given.child:
            experiment_figures(given.child)
        elif given.data:
            epoch_figures(json.loads(given.data))
        else:
            if not given.render:
                write_figures(given.only)
            page = DOCS / "performance.md"
            page.write_text(document(page.read_text(), json.loads((DOCS / "memory.json").read_text())))

    return harness.command(argv, __doc__, given, write)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
