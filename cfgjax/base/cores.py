"""Counts the cores that this process may use, without jax."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

CONTROL_GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")


def visible_cores() -> int:
    """Returns the number of cores on which this process may run, for each of which XLA:CPU starts a thread."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usable_cores(groups: Path = CONTROL_GROUPS, own: Path = OWN_GROUPS) -> int:
    """Returns the number of visible cores, within the CPU quotas of its container, job or service."""
    return max(1, min([visible_cores(), *map(int, cpu_quotas(groups, own))]))


def cpu_quotas(groups: Path, own: Path) -> Iterator[float]:
    """Yields the CPU quotas, in cores, of the control groups of this process and of those that contain them.

    groups: the folder of all control groups. own: the file with those of this process. Inside a container the names in
    own may be those of the host, so groups that do not exist are skipped.
    """
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers and "cpu" not in controllers.split(","):
                continue
            root = groups / "cpu" if controllers else groups  # versions 1 and 2
            group = root / name.lstrip("/")
            for folder in (group, *group.parents):
                with contextlib.suppress(OSError, ValueError):
                    yield quota(folder)
                if folder == root:
                    break


def quota(folder: Path) -> float:
    """Returns the CPU quota of a control group in cores. Raises OSError or ValueError if it has none."""
    try:
        allowed, period = (folder / "cpu.max").read_text().split()
    except FileNotFoundError:  # version 1
        allowed, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    if int(allowed) <= 0:  # not an integer in version 2, −1 in version 1
        raise ValueError(allowed)
    return int(allowed) / int(period)
