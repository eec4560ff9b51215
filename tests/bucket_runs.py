"""Runs in a bucket as processes, and what they leave there."""

import json
import re
import time

import numpy as np
import orbax.checkpoint as ocp
from tiny import same_trees

from cfgjax.base import storage

MIXTURE = (
    "train --config=experiments/mixture.py --config.data.num_examples=256 --config.model.width=32 "
    "--config.train.batch_size=16 --config.train.steps_per_dispatch=5 --config.train.num_steps={steps} "
    "--config.train.log_every_steps=50 --config.checkpoint.every_steps={every} --config.checkpoint.keep_last=2 "
    "--config.sample.every_steps=100000 --config.sample.per_cell=2 --config.sample.num_steps=4 --workdir={workdir} "
    "--config.storage.lease_seconds=3"
)
STEPS = 600


def train(workdir, steps=STEPS, every=100):
    return MIXTURE.format(workdir=workdir, steps=steps, every=every)


def without_speed(text):
    lines = map(json.loads, text.splitlines())
    return [{name: value for name, value in line.items() if name != "images_per_second"} for line in lines]


def metrics(bucket, name="run"):
    """The metrics of a run in the bucket, without the one value that may differ."""
    segments = [path for path in bucket.names() if path.startswith(f"{name}/metrics/")]
    return without_speed("".join(bucket.get(path).decode() for path in segments))


def state(workdir, step):
    """Everything in a checkpoint, as numpy."""
    import jax

    path = storage.absolute(workdir) / "checkpoints" / str(step) / "state"
    with ocp.PyTreeCheckpointer() as checkpointer:
        like = checkpointer.metadata(path).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
        return checkpointer.restore(path, restore_args=as_numpy)


def is_that_of(bucket, straight):
    """Whether the run in the bucket has the metrics and the state of the one on the disk."""
    assert metrics(bucket) == without_speed((straight / "metrics.jsonl").read_text())
    return same_trees(state(f"{bucket}/run", STEPS), state(straight, STEPS))


def wait_for_line(process, pattern, seconds=200):
    """Reads what a process prints until a line has the pattern; returns the line."""
    end = time.monotonic() + seconds
    for line in process.stdout:
        if re.search(pattern, line):
            return line
        assert time.monotonic() < end
    raise AssertionError(f"the process ended without {pattern}: {process.communicate()[1]}")


def wait_for_step(process, step):
    """Reads what a process prints until it has come to a step."""
    while int(re.search(r"step (\d+)/", wait_for_line(process, r"step \d+/"))[1]) < step:
        pass
