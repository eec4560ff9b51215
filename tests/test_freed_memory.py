"""Freed memory is reused."""

import os
import subprocess
import sys

import pytest

from cfgjax.base.freed_memory import keep_freed_memory

# the temporary array has 200 MB, which are 49,000 pages
PROGRAM = """
import jax, jax.numpy as jnp, resource
{before}
jax.config.update("jax_num_cpu_devices", 2)
mesh = jax.make_mesh((2,), ("a",))
x = jax.device_put(jnp.ones((2, 5000, 5000)), jax.NamedSharding(mesh, jax.P("a")))
f = jax.jit(lambda x: (x @ x).sum((1, 2)))
pages = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
f(x).block_until_ready()
before = pages()
f(x).block_until_ready()
print(pages() - before)
"""
KEEP = "from cfgjax.base.freed_memory import keep_freed_memory; assert keep_freed_memory()"


@pytest.mark.parametrize("given", [{"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=10"}])
def test_settings_of_malloc_in_the_environment_are_not_changed(given):
    assert not keep_freed_memory(given)


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_a_program_that_runs_again_reuses_the_memory_of_its_temporaries():
    env = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}

    def faults(before):
        command = [sys.executable, "-c", PROGRAM.format(before=before)]
        return int(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)

    assert faults(KEEP) < faults("") / 10
