"""What is known of a training step before it runs: its figures, by compiling it for devices that need not be there."""

import contextlib
import dataclasses
import os
import sys
import tempfile
import time

import jax
from ml_collections import ConfigDict

from cfgjax.base.progress import timed
from cfgjax.jobs.preflight.advice import replicated_parameters, warnings
from cfgjax.jobs.preflight.collectives import by_group, by_kind, find_collectives
from cfgjax.jobs.preflight.memory import (
    USABLE,
    activations,
    device_bytes,
    drop_step,
    gathered_bytes,
    largest_batch,
    mean_loss,
    nbytes,
    state_bytes,
)
from cfgjax.nets.ops.conv import unfiltered
from cfgjax.training.run import Program

COMPLAINT = "Involuntary full rematerialization"  # of XLA's partitioner: it gathers an array to lay it out anew


@unfiltered()
def figures(config, devices=None, hbm=None):
    """{name: figure} of the training step of config on devices (default: all); bytes, seconds and FLOPs in units of 1.

    hbm: bytes of memory of a device, if it is to be said what fits. Compiles; makes no arrays and opens no data.
    """
    with timed("tracing the step, for its memory and FLOPs"):
        program = Program(config, devices)
        found = {
            "devices": program.mesh.size,
            "device_kind": program.mesh.devices.flat[0].device_kind,
            "mesh": dict(program.mesh.shape),
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(program.like.params)),
            "dtype": config.model.get("dtype", "float32"),
            "batch": batch_figures(program),
            **memory_figures(program),
            "replicated_bytes": sum(sum(paths.values()) for paths in replicated_parameters(program)),
            "flops_per_image": flops_per_image(config),
        }
    with timed(f"compiling the step for {program.mesh.size} devices"):
        found |= compiled_figures(program)
    if hbm is not None:
        found["fits"] = fitting(found, hbm)
    return found | {"warnings": warnings(program, found)}


def batch_figures(program):
    """The batch of an optimizer step: in all, on a device, and in one of a device's passes."""
    total, parts = program.pace.batch_size, program.pace.accumulate_steps
    per_device = total // program.mesh.size
    return {"global": total, "per_device": per_device, "per_pass": per_device // parts, "accumulate_steps": parts}


def memory_figures(program):
    """Bytes on each device, of the parts and in all, as if nothing shared memory with anything.

    Activations and peak are what JAX names, and all split parameters gathered at once; activations_least and peak_least
    what remains if XLA fuses all it can, and nothing gathered.
    """
    found, images = activations(program), batch_figures(program)["per_pass"]
    batches = program.abstract_batches(program.pace.steps_per_dispatch)
    parts = state_bytes(program.like, program.pace.accumulate_steps) | {"batch": device_bytes(batches)}
    named, least = (found[name].bytes(images) for name in ("named", "least"))
    held = sum(parts.values())
    image = sum(nbytes(leaf) for leaf in jax.tree.leaves(batches)) // program.pace.batch_size
    parts |= {"gathered": gathered_bytes(program), "activations": named, "activations_least": least}
    peaks = {"peak": held + parts["gathered"] + named, "peak_least": held + least}
    return {
        "bytes_per_device": parts | peaks,
        "activation_bytes": {name: dataclasses.asdict(kept) for name, kept in found.items()},
        "batch_bytes_per_image": image,
    }


def fitting(found, hbm):
    """What fits into hbm bytes on each device, of which USABLE is used, by both counts of activations."""
    parts, batch = found["bytes_per_device"], found["batch"]
    passes, usable = batch["accumulate_steps"], int(USABLE * hbm)
    fits: dict = {"hbm": hbm, "usable": usable}
    for name, kept in found["activation_bytes"].items():
        peak = parts["peak" if name == "named" else "peak_least"]
        fixed = peak - batch["per_pass"] * kept["per_image"] - parts["batch"]
        largest = largest_batch(hbm, fixed, kept["per_image"] + passes * found["batch_bytes_per_image"])
        whole = {"per_device": largest * passes, "global": largest * passes * found["devices"]}
        fits[name] = {"fits": peak <= usable, "per_pass": largest, **whole}
    return fits


@unfiltered()
def flops_per_image(config):
    """XLA's count, before partitioning and optimisation, of the optimizer step and of its forward pass, per image.

    A multiply-add counts as two; what remat computes again is included. The step is counted on one CPU device, since
    the clients of accelerators do not count, and with its gradients in one part, since a loop's body is counted once.
    """
    whole = ConfigDict(config.to_dict())
    whole.train.accumulate_steps = whole.mesh.data = whole.mesh.fsdp = 1
    program = Program(whole, jax.devices("cpu")[:1])
    batch_size = program.pace.batch_size
    step = program.dispatch.lower(program.like, program.abstract_batches(1), program.step_key)
    key = jax.eval_shape(lambda: program.step_key)
    batch = {name: drop_step(leaf, batch_size) for name, leaf in program.abstract_batches(1).items()}
    drawn = jax.eval_shape(program.objective.draw, key, batch, program.like.level_losses)
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), program.like.params)
    forward = jax.jit(mean_loss(program))
    with jax.default_device(program.mesh.devices.flat[0]):
        counted = {"step": step, "forward": forward.lower(params, drawn, key)}
    return {name: lowered.cost_analysis()["flops"] / batch_size for name, lowered in counted.items()}


def compiled_figures(program):
    """What the compiled program says of itself: its collectives in one optimizer step, its memory, its making."""
    start = time.monotonic()
    lowered = program.dispatch.lower(program.like, program.abstract_batches(1), program.step_key)
    with partitioner_complaints() as complaints:
        compiled = lowered.compile()
    seconds, memory = time.monotonic() - start, compiled.memory_analysis()
    collectives = find_collectives(compiled.as_text())
    program_bytes = {"arguments": memory.argument_size_in_bytes, "temporaries": memory.temp_size_in_bytes}
    made = {"compile_seconds": seconds, "partitioner_complaints": complaints[0]}
    exchanged = {"collectives": by_kind(collectives), "collectives_by_group": by_group(collectives)}
    return {**exchanged, "program_bytes": program_bytes, **made}


@contextlib.contextmanager
def partitioner_complaints():
    """A list that gets, at the end, the number of arrays that XLA's partitioner could only lay out by gathering them.

    It tells them on stderr alone, at TF_CPP_MIN_LOG_LEVEL=1 or lower; what else is written there goes on to stderr.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    count: list[int] = []
    with tempfile.TemporaryFile(mode="w+", errors="replace") as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield count
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            caught.seek(0)
            lines = caught.readlines()
            count.append(sum(COMPLAINT in line for line in lines))
            sys.stderr.writelines(line for line in lines if COMPLAINT not in line)
