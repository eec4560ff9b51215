"""`cfgjax compare`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from cfgjax.base.errors import UsageError
from cfgjax.base.exits import DONE
from cfgjax.base.paths import check_path, define_path
from cfgjax.base.storage import AnyPath, is_url, place
from cfgjax.cli.common import check_writable
from cfgjax.runs.config import parse_flags

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from cfgjax.evaluation.report.comparison import ComparedRun
    from cfgjax.evaluation.report.targets import Targets

TABLE_ENDINGS = (".json", ".csv")
PLOT_ENDINGS = (".png", ".pdf", ".svg")


def compare(argv: list[str]) -> int:
    """RUN… [--targets=cfg_imagenet64 --out=FILE.csv --plot=FILE.png]: compares frontiers and published results."""
    given = flags.FlagValues()
    given.set_gnu_getopt(True)
    flags.DEFINE_bool(
        "rows",
        False,
        "Print a row for each setting, with its number of network evaluations per sample.",
        flag_values=given,
    )
    flags.DEFINE_string(
        "targets",
        None,
        "Published results to compare with: a name such as cfg_imagenet64, or a .json file of the same form.",
        flag_values=given,
    )
    define_path("out", None, "File for the table, .json or .csv.", flag_values=given)
    what = "File for a plot of the metrics, .png, .pdf or .svg. With --baseline also FILE_differences.png."
    define_path("plot", None, what, flag_values=given)
    what = "What --plot draws the metrics against: each other (metrics), or the network evaluations per sample."
    flags.DEFINE_enum("against", "metrics", ["metrics", "evaluations"], what, flag_values=given)
    what = "Setting with which all others are compared, such as run=ddim,guidance=1,num_steps=64."
    flags.DEFINE_string("baseline", None, what, flag_values=given)
    _, *paths = parse_flags(given, argv)
    if not paths:
        raise UsageError("give at least one RUN: a workdir, an evaluation folder, a frontier.json, or a sweep's folder")
    for path in paths:
        check_path("RUN", path)
    if given.out is not None:
        check_out("out", given.out, TABLE_ENDINGS)
    if given.plot is not None:
        check_out("plot", given.plot, PLOT_ENDINGS)
    elif given["against"].present:
        raise UsageError("--against has no effect without --plot")

    from cfgjax.base.files import writing
    from cfgjax.base.plots_extra import require_matplotlib
    from cfgjax.evaluation.frontier.across import RUN, rows_with_changes
    from cfgjax.evaluation.frontier.paired import read_baseline
    from cfgjax.evaluation.report import comparison as side_by_side
    from cfgjax.evaluation.report import targets
    from cfgjax.evaluation.report.by_row import changes_table, rows_csv, rows_table, written_rows
    from cfgjax.evaluation.report.differences import changed_names, difference_figure
    from cfgjax.evaluation.report.gather import gather
    from cfgjax.evaluation.report.protocol import merged_protocol, protocol_lines

    if given.plot is not None:
        require_matplotlib("--plot needs")
    published = None if given.targets is None else targets.load_targets(given.targets)
    files, contents = zip(*gather(paths), strict=True)
    records = dict(zip(labels(files), contents, strict=True))
    runs = [side_by_side.compared_run(label, record) for label, record in records.items()]
    groups, notes = side_by_side.make_groups(runs, published), side_by_side.notes(runs, published)
    tables = rows_table(records) if given.rows else side_by_side.comparison_table(groups)
    changed = [] if given.baseline is None else rows_with_changes(records, read_baseline(given.baseline, (RUN,)))
    if changed:
        tables = changes_table(changed)
    cards = {run.label: run.card for run in runs}
    card = merged_protocol(cards)
    lines = [*side_by_side.facts_table(runs), "", *tables, *("", *notes) * bool(notes), "", *protocol_lines(card)]
    print("\n".join(lines).rstrip())
    if given.out is not None:
        about = {"runs": [run.facts for run in runs], "targets": published and published["name"], "notes": notes}
        rows = written_rows(changed) if changed else side_by_side.joined_columns(groups)
        record = {**({} if changed else about), "protocol": cards, "rows": rows}
        csv = place(given.out).suffix.lower() == ".csv"
        table = rows_csv(rows, ".6g" if changed else "") if csv else json.dumps(record, indent=1) + "\n"
        with writing(given.out) as new:
            new.write_text(table)
        print(f"wrote {given.out}")
    if given.plot is not None:
        plot(given.plot, figure_of(given.against, records, runs, published, card))
        if changed_names(changed):
            file = place(given.plot)
            plot(file.with_name(f"{file.stem}_differences{file.suffix}"), difference_figure(changed, card))
    return DONE


def figure_of(
    against: str,
    records: Mapping[str, Mapping[str, Any]],
    runs: "Sequence[ComparedRun]",
    published: "Targets | None",
    card: Mapping[str, str],
) -> "Figure":
    """Returns the figure of --plot. card: the protocol for its caption."""
    from cfgjax.evaluation.report.comparison_figure import comparison_figure
    from cfgjax.evaluation.report.cost_figure import cost_figure

    return cost_figure(records, card) if against == "evaluations" else comparison_figure(runs, published)


def plot(path: AnyPath, figure: "Figure") -> None:
    """Writes a figure."""
    from cfgjax.base.files import writing

    with writing(path) as new:
        figure.savefig(new, dpi=130)
    print(f"wrote {path}")


def check_out(flag: str, path: AnyPath, endings: Sequence[str]) -> None:
    """Raises UsageError unless path, the value of a flag, has one of the endings and is writable."""
    if place(path).suffix.lower() not in endings:
        raise UsageError(f"--{flag}={path}: the ending must be {' or '.join(endings)}")
    check_writable(flag, path)


def labels(paths: Sequence[AnyPath]) -> list[str]:
    """Returns a unique label for each frontier.json: the shortest unique end of its run's path.

    Repeated paths are numbered.
    """
    places, names = [run_parts(path) for path in paths], []
    for i, parts in enumerate(places):
        others = [other for other in places if other != parts]
        size = next(n for n in range(1, len(parts) + 1) if all(other[-n:] != parts[-n:] for other in others))
        number = f" ({places[: i + 1].count(parts)})" if places.count(parts) > 1 else ""
        names.append(str(Path(*parts[-size:])) + number)
    return names


def run_parts(path: AnyPath) -> tuple[str, ...]:
    """Returns the path parts of a frontier.json's run, or of its folder if that is not named evaluation."""
    path = place(path) if is_url(path) else place(path).resolve()
    if path.name != "frontier.json":
        return path.with_suffix("").parts
    return (path.parent.parent if path.parent.name == "evaluation" else path.parent).parts
