"""On a real Slurm: jobs save when they are told to and go on by themselves; others are left alone.

`.ci/slurm` starts one on this machine and runs these.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import run

pytestmark = pytest.mark.slurm
TASK = """#!/usr/bin/env bash
# in place of the interpreter: saves at SIGTERM, and has nothing left to do when it is started again
exec 2> /dev/null
if [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then echo "went on"; exit 0; fi
trap 'sleep 2; echo saved; exit 75' TERM
echo started
for _ in $(seq 1200); do sleep 0.1; done
"""
TINY = {
    "data.num_examples": 256,
    "model.width": 32,
    "train.batch_size": 16,
    "train.steps_per_dispatch": 5,
    "train.log_every_steps": 50,
    "checkpoint.every_steps": 500,
    "sample.every_steps": 100000,
    "sample.per_cell": 2,
    "sample.num_steps": 4,
}
TRAIN = "train --config=experiments/mixture.py " + " ".join(f"--config.{key}={value}" for key, value in TINY.items())
LAUNCH = f"launch slurm --time=00:10:00 --grace_seconds=60 --python={sys.executable}"


@pytest.fixture(scope="module", autouse=True)
def slurm():
    """Slurm runs and has the partitions of slurm.sh; all jobs are cancelled in the end."""
    if shutil.which("sinfo") is None:
        pytest.skip("Slurm is not installed; .ci/slurm installs it")
    told = subprocess.run(["sinfo", "--noheader", "--format=%R"], capture_output=True, text=True)
    if told.returncode or not {"low", "high"} <= set(told.stdout.split()):
        pytest.skip("the Slurm of tests/cluster/slurm.sh does not run; .ci/slurm starts it")
    yield
    subprocess.run(["scancel", "--me"], check=True)


@pytest.fixture
def task(tmp_path):
    """An interpreter that only waits to be told to save."""
    path = tmp_path / "task"
    path.write_text(TASK)
    path.chmod(0o755)
    return path


def submit(command):
    """The number of the job that a command submits."""
    code, out, err = run(command)
    assert code == 0, err
    return re.search(r"submitted job (\d+)", out)[1]


def state(job):
    """{key: value} of a job as scontrol shows it."""
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True, check=True).stdout
    return dict(word.split("=", 1) for word in shown.split() if "=" in word)


def wait(true, seconds=400):
    """Until true() is."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def ended(job):
    """The state of a job and its exit code, when it has ended."""
    wait(lambda: state(job)["JobState"] not in ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED"))
    return state(job)["JobState"], int(state(job)["ExitCode"].partition(":")[0])


def log(workdir, job):
    path = Path(workdir) / "slurm" / f"{job}.log"
    return path.read_text() if path.exists() else ""


def last_step(workdir):
    path = Path(workdir) / "metrics.jsonl"
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)


def preempt():
    """Runs a job that wants the whole node and has the higher priority; returns its number."""
    job = ["sbatch", "--parsable", "--partition=high", "--exclusive", "--output=/dev/null", "--wrap=sleep 1"]
    return subprocess.run(job, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(("tasks", "steps"), [(1, 20000), (2, 800)])
def test_a_preempted_run_saves_is_requeued_and_resumes_to_the_end(tmp_path, tasks, steps):
    command = f"{TRAIN} --config.train.num_steps={steps} --workdir={tmp_path / 'run'}"
    job = submit(f"{LAUNCH} --partition=low --tasks_per_node={tasks} -- {command}")
    wait(lambda: last_step(tmp_path / "run") >= 50)
    assert ended(preempt()) == ("COMPLETED", 0)
    stopped_at = last_step(tmp_path / "run")
    assert stopped_at < steps
    assert ended(job) == ("COMPLETED", 0)
    assert state(job)["Restarts"] == "1"
    told = log(tmp_path / "run", job)
    saved = int(re.search(r"SIGTERM: saved step (\d+)", told)[1])
    assert f"resumed at step {saved}" in told and saved >= stopped_at
    assert last_step(tmp_path / "run") == steps


def test_before_its_time_limit_a_job_saves_and_is_requeued(tmp_path, task):
    limits = f"launch slurm --time=00:01:00 --grace_seconds=30 --python={task}"
    job = submit(f"{limits} --tasks_per_node=2 -- {TRAIN} --workdir={tmp_path / 'run'}")
    assert ended(job) == ("COMPLETED", 0)
    lines = [line for line in log(tmp_path / "run", job).splitlines() if not line.startswith(("srun", "slurmstepd"))]
    assert lines == 2 * ["started"] + 2 * ["saved"] + ["preempted and saved: requeued"] + 2 * ["went on"]


def test_a_cancelled_job_saves_and_is_not_requeued(tmp_path, task):
    job = submit(f"{LAUNCH.rpartition(' ')[0]} --python={task} -- {TRAIN} --workdir={tmp_path / 'run'}")
    wait(lambda: "started" in log(tmp_path / "run", job))
    subprocess.run(["scancel", job], check=True)
    assert ended(job)[0] == "CANCELLED"
    wait(lambda: "saved" in log(tmp_path / "run", job))
    assert state(job)["Restarts"] == "0"


def test_a_failed_job_is_not_requeued(tmp_path):
    diverging = "--config.optimizer.learning_rate=1e30 --config.train.num_steps=1000"
    job = submit(f"{LAUNCH} -- {TRAIN} {diverging} --workdir={tmp_path / 'run'}")
    assert ended(job) == ("FAILED", 1)
    assert "cfgjax: failed: " in log(tmp_path / "run", job)
    assert state(job)["Restarts"] == "0"


def test_two_processes_train_the_run_of_one(tmp_path):
    command = f"{TRAIN} --config.train.num_steps=200 --workdir={tmp_path / 'run'}"
    job = submit(f"{LAUNCH} --tasks_per_node=2 -- {command}")
    assert ended(job) == ("COMPLETED", 0), log(tmp_path / "run", job)
    assert log(tmp_path / "run", job).count("in 2 processes, new run") == 1
    assert last_step(tmp_path / "run") == 200


def test_an_array_executes_a_sweep_and_a_repeated_sweep_submits_the_unfinished_runs(tmp_path):
    overrides = {f"config.{key}": value for key, value in TINY.items()} | {"config.train.num_steps": 100}
    (tmp_path / "sweep.py").write_text(
        "BASE = 'experiments/mixture.py'\n"
        f"TINY = {overrides}\n"
        "def get_sweep():\n"
        "    runs = [(f'p_uncond={p}', TINY | {'config.diffusion.p_uncond': p}) for p in (0.1, 0.5)]\n"
        "    return [*runs, ('diverges', TINY | {'config.optimizer.learning_rate': 1e30})]\n"
    )
    out = tmp_path / "out"
    command = f"sweep --sweep={tmp_path / 'sweep.py'} --out={out} --launcher=slurm --time=10 --grace_seconds=60"
    job = submit(f"{command} --parallel=2 --python={sys.executable}")
    code, told, _ = run(f"{command} --python={sys.executable}")
    assert code == 0 and "submitted" not in told  # it is all in the queue
    wait(lambda: not queue())
    codes = {name: json.loads((out / f"{name}.json").read_text())["exit_code"] for name in runs(out)}
    assert codes == {"p_uncond=0.1": 0, "p_uncond=0.5": 0, "diverges": 1}
    assert {last_step(out / name) for name in codes if codes[name] == 0} == {100}
    (out / "p_uncond=0.5.json").unlink()  # as though it had been killed
    code, told, _ = run(f"{command} --python={sys.executable}")
    assert code == 1
    assert re.search(r"array of 1\b", told)
    assert re.search(r"diverges +failed +\d+ +cfgjax: failed: ", told)
    assert not re.search(rf"submitted job {job}\b", told)
    wait(lambda: not queue())
    assert json.loads((out / "p_uncond=0.5.json").read_text())["exit_code"] == 0
    assert run(f"{command} --only=p_uncond=0.5,p_uncond=0.1 --python={sys.executable}")[0] == 0


def test_a_task_of_an_array_that_saved_is_requeued_and_writes_its_record_at_the_end(tmp_path, task):
    (tmp_path / "sweep.py").write_text(
        "BASE = 'experiments/mixture.py'\ndef get_sweep():\n    return [('a', {}), ('b', {'config.seed': 1})]\n"
    )
    out = tmp_path / "out"
    limits = f"--launcher=slurm --time=10 --grace_seconds=60 --python={task}"
    job = submit(f"sweep --sweep={tmp_path / 'sweep.py'} --out={out} {limits}")
    wait(
        lambda: all((out / f"{name}.log").exists() and "started" in (out / f"{name}.log").read_text() for name in "ab")
    )
    subprocess.run(["scancel", "--signal=TERM", f"{job}_0"], check=True)
    wait(lambda: "saved" in (out / "a.log").read_text())
    assert not (out / "a.json").exists()
    subprocess.run(["scancel", f"{job}_1"], check=True)
    wait(lambda: not queue())
    assert (out / "a.log").read_text().split("saved\n")[-1].endswith("went on\n")
    assert json.loads((out / "a.json").read_text())["exit_code"] == 0
    assert not (out / "b.json").exists()  # cancelled: to be run again
    code, told, _ = run(f"sweep --sweep={tmp_path / 'sweep.py'} --out={out} {limits}")
    assert code == 0 and "array of 1" in told


def runs(out):
    """The names of the runs of which there is a record."""
    return sorted(path.name.removesuffix(".json") for path in out.glob("*.json"))


def queue():
    """What is in the queue."""
    told = subprocess.run(["squeue", "--noheader", "--me"], capture_output=True, text=True, check=True, env=os.environ)
    return told.stdout.split()
