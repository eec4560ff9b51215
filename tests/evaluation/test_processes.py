"""Two processes that know each other, on the CPU, as hosts of one machine."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_frontier import GRID, Ran, assert_close, trained

import cfgjax
from cfgjax.distributed import collectives
from cfgjax.evaluation.features.networks import exact

pytestmark = [pytest.mark.e2e, pytest.mark.optimised]  # as the processes with which they are compared
HERE = Path(__file__).parent
SCRIPT = """
import json
import sys

import jax

jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_default_matmul_precision", "highest")
port, index, workdir, folder = sys.argv[1], int(sys.argv[2]), *sys.argv[3:]
jax.distributed.initialize(f"localhost:{port}", 2, index)
from test_processes import check_exchange, evaluate

check_exchange()
rows, drawn = evaluate(workdir, folder)
print(json.dumps({"rows": rows, "drawn": drawn}))
"""


def own(index):
    """Arrays of process `index`: of another length and other bits in each."""
    rng = np.random.default_rng(index)
    bits = rng.integers(0, 2**63, 3 + 4 * index).view(np.float64)
    return {"bits": bits, "count": np.array(2**53 + index), "points": rng.normal(size=(5 - 5 * index, 2))}


def check_exchange():
    """The laws of `collectives` that need two of them; run in each."""
    import jax

    mine, all_of_them = own(jax.process_index()), [own(0), own(1)]
    for found, given in zip(collectives.allgather(mine), all_of_them, strict=True):
        for name, array in given.items():
            assert found[name].dtype == array.dtype and found[name].tobytes() == array.tobytes(), name
    together = collectives.concatenated({"points": mine["points"]})["points"]
    assert np.array_equal(together, np.concatenate([given["points"] for given in all_of_them]))
    assert collectives.summed({"count": mine["count"]})["count"] == 2**54 + 1


def evaluate(workdir, folder):
    """(rows, samples drawn) of a frontier of the run in workdir."""
    model = cfgjax.load(workdir)
    ran = Ran(workdir, Path(folder), model, exact(model.settings.data), GRID)
    return ran.rows, ran.drawn


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("processes") / "run")


def two(workdir, folder):
    """What the two processes print, in their order."""
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port = found.getsockname()[1]
    env = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), *sys.path]),
    }
    command = lambda i: [sys.executable, "-c", SCRIPT, str(port), str(i), str(workdir), str(folder)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = [subprocess.Popen(command(i), env=env, **pipes) for i in (0, 1)]
    try:
        told = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
            process.communicate()
    for process, (_, err) in zip(started, told, strict=True):
        assert process.returncode == 0, err[-3000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in told]


def test_two_processes_measure_the_result_of_one(workdir, tmp_path):
    rows, drawn = evaluate(workdir, tmp_path / "one")
    first, second = two(workdir, tmp_path / "two")
    assert first["rows"] == second["rows"]
    assert_close(first["rows"], rows)
    assert sum(first["drawn"]) == sum(drawn)
    again, _ = evaluate(workdir, tmp_path / "two")
    assert again == first["rows"]
