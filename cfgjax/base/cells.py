"""Values as the cells of tables."""


def text(value):
    """A setting's value in words."""
    if isinstance(value, list | tuple):
        return "×".join(map(text, value))
    if value is None:
        return "none"
    return f"{value:,}" if type(value) is int else f"{value:g}" if isinstance(value, float) else str(value)


def either(values):
    """Several values in words."""
    return " or ".join(map(text, values))


def cell_text(cell, form):
    """A mean, with the standard deviation where there are several seeds, or a dash."""
    if cell is None:
        return "-"
    mean, std, count = cell
    return f"{mean:{form}}" + (f" ± {std:.2g}" if count > 1 else "")


def aligned(lines, *, right):
    """Lines of cells as columns of one width each."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    pad = str.rjust if right else str.ljust
    return ["  ".join(map(pad, line, widths)).rstrip() for line in lines]
