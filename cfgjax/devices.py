"""The devices that jax runs on: errors in the user's terms, and a warning where an accelerator stays unused."""

import logging
import os
from pathlib import Path

from cfgjax.errors import UsageError

log = logging.getLogger("cfgjax")

NVIDIA_DEVICES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg", "/proc/driver/nvidia/gpus")  # dxg: of WSL
TPU_DEVICES = ("/dev/accel0", "/dev/vfio/0")
PLATFORM_VARIABLES = ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")  # the second is jax's older name for the same
HIDDEN = ("", "-1", "NoDevFiles", "none", "void")  # values of CUDA_VISIBLE_DEVICES that leave no GPU
PACKAGES = {  # kind of accelerator: how jax is made to use it
    "an NVIDIA GPU": "pip install 'jax[cuda13]' ('jax[cuda12]' for drivers older than 580)",
    "a TPU": "pip install 'jax[tpu]'",
}


def import_jax():
    """Imports jax. Raises UsageError where an environment variable has a value that jax does not accept."""
    try:
        import jax  # noqa: F401
    except ValueError as e:
        raise UsageError(f"jax does not accept an environment variable: {' '.join(str(e).split())}") from e


def open_devices():
    """Starts jax's backend, and warns where an accelerator is visible but jax runs on the CPU.

    Raises UsageError, naming the variable and what is available, where the requested platform cannot start.
    """
    import jax

    asked = {name: jax.config.values[name.lower()] for name in PLATFORM_VARIABLES}
    name, requested = next(((name, value) for name, value in asked.items() if value), (None, None))
    noise = logging.getLogger("jax._src.xla_bridge")
    noise.addFilter(is_no_suggestion)
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as e:  # AssertionError: a plugin that finds no GPU is passed over
        if not requested:
            raise
        reason = (
            " ".join(str(e).split()).partition(" (set JAX_PLATFORMS")[0]
            or "no device was found, or the plugin is missing"
        )
        available = ", ".join(available_platforms())
        raise UsageError(f"{name}={requested!r} cannot start; available here: {available} ({reason})") from e
    finally:
        noise.removeFilter(is_no_suggestion)
    if jax.default_backend() == "cpu" and (requested or "").partition(",")[0] != "cpu" and jax.process_index() == 0:
        warn_of_unused(visible_accelerator())


def available_platforms():
    """Names of the platforms that jax can start, after the requested one could not."""
    import jax

    for name in PLATFORM_VARIABLES:
        jax.config.update(name.lower(), "")
    try:
        return sorted({"cpu", *(device.platform for device in jax.devices())})
    except (RuntimeError, AssertionError):
        return ["cpu"]


def visible_accelerator(environ=os.environ):
    """The key of PACKAGES for what this machine shows of accelerators, or None."""
    hidden = environ.get("CUDA_VISIBLE_DEVICES", "all") in HIDDEN or environ.get("NVIDIA_VISIBLE_DEVICES") in HIDDEN
    if not hidden and any(Path(device).exists() for device in NVIDIA_DEVICES):
        return "an NVIDIA GPU"
    return "a TPU" if any(Path(device).exists() for device in TPU_DEVICES) else None


def warn_of_unused(accelerator):
    """Warns that jax runs on the CPU although there is an accelerator, a key of PACKAGES or None."""
    if accelerator is not None:
        advice = f"{PACKAGES[accelerator]}; JAX_PLATFORMS=cpu chooses the CPU without this warning"
        log.warning("%s is visible, but jax runs on the CPU: its plugin is missing or does not fit: %s",
                    accelerator, advice)  # fmt: skip


def is_no_suggestion(record):
    """A logging filter without jax's own warning of a missing plugin, which names no command."""
    return "may be present on this machine" not in record.getMessage()
