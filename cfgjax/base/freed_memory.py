"""Lets a process that trains keep the memory that it frees. With another C library than glibc nothing is changed.

XLA:CPU allocates the temporaries of a program each time that it runs. By default glibc maps such large blocks anew each
time, and the system clears every page at its first use.
"""

import ctypes
import os

ARENA_MAX, MMAP_MAX, TRIM_THRESHOLD = -8, -4, -1  # parameters of glibc's mallopt
_prepared: list[bool] = []  # whether use_one_arena has had an effect


def use_one_arena(environ=os.environ):
    """Lets all threads that start later share one arena, for `keep_freed_memory`. Returns whether it was possible.

    glibc always maps the large blocks of threads that have their own arenas. Settings of malloc in the environment take
    precedence.
    """
    if any(name.startswith("MALLOC_") for name in environ) or "glibc.malloc" in environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        ctypes.CDLL(None).mallopt(ARENA_MAX, 1)
    except (AttributeError, OSError, TypeError):  # another C library, or Windows
        return False
    _prepared.append(True)
    return True


def keep_freed_memory():
    """Returns the memory that is free now to the system, such as that of a compilation, and keeps what is freed later.

    Does nothing unless `use_one_arena` has had an effect.
    """
    if _prepared:
        library = ctypes.CDLL(None)
        library.malloc_trim(0)
        library.mallopt(MMAP_MAX, 0)
        library.mallopt(TRIM_THRESHOLD, -1)
