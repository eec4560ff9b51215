"""diagnostics.json and diagnostics.png: what guidance does at each level."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cfgjax.base.files import writing
from cfgjax.base.json_files import write_json
from cfgjax.base.plots_extra import Figure, require_matplotlib
from cfgjax.base.storage import Place

TITLES = {
    "difference": "‖ε_c − ε_u‖ / √d",
    "cosine": "cos(ε_c, ε_u)",
    "outside": "share of |x̃| > 1 before clipping",
    "tilting": "½ ∫ w(1+w) ‖ε_c − ε_u‖² dλ",
}
MAX_LEGEND = 12  # settings in a legend


def write_diagnostics(path: Place, diagnosed: Mapping[str, Mapping[str, Any]], record: Mapping[str, Any]) -> list[str]:
    """Writes {name of a setting: result of `diagnose`} to path.json, with a record, and draws path.png.

    Returns the names of the files.
    """
    files = [path.with_name(f"{path.name}{ending}") for ending in (".json", ".png")]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(files[0], {**record, "settings": diagnosed}, indent=1)
    with writing(files[1]) as new:
        diagnostics_figure(diagnosed).savefig(new, dpi=130, metadata={"Software": None})
    return [file.name for file in files]


def diagnostics_figure(diagnosed: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Returns a matplotlib Figure with a panel for each diagnostic against λ: means and 10–90 % bands over samples."""
    require_matplotlib("--diagnostics needs")
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(9.5, 6.6), layout="constrained")
    for axis, (name, title) in zip(np.ravel(drawn.subplots(2, 2)), TITLES.items(), strict=True):
        for i, (label, found) in enumerate(diagnosed.items()):
            colour = f"C{i}" if len(diagnosed) <= 10 else None
            (line,) = axis.plot(found["logsnr"], found[name]["mean"], linewidth=1.2, color=colour, label=label)
            band = found[name]["low"], found[name]["high"]
            axis.fill_between(found["logsnr"], *band, alpha=0.12, color=line.get_color(), linewidth=0)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("λ (noise on the left)", fontsize=9)
        axis.grid(alpha=0.3)
        axis.tick_params(labelsize=8)
        if name == "tilting":
            largest = max(np.abs(found[name]["high"]).max() for found in diagnosed.values())
            axis.set_yscale("symlog", linthresh=max(largest / 1000, 1e-6))
    handles, labels = drawn.axes[0].get_legend_handles_labels()
    shown = slice(0, MAX_LEGEND)
    drawn.legend(handles[shown], labels[shown], fontsize=8, loc="outside lower center", ncols=min(4, len(labels)))
    numbers = sorted({found["num_samples"] for found in diagnosed.values()})
    drawn.suptitle(f"mean and 10–90 % of {', '.join(map(str, numbers))} samples", fontsize=10)
    return drawn
