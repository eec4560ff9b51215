"""The files of a sweep's run next to its folder: <name>.log, its output, and <name>.json, how it ended."""

import dataclasses
import json
import logging
from collections.abc import Mapping
from typing import Any

from cfgjax.base.errors import UsageError
from cfgjax.base.exits import DONE, PREEMPTED
from cfgjax.base.json_files import read_json, write_json
from cfgjax.base.storage import AnyPath, Place, local_file, place
from cfgjax.jobs.sweep.entries import Entry

log = logging.getLogger("cfgjax")

STATE_OF_CODE = {DONE: "finished", PREEMPTED: "interrupted"}  # by exit code; any other code is a failure
TAIL_BYTES = 8192
NOT_ITS_OWN = (
    "$ ",
    "srun: ",
    "slurmstepd",
)  # prefixes of log lines that the run did not print: the command, and Slurm's messages


@dataclasses.dataclass(frozen=True)
class EntryOutcome:
    """A run's line in the final table. seconds: duration since its last start, or None."""

    name: str
    state: str
    seconds: float | None
    last_line: str


def log_path(out: AnyPath, name: str) -> Place:
    """Returns the path of a run's output."""
    return place(out) / f"{name}.log"


def record_path(out: AnyPath, name: str) -> Place:
    """Returns the path of a run's record."""
    return place(out) / f"{name}.json"


def write_record(out: AnyPath, entry: Entry, code: int, seconds: float) -> None:
    """Writes an entry's record, atomically."""
    record = {"commands": entry.identity, "exit_code": code, "seconds": round(seconds, 1)}
    write_json(record_path(out, entry.name), record, indent=None)


def read_record(out: AnyPath, entry: Entry) -> dict[str, Any] | None:
    """Returns the record of an entry, or None if there is none with the same commands.

    A damaged record is reported and counts as missing.
    """
    path = record_path(out, entry.name)
    try:
        record = read_json(path, keys={"commands": list, "exit_code": int, "seconds": (float, type(None))})
    except FileNotFoundError:
        return None
    except UsageError as e:
        log.warning("%s; the run is restarted", e)
        return None
    return record if record["commands"] == json.loads(json.dumps(entry.identity)) else None


def outcome(out: AnyPath, entry: Entry, record: Mapping[str, Any]) -> EntryOutcome:
    """Returns the `EntryOutcome` of a record."""
    state = STATE_OF_CODE.get(record["exit_code"], "failed")
    return EntryOutcome(entry.name, state, record.get("seconds"), last_line(out, entry.name))


def settled(out: AnyPath, entry: Entry, *, retry_failed: bool) -> EntryOutcome | None:
    """Returns the `EntryOutcome` of an entry that finished or failed and is not run again, or None if it must run."""
    record = read_record(out, entry)
    if record is None:
        return None
    state = STATE_OF_CODE.get(record["exit_code"], "failed")
    if state == "finished":
        return dataclasses.replace(outcome(out, entry, record), state="skipped")
    return outcome(out, entry, record) if state == "failed" and not retry_failed else None


def last_line(out: AnyPath, name: str) -> str:
    """Returns the last line that the run itself printed, or ""."""
    try:
        with local_file(log_path(out, name)) as path, open(path, "rb") as log:
            log.seek(max(0, log.seek(0, 2) - TAIL_BYTES))
            lines = log.read().decode(errors="replace").replace("\r", "\n").splitlines()
    except OSError:
        return ""
    own = [line.strip() for line in lines if line.strip() and not line.startswith(NOT_ITS_OWN)]
    return own[-1] if own else ""
