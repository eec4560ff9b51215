"""Submits a Slurm job as a script for sbatch.

Before the time limit and on preemption, Slurm sends SIGTERM to the processes of the step. They save and exit with 75,
and the script requeues the job. A cancelled or failed job is not requeued.
"""

import functools
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from absl import flags

from cfgjax.base.errors import UsageError
from cfgjax.base.exits import DONE
from cfgjax.base.files import check_folder
from cfgjax.base.paths import define_path
from cfgjax.base.storage import AnyPath, is_url
from cfgjax.jobs.launch.job import Job, argv_of, check_python, check_time, shell_lines
from cfgjax.jobs.launch.programs import output_of, require
from cfgjax.jobs.launch.quoting import check_shell_line, check_word, sbatch_line, slurm_path

SBATCH_OPTIONS = ("partition", "account", "qos", "constraint")


def define_flags(given: flags.FlagValues) -> None:
    """Adds the flags of this launcher."""
    text = functools.partial(flags.DEFINE_string, flag_values=given)
    integer = functools.partial(flags.DEFINE_integer, flag_values=given)
    path = functools.partial(define_path, flag_values=given)
    integer("nodes", 1, "Number of nodes.", lower_bound=1)
    integer("tasks_per_node", 1, "Processes per node, which share its devices.", lower_bound=1)
    integer("gpus_per_node", None, "GPUs per node; by default none are requested.", lower_bound=1)
    integer("cpus_per_task", None, "CPU cores per process; by default Slurm's.", lower_bound=1)
    text(
        "time",
        None,
        "Time limit, HH:MM:SS or DAYS-HH:MM:SS, which must be given; the job is then requeued and resumes.",
    )
    integer(
        "grace_seconds",
        300,
        "Seconds before the time limit at which the processes get SIGTERM and save.",
        lower_bound=1,
    )
    for name in SBATCH_OPTIONS:
        text(name, None, f"Slurm's --{name}; by default the cluster's.")
    text("job_name", None, "Name of the job; by default the last folder of the workdir, or of a sweep's --out.")
    flags.DEFINE_multi_string("sbatch", [], "Any other option of sbatch, such as --sbatch=--mem=64G", flag_values=given)
    text("setup", None, "A shell line to run first, such as 'module load cuda'.")
    path("logs", None, "Folder of the job's output, on a disk; by default <workdir>/slurm.", local=True)
    path(
        "python",
        sys.executable,
        "Python interpreter on the nodes; by default the path of the one that runs this command.",
        local=True,
    )


def launch(given: flags.FlagValues, job: Job) -> int:
    """Submits the job and prints its number and the path of its output."""
    check_slurm_flags(given)
    if given.logs is None and is_url(job.workdir):
        raise UsageError("--logs must be given: Slurm writes its output to a folder on a disk, not to a bucket")
    logs = Path(given.logs or Path(job.workdir) / "slurm")
    text = job_script(given, given.job_name or job.name, slurm_path(logs, "%j.log"), job_lines(given, job))
    if given.dry_run:
        print(text, end="")
        return DONE
    number = submit_script(text, logs)
    print(f"submitted job {number}; output in {logs / f'{number}.log'}")
    return DONE


def check_slurm_flags(given: flags.FlagValues) -> None:
    """Raises UsageError for flags that are missing, contradict each other, or cannot be written to the script."""
    if given.time is None:
        raise UsageError("--time must be given: the job saves before this limit and is requeued")
    check_time(given.time, given.grace_seconds)
    if given.gpus_per_node is not None and given.gpus_per_node % given.tasks_per_node:
        raise UsageError(
            f"--gpus_per_node={given.gpus_per_node} is not divisible by {given.tasks_per_node} tasks per node"
        )
    check_python(given.python)
    check_shell_line("setup", given.setup)
    if wrong := [option for option in given.sbatch if not re.fullmatch(r"--[a-z][\w-]*(=.*)?|-[a-zA-Z]\S*", option)]:
        raise UsageError(f"--sbatch={wrong[0]!r}: need an option of sbatch, such as --sbatch=--mem=64G")


def submit_script(text: str, logs: AnyPath) -> str:
    """Submits a script and returns its job number. logs: the folder of its output, created if missing."""
    check_folder(logs, f"the folder {logs} of Slurm's output")
    require("sbatch")
    try:
        Path(logs).mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UsageError(f"the folder {logs} of Slurm's output cannot be created: {e.strerror}") from e
    return output_of(["sbatch", "--parsable"], text).partition(";")[0]


def job_script(given: flags.FlagValues, name: str, log: str, lines: Iterable[str], array: str | None = None) -> str:
    """Returns a job's script: options, environment, then lines. log: a path with Slurm's %j or %A and %a."""
    options = [
        f"--job-name={name}",
        *([f"--array={array}"] if array else []),
        f"--nodes={given.nodes}",
        f"--ntasks-per-node={given.tasks_per_node}",
        *([f"--gpus-per-node={given.gpus_per_node}"] if given.gpus_per_node else []),
        *([f"--cpus-per-task={given.cpus_per_task}"] if given.cpus_per_task else []),
        f"--time={given.time}",
        *(f"--{option}={given[option].value}" for option in SBATCH_OPTIONS if given[option].value),
        f"--output={log}",
        "--open-mode=append",
        "--requeue",
        f"--signal=TERM@{given.grace_seconds}",
    ]
    head = [sbatch_line(option) for option in [*options, *given.sbatch]]
    setup = [given.setup] if given.setup else []
    exports = f"export CFGJAX_GRACE_SECONDS={given.grace_seconds}"
    text = "\n".join(["#!/usr/bin/env bash", *head, "", exports, *setup, "", *lines]) + "\n"
    check_word(text, "the script")
    if "\r\n" in text:
        raise UsageError("a value of the job has a DOS line break (\\r\\n); sbatch refuses such scripts")
    return text


def job_lines(given: flags.FlagValues, job: Job) -> list[str]:
    """Returns script lines that run the job's command and requeue the job if it saved."""
    return [
        "trap : TERM  # the step receives SIGTERM too; wait until it has saved",
        srun(given, shell_lines(argv_of(given.python, job.words))),
        "code=$?",
        *requeue_lines('"$SLURM_JOB_ID"'),
        'exit "$code"',
    ]


def requeue_lines(number: str) -> list[str]:
    """Returns script lines that exit if the job with this number was cancelled, and requeue it if it saved."""
    return [
        f'if [ "$(squeue --noheader --jobs={number} --format=%T)" != RUNNING ]; then',
        '    exit "$code"  # cancelled or timed out',
        "fi",
        'if [ "$code" = 75 ]; then',
        '    echo "preempted and saved: requeued"',
        f"    scontrol requeue {number} && exit 0",
        "fi",
    ]


def srun(given: flags.FlagValues, command: str) -> str:
    """Returns the srun line that runs a command in all tasks. The end of a task does not kill those still saving."""
    options = "--kill-on-bad-exit=0"
    if given.cpus_per_task:
        options += f" --cpus-per-task={given.cpus_per_task}"  # srun does not inherit it from sbatch
    if given.gpus_per_node and given.tasks_per_node > 1:
        options += f" --gpus-per-task={given.gpus_per_node // given.tasks_per_node}"
    return f"srun {options} {command}"
