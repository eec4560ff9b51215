"""Freed memory is reused."""

import os
import subprocess
import sys

import pytest

from cfgjax.base.freed_memory import may_keep

# the products x xᵀ are temporary arrays of 14 MB on each device
PROGRAM = """
import jax, jax.numpy as jnp, resource
from cfgjax.base.compilation import optimised
from cfgjax.base.freed_memory import keep_freed_memory
from cfgjax.training.step import TEMPORARY_BYTES
jax.config.update("jax_num_cpu_devices", 2)
mesh = jax.make_mesh((2,), ("a",))
def f(x):
    for _ in range(3):
        x = (x @ x.mT) @ x / 1900
    return x
x = jax.device_put(jnp.ones((2, 1900, 8)), jax.NamedSharding(mesh, jax.P("a")))
f = jax.jit(f, compiler_options=optimised(2, TEMPORARY_BYTES))
pages = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
f(x).block_until_ready()
keep_freed_memory()
faults = []
for _ in range(6):  # the first calls, and a thread that computes another device for the first time, need new pages
    before = pages()
    f(x).block_until_ready()
    faults.append(pages() - before)
print(min(faults))
"""


@pytest.mark.parametrize(
    ("environ", "kept"),
    [
        ({"TF_CPP_MIN_LOG_LEVEL": "2"}, True),
        ({"TF_CPP_MIN_LOG_LEVEL": "2", "MALLOC_ARENA_MAX": "2"}, False),
        ({"TF_CPP_MIN_LOG_LEVEL": "2", "GLIBC_TUNABLES": "glibc.malloc.mmap_max=10"}, False),
        ({"TF_CPP_MIN_LOG_LEVEL": "1"}, False),
        ({}, False),
    ],
)
def test_memory_is_kept_in_commands_unless_the_environment_has_settings_of_malloc(environ, kept):
    assert may_keep(environ) == kept


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_a_program_that_runs_again_reuses_the_memory_of_its_temporaries_unless_the_user_sets_malloc():
    unset = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    unset |= {"TF_CPP_MIN_LOG_LEVEL": "2"}
    by_user = unset | {"MALLOC_MMAP_THRESHOLD_": "65536"}

    def faults(environ):
        command = [sys.executable, "-c", PROGRAM]
        return int(subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout)

    assert faults(unset) < faults(by_user) / 10
