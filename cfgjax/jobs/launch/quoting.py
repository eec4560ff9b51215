"""Quotes words and texts for generated scripts: shell, sbatch, here-documents and Kubernetes."""

import os
import re
import shlex

from cfgjax.base.errors import UsageError

CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")  # includes line breaks
KEYWORDS = {"if", "then", "else", "elif", "fi", "case", "esac", "for", "select", "while", "until", "do", "done"}
KEYWORDS |= {"in", "function", "time", "coproc"}


def check_word(word: str, what: str = "a word of the command") -> None:
    """Raises UsageError unless word is UTF-8 without NUL, as scripts and process arguments require."""
    if "\0" in word:
        raise UsageError(f"{what} {word!r} has a NUL character, which arguments cannot have")
    if any("\ud800" <= letter <= "\udfff" for letter in word):
        raise UsageError(f"{what} {word!r} is not UTF-8")


def check_line(name: str, value: str | None) -> None:
    """Raises UsageError unless the value of flag `name` is None or one line of text."""
    if value is not None and CONTROL.search(value):
        raise UsageError(f"--{name}={value!r}: need one line without control characters")
    check_word(value or "", f"--{name}")


def shell_word(word: str) -> str:
    """Quotes a word for any POSIX shell. It may have several lines."""
    check_word(word)
    return shlex.quote(word)


def command_word(word: str) -> str:
    """Quotes a word as the name of a command: NAME=VALUE and keywords such as `if` need quotes too."""
    quoted = shell_word(word)
    return f"'{word}'" if quoted == word and ("=" in word or word in KEYWORDS) else quoted


def check_shell_line(name: str, value: str | None) -> None:
    """Raises UsageError unless the value of flag `name` is one complete line of shell."""
    check_line(name, value)
    try:
        shlex.split(value or "", comments=True)
    except ValueError as e:
        raise UsageError(f"--{name}={value!r}: not a complete line of shell: {str(e).lower()}") from e


def sbatch_line(option: str) -> str:
    """Returns the #SBATCH line for an option. sbatch reads a backslash as an escape inside quotes too."""
    if CONTROL.search(option):
        raise UsageError(f"{option!r} cannot be an option of sbatch: need one line without control characters")
    if shell_word(option) == option:
        return f"#SBATCH {option}"
    parts = re.split(r"([\\'])", option)
    return "#SBATCH " + "".join(f"\\{part}" if part in ("\\", "'") else f"'{part}'" for part in parts if part)


def slurm_path(folder: str | os.PathLike[str], pattern: str) -> str:
    """Returns the path of Slurm's output: `pattern`, with codes such as %j, in a folder that is taken literally."""
    if "\\" in str(folder):
        raise UsageError(f"the folder {str(folder)!r} of Slurm's output has a backslash, which Slurm does not accept")
    return f"{str(folder).replace('%', '%%')}/{pattern}"


def here_document(command: str, text: str) -> str:
    """Returns lines of shell that pass text, unchanged, to the standard input of command."""
    check_word(text, "the script")
    lines, marker = text.split("\n"), "END"
    while marker in lines:
        marker += "_"
    return f'{command} <<"{marker}"\n{text}{marker}'


def kubernetes_word(word: str) -> str:
    """Quotes a word for a container's command, where Kubernetes replaces $(NAME) and reads $$ as $."""
    check_word(word)
    return word.replace("$", "$$")
