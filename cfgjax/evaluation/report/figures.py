"""Pictures of samples: a grid of classes by guidance weights, and the three-Gaussian figure for point data."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from cfgjax.base.errors import UsageError
from cfgjax.data.sources.registry import check_labels, mixture_of
from cfgjax.evaluation.report.plots_extra import require_matplotlib
from cfgjax.models.arguments import per_label
from cfgjax.models.cascade import Cascade
from cfgjax.models.guide import Guide
from cfgjax.models.model import Model
from cfgjax.models.options import guided_rule

CELL_PIXELS = 32  # smaller images are enlarged to about this size without interpolation
MARGIN, HEADER, FONT_PIXELS = 8, 20, 14


def sample_figure(
    model: Model | Cascade,
    *,
    labels: Sequence[int],
    guidance: Sequence[float] | Float[np.ndarray, " w"],
    per_cell: int,
    seed: int = 0,
    guide: Guide | None = None,
    classifier_scale: Sequence[float | None] = (None,),
    classifier_form: str = "eps",
    **sampling: Any,
) -> Image.Image:
    """Returns an RGB picture of samples: rows are labels, columns are w, with per_cell samples in each cell.

    Sample j of a label has the same noise in every column, so that a row shows the effect of w. guide,
    classifier_scale, classifier_form: a `Guide`, the scales of its gradient, with columns for each, and its form.
    sampling: options of `Model.sample`; low_res has per_cell images for each label. For point data the columns are
    scatter plots of all labels; for source "mixture", a row of exact scores precedes the learned ones.
    """
    if not model.is_image and len(model.image_shape) == 3:
        raise UsageError("data.kind is 'latent': the samples are no images and cannot be drawn; use Model.sample")
    check_labels(labels, model.num_classes)
    model.check_guidance(guidance)
    for scale in classifier_scale:
        per_label("classifier_scale", 0.0 if scale is None else scale, 1)
    repeated = np.repeat(np.asarray(labels), per_cell)
    settings = list(itertools.product(guidance, classifier_scale))
    rule = lambda w, scale: None if guide is None else guided_rule(w != 0, guide, scale, classifier_form)
    columns = [model.sample(repeated, w, rule=rule(w, s), seed=seed, **sampling) for w, s in settings]
    if not model.is_image:
        rows = {"learned": columns}
        if model.config.data.source == "mixture":
            oracle = exact_model(model)
            rows = {"exact": [oracle.sample(repeated, w, seed=seed, **sampling) for w in guidance], **rows}
        return scatter(rows, repeated, guidance)
    images = np.stack(columns, axis=1).reshape(len(labels), per_cell, len(settings), *model.image_shape)
    names = [str(label) for label in labels], [column_name(*pair) for pair in settings]
    return image_grid(images.swapaxes(1, 2), *names)


def column_name(w: float, classifier_scale: float | None) -> str:
    """Returns the heading of a column: the weight, and the scale of the classifier's gradient if there is one."""
    return weight_name(w) if classifier_scale is None else f"w={w:g}, scale {classifier_scale:g}"


def weight_name(w: float) -> str:
    """Returns the weight in both conventions."""
    return f"w={w:g} (s={1 + w:g})"


def image_grid(
    images: UInt8[np.ndarray, "rows columns per_cell height width channels"],
    row_names: Sequence[str],
    column_names: Sequence[str],
) -> Image.Image:
    """Returns an RGB picture of images with 1 or 3 channels, with names of rows and columns."""
    rows, columns, per_cell, height, width, channels = images.shape
    zoom = max(1, round(CELL_PIXELS / max(height, width)))
    images = images.repeat(zoom, axis=3).repeat(zoom, axis=4)
    if channels == 1:
        images = images.repeat(3, axis=-1)
    font = ImageFont.load_default(FONT_PIXELS)
    left = MARGIN + max(round(font.getlength(name)) for name in row_names) + MARGIN
    cell = max(per_cell * (width * zoom + 1), max(round(font.getlength(name)) for name in column_names)) + MARGIN
    picture = Image.new("RGB", (left + columns * cell, HEADER + rows * (height * zoom + 2) + MARGIN), "white")
    draw = ImageDraw.Draw(picture)
    for c, name in enumerate(column_names):
        draw.text((left + c * cell, 2), name, fill="black", font=font)
    for r, name in enumerate(row_names):
        top = HEADER + r * (height * zoom + 2)
        draw.text((MARGIN, top + height * zoom / 2), name, fill="black", font=font, anchor="lm")
        for c in range(columns):
            for i in range(per_cell):
                at = (left + c * cell + i * (width * zoom + 1), top)
                picture.paste(Image.fromarray(images[r, c, i]), at)
    return picture


def exact_model(model: Model | Cascade) -> Model:
    """Returns the `Model` with the exact predictions of the mixture that model was trained on."""
    data = model.config.data
    mixture = mixture_of(data)
    predict = lambda z, logsnr, cond: mixture.predict(z, logsnr, cond["label"])
    return Model(model.config, {}, bind_params=lambda params: predict)


def scatter(
    rows: Mapping[str, Sequence[Float[np.ndarray, "n d"]]],
    labels: Int[np.ndarray, " n"],
    guidance: Sequence[float] | Float[np.ndarray, " w"],
) -> Image.Image:
    """Returns an RGB picture of points coloured by label. rows: {name: [points for each w]}; the columns are w."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * len(guidance), 3.2 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(guidance), sharex=True, sharey=True, squeeze=False)
    for row, (name, columns) in enumerate(rows.items()):
        for axis, points, w in zip(axes[row], columns, guidance, strict=True):
            axis.set_title(f"{name} scores, {weight_name(w)}", fontsize=9)
            axis.set_aspect("equal")
            for label in np.unique(labels):
                axis.scatter(*points[labels == label].T[:2], s=3, alpha=0.5, linewidths=0)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3].copy())
