"""Pictures of samples: a grid of classes by guidance weights, and the three-Gaussian figure for point data."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from cfgjax.base.errors import UsageError, nearest
from cfgjax.base.plots_extra import require_matplotlib
from cfgjax.data.batches import to_uint8
from cfgjax.data.sources.registry import check_labels, mixture_of
from cfgjax.diffusion.guidance import uses_null
from cfgjax.diffusion.specs import spec
from cfgjax.models.binding import rule_value, sampler_value, with_guide, with_weak
from cfgjax.models.cascade import Cascade
from cfgjax.models.class_names import short_name
from cfgjax.models.groups import check_divisible, rule_at
from cfgjax.models.guide import Guide
from cfgjax.models.model import Model
from cfgjax.models.resolving import resolved_combinations
from cfgjax.models.weak import WeakRun
from cfgjax.runs.sample_options import SampleOptions, as_dict, axes, fields

CELL_PIXELS = 32  # of the smallest images in a picture
MARGIN, HEADER, FONT_PIXELS = 8, 20, 14


def draw_columns(
    model: Model | Cascade,
    columns: Sequence[SampleOptions],
    labels: Sequence[int] | Int[np.ndarray, " n"],
    *,
    guide: Guide | None = None,
    weak: WeakRun | None = None,
    before: Callable[[SampleOptions], object] = lambda options: None,
    on_ess: Callable[[SampleOptions, str], object] | None = None,
    **sampling: Any,
) -> list[Any]:
    """Returns what `Model.sample` returns for each column's options, sample i with the same noise in all of them.

    labels: of the samples. guide, weak: the `Guide` and the weak model of the rules. before: called with the options of
    each column before it is drawn, such as to load its average. on_ess: called with the options of a column and the
    text of its effective sample size, see `Model.sample_float`. sampling: further options of `Model.sample`.
    """
    check_labels(labels, model.num_classes)
    model.check_guidance([options.guidance * uses_null(rule_value(options.rule)) for options in columns])
    drawn = []
    for options in columns:
        before(options)
        told: dict[str, Any] = {} if on_ess is None else {"on_ess": functools.partial(on_ess, options)}
        drawn.append(model.sample(labels, options.guidance, **model_options(options, guide, weak), **told, **sampling))
    return drawn


def sample_figure(
    model: Model | Cascade,
    columns: Sequence[SampleOptions],
    *,
    labels: Sequence[int],
    per_cell: int,
    weak: WeakRun | None = None,
    **drawing: Any,
) -> Image.Image:
    """Returns an RGB picture of samples: rows are labels, columns are options, with per_cell samples in each cell.

    Sample j of a label has the same noise in every column of the same seed, so that a row shows the effect of w. weak,
    drawing: options of `draw_columns`; low_res has per_cell images for each label.
    For point data the columns are scatter plots of all labels; for source "mixture", a row of exact scores precedes the
    learned ones, unless there is a weak model.
    """
    check_drawable(model, columns, per_cell)
    repeated, names = np.repeat(np.asarray(labels), per_cell), column_names(columns)
    drawn = draw_columns(model, columns, repeated, weak=weak, **drawing)
    if not model.is_image:
        rows = {"learned": drawn}
        if model.settings.data.source == "mixture" and weak is None:
            exact = draw_columns(exact_model(model), columns, repeated, **drawing | {"on_ess": None})
            rows = {"exact": exact, **rows}
        return scatter(rows, repeated, names)
    return cells_figure(drawn, labels, model.classes, names)


def sample_frames(
    model: Model, columns: Sequence[SampleOptions], *, labels: Sequence[int], per_cell: int, **drawing: Any
) -> list[Image.Image]:
    """Returns the pictures of `sample_figure` with x̃ at each level, and at the end the samples. Columns with fewer
    levels than others wait at their samples."""
    check_drawable(model, columns, per_cell)
    drawn = draw_columns(model, columns, np.repeat(np.asarray(labels), per_cell), return_trajectory=True, **drawing)
    seen = [[*(to_uint8(x) for x in trajectory.x), images] for images, trajectory in drawn]
    names, last = column_names(columns), max(map(len, seen))
    frames = [[column[min(t, len(column) - 1)] for column in seen] for t in range(last)]
    return [cells_figure(frame, labels, model.classes, names) for frame in frames]


def check_drawable(model: Model | Cascade, columns: Sequence[SampleOptions], per_cell: int) -> None:
    """Raises UsageError if the samples of a model are no pictures, or per_cell does not fit a sampler."""
    if not model.is_image and len(model.image_shape) == 3:
        raise UsageError("data.kind is 'latent': the samples are not images and cannot be drawn; use Model.sample")
    for options in columns:
        check_divisible(f"per_cell {per_cell} is", per_cell, sampler_value(options.sampler))


def cells_figure(
    drawn: Sequence[UInt8[np.ndarray, "..."]],
    labels: Sequence[int],
    classes: Sequence[str] | None,
    names: Sequence[str],
) -> Image.Image:
    """Returns the `image_grid` of the images of each column, which are in the order of their labels."""
    images = np.stack(drawn, axis=1)
    images = images.reshape(len(labels), -1, len(drawn), *images.shape[2:])
    return image_grid(images.swapaxes(1, 2), [short_name(label, classes) for label in labels], names)


def picture_columns(model: Model, **values: Any) -> list[SampleOptions]:
    """Returns the options of every combination of values, one or several for each option, such as guidance=(0, 1, 3).

    Options that are not given are those of config.sample. Raises UsageError for values that the model cannot use.
    """
    given = {name: value if isinstance(value, list | tuple) else (value,) for name, value in values.items()}
    if unknown := [name for name in given if name not in fields("sample")]:
        raise UsageError(f"unknown option {unknown[0]!r}{nearest(unknown[0], fields('sample'))}")
    return resolved_combinations(axes(model.defaults.options, given=given), model)


def model_options(options: SampleOptions, guide: Guide | None, weak: WeakRun | None = None) -> dict[str, Any]:
    """Returns the keyword arguments of `Model.sample` for these options, with the networks that their rule needs."""
    changes = {name: getattr(options, name) for name in fields("Model")}
    rule = with_networks(options, guide, weak).rule
    return changes | {"rule": rule_at(options.guidance, rule, sampler_value(options.sampler))}


def with_networks(options: SampleOptions, guide: Guide | None, weak: WeakRun | None = None) -> SampleOptions:
    """Returns options whose rule is a value that has the networks that it needs."""
    rule = with_guide(with_weak(rule_value(options.rule), weak and weak.model), guide, options.classifier_scale)
    return dataclasses.replace(options, rule=rule)


def weight_name(w: float) -> str:
    """Returns the weight in both conventions."""
    return f"w={w:g} (s={1 + w:g})"


def column_names(
    columns: Sequence[SampleOptions], weight: Callable[[float], str] = weight_name, separator: str = "\n"
) -> list[str]:
    """Returns a name for each column: its weight, and those of its other options that differ."""
    texts = [{name: option_text(name, value) for name, value in as_dict(options).items()} for options in columns]
    differing = [name for name in fields() if name != "guidance" and len({text[name] for text in texts}) > 1]
    parts = lambda options, text: [weight(options.guidance), *(text[name] for name in differing)]
    return [separator.join(parts(*both)) for both in zip(columns, texts, strict=True)]


def option_text(name: str, value: Any) -> str:
    """Returns the text of an option, with its name unless it is a rule or sampler."""
    return spec(value) if dataclasses.is_dataclass(value) else f"{name}={value}"


def image_grid(
    images: UInt8[np.ndarray, "rows columns per_cell height width channels"],
    row_names: Sequence[str],
    column_names: Sequence[str],
    cell_pixels: int = CELL_PIXELS,
) -> Image.Image:
    """Returns an RGB picture of images with 1 or 3 channels, with names of rows and columns, of one or more lines.

    Smaller images are enlarged to about cell_pixels without interpolation.
    """
    rows, columns, per_cell, height, width, channels = images.shape
    zoom = max(1, round(cell_pixels / max(height, width)))
    images = images.repeat(zoom, axis=3).repeat(zoom, axis=4)
    if channels == 1:
        images = images.repeat(3, axis=-1)
    font = ImageFont.load_default(FONT_PIXELS)
    width_of = lambda name: max(round(font.getlength(line)) for line in name.split("\n"))
    left = MARGIN + max(map(width_of, row_names)) + MARGIN
    cell = max(per_cell * (width * zoom + 1), max(map(width_of, column_names))) + MARGIN
    header = HEADER * max(1 + name.count("\n") for name in column_names)
    picture = Image.new("RGB", (left + columns * cell, header + rows * (height * zoom + 2) + MARGIN), "white")
    draw = ImageDraw.Draw(picture)
    for c, name in enumerate(column_names):
        draw.text((left + c * cell, 2), name, fill="black", font=font)
    for r, name in enumerate(row_names):
        top = header + r * (height * zoom + 2)
        draw.text((MARGIN, top + height * zoom / 2), name, fill="black", font=font, anchor="lm")
        for c in range(columns):
            for i in range(per_cell):
                at = (left + c * cell + i * (width * zoom + 1), top)
                picture.paste(Image.fromarray(images[r, c, i]), at)
    return picture


def exact_model(model: Model | Cascade) -> Model:
    """Returns the `Model` with the exact predictions of the mixture that model was trained on."""
    data = model.settings.data
    mixture = mixture_of(data)
    predict = lambda z, logsnr, cond: mixture.predict(z, logsnr, cond["label"])
    return Model(model.settings, {}, bind_params=lambda params: predict)


def scatter(
    rows: Mapping[str, Sequence[Float[np.ndarray, "n d"]]],
    labels: Int[np.ndarray, " n"],
    names: Sequence[str],
) -> Image.Image:
    """Returns an RGB picture of points coloured by label. rows: {name: [points of each column]}."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(names), 3.2 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(names), sharex=True, sharey=True, squeeze=False)
    for row, (name, columns) in enumerate(rows.items()):
        for axis, points, column in zip(axes[row], columns, names, strict=True):
            axis.set_title(f"{name} scores, {column}", fontsize=9)
            axis.set_aspect("equal")
            for label in np.unique(labels):
                axis.scatter(*points[labels == label].T[:2], s=3, alpha=0.5, linewidths=0)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
