"""The command that a launcher starts, as a list of words and as shell text, and checks of names and time limits."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from cfgjax.base.errors import UsageError
from cfgjax.jobs.launch.quoting import command_word, shell_word


@dataclasses.dataclass(frozen=True)
class Job:
    """A cfgjax command. words: its name and flags. workdir: the value of --workdir."""

    words: tuple[str, ...]
    workdir: str

    @property
    def name(self) -> str:
        """The name of the workdir's last folder."""
        return Path(self.workdir).absolute().name


def argv_of(python: str, words: Iterable[str]) -> list[str]:
    """Returns the words of `python -m cfgjax …`."""
    return [python, "-m", "cfgjax", *words]


def shell_lines(argv: Sequence[str], indent: str = "") -> str:
    """Returns a command as shell text, with each flag on its own line."""
    first = next((i for i, word in enumerate(argv) if word.startswith("--")), len(argv))
    program = [command_word(argv[0]), *map(shell_word, argv[1:first])]
    return f" \\\n{indent}    ".join([" ".join(program), *map(shell_word, argv[first:])])


def dns_name(name: str) -> str:
    """Returns name as a DNS label for clouds and clusters: at most 40 lower-case letters, digits and hyphens."""
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-")
    return label if label[:1].isalpha() else f"run-{label}".strip("-")


def seconds_of(time: str) -> int:
    """Returns the seconds of a time limit in Slurm's format: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    match = re.fullmatch(r"(?:(\d{1,9})-)?(\d{1,9})(?::(\d{1,9}))?(?::(\d{1,9}))?", time, re.ASCII)
    if match is None:
        raise UsageError(f"--time={time}: need MINUTES, HH:MM:SS or DAYS-HH:MM:SS")
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is not None or len(numbers) == 3:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    else:
        hours, minutes, seconds = 0, *[*numbers, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def check_python(python: str | None) -> None:
    """Raises UsageError unless --python can be the name of a program. srun would read "-…" as an option."""
    if not python or python.startswith("-"):
        raise UsageError(f"--python={python!r}: need an interpreter, such as --python=python3")


def check_name(name: str | None) -> None:
    """Raises UsageError unless --name is None or a name that clouds and clusters accept."""
    if name is not None and name != dns_name(name):
        raise UsageError(
            f"--name={name}: need at most 40 lower-case letters, digits and hyphens, starting with a letter"
        )


def check_time(time: str, grace_seconds: int) -> None:
    """Raises UsageError unless the time limit is at least twice the grace period for saving."""
    seconds = seconds_of(time)
    if seconds < 2 * grace_seconds or not seconds:
        raise UsageError(
            f"--time={time} is {seconds} seconds, and --grace_seconds={grace_seconds} of them are for saving; "
            f"need at least {max(60, 2 * grace_seconds)} seconds, or fewer grace_seconds"
        )
