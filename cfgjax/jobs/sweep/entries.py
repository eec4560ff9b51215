"""The runs that a sweep file lists: their names and their commands.

A sweep file has BASE, an experiment file, and `get_sweep()`, a list of overrides {"config.key": value} or of pairs
(name, overrides). COMMANDS, ("train",) by default, may be ("train", "evaluate"), or ("evaluate",), which needs no BASE:
keys that do not begin with "config." are flags of evaluate.
"""

import dataclasses
import itertools
import re
from collections import Counter
from pathlib import Path

from cfgjax.base.errors import UsageError, one_line
from cfgjax.base.python_files import call_function, guarded, load_module

WHAT = "sweep file"
COMMANDS = (("train",), ("train", "evaluate"), ("evaluate",))
OWN = ("workdir", "out")  # flags that the sweep gives itself
LONGEST_NAME = 150
MAX_RUNS = 10_000


@dataclasses.dataclass(frozen=True)
class Entry:
    """A run of a sweep. commands: the words of its cfgjax commands, which follow one another."""

    name: str
    commands: tuple


def read_sweep(path, out, *, base=None, workdir=None):
    """[`Entry`] of the sweep file at path, whose runs' folders are to lie in out.

    base: an experiment file in place of BASE; workdir: the trained run of a sweep of evaluate alone.
    """
    module = load(path)
    commands, base = getattr(module, "COMMANDS", ("train",)), base or getattr(module, "BASE", None)
    commands = tuple(commands) if isinstance(commands, list) else commands
    if commands not in COMMANDS:
        raise UsageError(f"sweep file {path}: COMMANDS is {commands!r}; need {', '.join(map(repr, COMMANDS))}")
    if (workdir is None) == (commands == ("evaluate",)):
        what = "needs --workdir=RUN, the trained run" if workdir is None else "trains its runs and takes no --workdir"
        raise UsageError(f"sweep file {path}: COMMANDS is {commands!r}: the sweep {what}")
    if base is None and "train" in commands:
        raise UsageError(f"sweep file {path} has no BASE, and no --base=FILE is given")
    found = named(listed(module, path), path)
    for name, overrides in found:
        check_overrides(name, overrides, commands)
    return [Entry(name, words(commands, o, Path(out) / name, base, workdir)) for name, o in found]


def load(path):
    """The module of a sweep file."""
    return load_module(path, WHAT)


def listed(module, path):
    """[(name or None, overrides)] of a module's get_sweep()."""
    found = call_function(module, "get_sweep", WHAT)
    items = guarded(lambda: list(itertools.islice(found, MAX_RUNS + 1)), path, WHAT, doing="get_sweep(): ")
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


def check_texts(overrides, path):
    """Raises UsageError unless the keys of overrides are strings and the values can be converted to text."""
    for key, value in overrides.items():
        if not isinstance(key, str):
            raise UsageError(f"sweep file {path}: the key {key!r} is not a string such as 'config.seed'")
        try:
            str(value)
        except Exception as e:
            raise UsageError(f"sweep file {path}: {key!r} has a value that cannot be written: {one_line(e)}") from e


def named(items, path):
    """[(name, overrides)], with names made where there are none. Raises UsageError where they cannot name folders."""
    keys = {key for _, overrides in items for key in overrides}
    found = [(made_name(overrides, keys) if name is None else name, overrides) for name, overrides in items]
    for name, count in Counter(name for name, _ in found).items():
        if count > 1:
            raise UsageError(f"sweep file {path} has {count} runs of the name {name!r}")
        plain = re.fullmatch(r"[\w=+,-][\w.=+,-]*", name) and not name.endswith((".json", ".log"))
        if not plain or len(name) > LONGEST_NAME:
            raise UsageError(
                f"sweep file {path}: {name!r} cannot be a run's folder: need letters, digits and _ . = + , - "
                f"(not first a dot, not last .json or .log), {LONGEST_NAME} at most"
            )
    return found


def made_name(overrides, keys):
    """ "p_uncond=0.1,seed=0": each override by the last part of its key, by all of it where another key ends alike."""
    last = lambda key: key.rpartition(".")[2]
    ends = Counter(map(last, keys))
    short = lambda key: last(key) if ends[last(key)] == 1 else key.removeprefix("config.")
    text = lambda value: "x".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    safe = lambda value: re.sub(r"[^\w.+-]+", "_", text(value))
    return ",".join(f"{short(key)}={safe(value)}" for key, value in overrides.items())


def check_overrides(name, overrides, commands):
    """Raises UsageError for keys that are of none of the commands."""
    for key in overrides:
        if not isinstance(key, str) or key in OWN:
            raise UsageError(f"run {name!r} sets {key!r}, which is the sweep's own")
        needed = "train" if key.startswith("config.") else "evaluate"
        if needed not in commands:
            raise UsageError(f"run {name!r} sets {key!r}, of {needed}, which is not among COMMANDS {commands!r}")


def words(commands, overrides, folder, base, workdir):
    """The words of each command of a run."""
    of_config = lambda key: key.startswith("config.")
    train = [f"--{key}={value}" for key, value in overrides.items() if of_config(key)]
    evaluate = [f"--{key}={listing(value)}" for key, value in overrides.items() if not of_config(key)]
    where = [f"--workdir={folder}"] if workdir is None else [f"--workdir={workdir}", f"--out={folder}"]
    made = {
        "train": ("train", f"--config={base}", f"--workdir={folder}", *train),
        "evaluate": ("evaluate", *where, *evaluate),
    }
    return tuple(made[command] for command in commands)


def listing(value):
    """A value as evaluate's flags take it, several separated by commas."""
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def chosen(entries, text):
    """The entries of the names in text, separated by commas, which names may have themselves."""
    by_name = {entry.name: entry for entry in entries}
    parts, found = text.split(","), []
    while parts:
        heads = [",".join(parts[:n]) for n in range(len(parts), 0, -1)]
        name = next((head for head in heads if head in by_name), None)
        if name is None:
            raise UsageError(f"--only={text}: no run is called {parts[0]!r}; there are {' '.join(by_name)}")
        found.append(by_name[name])
        parts = parts[name.count(",") + 1 :]
    return found
