"""Lets a process that trains keep the memory that it frees. With another C library than glibc nothing is changed."""

import ctypes
import os
from collections.abc import Mapping

MAPPED_BYTES = 2**25  # glibc's largest M_MMAP_THRESHOLD: larger blocks are always mapped anew
ARENA_HEAP_BYTES = 2**26  # glibc's, of the memory from which a thread allocates smaller blocks
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3


def may_keep(environ: Mapping[str, str] = os.environ) -> bool:
    """Returns whether memory may be kept: the user has not set malloc, and warnings of XLA are hidden, as in commands.

    XLA warns of every block that is larger than it should be, which large networks have.
    """
    set_by_user = any(name.startswith("MALLOC_") for name in environ) or "malloc" in environ.get("GLIBC_TUNABLES", "")
    return not set_by_user and environ.get("TF_CPP_MIN_LOG_LEVEL", "0") >= "2"


def keep_freed_memory() -> None:
    """Returns the memory that is free now to the system, such as that of a compilation, and keeps what is freed later.

    XLA:CPU allocates the temporaries of a program each time that it runs. By default glibc returns them to the system,
    which clears every page at its next use. Applies to blocks of less than MAPPED_BYTES, and only if it `may_keep`.
    """
    if not may_keep():
        return
    try:
        library = ctypes.CDLL(None)
        trim, mallopt = library.malloc_trim, library.mallopt
    except (AttributeError, OSError, TypeError):  # another C library, or Windows
        return
    trim(0)
    mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
    mallopt(M_TRIM_THRESHOLD, -1)  # the largest size
    mallopt(M_TOP_PAD, ARENA_HEAP_BYTES)  # otherwise the heap of an arena that is free is unmapped in any case
