"""Runs a sweep as a Slurm array: one task per run, which resumes after preemption and writes the run's record."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from absl import flags

from cfgjax.base.json_files import read_json, write_json
from cfgjax.base.storage import AnyPath
from cfgjax.jobs.launch import slurm
from cfgjax.jobs.launch.job import argv_of, shell_lines
from cfgjax.jobs.launch.programs import output_of
from cfgjax.jobs.launch.quoting import shell_word, slurm_path
from cfgjax.jobs.sweep import run_records
from cfgjax.jobs.sweep.entries import Entry
from cfgjax.jobs.sweep.run_records import EntryOutcome

TASK_NUMBER = '"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"'


def slurm_folder(out: AnyPath) -> Path:
    """Returns the folder of Slurm's output and the job numbers."""
    return Path(out) / ".slurm"


def array_script(given: flags.FlagValues, entries: Sequence[Entry], out: AnyPath, parallel: int | None) -> str:
    """Returns the array's script. parallel: number of runs at a time, or None for all."""
    array = f"0-{len(entries) - 1}" + (f"%{parallel}" if parallel else "")
    name = given.job_name or Path(out).absolute().name
    return slurm.job_script(
        given, name, slurm_path(slurm_folder(out), "%A_%a.log"), task_lines(given, entries, out), array
    )


def task_lines(given: flags.FlagValues, entries: Iterable[Entry], out: AnyPath) -> list[str]:
    """Returns the script lines after the options: they run the task, handle its end and write its record."""
    cases = [line for i, entry in enumerate(entries) for line in case(given, i, entry)]
    path = f'{shell_word(str(out))}/"$name"'
    return [
        'case "$SLURM_ARRAY_TASK_ID" in',
        *cases,
        "esac",
        "trap : TERM  # the step receives SIGTERM too; wait until it has saved",
        f"rm -f -- {path}.json  # from an earlier start",
        f"run >> {path}.log 2>&1",
        "code=$?",
        *slurm.requeue_lines(TASK_NUMBER),
        'record="{\\"commands\\": $commands, \\"exit_code\\": $code, \\"seconds\\": $SECONDS}"',
        f'printf "%s\\n" "$record" > {path}.json.part && mv -- {path}.json.part {path}.json',
        'exit "$code"',
    ]


def case(given: flags.FlagValues, i: int, entry: Entry) -> list[str]:
    """Returns the script lines that define what task i runs."""
    steps = [slurm.srun(given, shell_lines(argv_of(given.python, words), " " * 8)) for words in entry.commands]
    return [
        f"{i})",
        f"    name={shell_word(entry.name)}",
        f"    commands={shell_word(json.dumps(entry.identity))}",
        "    run() {",
        *(f"        {step}{' &&' if n < len(steps) else ''}" for n, step in enumerate(steps, start=1)),
        "    }",
        "    ;;",
    ]


def left(entries: Iterable[Entry], out: AnyPath, *, retry_failed: bool) -> tuple[list[Entry], dict[str, EntryOutcome]]:
    """Returns ([entries to submit], {name: `EntryOutcome` of the others}). The others ended or are in the queue."""
    outcomes, missing, jobs = {}, [], read_jobs(out)
    queue = queued() if jobs else {}
    for entry in entries:
        state = queue.get(jobs.get(entry.name, ""))
        if state:
            outcomes[entry.name] = EntryOutcome(entry.name, state, None, run_records.last_line(out, entry.name))
        elif outcome := run_records.settled(out, entry, retry_failed=retry_failed):
            outcomes[entry.name] = outcome
        else:
            missing.append(entry)
    return missing, outcomes


def queued() -> dict[str, str]:
    """Returns {number of job or task: "queued" or "running"} of this user's jobs."""
    listing = output_of(["squeue", "--noheader", "--array", "--me", "--format=%i %T"])
    rows = [line.split() for line in listing.splitlines()]
    return {number: "queued" if state == "PENDING" else "running" for number, state in rows}


def submit_array(entries: Iterable[Entry], text: str, out: AnyPath) -> str:
    """Submits the script, saves the job number of each task and returns that of the array."""
    number = slurm.submit_script(text, slurm_folder(out))
    jobs = read_jobs(out) | {entry.name: f"{number}_{i}" for i, entry in enumerate(entries)}
    write_json(slurm_folder(out) / "jobs.json", jobs, indent=1)
    return number


def read_jobs(out: AnyPath) -> dict[str, str]:
    """Returns {name: task number} of all submitted runs. Raises UsageError if the file is damaged."""
    path = slurm_folder(out) / "jobs.json"
    remedy = "delete it when squeue lists no job of this sweep"
    try:
        jobs = read_json(path, remedy=remedy)
    except FileNotFoundError:
        return {}
    return read_json(path, keys=dict.fromkeys(jobs, str), remedy=remedy)
