"""Writes docs/scaling.md: the cost of a step on 8, 64 and 256 devices, from programs compiled for virtual devices.

python benchmarks/scaling.py            # compiles everything, a minute or two each; writes docs/scaling.json and .md
python benchmarks/scaling.py --render   # only writes docs/scaling.md, from docs/scaling.json
"""

import dataclasses
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import harness
from absl import flags
from harness import EXPERIMENTS, RSS_UNIT

from cfgjax.jobs.preflight.advice import passes_needed
from cfgjax.jobs.preflight.hlo import ring_share
from cfgjax.jobs.preflight.memory import USABLE
from cfgjax.jobs.preflight.sizes import bytes_text
from cfgjax.runs.config import load_file

DOCS = Path(__file__).resolve().parents[1] / "docs"
CONFIGS = ("imagenet64", "imagenet128")
MESHES = {8: ("data=8,fsdp=1", "data=1,fsdp=8"), 64: ("data=64,fsdp=1", "data=8,fsdp=8")}
MESHES |= {256: ("data=256,fsdp=1", "data=32,fsdp=8")}
POLICIES = ("none", "convolutions", "blocks")  # policies of model.remat, from most to least memory
SPATIAL = "spatial"  # value of the internal flag that measures a sharded height


@dataclasses.dataclass(frozen=True)
class Chip:
    """Published peaks of an accelerator: FLOP/s in bfloat16, bytes of memory, bytes/s of memory and links.

    link: rate of a device to others on its node. node: devices per node, None without nodes. far: rate to other nodes.
    """

    name: str
    flops: float
    memory: float
    bandwidth: float
    link: float
    node: int | None = None
    far: float = 0.0


CHIPS = (
    Chip("v5e", flops=197e12, memory=16e9, bandwidth=819e9, link=1600e9 / 8),
    Chip("H100", flops=989e12, memory=80e9, bandwidth=3.35e12, link=450e9, node=8, far=400e9 / 8),
)


def collective_seconds(group, chip, reduce_scatters):
    """Returns the minimum seconds of a collective in a group: a ring on each node, and rings between nodes.

    group: see `by_group`. reduce_scatters: whether an all-reduce is a reduce-scatter, because its result is split.
    """
    kind = "reduce-scatter" if group["kind"] == "all-reduce" and reduce_scatters else group["kind"]
    size, near = group["size"], group["size"] if chip.node is None else group["in_node"]
    seconds = group["bytes"] * ring_share(kind, near) / chip.link if near > 1 else 0.0
    if size > near:
        seconds = max(seconds, group["bytes"] / near * ring_share(kind, size // near) / chip.far)
    return seconds


def prediction(found, chip):
    """Returns the minimum seconds of each part of a step on a chip, and the number of passes; None if it does not fit.

    With accumulation, gradients are reduced in every pass and parameters gathered once, as in the compiled programs.
    """
    passes = passes_needed(found, USABLE * chip.memory)
    if passes is None:
        return None
    batch, parts = found["batch"], found["bytes_per_device"]
    fsdp = found["mesh"]["fsdp"] > 1
    times = lambda group: passes if group["kind"] == "all-reduce" else 1
    exchange = sum(times(g) * collective_seconds(g, chip, fsdp) for g in found["collectives_by_group"])
    state = sum(parts[name] for name in ("parameters", "optimizer", "ema"))
    seconds = {
        "compute": batch["per_device"] * found["flops_per_image"]["step"] / chip.flops,
        "exchange": exchange,
        "update": (2 * state + 2 * parts["parameters"]) / chip.bandwidth,
    }
    overlapped, apart = max(seconds.values()), sum(seconds.values())
    rates = {"images_per_second": [batch["global"] / apart, batch["global"] / overlapped]}
    return {"passes": passes, "seconds": seconds, "overlapped": overlapped, "apart": apart, **rates}


def measure(config, devices, mesh, *overrides):
    """Returns the figures of `cfgjax preflight` for a case, with its run time and memory."""
    command = [sys.executable, "-m", "cfgjax", "preflight", f"--config={EXPERIMENTS / config}.py", "--json=-"]
    told, memory = in_a_process([*command, f"--devices={devices}", f"--mesh={mesh}", *overrides])
    return told | {"config": config, "resident_bytes": memory}


def in_a_process(command):
    """Returns (the JSON that a command prints, the peak resident bytes of its process)."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        text = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}")
    return json.loads(text), usage.ru_maxrss * RSS_UNIT


def kept_per_image(config, remat):
    """Returns the bytes kept per image for the backward pass, by both counts, with a policy of `model.remat`."""
    import jax

    from cfgjax.jobs.preflight.memory import activations
    from cfgjax.training.run import Program

    experiment = load_file(EXPERIMENTS / f"{config}.py")
    experiment.model.remat = remat
    found = activations(Program(experiment, jax.devices()[:1]))
    return {"config": config, "remat": remat} | {count: kept.per_image for count, kept in found.items()}


def spatial_figures(config="imagenet128", devices=8):
    """Returns collectives and memory of a step on one image per device, and on one strip of every image per device."""
    from cfgjax.cli.preflight import use_virtual_devices

    use_virtual_devices(devices)

    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    import cfgjax.distributed.sharding
    from cfgjax.jobs.preflight.step_figures import compiled_figures
    from cfgjax.training.run import Program

    cfgjax.distributed.sharding.FSDP_MIN_SIZE = 2**62  # parameters are not split: the axis fsdp is the height here
    experiment = load_file(EXPERIMENTS / f"{config}.py")
    experiment.update_from_flattened_dict({"train.batch_size": devices, "mesh.data": 1, "mesh.fsdp": devices})
    program = Program(experiment)
    apart = compiled_figures(program)
    whole, strips = PartitionSpec(None, "data"), PartitionSpec(None, "data", "fsdp")
    place = lambda leaf: NamedSharding(program.mesh, strips if leaf.ndim > 2 else whole)
    batch = program.abstract_batches(1)
    cut = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place(leaf)), batch)
    program.abstract_batches = lambda num_steps: cut
    return {"config": config, "devices": devices, "apart": apart, "strips": compiled_figures(program)}


def sent(found):
    """Returns the bytes that each device sends in the collectives of a step, in rings."""
    return sum(sums["wire_bytes"] for sums in found["collectives"].values())


def span(least, most):
    """Returns two byte counts as text, or only one if their texts are equal."""
    return " – ".join(dict.fromkeys([bytes_text(least), bytes_text(most)]))


def memory_row(found):
    """Returns the cells of a case about bytes on each device."""
    parts, kinds = found["bytes_per_device"], found["collectives"]
    state = sum(parts[name] for name in ("parameters", "optimizer", "ema", "gradients"))
    kept = span(parts["activations_least"], parts["activations"])
    exchanged = [bytes_text(kinds[kind]["bytes"]) for kind in ("all-reduce", "all-gather", "all-to-all")]
    exchanged = [cell if cell != "0 B" else "-" for cell in exchanged]
    return [*name_cells(found), str(found["batch"]["per_device"]), bytes_text(parts["parameters"]), bytes_text(state),
            kept, *exchanged, bytes_text(sent(found))]  # fmt: skip


def name_cells(found):
    """Returns the cells that identify a case."""
    mesh = " × ".join(str(size) for size in found["mesh"].values())
    return [found["config"], str(found["devices"]), mesh]


def time_row(found):
    """Returns the cells of a case about the minimum time of a step."""
    cells = name_cells(found)
    for chip in CHIPS:
        told = prediction(found, chip)
        if told is None:
            cells += ["does not fit", "-", "-"]
            continue
        compute, exchange, _ = (1000 * seconds for seconds in told["seconds"].values())
        bounds = f"{1000 * told['overlapped']:,.0f} – {1000 * told['apart']:,.0f}"
        rate = " – ".join(f"{rate:,.0f}" for rate in told["images_per_second"])
        cells += [str(told["passes"]), f"{bounds} ({compute:,.0f} + {exchange:,.0f})", rate]
    return cells


def document(measured):
    """Returns the text of docs/scaling.md."""
    cases, kept, spatial = measured["cases"], measured["kept"], measured["spatial"]
    text = (Path(__file__).parent / "scaling.template.md").read_text()
    headings = ["experiment", "devices", "data × fsdp", "images", "parameters", "state and gradients", "activations",
                "all-reduce", "all-gather", "all-to-all", "sent"]  # fmt: skip
    per_chip = [[f"{c.name}: passes", f"{c.name}: ms", f"{c.name}: images/s"] for c in CHIPS]
    bytes_cells = lambda row: [bytes_text(row["least"]), bytes_text(row["named"])]
    remat = [[row["config"], f"`{row['remat']}`", *bytes_cells(row)] for row in kept]
    flops = {found["config"]: found["flops_per_image"] for found in cases}
    counted = [[name, f"{f['forward'] / 1e9:,.1f}", f"{f['step'] / 1e9:,.1f}", f"{f['step'] / f['forward']:.2f}"]
               for name, f in flops.items()]  # fmt: skip
    making = [[*name_cells(f), f"{f['compile_seconds']:.0f}", f"{f['resident_bytes'] / 1e9:.1f}",
               str(f["partitioner_complaints"])] for f in cases]  # fmt: skip
    plain = measured["plain"]["bytes_per_device"]
    apart, strips = spatial["apart"], spatial["strips"]
    extra = (sent(strips) - sent(apart)) / spatial["devices"]
    values = {
        "memory": harness.markdown_table(headings, map(memory_row, cases)),
        "time": harness.markdown_table([*headings[:3], *itertools.chain(*per_chip)], map(time_row, cases)),
        "kept": harness.markdown_table(["experiment", "`model.remat`", "at least", "as JAX names them"], remat),
        "flops": harness.markdown_table(["experiment", "forward", "step", "ratio"], counted),
        "making": harness.markdown_table([*headings[:3], "s", "GB", "complaints"], making),
        "extra": [bytes_text(extra)],
        "strips": [bytes_text(strips["program_bytes"]["temporaries"])],
        "apart": [bytes_text(apart["program_bytes"]["temporaries"])],
        "strip_sent": [bytes_text(sent(strips))],
        "apart_sent": [bytes_text(sent(apart))],
        "plain_least": [bytes_text(plain["activations_least"] + plain["gradients"])],
        "plain_named": [bytes_text(plain["activations"] + plain["gradients"])],
        "plain_xla": [bytes_text(measured["plain"]["program_bytes"]["temporaries"])],
        "jax": [measured["jax"]],
    }
    for name, lines in values.items():
        text = text.replace("{{" + name + "}}", "\n".join(lines))
    return text


def main(argv):
    """Runs `scaling.py FLAGS`. Returns the exit code."""
    given = flags.FlagValues()
    flags.DEFINE_bool("render", False, "Only write the document, from the existing figures.", flag_values=given)
    flags.DEFINE_string("child", None, "Internal: the case that this process measures.", flag_values=given)

    def write():
        figures = DOCS / "scaling.json"
        if given.child == SPATIAL:
            print(json.dumps(spatial_figures()))
            return
        if not given.render:
            cases = []
            for config, (devices, meshes) in itertools.product(CONFIGS, MESHES.items()):
                for mesh in meshes:
                    cases.append(measure(config, devices, mesh))
                    print(*name_cells(cases[-1]), f"{cases[-1]['compile_seconds']:.0f} s", flush=True)
            plain = measure("imagenet64", 1, "data=1", "--config.model.dtype=float32", "--config.train.batch_size=8")
            spatial, _ = in_a_process([sys.executable, __file__, f"--child={SPATIAL}"])
            import jax

            jax.config.update("jax_platforms", "cpu")
            kept = [kept_per_image(config, remat) for config, remat in itertools.product(CONFIGS, POLICIES)]
            measured = {"jax": jax.__version__, "cases": cases, "kept": kept, "spatial": spatial, "plain": plain}
            figures.write_text(json.dumps(measured, indent=1) + "\n")
        (DOCS / "scaling.md").write_text(document(json.loads(figures.read_text())))

    return harness.command(argv, __doc__, given, write)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
