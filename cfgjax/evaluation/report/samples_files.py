"""The results of measuring foreign samples as a table, samples.json, samples.csv and per_class.csv."""

import csv
import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import cfgjax
from cfgjax.base.cells import cell_text, text
from cfgjax.base.json_files import write_json
from cfgjax.base.storage import Place
from cfgjax.evaluation.report.frontier_files import write_texts
from cfgjax.evaluation.report.frontier_rows import DETAIL
from cfgjax.evaluation.report.protocol import digest_text, named_text, protocol_lines, reference_text

OF_DRAWING = (  # parts of a protocol that foreign samples do not state
    *("w", "s = 1 + w", "rule", "guidance interval", "sampler", "grid", "clipping", "T"),
    *("network evaluations per sample", "seed", "EMA", "step", "checkpoint", "data", "cfgjax"),
)


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


def foreign_protocol(
    record: Mapping[str, Any], metrics: Mapping[str, Any], stored: Mapping[str, str]
) -> dict[str, str]:
    """Returns {name: text} of what a result of foreign samples depends on; what nobody has recorded is "unknown".

    record: the content of samples.json. stored: the protocol that is stored with the samples, or {}.
    """
    samples = record["samples"]
    drawn = {name: stored.get(name, "unknown") for name in dict.fromkeys((*OF_DRAWING, *stored))}
    drawn["drawn with cfgjax"] = drawn.pop("cfgjax", "unknown")
    measured = {
        "file": f"{samples['path']} {digest_text(samples)}",
        "samples": f"{record['num_samples']}",
        "labels": "those of the file" if samples["labels"] else stored.get("labels", "unknown"),
        "images": text(tuple(record["image_shape"])),
        "features": named_text(record["features"]),
        "judge": named_text(record["judge"]),
        "reference": reference_text(record["reference"]),
        "examples of the reference": f"{record['reference']['count'] or 'unknown'}",
        "metrics": ", ".join(name for name, value in metrics.items() if is_shown(name, value)),
        "intervals": "95 % over the samples",
        "cfgjax": cfgjax.__version__,
    }
    return {**drawn, **measured}


def foreign_protocol_lines(card: Mapping[str, str]) -> list[str]:
    """Returns the protocol as the footer of a table, with a last line of all names whose value is unknown."""
    lines = protocol_lines(card)
    unknown = [name for name, value in card.items() if value == "unknown"]
    width = max(map(len, card))
    wrapped = textwrap.wrap(", ".join(unknown), 100)
    return [*lines, *(f"  {('' if i else 'unknown').ljust(width)}  {line}" for i, line in enumerate(wrapped))]


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
