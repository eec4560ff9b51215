"""Tables as HTML, for notebooks."""

from collections.abc import Sequence
from html import escape


def html_table(lines: Sequence[Sequence[str]], note: str = "") -> str:
    """Returns a table of cells as HTML. The first line is the header; a line of one cell is a title."""
    head, *body = lines
    cells = lambda line, tag: "".join(f'<{tag} style="text-align:right">{escape(cell)}</{tag}>' for cell in line)
    title = lambda line: f'<td colspan="{len(head)}" style="text-align:left"><em>{escape(line[0])}</em></td>'
    rows = [f"<tr>{title(line) if len(line) == 1 else cells(line, 'td')}</tr>" for line in body]
    text = f"<table><thead><tr>{cells(head, 'th')}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return text + (f"<p>{escape(note)}</p>" if note else "")
