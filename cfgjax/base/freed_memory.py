"""What glibc does with freed memory. With other C libraries nothing is changed."""

import contextlib
import ctypes
import os

# parameters of glibc's mallopt with their values: one arena, no blocks of their own pages, and none returned
KEEPING = {"M_ARENA_MAX": (-8, 1), "M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1)}
ABSENT = (AttributeError, OSError, TypeError)  # of a function of another C library, and on Windows


def keep_freed_memory(environ=os.environ):
    """Makes this process reuse freed memory instead of returning it to the system. Returns whether it was possible.

    XLA:CPU allocates the temporaries of a program each time that it runs. By default glibc maps such large blocks anew
    each time, and the system clears every page at its first use. Must be called before jax starts threads: glibc always
    maps the large blocks of a thread with its own arena, hence the single arena. Settings of malloc in the environment
    take precedence.
    """
    if any(name.startswith("MALLOC_") for name in environ) or "glibc.malloc" in environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except ABSENT:
        return False
    for setting in KEEPING.values():
        mallopt(*setting)
    return True


def return_freed_memory():
    """Returns the memory that is free now to the system, such as that of a compilation."""
    with contextlib.suppress(*ABSENT):
        ctypes.CDLL(None).malloc_trim(0)
