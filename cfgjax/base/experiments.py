"""The experiment and sweep files that are installed with cfgjax, found by their names from any folder."""

import ast
import os
import re
from pathlib import Path

from cfgjax.base.errors import UsageError, nearest
from cfgjax.base.paths import ON_DISK
from cfgjax.base.storage import AnyPath, expanded, is_url

PACKAGE = Path(__file__).absolute().parents[1]
SWEEPS = "sweeps"  # folder within that of the experiments
NOT_EXPERIMENTS = ("base",)


def experiments_folder() -> Path:
    """Returns the folder of the experiments: that of the installed package, or of the checkout around it."""
    installed = PACKAGE / "_experiments"
    return installed if installed.is_dir() else PACKAGE.parent / "experiments"


def names(folder: Path) -> list[str]:
    """Returns the names of the files in a folder of experiments or sweeps."""
    return sorted(path.stem for path in folder.glob("*.py") if path.stem not in NOT_EXPERIMENTS)


def experiments() -> dict[str, str]:
    """Returns {name: first line of its description} of the experiments that come with cfgjax, sorted by name."""
    folder = experiments_folder()
    return {name: first_line(folder / f"{name}.py") for name in names(folder)}


def first_line(path: Path) -> str:
    """Returns the first line of the docstring of a Python file, without running it."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def file_of(text: AnyPath, what: str, folder: Path) -> str:
    """Returns the path of an installed file for its name, NAME or NAME:ARGUMENT, and any path unchanged.

    what: "config file" or "sweep file", for the error. Raises UsageError for a name that is not known, and for a path
    without a file that ends like that of an installed one.
    """
    text = expanded(str(text))
    if is_url(text):
        raise UsageError(f"{what} {text}: {ON_DISK}")
    name, mark, argument = text.partition(":")
    if os.path.exists(text) or os.path.exists(name):
        return text
    known = names(folder)
    if not re.fullmatch(r"\w+", name):
        own = Path(name).stem
        if own in known and name.endswith(".py"):
            raise UsageError(f"there is no {what} {name}; that of cfgjax is named {own}{mark}{argument}")
        return text
    if name not in known:
        raise UsageError(f"there is no {what} {text}{nearest(name, known)}")
    return f"{folder / name}.py{mark}{argument}"
