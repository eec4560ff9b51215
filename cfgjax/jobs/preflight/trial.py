"""A real step on the devices at hand, a save, a restore and a comparison, in a process of its own.

`python -m cfgjax.jobs.preflight.trial CONFIG.json FOLDER` prints the figures as JSON: virtual devices and
real ones cannot be used in one process.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from cfgjax.base.errors import UsageError
from cfgjax.base.progress import timed
from cfgjax.distributed.devices import open_devices
from cfgjax.distributed.sharding import make_mesh
from cfgjax.jobs.preflight.memory import device_bytes, state_bytes
from cfgjax.jobs.preflight.sizes import bytes_text
from cfgjax.runs.checkpoint import Cadence, Checkpoints
from cfgjax.runs.config import from_json, to_json
from cfgjax.training.run import Program, Run
from cfgjax.training.state import create_state


def trial_config(config, batch):
    """config, with train.batch_size the images that each device is to have, for `fitted` to multiply."""
    config = ConfigDict(config.to_dict())
    config.train.batch_size = batch["per_device"]
    return config


def in_a_process(config, scratch=None):
    """`trial` of a `trial_config` in a process that sees the real devices; UsageError in its words where it fails."""
    with tempfile.TemporaryDirectory(prefix="cfgjax-preflight-", dir=scratch) as folder:
        path = Path(folder) / "config.json"
        path.write_text(to_json(config))
        env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
        command = [sys.executable, "-m", "cfgjax.jobs.preflight.trial", str(path), folder]
        with timed("--run: a real step, save and restore in a separate process"):
            ran = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=env)
    if ran.returncode:
        last = ran.stdout.strip().rpartition("\n")[-1]
        raise UsageError(f"--run: {last or f'it ended with exit code {ran.returncode}'}")
    return json.loads(ran.stdout.splitlines()[-1])


def fitted(config, devices):
    """(config for the devices at hand, whether its mesh is as it was); data parallel where they do not make it up."""
    config = ConfigDict(config.to_dict())
    config.train.batch_size *= len(devices)
    try:
        make_mesh(**config.mesh, devices=devices)
        return config, True
    except UsageError:
        config.mesh = ConfigDict({name: -1 if name == "data" else 1 for name in config.mesh})
        return config, False


def trial(config, folder):
    """Figures of one step of a `trial_config` on the devices at hand, and of its checkpoint in folder.

    The batch on a device is that of the run; the data are random where the config's cannot be read. Raises UsageError
    where the memory holds not even the state.
    """
    config, same_mesh = fitted(config, jax.devices())
    program, batches, data = with_batches(config)
    memory = check_memory(program)
    seconds, clock = {}, time.monotonic
    start = clock()
    step = program.dispatch.lower(program.like, batches, program.step_key).compile()
    seconds["compile"] = clock() - start
    state = jax.block_until_ready(create_state(program.build_state, program.mesh))
    start = clock()
    state, metrics = jax.block_until_ready(step(state, batches, program.step_key))
    seconds["step"] = (clock() - start) / program.pace.steps_per_dispatch
    saved = fingerprint(state)
    with Checkpoints(Path(folder) / "checkpoints", Cadence(1)) as checkpoints:
        start = clock()
        checkpoints.save(int(state.step), state, [])
        seconds["save_blocking"] = clock() - start
        checkpoints.wait()
        seconds["save"] = clock() - start
        del state  # so that the devices hold one state at a time
        size = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        start = clock()
        restored, _ = checkpoints.restore(program.like)
        jax.block_until_ready(restored)
        seconds["restore"] = clock() - start
    return {
        "devices": len(jax.devices()),
        "device_kind": jax.devices()[0].device_kind,
        "mesh": dict(program.mesh.shape),
        "same_mesh": same_mesh,
        "batch_size": program.pace.batch_size,
        "data": data,
        "loss": float(metrics["loss"][-1]),
        "seconds": seconds,
        "checkpoint_bytes": size,
        "restored_equals_saved": fingerprint(restored) == saved,
        **memory,
    }


def with_batches(config):
    """(`Program` or `Run`, the batches of one dispatch, where they are from)"""
    try:
        run = Run(config)
        return run, run.batches(0), "the config's data"
    except (UsageError, OSError) as e:
        program = Program(config)  # what is not the data's fault is raised here
        return program, random_batches(program), f"random ({e})"


def random_batches(program):
    """Batches of one dispatch of random images and labels."""
    rng = np.random.default_rng(0)
    classes = program.config.data.num_classes

    def draw(leaf):
        whole = np.issubdtype(leaf.dtype, np.integer)
        drawn = rng.integers(0, classes, leaf.shape) if whole else rng.uniform(-1, 1, leaf.shape)
        return jax.device_put(drawn.astype(leaf.dtype), leaf.sharding)

    return jax.tree.map(draw, program.abstract_batches(program.pace.steps_per_dispatch))


def check_memory(program):
    """{figure: bytes} of the state on each device and of the memory there; UsageError where it cannot be held."""
    parts = state_bytes(program.like)
    device, least = jax.local_devices()[0], sum(parts.values())
    stats = device.memory_stats()
    if stats and "bytes_limit" in stats:
        there, where = stats["bytes_limit"], f"a {device.device_kind}"
    else:  # devices that share the host's
        least *= jax.local_device_count()
        there, where = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "this machine"
    print(f"--run: needs at least {bytes_text(least)} of the {bytes_text(there)} of {where}", file=sys.stderr)
    if least > there:
        raise UsageError(f"state and gradients take {bytes_text(least)}; {where} has {bytes_text(there)}")
    return {"least_bytes": least, "memory_bytes": there, "state_bytes_per_device": device_bytes(program.like)}


def fingerprint(tree):
    """SHA-256 of every shard of every array on this process, in order: equal only where the arrays are, bit for bit."""
    digests = []
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            local = np.asarray(shard.data)
            digests.append((str(shard.index), str(local.dtype), hashlib.sha256(local.tobytes()).hexdigest()))
    return digests


def trial_report(found):
    """Lines of text of `trial`'s figures."""
    seconds, kind = found["seconds"], f"{found['devices']} × {found['device_kind']}"
    mesh = " × ".join(f"{name} {size}" for name, size in found["mesh"].items())
    same = "as asked for" if found["same_mesh"] else "which is what fits the devices at hand"
    equal = "equals what was saved, bit for bit" if found["restored_equals_saved"] else "DIFFERS from what was saved"
    return [
        f"one real step on {kind}, mesh {mesh}, {same}; batch {found['batch_size']}; data: {found['data']}",
        f"  compile {seconds['compile']:.1f} s, step {seconds['step']:.2f} s, loss {found['loss']:.4f}",
        f"  save {seconds['save']:.2f} s, of which training waits {seconds['save_blocking']:.2f} s, "
        f"{bytes_text(found['checkpoint_bytes'])}; restore {seconds['restore']:.2f} s",
        f"  what was restored {equal}",
    ]


def main(argv):
    """The exit code of `python -m cfgjax.jobs.preflight.trial CONFIG.json FOLDER`."""
    path, folder = argv[1:]
    try:
        open_devices()
        found = trial(from_json(Path(path).read_text()), folder)
    except UsageError as e:
        print(e)
        return 2
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
