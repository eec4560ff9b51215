"""What is left of a sweep's run beside its folder: <name>.log, its output, and <name>.json, how it ended."""

import dataclasses
import json
import logging
from pathlib import Path

from cfgjax.base.errors import UsageError
from cfgjax.base.exits import DONE, PREEMPTED
from cfgjax.base.json_files import read_json, write_json

log = logging.getLogger("cfgjax")

STATES = {DONE: "finished", PREEMPTED: "interrupted"}  # of exit codes; any other is a failure
TAIL_BYTES = 8192
NOT_ITS_OWN = ("$ ", "srun: ", "slurmstepd")  # beginnings of lines: the command, and Slurm's after a failure's own


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A run's line of the table at the end. seconds: of its last start, or None."""

    name: str
    state: str
    seconds: float | None
    last_line: str


def log_path(out, name):
    """The file of a run's output."""
    return Path(out) / f"{name}.log"


def record_path(out, name):
    """The file that says how a run ended."""
    return Path(out) / f"{name}.json"


def write(out, entry, code, seconds):
    """Writes an entry's record, atomically."""
    record = {"commands": entry.commands, "exit_code": code, "seconds": round(seconds, 1)}
    write_json(record_path(out, entry.name), record, indent=None)


def read(out, entry):
    """Returns the record of an entry, or None if it has not ended with the same commands.

    A damaged record is reported and counts as missing.
    """
    path = record_path(out, entry.name)
    try:
        record = read_json(path, keys={"commands": list, "exit_code": int, "seconds": (float, type(None))})
    except FileNotFoundError:
        return None
    except UsageError as e:
        log.warning("%s; the run is started again", e)
        return None
    return record if record["commands"] == json.loads(json.dumps(entry.commands)) else None


def outcome(out, entry, record):
    """The `Outcome` that a record tells."""
    state = STATES.get(record["exit_code"], "failed")
    return Outcome(entry.name, state, record.get("seconds"), last_line(out, entry.name))


def settled(out, entry, *, retry_failed):
    """The `Outcome` of an entry that is not to be run again, finished or failed before; None where it is to be run."""
    record = read(out, entry)
    state = record and STATES.get(record["exit_code"], "failed")
    if state == "finished":
        return dataclasses.replace(outcome(out, entry, record), state="skipped")
    return outcome(out, entry, record) if state == "failed" and not retry_failed else None


def last_line(out, name):
    """The last line of a run's output that is not empty, its command or Slurm's, or nothing."""
    try:
        with open(log_path(out, name), "rb") as log:
            log.seek(max(0, log.seek(0, 2) - TAIL_BYTES))
            lines = log.read().decode(errors="replace").replace("\r", "\n").splitlines()
    except OSError:
        return ""
    told = [line.strip() for line in lines if line.strip() and not line.startswith(NOT_ITS_OWN)]
    return told[-1] if told else ""
