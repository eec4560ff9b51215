"""The results of measuring foreign samples as a table, samples.json, samples.csv and per_class.csv."""

import csv
import io
from collections.abc import Sequence
from typing import Any

import cfgjax
from cfgjax.base.cells import cell_text
from cfgjax.base.json_files import write_json
from cfgjax.base.storage import Place
from cfgjax.evaluation.report.frontier_files import write_texts
from cfgjax.evaluation.report.frontier_rows import DETAIL


def samples_lines(origin: str, count: int, metrics: dict[str, Any]) -> list[str]:
    """Returns a table with a line for each metric."""
    shown = {
        name: cell_text((value, metrics.get(f"{name}_interval", 0.0), 1), ".4g")
        for name, value in metrics.items()
        if is_shown(name, value)
    }
    width = max(map(len, shown))
    title = f"{count:,} images of {origin}, ±: half of the 95 % interval over them:"
    return [title, *(f"{name.ljust(width)}  {value}" for name, value in shown.items())]


def is_shown(name: str, value: Any) -> bool:
    """Whether a metric is a number that tables show."""
    return isinstance(value, int | float) and not name.endswith(DETAIL)


def write_samples(folder: Place, record: dict[str, Any], metrics: dict[str, Any]) -> list[str]:
    """Writes samples.json, samples.csv and, if labels were judged, per_class.csv, atomically. Returns their names."""
    scalars = {name: value for name, value in metrics.items() if not isinstance(value, list)}
    texts = {"samples.csv": table_text([["num_samples", *scalars], [record["num_samples"], *scalars.values()]])}
    if (accuracies := metrics.get("accuracy_per_class")) is not None:
        rows = [[c, "" if value is None else f"{value:.6g}"] for c, value in enumerate(accuracies)]
        texts["per_class.csv"] = table_text([["class", "accuracy"], *rows])
    write_texts(folder, texts)
    write_json(folder / "samples.json", {"cfgjax": cfgjax.__version__, **record, "metrics": metrics}, indent=1)
    return ["samples.json", *texts]


def table_text(rows: Sequence[Sequence[Any]]) -> str:
    """Returns rows as the text of a .csv."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue()
