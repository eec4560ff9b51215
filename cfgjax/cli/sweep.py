"""`cfgjax sweep`."""

import collections
from collections.abc import Sequence
from typing import TYPE_CHECKING

from absl import flags

from cfgjax.base.errors import UsageError
from cfgjax.base.exits import DONE, FAILED, PREEMPTED
from cfgjax.base.files import check_folder
from cfgjax.base.paths import check_on_disk, define_path
from cfgjax.base.storage import AnyPath, place
from cfgjax.cli.common import define_allow_changes, no_arguments, required
from cfgjax.cli.launch import check_command, check_lines
from cfgjax.jobs.launch import slurm
from cfgjax.jobs.launch.job import argv_of, check_python, shell_lines
from cfgjax.jobs.launch.programs import check_interpreter, require
from cfgjax.jobs.sweep.entries import Entry, chosen, read_sweep
from cfgjax.runs.config import parse_flags

if TYPE_CHECKING:
    from cfgjax.jobs.sweep.run_records import EntryOutcome

SHARED = ("python",)  # Slurm's flags that the local launcher has too
UNFINISHED = ("interrupted", "waiting", "elsewhere")


def sweep(argv: list[str]) -> int:
    """--sweep=FILE --out=DIR [--launcher=local|slurm --parallel=N …]: executes the unfinished runs of a sweep."""
    given = flags.FlagValues()
    what = "Sweep: the name of an installed one, such as guidance, or a file."
    define_path("sweep", None, what, flag_values=given, local=True)
    define_path("out", None, "Folder for the runs' folders, logs and records.", flag_values=given)
    flags.DEFINE_enum(
        "launcher",
        "local",
        ["local", "slurm"],
        "Where to run: on this machine (local), or as an array of Slurm (slurm).",
        flag_values=given,
    )
    flags.DEFINE_integer(
        "parallel",
        None,
        "Number of runs at a time; by default 1 with local, all with slurm.",
        lower_bound=1,
        flag_values=given,
    )
    what = "Experiment, a name or a file, instead of the sweep's BASE."
    define_path("base", None, what, flag_values=given, local=True)
    define_path("workdir", None, "Workdir of the trained run, for a sweep that only evaluates.", flag_values=given)
    what = "Keys of the config, separated by commas, in which the runs may resume with other values."
    define_allow_changes(given, what)
    flags.DEFINE_string(
        "only", None, "Names of the runs to execute, separated by commas; by default all.", flag_values=given
    )
    what = "Run failed runs again; otherwise they are only reported."
    flags.DEFINE_bool("retry_failed", False, what, flag_values=given)
    flags.DEFINE_bool("dry_run", False, "Only print the commands or Slurm's script.", flag_values=given)
    own = set(given)
    slurm.define_flags(given)  # append_flag_values would hide the flags from --help
    for name in set(given) - own.union(SHARED):
        given[name].help = f"With --launcher=slurm: {given[name].help}"
    no_arguments(parse_flags(given, argv))
    required(given, "sweep", "out")
    check_lines(given)
    if given.launcher == "slurm":
        check_on_disk("--out", given.out)
        slurm.check_slurm_flags(given)
    elif odd := [name for name in given if given[name].present and name not in own.union(SHARED)]:
        raise UsageError(f"--{odd[0]} has no effect with --launcher=local")
    else:
        check_python(given.python)
    check_folder(given.out, f"--out={given.out}")

    options = dict(base=given.base, workdir=given.workdir, allow_changes=given.allow_changes)
    entries = read_sweep(given.sweep, given.out, **options)
    for entry in entries:
        try:
            for words in entry.commands:
                check_command(words)
        except UsageError as e:
            raise UsageError(f"sweep file {given.sweep}, run {entry.name!r}: {e}") from e
    if given.workdir is not None:
        from cfgjax.runs.workdir import read_settings

        read_settings(given.workdir)  # raises UsageError if it holds no run
    if given.only is not None:
        entries = chosen(entries, given.only)
    return {"local": local, "slurm": array}[given.launcher](given, entries)


def local(given: flags.FlagValues, entries: Sequence[Entry]) -> int:
    """Runs the entries on this machine. Returns the exit code."""
    from cfgjax.jobs.sweep import pool, run_records

    if given.dry_run:
        missing = [e for e in entries if not run_records.settled(given.out, e, retry_failed=given.retry_failed)]
        for words in (words for entry in missing for words in entry.commands):
            print(shell_lines(argv_of(given.python, words)))
        return DONE
    check_interpreter(given.python)
    make_folder(given.out)
    how = dict(parallel=given.parallel or 1, python=given.python, retry_failed=given.retry_failed)
    return tell(pool.run_all(entries, given.out, **how))


def array(given: flags.FlagValues, entries: Sequence[Entry]) -> int:
    """Submits the entries as a Slurm array. Returns the exit code."""
    from cfgjax.jobs.sweep import array, run_records

    missing, outcomes = array.left(entries, given.out, retry_failed=given.retry_failed)
    text = array.array_script(given, missing, given.out, given.parallel) if missing else ""
    if given.dry_run:
        print(text, end="")
        return DONE
    if missing:
        require("sbatch")
        make_folder(given.out)
        number = array.submit_array(missing, text, given.out)
        print(f"submitted job {number}, an array of {len(missing)}; output in {given.out}/<run>.log")
    for entry in missing:
        last = run_records.last_line(given.out, entry.name)
        outcomes[entry.name] = run_records.EntryOutcome(entry.name, "queued", None, last)
    return tell([outcomes[entry.name] for entry in entries])


def make_folder(out: AnyPath) -> None:
    """Creates the folder of the sweep. Raises UsageError if it cannot be created."""
    try:
        place(out).mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise UsageError(f"--out={out} cannot be created: {e.strerror}") from e


def tell(outcomes: "Sequence[EntryOutcome]") -> int:
    """Prints the table of a sweep. Returns 1 if a run failed, 75 if some have not ended, else 0."""
    from cfgjax.base.cells import aligned

    seconds = lambda outcome: "" if outcome.seconds is None else f"{outcome.seconds:.0f}"
    rows = [[o.name, o.state, seconds(o), o.last_line] for o in outcomes]
    counts = collections.Counter(o.state for o in outcomes)
    print("\n".join(["", *aligned([["run", "state", "s", "last line"], *rows], right=False)]))
    print(", ".join(f"{count} {state}" for state, count in counts.items()), flush=True)
    return FAILED if counts["failed"] else PREEMPTED if any(counts[state] for state in UNFINISHED) else DONE
