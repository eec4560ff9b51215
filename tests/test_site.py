"""The documentation site: what its generated reference lists, and that it builds without warnings and works offline."""

import html.parser
import importlib.util
import inspect
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import cfgjax
from cfgjax.cli.main import COMMANDS
from cfgjax.diffusion.grids import GRIDS
from cfgjax.diffusion.guidance import RULES
from cfgjax.diffusion.prediction import PARAMETRISATIONS
from cfgjax.diffusion.samplers import SAMPLERS
from cfgjax.diffusion.schedules import SCHEDULES
from cfgjax.diffusion.weightings import WEIGHTINGS
from cfgjax.models.model import Model
from cfgjax.runs.settings import KIND_OF_KEY

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REGISTRIES = {
    "rules": [RULES],
    "samplers": [SAMPLERS, GRIDS],
    "objectives": [PARAMETRISATIONS, WEIGHTINGS, SCHEDULES],
}


@pytest.fixture(scope="module")
def pages():
    """The module that generates the reference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS / "_extensions")
        import reference_pages

        yield reference_pages


@pytest.fixture(scope="module")
def extension():
    """The module that makes Markdown of Python objects."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS / "_extensions")
        import python_objects

        yield python_objects


def names(text, kind):
    """The names that the directives of a kind describe."""
    return re.findall(rf"\{{py:{kind}\}} (\w+)", text)


def test_every_config_key_is_listed_with_its_default_and_its_comment(pages):
    sections = pages.config_keys()
    listed = {f"{section}.{key}".lstrip("."): said for section in sections for key, said in sections[section].items()}
    assert listed.keys() == KIND_OF_KEY.keys()
    assert all(default and comment for default, comment in listed.values())
    assert listed["ema.snapshot_every_steps"][0] == "None"
    assert listed["data.crop"][0] == "'adm'"


def test_a_config_key_without_a_comment_is_an_error(pages, tmp_path):
    path = tmp_path / "base.py"
    path.write_text("def reference():\n    return dict(train=dict(\n        num_steps=10,\n    ))\n")
    with pytest.raises(ValueError, match=r"train\.num_steps has no comment on line 3"):
        pages.config_keys(path)


def test_every_command_is_listed_with_every_flag(pages):
    text = pages.commands()
    for name in COMMANDS:
        assert f"\n## cfgjax {name}\n" in f"\n{text}"
        for words in pages.variants_of(name):
            for flag in pages.flags_of(name, words):
                assert re.search(rf"`--(\[no\])?{flag.name}`", text)
                assert flag.help, f"--{flag.name} of cfgjax {name}"


def test_no_docstring_of_another_package_is_shown(pages):
    for make in pages.PARTS.values():
        assert not re.search(r":(func|class|meth):|^Args:", make(), re.MULTILINE)


@pytest.mark.parametrize("part", REGISTRIES)
def test_every_registered_name_is_described(pages, part):
    text = pages.registry(part)
    for registry in REGISTRIES[part]:
        assert registry.keys() <= {*names(text, "class"), *names(text, "function"), *names(text, "data")}


def test_every_public_name_is_described(pages):
    text = pages.api()
    described = {*names(text, "class"), *names(text, "function"), *names(text, "data"), *names(text, "method")}
    assert {*cfgjax.PUBLIC, "Model", "Guide", "Prediction"} <= described
    assert {name for name, value in vars(Model).items() if inspect.isfunction(value) and name[0] != "_"} <= described
    for module, registry in (("guidance", RULES), ("samplers", SAMPLERS)):
        assert {*getattr(cfgjax, module).__all__} - registry.keys() <= described


def test_every_experiment_is_listed(pages):
    text = pages.experiments()
    for path in (ROOT / "experiments").rglob("*.py"):
        assert path.name == "base.py" or f"`{path.relative_to(ROOT)}`" in text


def test_signatures_have_the_annotations_of_the_source(extension):
    assert extension.signature(Model.eps).endswith("-> Float[Array, 'b ...']")
    assert extension.signature(WEIGHTINGS["eps"]) == "eps_weight(logsnr: Float[Array, 'b']) -> Float[Array, 'b']"
    assert extension.signature(Model.on) == "on(mesh: Mesh) -> Callable"
    assert extension.signature(RULES["rescale"]).startswith("rescale(rule=cfg()")


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("Returns x_1 * y.", r"Returns x\_1 \* y."),
        ("With --ema=0.5 it has `a_b`.", "With `--ema=0.5` it has `a_b`."),
        ("With --a=1 --b: c.", "With `--a=1 --b`: c."),
        ("Written to <workdir>.", r"Written to \<workdir>."),
        (">>> f(1)\n2", "```python\nf(1)\n2\n```"),
    ],
)
def test_docstrings_are_shown_as_they_are_written(extension, docstring, expected):
    assert extension.markdown(docstring) == expected


def test_names_of_parameters_are_code_where_they_are_described(extension):
    text = "Returns y, as follows: z.\n\nx_1, y: numbers. other: none; A: no\nname: not one"
    expected = "Returns y, as follows: z.\n\n`x_1`, `y`: numbers. `other`: none; A: no\nname: not one"
    assert extension.markdown(text) == expected


def test_every_page_is_in_the_contents():
    index = (DOCS / "index.md").read_text()
    found = {str(path.relative_to(DOCS).with_suffix("")) for path in DOCS.rglob("*.md") if "_build" not in path.parts}
    assert found - {"index"} <= {line.strip() for line in index.splitlines()}


class Page(html.parser.HTMLParser):
    """The links of a page, the files that it loads, and the names within it that links can have."""

    def __init__(self, path):
        super().__init__()
        self.links, self.loaded, self.anchors = [], [], set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in ("script", "img", "iframe", "source") and given.get("src"):
            self.loaded.append(given["src"])
        if tag == "link" and given.get("rel") not in ("canonical", "search", "next", "prev", "index"):
            self.loaded.append(given.get("href", ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site, and its pages by path."""
    if importlib.util.find_spec("sphinx_book_theme") is None or importlib.util.find_spec("myst_nb") is None:
        pytest.skip("needs the extra docs: pip install -e '.[docs]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    state = ["-d", str(folder / "doctrees"), str(DOCS), str(folder / "html")]
    built = subprocess.run([*command, *state], capture_output=True, text=True, timeout=600)
    assert built.returncode == 0, built.stdout + built.stderr
    root = folder / "html"
    return root, {path: Page(path) for path in root.rglob("*.html") if "_static" not in path.parts}


@pytest.mark.e2e
def test_no_link_within_the_site_is_broken(site):
    root, pages = site
    broken = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                broken.append((path.relative_to(root), link))
            elif parts.fragment and target.suffix == ".html" and "playground" not in target.parts:
                anchors = pages[target].anchors
                if unquote(parts.fragment) not in anchors | {""}:
                    broken.append((path.relative_to(root), link))
    assert not broken


@pytest.mark.e2e
def test_links_to_the_repository_lead_to_its_files(site):
    for page in site[1].values():
        for link in page.links:
            found = re.fullmatch(r"https://github\.com/cfgjax/cfgjax/(?:blob|tree)/main/([^#]*)(#.*)?", link)
            assert found is None or (ROOT / found[1]).exists(), link


@pytest.mark.e2e
def test_pages_load_nothing_from_other_servers_and_every_loaded_file_exists(site):
    root, pages = site
    for path, page in pages.items():
        for source in page.loaded:
            parts = urlsplit(source)
            if parts.scheme == "data":
                continue
            assert not parts.scheme and not parts.netloc, f"{path.relative_to(root)} loads {source}"
            assert (path.parent / unquote(parts.path)).exists(), f"{path.relative_to(root)} lacks {source}"
    for path in root.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", path.read_text()), path


@pytest.mark.e2e
@pytest.mark.parametrize("name", ["sampling_and_guidance", "training", "measuring", "your_own_rule"])
def test_a_notebook_is_a_page_with_its_outputs(site, name):
    root, pages = site
    page = pages[root / "tutorials" / f"notebook_{name}.html"]
    assert sum("_images" in source for source in page.loaded) >= 1
