"""The optional dependency matplotlib, of the extra `plots`. Does not import jax."""

import importlib.util
import io
from typing import Any

from cfgjax.base.errors import UsageError

Figure = Any  # matplotlib's


def require_matplotlib(what: str = "pictures of points need") -> None:
    """Raises UsageError if matplotlib, an optional dependency, is missing. what: subject and verb of the error."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError(f"{what} matplotlib: pip install 'cfgjax[plots]'")


def drawn_in_notebooks(figure: Figure) -> Figure:
    """Returns the figure, which notebooks then draw even if pyplot was not imported."""

    def png() -> bytes:
        file = io.BytesIO()
        figure.savefig(file, format="png")
        return file.getvalue()

    figure._repr_png_ = png
    return figure
