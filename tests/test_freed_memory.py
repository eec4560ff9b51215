"""Freed memory is reused."""

import os
import subprocess
import sys

import pytest

from cfgjax.base.freed_memory import use_one_arena

# the product is a temporary array of 100 MB on each device
PROGRAM = """
import jax, jax.numpy as jnp, resource
{before}
jax.config.update("jax_num_cpu_devices", 2)
mesh = jax.make_mesh((2,), ("a",))
x = jax.device_put(jnp.ones((2, 5000, 8)), jax.NamedSharding(mesh, jax.P("a")))
f = jax.jit(lambda x: jnp.sin(x @ x.mT).sum((1, 2)))
pages = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
f(x).block_until_ready()
{compiled}
for _ in range(3):
    f(x).block_until_ready()
before = pages()
f(x).block_until_ready()
print(pages() - before)
"""
KEEP = "from cfgjax.base.freed_memory import keep_freed_memory, use_one_arena; assert use_one_arena()"


@pytest.mark.parametrize("given", [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=10"}])
def test_settings_of_malloc_in_the_environment_are_not_changed(given):
    assert not use_one_arena(given)


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_a_program_that_runs_again_reuses_the_memory_of_its_temporaries():
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}

    def faults(before, compiled):
        command = [sys.executable, "-c", PROGRAM.format(before=before, compiled=compiled)]
        return int(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)

    assert faults(KEEP, "keep_freed_memory()") < faults("", "") / 10
