"""Executes notebooks from top to bottom and stores them with their outputs, in the form that git shows best.

    python notebooks/execute.py notebooks/sampling.ipynb

Needs the extra `notebooks`. CFGJAX_NOTEBOOK_QUICK=1 trains for a few steps only, which is for tests.
"""

import json
import sys
from pathlib import Path

WIDGET = "application/vnd.jupyter.widget-view+json"  # shows nothing without its kernel, and its id is random
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def execute(notebook, folder):
    """Executes a notebook, an nbformat node, in place, with folder as its working folder. Raises where a cell does."""
    from nbclient import NotebookClient

    resources = {"metadata": {"path": str(folder)}}
    options = {"kernel_name": "python3", "store_widget_state": False, "record_timing": False, "coalesce_streams": True}
    NotebookClient(notebook, timeout=3600, resources=resources, **options).execute()


def normal(notebook):
    """The notebook, parsed JSON, without what differs between two runs of the same cells on the same machine."""
    cells, count = [], 0
    for cell in notebook["cells"]:
        kept = {key: cell[key] for key in ("cell_type", "id", "source")} | {"metadata": {}}
        if cell["cell_type"] == "code":
            count += 1
            kept |= {"execution_count": count, "outputs": list(normal_outputs(cell["outputs"], count))}
        cells.append(kept)
    return {"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}


def normal_outputs(outputs, count):
    """The outputs of the count-th code cell, without widgets, and without JPEGs of what is there as PNG."""
    for output in outputs:
        data = output.get("data", {})
        if WIDGET in data:
            continue
        kept = {kind: content for kind, content in data.items() if kind != "image/jpeg" or "image/png" not in data}
        counted = {"execution_count": count} if "execution_count" in output else {}
        yield output | counted | ({"data": kept} if data else {})


def text(notebook):
    """The notebook as text of its file, as nbformat writes it."""
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
