"""Runs one real step on the available devices, saves, restores and compares the state, in a separate process.

`python -m cfgjax.jobs.preflight.trial CONFIG.json FOLDER` prints the figures as JSON. The process is separate because
virtual and real devices cannot be used in the same process.
"""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree
from ml_collections import ConfigDict

from cfgjax.base.errors import UsageError
from cfgjax.base.progress import timed
from cfgjax.distributed.devices import open_devices
from cfgjax.distributed.sharding import make_mesh
from cfgjax.jobs.preflight.memory import device_bytes, state_bytes
from cfgjax.jobs.preflight.sizes import bytes_text
from cfgjax.runs.checkpoint import Checkpoints
from cfgjax.runs.config import from_json, to_json
from cfgjax.runs.settings import Settings
from cfgjax.runs.training_settings import CheckpointSettings
from cfgjax.training.run import Program, Run
from cfgjax.training.state import create_state


def trial_settings(settings: Settings, batch: dict[str, int]) -> Settings:
    """Returns settings whose train.batch_size is the images per device. `fitted` multiplies it by the devices."""
    return settings.replace(**{"train.batch_size": batch["per_device"]})


def in_a_process(settings: Settings, scratch: str | None = None) -> dict[str, Any]:
    """Runs `trial` in a process that uses the real devices. Raises UsageError with its last line if it fails."""
    with tempfile.TemporaryDirectory(prefix="cfgjax-preflight-", dir=scratch) as folder:
        path = Path(folder) / "config.json"
        path.write_text(to_json(settings))
        env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
        command = [sys.executable, "-m", "cfgjax.jobs.preflight.trial", str(path), folder]
        with timed("--run: a real step, save and restore in a separate process"):
            ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=env)
    if ran.returncode:
        last = ran.stdout.strip().rpartition("\n")[-1]
        raise UsageError(f"--run: {last or f'it ended with exit code {ran.returncode}'}")
    return json.loads(ran.stdout.splitlines()[-1])


def fitted(settings: Settings, devices: Sequence[jax.Device]) -> tuple[Settings, bool]:
    """Returns (settings for these devices, whether their mesh is unchanged). If it does not fit, data=-1 is used."""
    settings = settings.replace(**{"train.batch_size": settings.train.batch_size * len(devices)})
    try:
        make_mesh(**dataclasses.asdict(settings.mesh), devices=devices)
        return settings, True
    except UsageError:
        return settings.replace(mesh={}), False


def trial(settings: Settings, folder: str | Path) -> dict[str, Any]:
    """Returns figures of one step of `trial_settings` on the available devices and of its checkpoint in folder.

    Each device has the batch of the run. The data are random if the config's data cannot be read. Raises UsageError if
    the state alone does not fit into memory.
    """
    settings, same_mesh = fitted(settings, jax.devices())
    program, batches, data = with_batches(settings)
    memory = check_state_memory(program)
    seconds, clock = {}, time.monotonic
    start = clock()
    step = program.dispatch.lower(program.like, batches, program.step_key).compile()
    seconds["compile"] = clock() - start
    state = jax.block_until_ready(create_state(program.build_state, program.mesh))
    start = clock()
    state, metrics = jax.block_until_ready(step(state, batches, program.step_key))
    seconds["step"] = (clock() - start) / program.settings.train.steps_per_dispatch
    saved = fingerprint(state)
    with Checkpoints(Path(folder) / "checkpoints", CheckpointSettings(1)) as checkpoints:
        start = clock()
        checkpoints.save(int(state.step), state, [])
        seconds["save_blocking"] = clock() - start
        checkpoints.wait()
        seconds["save"] = clock() - start
        del state  # so that the devices hold only one state at a time
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        start = clock()
        restored = checkpoints.restore(program.like)
        assert restored is not None
        jax.block_until_ready(restored)
        seconds["restore"] = clock() - start
    return {
        "devices": len(jax.devices()),
        "device_kind": jax.devices()[0].device_kind,
        "mesh": dict(program.mesh.shape),
        "same_mesh": same_mesh,
        "batch_size": program.settings.train.batch_size,
        "data": data,
        "loss": float(metrics["loss"][-1]),
        "seconds": seconds,
        "checkpoint_bytes": size,
        "restored_equals_saved": fingerprint(restored[0]) == saved,
        **memory,
    }


def with_batches(settings: ConfigDict | Settings) -> tuple[Program, PyTree, str]:
    """Returns (`Program` or `Run`, the batches of one dispatch, their origin)."""
    try:
        run = Run(settings)
        return run, run.batches(0), "the config's data"
    except (UsageError, OSError) as e:
        program = Program(settings)  # raises the error again unless the data caused it
        return program, random_batches(program), f"random ({e})"


def random_batches(program: Program) -> PyTree:
    """Returns the batches of one dispatch, with random images and labels."""
    rng = np.random.default_rng(0)
    classes = program.settings.data.num_classes

    def draw(leaf: jax.ShapeDtypeStruct) -> jax.Array:
        whole = np.issubdtype(leaf.dtype, np.integer)
        drawn = rng.integers(0, classes, leaf.shape) if whole else rng.uniform(-1, 1, leaf.shape)
        return jax.device_put(drawn.astype(leaf.dtype), leaf.sharding)

    return jax.tree.map(draw, program.abstract_batches(program.settings.train.steps_per_dispatch))


def check_state_memory(program: Program) -> dict[str, int]:
    """Returns {figure: bytes} of each device's state and memory. Raises UsageError if the state does not fit."""
    parts = state_bytes(program.like)
    device, least = jax.local_devices()[0], sum(parts.values())
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        memory, where = stats["bytes_limit"], f"a {device.device_kind}"
    else:  # devices that share the host's memory
        least *= jax.local_device_count()
        memory, where = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "this machine"
    print(f"--run: needs at least {bytes_text(least)} of the {bytes_text(memory)} of {where}", file=sys.stderr)
    if least > memory:
        raise UsageError(f"state and gradients take {bytes_text(least)}; {where} has {bytes_text(memory)}")
    return {"least_bytes": least, "memory_bytes": memory, "state_bytes_per_device": device_bytes(program.like)}


def fingerprint(tree: PyTree) -> list[tuple[str, str, str]]:
    """Returns the SHA-256 of every shard on this process, in order. Equal only if all arrays are equal bit for bit."""
    digests = []
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            local = np.asarray(shard.data)
            digests.append((str(shard.index), str(local.dtype), hashlib.sha256(local.tobytes()).hexdigest()))
    return digests


def trial_report(found: dict[str, Any]) -> list[str]:
    """Returns `trial`'s figures as lines of text."""
    seconds, kind = found["seconds"], f"{found['devices']} × {found['device_kind']}"
    mesh = " × ".join(f"{name} {size}" for name, size in found["mesh"].items())
    same = "as requested" if found["same_mesh"] else "which fits the available devices"
    equal = "equals the saved state, bit for bit" if found["restored_equals_saved"] else "DIFFERS from the saved state"
    return [
        f"one real step on {kind}, mesh {mesh}, {same}; batch {found['batch_size']}; data: {found['data']}",
        f"  compile {seconds['compile']:.1f} s, step {seconds['step']:.2f} s, loss {found['loss']:.4f}",
        f"  save {seconds['save']:.2f} s (training waits {seconds['save_blocking']:.2f} s), "
        f"{bytes_text(found['checkpoint_bytes'])}; restore {seconds['restore']:.2f} s",
        f"  the restored state {equal}",
    ]


def main(argv: Sequence[str]) -> int:
    """Runs `python -m cfgjax.jobs.preflight.trial CONFIG.json FOLDER`. Returns its exit code."""
    path, folder = argv[1:]
    try:
        open_devices()
        found = trial(Settings.from_config(from_json(Path(path).read_text())), folder)
    except UsageError as e:
        print(e)
        return 2
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
