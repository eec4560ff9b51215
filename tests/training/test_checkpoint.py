import resource
import shutil
import threading

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint.experimental.v1 as orbax_v1
import pytest
from command import wait_until
from jax.sharding import NamedSharding, PartitionSpec
from tiny import same_trees

from cfgjax.base import bucket_clients
from cfgjax.base.errors import UsageError
from cfgjax.distributed.sharding import make_mesh
from cfgjax.runs.checkpoint import Checkpoints, restore_params
from cfgjax.runs.manifest import complete_steps
from cfgjax.runs.training_settings import CheckpointSettings
from cfgjax.runs.writes import SaveError, sizes
from cfgjax.training.state import TrainState, abstract_state, create_state


def state_at(step):
    """A state that no two steps share."""
    params = {"w": jnp.arange(6.0).reshape(2, 3) + step, "b": jnp.float32(step)}
    return TrainState(jnp.int32(step), params, {"0.9": jax.tree.map(lambda a: a / 2, params)}, (jnp.int32(step),))


def like():
    return abstract_state(lambda: state_at(0), make_mesh())


@pytest.fixture
def saved(tmp_path):
    """The directory of a run saved at 10, 20, 30."""
    directory = tmp_path / "checkpoints"
    save(directory, 10, 20, 30)
    return directory


def save(directory, *steps, keep_last=3, keep_every_steps=None):
    checkpoints = Checkpoints(directory, CheckpointSettings(1, keep_last, keep_every_steps))
    for step in steps:
        checkpoints.save(step, state_at(step), [{"loss": 0.1 + step}])
    checkpoints.close()


def restore(directory):
    checkpoints = Checkpoints(directory, CheckpointSettings(1))
    try:
        return checkpoints.restore(like())
    finally:
        checkpoints.close()


def test_nothing_is_compiled_to_save_small_arrays_that_every_device_has(tmp_path, caplog):
    everywhere = NamedSharding(make_mesh(), PartitionSpec())
    state = jax.device_put({"w": np.ones((jax.device_count(), 3), np.float32)}, everywhere)
    checkpoints = Checkpoints(tmp_path, CheckpointSettings(1))
    with jax.log_compiles():
        checkpoints.save(1, state, [])
        checkpoints.close()
    assert not [record for record in caplog.records if "ompil" in record.getMessage()]


def data_file(directory, step):
    """The largest file of a step's arrays."""
    return max((directory / str(step) / "state").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)


def flip_a_bit(directory):
    file = data_file(directory, 30)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(directory):
    file = data_file(directory, 30)
    file.write_bytes(file.read_bytes()[:-10])


DAMAGE = {
    "a flipped bit": flip_a_bit,
    "a truncated file": truncate,
    "a missing file": lambda directory: data_file(directory, 30).unlink(),
    "a missing item": lambda directory: shutil.rmtree(directory / "30" / "history"),
    "a missing manifest": lambda directory: (directory / "30" / "manifest.json").unlink(),
    "a torn manifest": lambda directory: (directory / "30" / "manifest.json").write_text('{"a'),
    "an empty manifest": lambda directory: (directory / "30" / "manifest.json").write_text("[]"),
    "a manifest nested deeply": lambda directory: (directory / "30" / "manifest.json").write_text("[" * 100_000),
    "a manifest of numbers": lambda directory: (directory / "30" / "manifest.json").write_text(
        '{"state/_METADATA": 3}'
    ),
    "an empty step": lambda directory: (directory / "40").mkdir(),
}


def test_a_restored_state_equals_the_saved_one(saved):
    state, history = restore(saved)
    assert same_trees(state, state_at(30))
    assert history == [{"loss": 30.1}]


def test_version_1_of_orbax_reads_what_this_version_writes(saved):
    """A step's state, all its items, and the newest step of the directory."""
    assert same_trees(orbax_v1.load(saved / "20", like(), checkpointable_name="state"), state_at(20))
    items = orbax_v1.load_checkpointables(saved / "20", {"state": like(), "history": None})
    assert same_trees(items["state"], state_at(20)) and items["history"] == [{"loss": 20.1}]
    with orbax_v1.training.Checkpointer(saved) as checkpointer:
        assert checkpointer.latest.step == 30
        restored = checkpointer.load_checkpointables(30, {"state": like(), "history": None})
    assert same_trees(restored["state"], state_at(30))


def test_a_directory_without_steps_restores_nothing(tmp_path):
    assert restore(tmp_path / "checkpoints") is None


def test_the_newest_steps_and_every_nth_are_retained(tmp_path):
    save(tmp_path, *range(1, 12), keep_last=2, keep_every_steps=4)
    assert sorted(complete_steps(tmp_path)) == [4, 8, 10, 11]


@pytest.mark.parametrize("harm", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_newest_step_is_reported_and_moved_and_the_previous_one_used(saved, harm, caplog):
    harm(saved)
    expected = 30 if (saved / "40").exists() else 20
    state, _ = restore(saved)
    assert same_trees(state, state_at(expected))
    assert f"checkpoint step {expected + 10} is damaged" in caplog.text
    assert (saved.parent / "damaged" / str(expected + 10)).is_dir()
    save(saved, expected + 10)  # the step can be saved anew
    assert same_trees(restore(saved)[0], state_at(expected + 10))


@pytest.mark.parametrize(
    "content",
    ["", "[]", "3", "{}", "{", "\0" * 50, "[" * 100_000, '{"item_handlers": 3}', '{"performance_metrics": 1}'],
    ids=range(9),
)
def test_a_step_with_damaged_orbax_metadata_is_restored_and_training_continues(saved, content, caplog):
    (saved / "30" / "_CHECKPOINT_METADATA").write_text(content)
    assert same_trees(restore(saved)[0], state_at(30))
    assert (content == "{}") != ("_CHECKPOINT_METADATA is damaged" in caplog.text)
    caplog.clear()
    save(saved, 40)
    assert same_trees(restore(saved)[0], state_at(40))
    assert "is damaged" not in caplog.text


@pytest.mark.parametrize("harm", [flip_a_bit, truncate], ids=["a flipped bit", "a truncated file"])
def test_a_damaged_step_is_never_loaded_for_sampling(saved, harm):
    harm(saved)
    params, step = restore_params(saved, "0.9")
    assert step == 20
    assert same_trees(params, state_at(20).ema["0.9"])
    with pytest.raises(UsageError, match="step 30: .* has changed"):
        restore_params(saved, "0.9", step=30)


def test_steps_are_listed_newest_first(tmp_path):
    for step in (20, 100, 5):
        (tmp_path / "checkpoints" / str(step)).mkdir(parents=True)
    with pytest.raises(UsageError, match=r"no step 7 in .* it has 100, 20, 5\Z"):
        restore_params(tmp_path / "checkpoints", "0.9", step=7)


def test_without_a_complete_step_nothing_is_overwritten(saved):
    for step in (10, 20, 30):
        (saved / str(step) / "manifest.json").unlink()
    before = sorted(saved.rglob("*"))
    with pytest.raises(UsageError, match="no checkpoint in .* is complete; nothing was overwritten"):
        restore(saved)
    assert sorted(saved.rglob("*")) == before


def failure(checkpoints):
    """What `check` raises, as text; empty while nothing has failed."""
    try:
        checkpoints.check()
    except SaveError as e:
        return str(e)
    return ""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # tensorstore calls back a closed loop
def test_a_failed_write_is_an_error_at_once_and_not_at_the_next_save(tmp_path):
    """Orbax would wait for the other processes, which wait for this one."""
    state = TrainState(jnp.int32(1), {"w": jax.random.normal(jax.random.key(0), (256, 256))}, {}, ())
    checkpoints = Checkpoints(tmp_path / "checkpoints", CheckpointSettings(1))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))  # as a full disk, to this process alone
        checkpoints.save(1, state, [])
        wait_until(lambda: failure(checkpoints), seconds=10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert failure(checkpoints).startswith("saving step 1 failed: File too large")
    with pytest.raises(SaveError):
        checkpoints.close()
    assert complete_steps(tmp_path / "checkpoints") == []


def test_a_state_can_be_restored_onto_another_mesh(tmp_path):
    build = lambda: TrainState(jnp.int32(3), {"w": jnp.arange(2.0**16).reshape(256, 256)}, {}, ())
    checkpoints = Checkpoints(tmp_path, CheckpointSettings(1))
    checkpoints.save(3, create_state(build, make_mesh(data=8)), [])
    checkpoints.wait()
    state, _ = checkpoints.restore(abstract_state(build, make_mesh(data=2, fsdp=4)))
    checkpoints.close()
    assert same_trees(jax.device_get(state), jax.device_get(build()))
    assert state.params["w"].addressable_shards[0].data.shape == (64, 256)


def test_parameters_and_averages_are_read_without_the_rest_of_the_state(saved):
    assert same_trees(restore_params(saved, None)[0], state_at(30).params)
    assert same_trees(restore_params(saved, "0.9", step=10)[0], state_at(10).ema["0.9"])
    with pytest.raises(UsageError, match="no average 0.5 .* it has 0.9"):
        restore_params(saved, "0.5")
    with pytest.raises(UsageError, match="no step 7 in .* it has 30, 20, 10"):
        restore_params(saved, "0.9", step=7)


def test_the_progress_of_a_save_is_seen_while_its_folder_is_renamed(tmp_path):
    (tmp_path / "90.tmp" / "state" / "parts").mkdir(parents=True)
    (tmp_path / "90.tmp" / "state" / "parts" / "0").write_bytes(b"0" * 7)
    ended = threading.Event()

    def rename():
        for _ in range(3000):
            (tmp_path / "90.tmp").rename(tmp_path / "90")
            (tmp_path / "90").rename(tmp_path / "90.tmp")
        ended.set()

    thread = threading.Thread(target=rename)
    thread.start()
    while not ended.is_set():
        assert set(sizes(tmp_path, "90").values()) <= {7}
    thread.join()
    assert sizes(tmp_path, "90") == {str(tmp_path / "90.tmp" / "state" / "parts" / "0"): 7}
    assert sizes(tmp_path, "8") == {}


@pytest.mark.parametrize(("seconds", "pauses"), [(1, 1), (4, 7), (600, 623)])
def test_requests_are_repeated_for_about_the_given_time(monkeypatch, seconds, pauses):
    monkeypatch.setattr(bucket_clients, "retry_seconds", float(seconds))
    limits = bucket_clients.request_limits()
    assert sum(min(2**i, 16) for i in range(limits["max_retries"])) == pauses
