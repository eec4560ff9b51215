"""Commands as processes of their own."""

import contextlib
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
STARTED: list = []


def start(command, environ=None, **options):
    """`cfgjax COMMAND` as a process on one CPU device."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1", "PYTHONUNBUFFERED": "1"} | (environ or {})
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    options = {"cwd": ROOT, "env": env, **pipes, **options}
    STARTED.append(subprocess.Popen([sys.executable, "-m", "cfgjax", *command.split()], **options))
    return STARTED[-1]


def start_several(command, count, **environ):
    """`cfgjax COMMAND` as processes that know each other, each on one CPU device."""
    place = {"CFGJAX_COORDINATOR": f"localhost:{free_port()}", "CFGJAX_NUM_PROCESSES": str(count)}
    return [start(command, environ=place | {"CFGJAX_PROCESS_ID": str(i)} | environ) for i in range(count)]


def free_port():
    """A port that is free, as is the next one, which jax takes. Outgoing connections have higher ports.

    The workers of a test session have their own ranges: a port is free until a process that is started listens.
    """
    first = 20000 + 1000 * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 10)
    while True:
        port = random.randrange(first, first + 999)
        with contextlib.suppress(OSError), socket.create_server(("", port)), socket.create_server(("", port + 1)):
            return port


def finish(process, timeout=300):
    """(exit code, stdout, stderr)"""
    try:
        out, err = process.communicate(timeout=timeout)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return process.returncode, out, err


def end_all():
    """Kills what a test that failed has left running, and closes its pipes."""
    while STARTED:
        process = STARTED.pop()
        if process.stdout and not process.stdout.closed:
            process.kill()
            process.communicate()


def finish_all(processes, timeout=300):
    return [finish(process, timeout) for process in processes]


def run(command, **options):
    return finish(start(command, **options))


def children(pid):
    """The processes that process pid has started."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for thread in threads for child in (thread / "children").read_text().split()]


def lives(pid):
    """Whether there is such a process, and no zombie."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.005)
