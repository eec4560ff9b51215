"""How much the programs of a test are optimised."""

import contextlib

import jax


@contextlib.contextmanager
def hurrying():
    """Programs are compiled with little optimisation and dropped at the end.

    JAX would reuse them in later tests of the same process. Their results differ in the last digits from those of
    optimised programs, such as those of the processes that a test starts.
    """
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)
        jax.clear_caches()
