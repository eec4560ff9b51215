"""Changes of a run's config when the run resumes: which keys may change, and the record of those that did.

Every key is of one of four kinds. Free keys do not change the states that a run goes through, except by rounding.
Keys of the place say where the data are and how they are found: they are free if the data set has the same hash. Fixed
keys determine the arrays of the checkpoints or their meaning, and cannot change. All other keys change the states from
the step at which the run resumes, and may only change if the user allows it.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from cfgjax.base.cells import text
from cfgjax.base.errors import UsageError, nearest
from cfgjax.base.json_files import read_json, write_json
from cfgjax.base.storage import Place, place
from cfgjax.runs.config import default_of, flatten, from_json, to_json
from cfgjax.runs.settings import KIND_OF_KEY, SECTIONS, Settings

CHANGES = "changes.json"  # [{"step", "key", "from", "to"}, …] in the workdir, if there are any
HASH_KEY = "data.hash"  # of a recorded change to another data set; not a key of the config
SHOWN = 16  # characters of a hash in messages

FREE_KEYS: tuple[str, ...] = (
    "train.num_steps",
    "train.log_every_steps",
    "train.steps_per_dispatch",
    "train.accumulate_steps",  # see `changes_draws`
    "train.max_skipped_in_row",
    "ema.snapshot_every_steps",
    "data.num_workers",
    "data.worker_timeout_seconds",
    "model.remat",
    "model.fused_attention",
)
FREE_SECTIONS = ("checkpoint", "sample", "evaluate", "mesh", "cluster", "log", "storage")
PLACE_KEYS = ("data.source", "data.path", "data.data_dir", "data.crop", "data.class_order", "data.tfds_split")

OF_DATA = "the network was made for it"
OF_NETWORK = "it determines the shape or meaning of the parameters"
OF_AVERAGES = "the checkpoints hold the averages of the first config"
FIXED_KEYS = {  # key: why it cannot change
    **dict.fromkeys(("data.num_classes", "data.image_shape", "data.kind", "data.low_res_size"), OF_DATA),
    "diffusion.betas": OF_NETWORK,
    "diffusion.num_timesteps": OF_NETWORK,
    "diffusion.parametrisation": OF_NETWORK,
    "diffusion.learned_variance": OF_NETWORK,
    "diffusion.time_sampler": 'only checkpoints of "second_moment" hold its losses',
    "optimizer.name": "the optimizer's state has another structure",
    "ema.rates": OF_AVERAGES,
    "ema.widths": OF_AVERAGES,
    "train.init_from": "it is only read when a run begins",
}
OF_CLIPPING = "the optimizer's state has another structure with and without clipping"
NOT_OF_PARAMETERS = ("model.dropout", "model.dtype")  # keys of the network that may change if allowed


def why_fixed(key: str) -> str | None:
    """Returns why a key cannot change in a run, or None if it can."""
    if key.startswith("model.") and key not in (*FREE_KEYS, *NOT_OF_PARAMETERS):
        return OF_NETWORK
    return FIXED_KEYS.get(key)


def rule_of(key: str) -> str:
    """Returns when the value of a key may change in a run that resumes, in a few words."""
    if why_fixed(key):
        return "never"
    if key in PLACE_KEYS:
        return "same data"
    return "always" if is_free(key) else "if allowed"


def is_free(key: str) -> bool:
    """Whether a key never changes the states of a run. See `changes_draws` for the exception."""
    return key in FREE_KEYS or key.partition(".")[0] in FREE_SECTIONS


def changes_draws(key: str, given: Settings) -> bool:
    """Whether a free key changes the random numbers of this run: the parts of a batch draw their own dropout."""
    return key == "train.accumulate_steps" and bool(given.model.options.get("dropout"))


def check_allowed(keys: str | Iterable[str], given: Settings | ConfigDict) -> frozenset[str]:
    """Returns the keys of allow_changes, a text with commas or several texts.

    given: the config. Raises UsageError for an unknown key, a section, and a key that cannot change. A key that does
    not change is accepted: a command that is repeated has the same flags as before.
    """
    words = [word.strip() for part in ([keys] if isinstance(keys, str) else keys) for word in part.split(",")]
    known = [*KIND_OF_KEY, *flatten(given.given if isinstance(given, Settings) else given)]
    for word in words:
        if not word:
            text_given = ",".join(words)
            raise UsageError(
                f"allow_changes={text_given!r} has an empty key; need some such as optimizer.learning_rate"
            )
        if word in SECTIONS:
            inner = next(key for key in known if key.startswith(f"{word}."))
            raise UsageError(f"allow_changes: {word!r} is a section; give its keys, such as {inner}")
        if word not in known:
            raise UsageError(f"allow_changes: unknown config key {word!r}{nearest(word, dict.fromkeys(known))}")
        if why := why_fixed(word):
            raise UsageError(f"allow_changes: {word} cannot change in a run: {why}; use another workdir")
    return frozenset(words)


def changed_values(saved: Settings, given: Settings) -> dict[str, tuple[Any, Any]]:
    """Returns {key: (value of the run, value given)} of the keys that differ.

    An absent key equals its default, since runs of older versions lack later keys; one without a default is "absent".
    """
    old, new = flatten(saved.given), flatten(from_json(to_json(given)))
    keys = sorted(old.keys() | new.keys())
    values = {key: (old.get(key, default_of(key)), new.get(key, default_of(key))) for key in keys}
    return {key: (before, now) for key, (before, now) in values.items() if before != now}


class Hashes(NamedTuple):
    """The hash of the data set of a run, and that of the data set given; None if it is not known."""

    saved: str | None = None
    given: str | None = None

    @property
    def same(self) -> bool | None:
        """Whether the data sets are the same, None if that is not known."""
        return None if None in self else self.saved == self.given


def check_resumable(
    saved: Settings, given: Settings, hashes: Hashes | None = None, allowed: Collection[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """Returns {key: (old, new)} of the changes that change the run from here on, all of them allowed.

    saved: of the run. Raises UsageError for a change that is not allowed, with the flag that allows it, and for one
    that is impossible.
    """
    hashes = hashes or Hashes()
    free = lambda key: (is_free(key) and not changes_draws(key, given)) or (key in PLACE_KEYS and hashes.same)
    differing = {key: values for key, values in changed_values(saved, given).items() if not free(key)}
    refused = {key: values for key, values in differing.items() if key not in allowed or why_not(key, values)}
    if refused:
        raise UsageError(refusal(refused, hashes))
    moved = [key for key in differing if key in PLACE_KEYS]
    if hashes.same is False:
        where = "data.path" if "path" in given.data.options else "data.source"
        if not moved and where not in allowed:
            raise UsageError(other_data(given, hashes, where))
        differing[HASH_KEY] = hashes
    return differing


def why_not(key: str, values: tuple[Any, Any]) -> str | None:
    """Returns why a key cannot change between these values, or None if it can."""
    if key == "optimizer.clip_norm" and (None in values or "absent" in values):
        return OF_CLIPPING
    return why_fixed(key)


def refusal(refused: Mapping[str, tuple[Any, Any]], hashes: Hashes) -> str:
    """Returns the message that names keys that may not change, both values of each, and the flag that allows them."""
    parts = [f"{key} is {new!r}, the run has {old!r}{key_note(key, hashes)}" for key, (old, new) in refused.items()]
    message = f"the workdir holds a run of another config: {'; '.join(parts)}; "
    for key, values in refused.items():
        if why := why_not(key, values):
            return f"{message}{key} cannot change in a run ({why}): use another workdir"
    return f"{message}add --allow_changes={','.join(refused)} to resume with this, or use another workdir"


def key_note(key: str, hashes: Hashes) -> str:
    """Returns what a message adds about a key, or ""."""
    if key == "train.accumulate_steps":
        return " (each part of a batch draws its own dropout)"
    if key not in PLACE_KEYS:
        return ""
    if hashes.same is None:
        return " (whether the data set is the same is not known)"
    return f" (the data set has the hash {str(hashes.given)[:SHOWN]}, that of the run {str(hashes.saved)[:SHOWN]})"


def other_data(given: Settings, hashes: Hashes, where: str) -> str:
    """Returns the message for another data set in the place where that of the run was."""
    where_now = given.data.options.get("path", given.data.source)
    saved, found = (str(value)[:SHOWN] for value in hashes)
    return (
        f"the run was trained on the data set with hash {saved}, but {where_now} now holds the one with hash {found}; "
        "nothing was overwritten. Restore the first data set, use another workdir, or continue on this one with "
        f"--allow_changes={where}"
    )


def read_changes(workdir: str | Place) -> list[dict[str, Any]]:
    """Returns the recorded changes of a run, [{"step", "key", "from", "to"}, …]: from this step on it has `to`."""
    path, keys = place(workdir) / CHANGES, {"step": int, "key": str}
    remedy = "restore it from a copy, or delete it: the run then has no record of its changes"
    try:
        found = read_json(path, kind=list, remedy=remedy)
    except FileNotFoundError:
        return []
    for change in found:
        typed = isinstance(change, dict) and all(isinstance(change.get(key), kind) for key, kind in keys.items())
        if not typed or not {"from", "to"} <= change.keys():
            raise UsageError(f"{path} is damaged: {change!r:.80} is not a change; {remedy}")
    return found


def changes_before(workdir: str | Place, step: int) -> list[dict[str, Any]]:
    """Returns the changes of a run on which its checkpoint of this step depends."""
    return [change for change in read_changes(workdir) if change["step"] < step]


def changes_text(changes: Iterable[Mapping[str, Any]]) -> str:
    """Returns changes in words, "optimizer.learning_rate 0.001 → 0.0005 from step 400", joined by semicolons."""
    short = lambda change, end: text(change[end])[: SHOWN if change["key"] == HASH_KEY else None]
    return "; ".join(f"{c['key']} {short(c, 'from')} → {short(c, 'to')} from step {c['step']}" for c in changes)


class RunChanges:
    """The changes of a run: those recorded in its workdir, and the new ones with which it resumes.

    saved: the settings that the workdir has. new: see `check_resumable`.
    """

    def __init__(self, workdir: Place, saved: Settings, hashes: Hashes, new: Mapping[str, tuple[Any, Any]]) -> None:
        self._path = workdir / CHANGES
        self._stored = read_changes(workdir)
        current = json_value({**flatten(saved.given), HASH_KEY: hashes.saved})
        self._earlier = in_effect(self._stored, current)
        self._new = [{"key": key, "from": json_value(old), "to": json_value(to)} for key, (old, to) in new.items()]

    def at(self, step: int) -> list[dict[str, Any]]:
        """Returns the new changes, for a run that resumes at this step."""
        return [{"step": step, **change} for change in self._new] if step else []

    def write(self, step: int) -> None:
        """Writes the changes of a run that resumes at this step. To be called before its config is written."""
        changes = from_step([*self._earlier, *self.at(step)], step)
        if changes != self._stored:
            write_json(self._path, changes)


def in_effect(changes: Sequence[dict[str, Any]], current: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the changes without those that were recorded just before the run was killed, and never took effect.

    current: {key: value} of the workdir's config.json, which is written after the changes. The place of the data has
    changed since without a record if these were moved, so that it is the hash that shows whether they are others.
    """
    kept, other_data = list(changes), set()  # other_data: the steps at which the data set became another
    for key in sorted({change["key"] for change in changes}, key=lambda key: key != HASH_KEY):
        own = [change for change in changes if change["key"] == key]
        while own and own[-1]["to"] != current.get(key, json_value(default_of(key))):
            if key in PLACE_KEYS and own[-1]["step"] in other_data:
                break
            kept.remove(own.pop())
        if key == HASH_KEY:
            other_data = {change["step"] for change in own}
    return kept


def from_step(changes: Iterable[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    """Returns the changes of a run that resumes at this step with the newest value of each key.

    A change at a later step, of which the checkpoint was lost, then holds from this step on. Several changes of a key
    at one step become one. At step 0, where a run begins, there are none.
    """
    merged: dict[tuple[int, str], dict[str, Any]] = {}
    for change in changes:
        change = {**change, "step": min(change["step"], step)}
        at = change["step"], change["key"]
        merged[at] = change | ({"from": merged[at]["from"]} if at in merged else {})
    return [change for change in merged.values() if change["step"] and change["from"] != change["to"]]


def json_value(value: Any) -> Any:
    """Returns a value as JSON has it, with lists in place of tuples."""
    return json.loads(json.dumps(value))
