"""Sweeps whose runs, logs and records are in a bucket, with scripts in place of the runs' commands."""

import contextlib
import json
import re

import pytest
from command import ROOT
from tiny import mixture_config

from cfgjax.base.errors import UsageError
from cfgjax.base.lease import lock
from cfgjax.base.storage import place
from cfgjax.cli.main import run_command
from cfgjax.jobs.sweep import logs
from cfgjax.runs.config import to_json

pytest_plugins = ["bucket_servers"]
pytestmark = pytest.mark.e2e

# in place of the interpreter: what it does is in a file of the run's name, in $DOES; it leaves a line for each call
CHILD = """#!/usr/bin/env bash
for word; do case $word in --workdir=*|--out=*) name=${word##*/};; esac; done
echo "$3 $name" >> "$DOES/calls"
eval "$(cat "$DOES/$name")"
"""


@pytest.fixture
def words(tmp_path, monkeypatch):
    """words(out, {run: what it does}): the words of a sweep. In S3, where no run can be trained, it evaluates one."""
    monkeypatch.chdir(ROOT)
    trained_run = tmp_path / "trained"
    trained_run.mkdir()
    (trained_run / "config.json").write_text(to_json(mixture_config()))
    child = tmp_path / "child"
    child.write_text(CHILD)
    child.chmod(0o755)
    monkeypatch.setenv("DOES", str(tmp_path))

    def words(out, does):
        for name, text in does.items():
            (tmp_path / name).write_text(text)
        runs = [(name, {}) for name in does]
        path = tmp_path / "sweep.py"
        evaluates = str(out).startswith("s3://")
        kind = "COMMANDS = ('evaluate',)" if evaluates else "BASE = 'experiments/mixture.py'"
        path.write_text(f"{kind}\ndef get_sweep():\n    return {runs}\n")
        trained = [f"--workdir={trained_run}"] * evaluates
        return ["sweep", f"--sweep={path}", f"--out={out}", f"--python={child}", *trained]

    yield words
    assert not (ROOT / "gs:").exists() and not (ROOT / "s3:").exists()


def calls(folder):
    """The calls so far, which are forgotten."""
    said = (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []
    (folder / "calls").unlink(missing_ok=True)
    return said


def states(out):
    """{run: state} of the table that was printed last."""
    rows = out.rpartition("last line\n")[2].splitlines()[:-1]
    return {row.split()[0]: row.split()[1] for row in rows}


def test_a_sweep_in_a_bucket_is_resumed(bucket, words, tmp_path, capsys):
    out = f"{bucket}/out"
    command, folder = ("evaluate", "--out") if out.startswith("s3://") else ("train", "--workdir")
    does = {"ends": "echo hello", "stops": "echo half; exit 75", "fails": "echo no luck >&2; exit 3"}
    assert run_command(words(out, does)) == 1
    assert states(capsys.readouterr().out) == {"ends": "finished", "stops": "interrupted", "fails": "failed"}
    assert calls(tmp_path) == [f"{command} ends", f"{command} stops", f"{command} fails"]
    assert b"hello\n" in bucket.get("out/ends.log")
    record = json.loads(bucket.get("out/ends.json"))
    assert record["exit_code"] == 0 and f"{folder}={out}/ends" in record["commands"][0]
    assert run_command(words(out, does | {"stops": "echo whole"})) == 1
    shown = capsys.readouterr().out
    assert states(shown) == {"ends": "skipped", "stops": "finished", "fails": "failed"}
    assert re.search(r"fails +failed +\d+ +no luck\n", shown)
    assert calls(tmp_path) == [f"{command} stops"]
    assert re.search(rb"half\n(.*\n)*whole\n", bucket.get("out/stops.log"))
    assert run_command([*words(out, does | {"fails": "exit 0"}), "--retry_failed"]) == 0
    assert calls(tmp_path) == [f"{command} fails"]


def test_a_sweep_that_trains_is_refused_in_s3(s3, words, tmp_path):
    path = tmp_path / "trains.py"
    path.write_text("BASE = 'experiments/mixture.py'\ndef get_sweep():\n    return [('a', {})]\n")
    with pytest.raises(UsageError, match=r"run 'a': workdir='s3://.*/out/a': checkpoints cannot be kept in s3://"):
        run_command(["sweep", f"--sweep={path}", f"--out={s3}/out"])
    assert not s3.names()


def test_a_run_that_another_sweep_executes_is_left_alone(gcs, words, tmp_path, capsys):
    out = f"{gcs}/out"
    place(out)
    with contextlib.closing(lock(place(out) / logs.LOCKS / "ends", str)):
        assert run_command(words(out, {"ends": "exit 0"})) == 75
    assert states(capsys.readouterr().out) == {"ends": "elsewhere"}
    assert calls(tmp_path) == []


def test_the_log_of_a_run_is_sent_while_it_grows(gcs, words, monkeypatch):
    monkeypatch.setattr(logs, "SEND_SECONDS", 0.2)
    log = logs.open_log(f"{gcs}/out", "run")
    log.file.write(b"first\n")
    for _ in range(200):
        with contextlib.suppress(FileNotFoundError):
            if gcs.get("out/run.log") == b"first\n":
                break
    log.file.write(b"second\n")
    log.close()
    assert gcs.get("out/run.log") == b"first\nsecond\n"


def test_slurm_needs_a_disk(gcs, words):
    with pytest.raises(UsageError, match="--out"):
        run_command([*words(f"{gcs}/out", {"ends": ""}), "--launcher=slurm", "--time=1:00:00"])
    assert gcs.names() == []
