"""Executes notebooks from top to bottom and stores them with their outputs, in a form with small diffs.

    python notebooks/execute.py notebooks/sampling_and_guidance.ipynb

Needs the extra `notebooks`. With CFGJAX_NOTEBOOK_QUICK=1, for tests, notebooks train small networks for a few steps.
"""

import json
import sys
from pathlib import Path

WIDGET = "application/vnd.jupyter.widget-view+json"  # empty without a kernel, and its id is random
WIDGET_STATE = "application/vnd.jupyter.widget-state+json"
# of a cell whose code is folded: on Colab, in Jupyter and on the site
FOLDING = ("cellView", "jupyter", "tags")
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(notebook, folder):
    """Executes a notebook, an nbformat node, in place and in a working folder. Raises if a cell does."""
    from nbclient import NotebookClient

    resources = {"metadata": {"path": str(folder)}}
    options = {"kernel_name": "python3", "record_timing": False, "coalesce_streams": True}
    NotebookClient(notebook, timeout=3600, resources=resources, **options).execute()


def normal(notebook):
    """Returns the notebook, parsed JSON, without the parts that differ between two runs on the same machine."""
    widgets = notebook["metadata"].get("widgets", {}).get(WIDGET_STATE, {}).get("state", {})
    cells, count = [], 0
    for cell in notebook["cells"]:
        folded = {key: content for key, content in cell.get("metadata", {}).items() if key in FOLDING}
        kept = {key: cell[key] for key in ("cell_type", "id", "source")} | {"metadata": folded}
        if cell["cell_type"] == "code":
            count += 1
            kept |= {"execution_count": count, "outputs": list(normal_outputs(cell["outputs"], count, widgets))}
        cells.append(kept)
    return {"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}


def normal_outputs(outputs, count, widgets):
    """Yields the outputs of code cell number `count`, without JPEGs of pictures stored as PNG.

    Of a widget, only the pictures in it are kept; widgets: {id of a widget: what the notebook stores of it}.
    """
    for output in outputs:
        data = output.get("data", {})
        if WIDGET in data:
            for picture in pictures(data[WIDGET]["model_id"], widgets):
                yield {"output_type": "display_data", "metadata": {}, "data": {"image/png": picture}}
            continue
        kept = {kind: content for kind, content in data.items() if kind != "image/jpeg" or "image/png" not in data}
        counted = {"execution_count": count} if "execution_count" in output else {}
        yield output | counted | ({"data": kept} if data else {})


def pictures(model_id, widgets):
    """Yields the PNG pictures, in base 64, in the widget of this id and in its children."""
    widget = widgets.get(model_id, {"state": {}})
    if widget["state"].get("_model_name") == "ImageModel":
        yield from (buffer["data"] for buffer in widget["buffers"] if buffer["path"] == ["value"])
    for child in widget["state"].get("children", ()):
        yield from pictures(child.removeprefix("IPY_MODEL_"), widgets)


def text(notebook):
    """Returns the text of the notebook's file, as nbformat writes it."""
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main(paths):
    """Executes the notebooks at paths and writes them back."""
    import nbformat

    for path in map(Path, paths):
        notebook = nbformat.read(path, as_version=4)
        execute(notebook, path.parent)
        path.write_text(text(normal(json.loads(nbformat.writes(notebook)))))


if __name__ == "__main__":
    main(sys.argv[1:])
