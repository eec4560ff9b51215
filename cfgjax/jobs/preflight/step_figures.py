"""Measures a training step before it runs, by compiling it for virtual devices."""

import contextlib
import dataclasses
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from cfgjax.base.progress import timed
from cfgjax.jobs.preflight.advice import replicated_parameters, warnings
from cfgjax.jobs.preflight.hlo import by_group, by_kind, find_collectives
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
from cfgjax.runs.settings import Settings
from cfgjax.training.run import Program

COMPLAINT = (
    "Involuntary full rematerialization"  # of XLA's partitioner, when it gathers an array to change its sharding
)


@unfiltered()
def step_figures(
    config: ConfigDict | Settings, devices: Sequence[jax.Device] | None = None, hbm: int | None = None
) -> dict[str, Any]:
    """Returns {name: figure} of the training step of config on devices (default: all), in bytes, seconds and FLOPs.

    hbm: bytes of memory of a device, to compute what fits; or None. Compiles, but creates no arrays and opens no data.
    """
    with timed("tracing the step, for its memory and FLOPs"):
        program = Program(config, devices)
        found = {
            "devices": program.mesh.size,
            "device_kind": program.mesh.devices.flat[0].device_kind,
            "mesh": dict(program.mesh.shape),
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(program.like.params)),
            "dtype": program.settings.model.options.get("dtype", "float32"),
            "batch": batch_figures(program),
            **memory_figures(program),
            "replicated_bytes": sum(sum(paths.values()) for paths in replicated_parameters(program)),
            "flops_per_image": flops_per_image(config),
        }
    with timed(f"compiling the step for {program.mesh.size} devices"):
        found |= compiled_figures(program)
    if hbm is not None:
        found["fits"] = fitting_batches(found, hbm)
    return found | {"warnings": warnings(program, found)}


def batch_figures(program: Program) -> dict[str, int]:
    """Returns the batch sizes of an optimizer step: in total, per device, and per accumulation pass of a device."""
    total, parts = program.settings.train.batch_size, program.settings.train.accumulate_steps
    per_device = total // program.mesh.size
    return {"global": total, "per_device": per_device, "per_pass": per_device // parts, "accumulate_steps": parts}


def memory_figures(program: Program) -> dict[str, Any]:
    """Returns the bytes on each device, by part and in total, as if no two arrays shared memory.

    activations and peak count all residuals that JAX names, and all split parameters gathered at once.
    activations_least and peak_least count what remains if XLA fuses all it can and gathers nothing.
    """
    found, images = activations(program), batch_figures(program)["per_pass"]
    batches = program.abstract_batches(program.settings.train.steps_per_dispatch)
    parts = state_bytes(program.like, program.settings.train.accumulate_steps) | {"batch": device_bytes(batches)}
    named, least = (found[name].bytes(images) for name in ("named", "least"))
    held = sum(parts.values())
    image = sum(nbytes(leaf) for leaf in jax.tree.leaves(batches)) // program.settings.train.batch_size
    parts |= {"gathered": gathered_bytes(program), "activations": named, "activations_least": least}
    peaks = {"peak": held + parts["gathered"] + named, "peak_least": held + least}
    return {
        "bytes_per_device": parts | peaks,
        "activation_bytes": {name: dataclasses.asdict(kept) for name, kept in found.items()},
        "batch_bytes_per_image": image,
    }


def fitting_batches(found: dict[str, Any], hbm: int) -> dict[str, Any]:
    """Returns what fits into the fraction USABLE of hbm bytes on each device, for both counts of activations."""
    parts, batch = found["bytes_per_device"], found["batch"]
    passes, usable = batch["accumulate_steps"], int(USABLE * hbm)
    fits: dict[str, Any] = {"hbm": hbm, "usable": usable}
    for name, kept in found["activation_bytes"].items():
        peak = parts["peak" if name == "named" else "peak_least"]
        fixed = peak - batch["per_pass"] * kept["per_image"] - parts["batch"]
        largest = largest_batch(hbm, fixed, kept["per_image"] + passes * found["batch_bytes_per_image"])
        whole = {"per_device": largest * passes, "global": largest * passes * found["devices"]}
        fits[name] = {"fits": peak <= usable, "per_pass": largest, **whole}
    return fits


@unfiltered()
def flops_per_image(config: ConfigDict | Settings) -> dict[str, float]:
    """Returns XLA's FLOPs per image of the optimizer step and its forward pass, before partitioning and optimisation.

    A multiply-add counts as two; recomputation by remat is included. The step is counted on one CPU device, since
    accelerator clients do not count FLOPs, and without accumulation, since a loop's body is counted only once.
    """
    whole = {"train.accumulate_steps": 1, "mesh.data": 1, "mesh.fsdp": 1}
    program = Program(Settings.from_config(config).replace(**whole), jax.devices("cpu")[:1])
    batch_size = program.settings.train.batch_size
    step = program.dispatch.lower(program.like, program.abstract_batches(1), program.step_key)
    key = jax.eval_shape(lambda: program.step_key)
    batch = {name: drop_step(leaf, batch_size) for name, leaf in program.abstract_batches(1).items()}
    drawn = jax.eval_shape(program.objective.draw, key, batch, program.like.level_losses)
    params = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), program.like.params)
    forward = jax.jit(mean_loss(program))
    with jax.default_device(program.mesh.devices.flat[0]):
        counted = {"step": step, "forward": forward.lower(params, drawn, key)}
    return {name: lowered.cost_analysis()["flops"] / batch_size for name, lowered in counted.items()}


def compiled_figures(program: Program) -> dict[str, Any]:
    """Returns the collectives, the memory and the compilation time of the compiled program, for one optimizer step."""
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
def partitioner_complaints() -> Iterator[list[int]]:
    """Yields a list to which the number of XLA's partitioner complaints in the block is appended at the end.

    Each complaint is about an array that XLA gathers to change its sharding. XLA prints complaints only to stderr, at
    TF_CPP_MIN_LOG_LEVEL=1 or lower. Other output to stderr is passed on.
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
