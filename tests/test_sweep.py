"""Sweeps: what a file lists, and runs that are finished, stopped, killed and failed when a sweep is repeated."""

import fcntl
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
from command import ROOT, finish, start, wait_until

from cfgjax.base.errors import UsageError
from cfgjax.cli import main as cli
from cfgjax.jobs.sweep.entries import made_name, read_sweep
from cfgjax.jobs.sweep.run_records import last_line

TINY = {
    "config.data.num_examples": 256,
    "config.model.width": 16,
    "config.train.batch_size": 16,
    "config.train.steps_per_dispatch": 5,
    "config.train.num_steps": 20,
    "config.train.log_every_steps": 10,
    "config.checkpoint.every_steps": 1000,
    "config.sample.every_steps": 1000,
    "config.sample.per_cell": 2,
    "config.sample.num_steps": 4,
}
# in place of the interpreter: what it does is in a file of the run's name, in $DOES; it leaves a line for each call
CHILD = """#!/usr/bin/env bash
for word; do case $word in --workdir=*) name=${word##*/};; esac; done
echo "$3 $name" >> "$DOES/calls"
eval "$(cat "$DOES/$name")"
"""
WAITS = 'trap "echo saved; exit 75" TERM INT; echo ready; for _ in $(seq 300); do sleep 0.1; done'


def sweep_file(folder, text, name="sweep.py"):
    path = folder / name
    path.write_text(text)
    return path


def sweep(*words):
    return cli.run_command(["sweep", *map(str, words)])


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """fakes({run: what it does}, commands): the words of a sweep of them, of which nothing is trained."""
    child = tmp_path / "child"
    child.write_text(CHILD)
    child.chmod(0o755)
    monkeypatch.setenv("DOES", str(tmp_path))

    def fakes(does, commands=("train",)):
        for name, text in does.items():
            (tmp_path / name).write_text(text)
        runs = [(name, {}) for name in does]
        path = sweep_file(
            tmp_path,
            f"BASE, COMMANDS = 'experiments/mixture.py', {commands}\ndef get_sweep():\n    return {runs}\n",
        )
        return [f"--sweep={path}", f"--out={tmp_path / 'out'}", f"--python={child}"]

    return fakes


def wait_until_ready(*logs):
    """Until the runs of these logs have said so."""
    deadline = time.monotonic() + 300
    while not all(log.exists() and "ready" in log.read_text().splitlines() for log in logs):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def calls(folder):
    """The calls so far, which are forgotten."""
    said = (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []
    (folder / "calls").unlink(missing_ok=True)
    return said


def states(out):
    """{run: state} of the table that was printed last."""
    rows = out.rpartition("last line\n")[2].splitlines()[:-1]
    return {row.split()[0]: row.split()[1] for row in rows}


@pytest.mark.e2e
def test_a_sweep_of_real_runs_trains_and_evaluates_each(tmp_path):
    evaluate = {"num_samples": 60, "num_steps": 4, "guidance": (0.0, 1.0), "sampler": "ancestral(v=0.3)"}
    path = sweep_file(
        tmp_path,
        f"BASE, COMMANDS = 'experiments/mixture.py', ('train', 'evaluate')\nTINY = {TINY | evaluate}\n"
        "def get_sweep():\n    return [('a b'.replace(' ', '_'), TINY)]\n",
    )
    out = tmp_path / "out"
    code, told, err = finish(start(f"sweep --sweep={path} --out={out}"))
    assert code == 0, (out / "a_b.log").read_text() + err
    rows = json.loads((out / "a_b" / "evaluation" / "frontier.json").read_text())["rows"]
    assert {row["guidance_weight"] for row in rows} == {0.0, 1.0}
    record = json.loads((out / "a_b.json").read_text())
    assert record["exit_code"] == 0 and [words[0] for words in record["commands"]] == ["train", "evaluate"]
    assert re.search(r"a_b +finished +\d+ +wrote frontier.json", told)
    code, told, _ = finish(start(f"sweep --sweep={path} --out={out}"))
    assert code == 0 and states(told) == {"a_b": "skipped"}


def test_a_repeated_sweep_skips_finished_runs_resumes_stopped_ones_and_reports_failures(fakes, tmp_path, capsys):
    does = {"ends": "exit 0", "stops": "exit 75", "fails": "echo no luck >&2; exit 3"}
    words = fakes(does)
    assert sweep(*words) == 1
    assert states(capsys.readouterr().out) == {"ends": "finished", "stops": "interrupted", "fails": "failed"}
    assert calls(tmp_path) == ["train ends", "train stops", "train fails"]
    (tmp_path / "stops").write_text("echo went on")
    assert sweep(*words) == 1
    out = capsys.readouterr().out
    assert states(out) == {"ends": "skipped", "stops": "finished", "fails": "failed"}
    assert re.search(r"fails +failed +\d+ +no luck\n", out)
    assert calls(tmp_path) == ["train stops"]
    (tmp_path / "fails").write_text("exit 0")
    assert sweep(*words, "--retry_failed", "--only=fails,ends") == 0
    assert calls(tmp_path) == ["train fails"]
    assert not [path for path in (tmp_path / "out").iterdir() if "part" in path.name]


DAMAGED_JSON = ["", "[]", "3", "{}", "{", "\0" * 40, "[" * 100_000, '{"exit_code": "0", "commands": [], "seconds": 1}']


@pytest.mark.parametrize("content", DAMAGED_JSON, ids=range(8))
def test_a_run_whose_record_is_damaged_is_started_again_and_reported(fakes, tmp_path, caplog, content):
    words = fakes({"a": "exit 0"})
    assert sweep(*words) == 0
    (tmp_path / "out" / "a.json").write_text(content)
    assert sweep(*words) == 0
    assert calls(tmp_path) == ["train a"] * 2
    (record,) = caplog.records
    assert "a.json is damaged" in record.getMessage()


@pytest.mark.parametrize("content", [*DAMAGED_JSON[:3], *DAMAGED_JSON[4:7], '{"a": 3}'], ids=range(7))
def test_damaged_job_numbers_are_a_one_line_error(fakes, tmp_path, content):
    words = fakes({"a": "exit 0"})
    (tmp_path / "out" / ".slurm").mkdir(parents=True)
    (tmp_path / "out" / ".slurm" / "jobs.json").write_text(content)
    with pytest.raises(UsageError, match=r"jobs\.json is damaged: .*; delete it") as e:
        sweep(*words, "--launcher=slurm", "--time=1:00:00", "--dry_run")
    assert len(str(e.value).splitlines()) == 1


def test_stopped_runs_exit_with_75_and_the_second_command_waits_for_the_first(fakes, tmp_path, capsys):
    words = fakes({"a": "[ $3 = train ] || exit 75", "b": "exit 75"}, ("train", "evaluate"))
    assert sweep(*words) == 75
    assert states(capsys.readouterr().out) == {"a": "interrupted", "b": "interrupted"}
    assert calls(tmp_path) == ["train a", "evaluate a", "train b"]


def test_a_run_with_other_overrides_does_not_count_as_finished(fakes, tmp_path):
    words = fakes({"a": "exit 0"})
    assert sweep(*words) == 0
    text = (tmp_path / "sweep.py").read_text()
    (tmp_path / "sweep.py").write_text(text.replace("{}", "{'config.seed': 1}"))
    assert sweep(*words) == 0
    assert calls(tmp_path) == ["train a", "train a"]


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_sweep_stops_its_runs_and_starts_no_more(fakes, tmp_path, number):
    words = fakes({"a": WAITS, "b": WAITS, "c": "exit 0"})
    process = start(shlex.join(["sweep", *words, "--parallel=2"]))
    logs = [tmp_path / "out" / f"{name}.log" for name in "ab"]
    wait_until_ready(*logs)
    process.send_signal(number)
    code, out, err = finish(process)
    assert code == 75, err
    assert states(out) == {"a": "interrupted", "b": "interrupted", "c": "waiting"}
    assert all("saved" in log.read_text() for log in logs)


@pytest.mark.e2e
def test_runs_of_a_killed_sweep_save_and_end(fakes, tmp_path, capsys):
    saves = 'while [ -e "$DOES/hold" ]; do sleep 0.05; done; exit 75'
    words = fakes({"a": WAITS.replace("exit 75", f'touch "$DOES/asked"; {saves}', 1)})
    (tmp_path / "hold").touch()
    process = start(shlex.join(["sweep", *words]))
    log = tmp_path / "out" / "a.log"
    wait_until_ready(log)
    process.kill()
    finish(process)
    wait_until((tmp_path / "asked").exists, 60)
    assert sweep(*words) == 75
    assert states(capsys.readouterr().out) == {"a": "elsewhere"}
    (tmp_path / "hold").unlink()
    with open(log, "rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)  # when it has ended
    (tmp_path / "a").write_text("exit 0")
    assert sweep(*words) == 0


def test_a_dry_run_prints_the_remaining_commands(fakes, tmp_path, capsys):
    words = fakes({"a": "exit 0", "b": "exit 0"})
    assert sweep(*words, "--only=a") == 0
    before = sorted((tmp_path / "out").iterdir())
    capsys.readouterr()
    assert sweep(*words, "--dry-run") == 0
    made = capsys.readouterr().out
    command = ["train", "--config=experiments/mixture.py", f"--workdir={tmp_path / 'out' / 'b'}"]
    assert shlex.split(made.replace("\\\n", "")) == [str(tmp_path / "child"), "-m", "cfgjax", *command]
    assert sorted((tmp_path / "out").iterdir()) == before


def test_slurms_array_has_a_task_for_each_run_and_writes_its_record(fakes, tmp_path, capsys):
    """The script of a task, with what the cluster has replaced by functions of the shell."""
    words = fakes({"a": "exit 0", "b": "echo 'no luck'; exit 3"}, ("train", "evaluate"))
    (tmp_path / "out").mkdir()
    assert sweep(*words, "--launcher=slurm", "--time=60", "--parallel=1", "--dry_run") == 0
    script = capsys.readouterr().out
    assert "#SBATCH --array=0-1%1\n" in script
    cluster = 'srun() { shift; "$@"; }\nsqueue() { echo RUNNING; }\n'
    for task, code in [(0, 0), (1, 3)]:
        variables = {**os.environ, "SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_JOB_ID": "7"}
        assert subprocess.run(["bash", "-c", cluster + script], env=variables).returncode == code
    assert calls(tmp_path) == ["train a", "evaluate a", "train b"]
    assert sweep(*words) == 1  # the records are read as those of runs here
    out = capsys.readouterr().out
    assert states(out) == {"a": "skipped", "b": "failed"} and "no luck" in out


def test_names_of_runs_consist_of_the_values_that_differ():
    keys = {"config.diffusion.p_uncond", "config.seed", "config.data.seed", "config.model.sizes"}
    overrides = {"config.diffusion.p_uncond": 0.1, "config.seed": 0}
    assert made_name(overrides, keys - {"config.data.seed"}) == "p_uncond=0.1,seed=0"
    assert made_name(overrides | {"config.data.seed": 1}, keys) == "p_uncond=0.1,seed=0,data.seed=1"
    assert made_name({"config.model.sizes": (16, 8)}, keys) == "sizes=16x8"
    assert made_name({"config.data.path": "a/b c"}, {"config.data.path"}) == "path=a_b_c"


def test_keys_of_a_sweep_go_to_the_command_that_has_them(tmp_path):
    both = "BASE, COMMANDS = 'b.py', ('train', 'evaluate')\n"
    path = sweep_file(
        tmp_path, both + "def get_sweep():\n    return [('x', {'config.seed': 1, 'guidance': (0.0, 1)})]\n"
    )
    (entry,) = read_sweep(path, "out")
    train = ("train", "--config=b.py", "--workdir=out/x", "--config.seed=1")
    assert entry.commands == (train, ("evaluate", "--workdir=out/x", "--guidance=0.0,1"))
    path = sweep_file(tmp_path, "COMMANDS = ('evaluate',)\ndef get_sweep():\n    return [{'guidance': 0.3}]\n")
    (entry,) = read_sweep(path, "out", workdir="run")
    assert entry.name == "guidance=0.3"
    assert entry.commands == (("evaluate", "--workdir=run", "--out=out/guidance=0.3", "--guidance=0.3"),)


def test_allowed_changes_go_to_training_and_do_not_repeat_a_finished_run(fakes, tmp_path, capsys):
    words = fakes({"a": "exit 0", "b": "exit 75"}, ("train", "evaluate"))
    sweep(*words)
    calls(tmp_path)
    allowed = "--allow_changes=optimizer.learning_rate,seed"
    capsys.readouterr()
    assert sweep(*words, allowed, "--dry_run") == 0
    made = capsys.readouterr().out.replace("\\\n", "").splitlines()
    assert [allowed in shlex.split(line) for line in made if "cfgjax" in line] == [True, False]  # train, evaluate of b
    sweep(*words, allowed)
    assert calls(tmp_path) == ["train b"]
    with pytest.raises(UsageError, match="unknown config key 'optimizer.rate'"):
        sweep(*words, "--allow_changes=optimizer.rate")
    path = sweep_file(tmp_path, "COMMANDS = ('evaluate',)\ndef get_sweep():\n    return [{'guidance': 0.3}]\n")
    with pytest.raises(UsageError, match="--allow_changes has no effect"):
        read_sweep(path, "out", workdir="run", allow_changes=["seed"])


def test_the_last_line_of_a_log_is_that_of_the_run(tmp_path):
    (tmp_path / "a.log").write_text("one\nbar 1\rbar 2\n\nslurmstepd-n: error: x\nsrun: error: n: task 0: Exited\n")
    assert last_line(tmp_path, "a") == "bar 2"
    assert last_line(tmp_path, "b") == ""
    (tmp_path / "c.log").write_text("$ python -m cfgjax train --workdir=c\n")
    assert last_line(tmp_path, "c") == ""


BASE = "BASE = 'experiments/mixture.py'\n"
RUNS = "def get_sweep():\n    return "


@pytest.mark.parametrize(
    ("text", "flags", "told"),
    [
        (BASE + RUNS + "[('a', {}), ('a', {'config.seed': 1})]", "", "has 2 runs named 'a'"),
        (BASE + RUNS + "[{'config.seed': 1}, {'config.seed': 1}]", "", "has 2 runs named 'seed=1'"),
        (BASE + RUNS + "[]", "", "get_sweep() lists no runs"),
        (BASE + RUNS + "[('a/b', {})]", "", "'a/b' cannot be a run's folder"),
        (BASE + RUNS + "[('..', {})]", "", "'..' cannot be a run's folder"),
        (BASE + RUNS + "[('a.log', {})]", "", "'a.log' cannot be a run's folder"),
        (BASE + RUNS + "[('', {})]", "", "'' cannot be a run's folder"),
        (BASE + RUNS + f"[('{'a' * 151}', {{}})]", "", "need at most 150 letters"),
        (BASE + RUNS + "[('a', {'config.sed': 1})]", "", "run 'a': unknown config key 'sed', did you mean 'seed'?"),
        (BASE + RUNS + "[('a', {'config.seed': 'x'})]", "", "run 'a': "),
        (
            BASE + RUNS + "[('a', {'guidance': 1})]",
            "",
            "run 'a' sets 'guidance', a flag of evaluate, which is not among",
        ),
        (BASE + RUNS + "[('a', {'workdir': 1})]", "", "run 'a' sets 'workdir', which the sweep sets itself"),
        (BASE + RUNS + "['a']", "", "need {key: value} or (name, {key: value}), not 'a'"),
        (BASE + RUNS + "1 / 0", "", "get_sweep(): ZeroDivisionError"),
        (BASE + "COMMANDS = ('sample',)\n" + RUNS + "[{}]", "", "COMMANDS is ('sample',); need ('train',), "),
        (BASE + "COMMANDS = 5\n" + RUNS + "[{}]", "", "COMMANDS is 5; need ('train',), "),
        (BASE + "COMMANDS = None\n" + RUNS + "[{}]", "", "COMMANDS is None; need ('train',), "),
        (BASE + RUNS + "[{1: 2}]", "", "the key 1 is not a string"),
        (BASE + RUNS + "[{'config.seed': 10**5000}]", "", "'config.seed' has a value that cannot be converted to text"),
        (BASE + RUNS + "iter(dict, 1)", "", "get_sweep() lists more than 10000 runs"),
        (BASE + RUNS + "exit(3)", "", "get_sweep(): it calls sys.exit(3)"),
        ("raise SystemExit(0)", "", "it calls sys.exit(0)"),
        (BASE + RUNS + "[('a', {})]", f"--out={'x' * 300}", "cannot be created: File name too long"),
        (BASE, "", "has no get_sweep()"),
        ("def get_sweep(:", "", "SyntaxError"),
        (RUNS + "[('a', {})]", "", "has no BASE, and no --base=FILE is given"),
        (BASE + RUNS + "[('a', {})]", "--base=none.py", "there is no config file none.py"),
        (BASE + RUNS + "[('a', {})]", "--only=b", "--only=b: no run is named 'b'; known: a"),
        (BASE + RUNS + "[('a', {})]", "--workdir=x", "the sweep trains its runs; leave out --workdir"),
        (BASE + RUNS + "[('a', {})]", "--parallel=0", "--parallel=0: 0 is not a positive integer"),
        (BASE + RUNS + "[('a', {})]", "--launcher=slrum", "slrum"),
        (BASE + RUNS + "[('a', {})]", "--nodes=2", "--nodes has no effect with --launcher=local"),
        (BASE + RUNS + "[('a', {})]", "--launcher=slurm", "--time must be given"),
        ("COMMANDS = ('evaluate',)\n" + RUNS + "[{'guidance': 1}]", "", "the sweep needs --workdir=RUN"),
        ("COMMANDS = ('evaluate',)\n" + RUNS + "[{'guidance': 1}]", "--workdir=none", "none holds no run"),
        (
            "COMMANDS = ('evaluate',)\n" + RUNS + "[{'guidence': 1}]",
            "--workdir=x",
            "run 'guidence=1': Unknown command line flag 'guidence'",
        ),
    ],
)
def test_bad_input_is_a_one_line_error_before_any_work(tmp_path, text, flags, told):
    path = sweep_file(tmp_path, text)
    with pytest.raises(UsageError) as raised:
        sweep(f"--sweep={path}", f"--out={tmp_path / 'out'}", *flags.split())
    assert told in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("programs", [[], ["sbatch", "squeue"]], ids=["no program", "every program"])
def test_a_missing_sweep_file_and_an_out_that_is_a_file_are_refused(tmp_path, monkeypatch, programs):
    for name in programs:
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for missing in ("none.py", "x" * 300):
        with pytest.raises(UsageError, match=f"there is no sweep file {missing}"):
            sweep(f"--sweep={missing}", "--out=x")
    with pytest.raises(UsageError, match="--out must be given"):
        sweep("--sweep=none.py")
    path = sweep_file(tmp_path, BASE + RUNS + "[('a', {})]")
    with pytest.raises(UsageError, match="cannot be created: Not a directory"):
        sweep(f"--sweep={path}", f"--out={path}/out", f"--python={sys.executable}")
    with pytest.raises(UsageError, match="cannot be created: Not a directory"):
        sweep(f"--sweep={path}", f"--out={path}/out", "--launcher=slurm", "--time=60")
    with pytest.raises(UsageError, match="--python=no-such-python: there is no such program"):
        sweep(f"--sweep={path}", f"--out={tmp_path}/out", "--python=no-such-python")
