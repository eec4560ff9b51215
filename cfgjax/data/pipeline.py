"""Batches ahead of time: made by worker processes through grain, each a function of seed and step as `batch_at` is."""

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

import numpy as np
import tqdm

from cfgjax.base.errors import UsageError
from cfgjax.data.batches import drawn, finished
from cfgjax.data.workers import STOPPED, before_workers, enter_worker, state_of

PER_WORKER = 2  # dispatches that each worker holds ready
LOOK_SECONDS = 1.0  # between looks at whether all workers are alive
START_SECONDS = 30  # in which the processes exist
TELL_SECONDS = 60  # without a batch, and it is told whose it is
MAKER = "maker"  # beside "image" and "label": the pid of the process that made them
LAST_STEP = 2**40
REASONS = {
    signal.SIGKILL: ", perhaps for want of memory",
    signal.SIGBUS: ": /dev/shm is too small; give it more (docker run --shm-size), or take fewer data.num_workers",
}
NAME = "grain-process-prefetch"  # how grain calls its processes


def dispatch_drawn(dataset, seed, batch_size, rows, num_steps, step):
    """`drawn` of num_steps steps from `step` on, stacked: {name: [k, b, …]}."""
    parts = [drawn(dataset, seed, s, batch_size, rows) for s in range(step, step + num_steps)]
    return {name: np.stack([part[name] for part in parts]) for name in parts[0]}


def signed(draw, step):
    """draw(step) with the pid of the process that made it."""
    return draw(step) | {MAKER: np.array([os.getpid()])}


class Batches:
    """The batches of a run's dispatches: at(step) → {name: [k, b, …]}, those of `batch_at` for k steps from step on.

    rows: int [b], this process's of every batch. num_steps: k. With dataset.num_workers the dispatches after the one
    asked for are made meanwhile; at another step than the next, the workers start anew.
    """

    def __init__(self, dataset, seed, batch_size, rows, num_steps):
        self._low_res_size, self._num_steps, self._num_workers = dataset.low_res_size, num_steps, dataset.num_workers
        self._timeout_seconds = dataset.worker_timeout_seconds
        self._draw = functools.partial(dispatch_drawn, dataset, seed, batch_size, rows, num_steps)
        self._ahead = None

    def at(self, step):
        """The batches of the dispatch from `step` on."""
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

    def _finish(self, stacked):
        """Steps and rows as one axis for `finished`, and apart again."""
        flat = {name: array.reshape(-1, *array.shape[2:]) for name, array in stacked.items()}
        shape = stacked["label"].shape
        return {name: a.reshape(*shape, *a.shape[1:]) for name, a in finished(flat, self._low_res_size).items()}

    def close(self):
        """Ends the workers."""
        if self._ahead is not None:
            self._ahead.close()
            self._ahead = None


class Ahead:
    """draw(step), draw(step + k), … in turn, from num_workers processes that work ahead.

    grain looks after order and buffers. It may wait for ever for a worker that is killed while it writes, so that it is
    waited for in a thread, and the workers are looked at meanwhile. A worker that is there and makes nothing, frozen or
    at a disk that does not answer, is told after TELL_SECONDS. Only after timeout_seconds is it an error: a slow disk
    looks the same, and to wait for one loses nothing, but a run that waits for ever loses the machine.
    """

    def __init__(self, draw, step, num_steps, num_workers, timeout_seconds):
        grain, flags = grain_and_flags()
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # or grain's own cannot be read
        before_workers()
        self.step, self._num_steps, self._timeout_seconds = step, num_steps, timeout_seconds
        self._makers: collections.deque = collections.deque(maxlen=num_workers)  # of the last batches: they take turns
        options = grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=PER_WORKER)
        work = grain.MapDataset.range(step, LAST_STEP, num_steps).map(functools.partial(signed, draw))
        work = work.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
        self._iterator = iter(work.mp_prefetch(options, worker_init_fn=start_worker))
        self._found: queue.Queue = queue.Queue(maxsize=1)
        self._closed, before = threading.Event(), set(multiprocessing.active_children())
        self._thread = threading.Thread(target=self._fill, daemon=True, name="batches")
        self._thread.start()
        self._workers: list = []
        deadline = time.monotonic() + START_SECONDS
        while len(self._workers) < num_workers and self._found.empty() and time.monotonic() < deadline:
            time.sleep(0.01)
            new = set(multiprocessing.active_children()) - before
            self._workers = [process for process in new if process.name.startswith(NAME)]

    def _fill(self):
        """Keeps one more of them ready, or the error in its place."""
        while not self._closed.is_set():
            found: dict | Exception
            try:
                found = {name: np.array(array) for name, array in next(self._iterator).items()}  # out of shared memory
            except Exception as e:  # whatever a worker raised: the training loop is told
                found = e
            while not self._closed.is_set():
                with contextlib.suppress(queue.Full):
                    self._found.put(found, timeout=LOOK_SECONDS)
                    break
            if isinstance(found, Exception):
                return

    def take(self):
        """The next of them. Raises OSError where a worker has died or makes nothing, and what a worker raised."""
        start, told = time.monotonic(), False
        while True:
            try:
                found = self._found.get(timeout=LOOK_SECONDS)
                break
            except queue.Empty:
                self._look()
                told = self._patient(time.monotonic() - start, told)
        if isinstance(found, RuntimeError):  # grain's own words for a worker's death
            self._look()
        if isinstance(found, Exception):
            raise found
        self.step += self._num_steps
        self._makers.append(int(found.pop(MAKER)[0]))
        return found

    def _patient(self, waited, told):
        """Whether it has been told that no batch came in `waited` seconds. Raises OSError where that is too long."""
        if waited < (self._timeout_seconds if told else min(TELL_SECONDS, self._timeout_seconds / 2)):
            return told
        pids = [process.pid for process in self._workers]
        awaited = self._makers[0] if len(self._makers) == len(pids) else None
        slow = [pid for pid in pids if pid == awaited or (awaited is None and pid not in self._makers)]
        who = " or ".join(f"worker process {pid} ({state_of(pid)})" for pid in slow)
        what = f"no batch has come for {waited:.0f} s: step {self.step} waits for {who}"
        if told:
            for process in self._workers:
                process.kill()
            raise OSError(f"{what}; data.worker_timeout_seconds is {self._timeout_seconds:g}")
        tqdm.tqdm.write(f"warning: {what}", file=sys.stderr)
        return True

    def _look(self):
        """Raises OSError where a worker is no more."""
        if dead := [process.exitcode for process in self._workers if process.exitcode is not None]:
            why = f"killed by signal {-dead[0]}{REASONS.get(-dead[0], '')}" if dead[0] < 0 else f"exit code {dead[0]}"
            raise OSError(f"a worker process that makes batches has died before step {self.step} ({why})")

    def close(self):
        """Ends the workers."""
        self._closed.set()
        if all(process.is_alive() and state_of(process.pid) != STOPPED for process in self._workers):
            self._thread.join(timeout=10 * LOOK_SECONDS)
            with contextlib.suppress(Exception):  # frees shared memory; whatever it finds there no longer matters
                self._iterator.close()
        for process in self._workers:
            process.kill()
            process.join()


def start_worker(index, count):
    """The start of worker `index` of `count`."""
    enter_worker()


def grain_and_flags():
    """(grain, absl's flags)"""
    try:
        import grain
        from absl import flags
    except ImportError:
        raise UsageError("data.num_workers needs grain: pip install 'cfgjax[data]'") from None
    return grain, flags
