"""A CPU's cores as devices."""

import os
import subprocess
import sys

import pytest
from tiny import EXPERIMENTS, settings

from cfgjax.cli.train import batch_parts
from cfgjax.distributed.cores import MOST, devices_for, usable_cores
from cfgjax.runs.config import load_file


@pytest.mark.parametrize(
    ("batch", "cores", "devices"),
    [(64, 1, 1), (64, 2, 2), (64, 6, 4), (64, 64, MOST), (12, 8, 4), (10, 8, 2), (7, 8, 1), (1, 8, 1)],
)
def test_devices_are_a_power_of_two_that_the_batch_and_the_cores_allow(batch, cores, devices):
    assert devices_for(batch, cores) == devices


@pytest.mark.parametrize(
    ("text", "most"), [("max 100000", 10**6), ("100000 100000", 1), ("50000 100000", 1), ("", 10**6)]
)
def test_a_containers_quota_bounds_the_cores(tmp_path, text, most):
    there = usable_cores(tmp_path / "absent")
    assert there >= 1
    (tmp_path / "cpu.max").write_text(text)
    assert usable_cores(tmp_path / "cpu.max") == min(there, most)


def test_a_config_that_sets_the_mesh_is_not_changed():
    config = load_file(EXPERIMENTS / "digits.py")
    assert batch_parts(settings(config)) == config.train.batch_size
    config.train.accumulate_steps = 4
    assert batch_parts(settings(config)) == config.train.batch_size // 4
    config.mesh.fsdp = 2
    assert batch_parts(settings(config)) == 1


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("before", "environ", "devices"),
    [("", {}, "4"), ("", {"JAX_NUM_CPU_DEVICES": "3"}, "3"), ("jax.devices(); ", {}, "1")],
    ids=["open", "chosen", "in use"],
)
def test_choices_of_the_user_or_of_a_running_jax_are_not_changed(before, environ, devices):
    code = (
        f"import cfgjax.distributed.cores as cores, jax; cores.usable_cores = lambda: 4; {before}"
        "cores.use_cores(64); print(len(jax.devices('cpu')))"
    )
    env = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"} | environ
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == devices
