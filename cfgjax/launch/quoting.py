"""Words and texts as each language of a generated script reads them back: shell, sbatch, here-documents, Kubernetes."""

import re
import shlex

from cfgjax.errors import UsageError

CONTROL = re.compile(r"[\x00-\x1f\x7f\x85\u2028\u2029]")  # line breaks among them
KEYWORDS = {"if", "then", "else", "elif", "fi", "case", "esac", "for", "select", "while", "until", "do", "done"}
KEYWORDS |= {"in", "function", "time", "coproc"}


def check_word(word, what="a word of the command"):
    """Raises UsageError unless a process can be given the word and a script can hold it: UTF-8 without NUL."""
    if "\0" in word:
        raise UsageError(f"{what} {word!r} has a NUL character, which no process can be given")
    if any("\ud800" <= letter <= "\udfff" for letter in word):
        raise UsageError(f"{what} {word!r} is not UTF-8")


def shown(value):
    """The value as a line of an error message."""
    return value if value.isprintable() else repr(value)


def check_line(name, value):
    """Raises UsageError unless value, of the flag `name`, is one line of text, or None."""
    if value is not None and CONTROL.search(value):
        raise UsageError(f"--{name}={value!r}: need one line without control characters")
    check_word(value or "", f"--{name}")


def shell_word(word):
    """The word as any POSIX shell reads it: in single quotes, also over several lines, where it needs them."""
    check_word(word)
    return shlex.quote(word)


def command_word(word):
    """The word as a shell reads it as the name of a command, where NAME=VALUE and `if` mean something else."""
    quoted = shell_word(word)
    return f"'{word}'" if quoted == word and ("=" in word or word in KEYWORDS) else quoted


def check_shell_line(name, value):
    """Raises UsageError unless value, of the flag `name`, is a line of shell that ends where the line ends."""
    check_line(name, value)
    try:
        shlex.split(value or "", comments=True)
    except ValueError as e:
        raise UsageError(f"--{name}={value!r}: the line of shell is not complete: {str(e).lower()}") from e


def sbatch_line(option):
    """The line of a script that gives an option to sbatch, which reads a backslash as escape in quotes too."""
    if CONTROL.search(option):
        raise UsageError(f"{option!r} cannot be an option of sbatch: need one line without control characters")
    if shell_word(option) == option:
        return f"#SBATCH {option}"
    parts = re.split(r"([\\'])", option)
    return "#SBATCH " + "".join(f"\\{part}" if part in ("\\", "'") else f"'{part}'" for part in parts if part)


def slurm_path(folder, pattern):
    """The path of Slurm's output: `pattern`, of which Slurm replaces %j and the like, in a folder as it is."""
    if "\\" in str(folder):
        raise UsageError(f"the folder {str(folder)!r} of Slurm's output has a backslash, which Slurm does not take")
    return f"{str(folder).replace('%', '%%')}/{pattern}"


def here_document(command, text):
    """Lines of a shell that give text, lines of any kind, to the standard input of command."""
    check_word(text, "the script")
    lines, marker = text.split("\n"), "END"
    while marker in lines:
        marker += "_"
    return f'{command} <<"{marker}"\n{text}{marker}'


def kubernetes_word(word):
    """The word as Kubernetes reads it in a container's command: it replaces $(NAME), and takes $$ for $."""
    check_word(word)
    return word.replace("$", "$$")
