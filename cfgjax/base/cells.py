"""Formats values as the cells of text tables."""

from collections.abc import Collection, Iterable, Sequence


def text(value: object) -> str:
    """Returns a setting's value as text."""
    if isinstance(value, list | tuple):
        return "×".join(map(text, value))
    if value is None:
        return "none"
    return f"{value:,}" if type(value) is int else f"{value:g}" if isinstance(value, float) else str(value)


def either(values: Iterable[object]) -> str:
    """Returns several values as text, joined by "or"."""
    return " or ".join(map(text, values))


def cell_text(cell: tuple[float, float, int] | None, form: str) -> str:
    """Returns (value, spread, number of seeds) as text, "value ± spread" if there is a spread, or a dash for None."""
    if cell is None:
        return "-"
    mean, std, count = cell
    return f"{mean:{form}}" + (f" ± {std:.2g}" if count > 1 or std else "")


def aligned(lines: Collection[Sequence[str]], *, right: bool) -> list[str]:
    """Returns lines of text whose cells are padded to the width of their column."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    pad = str.rjust if right else str.ljust
    return ["  ".join(map(pad, line, widths)).rstrip() for line in lines]
