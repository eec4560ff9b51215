"""How much the programs of a test are optimised."""

import jax

QUICKLY = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # environment of processes that compile with little optimisation


def compiles_quickly(item):
    """Whether a test's programs are compiled with little optimisation, which takes about half the time.

    They are, unless the test is marked `optimised`: it computes for long, or compares with processes, which optimise.
    """
    return item.get_closest_marker("optimised") is None


def compile_quickly(quickly):
    """Sets whether programs are compiled with little optimisation from now on.

    JAX would reuse programs that were compiled before a change; their results differ in the last digits.
    """
    if jax.config.values["jax_disable_most_optimizations"] != quickly:
        jax.clear_caches()
        jax.config.update("jax_disable_most_optimizations", quickly)
