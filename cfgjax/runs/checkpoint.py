"""Checkpoints: Orbax's CheckpointManager, plus a manifest of hashes, since Orbax restores a flipped bit without error.

A step directory is complete or absent: Orbax renames it into place, and the manifest is written just before that. A
step that does not match its manifest is reported and skipped, and moved to `<workdir>/damaged/` once an older step has
been restored. It is never deleted or overwritten.
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PyTree
from orbax.checkpoint._src.serialization import tensorstore_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, EveryNSteps, LatestN

from cfgjax.base import bucket_clients
from cfgjax.base.errors import UsageError
from cfgjax.base.storage import Place, absolute, free_bytes, is_url, move_folder, place
from cfgjax.distributed import collectives
from cfgjax.runs.manifest import damage, move_damaged_metadata, remove_unfinished, step_directories, write_manifest
from cfgjax.runs.training_settings import CheckpointSettings
from cfgjax.runs.writes import SaveError, check_space, noticing, save_error, sizes

log = logging.getLogger("cfgjax")

T = TypeVar("T")
Json = Mapping | Sequence | str | float | bool | None
# By default Orbax has every device write a slice of each replicated array, however small. The first save then compiles
# a program for each shape and device while training waits.
ARRAY_HANDLERS = ocp.type_handlers.create_type_handler_registry(
    (jax.Array, ocp.type_handlers.ArrayHandler(min_slice_bytes_for_replica_parallel=2**20)),
    (np.ndarray, ocp.type_handlers.NumpyHandler()),
)


class Checkpoints:
    """The checkpoints of a run in a directory. Saving is asynchronous; `close` waits for it.

    Each of several processes writes and reads its own part of the arrays; only the first decides which steps are
    complete. cadence: which steps are retained. guard: raises if this process may write no more. before_manifest: is
    called, in another thread, when all but the manifest of a step is written. seconds: duration of the last finished
    save, in the first process. newest: the newest step that this process knows to be complete.
    """

    def __init__(
        self,
        directory: str | Place,
        cadence: CheckpointSettings,
        guard: Callable[[], None] = lambda: None,
        before_manifest: Callable[[], None] = lambda: None,
    ) -> None:
        self.directory = absolute(directory)
        self.guard, self.before_manifest, self._cadence = guard, before_manifest, cadence
        self._saving: int | None = None
        self._since = 0.0
        self.seconds = 0.0
        self.newest: int | None = None
        self._open()

    def _open(self) -> None:
        """Opens Orbax's manager."""
        policies = [LatestN(self._cadence.keep_last)]
        if self._cadence.keep_every_steps:
            policies.append(EveryNSteps(self._cadence.keep_every_steps))
        collectives.decided(self._clear, "what earlier saves left")
        self._failure: BaseException | None = None
        context = getattr(tensorstore_utils, "_DEFAULT_OCDBT_TS_CONTEXT", {})  # Orbax has no option for this
        context["gcs_request_retries"] = bucket_clients.request_limits()  # else a quarter of an hour
        unasked = is_url(self.directory)  # training would wait while Orbax asks the server whether the step exists
        handlers = {
            "state": ocp.PyTreeCheckpointHandler(type_handler_registry=ARRAY_HANDLERS),
            "history": ocp.JsonCheckpointHandler(),
        }
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_handlers={name: noticing(handler, self._notice) for name, handler in handlers.items()},
            options=ocp.CheckpointManagerOptions(
                preservation_policy=AnyPreservationPolicy(policies),
                enable_async_checkpointing=True,
                file_options=ocp.options.FileOptions(skip_sync_file_validations=unasked),
                async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
            ),
        )

    def _clear(self) -> None:
        """Removes what an interrupted save left, and puts damaged metadata aside."""
        remove_unfinished(self.directory)
        move_damaged_metadata(self.directory)

    def save(self, step: int, state: PyTree, history: Json) -> None:
        """Starts to save state and history (a JSON value) as `step`, unless it exists; waits for the previous save.

        Raises SaveError if this or the previous save failed.
        """
        if step in self._manager.all_steps():
            return
        self.wait()
        self._saving, self._since = step, time.monotonic()
        if is_url(self.directory):  # the first process may have to ask a slow server
            collectives.stage(f"whether step {step} can be saved")
        collectives.decided(lambda: self._check_before(step, state), f"saving step {step}")
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(state), history=ocp.args.JsonSave(history))
        self._waited(lambda: self._manager.save(step, args=items, force=True))

    def _check_before(self, step: int, state: PyTree) -> None:
        """Raises OSError if this process may write no more, or the disk has too little space for a step."""
        self.guard()
        check_space(self.directory, step, state)

    def restore(self, like: PyTree) -> tuple[PyTree, Json] | None:
        """Returns (state, history) of the newest complete step, or None if there are no steps.

        like: the state's shapes, dtypes and shardings. Raises UsageError, and changes nothing, if no step is complete.
        """
        steps = collectives.decided(lambda: step_directories(self.directory), "which steps there are")
        if not steps:
            return None
        step = collectives.decided(lambda: newest_complete(self.directory, steps), "the newest complete step")
        state = ocp.args.PyTreeRestore(like, restore_args=ocp.checkpoint_utils.construct_restore_args(like))
        items = ocp.args.Composite(state=state, history=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=items)
        if damaged := [newer for newer in steps if newer > step]:
            collectives.decided(lambda: set_aside(self.directory, damaged), "damaged steps are set aside")
            self._manager.reload()
        self.newest = step
        return restored.state, restored.history

    def wait(self) -> None:
        """Waits for the save in progress. Raises SaveError if it failed."""
        collectives.stage(f"waiting for the save of step {self._saving}")
        if (timeout := collectives.timeout_seconds()) is not None:
            patience = bucket_clients.retry_seconds if is_url(self.directory) else 0.0
            self._see_progress(max(2 * timeout, patience))
        self._waited(self._manager.wait_until_finished)

    @property
    def owing(self) -> bool:
        """Whether a save has failed and is to be made again now."""
        return False

    def finish(self, step: int, state: PyTree, history: Json) -> None:
        """Waits until the save of the last step is complete. Raises SaveError if it failed."""
        self.wait()

    def check(self) -> None:
        """Raises SaveError if this process failed to write its part of the save in progress. Does not wait."""
        if self._failure is not None:
            raise save_error(self._saving, self._failure)

    def _notice(self, error: BaseException) -> None:
        """Records that a write of this process has failed."""
        self._failure = self._failure or error

    def _see_progress(self, patience: float) -> None:
        """Waits until the save in progress has written. Raises SaveError after `patience` seconds without progress.

        If a write fails in one process, Orbax leaves the processes waiting at different barriers.
        """
        before: dict[str, int] | None = None
        since = time.monotonic()
        while self._manager.is_saving_in_progress():
            self.check()
            asked = time.monotonic()
            written = sizes(self.directory, str(self._saving))
            since += time.monotonic() - asked  # a server may not have answered for long
            if written != before:
                before, since = written, time.monotonic()
            elif time.monotonic() - since > patience:
                reason = f"nothing was written in {patience:g} s{free_space(self.directory)}"
                raise SaveError(f"saving step {self._saving} failed: {reason}")
            waited = time.monotonic() - since
            time.sleep(0.05 if waited < 1 else 5 if waited > 5 and is_url(self.directory) else 0.5)

    def close(self) -> None:
        """Waits for the save in progress and releases Orbax's threads. Raises SaveError if the save failed.

        The end of a `with` block calls it, except after an error in one of several processes: the others would not
        reach the barriers that this one waits at.
        """
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None or jax.process_count() == 1:
            self.close()

    def _waited(self, wait: Callable[[], T]) -> T:
        """Returns wait(). Raises SaveError if the save failed."""
        try:
            return wait()
        except (OSError, ValueError, RuntimeError) as e:
            raise save_error(self._saving, e) from e

    def _write_manifest(self) -> None:
        """Writes the manifest. Orbax calls it last, before it renames the step's directory into place."""
        if jax.process_index() != 0:
            return
        try:
            self.guard()
            self.before_manifest()
            for directory in step_folders(self.directory, self._saving):
                write_manifest(directory, self.guard)
        except OSError as e:
            self._notice(e)
            raise
        self.seconds = time.monotonic() - self._since
        self.newest = self._saving


def step_folders(directory: Place, step: int | None) -> list[Place]:
    """Returns the folders that the save of a step writes: its own, or on a disk one that is renamed at the end."""
    if is_url(directory):
        return [directory / str(step)]
    own = directory.glob(f"{step}*")
    return [path for path in own if path.name == str(step) or ocp.utils.TMP_DIR_SUFFIX in path.name]


def free_space(directory: Place) -> str:
    """Returns what a message says of the free space of a disk, nothing for a bucket."""
    return "" if is_url(directory) else f"; the disk has {free_bytes(directory) / 1e9:.3g} GB free"


def set_aside(directory: Place, steps: Sequence[int]) -> None:
    """Moves damaged steps to `damaged/`, so that they can be saved again."""
    for step in steps:
        aside = unused_path(directory.parent / "damaged" / str(step))
        move_folder(directory / str(step), aside)
        log.warning("moved the damaged step %d to %s", step, aside)


def restore_params(directory: str | Place, average: str | None, step: int | None = None) -> tuple[PyTree, int]:
    """Returns (parameters, step) of `step`, by default the newest complete one. Restores nothing else of the state.

    average: a key of TrainState.ema, or None for the parameters without averaging. Raises UsageError if there are none.
    """
    directory = absolute(directory)
    step = collectives.decided(lambda: find_step(directory, step), f"the step to read in {directory}")
    return read_params(directory, step, average), step


def find_step(directory: str | Place, step: int | None = None) -> int:
    """Returns `step`, by default the newest complete step. Raises UsageError if it is missing or damaged."""
    steps = step_directories(directory)
    if step is not None and step not in steps:
        available = ", ".join(map(str, sorted(steps, reverse=True))) or "none"
        raise UsageError(f"there is no step {step} in {directory}; it has {available}")
    return newest_complete(directory, steps if step is None else [step])


def newest_complete(directory: str | Place, steps: Sequence[int]) -> int:
    """Returns the newest step whose files match their manifest, and logs a warning for each newer one.

    Raises UsageError if no step is complete. Changes nothing.
    """
    problems = []
    for step in sorted(steps, reverse=True):
        problem = damage(place(directory) / str(step))
        if not problem:
            return step
        problems.append(f"step {step}: {problem}")
        log.warning("checkpoint step %d is damaged (%s); looking for an older one", step, problem)
    reasons = f" ({'; '.join(problems)})" if problems else ""
    raise UsageError(f"no checkpoint in {directory} is complete; nothing was overwritten{reasons}")


def read_params(directory: Place, step: int, average: str | None) -> PyTree:
    """Returns the parameters of a step as numpy arrays. average: see `restore_params`."""
    path, handler = directory / str(step) / "state", ocp.PyTreeCheckpointHandler()
    tree = handler.metadata(path).tree
    if average is not None and average not in tree["ema"]:
        raise UsageError(f"no average {average} in {path.parent}; it has {', '.join(tree['ema'])}")
    selected = {"params": tree["params"]} if average is None else {"ema": {average: tree["ema"][average]}}
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), selected)
    host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
    restored = handler.restore(path, args=ocp.args.PyTreeRestore(like, restore_args=host, partial_restore=True))
    handler.close()
    return restored["params"] if average is None else restored["ema"][average]


def unused_path(path: Place) -> Place:
    """Returns the first of path, path.1, path.2, … that does not exist."""
    candidates = [path, *(path.with_name(f"{path.name}.{i}") for i in range(1, 1000))]
    return next(candidate for candidate in candidates if not candidate.exists())
