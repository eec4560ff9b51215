"""The benchmarks run and report; how fast is no matter here."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FIGURES = {
    "parameters", "batch_size", "images_per_second", "images_per_second_min", "images_per_second_max",
    "compile_seconds", "flops_per_image", "flops_per_second", "program_bytes", "resident_bytes",
}  # fmt: skip
OWN = {
    "train_step": (["--steps_per_repeat=2"], {"steps_per_repeat": 2, "steps_per_dispatch": 2}, "ms_per_step"),
    "sampling": (["--samplers=ddim"], {"sampler": "ddim", "num_steps": 4}, "ms_per_network_call"),
}


def run(name, *flags):
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("name", OWN)
def test_figures_are_positive_finite_and_ordered(name):
    flags, settings, own_figure = OWN[name]
    ran = run(name, "--configs=tiny", "--repeats=2", "--json=-", *flags)
    assert ran.returncode == 0, ran.stderr
    report = json.loads(ran.stdout)
    assert report["benchmark"] == name
    assert all(report[fact] for fact in ("device", "jax", "num_devices"))
    (result,) = report["results"]
    assert {"config": "tiny", "batch_size": 4, "dtype": "float32", **settings}.items() <= result.items()
    assert all(0 < result[figure] < math.inf for figure in FIGURES | {own_figure})
    assert len(result["repeat_seconds"]) == 2
    assert result["images_per_second_min"] <= result["images_per_second"] <= result["images_per_second_max"]
    assert "images/s" in ran.stderr  # the table makes way for the JSON


@pytest.mark.parametrize("name", OWN)
def test_an_unknown_configuration_fails_with_the_nearest_name(name):
    ran = run(name, "--configs=digits,smal8")
    assert ran.returncode == 2
    assert ran.stderr == f"{name}.py: error: unknown configuration 'smal8', did you mean 'small8'?\n"
    assert not ran.stdout
