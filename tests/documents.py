"""The commands and the Python snippets of documents, in their order.

Blocks are fenced with backticks or tildes, or indented by four spaces. Fences marked `python` are snippets. Those
marked as data and the directives of the site, such as `{toctree}`, are neither. Bash reads every other block and
records the words of each command.
"""

import ast
import dataclasses
import re
import subprocess
import tempfile
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[1]
DATA = {"text", "json", "yaml", "toml", "csv", "ini", "bibtex"}  # languages of code blocks without commands
PLACES = ("*.md", "docs/**/*.md", "benchmarks/*.md", "launch/*.md", "experiments/**/*.md", "notebooks/*.md")
NO_PAGES = re.compile(r"README\.md|CHANGELOG\.md|.*\.template\.md")  # the README is tested first


def found(*patterns):
    """The files of the checkout that match, relative to it."""
    return sorted(str(path.relative_to(ROOT)) for pattern in patterns for path in ROOT.glob(pattern))


PAGES = ["README.md", *(name for name in found(*PLACES) if not NO_PAGES.fullmatch(name))]
EXPERIMENTS = found("experiments/**/*.py")
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
    listed: list = []
    for mark, block in blocks(text):
        if mark == "python":
            listed.append(Snippet(document, block))
        elif mark not in DATA and not mark.startswith("{"):
            listed += commands(document, block)
    return listed


def is_command(line):
    return re.match(rf"{PROGRAMS} ", line) is not None


def blocks(text):
    """[(language or "", text)] of the code blocks of a page."""
    listed: list = []
    fence, block, before = None, [], ""
    for line in [*text.splitlines(), ""]:
        if fence and line.strip() == fence[1]:
            listed.append((fence[2], textwrap.dedent("\n".join(block))))
            fence, block = None, []
        elif fence:
            block.append(line)
        elif not block and (fence := re.match(r"\s*(`{3,}|~{3,})\s*(\{?\w*)", line)):
            pass
        elif line.startswith("    ") and (block or not before.strip()):
            block.append(line)
        elif block:
            listed.append(("", textwrap.dedent("\n".join(block))))
            block = []
        before = line
    assert not fence, f"a fence is not closed: {fence[0]}"
    return listed


def spans(text):
    """The code between single backticks outside blocks, each as one line."""
    text = re.sub(r"^(`{3,}|~{3,}).*?^\1", "", text, flags=re.DOTALL | re.MULTILINE)
    return [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", text)]


def commands(document, block):
    """The commands that bash would start for a block. Prompts are dropped."""
    script = re.sub(r"^\$ ", "", block, flags=re.MULTILINE).replace(".venv/bin/", "")
    shell = ["bash", "--norc", "-c", f"{RECORDER}PATH=/nonexistent\nexec 3>&1 >/dev/null\n{script}"]
    with tempfile.TemporaryDirectory() as folder:  # for redirected output
        ran = subprocess.run(shell, capture_output=True, text=True, timeout=60, cwd=folder)
    assert not ran.stderr, f"{document}: bash cannot read this block: {ran.stderr}\n{block}"
    return [Command(document, tuple(words.split("\0"))) for words in ran.stdout.split("\0\x1e\0") if words]


def mentions(document):
    """The words of the commands in the running text of a page."""
    found = [span for span in spans((ROOT / document).read_text()) if re.match(rf"{PROGRAMS}( |$)", span)]
    return [tuple(span.replace(".venv/bin/", "").split()) for span in found]
