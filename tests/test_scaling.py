"""docs/scaling.md is what benchmarks/scaling.py makes of its figures, and the figures are those of the experiments."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh
from tiny import EXPERIMENTS

from cfgjax.distributed.sharding import AXES
from cfgjax.jobs.preflight import memory
from cfgjax.runs.config import load_file
from cfgjax.training.run import Program

ROOT = Path(__file__).parents[1]
MEASURED = json.loads((ROOT / "docs" / "scaling.json").read_text())
FORWARD = {"imagenet64": 219.4e9, "imagenet128": 613.9e9}  # with the products with padding, which XLA leaves out
DATA_PARALLEL = [case for case in MEASURED["cases"] if case["mesh"]["fsdp"] == 1]


@pytest.fixture
def scaling(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import scaling

    return scaling


def test_the_page_equals_the_output_of_the_script(scaling):
    text = scaling.document(MEASURED)
    assert text == (ROOT / "docs" / "scaling.md").read_text()
    assert "{{" not in text


def test_every_case_occurs_once(scaling):
    wanted = {(c, n, f"data={d},fsdp={n // d}") for c in scaling.CONFIGS for n in scaling.MESHES for d in (n, n // 8)}
    found = [(f["config"], f["devices"], ",".join(f"{k}={v}" for k, v in f["mesh"].items())) for f in MEASURED["cases"]]
    assert set(found) == wanted and len(found) == len(wanted)
    assert {(n, mesh) for _, n, mesh in wanted} == {(n, mesh) for n, of in scaling.MESHES.items() for mesh in of}


@pytest.mark.slow
@pytest.mark.parametrize("name", FORWARD)
def test_bytes_on_each_device_follow_from_the_experiments_shapes(name):
    config = load_file(EXPERIMENTS / f"{name}.py")
    program = Program(config, jax.devices()[:1])
    kept = memory.activations(program) if name == "imagenet128" else {}  # the one that is traced sooner
    for case in (case for case in MEASURED["cases"] if case["config"] == name):
        mesh, told = AbstractMesh(tuple(case["mesh"].values()), AXES), case["bytes_per_device"]
        state = memory.state_bytes(memory.sharded(mesh, program.like))
        assert {part: told[part] for part in state} == state
        assert case["batch"]["global"] == config.train.batch_size
        for count, found in kept.items():
            assert case["activation_bytes"][count]["per_image"] == found.per_image


@pytest.mark.parametrize("case", DATA_PARALLEL, ids=lambda case: f"{case['config']}-{case['devices']}")
def test_data_parallelism_only_sums_the_gradients(case):
    sums = case["collectives"]
    assert 0 <= sums["all-reduce"]["bytes"] - 4 * case["parameters"] < 1000
    assert not any(sums[kind]["bytes"] for kind in sums if kind != "all-reduce")


@pytest.mark.parametrize("case", MEASURED["cases"], ids=lambda case: f"{case['config']}-{case['mesh']}")
def test_a_step_has_the_flops_of_three_forward_passes(case):
    flops = case["flops_per_image"]
    assert np.isclose(flops["step"] / flops["forward"], 3, rtol=0.01)
    assert 0.96 < flops["forward"] / FORWARD[case["config"]] < 1


def test_minimum_times_follow_from_rings_and_published_peaks(scaling):
    v5e, h100 = scaling.CHIPS
    sums = {"kind": "all-reduce", "size": 64, "in_node": 8, "bytes": 1e9}
    assert np.isclose(scaling.collective_seconds(sums, v5e, False), 1e9 * 2 * 63 / 64 / 200e9)
    assert np.isclose(scaling.collective_seconds(sums, v5e, True), 1e9 * 63 / 64 / 200e9)
    assert np.isclose(scaling.collective_seconds(sums, h100, False), 1e9 / 8 * 2 * 7 / 8 / 50e9)
    assert np.isclose(scaling.collective_seconds(sums | {"size": 8}, h100, False), 1e9 * 2 * 7 / 8 / 450e9)
    assert np.isclose(scaling.collective_seconds(sums | {"size": 8, "in_node": 1}, h100, False), 1e9 * 2 * 7 / 8 / 50e9)
    assert scaling.collective_seconds(sums | {"size": 1, "in_node": 1}, h100, False) == 0


@pytest.mark.parametrize("case", MEASURED["cases"], ids=lambda case: f"{case['config']}-{case['mesh']}")
def test_the_time_of_a_step_is_between_its_longest_part_and_the_sum(scaling, case):
    for chip in scaling.CHIPS:
        told = scaling.prediction(case, chip)
        if told is None:
            continue
        assert told["overlapped"] == max(told["seconds"].values()) <= told["apart"] == sum(told["seconds"].values())
        flops = case["batch"]["global"] * case["flops_per_image"]["step"]
        assert told["images_per_second"][1] <= case["devices"] * chip.flops / flops * case["batch"]["global"] * 1.0001
        assert jnp.isfinite(told["overlapped"])
