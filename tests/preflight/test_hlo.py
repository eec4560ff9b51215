"""Collectives of compiled programs against what the mathematics must send."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tiny import mixture_config

from cfgjax.distributed.sharding import make_mesh
from cfgjax.jobs.preflight.hlo import Collective, array_bytes, by_group, by_kind, find_collectives, first_group
from cfgjax.jobs.preflight.step_figures import compiled_figures
from cfgjax.training.run import Program

SCALARS = 1024  # bytes at most of what is summed besides the gradients: the loss, the metrics


def compiled_collectives(function, mesh, spec, result, shape=(64, 32)):
    """The collectives of function of one float32 array."""
    given = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
    jitted = jax.jit(function, out_shardings=NamedSharding(mesh, result))
    return find_collectives(jitted.lower(given).compile().as_text())


def step_figures(**overrides):
    program = Program(mixture_config(**{"model.width": 256, "train.batch_size": 64, **overrides}))
    return program, compiled_figures(program)["collectives"]


def gradient_bytes(program):
    return sum(4 * leaf.size for leaf in jax.tree.leaves(program.like.params))


@pytest.mark.slow
def test_data_parallel_sums_the_gradients_and_a_few_scalars():
    program, exchanged = step_figures(**{"mesh.data": 8})
    assert 0 <= exchanged["all-reduce"]["bytes"] - gradient_bytes(program) < SCALARS
    assert {kind for kind, sums in exchanged.items() if sums["bytes"]} == {"all-reduce"}
    assert exchanged["all-reduce"]["wire_bytes"] == int(exchanged["all-reduce"]["bytes"] * 2 * 7 / 8)


def test_one_device_sends_nothing():
    found = compiled_figures(Program(mixture_config(**{"mesh.data": 1}), jax.devices()[:1]))
    assert not any(sums["bytes"] for sums in found["collectives"].values())


@pytest.mark.slow
def test_split_parameters_are_gathered():
    _, exchanged = step_figures(**{"mesh.data": 2, "mesh.fsdp": 4})
    kernels = 4 * 256 * 256  # bytes of one of the hidden layers'
    assert exchanged["all-gather"]["bytes"] >= kernels


@pytest.mark.slow
def test_gradients_are_summed_in_every_accumulated_part():
    program, whole = step_figures(**{"mesh.data": 8})
    _, parts = step_figures(**{"mesh.data": 8, "train.accumulate_steps": 4})
    assert 0 <= parts["all-reduce"]["bytes"] - 4 * gradient_bytes(program) < 4 * SCALARS
    assert parts["all-reduce"]["count"] > whole["all-reduce"]["count"]


def test_a_gathered_array_counts_whole_and_goes_round_a_ring():
    mesh = make_mesh(data=2, fsdp=4)
    (found,) = compiled_collectives(lambda a: a, mesh, PartitionSpec("fsdp"), PartitionSpec())
    assert (found.kind, found.bytes, found.group, found.times) == ("all-gather", 64 * 32 * 4, (0, 1, 2, 3), 1)
    assert found.wire_bytes == 64 * 32 * 4 * 3 / 4
    (found,) = compiled_collectives(lambda a: a, mesh, PartitionSpec("data"), PartitionSpec())
    assert found.group == (0, 4)
    assert by_group([found], node=4) == [{"kind": "all-gather", "size": 2, "in_node": 1, "bytes": 64 * 32 * 4}]


def test_what_is_in_a_loop_counts_as_often_as_it_runs():
    mesh = make_mesh(data=8, fsdp=1)
    body = lambda total, _: (jnp.tanh(total + jnp.sum(total, axis=0)), None)
    loop = lambda a: jax.lax.scan(body, a, length=5)[0]
    found = compiled_collectives(loop, mesh, PartitionSpec("data"), PartitionSpec("data"))
    assert by_kind(found)["all-reduce"] == {"count": 5, "bytes": 5 * 32 * 4, "wire_bytes": 5 * 32 * 4 * 2 * 7 // 8}


@pytest.mark.parametrize(
    ("written", "group"),
    [
        ("replica_groups={{0,2},{1,3}}", (0, 2)),
        ("replica_groups=[4,2]<=[8]", (0, 1)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", (0, 4)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", tuple(range(8))),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", (0, 1, 2, 3)),
    ],
)
def test_groups_are_read_in_all_of_xlas_ways(written, group):
    assert first_group(f"  %x = f32[8] all-reduce(%y), channel_id=1, {written}, to_apply=%add") == group


def test_groups_that_cannot_be_read_and_loops_of_unknown_length_raise():
    with pytest.raises(ValueError, match="cannot read the groups"):
        first_group("  %x = f32[8] all-reduce(%y), replica_groups=mesh['a'=8] {'a':(2)4}")
    text = "\n".join(
        [
            "%body (x: f32[8]) -> f32[8] {",
            "  ROOT %s = f32[8] all-reduce(%x), replica_groups={{0,1}}, to_apply=%add",
            "}",
            "ENTRY %main (x: f32[8]) -> f32[8] {",
            "  ROOT %w = f32[8] while(%x), condition=%cond, body=%body",
            "}",
        ]
    )
    with pytest.raises(ValueError, match="unknown number of times"):
        find_collectives(text)
    known = text.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}')
    assert find_collectives(known) == [Collective("all-reduce", 32, (0, 1), 3)]


def test_bytes_of_arrays_and_tuples_as_xla_writes_them():
    assert array_bytes("f32[8,3]{1,0}") == 96
    assert array_bytes("(s32[], bf16[4]{0}, /*index=5*/pred[2,2])") == 4 + 8 + 4
    assert array_bytes("f8e4m3fn[16]") == 16
    assert np.isclose(array_bytes("c64[2]"), 16)
