"""A sweep on this machine: N runs at a time, each a process, until all have ended or this one is told to stop."""

import fcntl
import os
import shlex
import time

from cfgjax.base.exits import DONE, PREEMPTED
from cfgjax.jobs.launch import children
from cfgjax.jobs.launch.guardian import Guardian
from cfgjax.jobs.launch.job import argv_of
from cfgjax.jobs.sweep import records
from cfgjax.jobs.sweep.records import Outcome

SAVE_SECONDS = 60  # for the runs of a killed sweep to save


class Busy(Exception):
    """The run is held by a process of another sweep."""


class Run:
    """An entry that runs: its commands one after the other, all that they say appended to its log.

    The log stays locked while a process of the run lives, for example to save after its sweep was killed. Raises Busy
    if it is locked already.
    """

    def __init__(self, entry, out, python, guardian):
        self.entry, self._out, self._python, self._guardian = entry, out, python, guardian
        self._began, self._left, self._passed_on = time.monotonic(), list(entry.commands), []
        self._log = open(records.log_path(out, entry.name), "ab", buffering=0)
        try:
            fcntl.flock(self._log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._log.close()
            raise Busy from None
        records.record_path(out, entry.name).unlink(missing_ok=True)
        self._next()

    def _next(self):
        argv = argv_of(self._python, self._left.pop(0))
        self._log.write(f"$ {shlex.join(argv)}\n".encode())
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self._process = children.start(argv, self._guardian, env=environment, stdout=self._log, stderr=self._log)

    def pass_on(self, number):
        """Sends the signal to the run's process."""
        self._passed_on.append(number)
        self._process.send_signal(number)

    def ended(self):
        """The `Outcome` when the last command has ended or one of them has not with 0, recorded; None until then."""
        if self._process.poll() is None:
            return None
        self._guardian.ended(self._process.pid)
        code = children.exit_code(self._process.returncode, self._passed_on)
        if code == DONE and self._left and self._passed_on:
            code = PREEMPTED
        if code == DONE and self._left:
            self._next()
            return None
        records.write(self._out, self.entry, code, time.monotonic() - self._began)
        self._log.close()
        return records.outcome(self._out, self.entry, records.read(self._out, self.entry))


def run_all(entries, out, *, parallel, python, retry_failed):
    """[`Outcome`] of the entries, of which parallel run at a time. SIGTERM, SIGINT and SIGUSR1 are passed on to them.
    If this process is killed, they get SIGTERM too.

    What is left then is "waiting". "elsewhere" is a run that a process of another sweep holds.
    """
    waiting, outcomes, stopped = list(entries), {}, False
    running: list[Run] = []
    with Guardian(SAVE_SECONDS) as guardian, children.Received() as received:
        while running or (waiting and not stopped):
            while waiting and len(running) < parallel and not stopped:
                entry = waiting.pop(0)
                try:
                    if told := records.settled(out, entry, retry_failed=retry_failed):
                        outcomes[entry.name] = told
                        continue
                    running.append(Run(entry, out, python, guardian))
                    print(f"{entry.name}: started, {records.log_path(out, entry.name)}", flush=True)
                except Busy:
                    outcomes[entry.name] = Outcome(entry.name, "elsewhere", None, records.last_line(out, entry.name))
            for run in list(running):
                if told := run.ended():
                    running.remove(run)
                    outcomes[told.name] = told
                    print(f"{told.name}: {told.state} after {told.seconds:.0f} s", flush=True)
            if number := received.take():
                stopped = True
                for run in running:
                    run.pass_on(number)
            time.sleep(0.05)
    for entry in waiting:
        outcomes[entry.name] = Outcome(entry.name, "waiting", None, records.last_line(out, entry.name))
    return [outcomes[entry.name] for entry in entries]
