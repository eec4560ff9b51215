"""The cores of a CPU as devices of their own: a step in parts of the batch, one on each, keeps all of them busy.

XLA:CPU spreads convolutions over cores, but not much of what lies between them: two cores are worth 1.4 of one.
"""

import contextlib
import os
from pathlib import Path

MOST = 8  # devices; more of them were not measured
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of processor time, or max, in so many


def use_cores(parts):
    """Has jax see the CPU as `devices_for(parts, cores)` devices.

    Nothing is changed where their number was chosen already, by JAX_NUM_CPU_DEVICES or XLA_FLAGS in the environment or
    by jax.config, and where jax is in use.
    """
    import jax

    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if chosen or jax.config.values["jax_num_cpu_devices"] > 0:
        return
    with contextlib.suppress(RuntimeError):  # jax is in use
        jax.config.update("jax_num_cpu_devices", devices_for(parts, usable_cores()))


def devices_for(parts, cores):
    """The largest power of two that divides parts, is at most cores, and at most MOST."""
    count = 1
    while 2 * count <= min(cores, MOST) and parts % (2 * count) == 0:
        count *= 2
    return count


def usable_cores(quota=CPU_QUOTA):
    """The cores that this process may run on, and has the time of, if it is in a container with a quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        allowed, period = quota.read_text().split()
        return cores if allowed == "max" else max(1, min(cores, int(allowed) // int(period)))
    except (OSError, ValueError):
        return cores
