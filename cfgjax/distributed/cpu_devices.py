"""Uses the cores of a CPU as separate devices: a batch split over them keeps all cores busy.

XLA:CPU spreads convolutions over cores, but little of the work between them: two cores are 1.4 times as fast as one.
"""

import contextlib
import os
from typing import TYPE_CHECKING

from cfgjax.base.cores import usable_cores

if TYPE_CHECKING:
    import jax

MAX_CPU_DEVICES = 8  # a batch of 16 has 2 rows for each; further cores help within each device; more were not measured

_chosen: list[int] = []  # the number of devices, if use_cores chose it


def use_cores() -> None:
    """Makes the usable cores devices of the CPU, as many as `devices_for` allows. Other platforms are not affected.

    Nothing is changed if the number of devices was set before, by JAX_NUM_CPU_DEVICES, XLA_FLAGS or jax.config, if jax
    is in use, or if there are several processes.
    """
    import jax

    given = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if given or jax.config.values["jax_num_cpu_devices"] > 0 or jax.distributed.is_initialized():
        return
    count = devices_for(MAX_CPU_DEVICES, usable_cores())
    with contextlib.suppress(RuntimeError):  # jax is in use
        jax.config.update("jax_num_cpu_devices", count)
        _chosen.append(count)


def devices_of_batch(parts: int) -> "list[jax.Device] | None":
    """Returns the devices that share a batch of `parts` parts, or None for all.

    Devices are left out only if `use_cores` made them of a CPU's cores; if the user chose them, all must be used.
    """
    import jax

    if not _chosen or jax.default_backend() != "cpu":
        return None
    return jax.devices()[: devices_for(parts, _chosen[0])]


def devices_for(parts: int, cores: int) -> int:
    """Returns the largest power of two that divides parts and is at most cores and at most MAX_CPU_DEVICES."""
    count = 1
    while 2 * count <= min(cores, MAX_CPU_DEVICES) and parts % (2 * count) == 0:
        count *= 2
    return count
