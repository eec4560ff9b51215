"""What a run in a bucket does when its server fails, refuses, or gives its workdir to another run."""

import asyncio
import json
import logging
import threading
import time

import jax
import numpy as np
import pytest
from bucket_runs import metrics, train, wait_for_line
from command import finish_all, start_several
from tiny import mixture_config, same_trees

import cfgjax
from cfgjax.base import bucket_clients, lease, storage
from cfgjax.base.errors import UsageError
from cfgjax.runs.checkpoint import Checkpoints, restore_params
from cfgjax.runs.manifest import complete_steps, damage, step_directories
from cfgjax.runs.settings import Settings
from cfgjax.runs.training_settings import CheckpointSettings
from cfgjax.runs.workdir import Claim
from cfgjax.training.extensions import ExtensionError
from cfgjax.training.run import Run
from cfgjax.training.snapshots import Snapshots
from cfgjax.training.writers.json_lines import MetricsSegments
from cfgjax.training.writers.tensorboard import TensorBoardSegments

pytestmark = pytest.mark.e2e
pytest_plugins = ["bucket_servers"]
STATE = {"a": np.arange(1000.0, dtype=np.float32)}


def busy(holder):
    return f"in use by {holder}"


@pytest.fixture
def later():
    """later(seconds, function): calls a function in another thread."""
    timers = []

    def call(seconds, function):
        timers.append(threading.Timer(seconds, function))
        timers[-1].start()

    yield call
    for timer in timers:
        timer.join()


@pytest.fixture
def lost(gcs):
    """(lease of a folder that another process has taken over, the folder)."""
    folder = storage.place(f"{gcs}/run")
    first = lease.lock(folder, busy, seconds=0.5)
    first._closed.set()  # as if the process were suspended
    first._me["machine"] = "another"
    first._path.write_bytes(first._content())
    second = lease.lock(folder, busy, seconds=0.5)
    first._closed.clear()
    time.sleep(0.6)
    yield first, folder
    second.close()


def test_a_damaged_step_is_set_aside_and_an_older_one_restored(gcs):
    folder = f"{gcs}/run/checkpoints"
    with Checkpoints(folder, CheckpointSettings(1, keep_last=3)) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, {"a": STATE["a"] * step}, [])
    name = next(name for name in gcs.names() if "/2/state/d/" in name)
    gcs.put(name, gcs.get(name)[:-1] + b"?")
    before = [name for name in gcs.names() if "/2/" in name]
    with Checkpoints(folder, CheckpointSettings(1, keep_last=3)) as checkpoints:
        restored, _ = checkpoints.restore(STATE)
        np.testing.assert_array_equal(restored["a"], STATE["a"])
        assert [name.replace("checkpoints", "damaged") for name in before] == [n for n in gcs.names() if "damaged" in n]
        checkpoints.save(2, STATE, [])
    assert complete_steps(folder) == [1, 2]


def test_a_server_that_fails_is_not_taken_for_damage(gcs):
    folder = storage.place(f"{gcs}/run/checkpoints")
    with Checkpoints(folder, CheckpointSettings(1)) as checkpoints:
        checkpoints.save(1, STATE, [])
    bucket_clients.patience(1)
    gcs.control(fail=503)
    try:
        with pytest.raises(OSError, match="the server is failing"):
            damage(folder / "1")
    finally:
        gcs.control(fail=0)
        bucket_clients.patience(20)
    assert damage(folder / "1") is None


def test_requests_of_one_outage_share_the_time_for_which_they_are_repeated(monkeypatch, caplog):
    monkeypatch.setattr(bucket_clients, "_answered", {"gs"})
    monkeypatch.setattr(bucket_clients, "_failing", {})
    monkeypatch.setattr(bucket_clients, "retry_seconds", 2.0)
    fails, asked = [True], []

    async def request():
        asked.append(time.monotonic())
        if fails[0]:
            raise OSError("no route")
        return 1

    ask = lambda: asyncio.run(bucket_clients.patiently("gs", True, request))
    for _ in range(3):
        with pytest.raises(OSError, match="no route"):
            ask()
    assert len(asked) > 3
    assert asked[-1] - asked[0] < 4
    fails[0] = False
    with caplog.at_level(logging.WARNING):
        assert ask() == 1
    assert "answers again" in caplog.text
    fails[0], count = True, len(asked)
    with pytest.raises(OSError, match="no route"):
        ask()
    assert len(asked) - count > 1  # another outage has its own time


def test_adding_metrics_and_events_waits_for_no_request(gcs, later):
    workdir, settings = storage.place(f"{gcs}/run"), Settings.from_config(mixture_config())
    writers = [MetricsSegments(workdir, 0), TensorBoardSegments(workdir, 0, settings)]
    for writer in writers:
        writer.write(1, {"loss": 1.0})
        gcs.control(fail=503)
        sending = threading.Thread(target=writer.flush)
        sending.start()
        time.sleep(0.5)
        later(4, lambda: gcs.control(fail=0))
        writer.write(2, {"loss": 2.0})
        assert sending.is_alive()
        sending.join()
        writer.close()
        writer.flush()  # a save that is in progress when a run ends calls it afterwards
    assert [line["loss"] for line in metrics(gcs)] == [1.0, 2.0]
    assert len([name for name in gcs.names() if "events.out" in name]) == 2


def test_a_second_resume_at_one_step_keeps_what_the_first_one_recorded(gcs):
    workdir = storage.place(f"{gcs}/run")
    for start, name in ((0, "loss"), (4, "FD/w=0"), (4, "FD/w=1")):
        writer = MetricsSegments(workdir, start)
        writer.write(max(start, 2), {name: 1.0})
        writer.close()
    assert metrics(gcs) == [{"step": 2, "loss": 1.0}, {"step": 4, "FD/w=0": 1.0}, {"step": 4, "FD/w=1": 1.0}]


def test_a_run_that_has_lost_its_workdir_writes_no_more(gcs, lost):
    first, workdir = lost
    settings = Settings.from_config(mixture_config())
    writers = [MetricsSegments(workdir, 0, first.check), TensorBoardSegments(workdir, 0, settings, first.check)]
    for writer in writers:
        writer.write(1, {"loss": 1.0})
        for write in (writer.flush, writer.close):
            with pytest.raises(lease.LeaseLost):
                write()
    with pytest.raises(lease.LeaseLost), Checkpoints(workdir / "checkpoints", CheckpointSettings(1), first.check) as c:
        c.save(1, STATE, [])
    first.close()
    assert gcs.names() == []


def test_a_lease_is_as_old_as_the_request_that_renewed_it(gcs):
    held = lease.lock(storage.place(f"{gcs}/run"), busy, seconds=60)
    gcs.control(delay=0.5)
    before = lease.now()
    held._renew_once()
    gcs.control(delay=0)
    assert before <= held._renewed < lease.now() - 0.5
    held.close()


def test_a_lease_whose_creation_was_answered_only_the_second_time_is_held(gcs, monkeypatch):
    create = storage.create_object

    def twice(path, content):
        create(path, content)
        create(path, content)  # repeated, since the first answer was lost

    monkeypatch.setattr(storage, "create_object", twice)
    held = lease.lock(storage.place(f"{gcs}/run"), busy)
    assert lease.token_in(f"{gcs}/run") == held.token
    held.close()


def test_a_snapshot_that_is_refused_for_a_while_is_saved_again(gcs, later):
    config = mixture_config(**{"ema.widths": (0.1,), "mesh.data": 1})
    run = Run(config, devices=jax.devices()[:1])
    state, workdir = run.new_state(), storage.place(f"{gcs}/run")
    gcs.control(refuse_arrays=1)
    later(3, lambda: gcs.control(refuse_arrays=0))
    Snapshots(run.settings).save(state, 4, workdir)
    found, _ = restore_params(workdir / "snapshots", "width_0.1", 4)
    assert same_trees(found, jax.device_get(state.ema["width_0.1"]))


def test_a_step_is_reported_as_saved_after_a_hook_has_failed_only_if_it_is(gcs, later):
    class Failing:
        every_steps = 4

        def __call__(self, state, step, workdir, log):
            gcs.control(refuse_arrays=1)
            later(3, lambda: gcs.control(refuse_arrays=0))
            raise RuntimeError("no")

    config = mixture_config(**{"train.num_steps": 8, "checkpoint.every_steps": 8})
    with pytest.raises(ExtensionError, match="step 4 is saved"):
        cfgjax.train(config, f"{gcs}/run", hooks=[Failing()])
    assert complete_steps(f"{gcs}/run/checkpoints") == [4]


def test_a_run_of_which_no_save_succeeded_says_how_to_begin_anew(gcs):
    config = mixture_config(**{"checkpoint.every_steps": 2})
    workdir, settings = storage.place(f"{gcs}/run"), Settings.from_config(config)
    claim = Claim(workdir, settings)
    claim.write_config()
    claim.close()
    gcs.put("run/metrics/000000000001.jsonl", json.dumps({"step": 9, "loss": 1.0}).encode() + b"\n")
    with pytest.raises(
        UsageError, match=r"but no checkpoint; .* if no save ever succeeded, delete gs://\S+/run/metrics"
    ):
        Claim(workdir, settings)
    storage.remove_tree(workdir / "metrics")
    Claim(workdir, settings).close()


def test_several_processes_wait_for_a_server_that_fails_for_longer_than_a_process_may_be_silent(gcs):
    processes = start_several(train(f"{gcs}/run") + " --config.cluster.timeout_seconds=10", 2)
    wait_for_line(processes[0], "step 150/")
    gcs.control(fail=503)
    time.sleep(25)
    gcs.control(fail=0)
    ended = finish_all(processes)
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert step_directories(f"{gcs}/run/checkpoints")
    assert metrics(gcs)[-1]["step"] == 600
