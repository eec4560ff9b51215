"""The commands and the Python snippets of documents, in their order.

Blocks are fenced with backticks or tildes, or indented by four spaces. Fences marked `python` are snippets, and those
marked as data are neither. Bash reads every other block and records the words of each command.
"""

import ast
import dataclasses
import re
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
DATA = {"text", "json", "yaml", "toml", "csv", "ini", "bibtex"}  # marks of fences that hold no commands
PAGES = [
    "README.md", "CONTRIBUTING.md", "benchmarks/README.md", "launch/README.md",
    *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md")),
]  # fmt: skip
EXPERIMENTS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "experiments").rglob("*.py"))
# Nothing is on the PATH, so that bash hands every command to the function; fd 3 escapes pipes and redirections.
RECORDER = """
command_not_found_handle() { printf '%s\\0' "$@" $'\\x1e' >&3; }
for builtin in source .; do eval "$builtin() { command_not_found_handle $builtin \\"\\$@\\"; }"; done
export -f command_not_found_handle
"""
PROGRAMS = r"(?:\.venv/bin/)?(?:cfgjax|python3?|pip|pytest|ruff|mypy|pre-commit)"


@dataclasses.dataclass(frozen=True)
class Command:
    """One command of a document. words: as the shell passes them."""

    document: str
    words: tuple

    def __str__(self):
        return f"{self.document}: {' '.join(self.words)}"


@dataclasses.dataclass(frozen=True)
class Snippet:
    """A block of Python of a document."""

    document: str
    text: str

    def __str__(self):
        return f"{self.document}: {self.text.splitlines()[0]} …"


def steps(document):
    """The commands and snippets of a page or an experiment file, in order."""
    text = (ROOT / document).read_text()
    if document.endswith(".py"):
        header = "\n".join(line for line in ast.get_docstring(ast.parse(text)).splitlines() if is_command(line))
        return commands(document, header)
    found: list = []
    for mark, block in blocks(text):
        if mark == "python":
            found.append(Snippet(document, block))
        elif mark not in DATA:
            found += commands(document, block)
    return found


def is_command(line):
    return re.match(rf"{PROGRAMS} ", line) is not None


def blocks(text):
    """[(mark of the fence, or "", text)] of the blocks of a page."""
    found: list = []
    lines = iter([*text.splitlines(), ""])
    before = ""
    for line in lines:
        if fence := re.match(r"(`{3,}|~{3,})\s*(\w*)", line):
            block = list(iter(lambda end=fence[1]: next(lines), fence[1]))
            found.append((fence[2], "\n".join(block)))
        elif line.startswith("    ") and not before.strip():
            block = []
            while line.startswith("    ") or (not line.strip() and block):
                block.append(line[4:])
                line = next(lines, None)
                if line is None:
                    break
            found.append(("", "\n".join(block)))
            line = line or ""
        before = line
    return found


def spans(text):
    """The code between single backticks outside blocks, each as one line."""
    text = re.sub(r"^(`{3,}|~{3,}).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]


def commands(document, block):
    """The commands that bash would start for a block. Prompts are dropped."""
    script = re.sub(r"^\$ ", "", block, flags=re.MULTILINE).replace(".venv/bin/", "")
    shell = ["bash", "--norc", "-c", f"{RECORDER}PATH=/nonexistent\nexec 3>&1 >/dev/null\n{script}"]
    with tempfile.TemporaryDirectory() as folder:  # for what is redirected into files
        ran = subprocess.run(shell, capture_output=True, text=True, timeout=60, cwd=folder)
    assert not ran.stderr, f"{document}: bash cannot read this block: {ran.stderr}\n{block}"
    return [Command(document, tuple(words.split("\0"))) for words in ran.stdout.split("\0\x1e\0") if words]


def mentions(document):
    """The words of commands that stand within the text of a page."""
    found = [span for span in spans((ROOT / document).read_text()) if re.match(rf"{PROGRAMS}( |$)", span)]
    return [tuple(span.replace(".venv/bin/", "").split()) for span in found]
