"""Several processes here: one exit code, one signal each, lines that say whose they are."""

import os
import signal
import subprocess
import sys
import time

import pytest
from command import ROOT, lives, wait_until
from tiny import EXPERIMENTS

from cfgjax.base.errors import UsageError
from cfgjax.cli import main as cli

CHILD = """#!/usr/bin/env bash
# in place of the interpreter; $CHILD_<i> is what process i does
eval "do=\\$CHILD_$CFGJAX_PROCESS_ID"
eval "$do"
"""
SAVES = 'trap "echo saved; exit 75" TERM; trap "exit 1" INT; echo ready; for _ in $(seq 300); do sleep 0.1; done'


@pytest.fixture
def start(tmp_path):
    """start(what process 0 does, what process 1 does, …, grace): the launcher as a process."""
    child = tmp_path / "child"
    child.write_text(CHILD)
    child.chmod(0o755)
    begun = []

    def start(*does, grace=60):
        command = f"launch local --num_processes={len(does)} --grace_seconds={grace} --python={child}"
        train = f"train --config=experiments/mixture.py --workdir={tmp_path / 'run'}"
        environment = {**os.environ, **{f"CHILD_{i}": do for i, do in enumerate(does)}}
        words = [sys.executable, "-m", "cfgjax", *command.split(), "--", *train.split()]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        begun.append(subprocess.Popen(words, cwd=ROOT, env=environment, **pipes))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def finish(process):
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("does", "code"),
    [
        (["exit 0", "exit 0"], 0),
        (["exit 0", "exit 75"], 75),
        (["exit 75", "sleep 0.3; exit 75"], 75),
        (["exit 75", "sleep 0.3; exit 3"], 3),
        (["sleep 0.5; exit 4", "exit 2", "exit 0"], 2),
        (["kill -KILL $$", "exit 0"], 137),
    ],
)
def test_the_exit_code_is_that_of_the_first_failure_or_says_that_some_saved(start, does, code):
    assert finish(start(*does))[0] == code


@pytest.mark.e2e
def test_lines_of_all_but_the_first_have_their_number(start):
    says = 'echo "$CFGJAX_NUM_PROCESSES at ${CFGJAX_COORDINATOR%:*}"; echo broken >&2'
    code, out, err = finish(start(says, f"sleep 0.5; {says}; printf half"))
    assert code == 0
    assert out.splitlines() == ["2 at 127.0.0.1", "[1] 2 at 127.0.0.1", "[1] half"]
    assert err.splitlines() == ["broken", "[1] broken"]


@pytest.mark.e2e
def test_one_failure_ends_all_in_bounded_time_and_is_told_last(start):
    began = time.monotonic()
    code, _, err = finish(start("sleep 60", "echo 'cfgjax: failed: disk full' >&2; exit 1", "sleep 60", grace=1))
    assert code == 1
    assert time.monotonic() - began < 15
    told = "cfgjax: failed: process 1 of 3 ended with 1: disk full; 2 processes that did not end were killed"
    assert err.splitlines()[-1] == told


@pytest.mark.e2e
@pytest.mark.parametrize("does", ["trap 'touch $HERE/saved_$I; exit 75' TERM", "trap '' TERM"], ids=["saves", "hangs"])
def test_processes_end_with_a_launcher_that_is_killed(start, tmp_path, does):
    says = f"HERE={tmp_path} I=$CFGJAX_PROCESS_ID; {does}; echo $$ > $HERE/pid_$I"
    runs = f"{says}; for _ in $(seq 600); do sleep 0.1; done"
    process = start(runs, runs, grace=1)
    files = [tmp_path / f"pid_{i}" for i in range(2)]
    wait_until(lambda: all(file.exists() and file.read_text().endswith("\n") for file in files), 30)
    process.kill()
    wait_until(lambda: not any(lives(int(file.read_text())) for file in files), 60)
    saved = sorted(path.name for path in tmp_path.glob("saved_*"))
    assert saved == (["saved_0", "saved_1"] if "saved" in does else [])


@pytest.mark.e2e
def test_a_process_does_not_begin_if_its_launcher_is_killed_before_it_is_registered(tmp_path):
    dies = f"""
import os, signal
from types import SimpleNamespace
from cfgjax.jobs.launch import children

def began(pid):
    print(pid, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

children.start(["touch", {str(tmp_path / "begun")!r}], SimpleNamespace(began=began))
"""
    told = subprocess.run([sys.executable, "-c", dies], cwd=ROOT, stdout=subprocess.PIPE, text=True).stdout
    wait_until(lambda: not lives(int(told)))
    assert not (tmp_path / "begun").exists()


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_every_process_once(start, number):
    process = start(SAVES, SAVES)
    ready = [process.stdout.readline() for _ in range(2)]
    assert sorted(ready) == ["[1] ready\n", "ready\n"]
    process.send_signal(number)
    code, out, err = finish(process)
    assert code == 75, err
    assert sorted(out.splitlines()) == ["[1] saved", "saved"]


@pytest.mark.parametrize("python", ["/nonexistent", "no-such-python", "/etc/passwd", "/tmp"])
@pytest.mark.parametrize("command", ["launch local", "sweep"])
def test_an_interpreter_that_cannot_be_started_is_bad_usage(command, python, tmp_path):
    config = EXPERIMENTS / "mixture.py"
    (tmp_path / "sweep.py").write_text(
        f"BASE = {str(config)!r}\nCOMMANDS = ('train',)\n\n\ndef get_sweep():\n    return [('a', {{}})]\n"
    )
    tail = {
        "launch local": ["--", "train", f"--config={config}", f"--workdir={tmp_path / 'run'}"],
        "sweep": [f"--sweep={tmp_path / 'sweep.py'}", f"--out={tmp_path / 'out'}"],
    }[command]
    with pytest.raises(UsageError, match=f"--python={python}"):
        cli.run_command([*command.split(), f"--python={python}", *tail])
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.py"]
