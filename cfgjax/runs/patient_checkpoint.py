"""Checkpoints in a bucket whose server may fail or refuse for a while: a failed save is made again."""

import contextlib
import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import PyTree

from cfgjax.base import bucket_clients
from cfgjax.base.storage import Place, is_url
from cfgjax.runs.checkpoint import Checkpoints, Json
from cfgjax.runs.training_settings import CheckpointSettings
from cfgjax.runs.writes import SaveError

log = logging.getLogger("cfgjax")

WAIT_SECONDS = 5.0  # before the first repetition; doubled up to LONGEST_WAIT_SECONDS
LONGEST_WAIT_SECONDS = 60.0


class WithoutClosedLoops:
    """An unraisablehook without the errors of callbacks to a closed event loop; all others go to `shown`.

    Orbax closes the loop of a save at its first error, and tensorstore then calls back for each array that is left.
    """

    def __init__(self, shown: Callable[[Any], object]) -> None:
        self._shown = shown

    def __call__(self, failed: Any) -> None:
        if not (isinstance(failed.exc_value, RuntimeError) and str(failed.exc_value) == "Event loop is closed"):
            self._shown(failed)


def ignore_closed_loops() -> None:
    """Makes sys.unraisablehook one `WithoutClosedLoops`."""
    if not isinstance(sys.unraisablehook, WithoutClosedLoops):
        sys.unraisablehook = WithoutClosedLoops(sys.unraisablehook)


def open_checkpoints(directory: Place, cadence: CheckpointSettings, guard: Callable[[], None]) -> Checkpoints:
    """Returns the `Checkpoints` of a directory: patient ones in a bucket, if there is a single process."""
    if is_url(directory) and jax.process_count() == 1:
        return PatientCheckpoints(directory, cadence, guard, patience=bucket_clients.retry_seconds)
    return Checkpoints(directory, cadence, guard)


class PatientCheckpoints(Checkpoints):
    """`Checkpoints` of a single process that go on after a failed save.

    The arrays of the failed save are gone, so the newest state is saved instead. SaveError is raised when no save has
    succeeded for `patience` seconds since the first failure.
    """

    def __init__(self, *args: Any, patience: float, **options: Any) -> None:
        self._patience, self._failing_since, self._again, self._wait = patience, 0.0, 0.0, WAIT_SECONDS
        ignore_closed_loops()
        super().__init__(*args, **options)

    @property
    def owing(self) -> bool:
        """Whether a save has failed and is to be made again now."""
        return bool(self._failing_since) and time.monotonic() >= self._again

    def save(self, step: int, state: PyTree, history: Json) -> None:
        """Starts to save, see `Checkpoints.save`."""
        try:
            super().save(step, state, history)
        except SaveError as e:
            self._put_off(e)

    def wait(self) -> None:
        """Waits for the save in progress."""
        try:
            super().wait()
        except SaveError as e:
            self._put_off(e)

    def check(self) -> None:
        """Sees whether the save in progress has failed. Does not wait."""
        try:
            super().check()
        except SaveError as e:
            self._put_off(e)

    def finish(self, step: int, state: PyTree, history: Json) -> None:
        """Waits until the save of the last step is complete, and makes it again while it fails."""
        self.wait()
        while self._failing_since:
            now, last = time.monotonic(), self._failing_since + self._patience  # after which a failure is the end
            time.sleep(max(0.0, min(self._again, last, now + WAIT_SECONDS) - now))  # there is nothing else to do
            self.save(step, state, history)
            self.wait()

    def _put_off(self, error: SaveError) -> None:
        """Prepares another save. Raises the error if saves have failed for too long."""
        self.guard()
        now = time.monotonic()
        self._failing_since = self._failing_since or now
        if now - self._failing_since >= self._patience:
            raise error
        log.warning("%s; training goes on, and the newest state is saved within %.0f s", error, self._wait)
        self._again, self._wait = now + self._wait, min(2 * self._wait, LONGEST_WAIT_SECONDS)
        with contextlib.suppress(Exception):  # it raises the error of the save again
            self._manager.close()
        self._open()

    def _write_manifest(self) -> None:
        super()._write_manifest()
        self._failing_since, self._wait = 0.0, WAIT_SECONDS
