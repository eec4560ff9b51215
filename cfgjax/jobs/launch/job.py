"""The command that a launcher starts, as words and as text of a shell, and the limits that it runs under."""

import dataclasses
import re
from pathlib import Path

from cfgjax.base.errors import UsageError
from cfgjax.jobs.launch.quoting import command_word, shell_word


@dataclasses.dataclass(frozen=True)
class Job:
    """A cfgjax command. words: its name and flags; workdir: the value of that flag."""

    words: tuple
    workdir: str

    @property
    def name(self):
        """The last folder of the workdir."""
        return Path(self.workdir).absolute().name


def argv_of(python, words):
    """The words of `python -m cfgjax …`."""
    return [python, "-m", "cfgjax", *words]


def shell_lines(argv, indent=""):
    """Returns a command as shell text, with each flag on its own line."""
    first = next((i for i, word in enumerate(argv) if word.startswith("--")), len(argv))
    program = [command_word(argv[0]), *map(shell_word, argv[1:first])]
    return f" \\\n{indent}    ".join([" ".join(program), *map(shell_word, argv[first:])])


def dns_name(name):
    """name as a DNS label, as clouds and clusters want them: lower case, digits and hyphens, 40 characters at most."""
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-")
    return label if label[:1].isalpha() else f"run-{label}".strip("-")


def seconds_of(time):
    """Seconds of a time limit as Slurm reads it: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S."""
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


def check_python(python):
    """Raises UsageError unless --python can be the name of a program. srun would read "-…" as an option."""
    if not python or python.startswith("-"):
        raise UsageError(f"--python={python!r}: need an interpreter, such as --python=python3")


def check_name(name):
    """Raises UsageError unless --name is None or a name that clouds and clusters accept."""
    if name is not None and name != dns_name(name):
        raise UsageError(f"--name={name}: need lower-case letters, digits and hyphens, a letter first, 40 at most")


def check_time(time, grace_seconds):
    """Raises UsageError unless a time limit leaves at least as long to compute in as the grace that a save has."""
    seconds = seconds_of(time)
    if seconds < 2 * grace_seconds or not seconds:
        raise UsageError(
            f"--time={time} is {seconds} seconds, of which --grace_seconds={grace_seconds} are for saving; "
            f"give {max(60, 2 * grace_seconds)} seconds at least, or a shorter grace"
        )
