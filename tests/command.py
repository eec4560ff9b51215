"""Commands as processes of their own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def start(command, environ=None, **options):
    """`cfgjax COMMAND` as a process on one CPU device."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONUNBUFFERED": "1", **(environ or {})}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    options = {"cwd": ROOT, "env": env, **pipes, **options}
    return subprocess.Popen([sys.executable, "-m", "cfgjax", *command.split()], **options)


def start_several(command, count, **environ):
    """`cfgjax COMMAND` as processes that know each other, each on one CPU device."""
    place = {"CFGJAX_COORDINATOR": f"localhost:{free_port()}", "CFGJAX_NUM_PROCESSES": str(count)}
    return [start(command, environ=place | {"CFGJAX_PROCESS_ID": str(i)} | environ) for i in range(count)]


def free_port():
    with socket.create_server(("localhost", 0)) as server:
        return server.getsockname()[1]


def finish(process, timeout=120):
    """(exit code, stdout, stderr)"""
    try:
        out, err = process.communicate(timeout=timeout)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return process.returncode, out, err


def finish_all(processes, timeout=120):
    return [finish(process, timeout) for process in processes]


def run(command, **options):
    return finish(start(command, **options))
