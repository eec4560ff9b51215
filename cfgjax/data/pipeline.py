"""Batches ahead of time, computed by worker processes through grain. Like `batch_at`, they depend on seed and step."""

import collections
import contextlib
import functools
import multiprocessing
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int

from cfgjax.base.errors import UsageError
from cfgjax.base.progress import write_line
from cfgjax.data.batches import drawn, finished_batch
from cfgjax.data.dataset import Dataset
from cfgjax.data.workers import STOPPED, before_workers, enter_worker, state_of

Stacked = dict[str, np.ndarray]  # {name: [k, b, …]} of k steps
Draw = Callable[[int], Stacked]

PER_WORKER = 2  # dispatches that each worker buffers
LOOK_SECONDS = 1.0  # between checks that all workers are alive
START_SECONDS = 30  # in which the processes start
WARN_SECONDS = 60  # without a batch, before a warning
MAKER = "maker"  # next to "image" and "label": the pid of the process that computed them
LAST_STEP = 2**40
REASONS = {
    signal.SIGKILL: ", perhaps for want of memory",
    signal.SIGBUS: ": /dev/shm is too small; give it more (docker run --shm-size), or take fewer data.num_workers",
}
WORKER_NAME = "grain-process-prefetch"  # of grain's processes


def dispatch_drawn(
    dataset: Dataset, seed: int, batch_size: int, rows: Int[np.ndarray, " b"], num_steps: int, step: int
) -> Stacked:
    """Returns `drawn` for num_steps steps from `step` on, stacked."""
    parts = [drawn(dataset, seed, s, batch_size, rows) for s in range(step, step + num_steps)]
    return {name: np.stack([part[name] for part in parts]) for name in parts[0]}


def signed(draw: Draw, step: int) -> Stacked:
    """Returns draw(step) with the pid of this process."""
    return draw(step) | {MAKER: np.array([os.getpid()])}


class Batches:
    """The batches of a run's dispatches: at(step) → {name: [k, b, …]}, `batch_at` for k steps from `step` on.

    rows: this process's rows of every batch. num_steps: k. With dataset.num_workers, the next dispatches are computed
    ahead of time; a request for another step than the next restarts the workers.
    """

    def __init__(
        self, dataset: Dataset, seed: int, batch_size: int, rows: Int[np.ndarray, " b"], num_steps: int
    ) -> None:
        self._low_res_size, self._num_steps, self._num_workers = dataset.low_res_size, num_steps, dataset.num_workers
        self._timeout_seconds = dataset.worker_timeout_seconds
        self._draw = functools.partial(dispatch_drawn, dataset, seed, batch_size, rows, num_steps)
        self._ahead: Ahead | None = None

    def at(self, step: int) -> Stacked:
        """Returns the batches of the dispatch from `step` on."""
        if not self._num_workers:
            return self._finish(self._draw(step))
        if self._ahead is None or self._ahead.step != step:
            self.close()
            self._ahead = Ahead(self._draw, step, self._num_steps, self._num_workers, self._timeout_seconds)
        try:
            return self._finish(self._ahead.take())
        except Exception:
            self.close()
            raise

    def _finish(self, stacked: Stacked) -> Stacked:
        """Returns `finished_batch` of all steps."""
        flat = {name: array.reshape(-1, *array.shape[2:]) for name, array in stacked.items()}
        shape = stacked["label"].shape
        return {name: a.reshape(*shape, *a.shape[1:]) for name, a in finished_batch(flat, self._low_res_size).items()}

    def close(self) -> None:
        """Ends the workers."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None


class Ahead:
    """draw(step), draw(step + k), … in turn, from num_workers processes that work ahead.

    grain takes care of order and buffers. It may wait forever for a worker that is killed while it writes, so a thread
    waits for grain while the workers are monitored. A worker that is alive but produces nothing, because it is frozen
    or its disk does not answer, causes a warning after WARN_SECONDS and an error only after timeout_seconds: a slow
    disk looks the same, and waiting for it loses nothing, but a run that waits forever wastes the machine.
    """

    def __init__(self, draw: Draw, step: int, num_steps: int, num_workers: int, timeout_seconds: float) -> None:
        grain, flags = grain_and_flags()
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # otherwise grain's own flags cannot be read
        before_workers()
        self.step, self._num_steps, self._timeout_seconds = step, num_steps, timeout_seconds
        self._makers: collections.deque = collections.deque(maxlen=num_workers)  # of the last batches, in turn
        options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=PER_WORKER)
        work = grain.MapDataset.range(step, LAST_STEP, num_steps).map(functools.partial(signed, draw))
        work = work.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        self._iterator = iter(work.mp_prefetch(options, worker_init_fn=start_loading_worker))
        self._found: queue.Queue = queue.Queue(maxsize=1)
        self._closed, before = threading.Event(), set(multiprocessing.active_children())
        self._thread = threading.Thread(target=self._fill, daemon=True, name="batches")
        self._thread.start()
        self._workers: list = []
        deadline = time.monotonic() + START_SECONDS
        while len(self._workers) < num_workers and self._found.empty() and time.monotonic() < deadline:
            time.sleep(0.01)
            new = set(multiprocessing.active_children()) - before
            self._workers = [process for process in new if process.name.startswith(WORKER_NAME)]

    def _fill(self) -> None:
        """Buffers one more result, or the error in its place."""
        while not self._closed.is_set():
            found: dict | Exception
            try:
                found = {name: np.array(array) for name, array in next(self._iterator).items()}  # out of shared memory
            except Exception as e:  # raised by a worker; `take` raises it in the training loop
                found = e
            while not self._closed.is_set():
                with contextlib.suppress(queue.Full):
                    self._found.put(found, timeout=LOOK_SECONDS)
                    break
            if isinstance(found, Exception):
                return

    def take(self) -> Stacked:
        """Returns the next result. Raises OSError if a worker has died or produces nothing, and errors of workers."""
        start, warned = time.monotonic(), False
        while True:
            try:
                found = self._found.get(timeout=LOOK_SECONDS)
                break
            except queue.Empty:
                self._look()
                warned = self._patient(time.monotonic() - start, warned)
        if isinstance(found, RuntimeError):  # grain raises it for a worker's death
            self._look()
        if isinstance(found, Exception):
            raise found
        self.step += self._num_steps
        self._makers.append(int(found.pop(MAKER)[0]))
        return found

    def _patient(self, waited: float, warned: bool) -> bool:
        """Warns once if no batch came in `waited` seconds, and raises OSError if that is too long.

        warned: whether it has warned before. Returns whether it has warned now or before.
        """
        if waited < (self._timeout_seconds if warned else min(WARN_SECONDS, self._timeout_seconds / 2)):
            return warned
        pids = [process.pid for process in self._workers]
        awaited = self._makers[0] if len(self._makers) == len(pids) else None
        slow = [pid for pid in pids if pid == awaited or (awaited is None and pid not in self._makers)]
        who = " or ".join(f"worker process {pid} ({state_of(pid)})" for pid in slow)
        what = f"no batch has come for {waited:.0f} s: step {self.step} waits for {who}"
        if warned:
            for process in self._workers:
                process.kill()
            raise OSError(f"{what}; data.worker_timeout_seconds is {self._timeout_seconds:g}")
        write_line(f"warning: {what}", sys.stderr)
        return True

    def _look(self) -> None:
        """Raises OSError if a worker has died."""
        if dead := [process.exitcode for process in self._workers if process.exitcode is not None]:
            why = f"killed by signal {-dead[0]}{REASONS.get(-dead[0], '')}" if dead[0] < 0 else f"exit code {dead[0]}"
            raise OSError(f"a data worker process died before step {self.step} ({why})")

    def close(self) -> None:
        """Ends the workers."""
        self._closed.set()
        if all(process.is_alive() and state_of(process.pid) != STOPPED for process in self._workers):
            self._thread.join(timeout=10 * LOOK_SECONDS)
            with contextlib.suppress(Exception):  # frees shared memory; whatever it finds there no longer matters
                self._iterator.close()
        for process in self._workers:
            process.kill()
            process.join()


def start_loading_worker(index: int, count: int) -> None:
    """Initialises worker `index` of `count`."""
    enter_worker()


def grain_and_flags() -> tuple[Any, Any]:
    """Returns (grain, absl's flags). Raises UsageError if grain is not installed."""
    try:
        import grain
        from absl import flags
    except ImportError:
        raise UsageError("data.num_workers needs grain: pip install 'cfgjax[data]'") from None
    return grain, flags
