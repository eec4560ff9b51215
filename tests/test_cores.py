"""A CPU's cores as devices."""

import os
import subprocess
import sys

import numpy as np
import pytest
from command import ROOT
from runs import train
from tiny import EXPERIMENTS, digits_config, settings

from cfgjax.base.cores import usable_cores, visible_cores
from cfgjax.base.files import read_npz
from cfgjax.distributed import cpu_devices
from cfgjax.distributed.cpu_devices import MAX_CPU_DEVICES, devices_for
from cfgjax.runs.config import load_file
from cfgjax.training.run import batch_parts


@pytest.mark.parametrize(
    ("batch", "cores", "devices"),
    [(64, 1, 1), (64, 2, 2), (64, 6, 4), (64, 64, MAX_CPU_DEVICES), (12, 8, 4), (10, 8, 2), (7, 8, 1), (1, 8, 1)],
)
def test_devices_are_a_power_of_two_that_the_batch_and_the_cores_allow(batch, cores, devices):
    assert devices_for(batch, cores) == devices


QUOTAS = {  # files of the control groups: the cores that they allow
    "version 2": ("0::/", {"cpu.max": "100000 100000"}, 1),
    "half a core": ("0::/", {"cpu.max": "50000 100000"}, 1),
    "two and a half": ("0::/", {"cpu.max": "250000 100000"}, 2),
    "unlimited": ("0::/", {"cpu.max": "max 100000"}, None),
    "of a group that contains it": ("0::/job/step", {"job/cpu.max": "100000 100000", "job/step/cpu.max": "max 1"}, 1),
    "of the host": ("0::/host/name", {"cpu.max": "100000 100000"}, 1),
    "version 1": ("4:cpu,cpuacct:/a", {"cpu/a/cpu.cfs_quota_us": "99999", "cpu/a/cpu.cfs_period_us": "100000"}, 1),
    "version 1, unlimited": ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
    "of memory": ("4:memory:/", {"memory/cpu.max": "100000 100000"}, None),
    "damaged": ("0::/", {"cpu.max": ""}, None),
    "none": ("", {}, None),
}


@pytest.mark.parametrize("case", QUOTAS)
def test_the_quota_of_a_container_or_job_bounds_the_cores(case, tmp_path, monkeypatch):
    monkeypatch.setattr("cfgjax.base.cores.visible_cores", lambda: 64)
    own, files, allowed = QUOTAS[case]
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert usable_cores(tmp_path / "groups", tmp_path / "own") == (allowed or 64)


def test_without_control_groups_the_visible_cores_count(tmp_path):
    assert usable_cores(tmp_path / "absent", tmp_path / "absent") == visible_cores() >= 1


def test_a_config_that_sets_the_mesh_is_not_changed():
    config = load_file(EXPERIMENTS / "digits.py")
    assert batch_parts(settings(config)) == config.train.batch_size
    config.train.accumulate_steps = 4
    assert batch_parts(settings(config)) == config.train.batch_size // 4
    config.mesh.fsdp = 2
    assert batch_parts(settings(config)) == 1


def test_training_leaves_out_cores_that_its_batch_cannot_use_but_no_devices_that_the_user_chose(monkeypatch):
    assert cpu_devices.devices_of_batch(12) is None
    monkeypatch.setattr(cpu_devices, "_chosen", [8])
    assert [len(cpu_devices.devices_of_batch(parts)) for parts in (64, 12, 7)] == [8, 4, 1]


def python(code, **environ):
    """The last line that a new process prints."""
    unset = ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS")
    env = {name: value for name, value in os.environ.items() if name not in unset} | environ
    command = [sys.executable, "-c", code]
    options = {"cwd": ROOT, "env": env, "capture_output": True, "text": True, "check": True}
    return subprocess.run(command, **options).stdout.splitlines()[-1]


FOUR_CORES = "import cfgjax.distributed.cpu_devices as cores, jax; cores.usable_cores = lambda: 4; "
CHOSEN = "jax.config.update('jax_num_cpu_devices', 3); "


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("before", "environ", "devices"),
    [
        ("", {}, "4"),
        ("", {"JAX_NUM_CPU_DEVICES": "3"}, "3"),
        ("", {"XLA_FLAGS": "--xla_force_host_platform_device_count=3"}, "3"),
        (CHOSEN, {}, "3"),
        ("jax.devices(); ", {}, "1"),
    ],
    ids=["open", "chosen", "by a flag", "in Python", "in use"],
)
def test_choices_of_the_user_or_of_a_running_jax_are_not_changed(before, environ, devices):
    assert python(f"{FOUR_CORES}{before}cores.use_cores(); print(len(jax.devices('cpu')))", **environ) == devices


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    train(digits_config(**{"mesh.data": -1}), folder)
    return folder


@pytest.mark.e2e
@pytest.mark.parametrize(("before", "devices"), [("", 4), ("jax.devices(); ", 1)], ids=["unused", "in use"])
def test_a_loaded_model_has_the_cores_as_devices_unless_jax_was_used(before, devices, workdir):
    code = f"{FOUR_CORES}{before}import cfgjax; print(cfgjax.load({str(workdir)!r}).mesh.size)"
    assert python(code) == f"{devices}"


@pytest.mark.e2e
def test_after_loading_a_model_any_batch_can_be_trained(workdir, tmp_path):
    code = (
        f"{FOUR_CORES}import cfgjax, sys; cfgjax.load({str(workdir)!r}); sys.path.insert(0, 'tests'); import tiny; "
        "config = tiny.digits_config(**{'mesh.data': -1, 'train.batch_size': 6}); "
        f"print(cfgjax.train(config, {str(tmp_path / 'run')!r}).done)"
    )
    assert python(code) == "True"


@pytest.mark.e2e
@pytest.mark.parametrize("number", [1, 5])
def test_the_command_draws_the_same_images_on_one_and_on_two_cores(number, workdir, tmp_path):
    images = {}
    for devices in ("1", "2"):
        out = tmp_path / f"{devices}.npz"
        words = f"sample --workdir={workdir} --guidance=1 --num_samples={number} --out={out}".split()
        env = {**os.environ, "JAX_NUM_CPU_DEVICES": devices}
        subprocess.run([sys.executable, "-m", "cfgjax", *words], cwd=ROOT, env=env, check=True, capture_output=True)
        images[devices] = read_npz(out)["arr_0"].astype(int)
    assert images["1"].shape == (number, 8, 8, 1)
    assert np.abs(images["1"] - images["2"]).max() <= 1
