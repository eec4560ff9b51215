"""Runs in a bucket, with real processes and a server on this machine."""

import contextlib
import json
import re
import signal
import time

import jax.numpy as jnp
import numpy as np
import pytest
from bucket_runs import is_that_of, metrics, state, train, wait_for_line, wait_for_step, without_speed
from command import finish, finish_all, run, start, start_several
from tiny import mixture_config, same_trees

import cfgjax
from cfgjax.base import lease, storage
from cfgjax.base.errors import UsageError
from cfgjax.cli.main import run_command
from cfgjax.runs.checkpoint import Checkpoints
from cfgjax.runs.training_settings import CheckpointSettings

pytestmark = pytest.mark.e2e
pytest_plugins = ["bucket_servers"]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The workdir on the disk of a run that was left alone."""
    workdir = tmp_path_factory.mktemp("straight") / "run"
    code, _, err = run(train(workdir))
    assert code == 0, err
    return workdir


def test_a_run_that_is_killed_resumes_and_ends_as_on_a_disk(gcs, straight):
    rng, kills = np.random.default_rng(0), 0
    for step in (150, 300, 450):
        process = start(train(f"{gcs}/run"))
        wait_for_step(process, step)
        time.sleep(rng.uniform(0, 0.4))
        kills += process.poll() is None
        process.kill()
        finish(process)
    code, out, err = run(train(f"{gcs}/run"))
    assert code == 0, err
    assert kills > 1
    assert "resumed at step" in out
    assert is_that_of(gcs, straight)
    assert [name for name in gcs.names() if "events.out" in name]
    code, _, err = run(f"evaluate --workdir={gcs}/run --features=mixture --num_samples=40 --guidance=0,1 --num_steps=4")
    assert code == 0, err
    assert json.loads(gcs.get("run/evaluation/frontier.json"))["rows"][0]["num_samples"] == 40


def test_two_processes_write_what_they_write_on_a_disk(gcs, tmp_path):
    for workdir in (tmp_path / "run", f"{gcs}/run"):
        ended = finish_all(start_several(train(workdir, 200), 2))
        assert [code for code, _, _ in ended] == [0, 0], ended
    assert metrics(gcs) == without_speed((tmp_path / "run" / "metrics.jsonl").read_text())
    assert same_trees(state(f"{gcs}/run", 200), state(tmp_path / "run", 200))


def test_a_workdir_in_use_is_refused_and_a_stopped_run_frees_it(gcs):
    process = start(train(f"{gcs}/run", 10**6))
    wait_for_line(process, "step 50/")
    before = {name for name in gcs.names() if "checkpoints/" not in name}  # of which the run keeps the newest
    code, _, err = run(train(f"{gcs}/run", 10**6))
    assert code == 2
    assert f"workdir {gcs}/run is in use by process {process.pid} on " in err.splitlines()[-1]
    process.send_signal(signal.SIGTERM)
    code, out, _ = finish(process)
    assert code == 75
    assert "saved step" in out
    assert before <= set(gcs.names())
    code, out, err = run(train(f"{gcs}/run", 50))
    assert code == 0, err
    assert "nothing left to do" in out


@pytest.mark.parametrize("fault", ["fail=503", "fail=403", "refuse_arrays=1"])
def test_a_server_that_fails_during_saves_is_asked_again_and_nothing_is_lost(gcs, straight, fault):
    process = start(train(f"{gcs}/run"))
    wait_for_line(process, "step 150/")
    name, value = fault.split("=")
    gcs.control(**{name: value})
    time.sleep(8)
    gcs.control(**{name: 0})
    code, _, err = finish(process)
    assert code == 0, err
    assert "asking again" in err or "the newest state is saved within" in err
    assert is_that_of(gcs, straight)


@pytest.mark.parametrize("fault", ["fail=503", "refuse_arrays=1"])
def test_a_server_that_fails_for_too_long_ends_the_run_with_the_last_complete_step(gcs, fault):
    process = start(train(f"{gcs}/run") + " --config.storage.retry_seconds=4")
    wait_for_line(process, "step 350/")
    name, value = fault.split("=")
    gcs.control(**{name: value})
    code, _, err = finish(process)
    assert code == 1
    told = err.splitlines()[-1]
    assert told.startswith(f"cfgjax: failed: {gcs}/run: ")
    assert "Traceback" not in err
    gcs.control(**{name: 0})
    complete = int(re.search(r"step (\d+) is complete", told)[1])
    code, out, err = run(train(f"{gcs}/run"))
    assert code == 0, err
    assert f"resumed at step {complete}" in out


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("gs://nobucket/run", "there is no bucket gs://nobucket"),
        ("gs:/bucket1/run", "a URL is gs://BUCKET/PATH"),
        ("http://bucket1/run", "URLs of gs:// and s3:// can be used"),
        ("s3://bucket1/run", "checkpoints cannot be kept in s3://"),
    ],
)
def test_a_url_that_cannot_be_used_is_a_one_line_error(gcs, tmp_path, url, told):
    code, _, err = run(train(url).replace("experiments/mixture.py", "mixture"), cwd=tmp_path)
    assert code == 2
    assert told in err.splitlines()[-1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("writer", "variables", "told"),
    [
        ("mlflow", {}, "mlflow needs MLFLOW_TRACKING_URI for the workdir gs://"),
        ("wandb", {"WANDB_MODE": "offline"}, r"wandb in offline mode .* cannot write to the workdir gs://"),
        ("wandb", {"WANDB_MODE": "dryrun"}, r"wandb in offline mode .* cannot write to the workdir gs://"),
    ],
)
def test_a_writer_that_needs_a_disk_is_refused_before_the_workdir_is_written_or_waited_for(
    gcs, monkeypatch, writer, variables, told
):
    pytest.importorskip(writer)
    for name in ("MLFLOW_TRACKING_URI", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config = mixture_config(**{"log.writers": (writer,)})
    with contextlib.closing(lease.lock(storage.place(f"{gcs}/run"), "in use by {}".format)):
        before = set(storage.objects(gcs.url))
        with pytest.raises(UsageError, match=told) as raised:
            cfgjax.train(config, f"{gcs}/run")
        assert "\n" not in str(raised.value)
        assert set(storage.objects(gcs.url)) == before


def test_launchers_refuse_a_workdir_in_s3():
    with pytest.raises(UsageError, match="checkpoints cannot be kept in s3://"):
        run_command(f"launch local --dry_run -- {train('s3://bucket1/run')}".split())


def test_a_bucket_that_may_not_be_written_is_refused_at_once(gcs):
    gcs.control(read_only=1)
    code, _, err = run(train(f"{gcs}/run"))
    assert code == 2
    assert re.search(r"workdir gs://\S+ cannot be written: Forbidden", err.splitlines()[-1])
    assert not gcs.names()


def test_training_waits_for_no_request_of_a_save(gcs):
    state = {"a": jnp.arange(1000.0)}
    with Checkpoints(f"{gcs}/run", CheckpointSettings(1, keep_last=2)) as checkpoints:
        for step in (1, 2):
            checkpoints.wait()
            gcs.control(delay=3 * (step - 1))
            start = time.monotonic()
            checkpoints.save(step, state, [])
            assert step == 1 or time.monotonic() - start < 2.5  # the first one needs a client
        gcs.control(delay=0)
        checkpoints.wait()
        restored, _ = checkpoints.restore(state)
    np.testing.assert_array_equal(restored["a"], state["a"])


def test_requests_follow_the_saves_and_not_the_steps(gcs):
    counts = []
    for steps in (200, 1000):
        before = sum(gcs.control()["requests"].values())
        code, _, err = run(train(f"{gcs}/{steps}", steps, every=steps // 5))
        assert code == 0, err
        counts.append(sum(gcs.control()["requests"].values()) - before)
    assert abs(counts[1] - counts[0]) < 0.2 * counts[0]
    assert len([name for name in gcs.names() if name.startswith("1000/")]) < 60


class Elsewhere(lease.Lease):
    """A lease of a process on another machine."""

    def __init__(self, *args):
        super().__init__(*args)
        self._me["machine"] = "another"
        self._renew_once()


def busy(holder):
    return f"in use by {holder}"


def test_a_lease_is_held_renewed_and_released(gcs):
    folder = storage.place(f"{gcs}/folder")
    first = Elsewhere(folder, busy, 3)
    with pytest.raises(UsageError, match="in use by process"):
        lease.lock(folder, busy, seconds=3)
    first.close()
    second = lease.lock(folder, busy, seconds=3)
    assert lease.token_in(folder) == second.token != first.token
    second.close()


def test_a_clock_that_jumps_neither_frees_nor_loses_a_lease(gcs, monkeypatch):
    folder, clock = storage.place(f"{gcs}/folder"), time.time
    first = Elsewhere(folder, busy, 3)
    for jump in (86_400, -86_400):
        monkeypatch.setattr(time, "time", lambda jump=jump: clock() + jump)
        time.sleep(1.5)
        first.check()
        with pytest.raises(UsageError, match="in use by process"):
            lease.lock(folder, busy, seconds=3)
    first.close()


def test_a_stop_signal_ends_the_wait_for_a_lease_and_leaves_the_run_as_it_is(gcs):
    first = Elsewhere(storage.place(f"{gcs}/run"), busy, 600)
    before = gcs.names()
    process = start(train(f"{gcs}/run") + " --config.storage.lease_seconds=600")
    wait_for_line(process, "waiting up to 600 s for a sign of life")
    process.send_signal(signal.SIGTERM)
    code, out, _ = finish(process)
    assert code == 75
    assert "SIGTERM before anything was written" in out
    assert gcs.names() == before
    first.close()


def test_a_lease_that_stands_still_is_taken_over_and_its_owner_stops(gcs):
    folder = storage.place(f"{gcs}/folder")
    first = Elsewhere(folder, busy, 3)
    first._closed.set()  # as if the process were suspended
    second = lease.lock(folder, busy, seconds=3)
    first._closed.clear()
    time.sleep(3)
    with pytest.raises(lease.LeaseLost, match="another process has taken over"):
        first.check()
    second.check()
    first.close()
    assert lease.token_in(folder) == second.token
    second.close()
    third = lease.lock(folder, busy, seconds=60)  # at once
    third.close()


def test_of_several_that_want_a_free_folder_one_gets_it(gcs):
    from concurrent.futures import ThreadPoolExecutor

    def take(_):
        try:
            return lease.lock(storage.place(f"{gcs}/folder"), busy, seconds=3)
        except UsageError:
            return None

    with ThreadPoolExecutor(8) as pool:
        taken = [found for found in pool.map(take, range(8)) if found]
    assert len(taken) == 1
    taken[0].close()


@pytest.mark.soak
def test_twenty_kills_of_two_processes_lose_no_step(gcs):
    rng, words = np.random.default_rng(1), train(f"{gcs}/run", 4000)
    ended = finish_all(start_several(train(f"{gcs}/straight", 4000), 2))
    assert [code for code, _, _ in ended] == [0, 0], ended
    resumed = []
    for _ in range(20):
        processes = start_several(words, 2)
        time.sleep(rng.uniform(5, 25))
        processes[rng.integers(2)].kill()
        ended = finish_all(processes)
        resumed += [int(found[1]) for _, out, _ in ended if (found := re.search(r"resumed at step (\d+)", out))]
    assert resumed == sorted(resumed)
    ended = finish_all(start_several(words, 2))
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert metrics(gcs) == metrics(gcs, "straight")
    assert same_trees(state(f"{gcs}/run", 4000), state(f"{gcs}/straight", 4000))
