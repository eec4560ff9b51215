"""Freed memory is reused."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from tiny import mixture_config

import cfgjax
from cfgjax.base.freed_memory import may_keep
from cfgjax.training import loop

# the products are three temporary arrays of 14 MB on each device
PROGRAM = """
import jax, jax.numpy as jnp, resource
from cfgjax.base.compilation import clearing_seconds, compile_in_blocks
from cfgjax.base.freed_memory import keep_freed_memory
jax.config.update("jax_num_cpu_devices", 2)
mesh = jax.make_mesh((2,), ("a",))
def f(x):
    a = x @ x.mT / 1900
    b = a @ a / 1900
    return (a @ b / 1900 + b) @ x
x = jax.device_put(jnp.ones((2, 1900, 8)), jax.NamedSharding(mesh, jax.P("a")))
lowered = jax.jit(f).lower(x)
f = lowered.compile()
if clearing_seconds(f, calls=1):
    f = compile_in_blocks(lowered)
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

    assert int(run_program(unset).stdout) < int(run_program(by_user).stdout) / 10


@pytest.mark.e2e
@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc")
def test_only_the_program_with_one_block_is_stored_in_the_cache_and_nothing_is_warned_of(tmp_path):
    cache = {"JAX_COMPILATION_CACHE_DIR": f"{tmp_path}", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    found = run_program(os.environ | cache | {"TF_CPP_MIN_LOG_LEVEL": "2"})
    assert not found.stderr
    assert len(list(tmp_path.glob("jit_f-*-cache"))) == 1


def run_program(environ):
    return subprocess.run([sys.executable, "-c", PROGRAM], env=environ, capture_output=True, text=True, check=True)


@pytest.mark.e2e
def test_a_step_that_is_compiled_twice_trains_the_same_parameters(tmp_path, monkeypatch, capsys):
    finals = []
    for seconds in (0, 600):
        monkeypatch.setattr(loop, "clearing_seconds", lambda program, calls, seconds=seconds: seconds)
        run = cfgjax.train(mixture_config(), tmp_path / f"{seconds}")
        finals.append(jax.device_get(run.model.params))
        assert ("saves about 10 minutes" in capsys.readouterr().out) == bool(seconds)
    assert jax.tree.all(jax.tree.map(np.array_equal, *finals))
