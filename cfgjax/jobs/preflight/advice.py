"""Warnings about a training step on a mesh, one line each."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from cfgjax.distributed.sharding import FSDP_MIN_SIZE
from cfgjax.jobs.preflight.memory import nbytes
from cfgjax.jobs.preflight.sizes import bytes_text
from cfgjax.training.run import Program, flat

NAMED = 3  # parameters named in a warning


def warnings(program: Program, found: Mapping[str, Any]) -> list[str]:
    """Returns the warnings about a program and its figures."""
    lines = [undivided(program), not_fitting(found), complaints(found)]
    return [line for line in lines if line]


def replicated_parameters(program: Program) -> tuple[dict[str, int], dict[str, int]]:
    """Returns {path: bytes} of replicated parameters twice: of large ones that fsdp does not divide, and of small ones.

    Both are empty if fsdp is 1.
    """
    whole = {path: leaf for path, leaf in flat(program.like.params) if leaf.sharding.is_fully_replicated}
    if program.mesh.shape["fsdp"] == 1:
        whole = {}
    small = {path: nbytes(leaf) for path, leaf in whole.items() if np.prod(leaf.shape) < FSDP_MIN_SIZE}
    return {path: nbytes(leaf) for path, leaf in whole.items() if path not in small}, small


def copies(program: Program) -> int:
    """Returns the number of arrays in the state per parameter: the parameter, optimizer moments, EMAs."""
    params = sum(nbytes(leaf) for leaf in jax.tree.leaves(program.like.params))
    state = program.like.params, program.like.ema, program.like.opt_state
    return round(sum(nbytes(leaf) for leaf in jax.tree.leaves(state)) / params)


def undivided(program: Program) -> str | None:
    """Returns a line about parameters with no axis divisible by fsdp, or None."""
    large, _ = replicated_parameters(program)
    if not large:
        return None
    fsdp, shapes = program.mesh.shape["fsdp"], {path: leaf.shape for path, leaf in flat(program.like.params)}
    names = sorted(large, key=lambda path: -large[path])
    named = ", ".join(f"{path} {shapes[path]}" for path in names[:NAMED])
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    size = sum(large.values()) * copies(program)
    return (
        f"mesh.fsdp {fsdp} divides no axis of {named}{more}: these parameters, their optimizer "
        f"state and averages are replicated: {bytes_text(size)} on each device instead of 1/{fsdp} of that"
    )


def not_fitting(found: Mapping[str, Any]) -> str | None:
    """Returns a line about memory that is or may be too small, with a remedy, or None."""
    fits = found.get("fits")
    if not fits or fits["named"]["fits"]:
        return None
    parts, batch, usable = found["bytes_per_device"], found["batch"], bytes_text(fits["usable"])
    doubtful = fits["least"]["fits"]
    peak = bytes_text(parts["peak"] if doubtful else parts["peak_least"])
    verb = "may not" if doubtful else "do not"
    message = f"{peak} on each device {verb} fit into {usable}"
    if not fits["least"]["per_pass"]:
        return f"{message}, nor does one image: raise mesh.fsdp, or set model.remat"
    passes = passes_needed(found, fits["usable"]) or 1
    use = f"train.accumulate_steps={passes}, " if passes > batch["accumulate_steps"] else ""
    return f"{message}: {use}model.remat, a larger mesh.fsdp or more devices reduce it"


def passes_needed(found: Mapping[str, Any], memory: float, count: str = "named") -> int | None:
    """Returns the smallest train.accumulate_steps with which the step fits into memory on each device, or None.

    count: which count of activations, "named" or "least".
    """
    parts, kept, images = found["bytes_per_device"], found["activation_bytes"][count], found["batch"]["per_device"]
    held = sum(parts[name] for name in ("parameters", "optimizer", "ema", "batch")) + kept["fixed"]
    held += parts["gathered"] if count == "named" else 0

    def peak(passes: int) -> int:
        gradients = parts["parameters"] * (2 if passes > 1 else 1)
        return held + gradients + images // passes * kept["per_image"]

    return next((n for n in range(1, images + 1) if images % n == 0 and peak(n) <= memory), None)


def complaints(found: Mapping[str, Any]) -> str | None:
    """Returns a line about arrays that the partitioner gathers to change their sharding, or None."""
    count = found["partitioner_complaints"]
    if not count:
        return None
    return f"XLA's partitioner reports that it fully gathers {count} intermediate arrays to change their sharding"
