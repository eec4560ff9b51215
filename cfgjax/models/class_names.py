"""Labels by the names of their classes."""

from collections.abc import Sequence

from cfgjax.base.errors import UsageError, nearest, printable
from cfgjax.base.numerals import is_whole_number, whole_number
from cfgjax.base.storage import Place
from cfgjax.runs.settings import Settings
from cfgjax.runs.workdir import read_classes

SHOWN_LENGTH = 16  # characters of a name in a picture
MOST_NAMES = 20  # names in a message


def known_classes(workdir: str | Place, settings: Settings) -> list[str] | None:
    """Returns the names of the classes by label that the run in workdir recorded, or None if they do not fit."""
    classes = read_classes(workdir)
    return classes if classes is not None and len(classes) == settings.data.num_classes else None


def short_name(label: int, classes: Sequence[str] | None) -> str:
    """Returns what a picture calls a class: its number, or the first synonym of its name, cut if it is long."""
    name = str(label) if classes is None else printable(classes[label]).partition(",")[0]
    return name if len(name) <= SHOWN_LENGTH else f"{name[: SHOWN_LENGTH - 1]}…"


def label_of(word: str, classes: Sequence[str] | None) -> int:
    """Returns the label of a class name, or of a number. classes: names by label, None if they are not known.

    A name matches in any case; of names with synonyms, "tench, Tinca tinca", one synonym is enough. Raises UsageError
    for a name that is not known, or that several classes have.
    """
    name, known = word.strip().casefold(), classes or ()
    whole = [label for label, other in enumerate(known) if other.casefold() == name]
    parts = [label for label, other in enumerate(known) if name in map(str.strip, other.casefold().split(","))]
    found = whole or parts
    if len(found) == 1:
        return found[0]
    if found:
        labels = ", ".join(map(str, found))
        raise UsageError(f"class {printable(word)!r} is the name of several labels: {labels}; give a number")
    if is_whole_number(word):
        return whole_number(word)
    if not known:
        raise UsageError(
            f"label {printable(word)!r} is not a number, and the run recorded no class names: give a number"
        )
    synonyms = [printable(part.strip()) for other in known for part in other.split(",")]
    hint = nearest(word, synonyms)
    if hint.startswith(";") and len(synonyms) > MOST_NAMES:
        hint = f"; the classes are {', '.join(synonyms[:3])}, … {synonyms[-1]}"
    raise UsageError(f"there is no class {printable(word)!r}{hint}")
