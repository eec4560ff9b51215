"""Configuration of the documentation: sphinx-build -W --keep-going -b html docs docs/_build/html"""

import os
import sys
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the reference is read from the modules, which import jax
sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

import cfgjax

project = "cfgjax"
author = "The cfgjax authors"
copyright = author
release = version = cfgjax.__version__

extensions = ["myst_nb", "cfgjax_site"]
exclude_patterns = ["_build", "_extensions", "playground"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb"}
nb_execution_mode = "off"  # the notebooks are stored with their outputs
myst_heading_anchors = 4
smartquotes = False  # --flag is no dash
add_module_names = False
maximum_signature_line_length = 88
python_use_unqualified_type_names = True
toc_object_entries_show_parents = "hide"

html_title = "cfgjax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme = "sphinx_book_theme"
html_copy_source = False
html_show_sourcelink = False
html_context = {"default_mode": "auto"}  # light or dark, as the browser asks
html_theme_options = {
    "repository_url": "https://github.com/cfgjax/cfgjax",
    "repository_branch": "main",
    "use_repository_button": True,
    "use_download_button": False,
    "use_fullscreen_button": False,
    "navbar_persistent": [],  # its search field is in the sidebar
    "show_navbar_depth": 1,
    "show_toc_level": 2,
}
