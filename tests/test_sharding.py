import jax
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from cfgjax.base.errors import UsageError
from cfgjax.distributed.sharding import (
    AXES,
    make_mesh,
    on_part,
    own_rows,
    parameter_sharding,
    parse_mesh,
    part_of_mesh,
    place_batch,
    place_parameters,
    whole,
)


def test_the_data_axis_spans_slices_and_every_fsdp_group_lies_within_one():
    devices = jax.devices()
    mesh = make_mesh(data=4, fsdp=2, slices=2, devices=devices[::-1])
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2}
    halves = mesh.devices.reshape(2, 4)
    assert {device.id for device in halves[0]} == {device.id for device in devices[:4]}
    assert {device.id for device in halves[1]} == {device.id for device in devices[4:]}


@pytest.mark.parametrize(
    ("sizes", "told"),
    [
        ({"data": 3, "fsdp": 2}, "does not match the 8 devices"),
        ({"data": 0}, "sizes must be positive"),
        ({"data": -1, "fsdp": -1}, "at most one may be -1"),
        (
            {"data": 4, "fsdp": 2, "slices": 3},
            "mesh.slices is 3; it must divide the data axis, which has 4 (fsdp has 2)",
        ),
        ({"slices": 0}, "mesh.slices is 0"),
    ],
)
def test_a_mesh_that_does_not_fit_is_reported(sizes, told):
    with pytest.raises(UsageError) as e:
        make_mesh(**sizes)
    assert told in str(e.value)


def test_devices_in_other_slices_than_requested_are_reported():
    class Device:
        def __init__(self, number):
            self.id, self.process_index, self.slice_index = number, number // 2, number // 2

    with pytest.raises(UsageError, match="mesh.slices is 2; the devices are in 4 slices"):
        make_mesh(data=8, slices=2, devices=[Device(number) for number in range(8)])


def test_every_device_gets_the_rows_of_its_position_in_the_mesh():
    shuffled = np.random.default_rng(0).permutation(np.array(jax.devices())).reshape(4, 2)
    mesh = Mesh(shuffled, AXES, axis_types=(AxisType.Auto,) * 2)
    batch = np.arange(2 * 16 * 3).reshape(2, 16, 3)
    rows = own_rows(mesh, 16)
    assert np.array_equal(rows, np.arange(16))
    placed = place_batch(mesh, {"x": batch[:, rows]}, rows, 16, leading=1)["x"]
    assert np.array_equal(placed, batch)
    first = next(shard for shard in placed.addressable_shards if shard.device == shuffled[0, 0])
    assert np.array_equal(first.data, batch[:, :2])


def test_parameters_are_split_and_restored_completely():
    mesh = make_mesh(data=2, fsdp=4)
    params = {"a": np.random.default_rng(0).normal(size=(128, 256)).astype(np.float32), "b": np.ones(3, np.float32)}
    placed = place_parameters(mesh, params)
    assert placed["a"].sharding == parameter_sharding(mesh, params)["a"]
    assert placed["a"].addressable_shards[0].data.size == 128 * 256 // 4
    back = whole(mesh, placed)
    assert all(np.array_equal(back[name], params[name]) for name in params)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32"])
def test_the_devices_of_a_cpu_share_one_copy_of_the_parameters(dtype):
    array = np.arange(1003).astype(dtype)
    placed = place_parameters(make_mesh(), {"a": array, "b": np.float32(2)})
    assert len({shard.data.unsafe_buffer_pointer() for shard in placed["a"].addressable_shards}) == 1
    np.testing.assert_array_equal(placed["a"], array)
    array[:] = 0
    assert placed["a"].dtype == dtype and placed["a"][1002] != 0 and placed["b"] == 2


def test_arrays_on_a_part_of_their_devices_are_the_same_memory():
    mesh, other = make_mesh(), jax.device_put(np.ones(3), jax.devices()[7])
    part = part_of_mesh(mesh, 3)
    tree = {"a": place_parameters(mesh, np.arange(100.0)), "other": other, "numpy": np.ones(2)}
    found = on_part(part, tree)
    assert found["a"].sharding.device_set == set(jax.devices()[:3])
    pointers = lambda array: {shard.data.unsafe_buffer_pointer() for shard in array.addressable_shards}
    assert pointers(found["a"]) <= pointers(tree["a"])
    assert found["other"] is other and found["numpy"] is tree["numpy"]
    assert on_part(mesh, tree)["a"] is tree["a"] and part_of_mesh(mesh, 8) is mesh


def test_a_mesh_flag_names_axes():
    assert parse_mesh(["data=-1", "fsdp=8", "slices=2"]) == {"data": -1, "fsdp": 8, "slices": 2}
    for words in (["fdsp=8"], ["fsdp"], ["fsdp=x"], ["fsdp=2", "fsdp=4"]):
        with pytest.raises(UsageError, match="need sizes of axes such as"):
            parse_mesh(words)
