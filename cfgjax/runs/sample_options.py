"""The options of sampling, in one place.

The fields of `SampleOptions` determine the flags of `cfgjax sample` and `cfgjax evaluate` (and so of `launch` and
`sweep`, which pass these on), the keys of config.sample and config.evaluate, the keyword arguments of `Model.sample`,
the axes of a frontier, the columns of its tables, and the identity of stored samples. Nothing else lists them.
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any

from ml_collections.config_dict import placeholder

from cfgjax.base.errors import UsageError, nearest
from cfgjax.base.numerals import check_ascii, is_whole_number, real_number, whole_number
from cfgjax.diffusion.specs import spec
from cfgjax.runs.values import BELOW_ONE, MAX_LEVELS, NONE, NUMBER, NUMBERS, TEXT, Kind, integer, one_of, several, shown

LABEL_POLICIES = ("balanced", "random")  # the keys of `LABELS_OF_POLICY`, which has their functions
CLIPPINGS = ("consistent", "x_only", "none")  # as CLIP_MODES of cfgjax.diffusion.samplers.driver, which imports jax
PLACES = ("Model", "sample", "evaluate", "config.sample", "config.evaluate")
"""Where an option can be given: keyword arguments of `Model.sample`, flags of two commands, two config sections."""


@dataclasses.dataclass(frozen=True)
class Option:
    """A field of `SampleOptions`.

    kind: its values in configs. read: text of a flag → value; raises ValueError. help: of its flag. noun: what a flag
    that lists several values needs. places: a subset of PLACES. is_spec: whether Python may give an object instead of
    its text. may_be_none: whether None is a value. otherwise: what applies if the flag is not given and its command's
    config section does not have the option, in words.
    """

    kind: Kind
    read: Callable[[str], Any]
    help: str
    noun: str = "values"
    places: tuple[str, ...] = PLACES
    is_spec: bool = False
    may_be_none: bool = False
    otherwise: str = ""

    def check(self, name: str, value: Any) -> None:
        """Raises UsageError unless the value is valid. name: of the option, for the message."""
        if self.is_spec and not isinstance(value, str) and value is not None:
            return  # an object, which is checked where it is used
        if self.may_be_none and value is None:
            return
        if not self.kind.admits(value):
            raise UsageError(f"{name} is {shown(value)}; need {self.kind.text}")


def option(kind: Kind, read: Callable[[str], Any], help: str, **more: Any) -> dict[str, Option]:
    """Returns the metadata of a dataclass field with an `Option`."""
    return {"option": Option(kind, read, help, **more)}


def earlier_sampler(name: Any, noise: Mapping[str, Any]) -> Any:
    """Returns the text of a sampler that older versions stored as a name and v or eta, or an unknown name unchanged.

    noise: a mapping with "v" and "eta", of which the sampler has one.
    """
    option = {"ancestral": "v", "ddim": "eta"}.get(name) if isinstance(name, str) else None
    if option is None or option not in noise:
        return name
    return f"{name}({'' if noise[option] is None else f'{option}={noise[option]!r}'})"


def read_num_steps(text: str) -> int | str:
    """Returns a number of steps as an int, or the name of a selection of timesteps unchanged.

    Raises ValueError for an empty text and for non-ASCII characters.
    """
    check_ascii(text)
    if not text.strip():
        raise ValueError("it is empty")
    return whole_number(text) if is_whole_number(text) else text


@dataclasses.dataclass(frozen=True)
class SampleOptions:
    """The options of sampling. A sample is a function of these, the model, its label and its index.

    guidance: the weight w. classifier_scale: scale of a guide's gradient; None takes that of the rule. seed: of noise
    and labels. label_policy: how labels are chosen where none are given, "balanced" or "random". rule, sampler: values
    or their text. num_steps: number of levels T, or a selection of timesteps. ema: rate of the averaged parameters, a
    width σ_rel (see `cfgjax.load`), or 0 for no averaging; None takes the run's first. grid: spacing of the levels, a
    value or text. clip: how x̃ of images is clipped to [−1, 1], see `samplers.clipped`; data that are no images are
    never clipped.
    """

    guidance: float = field(
        default=0.0,
        metadata=option(
            NUMBER,
            real_number,
            "Guidance weight w of ε̃ = (1+w) ε(z,c) − w ε(z); at 0 there is no guidance.",
            noun="numbers",
            places=PLACES[1:],
        ),
    )
    classifier_scale: float | None = field(
        default=None,
        metadata=option(
            NUMBER,
            real_number,
            "Scale of the classifier's gradient, with --guide.",
            noun="numbers",
            places=("sample", "evaluate"),
            otherwise="that of the rule",
            may_be_none=True,
        ),
    )
    seed: int = field(
        default=0,
        metadata=option(
            integer(0, 2**32 - 1),
            whole_number,
            "Seed of the noise and of random labels, 0 to 2³² − 1.",
            noun="integers",
        ),
    )
    label_policy: str = field(
        default="balanced",
        metadata=option(
            one_of(*LABEL_POLICIES),
            str,
            "How labels are chosen: balanced (each class equally often) or random.",
            places=("evaluate", "config.evaluate"),
        ),
    )
    rule: Any = field(default="cfg()", metadata=option(TEXT, str, "Guidance rule, such as 'cfg()'.", is_spec=True))
    sampler: Any = field(
        default="dpmpp_2m_sde()",
        metadata=option(TEXT, str, "Sampler, such as 'dpmpp_2m()' or 'ancestral(v=0.3)'.", is_spec=True),
    )
    num_steps: int | str = field(
        default=16,
        metadata=option(
            integer(2, MAX_LEVELS) | TEXT,
            read_num_steps,
            "Number of sampling levels T; in discrete time also a spacing such as ddim25 or 10+15+20.",
        ),
    )
    ema: float | None = field(
        default=None,
        metadata=option(
            BELOW_ONE,
            real_number,
            "EMA rate, or 0 for no averaging; for a run with ema.widths also a width σ_rel up to 0.2887.",
            noun="numbers",
            places=("sample", "evaluate", "config.evaluate"),
            otherwise="the run's first rate or width",
            may_be_none=True,
        ),
    )
    grid: Any = field(
        default="schedule()",
        metadata=option(TEXT, str, "Grid of levels, such as 'edm(rho=7)' or 'flow(shift=3)'.", is_spec=True),
    )
    clip: str = field(
        default="consistent",
        metadata=option(
            one_of(*CLIPPINGS),
            str,
            "How x̃ of images is clipped to [−1, 1]: consistent (ε̃ follows x̃), x_only or none.",
        ),
    )

    def with_changes(self, place: str, **changes: Any) -> "SampleOptions":
        """Returns the options with changes, checked. None leaves an option as it is. place: one of PLACES."""
        known = fields(place)
        for name, value in changes.items():
            if name not in known:
                raise UsageError(f"unknown option {name!r}{nearest(name, known)}")
            if value is not None:
                known[name].check(name, value)
        return dataclasses.replace(self, **{name: value for name, value in changes.items() if value is not None})


def fields(place: str | None = None) -> dict[str, Option]:
    """Returns {name: `Option`} of all options, or of those that can be given in one of PLACES."""
    every = {field.name: field.metadata["option"] for field in dataclasses.fields(SampleOptions)}
    return {name: found for name, found in every.items() if place is None or place in found.places}


def as_dict(options: SampleOptions) -> dict[str, Any]:
    """Returns {name: value} of the options, with rules and samplers as they are."""
    return {name: getattr(options, name) for name in fields()}


def kinds(section: str) -> dict[str, Kind]:
    """Returns {key: kind} of the options in config.sample, which lists weights, or in config.evaluate.

    config.evaluate may list several values of any option, and its None stands for the value in config.sample.
    """
    found = {}
    for name, given in fields(f"config.{section}").items():
        listed = NUMBERS if name == "guidance" else several(given.kind, f"a non-empty tuple, each {given.kind.text}")
        only = listed if name == "guidance" else given.kind
        found[name] = only | listed | NONE if section == "evaluate" and name != "guidance" else only
    return found


def defaults(section: str) -> dict[str, Any]:
    """Returns {key: default} of the options in config.sample or config.evaluate, for `ConfigDict`.

    In config.evaluate the default is None, for the value of config.sample, and the type that of the option.
    """
    values = {name: value for name, value in as_dict(SampleOptions()).items() if name in fields(f"config.{section}")}
    if section == "sample":
        return values
    return {name: placeholder(object if value is None else type(value)) for name, value in values.items()}


def axes(
    sample: Mapping[str, Any],
    evaluate: Mapping[str, Any] | None = None,
    given: Mapping[str, Sequence[Any]] | None = None,
) -> dict[str, tuple]:
    """Returns {option: values} of the columns of a picture, or of a frontier.

    sample, evaluate: the options in config.sample and config.evaluate; the latter is for a frontier. given: values that
    override both.
    """
    found = {}
    for name, default in as_dict(SampleOptions()).items():
        sources = [source or {} for source in (given, evaluate, sample)]
        values = next((source[name] for source in sources if source.get(name) is not None), default)
        found[name] = tuple(values) if isinstance(values, tuple | list) else (values,)
    return found


def combinations(axes: Mapping[str, Sequence[Any]]) -> Iterator[SampleOptions]:
    """Yields the options of every combination of the axes; later fields of `SampleOptions` vary more slowly.

    Raises UsageError for a value that is invalid or occurs twice.
    """
    for name, values in axes.items():
        for value in values:
            fields()[name].check(name, value)
        texts = [spec(value) for value in values]
        if len(set(texts)) < len(texts):
            raise UsageError(f"{name} {', '.join(texts)}: a value occurs twice")
    names = [name for name in reversed(fields()) if name in axes]
    for values in itertools.product(*(axes[name] for name in names)):
        yield SampleOptions(**dict(zip(names, values, strict=True)))


def read_values(name: str, text: str, flag: str | None = None) -> tuple:
    """Returns the values of an option in text, separated by commas outside parentheses.

    flag: named in errors, by default that of the option's name. Raises UsageError.
    """
    flag = flag or name
    given, needed = f"--{flag}={text}", f"need {fields()[name].noun} separated by commas"
    words = split(text)
    if not words:
        raise UsageError(f"{given}: {needed}")
    values = []
    for word in words:
        try:
            values.append(fields()[name].read(word))
        except ValueError as e:
            raise UsageError(f"{given}: {needed}; {e}") from None
        fields()[name].check(f"{given}: {name}", values[-1])
    return tuple(values)


def split(text: str) -> list[str]:
    """Returns the parts of text between commas that are in no parentheses and no quotes, without surrounding spaces."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        if char == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts] if text.strip() else []
