"""Checkpoints: Orbax's CheckpointManager, plus a manifest of hashes, since a flipped bit restores without a word.

A step directory is whole or absent: Orbax renames it into place, and the manifest is written just before that. What
fails its manifest later is reported, passed over, and moved aside to `<workdir>/damaged/` once an older step has
been restored; it is never deleted or overwritten.
"""

import contextlib
import dataclasses
import json
import logging
import shutil
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, EveryNSteps, LatestN

from cfgjax import processes
from cfgjax.errors import UsageError
from cfgjax.files import sha256
from cfgjax.finite import check_weights

log = logging.getLogger("cfgjax")

MANIFEST = "manifest.json"
REWRITTEN = "_CHECKPOINT_METADATA"  # Orbax adds the time of the commit after the manifest is made


@dataclasses.dataclass(frozen=True)
class Cadence:
    """config.checkpoint: a step is saved every `every_steps`; the newest `keep_last` are kept, and for good every
    step that is a multiple of keep_every_steps.
    """

    every_steps: int
    keep_last: int = 3
    keep_every_steps: int | None = None

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if value is not None and value < 1:
                raise UsageError(f"checkpoint.{name} is {value}; need at least 1")


class SaveError(OSError):
    """A checkpoint that could not be written."""


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
        self._manager = ocp.CheckpointManager(
            self.directory,
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
        processes.decided(lambda: self._check_space(state), f"saving step {step}")
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

    def _see_progress(self, patience):
        """Waits while the save in progress writes. Raises SaveError after `patience` seconds without a byte.

        Where one process fails to write, Orbax has it and the others wait for each other at different barriers.
        """
        before, since = None, time.monotonic()
        while self._manager.is_saving_in_progress():
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

    def _check_space(self, state):
        """Raises SaveError where the disk has less space than the state takes."""
        needed, free = sum(leaf.nbytes for leaf in jax.tree.leaves(state)), shutil.disk_usage(self.directory).free
        if needed > free:
            space = f"step {self._saving} needs {needed / 1e9:.3g} GB, there are {free / 1e9:.3g} GB"
            raise SaveError(f"saving step {self._saving} failed: No space left on device: {space}")

    def _waited(self, wait):
        """wait(), with a failed save as one SaveError."""
        try:
            return wait()
        except (OSError, ValueError, RuntimeError) as e:
            reason = " ".join(str(e).split()).rpartition(": ")[-1]  # the innermost of a chain of them
            raise SaveError(f"saving step {self._saving} failed: {reason}") from e

    def _write_manifest(self):
        """Orbax's last call before it renames the directory of the step into place."""
        if jax.process_index() != 0:
            return
        for directory in self.directory.glob(f"{self._saving}*"):
            if directory.name == str(self._saving) or ocp.utils.TMP_DIR_SUFFIX in directory.name:
                (directory / MANIFEST).write_text(json.dumps(hashes(directory), indent=1))
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
        raise UsageError(f"there is no step {step} in {directory}; it has {', '.join(map(str, steps)) or 'none'}")
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


def sizes(paths):
    """{path: bytes} of those that are there."""
    found = {}
    for path in paths:
        with contextlib.suppress(OSError):  # a temporary folder may be renamed meanwhile
            found[path] = path.stat().st_size
    return found


def step_directories(directory):
    """The steps that have a directory, whole or not."""
    return [int(path.name) for path in Path(directory).glob("*") if path.is_dir() and is_step(path.name)]


def is_step(name):
    """Whether Orbax could have given a step's directory this name."""
    return name.isdecimal() and str(int(name)) == name


def manifest_digest(directory, step):
    """The SHA-256 of a step's manifest, which has those of all its files."""
    return sha256(Path(directory) / str(step) / MANIFEST)


def whole_steps(directory):
    """The steps whose files are as their manifest says."""
    return [step for step in step_directories(directory) if not damage(Path(directory) / str(step))]


def damage(path):
    """What is wrong with the step directory at path, in a few words; None if it is whole."""
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        if not manifest or not isinstance(manifest, dict):
            return "its manifest is empty"
        for name, digest in manifest.items():
            if not (path / name).is_file():
                return f"{name} is missing"
            if sha256(path / name) != digest:
                return f"{name} has changed since it was saved"
    except FileNotFoundError:
        return "it has no manifest" if path.is_dir() else "there is no such step"
    except (OSError, ValueError) as e:
        return f"it cannot be read: {e}"
    return None


def hashes(directory):
    """{relative path: SHA-256} of every file below directory that a later commit does not rewrite."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name not in (MANIFEST, REWRITTEN))
    return {str(path.relative_to(directory)): sha256(path) for path in files}


def unused_path(path):
    """path, or path.1, path.2, … : the first that does not exist."""
    candidates = [path, *(path.with_name(f"{path.name}.{i}") for i in range(1, 1000))]
    return next(candidate for candidate in candidates if not candidate.exists())
