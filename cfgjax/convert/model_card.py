"""The model card of an exported model, in Markdown with the header that model hubs read."""

from collections.abc import Mapping, Sequence
from typing import Any

from cfgjax.base.cells import text
from cfgjax.evaluation.report.frontier_table import frontier_cells
from cfgjax.evaluation.report.protocol import protocol, protocol_lines
from cfgjax.models.description import size_text
from cfgjax.runs.settings import Settings

CLASSES_NAMED = 20  # named in a card


def model_card(
    settings: Settings,
    name: str,
    license: str | None,
    step: int,
    ema: float,
    parameters: int,
    classes: Sequence[str] | None,
    frontier: Mapping[str, Any] | None,
) -> str:
    """Returns the card. frontier: the content of the run's frontier.json, or None if it was not evaluated."""
    header = ["---", f"license: {license or 'unknown'}", "library_name: cfgjax", "tags:", "- diffusion"]
    header += ["- classifier-free-guidance", "- jax", "---"]
    blocks = [
        header,
        [f"# {name}"],
        [introduction(settings)],
        markdown_lines(["", ""], facts(settings, step, ema, parameters, classes)),
        ["## Use"],
        python_lines(settings, name),
        ["## Evaluation"],
        *evaluation(frontier),
        ["## Licence"],
        [license or "Not stated. The licence of the training data may restrict the use of the model."],
    ]
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def introduction(settings: Settings) -> str:
    """Returns the sentence that says what the model is."""
    data, diffusion = settings.data, settings.diffusion
    kind = "upsampler" if data.low_res_shape is not None else "diffusion model"
    what = f"{kind} of {size_text(data.image_shape)} {data.source} data"
    if not settings.model.options.get("conditional", True):
        return f"An unconditional {what}. It takes no labels."
    guided = (
        f"Labels were dropped with probability {diffusion.p_uncond:g} in training, so the model can be guided without "
        "a classifier."
        if diffusion is not None and diffusion.p_uncond
        else "It was trained without dropped labels, and has no unconditional branch."
    )
    return f"A class-conditional {what}. {guided}"


def facts(
    settings: Settings, step: int, ema: float, parameters: int, classes: Sequence[str] | None
) -> list[tuple[str, str]]:
    """Returns the lines of the table of facts."""
    data, given = settings.data, settings.given
    trained, optimizer, diffusion = given["train"], given["optimizer"], given["diffusion"]
    names = "not named"
    if classes:
        names = ", ".join([*classes[:CLASSES_NAMED], *(["…"] if len(classes) > CLASSES_NAMED else [])])
    return [
        ("data", f"{data.source} {data.options.get('path') or ''}".strip()),
        ("shape of a sample", size_text(data.image_shape)),
        ("classes", f"{data.num_classes} ({names})"),
        ("network", f"{settings.model.name}, {parameters:,} parameters"),
        ("predicts", text(diffusion.get("parametrisation", "eps"))),
        ("steps", f"{step:,}, of batch {trained['batch_size']}"),
        ("optimizer", f"{optimizer['name']}, learning rate {optimizer['learning_rate']:g}"),
        ("average of the parameters", f"{ema:g}" if ema else "none"),
        ("p_uncond", text(diffusion.get("p_uncond"))),
    ]


def python_lines(settings: Settings, name: str) -> list[str]:
    """Returns the lines that load the model and draw samples."""
    guided = settings.diffusion is not None and settings.diffusion.p_uncond
    return [
        "```python",
        "import cfgjax",
        "",
        f'model = cfgjax.load("{name}")  # this folder',
        f"images = model.sample([0, 1], guidance={1.0 if guided else 0.0})",
        "```",
    ]


def evaluation(frontier: Mapping[str, Any] | None) -> list[list[str]]:
    """Returns the blocks of the run's frontier: its table, figure and protocol."""
    if frontier is None:
        return [["The model was not evaluated before it was exported."]]
    rows = frontier["rows"]
    head, *lines = frontier_cells(rows)
    wide = [(line[0], *[""] * (len(head) - 1)) if len(line) == 1 else line for line in lines]
    card = ["```text", *protocol_lines(protocol(frontier, rows)), "```"]
    return [markdown_lines(head, wide), ["![The frontier](evaluation/frontier.png)"], card]


def markdown_lines(head: Sequence[str], lines: Sequence[Sequence[str]]) -> list[str]:
    """Returns a Markdown table."""
    row = lambda cells: f"| {' | '.join(cells)} |"
    return [row(head), row(["---"] * len(head)), *map(row, lines)]
