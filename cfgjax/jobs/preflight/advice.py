"""What in a training step on a mesh is not as it could be, in a line each."""

import jax
import numpy as np

from cfgjax.distributed.sharding import FSDP_MIN_SIZE
from cfgjax.jobs.preflight.memory import nbytes
from cfgjax.jobs.preflight.sizes import bytes_text
from cfgjax.training.run import flat

NAMED = 3  # parameters, before it is said how many more


def warnings(program, found):
    """[line] about a program and its figures."""
    told = [undivided(program), not_fitting(found), complaints(found)]
    return [line for line in told if line]


def replicated_parameters(program):
    """({path: bytes} of large parameters that fsdp does not divide, {path: bytes} of those too small for it)

    Both are empty where fsdp is 1.
    """
    whole = {path: leaf for path, leaf in flat(program.like.params) if leaf.sharding.is_fully_replicated}
    if program.mesh.shape["fsdp"] == 1:
        whole = {}
    small = {path: nbytes(leaf) for path, leaf in whole.items() if np.prod(leaf.shape) < FSDP_MIN_SIZE}
    return {path: nbytes(leaf) for path, leaf in whole.items() if path not in small}, small


def copies(program):
    """How many arrays of a parameter's shape the state has: itself, optimizer moments, EMAs."""
    params = sum(nbytes(leaf) for leaf in jax.tree.leaves(program.like.params))
    state = program.like.params, program.like.ema, program.like.opt_state
    return round(sum(nbytes(leaf) for leaf in jax.tree.leaves(state)) / params)


def undivided(program):
    """A line about parameters of which no axis is a multiple of fsdp, or None."""
    large, _ = replicated_parameters(program)
    if not large:
        return None
    fsdp, shapes = program.mesh.shape["fsdp"], {path: leaf.shape for path, leaf in flat(program.like.params)}
    names = sorted(large, key=lambda path: -large[path])
    named = ", ".join(f"{path} {shapes[path]}" for path in names[:NAMED])
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    size = sum(large.values()) * copies(program)
    return (
        f"mesh.fsdp {fsdp} divides no axis of {named}{more}: replicated, {bytes_text(size)} on each device with "
        f"optimizer and averages, where 1/{fsdp} of them would do"
    )


def not_fitting(found):
    """A line about memory that does not suffice, or may not, with what would do; or None."""
    fits = found.get("fits")
    if not fits or fits["named"]["fits"]:
        return None
    parts, batch, usable = found["bytes_per_device"], found["batch"], bytes_text(fits["usable"])
    doubtful = fits["least"]["fits"]
    peak = bytes_text(parts["peak"] if doubtful else parts["peak_least"])
    verb = "may not" if doubtful else "do not"
    told = f"{peak} on each device {verb} fit into {usable}"
    if not fits["least"]["per_pass"]:
        return f"{told}, nor does one image: raise mesh.fsdp, or set model.remat"
    passes = passes_needed(found, fits["usable"]) or 1
    use = f"train.accumulate_steps={passes}, " if passes > batch["accumulate_steps"] else ""
    return f"{told}: {use}model.remat, a larger mesh.fsdp or more devices make it smaller"


def passes_needed(found, memory, count="named"):
    """The smallest train.accumulate_steps with which the step takes no more than memory on each device, or None.

    count: of activations, "named" or "least".
    """
    parts, kept, images = found["bytes_per_device"], found["activation_bytes"][count], found["batch"]["per_device"]
    held = sum(parts[name] for name in ("parameters", "optimizer", "ema", "batch")) + kept["fixed"]
    held += parts["gathered"] if count == "named" else 0

    def peak(passes):
        gradients = parts["parameters"] * (2 if passes > 1 else 1)
        return held + gradients + images // passes * kept["per_image"]

    return next((n for n in range(1, images + 1) if images % n == 0 and peak(n) <= memory), None)


def complaints(found):
    """A line about arrays that the partitioner lays out anew by gathering them, or None."""
    count = found["partitioner_complaints"]
    if not count:
        return None
    return f"XLA's partitioner gathers {count} intermediate arrays whole to lay them out anew, and says so"
