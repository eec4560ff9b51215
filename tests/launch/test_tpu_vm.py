"""The calls of gcloud, and what a worker runs, with a shell in place of the cloud."""

import os
import subprocess
import time

import pytest
from command import ROOT

from cfgjax.base.errors import UsageError
from cfgjax.cli import main as cli
from cfgjax.jobs.launch.tpu_vm import start_text

TRAIN = "train --config=experiments/digits.py --workdir=runs/p_uncond"
WHERE = "--zone=us-west4-a --project=p"


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """calls(words): the calls of gcloud that a launch makes, a list of words each."""
    fake = tmp_path / "gcloud"
    fake.write_text(f'#!/bin/bash\nprintf "%s\\0" "$@" >> {tmp_path}/calls\nprintf "\\n\\0" >> {tmp_path}/calls\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(ROOT)

    def calls(words):
        assert cli.run_command(["launch", "tpu_vm", *words.split(), *WHERE.split(), "--", *TRAIN.split()]) == 0
        said = (tmp_path / "calls").read_text().split("\0\n\0")[:-1]
        (tmp_path / "calls").unlink()
        return [call.split("\0") for call in said]

    return calls


def test_each_action_is_gclouds_own_words(calls):
    where = ["--zone=us-west4-a", "--project=p"]
    tpus, name, one = ["compute", "tpus"], "p-uncond", "--accelerator_type=v5litepod-64 --runtime_version=r"
    kind = ["--accelerator-type=v5litepod-64", "--runtime-version=r"]
    queued = [*tpus, "queued-resources"]
    made = calls(f"--action=create {one} --spot")
    assert made == [[*queued, "create", name, f"--node-id={name}", *kind, "--spot", *where]]
    made = calls(f"--action=create {one} --node_count=2")
    assert made == [[*queued, "create", name, "--node-count=2", *kind, *where]]
    assert calls("--action=status") == [[*queued, "describe", name, "--format=value(state.state)", *where]]
    assert calls("--action=delete") == [[*queued, "delete", name, "--force", *where]]
    logs = "--command=tail -n 20 cfgjax/job.log"
    assert calls("--action=logs") == [[*tpus, "tpu-vm", "ssh", name, "--worker=all", logs, *where]]
    made = calls("--action=logs --node_count=2")
    assert made == [[*queued, "ssh", name, "--worker=all", "--node=all", logs, *where]]
    folder, sent = calls("--action=copy")
    assert folder[-3] == "--command=mkdir -p cfgjax" and sent[:5] == [*tpus, "tpu-vm", "scp", "--recurse"]
    assert all((ROOT / word).exists() for word in sent[5 : sent.index(f"{name}:cfgjax/")])
    (started,) = calls("--action=run")
    assert started[:5] == [*tpus, "tpu-vm", "ssh", name] and "job.sh" in started[6]


def test_copy_wants_the_source_here(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    train = f"train --config={ROOT}/experiments/digits.py --workdir=x"
    with pytest.raises(UsageError, match="there is no cfgjax here"):
        cli.run_command(["launch", "tpu_vm", "--zone=z", "--action=copy", "--", *train.split()])


@pytest.fixture
def worker(tmp_path):
    """worker(what the command does): starts it as on a worker, and gives the folder that it runs in."""

    def worker(does):
        (tmp_path / "cfgjax").mkdir(exist_ok=True)
        (tmp_path / "task").write_text(f"#!/usr/bin/env bash\n{does}\n")
        (tmp_path / "task").chmod(0o755)
        text = start_text("echo set up", [str(tmp_path / "task")])
        told = subprocess.run(["bash", "-c", text], cwd=tmp_path, capture_output=True, text=True)
        return told, tmp_path / "cfgjax"

    yield worker
    if (tmp_path / "cfgjax" / "job.pid").exists():
        subprocess.run(["kill", (tmp_path / "cfgjax" / "job.pid").read_text().strip()])


def wait_for_end(folder):
    deadline = time.monotonic() + 20
    while (folder / "job.pid").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return (folder / "job.log").read_text().splitlines()


def test_a_worker_starts_again_what_saved_and_nothing_else(worker):
    told, folder = worker(
        "echo run $CFGJAX_GRACE_SECONDS >> runs; [ $(wc -l < runs) = 3 ] && exit 4; sleep 0.3; exit 75"
    )
    assert told.returncode == 0 and told.stdout == "set up\n"
    assert wait_for_end(folder)[-1] == "ended with exit code 4"
    assert (folder / "runs").read_text() == 3 * "run 30\n"


def test_a_worker_that_is_stopped_saves_and_stays_stopped_and_runs_one_job(worker):
    told, folder = worker('trap "echo saved; exit 75" TERM; echo ready; for _ in $(seq 300); do sleep 0.1; done')
    assert told.returncode == 0
    deadline = time.monotonic() + 20
    while "ready" not in (folder / "job.log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    again, _ = worker("exit 0")
    assert again.returncode == 1 and again.stdout == "already running\n"
    subprocess.run(["bash", "-c", "kill -TERM $(cat cfgjax/job.pid)"], cwd=folder.parent, check=True)
    lines = wait_for_end(folder)
    assert [line for line in lines if line != "Terminated"] == ["ready", "saved", "ended with exit code 75"]
