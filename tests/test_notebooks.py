"""Notebooks run from top to bottom and are stored in the normal form of `notebooks/execute.py`."""

import ast
import json
import re
import tomllib

import pytest
from documents import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY = PROJECT["urls"]["Repository"]
MAX_BYTES = 1_000_000
SLIDES = """
import jax

compiled = []
is_compilation = lambda name: "backend_compile" in name
jax.monitoring.register_event_duration_secs_listener(
    lambda name, *_, **__: compiled.append(name) if is_compilation(name) else None
)
pictures = []
for w in (-1, 0, 0.25, 3):
    controls["w"].value = w
    pictures.append(picture.value)
assert not compiled, compiled
assert len(set(pictures)) == len(pictures)
jax.jit(lambda x: x + w)(1.0)
assert compiled  # they are counted
"""

every = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)


@pytest.fixture
def execute(monkeypatch, tmp_path):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))  # two kernels cannot create the same one at a time
    monkeypatch.syspath_prepend(ROOT / "notebooks")
    import execute

    return execute


def cells(path, kind="code"):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == kind]


def cell(path, name):
    """The source of a cell by its id."""
    (found,) = [cell for cell in cells(path) if cell["id"] == name]
    return "".join(found["source"])


def outputs(path):
    return [output for cell in cells(path) for output in cell["outputs"]]


@every
def test_a_notebook_is_stored_in_normal_form(path, execute):
    stored = path.read_text()
    assert stored == execute.text(execute.normal(json.loads(stored)))
    assert len(stored.encode()) < MAX_BYTES


def test_the_normal_form_does_not_depend_on_when_and_where_cells_ran(execute):
    picture = {"output_type": "display_data", "metadata": {}, "data": {"image/png": "a"}}
    result = {"output_type": "execute_result", "metadata": {}, "data": {"text/plain": "1"}, "execution_count": 5}
    widget = {"output_type": "display_data", "metadata": {}, "data": {execute.WIDGET: {"model_id": "b9"}}}
    code = {"cell_type": "code", "id": "a", "source": "1"}
    again = {"metadata": {"execution": {"iopub.execute_input": "12:00"}}, "execution_count": 7}
    first = {"cells": [code | {"outputs": [picture, result]}]}
    second = {"cells": [code | again | {"outputs": [widget, picture, result | {"execution_count": 7}]}]}
    second |= {"metadata": {"language_info": {"version": "3.13.0"}, "widgets": {execute.WIDGET_STATE: {"state": {}}}}}
    first |= {"metadata": {}}
    assert execute.normal(first) == execute.normal(second)


def test_of_a_widget_the_pictures_in_it_are_stored(execute):
    state = {
        "box": {"state": {"_model_name": "HBoxModel", "children": ["IPY_MODEL_slider", "IPY_MODEL_picture"]}},
        "slider": {"state": {"_model_name": "FloatSliderModel"}},
        "picture": {
            "state": {"_model_name": "ImageModel"},
            "buffers": [{"path": ["value"], "encoding": "base64", "data": "iVBORw0="}],
        },
    }
    shown = {"output_type": "display_data", "metadata": {}, "data": {execute.WIDGET: {"model_id": "box"}}}
    notebook = {
        "cells": [{"cell_type": "code", "id": "a", "source": "1", "outputs": [shown]}],
        "metadata": {"widgets": {execute.WIDGET_STATE: {"state": state}}},
    }
    (cell,) = execute.normal(notebook)["cells"]
    assert [output["data"]["image/png"] for output in cell["outputs"]] == ["iVBORw0="]


@every
def test_the_outputs_of_the_notebook_are_of_one_complete_run_without_warnings(path):
    names = [cell["id"] for cell in json.loads(path.read_text())["cells"]]
    assert len(set(names)) == len(names) and all(re.fullmatch(r"[a-z-]+", name) for name in names)
    assert any("image/png" in output.get("data", {}) for output in outputs(path))
    for output in outputs(path):
        assert output["output_type"] != "error" and output.get("name") != "stderr"
        shown = "".join([*output.get("text", []), *output.get("data", {}).get("text/plain", [])])
        assert not re.search(r"(^|[^\w.…])/\w", shown, re.MULTILINE), shown


def test_the_stored_copy_shows_the_picture_beside_the_sliders():
    (sliders,) = [cell for cell in cells(ROOT / "notebooks" / "sampling_and_guidance.ipynb") if cell["id"] == "sliders"]
    assert ["image/png" in output["data"] for output in sliders["outputs"]] == [True]


def test_all_documents_have_the_same_project_url():
    colab = re.compile(r"https://colab\.research\.google\.com/github/(.*?)/blob/main/(notebooks/\w+\.ipynb)")
    owner = REPOSITORY.removeprefix("https://github.com/")
    assert colab.findall((ROOT / "README.md").read_text()) == [(owner, "notebooks/sampling_and_guidance.ipynb")]
    for path in NOTEBOOKS:
        text = "".join("".join(cell["source"]) for kind in ("code", "markdown") for cell in cells(path, kind))
        assert colab.findall(text) == [(owner, str(path.relative_to(ROOT)))]
        assert set(re.findall(r"https://github\.com/[\w-]+/[\w-]+", text)) == {REPOSITORY}


def test_all_notebooks_install_in_the_same_way():
    assert len({cell(path, "install") for path in NOTEBOOKS}) == 1


@every
def test_only_the_code_of_the_install_cell_is_folded(path):
    folded = {cell["id"]: cell["metadata"] for cell in cells(path) if cell["metadata"]}
    colab, jupyter, site = {"cellView": "form"}, {"jupyter": {"source_hidden": True}}, {"tags": ["hide-input"]}
    assert folded == {"install": colab | jupyter | site}
    assert cell(path, "install").startswith("# @title ")  # what Colab shows in its place


def test_links_between_notebooks_lead_to_notebooks():
    for path in NOTEBOOKS:
        text = "".join("".join(cell["source"]) for cell in cells(path, "markdown"))
        for name in re.findall(r"\]\((\w+\.ipynb)\)", text):
            assert (path.parent / name).exists(), name


@pytest.fixture(scope="module")
def installer():
    """The functions of the install cell; its statements are not executed."""
    tree = ast.parse(cell(ROOT / "notebooks" / "sampling_and_guidance.ipynb", "install"))
    defined = (ast.Import, ast.ImportFrom, ast.FunctionDef)
    constant = lambda node: isinstance(node, ast.Assign) and node.targets[0].id.isupper()
    tree.body = [node for node in tree.body if isinstance(node, defined) or constant(node)]
    names: dict = {}
    exec(compile(tree, "install", "exec"), names)
    return names


def versions(jax="0.12.0", jaxlib=None, **others):
    return {"jax": jax, "jaxlib": jaxlib or jax} | {name.replace("_", "-"): value for name, value in others.items()}


def test_the_oldest_accepted_jax_is_the_minimum_of_the_project(installer):
    assert f"jax>={installer['MIN_JAX']}" in PROJECT["dependencies"]


@pytest.mark.parametrize(
    ("there", "kept"),
    [
        (versions(), True),
        (versions("0.10.2"), True),
        (versions("0.12.0.dev20260901"), True),
        (versions(jax_cuda12_plugin="0.12.0", jax_cuda12_pjrt="0.12.0"), True),
        (versions(libtpu="0.0.30"), True),
        (versions("0.10.1"), False),
        (versions("0.9.9"), False),
        ({}, False),
    ],
    ids=str,
)
def test_installation_does_not_change_jax_unless_it_is_too_old(installer, there, kept):
    expected = [f"{name}=={version}" for name, version in there.items()] if kept else []
    assert installer["constraints"](there) == expected


@pytest.mark.parametrize(
    ("there", "command"),
    [
        (versions(), None),
        (versions(jax_cuda12_plugin="0.12.0", jax_cuda12_pjrt="0.12.0"), None),
        (versions("0.12.1", "0.12.0", jax_cuda13_plugin="0.12.0"), None),
        (versions(libtpu="0.0.30"), None),
        (versions("0.12.1", jax_cuda12_plugin="0.12.0"), "pip install 'jax[cuda12]==0.12.1'"),
        (versions("0.12.0", "0.12.1", jax_cuda13_pjrt="0.12.0"), "pip install 'jax[cuda13]==0.12.0'"),
        (versions("0.12.0", "0.11.2"), "pip install 'jax==0.12.0'"),
        (versions("0.12.0", "0.11.2", libtpu="0.0.30"), "pip install 'jax[tpu]==0.12.0'"),
    ],
    ids=str,
)
def test_an_incompatible_plugin_is_named_with_the_command_that_fixes_it(installer, there, command):
    assert installer["repair"](there) == command


@pytest.mark.e2e
@every
def test_the_notebook_runs_from_top_to_bottom_and_its_slider_compiles_nothing(path, execute, tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="the extra `notebooks` is not installed")
    pytest.importorskip("nbclient")
    monkeypatch.setenv("CFGJAX_NOTEBOOK_QUICK", "1")
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    notebook = nbformat.read(path, as_version=4)
    if any("controls = " in cell.source for cell in notebook.cells):
        notebook.cells.append(nbformat.v4.new_code_cell(SLIDES, id="slides"))
    execute.execute(notebook, tmp_path)
    printed = [output for cell in notebook.cells if cell.id == "install" for output in cell.outputs]
    assert not printed and not (tmp_path / "constraints.txt").exists()  # cfgjax was there
