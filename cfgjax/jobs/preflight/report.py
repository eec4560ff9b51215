"""Formats the figures of a training step as text."""

from collections.abc import Mapping
from typing import Any

from cfgjax.base.cells import aligned
from cfgjax.jobs.preflight.memory import USABLE
from cfgjax.jobs.preflight.sizes import bytes_text

PARTS = {  # key of bytes_per_device: description
    "parameters": "parameters",
    "optimizer": "optimizer state",
    "ema": "EMA",
    "gradients": "gradients",
    "batch": "batch",
    "gathered": "split parameters, gathered",
    "activations": "activations kept for the backward pass",
    "activations_least": "    at least",
    "peak": "peak, the sum",
    "peak_least": "    at least",
}

Section = tuple[str, list[tuple[str, ...]]]  # title, lines of cells


def report(found: Mapping[str, Any]) -> list[str]:
    """Returns the dict of `step_figures` as lines of text."""
    sections = [step_section(found), memory_section(found), cost_section(found)]
    blocks = [[title, *aligned([("", *line) for line in lines], right=False)] for title, lines in sections]
    text = [line for block in blocks for line in [*block, ""]]
    text += explanations(found)
    return [*text, *[f"WARNING: {line}" for line in found["warnings"]]]


def step_section(found: Mapping[str, Any]) -> Section:
    """Returns (title, lines) about the model, the mesh and the batch."""
    batch, mesh = found["batch"], found["mesh"]
    passes = batch["accumulate_steps"]
    each = f"{batch['per_device']} on each device"
    if passes > 1:
        each += f", in {passes} passes of {batch['per_pass']}"
    return f"training step on {found['devices']} devices", [
        ("parameters", f"{found['parameters']:,}, computing in {found['dtype']}"),
        ("mesh", " × ".join(f"{name} {size}" for name, size in mesh.items())),
        ("batch", f"{batch['global']:,}: {each}"),
    ]


def memory_section(found: Mapping[str, Any]) -> Section:
    """Returns (title, lines) about the memory of each device."""
    parts, program, notes = found["bytes_per_device"], found["program_bytes"], {}
    for name, kept in found["activation_bytes"].items():
        key = "activations" if name == "named" else "activations_least"
        notes[key] = f"{bytes_text(kept['per_image'])} per image + {bytes_text(kept['fixed'])}"
    if found["replicated_bytes"]:
        whole = bytes_text(found["replicated_bytes"])
        notes["parameters"] = f"{whole} of them replicated: too small to split, or not divisible"
    if parts["gathered"]:
        notes["gathered"] = "in the compute dtype, if all at once"
    shown = [name for name in PARTS if name != "gathered" or parts[name]]
    lines: list[tuple[str, ...]] = [(PARTS[name], bytes_text(parts[name]), notes.get(name, "")) for name in shown]
    lines += [
        ("XLA's program for CPU: arguments", bytes_text(program["arguments"]), ""),
        ("XLA's program for CPU: temporaries", bytes_text(program["temporaries"]), ""),
    ]
    if fits := found.get("fits"):
        title = f"largest batch in {USABLE:.0%} of {bytes_text(fits['hbm'])}"
        lines.append((title, *largest(fits["named"])))
        lines.append(("    at most", *largest(fits["least"])))
    return "memory of each device", lines


def largest(fits: Mapping[str, Any]) -> tuple[str, str]:
    """Returns (images on each device, images in total) that fit, as text."""
    return (f"{fits['per_device']:,}", f"{fits['global']:,} in total") if fits["per_pass"] else ("none", "")


def cost_section(found: Mapping[str, Any]) -> Section:
    """Returns (title, lines) about the FLOPs of a step and the communication of each device."""
    flops, batch = found["flops_per_image"], found["batch"]
    lines: list[tuple[str, ...]] = [
        ("FLOPs per image: step", f"{flops['step'] / 1e9:,.4g} G", f"forward {flops['forward'] / 1e9:,.4g} G"),
        ("FLOPs per device", f"{flops['step'] * batch['per_device'] / 1e12:,.4g} T", ""),
    ]
    for kind, sums in found["collectives"].items():
        if sums["count"]:
            sent = f"{sums['count']} of them; {bytes_text(sums['wire_bytes'])} sent by each device in a ring"
            lines.append((kind, bytes_text(sums["bytes"]), sent))
    if not any(sums["count"] for sums in found["collectives"].values()):
        lines.append(("collectives", "none", ""))
    return "an optimizer step", lines


def explanations(found: Mapping[str, Any]) -> list[str]:
    """Returns lines that explain the figures."""
    lines = [
        f"Compiled for virtual CPUs in {found['compile_seconds']:.0f} s.",
        '"Activations" counts everything that JAX keeps for the backward pass; "at least" is what remains if the',
        "compiler recomputes everything that is cheap.",
    ]
    if found["mesh"].get("fsdp", 1) > 1:
        lines.append(
            "On CPU, gradients of split parameters are all-reduced; TPU and GPU reduce-scatter half as many bytes."
        )
    return lines
