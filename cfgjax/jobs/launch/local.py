"""Runs several processes of one command on this host."""

import contextlib
import functools
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, TextIO

from absl import flags

from cfgjax.base.environment_variables import MAX_ON_ONE_HOST
from cfgjax.base.errors import UsageError
from cfgjax.base.exits import DONE, PREEMPTED
from cfgjax.base.paths import define_path
from cfgjax.jobs.launch import children
from cfgjax.jobs.launch.guardian import Guardian
from cfgjax.jobs.launch.job import Job, argv_of, check_python, shell_lines
from cfgjax.jobs.launch.programs import check_interpreter
from cfgjax.jobs.launch.quoting import shell_word


def define_flags(given: flags.FlagValues) -> None:
    """Adds the flags of this launcher."""
    integer = functools.partial(flags.DEFINE_integer, flag_values=given)
    integer("num_processes", 1, "Number of processes.", lower_bound=1)
    integer(
        "devices_per_process",
        None,
        "Virtual CPU devices per process, for tests; by default the devices that JAX finds.",
        lower_bound=1,
    )
    integer("port", None, "Port of process 0; by default a free one.", lower_bound=1, upper_bound=65534)
    integer("grace_seconds", 60, "Seconds that the other processes get to end after one has failed.", lower_bound=0)
    what = "Python interpreter; by default the one that runs this command."
    define_path("python", sys.executable, what, flag_values=given, local=True)


def launch(given: flags.FlagValues, job: Job) -> int:
    """Runs the processes. Returns 0 if all are done, 75 if all are done or saved, else the first failure's code."""
    check_python(given.python)
    for name in ("num_processes", "devices_per_process"):
        if (given[name].value or 0) > MAX_ON_ONE_HOST:
            raise UsageError(f"--{name}={given[name].value}: need at most {MAX_ON_ONE_HOST} on one machine")
    argv = argv_of(given.python, job.words)
    shared, own = environments(given.num_processes, given.port or free_port(), given.devices_per_process)
    if given.dry_run:
        print("\n".join(script_lines(argv, shared, own)))
        return DONE
    check_interpreter(given.python)
    return ProcessGroup(argv, [{**os.environ, **shared, **mine} for mine in own]).run(given.grace_seconds)


def environments(
    num_processes: int, port: int, devices_per_process: int | None
) -> tuple[dict[str, str], list[dict[str, str]]]:
    """Returns (environment variables of all processes, [those of each process])."""
    shared = {"CFGJAX_COORDINATOR": f"127.0.0.1:{port}", "CFGJAX_NUM_PROCESSES": str(num_processes)}
    if devices_per_process is not None:
        shared["JAX_NUM_CPU_DEVICES"] = str(devices_per_process)
    return shared, [{"CFGJAX_PROCESS_ID": str(i)} for i in range(num_processes)]


def free_port() -> int:
    """Returns a port that is free on all addresses and whose next port, which jax uses, is free too."""
    while True:
        with socket.socket() as found, socket.socket() as following:
            found.bind(("", 0))
            port = found.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError):
                following.bind(("", port + 1))
                return port


def script_lines(argv: Sequence[str], shared: Mapping[str, str], own: Iterable[Mapping[str, str]]) -> list[str]:
    """Returns the lines of a shell script that starts the same processes."""
    setting = lambda variables: " ".join(f"{name}={shell_word(value)}" for name, value in variables.items())
    return [f"export {setting(shared)}", *(f"{setting(mine)} {shell_lines(argv)} &" for mine in own), "wait"]


class ProcessGroup:
    """Processes of one command. If one fails, all end. Signals to this process are forwarded to all.

    The processes end with this one, even if it is killed. Process 0 writes to this process's output. Output lines of
    the other processes are prefixed with their number.
    """

    def __init__(self, argv: Sequence[str], environments: Sequence[Mapping[str, str]]) -> None:
        self._argv, self._environments = argv, environments
        self._last_lines = [b""] * len(environments)

    def run(self, grace_seconds: float) -> int:
        """Runs all processes until they have ended. Returns their common exit code."""
        processes: list[subprocess.Popen[bytes]] = []
        readers: list[threading.Thread] = []
        passed_on: list[signal.Signals] = []
        ended: dict[int, int] = {}
        with Guardian(grace_seconds) as guardian, children.Received() as received:
            try:
                for i, environment in enumerate(self._environments):
                    processes.append(self._start(i, environment, readers, guardian))
                deadline = float("inf")
                while len(ended) < len(processes):
                    for i, process in enumerate(processes):
                        if i not in ended and process.poll() is not None:
                            guardian.ended(process.pid)
                            ended[i] = children.exit_code(process.returncode, passed_on)
                            if ended[i] not in (DONE, PREEMPTED):
                                deadline = min(deadline, time.monotonic() + grace_seconds)
                    if number := received.take():
                        passed_on.append(number)
                        for i, process in enumerate(processes):
                            if i not in ended:
                                process.send_signal(number)
                    if time.monotonic() > deadline:
                        break
                    time.sleep(0.02)
            finally:
                for process in processes:
                    children.kill(process)
                for reader in readers:
                    reader.join(timeout=5)
        return self._report(ended)

    def _start(
        self, i: int, environment: Mapping[str, str], readers: list[threading.Thread], guardian: Guardian
    ) -> subprocess.Popen[bytes]:
        """Starts process i and the threads that read its output."""
        if i == 0:
            return children.start(self._argv, guardian, env=environment)
        process = children.start(self._argv, guardian, env=environment, stdout=children.PIPE, stderr=children.PIPE)
        for stream, to in [(process.stdout, sys.stdout), (process.stderr, sys.stderr)]:
            readers.append(threading.Thread(target=self._pass_lines, args=(i, stream, to), daemon=True))
            readers[-1].start()
        return process

    def _pass_lines(self, i: int, stream: IO[bytes], to: TextIO) -> None:
        for line in stream:
            self._last_lines[i] = line.strip() or self._last_lines[i]
            to.buffer.write(f"[{i}] ".encode() + line.rstrip(b"\n") + b"\n")
            to.buffer.flush()

    def _report(self, ended: Mapping[int, int]) -> int:
        """Returns the common exit code and prints a failure. ended: {process: exit code} in the order of ending."""
        failed = [i for i, code in ended.items() if code not in (DONE, PREEMPTED)]
        if not failed:
            return PREEMPTED if PREEMPTED in ended.values() else DONE
        i, count = failed[0], len(self._environments)
        last = re.sub(r"^cfgjax: (failed|error): ", "", self._last_lines[i].decode(errors="replace"))
        killed = count - len(ended)
        message = f"process {i} of {count} ended with {ended[i]}" + (f": {last}" if last else "")
        many = "process that did not end was" if killed == 1 else "processes that did not end were"
        message += f"; {killed} {many} killed" if killed else ""
        if count > 1:
            print(f"cfgjax: failed: {message}", file=sys.stderr)
        return ended[i]
