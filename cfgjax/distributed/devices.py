"""Starts jax and its devices: errors in the user's terms, and a warning if an accelerator stays unused."""

import logging
import os
from pathlib import Path

from cfgjax.base.errors import UsageError, one_line

log = logging.getLogger("cfgjax")

NVIDIA_DEVICES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg", "/proc/driver/nvidia/gpus")  # dxg: on WSL
TPU_DEVICES = ("/dev/accel0", "/dev/vfio/0")
PLATFORM_VARIABLES = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")  # the second is jax's older name for the same
HIDDEN = ("", "-1", "NoDevFiles", "none", "void")  # values of CUDA_VISIBLE_DEVICES that hide every GPU
PACKAGES = {  # accelerator: command that lets jax use it
    "an NVIDIA GPU": "pip install 'jax[cuda13]' ('jax[cuda12]' for drivers older than 580)",
    "a TPU": "pip install 'jax[tpu]'",
}


def import_jax():
    """Imports jax. Raises UsageError if jax does not accept the value of an environment variable."""
    try:
        import jax  # noqa: F401
    except ValueError as e:
        raise UsageError(f"jax does not accept an environment variable: {one_line(e)}") from e


def open_devices():
    """Starts jax's backend, and warns if an accelerator is visible but jax runs on the CPU.

    Raises UsageError with the variable and the available platforms if the requested platform cannot start.
    """
    import jax

    asked = {name: jax.config.values[name.lower()] for name in PLATFORM_VARIABLES}
    name, requested = next(((name, value) for name, value in asked.items() if value), (None, None))
    noise = logging.getLogger("jax._src.xla_bridge")
    noise.addFilter(is_other_warning)
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as e:  # AssertionError: a plugin found no GPU
        if not requested:
            raise
        reason = one_line(e).partition(" (set JAX_PLATFORMS")[0] if str(e) else "no device, or its plugin is missing"
        available = ", ".join(available_platforms())
        raise UsageError(f"{name}={requested!r} cannot start; available here: {available} ({reason})") from e
    finally:
        noise.removeFilter(is_other_warning)
    if jax.default_backend() == "cpu" and (requested or "").partition(",")[0] != "cpu" and jax.process_index() == 0:
        warn_of_unused(visible_accelerator())


def available_platforms():
    """Returns the names of the platforms that jax can start, for the error about one that could not."""
    import jax

    for name in PLATFORM_VARIABLES:
        jax.config.update(name.lower(), "")
    try:
        return sorted({"cpu", *(device.platform for device in jax.devices())})
    except (RuntimeError, AssertionError):
        return ["cpu"]


def visible_accelerator(environ=os.environ):
    """Returns the accelerator of this machine, a key of PACKAGES, or None."""
    hidden = environ.get("CUDA_VISIBLE_DEVICES", "all") in HIDDEN or environ.get("NVIDIA_VISIBLE_DEVICES") in HIDDEN
    if not hidden and any(Path(device).exists() for device in NVIDIA_DEVICES):
        return "an NVIDIA GPU"
    return "a TPU" if any(Path(device).exists() for device in TPU_DEVICES) else None


def warn_of_unused(accelerator):
    """Warns that jax runs on the CPU next to an unused accelerator, a key of PACKAGES, or None."""
    if accelerator is not None:
        advice = f"{PACKAGES[accelerator]}; JAX_PLATFORMS=cpu chooses the CPU without this warning"
        log.warning("%s is visible, but jax runs on the CPU: its plugin is missing or does not fit: %s",
                    accelerator, advice)  # fmt: skip


def is_other_warning(record):
    """Logging filter that drops jax's own warning about a missing plugin, which names no command."""
    return "may be present on this machine" not in record.getMessage()
