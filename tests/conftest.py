"""Every test sees eight virtual CPU devices; what should run on one device asks for it.

What is compiled is shared, for the length of the session, by its workers and by the commands that tests start.
"""

import gc
import itertools
import os
import shutil
import signal
import tempfile

if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # by nohup; the processes that tests start would inherit it
    signal.signal(signal.SIGHUP, lambda *_: None)
os.environ.setdefault("JAX_PLATFORMS", "cpu")
OWN_CACHE = "JAX_COMPILATION_CACHE_DIR" not in os.environ
if OWN_CACHE:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="cfgjax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

from jaxtyping import install_import_hook  # noqa: E402

# Every call of a function of the package checks its types and shapes, unless JAXTYPING_DISABLE is 1.
# Must come before anything imports them.
install_import_hook("cfgjax", "type_checker.checked")

import jax  # noqa: E402  reads the variables above
import pytest  # noqa: E402
from compiling import compile_quickly, compiles_quickly, use_older_emitter  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
use_older_emitter()
compile_quickly(True)  # what modules compute when they are imported


MODULES = itertools.count(1)


@pytest.fixture(autouse=True, scope="module")
def programs_are_dropped_now_and_then():
    """Compiled programs would add up to gigabytes in each worker; dropped too often, they are compiled too often."""
    yield
    if next(MODULES) % 6 == 0:
        jax.clear_caches()


def pytest_collection_finish():
    """Tracing makes millions of objects; a tenth of its time would go to searching them for cycles again and again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


@pytest.hookimpl(tryfirst=True)  # before fixtures, which compile too
def pytest_runtest_setup(item):
    compile_quickly(compiles_quickly(item))


def pytest_sessionfinish():
    if OWN_CACHE:  # false in the workers, which have it from the session's own process
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
