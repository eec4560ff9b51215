"""How much the programs of a test are optimised."""

import functools

import jax

# XLA:CPU's emitter of loops through MLIR takes half of the CPU time of a compilation; its older one gives equal results
# up to rounding. Versions of jax for newer Pythons do not have it, and XLA ends a process that sets an unknown flag.
OLDER_EMITTER = {"xla_cpu_use_fusion_emitters": False} if jax.__version_info__ < (0, 11) else {}
# environment of processes that compile with little optimisation
QUICKLY = {
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "XLA_FLAGS": " ".join(f"--{name}={value:d}" for name, value in OLDER_EMITTER.items()),
}


def compiles_quickly(item):
    """Whether a test's programs are compiled with little optimisation, which takes about a third of the time.

    They are, unless the test is marked `optimised`: it computes for long, or compares to the last bit, or with
    processes, which optimise.
    """
    return item.get_closest_marker("optimised") is None


def compile_quickly(quickly):
    """Sets whether programs are compiled with little optimisation from now on.

    JAX would reuse programs that were compiled before a change; their results differ in the last digits.
    """
    if jax.config.values["jax_disable_most_optimizations"] != quickly:
        jax.clear_caches()
        jax.config.update("jax_disable_most_optimizations", quickly)


def use_older_emitter():
    """Makes quick compilations in this process use the older emitter. JAX has no option of this for all programs."""
    if not OLDER_EMITTER:
        return
    from jax._src import compiler

    get_options = compiler.get_compile_options

    @functools.wraps(get_options)
    def get(*args, env_options_overrides=None, **options):
        quickly = jax.config.values["jax_disable_most_optimizations"]
        given = (OLDER_EMITTER if quickly else {}) | (env_options_overrides or {})
        return get_options(*args, env_options_overrides=given, **options)

    compiler.get_compile_options = get
