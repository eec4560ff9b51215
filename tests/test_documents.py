"""The commands of the documents work in the order in which they are written."""

import contextlib
import functools
import importlib
import io
import re
import shutil
import tomllib

import documents
import newcomer
import pytest
from documents import EXPERIMENTS, PAGES, ROOT, Command, mentions, steps

from cfgjax.base.errors import HelpAsked, UsageError
from cfgjax.cli import main as cli
from cfgjax.diffusion.grids import GRIDS
from cfgjax.diffusion.guidance import RULES
from cfgjax.diffusion.samplers import SAMPLERS
from cfgjax.diffusion.specs import parse
from cfgjax.runs import sample_options
from cfgjax.runs.config import flatten, load_file

DOCUMENTS = PAGES + EXPERIMENTS
TWO_WORDS = ("convert", "launch")  # commands whose second word decides which flags they have
# Commands that the test does not run: the first words, and why.
NOT_RUN = {
    "python3 -m venv": "makes an environment; .ci/run does",
    "source activate": "enters an environment",
    "pip install": "installs packages; .ci/run installs those of the tests",
    "pytest": "is what runs this test",
    "pre-commit install": "changes the hooks of the repository",
    "cfgjax demo": "serves a page until it is ended; tests/test_demo.py opens it",
    "python benchmarks/": "takes minutes; tests/test_benchmarks.py runs them at a small size",
    "python notebooks/": "takes minutes; tests/test_notebooks.py executes the notebooks",
}
LINTERS = ("ruff", "mypy")
SPECS = {"rule": RULES, "sampler": SAMPLERS, "grid": GRIDS}


def reason(step):
    """Why a step is not run, or None."""
    if newcomer.runnable(step):
        return None
    if newcomer.names_bucket(step):
        return "needs a bucket; tests/test_bucket_*.py run such commands"
    line = " ".join(step.words)
    return next((why for words, why in NOT_RUN.items() if line.startswith(words)), None)


@functools.cache
def text_of_help(run, *words):
    """What a command prints with --help."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        try:
            run([*words, "--help"])
        except HelpAsked as asked:
            print(asked)
    return printed.getvalue()


def benchmark(script):
    """The main function of a benchmark, called with flags."""
    module = importlib.import_module(script.removeprefix("benchmarks/").removesuffix(".py"))
    return module.main


def unknown(words):
    """The flags, config keys and extras of a command line that its program does not have, or the program itself."""
    if words[0] == "cfgjax" and len(words) > 1:
        return unknown_to_cfgjax(words[1:])
    if words[0].startswith("python") and words[1:2] and words[1].startswith("benchmarks/"):
        return missing(words[2:], text_of_help(benchmark(words[1]), words[1]))
    if words[:2] == ("pip", "install"):
        asked = {extra for word in words for listed in re.findall(r"\[(.*?)\]", word) for extra in listed.split(",")}
        return asked - extras().keys()
    known = {line.split()[0] for line in NOT_RUN} | {"cfgjax", *LINTERS}
    return set() if words[0] in known else {words[0]}


def unknown_to_cfgjax(words):
    """The same for `cfgjax WORDS`, and for the command after a launcher."""
    if words[0] not in cli.COMMANDS:
        return {words[0]}
    words, _, launched = partition(words, "--")
    size = 2 if words[0] in TWO_WORDS else 1
    if len(words) < size:
        return set()  # the bare name of the command
    found = missing(words[size:], text_of_help(cli.run_command, *words[:size]))
    return found | (unknown_to_cfgjax(launched) if launched else set())


def transcripts(document):
    """The words of the commands in blocks marked as text, which are not followed."""
    marked = [block for mark, block in documents.blocks((ROOT / document).read_text()) if mark == "text"]
    shown = [block for block in marked if any(documents.is_command(line) for line in block.splitlines())]
    return [command.words for block in shown for command in documents.commands(document, block)]


def partition(words, mark):
    """Words before the mark, the mark, and words after it."""
    at = words.index(mark) if mark in words else len(words)
    return words[:at], words[at : at + 1], words[at + 1 :]


def missing(words, printed):
    """The flags among words that a --help, printed, does not have, and keys that the config file does not have."""
    flags = {word.partition("=")[0].removeprefix("--") for word in words if word.startswith("--")}
    keys = {flag.removeprefix("config.") for flag in flags if flag.startswith("config.")}
    names = {flag.replace("-", "_") for flag in flags if not flag.startswith("config.")}
    known = set(re.findall(r"--(?:\[no\])?(\w+)", printed))
    negated = {f"no{name}" for name in re.findall(r"--\[no\](\w+)", printed)}
    found = names - known - negated - {"help"}
    if keys:
        (path,) = [word.removeprefix("--config=") for word in words if word.startswith("--config=")]
        found |= keys - flatten(load_file(ROOT / path)).keys()
    return found


def extras():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


PAGE = """Text with `cfgjax train
--help` in it.

```bash
job="-- train --config=a.py"
cfgjax launch slurm \\
    $job  # a comment
$ .venv/bin/cfgjax sample --out='a b.png' && pip install -e '.[data]'
```

- a list:

  ~~~
  X=1 cfgjax evaluate
  ~~~

    cfgjax compare a

```python
import cfgjax
```

```json
{"cfgjax": 1}
```
"""


def test_commands_are_found_in_every_kind_of_block(monkeypatch, tmp_path):
    monkeypatch.setattr(documents, "ROOT", tmp_path)
    (tmp_path / "page.md").write_text(PAGE)
    *found, snippet = documents.steps("page.md")
    assert [" ".join(command.words) for command in found] == [
        "cfgjax launch slurm -- train --config=a.py",
        "cfgjax sample --out=a b.png",
        "pip install -e .[data]",
        "cfgjax evaluate",
        "cfgjax compare a",
    ]
    assert snippet.text == "import cfgjax"
    assert documents.mentions("page.md") == [("cfgjax", "train", "--help")]


@pytest.mark.parametrize(
    "line",
    [
        "cfgjax train --confg=experiments/digits.py",
        "cfgjax train --config=experiments/digits.py --config.train.steps=1",
        "cfgjax trian",
        "cfgjax launch slurm -- sample --nothing",
        "python benchmarks/run.py --nothing",
        "pip install -e .[nothing]",
        "mystery --flag",
    ],
)
def test_unknown_commands_and_flags_in_documents_are_detected(line, benchmarks):
    assert unknown(tuple(line.split()))


@pytest.fixture
def benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_command_is_run_or_has_a_reason_not_to_be_and_its_flags_exist(document, benchmarks):
    for step in steps(document):
        assert newcomer.runnable(step) or reason(step), f"{step}: neither run by this test nor in NOT_RUN"
        if isinstance(step, Command):
            assert not unknown(step.words), step


@pytest.mark.parametrize("document", PAGES)
def test_commands_that_take_long_exist_and_their_options_can_be_read(document, benchmarks):
    for words in transcripts(document):
        assert not unknown(words), f"{document}: {' '.join(words)}"
        read_options(words)


def read_options(words):
    """Raises UsageError if a value of an option of sampling cannot be read."""
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and name in sample_options.fields():
            for text in sample_options.read_values(name, value):
                if name in SPECS:
                    parse(text, SPECS[name], name)


@pytest.mark.parametrize(
    "block", ["""E="cfgjax evaluate --rule='cfg()'"\n$E""", "cfgjax sample --rule='apg(), \\\n cfg()'"]
)
def test_options_that_the_shell_changes_are_detected(block):
    (command,) = documents.commands("page.md", block)
    with pytest.raises(UsageError, match="rule .* is no call such as"):
        read_options(command.words)


@pytest.mark.parametrize("document", PAGES)
def test_commands_within_the_text_and_their_flags_exist(document, benchmarks):
    for words in mentions(document):
        assert not unknown(words), f"{document}: {' '.join(words)}"


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """The folder of a newcomer who has followed the README, and what failed there, by the number of the step."""
    folder, failed = tmp_path_factory.mktemp("newcomer"), {}
    newcomer.make(folder)
    with pytest.MonkeyPatch.context() as patch, newcomer.living_in(folder, patch):
        for i, step in enumerate(steps("README.md")):
            if newcomer.runnable(step):
                try:
                    newcomer.follow(step)
                except Exception as e:
                    failed[i] = e
    return folder, failed


@pytest.fixture(scope="module")
def folder_of(followed, tmp_path_factory):
    """folder_of(document): where its commands are followed, at first a copy of what the README's leave."""

    @functools.cache
    def folder(document):
        return shutil.copytree(followed[0], tmp_path_factory.mktemp("follower") / "folder", symlinks=True)

    return folder


STEPS, NAMES = newcomer.numbered(PAGES)


@pytest.mark.e2e
@pytest.mark.parametrize(("document", "i", "step"), STEPS, ids=NAMES)
def test_a_step_works_after_those_before_it(document, i, step, followed, folder_of, monkeypatch):
    """The README is followed first; every other page begins with what it leaves."""
    if not newcomer.runnable(step):
        pytest.skip(reason(step))
    if document != "README.md":
        with newcomer.living_in(folder_of(document), monkeypatch):
            newcomer.follow(step)
    elif i in followed[1]:
        raise followed[1][i]
