"""Reads the names and commands of the runs in a sweep file.

A sweep file defines BASE, the name or path of an experiment, and `get_sweep()`, which returns a list of overrides
{"config.key": value} or of pairs (name, overrides). COMMANDS is ("train",) by default; it may also be
("train", "evaluate") or ("evaluate",). The last needs no BASE. Keys that do not begin with "config." are flags of
evaluate.
"""

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

from cfgjax.base.errors import UsageError, one_line
from cfgjax.base.experiments import SWEEPS, experiments_folder, file_of
from cfgjax.base.python_files import call_function, guarded, load_module
from cfgjax.base.storage import AnyPath, place

SWEEP_FILE = "sweep file"
COMMAND_SEQUENCES = (("train",), ("train", "evaluate"), ("evaluate",))
OWN = ("workdir", "out")  # flags that the sweep sets
ALLOW = "--allow_changes="
LONGEST_NAME = 150
MAX_RUNS = 10_000

Commands = tuple[tuple[str, ...], ...]
ListedRun = tuple[str | None, dict[str, Any]] | list[Any]  # [name, overrides], as a file may write it too


@dataclasses.dataclass(frozen=True)
class Entry:
    """A run of a sweep. commands: the words of each of its cfgjax commands, in order."""

    name: str
    commands: Commands

    def allowing(self, keys: Iterable[str]) -> "Entry":
        """Returns the entry whose run may resume with other values of these keys of the config."""
        added = {"train": (f"{ALLOW}{','.join(keys)}",)}
        return dataclasses.replace(self, commands=tuple((*words, *added.get(words[0], ())) for words in self.commands))

    @property
    def identity(self) -> list[list[str]]:
        """The commands as a record has them: what the run is, not how it may resume."""
        return [[word for word in words if not word.startswith(ALLOW)] for words in self.commands]


def read_sweep(
    path: AnyPath,
    out: AnyPath,
    *,
    base: AnyPath | None = None,
    workdir: AnyPath | None = None,
    allow_changes: Sequence[str] = (),
) -> list[Entry]:
    """Returns the list of `Entry`s of the sweep file at path. The runs' folders are in out.

    base: an experiment file in place of BASE. workdir: the trained run, if the sweep only evaluates.
    allow_changes: keys of the config in which the runs may resume with other values.
    """
    module = load_sweep(path)
    commands, base = getattr(module, "COMMANDS", ("train",)), base or getattr(module, "BASE", None)
    commands = tuple(commands) if isinstance(commands, list) else commands
    if commands not in COMMAND_SEQUENCES:
        raise UsageError(f"sweep file {path}: COMMANDS is {commands!r}; need {', '.join(map(repr, COMMAND_SEQUENCES))}")
    if (workdir is None) == (commands == ("evaluate",)):
        what = "needs --workdir=RUN, the trained run" if workdir is None else "trains its runs; leave out --workdir"
        raise UsageError(f"sweep file {path}: COMMANDS is {commands!r}: the sweep {what}")
    if base is None and "train" in commands:
        raise UsageError(f"sweep file {path} has no BASE, and no --base=FILE is given")
    if allow_changes and "train" not in commands:
        raise UsageError(f"--allow_changes has no effect: COMMANDS of sweep file {path} is {commands!r}")
    found = named(listed(module, path), path)
    for name, overrides in found:
        check_override_keys(name, overrides, commands)
    entries = [Entry(name, words(commands, o, place(out) / name, base, workdir)) for name, o in found]
    return [entry.allowing(allow_changes) for entry in entries] if allow_changes else entries


def load_sweep(path: AnyPath) -> ModuleType:
    """Returns the module of a sweep file."""
    return load_module(file_of(path, SWEEP_FILE, experiments_folder() / SWEEPS), SWEEP_FILE)


def listed(module: ModuleType, path: AnyPath) -> list[ListedRun]:
    """Returns the list of (name or None, overrides) from a module's get_sweep()."""
    found = call_function(module, "get_sweep", SWEEP_FILE)
    file = str(module.__file__)  # path may be the name of an installed sweep
    items = guarded(lambda: list(itertools.islice(found, MAX_RUNS + 1)), file, SWEEP_FILE, doing="get_sweep(): ")
    if not items:
        raise UsageError(f"sweep file {path}: get_sweep() lists no runs")
    if len(items) > MAX_RUNS:
        raise UsageError(f"sweep file {path}: get_sweep() lists more than {MAX_RUNS} runs")
    found = [(None, item) if isinstance(item, dict) else item for item in items]
    for item in found:
        pair = isinstance(item, tuple | list) and len(item) == 2
        if not pair or not isinstance(item[0], str | None) or not isinstance(item[1], dict):
            raise UsageError(f"sweep file {path}: need {{key: value}} or (name, {{key: value}}), not {item!r:.80}")
        check_texts(item[1], path)
    return found


def check_texts(overrides: Mapping[Any, Any], path: AnyPath) -> None:
    """Raises UsageError unless the keys of overrides are strings and the values can be converted to text."""
    for key, value in overrides.items():
        if not isinstance(key, str):
            raise UsageError(f"sweep file {path}: the key {key!r} is not a string such as 'config.seed'")
        try:
            str(value)
        except Exception as e:
            raise UsageError(
                f"sweep file {path}: {key!r} has a value that cannot be converted to text: {one_line(e)}"
            ) from e


def named(items: Collection[ListedRun], path: AnyPath) -> list[tuple[str, dict[str, Any]]]:
    """Returns [(name, overrides)] with generated names for None. Raises UsageError if a name cannot be a folder's."""
    keys = {key for _, overrides in items for key in overrides}
    found = [(made_name(overrides, keys) if name is None else name, overrides) for name, overrides in items]
    for name, count in Counter(name for name, _ in found).items():
        if count > 1:
            raise UsageError(f"sweep file {path} has {count} runs named {name!r}")
        plain = re.fullmatch(r"[\w=+,-][\w.=+,-]*", name) and not name.endswith((".json", ".log"))
        if not plain or len(name) > LONGEST_NAME:
            raise UsageError(
                f"sweep file {path}: {name!r} cannot be a run's folder: need at most {LONGEST_NAME} letters, "
                f"digits and _ . = + , - with no dot at the start and no .json or .log at the end"
            )
    return found


def made_name(overrides: Mapping[str, Any], keys: Iterable[str]) -> str:
    """Returns a name such as "p_uncond=0.1,seed=0". Keys are cut to their last part if that is unique."""
    last = lambda key: key.rpartition(".")[2]
    ends = Counter(map(last, keys))
    short = lambda key: last(key) if ends[last(key)] == 1 else key.removeprefix("config.")
    text = lambda value: "x".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    safe = lambda value: re.sub(r"[^\w.+-]+", "_", text(value))
    return ",".join(f"{short(key)}={safe(value)}" for key, value in overrides.items())


def check_override_keys(name: str, overrides: Mapping[Any, Any], commands: tuple[str, ...]) -> None:
    """Raises UsageError for keys that belong to none of the commands."""
    for key in overrides:
        if not isinstance(key, str) or key in OWN:
            raise UsageError(f"run {name!r} sets {key!r}, which the sweep sets itself")
        needed = "train" if key.startswith("config.") else "evaluate"
        if needed not in commands:
            raise UsageError(f"run {name!r} sets {key!r}, a flag of {needed}, which is not among COMMANDS {commands!r}")


def words(
    commands: Iterable[str], overrides: Mapping[str, Any], folder: AnyPath, base: object, workdir: AnyPath | None
) -> Commands:
    """Returns the words of each command of a run."""
    of_config = lambda key: key.startswith("config.")
    train = [f"--{key}={value}" for key, value in overrides.items() if of_config(key)]
    evaluate = [f"--{key}={listing(value)}" for key, value in overrides.items() if not of_config(key)]
    where = [f"--workdir={folder}"] if workdir is None else [f"--workdir={workdir}", f"--out={folder}"]
    made = {
        "train": ("train", f"--config={base}", f"--workdir={folder}", *train),
        "evaluate": ("evaluate", *where, *evaluate),
    }
    return tuple(made[command] for command in commands)


def listing(value: object) -> str:
    """Returns a value as text for evaluate's flags; lists are separated by commas."""
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def chosen(entries: Iterable[Entry], text: str) -> list[Entry]:
    """Returns the entries named in a comma-separated text. Names may contain commas themselves."""
    by_name = {entry.name: entry for entry in entries}
    parts, found = text.split(","), []
    while parts:
        heads = [",".join(parts[:n]) for n in range(len(parts), 0, -1)]
        name = next((head for head in heads if head in by_name), None)
        if name is None:
            raise UsageError(f"--only={text}: no run is named {parts[0]!r}; known: {' '.join(by_name)}")
        found.append(by_name[name])
        parts = parts[name.count(",") + 1 :]
    return found
