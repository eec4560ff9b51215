"""The protocol of a result: everything that a reader needs to repeat it or to compare it with another one."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from cfgjax.base.cells import text
from cfgjax.base.errors import UsageError
from cfgjax.diffusion.specs import parse
from cfgjax.evaluation.report.frontier_rows import COST, INTERVAL, Row
from cfgjax.runs.changes import changes_text

SHORT = 12  # digits of a digest
CHARACTERS_PER_INCH = 19  # of a figure's width, in the caption's size
MAX_DIFFERING = 12  # values of several results
LEFT_OUT = "none", "", "unknown"  # values that a caption does not mention


def protocol(record: Mapping[str, Any], rows: Sequence[Row]) -> dict[str, str]:
    """Returns {name: text} of the protocol of a frontier, with all values that occur in its rows.

    record: the content of its frontier.json, also one that an older version wrote.
    """
    every = lambda key: ", ".join(dict.fromkeys(text(row.get(key)) for row in rows))
    config, checkpoint = record.get("config", {}), record.get("checkpoint", {})
    data, diffusion = config.get("data", {}), config.get("diffusion") or {}
    weights = list(dict.fromkeys(row["guidance_weight"] for row in rows))
    found = {
        "w": ", ".join(f"{w:g}" for w in weights),
        "s = 1 + w": ", ".join(f"{1 + w:.6g}" for w in weights),
        "rule": every("rule"),
        "guidance interval": "; ".join(dict.fromkeys(filter(None, (row_interval(row) for row in rows)))) or "none",
        "classifier scale": every("classifier_scale"),
        "weak model": every("weak"),
        "sampler": every("sampler"),
        "grid": ", ".join(dict.fromkeys(grid_text(row.get("grid"), diffusion) for row in rows)),
        "clipping": clipping_text(rows, data),
        "T": every("num_steps"),
        "network evaluations per sample": cost_text(rows),
        "samples": every("num_samples"),
        "labels": every("label_policy"),
        "seed": every("seed"),
        "EMA": every("ema"),
        "step": text(checkpoint.get("step")),
        "checkpoint": digest_text(checkpoint),
        "changes in training": changes_text(record.get("changes", [])) or "none",
        "upsampler": upsampler_text(record.get("upsampler")),
        "data": " ".join(filter(None, [data.get("source"), text(tuple(data.get("image_shape", ())))])),
        "scores": every("scores"),
        "features": named_text(record.get("features")),
        "judge": named_text(record.get("judge")),
        "guide": named_text(record.get("guide")),
        "reference": reference_text(record.get("reference")),
        "quantisation": record.get("quantisation", "unknown"),
        "cfgjax": record.get("cfgjax", "unknown"),
    }
    return {name: value or "unknown" for name, value in found.items()}


def merged_protocol(cards: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """Returns the protocols of several results, {label: protocol}, as one that says where they differ."""
    found = {}
    for name in dict.fromkeys(name for card in cards.values() for name in card):
        labels: dict[str, list[str]] = {}
        for label, card in cards.items():
            labels.setdefault(card.get(name, "unknown"), []).append(label)
        several = lambda own: ", ".join(own if len(own) <= MAX_DIFFERING else [*own[:2], f"… ({len(own)} results)"])
        parts = [f"{several(own)}: {value}" for value, own in labels.items()]
        cut = [*parts[: MAX_DIFFERING - 1], f"… ({len(parts)} values)"] if len(parts) > MAX_DIFFERING else parts
        found[name] = "; ".join(cut) if len(parts) > 1 else next(iter(labels))
    return found


def protocol_lines(found: Mapping[str, str]) -> list[str]:
    """Returns the protocol as the footer of a table."""
    width = max(map(len, found))
    return ["protocol:", *(f"  {name.ljust(width)}  {value}" for name, value in found.items() if value not in LEFT_OUT)]


def caption(found: Mapping[str, str], width_inches: float) -> str:
    """Returns the protocol as the caption of a figure of this width, in several lines."""
    parts = [f"{name}: {value}" for name, value in found.items() if value not in LEFT_OUT]
    return "\n".join(textwrap.wrap("  ·  ".join(parts), int(CHARACTERS_PER_INCH * width_inches)))


def cost_text(rows: Sequence[Row]) -> str:
    """Returns the network evaluations of a sample, with the weights and rules that have each number if it varies."""
    several = len({row["rule"] for row in rows}) > 1
    where: dict[str, dict[str, list[str]]] = {}
    for row in rows:
        where.setdefault(text(row.get(COST)), {}).setdefault(row["rule"], []).append(f"{row['guidance_weight']:g}")
    if len(where) == 1:
        return "unknown" if "none" in where else next(iter(where))
    parts = []
    for cost, rules in where.items():
        named = [f"{rule} at " * several + f"w = {', '.join(dict.fromkeys(found))}" for rule, found in rules.items()]
        parts.append(f"{cost} ({'; '.join(named)})")
    return ", ".join(parts)


def row_interval(row: Row) -> str:
    """Returns `interval_text` of a row; of one that an older version wrote, without the levels of its sampler."""
    from cfgjax.diffusion.guidance import RULES

    if INTERVAL in row:
        return row[INTERVAL]
    try:
        return interval_text(parse(row["rule"], RULES, "rule"))
    except UsageError:  # of the user's own
        return ""


def interval_text(rule: Any, logsnrs: Float[np.ndarray, " t"] | None = None) -> str:
    """Returns the interval of guidance of a rule in every unit, from noise to data, or "" if it has none.

    In ς = σ/α, in λ = −2 ln ς and in flow time t = ς/(1+ς). With the levels of a sampler also in steps and in fractions
    of the steps, of which the first is guided and the last is not; without them, bounds in steps are returned alone.
    """
    from cfgjax.diffusion.guidance import interval, parts

    def in_units(part: Any) -> str:
        if logsnrs is None and part.unit in ("step", "fraction"):
            return f"{part.unit} {text(part.low)} to {text(part.high)}"
        known = part.bounds(logsnrs)
        spans = {"ς": known["sigma"][::-1], "λ": known["logsnr"], "t": known["flow"][::-1]}
        spans |= {unit: known[unit] for unit in ("step", "fraction") if unit in known}
        return ", ".join(f"{name} {noisy:.4g} to {clean:.4g}" for name, (noisy, clean) in spans.items())

    return " and ".join(in_units(part) for part in parts(rule) if isinstance(part, interval))


def clipping_text(rows: Sequence[Row], data: Mapping[str, Any]) -> str:
    """Returns how x̃ is clipped."""
    if len(data.get("image_shape", ())) != 3 or data.get("kind") == "latent":
        return "none"
    return ", ".join(dict.fromkeys(row.get("clip", "consistent") for row in rows))


def grid_text(grid: str | None, diffusion: Mapping[str, Any]) -> str:
    """Returns the grid of a row, with what the default, that of the process, stands for."""
    if grid not in (None, "schedule()"):
        return str(grid)
    if diffusion.get("betas"):
        return f"timesteps of {diffusion['betas']} betas, {diffusion.get('num_timesteps')} in all"
    if "schedule" not in diffusion:
        return "unknown"
    bounds = f"{diffusion.get('logsnr_min', 0):g} to {diffusion.get('logsnr_max', 0):g}"
    return f"quantiles of the {diffusion['schedule']} schedule, λ {bounds}"


def digest_text(found: Mapping[str, Any]) -> str:
    """Returns the first digits of the digest of a part of a record."""
    return str(found.get("digest", ""))[:SHORT]


def upsampler_text(found: Mapping[str, Any] | None) -> str:
    """Returns the checkpoint of a cascade's upsampler and its options that differ from the defaults, or "none"."""
    if not found:
        return "none"
    options = {**found["options"], "low_res_logsnr": found["low_res_logsnr"]}
    given = [f"{name}={text(value)}" for name, value in options.items() if value is not None]
    return ", ".join([f"{found['checkpoint'][:SHORT]}, step {found['step']}, ema {found['ema']:g}", *given])


def named_text(found: Mapping[str, Any] | None) -> str:
    """Returns the name, or step, and the digest of a network, or "none"."""
    return "none" if not found else f"{found.get('name') or 'step ' + text(found.get('step'))} {digest_text(found)}"


def reference_text(found: Mapping[str, Any] | None) -> str:
    """Returns the origin and the digest of a reference."""
    return "" if not found else f"{found.get('origin')} {digest_text(found)}"
