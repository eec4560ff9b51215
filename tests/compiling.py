"""How much the programs of a test are optimised."""

import jax

TIERS = ("slow", "e2e", "soak", "slurm")
QUICKLY = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # environment of processes that compile with little optimisation


def compiles_quickly(item):
    """Whether a test's programs are compiled with little optimisation, which takes about half the time.

    They are in the README's command, unless a test is marked `optimised`, and in marked tests that use the fixture
    quick_compilation. Other marked tests may compute for long, or compare with processes, which optimise.
    """
    marked = lambda *names: any(item.get_closest_marker(name) for name in names)
    return "quick_compilation" in item.fixturenames or not marked("optimised", *TIERS)


def compile_quickly(quickly):
    """Sets whether programs are compiled with little optimisation from now on.

    JAX would reuse programs that were compiled before a change; their results differ in the last digits.
    """
    if jax.config.values["jax_disable_most_optimizations"] != quickly:
        jax.clear_caches()
        jax.config.update("jax_disable_most_optimizations", quickly)
