"""Compiling: where the commands keep what they compiled, for the next time, and how much they ask of XLA:CPU."""

import contextlib
import hashlib
import os
import platform
import sys
from pathlib import Path

from cfgjax.base.caches import user_cache

MOST_BYTES = 2_000_000_000
LEFT_BYTES = 1_500_000_000
LEAST_SECONDS = "0.3"  # programs that compile faster than this are not kept


def keep_programs(environ=os.environ):
    """Has jax keep compiled programs, here and in processes started from here, in the user's cache folder: it, or None.

    None, and nothing is changed, where JAX_COMPILATION_CACHE_DIR is set, empty too, where JAX_ENABLE_COMPILATION_CACHE
    says no, and where the folder cannot be written. Of a folder beyond MOST_BYTES the programs not used for longest go.
    """
    if "JAX_COMPILATION_CACHE_DIR" in environ:
        return None
    if environ.get("JAX_ENABLE_COMPILATION_CACHE", "1").lower() in ("0", "false", "no", "n", "off", "f"):
        return None
    try:
        folder = cache_folder(environ)
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            return None
        prune(folder.parent)
    except (OSError, RuntimeError):  # RuntimeError: there is no home
        return None
    environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", LEAST_SECONDS)
    environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    if environ is os.environ and "jax" in sys.modules:  # which reads the environment when it is imported
        import jax

        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update(
            "jax_persistent_cache_min_compile_time_secs", float(environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"])
        )
        jax.config.update(
            "jax_persistent_cache_min_entry_size_bytes", int(environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"])
        )
    return folder


def optimised(level):
    """What to tell XLA for a program: on CPU LLVM's level of optimisation, of which XLA's own is the third.

    The second makes a training step as fast as the third, and compiles quicker. None where jax was told to hurry.
    """
    import jax

    hurried = jax.config.values["jax_disable_most_optimizations"]
    return {"xla_backend_optimization_level": level} if jax.default_backend() == "cpu" and not hurried else None


def cache_folder(environ):
    """jax/MACHINE in the user's cache folder: a home may be shared by machines of several kinds."""
    return user_cache(environ) / "jax" / f"{platform.machine()}-{processor()}"


def processor():
    """A word for the kind of processor and the number of cores at hand, by both of which XLA:CPU decides."""
    told = {platform.processor()}
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        told |= {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return hashlib.sha256("\n".join([*sorted(told), str(cores)]).encode()).hexdigest()[:12]


def prune(folder, most=MOST_BYTES, left=LEFT_BYTES):
    """Removes the files below folder that were not used for longest until `left` bytes remain, if it has over `most`.

    Files that other processes remove meanwhile are passed over.
    """
    files = []
    for path in folder.glob("*/*"):
        with contextlib.suppress(FileNotFoundError):
            stat = path.stat()
            files.append((max(stat.st_atime, stat.st_mtime), stat.st_size, path))
    total = sum(size for _, size, _ in files)
    if total <= most:
        return
    for _, size, path in sorted(files):
        if total <= left:
            return
        path.unlink(missing_ok=True)
        total -= size
