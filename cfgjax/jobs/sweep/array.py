"""A sweep as an array of Slurm: a task for each run, which goes on after preemption and leaves the run's record."""

import json
from pathlib import Path

from cfgjax.base.json_files import read_json, write_json
from cfgjax.jobs.launch import slurm
from cfgjax.jobs.launch.job import argv_of, shell_lines
from cfgjax.jobs.launch.programs import output_of
from cfgjax.jobs.launch.quoting import shell_word, slurm_path
from cfgjax.jobs.sweep import records
from cfgjax.jobs.sweep.records import Outcome

NUMBER = '"${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"'


def folder(out):
    """Where Slurm's own output goes, and the numbers of the jobs."""
    return Path(out) / ".slurm"


def script(given, entries, out, parallel):
    """The text of the array's script. parallel: how many run at a time, or None."""
    array = f"0-{len(entries) - 1}" + (f"%{parallel}" if parallel else "")
    name = given.job_name or Path(out).absolute().name
    return slurm.script(given, name, slurm_path(folder(out), "%A_%a.log"), lines(given, entries, out), array)


def lines(given, entries, out):
    """The lines of the script after its options: the run of the task, its end, its record."""
    cases = [line for i, entry in enumerate(entries) for line in case(given, i, entry)]
    path = f'{shell_word(str(out))}/"$name"'
    return [
        'case "$SLURM_ARRAY_TASK_ID" in',
        *cases,
        "esac",
        "trap : TERM  # the step gets it too, saves, and is waited for",
        f"rm -f -- {path}.json  # of an earlier start",
        f"run >> {path}.log 2>&1",
        "code=$?",
        *slurm.requeue_lines(NUMBER),
        'record="{\\"commands\\": $commands, \\"exit_code\\": $code, \\"seconds\\": $SECONDS}"',
        f'printf "%s\\n" "$record" > {path}.json.part && mv -- {path}.json.part {path}.json',
        'exit "$code"',
    ]


def case(given, i, entry):
    """The lines that set what task i runs."""
    steps = [slurm.srun(given, shell_lines(argv_of(given.python, words), " " * 8)) for words in entry.commands]
    return [
        f"{i})",
        f"    name={shell_word(entry.name)}",
        f"    commands={shell_word(json.dumps(entry.commands))}",
        "    run() {",
        *(f"        {step}{' &&' if n < len(steps) else ''}" for n, step in enumerate(steps, start=1)),
        "    }",
        "    ;;",
    ]


def left(entries, out, *, retry_failed):
    """([entries to submit], {name: `Outcome` of the others}): not those that have ended, or are in the queue."""
    outcomes, missing, jobs = {}, [], read_jobs(out)
    queue = queued() if jobs else {}
    for entry in entries:
        state = queue.get(jobs.get(entry.name))
        if state:
            outcomes[entry.name] = Outcome(entry.name, state, None, records.last_line(out, entry.name))
        elif told := records.settled(out, entry, retry_failed=retry_failed):
            outcomes[entry.name] = told
        else:
            missing.append(entry)
    return missing, outcomes


def queued():
    """{number of job or task: "queued" or "running"} of this user's jobs."""
    told = output_of(["squeue", "--noheader", "--array", "--me", "--format=%i %T"])
    rows = [line.split() for line in told.splitlines()]
    return {number: "queued" if state == "PENDING" else "running" for number, state in rows}


def submit(entries, text, out):
    """Submits the script, and keeps the number of each task's job; returns that of the array."""
    number = slurm.submit(text, folder(out))
    jobs = read_jobs(out) | {entry.name: f"{number}_{i}" for i, entry in enumerate(entries)}
    write_json(folder(out) / "jobs.json", jobs, indent=1)
    return number


def read_jobs(out):
    """Returns {name: number of its task} of all submitted runs. Raises UsageError if the file is damaged."""
    path = folder(out) / "jobs.json"
    remedy = "delete it when squeue lists no job of this sweep"
    try:
        jobs = read_json(path, remedy=remedy)
    except FileNotFoundError:
        return {}
    return read_json(path, keys=dict.fromkeys(jobs, str), remedy=remedy)
