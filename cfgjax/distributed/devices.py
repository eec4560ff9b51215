"""Starts jax and its devices, with errors in the user's terms and a warning about an unused accelerator."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

from cfgjax.base.errors import UsageError, one_line

log = logging.getLogger("cfgjax")

NVIDIA_DEVICES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg", "/proc/driver/nvidia/gpus")  # dxg: on WSL
TPU_DEVICES = ("/dev/accel0", "/dev/vfio/0")
PLATFORM_VARIABLES = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")  # the second is an older name of the first
HIDDEN = ("", "-1", "NoDevFiles", "none", "void")  # values of CUDA_VISIBLE_DEVICES that hide every GPU
PACKAGES = {  # accelerator: command that lets jax use it
    "an NVIDIA GPU": "pip install 'jax[cuda13]' ('jax[cuda12]' for drivers older than 580)",
    "a TPU": "pip install 'jax[tpu]'",
}


def import_jax() -> None:
    """Imports jax. Raises UsageError if jax does not accept the value of an environment variable."""
    try:
        import jax  # noqa: F401
    except ValueError as e:
        raise UsageError(f"jax does not accept an environment variable: {one_line(e)}") from e


def open_devices() -> None:
    """Starts jax's backend, and warns if an accelerator is visible but jax runs on the CPU.

    Raises UsageError with the variable and the available platforms if the requested platform cannot start.
    """
    import jax

    settings = {name: jax.config.values[name.lower()] for name in PLATFORM_VARIABLES}
    name, requested = next(((name, value) for name, value in settings.items() if value), (None, None))
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


def available_platforms() -> list[str]:
    """Returns the names of the platforms that jax can start, for the error about one that it cannot."""
    import jax

    for name in PLATFORM_VARIABLES:
        jax.config.update(name.lower(), "")
    try:
        return sorted({"cpu", *(device.platform for device in jax.devices())})
    except (RuntimeError, AssertionError):
        return ["cpu"]


def visible_accelerator(environ: Mapping[str, str] = os.environ) -> str | None:
    """Returns the accelerator of this machine, a key of PACKAGES, or None."""
    hidden = environ.get("CUDA_VISIBLE_DEVICES", "all") in HIDDEN or environ.get("NVIDIA_VISIBLE_DEVICES") in HIDDEN
    if not hidden and any(Path(device).exists() for device in NVIDIA_DEVICES):
        return "an NVIDIA GPU"
    return "a TPU" if any(Path(device).exists() for device in TPU_DEVICES) else None


def warn_of_unused(accelerator: str | None) -> None:
    """Warns that jax runs on the CPU although there is an accelerator, a key of PACKAGES. None does nothing."""
    if accelerator is not None:
        advice = f"{PACKAGES[accelerator]}; set JAX_PLATFORMS=cpu to use the CPU without this warning"
        log.warning("%s is visible, but jax runs on the CPU: its plugin is missing or incompatible: %s",
                    accelerator, advice)  # fmt: skip


def is_other_warning(record: logging.LogRecord) -> bool:
    """Logging filter that drops jax's own warning about a missing plugin, which suggests no command."""
    return "may be present on this machine" not in record.getMessage()
