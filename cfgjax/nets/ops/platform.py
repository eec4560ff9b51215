"""The platform for which a program is traced, where operations differ between platforms."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_platform: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


def traced_platform() -> str:
    """Returns "cpu", "gpu" or "tpu": jax's own, unless `tracing_for` names another."""
    return _platform.get() or jax.default_backend()


@contextlib.contextmanager
def tracing_for(platform: str) -> Iterator[None]:
    """Context in which programs are traced for a platform that this machine may not have, as `jax.export` names it.

    For "cuda" they have no operations of cuDNN, which can be lowered only where it is installed.
    """
    token = _platform.set(platform)
    try:
        yield
    finally:
        _platform.reset(token)
