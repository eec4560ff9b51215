"""Hostile values in generated scripts, run in a real shell, arrive unchanged or are refused in one line.

Programs of clusters are replaced by ones that record their words. What sbatch and Kubernetes do to a text, which no
program here does, is done by functions of this file.
"""

import json
import os
import re
import shutil
import subprocess

import pytest
import yaml
from command import ROOT

from cfgjax.base.errors import UsageError
from cfgjax.cli import main as cli

HOSTILE = [
    *["$(touch pwned)", "`touch pwned`", "; touch pwned", "& touch pwned &", "| touch pwned", "> pwned", "(touch x"],
    *["'; touch pwned; '", '"; touch pwned; "', "'\"'\"; touch pwned", "\\'; touch pwned", "a #b", "#SBATCH --wrap=x"],
    *["-rf", "--config=other.py", "--", "*", "?[a-z]", "~", "{a,b}", "!!", "!x", "a=b", "if", "  spaces  ", "tab\tb"],
    *["%j", "%%j%A_%a", "100%", "\\", "a\\", "\\n", "\\\\", "$HOME", "${HOME}", "$$", "$", "$(HOME)", "$$(HOME)"],
    *["$$$(HOME)", "$(", "END", "<<END", "ünï→😀", "x" * 5000, "packjob :", "\u00a0", "\x1b[31m", "\x7f", "\u2028"],
    *["\n", "a\nb", "\n#SBATCH --wrap=x\n", "\ntouch pwned\n", "\nEND\ntouch pwned\n", "\nEND\nEND_\n  \ntouch pwned"],
    *["a\rb", "a\r\nb", "a\0b", "\udc80"],
]
PLAIN = [value for value in HOSTILE if value.isprintable() or value == "\u00a0"]
CLOUD = {"slurm": "--time=60", "tpu_vm": "--zone=z", "kubernetes": "--image=i --claim=c --hosts=1"}
STUB = '#!/bin/bash\nprintf "%s\\0" "$#" "$@" > "$RECORD/$$"\n'
SRUN = STUB.replace('printf "%s', 'while [[ $1 == --* ]]; do shift; done\nprintf "%s')


def short(value):
    """A value as the name of a test."""
    return ascii(value)[1:-1][:30]


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def shell(tmp_path):
    """shell(text): the calls, a list of words each, of the stubs that a script runs in an empty folder."""
    programs, empty, record = tmp_path / "bin", tmp_path / "empty", tmp_path / "record"
    programs.mkdir()
    (empty / "cfgjax").mkdir(parents=True)
    for name, text in {"python": STUB, "gcloud": STUB, "srun": SRUN, "squeue": "#!/bin/sh\necho RUNNING\n"}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)

    def shell(text, **environ):
        shutil.rmtree(record, ignore_errors=True)
        record.mkdir()
        environ = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}", "RECORD": str(record), **environ}
        done = subprocess.run(["bash", "-c", text], cwd=empty, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert not list(tmp_path.rglob("pwned"))
        found = [path.read_bytes().decode().split("\0")[:-1] for path in record.iterdir()]
        assert all(int(words[0]) == len(words) - 1 for words in found)
        return [words[1:] for words in found]

    return shell


def dry_run(capsys, *words):
    """What a command prints with --dry_run, or None where it refuses its words in one line."""
    refused = ""
    try:
        assert cli.run_command(list(words)) == 0
    except UsageError as e:
        refused = str(e)
    assert refused.isprintable()  # so that it is one line
    return None if refused else capsys.readouterr().out


def train(value, base="/runs"):
    return ["train", "--config=experiments/digits.py", f"--workdir={base}/{value}", f"--config.data.split={value}"]


def sbatch_options(script):
    """The options of a script as sbatch reads them, one a line, up to the first line that is no comment."""
    head = script.partition("\nexport ")[0].splitlines()
    lines = [sbatch_words(line.removeprefix("#SBATCH")) for line in head if line.startswith("#SBATCH")]
    assert [len(words) for words in lines] == [1] * (len(head) - 1)
    return [option for words in lines for option in words]


def sbatch_words(line):
    """The words of a line: with quotes, backslashes inside and outside of them, and comments."""
    words, word, quote, letters = [], None, "", iter(line)
    for letter in letters:
        if letter == "\\":
            word = (word or "") + next(letters)
        elif letter == quote:
            quote = ""
        elif quote:
            word = (word or "") + letter
        elif letter in "'\"":
            quote, word = letter, word or ""
        elif letter == "#":
            break
        elif letter.isspace():
            words, word = [*words, *([] if word is None else [word])], None
        else:
            word = (word or "") + letter
    assert not quote
    return [*words, *([] if word is None else [word])]


def slurm_file(pattern, job):
    """The file of a pattern, as Slurm's documentation says."""
    return re.sub("%(.)", lambda found: {"%": "%", "j": job}[found[1]], pattern)


def expanded(word, environ):
    """A word of a container's command as Kubernetes gives it: $(NAME) is replaced where there is such a variable."""
    found = lambda match: "$" if match[0] == "$$" else environ.get(match[1], match[0])
    return re.sub(r"\$\$|\$\(([^)]*)\)", found, word)


@pytest.mark.parametrize("value", HOSTILE, ids=short)
def test_words_of_the_command_arrive_as_given_or_are_refused(value, capsys, shell, tmp_path):
    words = train(value)
    local = dry_run(capsys, "launch", "local", "--python=python", "--num_processes=2", "--dry_run", "--", *words)
    assert (local is None) == (value in ("a\0b", "\udc80") or not value.strip())
    if local is not None:
        assert shell(local) == 2 * [["-m", "cfgjax", *words]]

    given = ["--time=60", "--python=python", "--logs=/logs", "--job_name=job", "--dry_run"]
    slurm = dry_run(capsys, "launch", "slurm", *given, "--", *words)
    assert (slurm is None) == (local is None or "\r\n" in value)
    if slurm is not None:
        assert shell(slurm) == [["python", "-m", "cfgjax", *words]]
        assert "--job-name=job" in sbatch_options(slurm)

    given = ["--image=i", "--claim=c", "--hosts=2", "--mount=/runs", "--dry_run"]
    kubernetes = dry_run(capsys, "launch", "kubernetes", *given, "--", *words)
    assert (kubernetes is None) == (local is None)
    if kubernetes is not None:
        (group,) = yaml.safe_load(kubernetes)["spec"]["replicatedJobs"]
        (container,) = group["template"]["spec"]["template"]["spec"]["containers"]
        found = [expanded(word, {"HOME": "/root", "touch pwned": "pwned"}) for word in container["command"]]
        assert found == ["python", "-m", "cfgjax", *words]

    given = ["--zone=z", "--setup=true", "--python=python", "--dry_run"]
    gcloud = dry_run(capsys, "launch", "tpu_vm", *given, "--", *words)
    assert (gcloud is None) == (local is None)
    if gcloud is not None:
        (call,) = shell(gcloud)
        (text,) = [word.removeprefix("--command=") for word in call if word.startswith("--command=")]
        waiting = "while [ -e job.pid ]; do sleep 0.01; done"  # for what runs in the background
        assert shell(f"{text}\n{waiting}") == [["-m", "cfgjax", *words]]


@pytest.mark.parametrize("value", HOSTILE, ids=short)
def test_flags_of_slurm_arrive_as_given_or_are_refused(value, capsys, shell):
    flags = ["--partition=", "--account=", "--qos=", "--constraint=", "--job_name=", "--sbatch=--comment=", "--logs=/"]
    given, words = ["launch", "slurm", "--time=60", "--python=python", "--dry_run"], ["--", *train("x")]
    if value not in PLAIN:
        assert [flag for flag in flags if dry_run(capsys, *given, flag + value, *words)] == []
        return
    if "\\" in value:  # which Slurm does not take in a path
        assert dry_run(capsys, *given, flags.pop() + value, *words) is None
    script = dry_run(capsys, *given, *(flag + value for flag in flags), *words)
    assert shell(script) == [["python", "-m", "cfgjax", *train("x")]]
    options = sbatch_options(script)
    for flag in flags:
        if flag == "--logs=/":
            (pattern,) = [option.removeprefix("--output=") for option in options if option.startswith("--output=")]
            assert slurm_file(pattern, "17") == os.path.normpath(f"/{value}") + "/17.log"
        else:
            assert flag.removeprefix("--sbatch=").replace("_", "-") + value in options


@pytest.mark.parametrize("value", HOSTILE, ids=short)
def test_the_array_of_a_sweep_runs_what_was_given_and_writes_its_record_or_is_refused(value, capsys, shell, tmp_path):
    path = tmp_path / "sweep.py"
    overrides = {"config.data.split": value}
    path.write_text(
        f"BASE = 'experiments/digits.py'\ndef get_sweep():\n    return [('x', {overrides!a}), ('-y', {overrides!a})]\n"
    )
    out = tmp_path / "out" / value[:100] if value in PLAIN and "\\" not in value else tmp_path / "out"
    given = [f"--sweep={path}", f"--out={out}", "--launcher=slurm", "--time=60", "--python=python", "--dry_run"]
    script = dry_run(capsys, "sweep", *given)
    assert (script is None) == (value in ("a\0b", "\udc80", "a\r\nb") or not value.strip())
    if script is not None:
        out.mkdir(parents=True)
        for task, name in enumerate(["x", "-y"]):
            words = [
                "train",
                "--config=experiments/digits.py",
                f"--workdir={out}/{name}",
                f"--config.data.split={value}",
            ]
            assert shell(script, SLURM_ARRAY_TASK_ID=str(task)) == [["python", "-m", "cfgjax", *words]]
            record = json.loads((out / f"{name}.json").read_text())
            assert record["commands"] == [words] and record["exit_code"] == 0


@pytest.mark.parametrize("out", ["a\nb", "a\0b", "\udc80", "a\\b"], ids=short)
def test_a_folder_that_no_option_of_sbatch_can_name_is_refused(out, capsys, tmp_path):
    path = tmp_path / "sweep.py"
    path.write_text("BASE = 'experiments/digits.py'\ndef get_sweep():\n    return [('x', {})]\n")
    given = [f"--sweep={path}", f"--out={tmp_path}/{out}", "--launcher=slurm", "--time=60", "--dry_run"]
    assert dry_run(capsys, "sweep", *given) is None
    assert dry_run(capsys, "launch", "slurm", "--time=60", "--dry_run", "--", *train("x", f"{tmp_path}/{out}")) is None


def clouded(capsys, launcher, flag):
    """What a launcher prints with one more flag."""
    return dry_run(capsys, "launch", launcher, *CLOUD.get(launcher, "").split(), flag, "--dry_run", "--", *train("x"))


@pytest.mark.parametrize("launcher", ["slurm", "tpu_vm"])
@pytest.mark.parametrize("value", ["a\nb", "a\0b", "a\\", "it's", 'say "x', "\udc80"], ids=short)
def test_a_setup_is_one_complete_line_of_shell(value, launcher, capsys):
    assert clouded(capsys, launcher, f"--setup={value}") is None
    whole = "module load 'cuda 12' && export X=\"$(echo 1)\"  # it's"
    assert whole in clouded(capsys, launcher, f"--setup={whole}").replace("'\"'\"'", "'")


@pytest.mark.parametrize("launcher", ["local", *CLOUD])
@pytest.mark.parametrize("value", ["", "-x", "--overlap", "a\nb", "a\0b", "\udc80"], ids=short)
def test_an_interpreter_is_a_program_and_no_option(value, launcher, capsys):
    assert clouded(capsys, launcher, f"--python={value}") is None


@pytest.mark.parametrize("name", ["a=b", "if", "time", "a b", "$(touch pwned)", "it's"])
def test_an_interpreter_of_any_name_is_run_by_a_script(name, capsys, shell, tmp_path):
    program = tmp_path / "bin" / name
    program.write_text(STUB)
    program.chmod(0o755)
    script = dry_run(capsys, "launch", "local", f"--python={name}", "--dry_run", "--", *train("x"))
    assert shell(script) == [["-m", "cfgjax", *train("x")]]


@pytest.mark.parametrize("value", ["mem=3G", "", "-", "--", "-p gpu", "--mem=3G\n", "--comment=\udc80"], ids=short)
def test_one_option_of_sbatch_is_given_at_a_time(value, capsys):
    assert clouded(capsys, "slurm", f"--sbatch={value}") is None


@pytest.mark.parametrize("value", ["-x", "A_b", "a\nb", "", "1", "a" * 41], ids=short)
@pytest.mark.parametrize("launcher", ["tpu_vm", "kubernetes"])
def test_names_in_clouds_are_labels(value, launcher, capsys):
    assert clouded(capsys, launcher, f"--name={value}") is None
