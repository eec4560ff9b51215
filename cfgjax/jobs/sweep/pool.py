"""Runs a sweep on this machine, N processes at a time, until all have ended or a stop signal arrives."""

import os
import shlex
import signal
import time
from collections.abc import Sequence

from cfgjax.base.exits import DONE, PREEMPTED
from cfgjax.base.storage import AnyPath
from cfgjax.jobs.launch import children
from cfgjax.jobs.launch.guardian import Guardian
from cfgjax.jobs.launch.job import argv_of
from cfgjax.jobs.sweep import run_records
from cfgjax.jobs.sweep.entries import Entry
from cfgjax.jobs.sweep.logs import Busy, open_log
from cfgjax.jobs.sweep.run_records import EntryOutcome

SAVE_SECONDS = 60  # that the runs of a killed sweep have to save


class RunningEntry:
    """A running entry. Its commands run one after the other and append their output to its log.

    The log stays locked as long as a process of the run is alive, for example saving after its sweep was killed. Raises
    Busy if the log is already locked.
    """

    def __init__(self, entry: Entry, out: AnyPath, python: str, guardian: Guardian) -> None:
        self.entry, self._out, self._python, self._guardian = entry, out, python, guardian
        self._began, self._left = time.monotonic(), list(entry.commands)
        self._passed_on: list[signal.Signals] = []
        self._log = open_log(out, entry.name)
        run_records.record_path(out, entry.name).unlink(missing_ok=True)
        self._next()

    def _next(self) -> None:
        argv = argv_of(self._python, self._left.pop(0))
        self._log.file.write(f"$ {shlex.join(argv)}\n".encode())
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self._process = children.start(
            argv, self._guardian, env=environment, stdout=self._log.file, stderr=self._log.file
        )

    def pass_on(self, number: signal.Signals) -> None:
        """Sends the signal to the run's process."""
        self._passed_on.append(number)
        self._process.send_signal(number)

    def ended(self) -> EntryOutcome | None:
        """Starts the next command, or records a run that is over and returns its `EntryOutcome`; else None."""
        if self._process.poll() is None:
            return None
        self._guardian.ended(self._process.pid)
        code = children.exit_code(self._process.returncode, self._passed_on)
        if code == DONE and self._left and self._passed_on:
            code = PREEMPTED
        if code == DONE and self._left:
            self._next()
            return None
        self._log.send()
        run_records.write_record(self._out, self.entry, code, time.monotonic() - self._began)
        self._log.close()
        record = run_records.read_record(self._out, self.entry)
        assert record is not None  # it was just written
        return run_records.outcome(self._out, self.entry, record)


def run_all(
    entries: Sequence[Entry], out: AnyPath, *, parallel: int, python: str, retry_failed: bool
) -> list[EntryOutcome]:
    """Runs the entries, `parallel` at a time, and returns their list of `EntryOutcome`s.

    Stop signals are forwarded to the runs; entries that have not started are then "waiting". If this
    process is killed, the runs get SIGTERM. "elsewhere" is a run that a process of another sweep is executing.
    """
    waiting, outcomes, stopped = list(entries), {}, False
    running: list[RunningEntry] = []
    with Guardian(SAVE_SECONDS) as guardian, children.Received() as received:
        while running or (waiting and not stopped):
            while waiting and len(running) < parallel and not stopped:
                entry = waiting.pop(0)
                try:
                    if outcome := run_records.settled(out, entry, retry_failed=retry_failed):
                        outcomes[entry.name] = outcome
                        continue
                    running.append(RunningEntry(entry, out, python, guardian))
                    print(f"{entry.name}: started, {run_records.log_path(out, entry.name)}", flush=True)
                except Busy:
                    outcomes[entry.name] = EntryOutcome(
                        entry.name, "elsewhere", None, run_records.last_line(out, entry.name)
                    )
            for run in list(running):
                if outcome := run.ended():
                    running.remove(run)
                    outcomes[outcome.name] = outcome
                    print(f"{outcome.name}: {outcome.state} after {outcome.seconds:.0f} s", flush=True)
            if number := received.take():
                stopped = True
                for run in running:
                    run.pass_on(number)
            time.sleep(0.05)
    for entry in waiting:
        outcomes[entry.name] = EntryOutcome(entry.name, "waiting", None, run_records.last_line(out, entry.name))
    return [outcomes[entry.name] for entry in entries]
