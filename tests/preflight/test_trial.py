"""One real step, a save, a restore and a comparison, here on the tests' eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import digits_config, mixture_config, settings

from cfgjax.base.errors import UsageError
from cfgjax.distributed.sharding import make_mesh, parameter_sharding
from cfgjax.jobs.preflight import trial as module
from cfgjax.jobs.preflight.trial import (
    fingerprint,
    fitted,
    random_batches,
    trial,
    trial_report,
    trial_settings,
    with_batches,
)


@pytest.mark.slow
def test_a_step_is_taken_saved_and_restored_bit_for_bit(tmp_path):
    config = trial_settings(
        settings(mixture_config(**{"mesh.data": 2, "mesh.fsdp": 4, "model.width": 256})), {"per_device": 3}
    )
    found = trial(config, tmp_path)
    assert found["restored_equals_saved"]
    assert (found["batch_size"], found["devices"], found["mesh"]) == (24, 8, {"data": 2, "fsdp": 4})
    assert found["data"] == "the config's data"
    assert np.isfinite(found["loss"])
    assert 0 < found["seconds"]["save_blocking"] <= found["seconds"]["save"]
    assert found["checkpoint_bytes"] > 4 * 256 * 256
    assert "equals the saved state, bit for bit" in trial_report(found)[-1]


@pytest.mark.slow
def test_data_that_cannot_be_read_are_made_up_and_that_is_told(tmp_path):
    config = digits_config()
    config.data = type(config.data)(
        {"source": "npz", "path": str(tmp_path / "none.npz"), "num_classes": 10, "image_shape": (8, 8, 1)}
    )
    program, batches, told = with_batches(config)
    assert told.startswith("random (") and "none.npz" in told
    assert jax.tree.map(jnp.shape, batches) == jax.tree.map(jnp.shape, program.abstract_batches(2))
    assert np.abs(batches["image"]).max() <= 1 and batches["label"].max() < 10
    config.model.depth = 0
    with pytest.raises(UsageError, match="depth is 0"):
        with_batches(config)


def test_data_made_up_for_an_upsampler_have_its_small_images():
    config = digits_config(**{"model.low_res": True, "train.steps_per_dispatch": 1})
    config.data.low_res_size = 4
    program, _, _ = with_batches(config)
    batches = random_batches(program)
    assert batches["low_res"].shape == (1, 16, 4, 4, 1)


@pytest.mark.parametrize(
    ("mesh", "devices", "same"),
    [((-1, 1), 8, True), ((2, 4), 8, True), ((8, 8), 8, False), ((-1, 16), 8, False), ((-1, 4), 8, True)],
)
def test_a_mesh_that_the_devices_at_hand_do_not_make_up_becomes_data_parallel(mesh, devices, same):
    config = mixture_config(**{"mesh.data": mesh[0], "mesh.fsdp": mesh[1], "train.batch_size": 5})
    found, kept = fitted(settings(config), jax.devices()[:devices])
    assert kept == same
    assert (found.mesh.data, found.mesh.fsdp) == (mesh if same else (-1, 1))
    assert found.train.batch_size == 5 * devices


def test_a_fingerprint_tells_a_flipped_bit_and_a_dtype():
    mesh = make_mesh(data=2, fsdp=4)
    place = lambda a: jax.device_put(a, parameter_sharding(mesh, a))
    array = np.arange(2**15, dtype=np.float32)
    other = array.copy()
    other.view(np.uint32)[12345] ^= 1
    assert fingerprint(place(array)) == fingerprint(place(array.copy()))
    assert fingerprint(place(array)) != fingerprint(place(other))
    assert fingerprint(place(array)) != fingerprint(place(array.view(np.int32)))


def test_memory_that_does_not_hold_the_state_is_told_before_anything_is_made(monkeypatch, tmp_path):
    monkeypatch.setattr(module.os, "sysconf", lambda name: 1000)
    config = trial_settings(settings(mixture_config(**{"model.width": 256})), {"per_device": 2})
    with pytest.raises(UsageError, match="state and gradients take .* MB; this machine has 1 MB"):
        trial(config, tmp_path)
    assert not list(tmp_path.iterdir())
