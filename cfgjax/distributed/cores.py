"""Uses the cores of a CPU as separate devices: a batch split over them keeps all cores busy.

XLA:CPU spreads convolutions over cores, but little of the work between them: two cores are 1.4 times as fast as one.
"""

import contextlib
import os
from pathlib import Path

MOST = 8  # devices; more than this was not measured
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of a container: CPU time (or max) and period, in microseconds


def use_cores(parts):
    """Makes jax use the CPU as `devices_for(parts, cores)` devices.

    Nothing is changed if the number of devices was set before, by JAX_NUM_CPU_DEVICES, XLA_FLAGS or jax.config, or if
    jax is in use.
    """
    import jax

    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if chosen or jax.config.values["jax_num_cpu_devices"] > 0:
        return
    with contextlib.suppress(RuntimeError):  # jax is in use
        jax.config.update("jax_num_cpu_devices", devices_for(parts, usable_cores()))


def devices_for(parts, cores):
    """Returns the largest power of two that divides parts and is at most cores and at most MOST."""
    count = 1
    while 2 * count <= min(cores, MOST) and parts % (2 * count) == 0:
        count *= 2
    return count


def usable_cores(quota=CPU_QUOTA):
    """Returns the number of cores that this process may use, within the CPU quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        allowed, period = quota.read_text().split()
        return cores if allowed == "max" else max(1, min(cores, int(allowed) // int(period)))
    except (OSError, ValueError):
        return cores
