"""Checkpoints: Orbax's CheckpointManager, plus a manifest of hashes, since a flipped bit restores without a word.

A step directory is whole or absent: Orbax renames it into place, and the manifest is written just before that. What
fails its manifest later is reported, passed over, and moved aside to `<workdir>/damaged/` once an older step has
been restored; it is never deleted or overwritten.
"""

import dataclasses
import logging
import shutil
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, EveryNSteps, LatestN

from cfgjax.base.errors import UsageError
from cfgjax.base.finite import check_weights
from cfgjax.distributed import collectives as processes
from cfgjax.runs.manifest import damage, move_damaged_metadata, step_directories, write_manifest
from cfgjax.runs.writes import SaveError, check_space, noticing, save_error, sizes

log = logging.getLogger("cfgjax")


@dataclasses.dataclass(frozen=True)
class Cadence:
    """config.checkpoint: a step is saved every `every_steps`; the newest `keep_last` are kept, and for good every
    step that is a multiple of keep_every_steps.
    """

    every_steps: int
    keep_last: int = 3
    keep_every_steps: int | None = None


class Checkpoints:
    """The checkpoints of a run, in directory, kept as cadence says. Saving is asynchronous; `close` waits.

    Of several processes each writes and reads its own part of the arrays; the first alone judges which steps are whole.
    .seconds: what the last finished save took, in the first process.
    """

    def __init__(self, directory, cadence):
        self.directory = Path(directory).absolute()
        policies = [LatestN(cadence.keep_last)]
        if cadence.keep_every_steps:
            policies.append(EveryNSteps(cadence.keep_every_steps))
        self._saving, self._since, self.seconds = None, 0.0, 0.0
        processes.decided(lambda: move_damaged_metadata(self.directory), "damaged metadata of checkpoints")
        self._failure: BaseException | None = None
        handlers = {"state": ocp.StandardCheckpointHandler(), "history": ocp.JsonCheckpointHandler()}
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_handlers={name: noticing(handler, self._notice) for name, handler in handlers.items()},
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy(policies),
                enable_async_checkpointing=True,
                async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
            ),
        )

    def save(self, step, state, history):
        """Begins to save state and history (a JSON value) as `step`, unless it is there; waits for the save before.

        Raises SaveError where this or the save before it failed.
        """
        if step in self._manager.all_steps():
            return
        self.wait()
        self._saving, self._since = step, time.monotonic()
        processes.decided(lambda: check_space(self.directory, step, state), f"saving step {step}")
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), history=ocp.args.JsonSave(history))
        self._waited(lambda: self._manager.save(step, args=items, force=True))

    def restore(self, like):
        """(state, history) of the newest whole step, or None where there is no step at all.

        like: the state's shapes, dtypes and shardings. Raises UsageError where no step is whole; then nothing has
        been changed.
        """
        steps = processes.decided(lambda: step_directories(self.directory), "which steps there are")
        if not steps:
            return None
        step = processes.decided(lambda: newest_whole(self.directory, steps), "the newest whole step")
        items = ocp.args.Composite(state=ocp.args.StandardRestore(like), history=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        if damaged := [newer for newer in steps if newer > step]:
            processes.decided(lambda: set_aside(self.directory, damaged), "damaged steps are set aside")
            self._manager.reload()
        return restored.state, restored.history

    def wait(self):
        """Waits for the save in progress. Raises SaveError where it failed."""
        processes.stage(f"waiting for the save of step {self._saving}")
        if processes.timeout_seconds() is not None:
            self._see_progress(2 * processes.timeout_seconds())
        self._waited(self._manager.wait_until_finished)

    def check(self):
        """Raises SaveError if this process failed to write its part of the save in progress. Does not wait."""
        if self._failure is not None:
            raise save_error(self._saving, self._failure)

    def _notice(self, error):
        """Remembers that a write of this process has failed."""
        self._failure = self._failure or error

    def _see_progress(self, patience):
        """Waits while the save in progress writes. Raises SaveError after `patience` seconds without a byte.

        After a failed write of one process, Orbax lets the processes wait at different barriers.
        """
        before, since = None, time.monotonic()
        while self._manager.is_saving_in_progress():
            self.check()
            written = sizes(self.directory.glob(f"{self._saving}*/**/*"))
            if written != before:
                before, since = written, time.monotonic()
            elif time.monotonic() - since > patience:
                free = shutil.disk_usage(self.directory).free / 1e9
                reason = f"nothing was written in {patience:g} s; the disk has {free:.3g} GB free"
                raise SaveError(f"saving step {self._saving} failed: {reason}")
            time.sleep(0.05 if time.monotonic() - since < 1 else 0.5)

    def close(self):
        """Waits for the save in progress and releases Orbax's threads. Raises SaveError where the save failed.

        As a context, it does so at its end; not after an error where there are other processes, which do not come to
        wait with this one.
        """
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        if kind is None or jax.process_count() == 1:
            self.close()

    def _waited(self, wait):
        """wait(), with a failed save as one SaveError."""
        try:
            return wait()
        except (OSError, ValueError, RuntimeError) as e:
            raise save_error(self._saving, e) from e

    def _write_manifest(self):
        """Orbax's last call before it renames the directory of the step into place."""
        if jax.process_index() != 0:
            return
        try:
            for directory in self.directory.glob(f"{self._saving}*"):
                if directory.name == str(self._saving) or ocp.utils.TMP_DIR_SUFFIX in directory.name:
                    write_manifest(directory)
        except OSError as e:
            self._notice(e)
            raise
        self.seconds = time.monotonic() - self._since


def set_aside(directory, steps):
    """Moves damaged steps out of the way, so that they can be saved again."""
    for step in steps:
        aside = unused_path(directory.parent / "damaged" / str(step))
        aside.parent.mkdir(exist_ok=True)
        shutil.move(directory / str(step), aside)
        log.warning("moved the damaged step %d to %s", step, aside)


def load_params(workdir, config, step=None, ema=None):
    """(parameters, step) of the run in workdir, of config, as numpy arrays.

    ema: a rate of config.ema.rates; by default the first; 0 for the parameters without averaging. step: by default the
    newest complete one. Raises UsageError if there is no such step or rate, or the parameters are not finite.
    """
    rate = config.ema.rates[0] if ema is None and config.ema.rates else ema
    params, step = restore_params(f"{workdir}/checkpoints", str(float(rate)) if rate else None, step)
    check_weights(params, f"checkpoint step {step} of {workdir}")
    return params, step


def restore_params(directory, rate, step=None):
    """(parameters averaged at rate, their step) of a run's newest whole step, or of `step`; the rest is not restored.

    rate: a key of TrainState.ema, or None for the parameters themselves. Raises UsageError where there are none.
    """
    directory = Path(directory).absolute()
    step = processes.decided(lambda: find_step(directory, step), f"the step to read in {directory}")
    return read_params(directory, step, rate), step


def find_step(directory, step=None):
    """The newest whole step, or `step` where it is whole. Raises UsageError where there is none."""
    steps = step_directories(directory)
    if step is not None and step not in steps:
        there = ", ".join(map(str, sorted(steps, reverse=True))) or "none"
        raise UsageError(f"there is no step {step} in {directory}; it has {there}")
    return newest_whole(directory, steps if step is None else [step])


def newest_whole(directory, steps):
    """The newest of the steps whose files are as their manifest says; each newer one is told.

    Raises UsageError where there is none; nothing is changed.
    """
    problems = []
    for step in sorted(steps, reverse=True):
        problem = damage(Path(directory) / str(step))
        if not problem:
            return step
        problems.append(f"step {step}: {problem}")
        log.warning("checkpoint step %d is damaged (%s); looking for one before it", step, problem)
    told = f" ({'; '.join(problems)})" if problems else ""
    raise UsageError(f"no checkpoint in {directory} is whole, nothing was overwritten{told}")


def read_params(directory, step, rate):
    """The parameters of `restore_params` out of one step, as numpy arrays."""
    path, handler = directory / str(step) / "state", ocp.PyTreeCheckpointHandler()
    tree = handler.metadata(path).tree
    if rate is not None and rate not in tree["ema"]:
        raise UsageError(f"no EMA of rate {rate} in {path.parent}; it has {', '.join(tree['ema'])}")
    wanted = {"params": tree["params"]} if rate is None else {"ema": {rate: tree["ema"][rate]}}
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), wanted)
    host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
    restored = handler.restore(path, args=ocp.args.PyTreeRestore(like, restore_args=host, partial_restore=True))
    handler.close()
    return restored["params"] if rate is None else restored["ema"][rate]


def unused_path(path):
    """path, or path.1, path.2, … : the first that does not exist."""
    candidates = [path, *(path.with_name(f"{path.name}.{i}") for i in range(1, 1000))]
    return next(candidate for candidate in candidates if not candidate.exists())
