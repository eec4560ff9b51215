"""Writes a trained model as a folder that can be handed on: weights, config, class names, evaluation, model card."""

from pathlib import Path

import jax

import cfgjax
from cfgjax.base.json_files import write_json
from cfgjax.base.storage import Place, place
from cfgjax.convert.model_card import model_card
from cfgjax.evaluation.report.gather import find_frontier
from cfgjax.evaluation.report.gather import read as read_frontier
from cfgjax.models.class_names import known_classes
from cfgjax.runs.averages import find_average
from cfgjax.runs.changes import CHANGES
from cfgjax.runs.config import to_json
from cfgjax.runs.exported import write_exported
from cfgjax.runs.workdir import DATA, read_data_hash, read_settings

EVALUATION_FILES = ("frontier.json", "frontier.csv", "frontier.png", "differences.png", "per_class.csv")


def export_model(
    workdir: str | Place,
    folder: Path,
    *,
    name: str,
    license: str | None = None,
    step: int | None = None,
    ema: float | None = None,
) -> tuple[int, float, str]:
    """Writes an average of the run in workdir to an existing folder. Returns (step, ema, number of parameters as text).

    name, license: of the model card. step, ema: see `cfgjax.load`. The newest evaluation of the run is copied, if there
    is one. Raises UsageError as `cfgjax.load` does.
    """
    settings = read_settings(workdir)
    average = find_average(workdir, settings, step, ema)
    params = average.read()
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    write_exported(folder, params, average.step, average.ema, {"cfgjax": cfgjax.__version__})
    (folder / "config.json").write_text(to_json(settings))
    classes = known_classes(workdir, settings)
    known = {"hash": read_data_hash(workdir), "classes": classes}
    write_json(folder / DATA, {key: value for key, value in known.items() if value is not None}, indent=1)
    if (place(workdir) / CHANGES).exists():
        (folder / CHANGES).write_bytes((place(workdir) / CHANGES).read_bytes())
    found = find_frontier(place(workdir))
    if found is not None:
        (folder / "evaluation").mkdir()
        for file in EVALUATION_FILES:
            if found.with_name(file).exists():
                (folder / "evaluation" / file).write_bytes(found.with_name(file).read_bytes())
    frontier = None if found is None else read_frontier(found)
    card = model_card(settings, name, license, average.step, average.ema, count, classes, frontier)
    (folder / "README.md").write_text(card)
    return average.step, average.ema, f"{count:,}"
