"""An evaluation of a run: measured, shown and written."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax

from cfgjax.base.plots_extra import Figure, drawn_in_notebooks
from cfgjax.base.progress import Progress
from cfgjax.data.sources.registry import mixture_of, open_source
from cfgjax.evaluation.features.tilted import MAX_DIMENSIONS, tilted_frontier
from cfgjax.evaluation.frontier.frontier import Frontier, find_reference
from cfgjax.evaluation.frontier.measure import warn_of_few
from cfgjax.evaluation.frontier.plan import FrontierPlan
from cfgjax.evaluation.report import frontier_table as tables
from cfgjax.evaluation.report.differences import difference_table
from cfgjax.evaluation.report.frontier_figure import frontier_figure
from cfgjax.evaluation.report.frontier_files import write
from cfgjax.evaluation.report.frontier_rows import spread_note
from cfgjax.evaluation.report.html import html_table
from cfgjax.evaluation.report.protocol import protocol, protocol_lines


@dataclasses.dataclass(frozen=True, repr=False)
class FrontierResult:
    """The result of an evaluation; a notebook shows it as a table.

    rows: {column: value} of each setting, with its metrics, their intervals and the differences from the baseline.
    record: what the result was measured with. tilted: the points of `tilted_frontier` of a mixture.
    """

    rows: list[dict[str, Any]]
    record: dict[str, Any]
    network: tables.MetricNames
    tilted: Sequence[dict[str, float]] = ()

    @property
    def protocol(self) -> dict[str, str]:
        """What to report with every result, {name: text}."""
        return protocol(self.record, self.rows)

    @property
    def table(self) -> str:
        """The metrics of each setting as a table of text."""
        return "\n".join(tables.frontier_table(self.rows))

    @property
    def differences(self) -> str:
        """The differences from the baseline as a table of text, with the intervals of pairs of samples."""
        return "\n".join(difference_table(self.rows))

    def figure(self) -> Figure:
        """Returns the curves as a matplotlib Figure."""
        return drawn_in_notebooks(frontier_figure(self.rows, self.network, self.tilted, self.protocol))

    def to_dict(self) -> dict[str, Any]:
        """Returns what frontier.json has."""
        return {**self.record, "protocol": self.protocol, "rows": self.rows}

    def write(self, plan: FrontierPlan) -> list[str]:
        """Writes the files of an evaluation. Returns their names."""
        return write(plan.folder, self.rows, self.record, plan.work.network, self.tilted)

    def lines(self) -> list[str]:
        """Returns everything as lines of text."""
        blocks = [
            [*tables.frontier_table(self.rows), spread_note(self.rows)],
            difference_table(self.rows),
            [*tables.tilted_lines(self.tilted), *tables.per_class_lines(self.rows)],
            tables.findings(self.rows, self.network),
            protocol_lines(self.protocol),
        ]
        kept = [[line for line in block if line] for block in blocks]
        return [line for block in kept if block for line in ("", *block)]

    def __repr__(self) -> str:
        return self.table

    def _repr_html_(self) -> str:
        return html_table(tables.frontier_cells(self.rows), spread_note(self.rows))


def measure_frontier(
    plan: FrontierPlan,
    check: Callable[[], object] = lambda: None,
    report: Callable[[Progress, list[dict[str, Any]]], object] = lambda progress, rows: None,
) -> FrontierResult | None:
    """Returns the `FrontierResult` of a plan, in the first process; None in the others, which take part.

    check: called between batches; what it raises ends the work, and what is drawn is kept. report: called with the
    `Progress` and the rows so far after each setting.
    """
    work, first = plan.work, jax.process_index() == 0

    def seen(images: int) -> None:
        check()
        progress.advance(images)

    with Progress("reference", "image", write=first) as progress:
        dataset = lambda: open_source(plan.data)
        shape = work.model.image_shape
        reference = find_reference(plan.evaluation.reference, dataset, work.network, shape, plan.folder, seen)
    warn_of_few(work.num_samples, work.network, reference)
    rows: list[dict[str, Any]] = []
    with Progress("samples", "sample", work.num_missing(reference), write=first) as progress:
        for row in work.rows(reference, progress.advance, check):
            rows.append(row)
            report(progress, rows)
    if not first:
        return None
    rows = work.with_changes(rows, reference, plan.baseline)
    return FrontierResult(rows, work.record(reference), work.network, closed_form(work))


def closed_form(work: Frontier) -> Sequence[dict[str, float]]:
    """Returns `tilted_frontier` for a run on a mixture of one or two dimensions, otherwise ()."""
    data = work.model.settings.data
    if not work.network.points or data.image_shape[0] > MAX_DIMENSIONS:
        return ()
    guidance = dict.fromkeys(setting.options.guidance for setting in work.settings)
    return tilted_frontier(mixture_of(data), tuple(guidance))
