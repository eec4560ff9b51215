"""The files of an evaluation: frontier.csv, frontier.json, per_class.csv, frontier.png, differences.png."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from cfgjax.base.files import writing
from cfgjax.base.json_files import HASH, content_hash, write_json
from cfgjax.base.storage import Place
from cfgjax.evaluation.report.differences import changed_names, difference_figure
from cfgjax.evaluation.report.frontier_figure import frontier_figure
from cfgjax.evaluation.report.frontier_rows import COST, Row, metric_names, setting_keys, varying_keys
from cfgjax.evaluation.report.frontier_table import MetricNames
from cfgjax.evaluation.report.protocol import protocol


def frontier_csv(rows: Sequence[Row]) -> str:
    """Returns the text of frontier.csv, with a line for each row."""
    head = ["guidance_weight", "scale", *setting_keys(), "seed", *("baseline",) * ("baseline" in rows[0])]
    head += [COST] * (COST in rows[0]) + metric_names(rows)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for row in rows:
        full = {**row, "scale": 1 + row["guidance_weight"]}
        writer.writerow(["" if full.get(name) is None else full[name] for name in head])
    return out.getvalue()


def per_class_text(rows: Sequence[Row]) -> str:
    """Returns the text of per_class.csv, accuracies with a line for each class and a column for each row."""
    varying = [key for key in (*varying_keys(), "seed") if len({row.get(key) for row in rows}) > 1]
    names = [" ".join([f"w={row['guidance_weight']:g}", *[f"{key}={row[key]}" for key in varying]]) for row in rows]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["class", *names])
    for c, values in enumerate(zip(*(row["accuracy_per_class"] for row in rows), strict=True)):
        writer.writerow([c, *["" if value is None else f"{value:.6g}" for value in values]])
    return out.getvalue()


def write(
    folder: Place,
    rows: Sequence[Row],
    record: dict[str, Any],
    network: MetricNames,
    tilted: Sequence[dict[str, float]] = (),
) -> list[str]:
    """Writes frontier.json (record and rows), frontier.csv, frontier.png, differences.png, per_class.csv, atomically.

    tilted: see `frontier_figure`. Returns the names of the files.
    """
    card = protocol(record, rows)
    content = {**record, "protocol": card, "rows": rows}
    content[HASH] = content_hash(content)  # without `tilted`, which follows from the config
    texts = {"frontier.csv": frontier_csv(rows)}
    if "accuracy_per_class" in rows[0]:
        texts["per_class.csv"] = per_class_text(rows)
    write_texts(folder, texts)
    write_json(folder / "frontier.json", content | ({"tilted": tilted} if tilted else {}), indent=1)
    figures = {"frontier.png": frontier_figure(rows, network, tilted, card)}
    if changed_names(rows):
        figures["differences.png"] = difference_figure(rows, card)
    for name, figure in figures.items():
        with writing(folder / name) as new:
            figure.savefig(new, dpi=130, metadata={"Software": None})
    return ["frontier.json", *texts, *figures]


def bits_lines(found: dict[str, Any]) -> list[str]:
    """Returns the result of `held_out_bits` in a few lines."""
    error = "" if found["standard_error"] is None else f" ± {found['standard_error']:.4f}"
    v = "learned variance" if found["learned_variance"] else f"v = {found['v']:g}"
    return [
        f"{found['bits_per_dim']:.4f}{error} bits/dim (at most) on {found['num_examples']:,} "
        f"held-out examples; T = {found['num_steps']}, {v}, {found['spacing']} λ up to {found['logsnr'][-1]:g}",
        f"prior {found['prior']:.6f}, transitions {found['transitions']:.4f}, decoder {found['decoder']:.4f}",
    ]


def write_bits(folder: Place, found: dict[str, Any]) -> list[str]:
    """Writes bits_per_dim.json, and bits_per_dim.csv with the term of each λ. Returns their names."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["logsnr", "term", "bits_per_dim"])
    writer.writerow([found["logsnr"][0], "prior", found["prior"]])
    kinds = ["transition"] * (found["num_steps"] - 1) + ["decoder"]
    writer.writerows(zip(found["logsnr"], kinds, found["terms"], strict=True))
    write_texts(folder, {"bits_per_dim.csv": out.getvalue()})
    write_json(folder / "bits_per_dim.json", found, indent=1)
    return ["bits_per_dim.json", "bits_per_dim.csv"]


def write_texts(folder: Place, texts: dict[str, str]) -> None:
    """Writes {name: text} into a folder, created if missing, each file atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        with writing(folder / name) as new:
            new.write_text(text)
