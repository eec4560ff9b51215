"""The Sphinx extension of this site: generated parts, links to files of the repository, and copied files."""

import re
import shutil
from pathlib import Path

from reference_pages import PARTS, ROOT
from sphinx.errors import ExtensionError
from sphinx.util import logging

log = logging.getLogger(__name__)
REPOSITORY = "https://github.com/cfgjax/cfgjax"
MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
LINK = re.compile(r"\]\((\.\./[^)#\s]+)(#[^)\s]*)?\)")
BADGE = re.compile(r"\[!\[(.*?)\]\(.*?\)\]\((.*?)\)")  # a picture that is a link; the picture is on another server
OTHER_NOTEBOOK = re.compile(r"\]\((\w+)\.ipynb\)")  # a link from one notebook to another
NOTEBOOKS = {  # file of the repository: page
    f"notebooks/{name}.ipynb": f"tutorials/notebook_{name}.ipynb"
    for name in ("sampling_and_guidance", "training", "measuring", "your_own_rule")
}


def copy_notebooks(app, config):
    """Copies the notebooks, whose place in the repository is outside of docs/, without badges from other servers."""
    for source, page in NOTEBOOKS.items():
        text = BADGE.sub(r"[\1](\2)", (ROOT / source).read_text())
        text = OTHER_NOTEBOOK.sub(r"](notebook_\1.ipynb)", text)
        copy = Path(app.srcdir, page)
        if not copy.exists() or copy.read_text() != text:
            copy.write_text(text)


def read_page(app, docname, source):
    """Replaces the marks of generated parts, and makes links to files outside of docs/ links to the repository."""
    source[0] = MARK.sub(lambda mark: generated(mark[1], docname), source[0])
    page = Path(app.srcdir, docname)
    source[0] = LINK.sub(lambda link: repository_link(link, page, Path(app.srcdir)), source[0])


def generated(name, docname):
    """Returns the generated part of this name."""
    if name not in PARTS:
        raise ExtensionError(f"{docname}: no generated part {name!r}; known: {', '.join(PARTS)}")
    return PARTS[name]()


def repository_link(link, page, docs):
    """Returns a relative link unchanged if it stays in docs/, otherwise as a link to the file in the repository."""
    target = (page.parent / link[1]).resolve()
    if target.is_relative_to(docs.resolve()):
        return link[0]
    if not target.exists():
        log.warning("the link to %s leads nowhere", link[1], location=str(page))
        return link[0]
    kind = "tree" if target.is_dir() else "blob"
    return f"]({REPOSITORY}/{kind}/main/{target.relative_to(ROOT)}{link[2] or ''})"


def outdated(app, env, added, changed, removed):
    """Returns the pages with generated parts, which depend on more than their own file."""
    return [name for name in env.found_docs if MARK.search(Path(env.doc2path(name)).read_text())]


def copy_playground(app, error):
    """Copies the playground, which is a page of its own, into the site. Its links to pages then lead to their HTML."""
    if error is not None:
        return
    folder = Path(app.outdir, "playground")
    shutil.copytree(Path(app.srcdir, "playground"), folder, dirs_exist_ok=True)
    page = folder / "index.html"
    page.write_text(re.sub(r'href="(\.\./[^":]*)\.md', r'href="\1.html', page.read_text()))


def setup(app):
    """Connects the extension to Sphinx."""
    app.connect("config-inited", copy_notebooks)
    app.connect("env-get-outdated", outdated)
    app.connect("source-read", read_page)
    app.connect("build-finished", copy_playground)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
