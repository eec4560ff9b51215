"""Checks the environment variables that cfgjax and jax read, before a command begins."""

import math
import os
import re
from collections.abc import Mapping

from cfgjax.base.errors import UsageError
from cfgjax.base.numerals import is_whole_number
from cfgjax.base.paths import ON_DISK, wrong_path
from cfgjax.base.storage import is_url

INTEGERS = {  # variable: minimum
    "CFGJAX_NUM_PROCESSES": 1,
    "CFGJAX_PROCESS_ID": 0,
    "JOB_COMPLETION_INDEX": 0,
    "SLURM_PROCID": 0,
    "SLURM_LOCALID": 0,
    "SLURM_JOB_ID": 0,
    "SLURM_STEP_ID": 0,
    "SLURM_NTASKS_PER_NODE": 1,
    "SLURM_STEP_NUM_TASKS": 1,
    "OMPI_COMM_WORLD_SIZE": 1,
    "OMPI_COMM_WORLD_RANK": 0,
    "OMPI_COMM_WORLD_LOCAL_SIZE": 1,
    "OMPI_COMM_WORLD_LOCAL_RANK": 0,
    "TPU_WORKER_ID": 0,
    "MEGASCALE_NUM_SLICES": 1,
    "MEGASCALE_SLICE_ID": 0,
    "JAX_NUM_CPU_DEVICES": -1,  # jax's default: not set
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": -1,
}
MAX_ON_ONE_HOST = 1024  # processes, and virtual CPU devices per process
DURATIONS = {
    "CFGJAX_GRACE_SECONDS": 0.0,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": -math.inf,
}  # variable: minimum
DEVICE_COUNT = re.compile(r"--xla_force_host_platform_device_count(?:=(\S*))?")
PATHS = ("CFGJAX_INCEPTION", "XDG_CACHE_HOME", "JAX_COMPILATION_CACHE_DIR")  # an empty path counts as unset
SWITCHES = ("JAX_ENABLE_COMPILATION_CACHE", "JAX_ENABLE_X64", "JAX_DISABLE_JIT")
TRUTHS = ("y", "yes", "t", "true", "on", "1", "n", "no", "f", "false", "off", "0")


def check_environment(environ: Mapping[str, str] = os.environ) -> None:
    """Raises UsageError with the name of the first variable whose value is invalid."""
    for name, least in INTEGERS.items():
        if name in environ and not (is_whole_number(environ[name].strip()) and int(environ[name]) >= least):
            raise UsageError(f"{wrong(environ, name)}; need a whole number of at least {max(least, 0)}")
    if int(environ.get("JAX_NUM_CPU_DEVICES", -1)) not in (-1, *range(1, MAX_ON_ONE_HOST + 1)):
        raise UsageError(f"{wrong(environ, 'JAX_NUM_CPU_DEVICES')}; need a whole number from 1 to {MAX_ON_ONE_HOST}")
    count = DEVICE_COUNT.search(environ.get("XLA_FLAGS", ""))
    if count and not (is_whole_number(count[1] or "") and 1 <= int(count[1]) <= MAX_ON_ONE_HOST):
        raise UsageError(f"{wrong(environ, 'XLA_FLAGS')}; need a whole number of devices from 1 to {MAX_ON_ONE_HOST}")
    for name, seconds in DURATIONS.items():
        if name in environ and not is_seconds(environ[name], seconds):
            raise UsageError(f"{wrong(environ, name)}; need a number of seconds without a unit, such as 300")
    for name in PATHS:
        if environ.get(name) and (reason := wrong_path(environ[name])):
            raise UsageError(f"{wrong(environ, name)}: {reason}")
    if is_url(environ.get("XDG_CACHE_HOME", "")):
        raise UsageError(f"{wrong(environ, 'XDG_CACHE_HOME')}: {ON_DISK}")
    for name in SWITCHES:
        if name in environ and environ[name].lower() not in TRUTHS:
            raise UsageError(f"{wrong(environ, name)}; need true or false")


def wrong(environ: Mapping[str, str], name: str) -> str:
    """Returns the beginning of an error about a variable."""
    return f"the environment variable {name} is {environ[name]!r}"


def is_seconds(text: str, least: float) -> bool:
    """Returns whether text is a number of at least `least`; infinity is allowed."""
    try:
        return float(text) >= least
    except ValueError:
        return False
