"""Compilation: the cache of compiled programs and the optimisation level of XLA:CPU."""

import contextlib
import hashlib
import os
import platform
import sys
import warnings
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfgjax.base.caches import user_cache
from cfgjax.base.cores import visible_cores
from cfgjax.base.freed_memory import MAPPED_BYTES, may_keep

if TYPE_CHECKING:
    from jax.stages import Compiled, Lowered

MOST_BYTES = 2_000_000_000
LEFT_BYTES = 1_500_000_000
LEAST_SECONDS = "0"  # of compilation: a command runs dozens of programs that each compile within milliseconds
CLEARING_SECONDS = 0.5e-9  # for each byte of temporaries on each device, measured with two cores


def keep_programs(environ: MutableMapping[str, str] = os.environ) -> Path | None:
    """Enables jax's persistent compilation cache. Returns its folder, or None if nothing was changed.

    Child processes inherit the setting. Nothing is changed if JAX_COMPILATION_CACHE_DIR is set (even to an empty
    string), if JAX_ENABLE_COMPILATION_CACHE is false, or if the folder is not writable. If the cache is larger than
    MOST_BYTES, the least recently used programs are removed.
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
    except (OSError, RuntimeError):  # RuntimeError: there is no home directory
        return None
    environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", LEAST_SECONDS)
    environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
    if environ is os.environ and "jax" in sys.modules:  # jax reads the environment only when it is imported
        import jax

        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update(
            "jax_persistent_cache_min_compile_time_secs", float(environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"])
        )
        jax.config.update(
            "jax_persistent_cache_min_entry_size_bytes", int(environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"])
        )
    return folder


def optimised(level: int) -> dict[str, int] | None:
    """Returns compiler options that set LLVM's optimisation level on CPU, or None on other devices.

    XLA's default is level 3. At level 2 a training step is as fast and compiles in less time. Also returns None if
    jax_disable_most_optimizations is set.
    """
    import jax

    hurried = jax.config.values["jax_disable_most_optimizations"]
    return {"xla_backend_optimization_level": level} if jax.default_backend() == "cpu" and not hurried else None


def clearing_seconds(program: "Compiled", calls: int) -> float:
    """Returns about how long the system clears memory for `calls` calls of a compiled program on CPU; 0 if it need not.

    XLA:CPU allocates all temporaries in one block in each call, and glibc maps blocks of more than MAPPED_BYTES anew.
    Also returns 0 if the process may not keep freed memory.
    """
    import jax

    if jax.default_backend() != "cpu" or not may_keep():
        return 0.0
    analysis = program.memory_analysis()
    assert analysis is not None  # as on every CPU
    temporaries = analysis.temp_size_in_bytes
    return CLEARING_SECONDS * temporaries * calls if temporaries > MAPPED_BYTES else 0.0


def compile_in_blocks(lowered: "Lowered") -> "Compiled":
    """Returns a lowered program compiled with its temporaries in blocks that `keep_freed_memory` keeps.

    jax cannot store such a program in its cache.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Error writing persistent compilation cache entry")
        options: dict[str, Any] = {"xla_multiheap_size_constraint_per_heap": MAPPED_BYTES // 2}
        return lowered.compile(compiler_options=options)


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Returns jax/MACHINE in the user's cache folder. Machines of several kinds may share a home directory."""
    return user_cache(environ) / "jax" / f"{platform.machine()}-{processor()}"


def processor() -> str:
    """Returns a hash of the processor model and the number of visible cores; XLA:CPU's code depends on both."""
    facts = {platform.processor()}
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        facts |= {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return hashlib.sha256("\n".join([*sorted(facts), str(visible_cores())]).encode()).hexdigest()[:12]


def prune(folder: Path, most: int = MOST_BYTES, left: int = LEFT_BYTES) -> None:
    """Removes the least recently used files below folder until `left` bytes remain, if it has more than `most` bytes.

    Files that other processes remove at the same time are skipped.
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
