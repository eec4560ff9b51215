"""The tables of `accelerator.py`."""

import accelerator_parts
import cifar
import device
import evaluation
import harness
from accelerator_records import SETTLED

ALONE = lambda columns: {name.strip(): lambda f, rows, cell=cell: cell(f) for name, cell in columns.items()}
NAME = {"measurement": lambda f, rows: f["name"]}
dash = lambda value, form: "-" if value is None else format(value, form)


def ceiling(figures, rows):
    """Returns the measured FLOP/s of a product in the dtype of a row, on its device, or None."""
    products = [r for r in rows if r.get("unit") == "TFLOP/s" and r["dtype"] == figures["dtype"]]
    return max((1e12 * r["rate"] for r in products if same(r, figures)), default=None)


def same(one, other):
    """Returns whether two rows are of the same device."""
    return one["device"] == other["device"]


def model_flops(figures):
    """Returns the FLOP/s of a training step, three forward passes for each image, without what remat recomputes."""
    return 3 * figures["forward_flops_per_image"] * figures["images_per_second"]


def utilisation(figures, rows):
    """Returns the FLOP/s of a training step divided by the ceiling, or None without a ceiling."""
    most = ceiling(figures, rows)
    return most and model_flops(figures) / most


def times_cfgjax(figures, rows):
    """Returns the speed of a contestant divided by that of cfgjax in the same task and on the same device, or None."""
    task = lambda f: [f.get(name) for name in ("task", "config", "batch_size", "sampler", "rule", "num_steps")]
    ours = [r for r in rows if r.get("contestant") == "cfgjax" and task(r) == task(figures) and same(r, figures)]
    return figures["images_per_second"] / ours[0]["images_per_second"] if ours else None


def compile_text(figures, rows):
    """Returns the seconds of compilation, marked if all large programs were read from the cache."""
    cached = figures.get("cache_hits") and not figures.get("cache_misses")
    return f"{figures['compile_seconds']:.0f}{' (cached)' if cached else ''}"


STEP = NAME | {
    "ms/step": lambda f, rows: f"{f['ms_per_step']:.1f}",
    "images/s": lambda f, rows: f"{f['images_per_second']:.4g}",
    "TFLOP/s": lambda f, rows: f"{model_flops(f) / 1e12:.3g}",
    "MFU": lambda f, rows: dash(utilisation(f, rows), ".1%"),
    "device GB": lambda f, rows: gigabytes(f["device_bytes"]),
    "compile s": compile_text,
}
PEER = NAME | {
    "batch": lambda f, rows: str(f["batch_size"]),
    "parameters": lambda f, rows: f"{f['parameters']:,}",
    "ms/step": lambda f, rows: f"{f['ms_per_step']:.1f}",
    "images × steps/s": lambda f, rows: f"{f['images_per_second']:.4g}",
    "× cfgjax": lambda f, rows: dash(times_cfgjax(f, rows), ".2f"),
    "compile s": compile_text,
}
gigabytes = lambda count: "-" if count is None else f"{count / 1e9:.3g}"
COLUMNS = {
    "ceilings": ALONE(device.CEILING_COLUMNS),
    "agreement": ALONE(device.AGREEMENT_COLUMNS),
    "step": STEP,
    "flags": STEP,
    "kernels": NAME
    | {
        "kernels": lambda f, rows: f["kernel"],
        "ms/step": lambda f, rows: f"{f['ms']:.2f}",
        "share": lambda f, rows: dash(f["share"], ".1%"),
        "launches": lambda f, rows: f"{f['count']:.0f}",
        "grouped by instruction": lambda f, rows: f"{f['known']:.0%}" if "known" in f else "-",
    },
    "jax": PEER,
    "torch": PEER,
    "compiled": PEER,
    "networks": ALONE(evaluation.NETWORK_COLUMNS),
    "training": ALONE(cifar.TRAINING_COLUMNS),
    "frontier": ALONE(cifar.FRONTIER_COLUMNS),
    "memory": NAME
    | {
        "counted GB": lambda f, rows: f"{gigabytes(f['least_peak_bytes'])}–{gigabytes(f['peak_bytes'])}",
        "device GB": lambda f, rows: gigabytes(f["device_bytes"]),
        "counted / device": lambda f, rows: dash(f["device_bytes"] and f["peak_bytes"] / f["device_bytes"], ".2f"),
        "program GB": lambda f, rows: gigabytes(f["program_bytes"]),
    },
}
NOTES = {
    "b": "MFU: FLOP/s of three forward passes for each image, divided by the ceiling of part a. A fusion of several "
    "operations is counted in one group. On a CPU the times of kernels are sums over its threads.",
    "c": "Each contestant ran alone. × cfgjax: its speed divided by that of cfgjax.",
    "g": "counted: by preflight, if the compiler fuses all it can, and everything that JAX keeps.",
}


def all_rows(plan, records):
    """Returns the rows of all results of the plan's measurements, with their name, kind, part and device."""
    rows = []
    for measurement in (m for made in plan.values() for m in made):
        record = records.find(measurement)
        for figures in record["results"] if record else []:
            about = {"name": measurement.name, "kind": measurement.kind, "part": measurement.part}
            rows.append(figures | about | {"device": record["machine"]["device"]})
    return rows


def shown(figures):
    """Returns whether a row is in the table. Of a profile, only the step and the groups of kernels are."""
    return figures["kind"] != "kernels" or "group" not in figures or figures["kernel"].startswith("all of")


def report(plan, records, left):
    """Returns the lines of the report. left: {letter: [(name, why it is not done), …]}."""
    rows = all_rows(plan, records)
    machines = {(r["machine"]["device"], r["machine"]["jax"]) for part in records.parts.values() for r in part.values()}
    machines = sorted(found for found in machines if found[0])
    lines = [f"device: {name}, jax {version}" for name, version in machines]
    if len({name for name, _ in machines}) > 1:
        lines.append("These are results of several devices; ratios are only of rows of the same one.")
    for letter, made in plan.items():
        found = part_lines(letter, made, rows, records)
        waiting = [f"- left: {name}: {why}" for name, why in left.get(letter, [])]
        if found or waiting:
            lines += ["", f"## {letter}: {accelerator_parts.TITLES[letter]}", *found, *([""] * bool(waiting)), *waiting]
    return lines


def part_lines(letter, made, rows, records):
    """Returns the tables of a part, one for measurements with the same columns, and what has no figures."""
    lines, tables = [], []
    for measurement in made:
        columns = COLUMNS[measurement.kind]
        if not any(columns is known for known in tables):
            tables.append(columns)
    for columns in tables:
        of_table = [r for r in rows if r["part"] == letter and COLUMNS[r["kind"]] is columns and shown(r)]
        if of_table:
            cells = [[cell(figures, rows) for cell in columns.values()] for figures in of_table]
            lines += ["", *harness.markdown_table(list(columns), cells)]
    if lines and letter in NOTES:
        lines += ["", NOTES[letter]]
    without = [(m.name, record) for m in made if (record := records.find(m)) and not record["results"]]
    told = [f"- {name}: {record['state']}{f', {why}' if (why := record['reason']) else ''}" for name, record in without]
    return [*lines, *([""] * bool(told)), *told]


def summary(plan, records):
    """Returns a line for each part: how many of its measurements have a result."""
    made = {letter: [m for m in of_part if records.state(m) in SETTLED] for letter, of_part in plan.items()}
    return [f"{letter}: {len(made[letter])} of {len(of_part)} measured" for letter, of_part in plan.items()]
