"""What launchers would start, and what they refuse; nothing is submitted here."""

import os
import re
import shlex
import shutil
import subprocess

import pytest
from command import ROOT

from cfgjax.base.errors import UsageError
from cfgjax.cli import main as cli
from cfgjax.jobs.launch import LAUNCHERS
from cfgjax.jobs.launch.job import dns_name, seconds_of

TRAIN = "train --config=experiments/digits.py --workdir=runs/digits"
NEEDED = {
    "local": "",
    "slurm": "--time=1:00:00",
    "tpu_vm": "--zone=z",
    "kubernetes": "--hosts=2 --image=i --claim=c --mount=/runs",
}
JOB_FILES = sorted(path for path in (ROOT / "launch").iterdir() if path.suffix != ".md")
HEADER = re.compile(r"# Made by, and ready to edit:\n((?:#   .*\n)+)")


def launch(words):
    return cli.run_command(["launch", *shlex.split(words)])


def dry_run(capsys, words):
    """What a command prints with --dry_run."""
    assert cli.run_command(shlex.split(words.replace("--dry_run", "--dry-run"))) == 0
    return capsys.readouterr().out


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(params=["no program", "every program"])
def installed(request, monkeypatch, tmp_path):
    """A machine with none of the programs of clusters and clouds, and one with all of them."""
    if request.param == "every program":
        for name in ("sbatch", "squeue", "gcloud", "kubectl"):
            (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
            (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


@pytest.mark.parametrize("path", JOB_FILES, ids=lambda path: path.name)
def test_job_files_are_what_their_commands_print(path, capsys):
    text = path.read_text()
    before = text[: HEADER.search(text).start()]
    made = ""
    for number, header in enumerate(HEADER.finditer(text)):
        words = shlex.split(header[1].replace("\\\n", " ").replace("#   ", " "))
        assert words[0] == "cfgjax"
        printed = dry_run(capsys, shlex.join(words[1:]))
        made += header[0] + printed.removeprefix(before if number == 0 and before in printed else "")
    assert text == before + made


@pytest.mark.parametrize("path", [p for p in JOB_FILES if p.suffix != ".yaml"], ids=lambda path: path.name)
def test_job_files_are_bash(path):
    assert subprocess.run(["bash", "-n", path]).returncode == 0


@pytest.mark.parametrize("name", LAUNCHERS)
def test_a_dry_run_starts_nothing_and_leaves_nothing(name, capsys, monkeypatch, tmp_path):
    shutil.copy("experiments/digits.py", tmp_path / "config.py")
    shutil.copy("experiments/base.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", os.devnull)
    workdir = "/runs/digits" if name == "kubernetes" else "runs/digits"
    train = f"train --config=config.py --workdir={workdir} --config.data.split='a b'"
    out = dry_run(capsys, f"launch {name} --dry_run {NEEDED[name]} -- {train}")
    assert "--config.data.split=a b" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.py", "config.py"]


def test_words_arrive_whole_through_the_shell(capsys, tmp_path):
    """A value with quotes, spaces and dollars is one word of the command that the script runs."""
    value = """it's "a b" $HOME *"""
    words = (
        f"launch slurm --dry_run --time=9:00:00 --python=show -- {TRAIN} {shlex.quote('--config.data.split=' + value)}"
    )
    (line,) = re.findall(r"srun (?:.*\\\n)*.*", dry_run(capsys, words))
    shown = f'srun() {{ shift; shift; printf "%s\\n" "$@"; }}\n{line.rstrip()}'
    out = subprocess.run(["bash", "-c", shown], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == f"--config.data.split={value}"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("", "the first word must be one of local, slurm, tpu_vm, kubernetes"),
        ("--dry_run", "the first word must be one of"),
        (f"sluurm -- {TRAIN}", "unknown launcher 'sluurm', did you mean 'slurm'?"),
        ("local", "give the command to launch after --"),
        ("local --", "give the command to launch after --"),
        (f"local {TRAIN}", "give the command to launch after --"),
        (f"local 2 -- {TRAIN}", "takes only flags"),
        (f"local -- {TRAIN.replace('train', 'trian')}", "unknown command to launch 'trian', did you mean 'train'?"),
        ("local -- train --workdir=x", "--config must be given"),
        ("local -- train --config=experiments/digits.py", "--workdir must be given"),
        ("local -- evaluate --guidance=1", "--workdir must be given"),
        ("local -- train --config=none.py --workdir=x", "there is no config file none.py"),
        (f"local -- {TRAIN} --config.train.batch=3", "unknown config key 'train.batch'"),
        (f"local -- {TRAIN} --config.train.batch_size=many", "invalid literal for int"),
        (f"local -- {TRAIN} --config.train.batch_size=0", "train.batch_size is 0"),
        (f"local -- {TRAIN} --config.optimizer.learning_rate=-1", "optimizer.learning_rate is -1"),
        ("local -- evaluate --workdir=x --guidence=1", "Unknown command line flag 'guidence'. Did you mean: guidance"),
        (f"local --num_processes=0 -- {TRAIN}", "--num_processes=0: 0 is not a positive integer"),
        (f"local --num_processes=1000000000 -- {TRAIN}", "--num_processes=1000000000: need at most 1024"),
        (f"local --devices_per_process=1000000000 -- {TRAIN}", "--devices_per_process=1000000000: need at most 1024"),
        (f"local --num_proceses=2 -- {TRAIN}", "Did you mean: num_processes"),
        (f"slurm -- {TRAIN}", "--time must be given"),
        (
            f"slurm --time=00:01:00 --grace_seconds=120 -- {TRAIN}",
            "--time=00:01:00 is 60 seconds, and --grace_seconds=120 of them are for saving; need at least 240 seconds",
        ),
        (f"slurm --time=soon -- {TRAIN}", "--time=soon: need MINUTES, HH:MM:SS or DAYS-HH:MM:SS"),
        (f"slurm --time=60 --nodes=-1 -- {TRAIN}", "--nodes=-1"),
        (f"slurm --time=60 --gpus_per_node=8 --tasks_per_node=3 -- {TRAIN}", "--gpus_per_node=8 is not divisible by 3"),
        (f"slurm --time=60 --sbatch=mem=3G -- {TRAIN}", "need an option of sbatch"),
        (f"slurm --time=60 --logs=README.md/x -- {TRAIN}", "cannot be created: Not a directory"),
        (f"slurm --time=60 --logs=README.md -- {TRAIN}", "README.md is not a directory"),
        (f"slurm --time=60 -- {TRAIN.replace('runs', 'README.md')}", "cannot be created: Not a directory"),
        (f"slurm --time=60 -- {TRAIN}{'x' * 300}", "cannot be created: File name too long"),
        (f"local --python=no-such-python -- {TRAIN}", "--python=no-such-python: there is no such program"),
        (f"tpu_vm --zone=z --name=A_b -- {TRAIN}", "--name=A_b: need at most 40 lower-case"),
        (f"tpu_vm -- {TRAIN}", "--zone must be given"),
        (f"tpu_vm --zone= -- {TRAIN}", "--zone must be given"),
        (f"tpu_vm --zone=z --action=create --accelerator_type= -- {TRAIN}", "--accelerator_type must be given"),
        (f"kubernetes --image= --claim=c --hosts=2 -- {TRAIN}", "--image must be given"),
        (f"kubernetes --image=i --claim=c --hosts=2 -- {TRAIN}'\n'", "is not below --mount=/runs"),
        (f"tpu_vm --zone=z --action=strat -- {TRAIN}", "unknown action 'strat', did you mean 'status'?"),
        (f"tpu_vm --zone=z --action=create -- {TRAIN}", "--accelerator_type must be given"),
        (f"kubernetes --image=i --claim=c -- {TRAIN}", "--hosts must be given"),
        (
            f"kubernetes --image=i --claim=c --hosts=2 -- {TRAIN}",
            "--workdir=runs/digits is not below --mount=/runs; it would be lost with its pod",
        ),
        (
            f"kubernetes --image=i --claim=c --hosts=2 --mount=runs --tpus_per_host=4 --tpu_topology=4x4 "
            f"--tpu_accelerator=t -- {TRAIN}",
            "--tpu_topology=4x4 has 16 chips; 2 hosts with 4 each have 8",
        ),
        (
            f"kubernetes --image=i --claim=c --hosts=2 --mount=runs --tpus_per_host=4 -- {TRAIN}",
            "--tpu_accelerator must",
        ),
        (
            f"kubernetes --image=i --claim=c --hosts=2 --mount=runs --name=A_b -- {TRAIN}",
            "--name=A_b: need at most 40 lower-case",
        ),
    ],
)
@pytest.mark.usefixtures("installed")
def test_bad_input_is_one_line(words, told):
    with pytest.raises(UsageError) as raised:
        launch(words)
    assert told in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "flags", "program"),
    [
        ("slurm", "--time=60", "sbatch"),
        ("tpu_vm", "--zone=z --action=logs", "gcloud"),
        ("kubernetes", "--hosts=2 --image=i --claim=c --mount={tmp}", "kubectl"),
    ],
)
def test_a_program_that_is_not_installed_or_fails_is_told(name, flags, program, monkeypatch, tmp_path):
    words = f"{name} {flags.format(tmp=tmp_path)} -- {TRAIN.replace('runs', str(tmp_path))}"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match=f"^there is no {program} on this machine; --dry_run prints"):
        launch(words)
    assert not list(tmp_path.iterdir())
    fake = tmp_path / program
    fake.write_text("#!/bin/sh\necho first >&2\necho 'no such partition' >&2\nexit 4\n")
    fake.chmod(0o755)
    with pytest.raises(ChildProcessError, match=f"^{program} ended with 4"):
        launch(words)


@pytest.mark.parametrize(
    ("name", "program", "answer", "told"),
    [("slurm", "sbatch", "17;here", "submitted job 17; output in "), ("kubernetes", "kubectl", "created", "created")],
)
def test_what_is_submitted_is_what_the_dry_run_prints(name, program, answer, told, capsys, monkeypatch, tmp_path):
    fake = tmp_path / program
    fake.write_text(f'#!/bin/sh\ncat > {tmp_path}/submitted\necho "{answer}"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    flags = NEEDED[name].replace("/runs", str(tmp_path))
    words = f"{name} {flags} -- {TRAIN.replace('runs', str(tmp_path))}"
    assert launch(words) == 0
    assert told in capsys.readouterr().out
    assert (
        dry_run(capsys, f"launch {words.replace(flags, flags + ' --dry_run')}") == (tmp_path / "submitted").read_text()
    )


@pytest.mark.parametrize(
    ("time", "seconds"),
    [("90", 5400), ("1:30", 90), ("2:00:00", 7200), ("1-12", 129600), ("1-00:30", 88200), ("0-0:0:5", 5)],
)
def test_time_limits_are_read_as_slurm_does(time, seconds):
    assert seconds_of(time) == seconds


@pytest.mark.parametrize(
    ("name", "label"), [("p_uncond=0.1", "p-uncond-0-1"), ("64", "run-64"), ("A" * 60, "a" * 40), ("Ω", "run")]
)
def test_names_for_clouds_are_labels(name, label):
    assert dns_name(name) == label
