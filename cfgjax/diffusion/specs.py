"""The textual form of rules and samplers: Python's call syntax, parsed with `ast` and never evaluated.

`parse("interval(cfg(), low=0.3)", RULES)` is the value, and its `repr` is the text again, without the arguments that
have their default. Values that are equal have equal text.
"""

import ast
import dataclasses
import math
import numbers
from collections.abc import Collection, Mapping
from typing import Any

from cfgjax.base.errors import UsageError, nearest

CONSTANTS = {"inf": math.inf}  # names that stand for a number
OTHER_NAMES = {("sampler", "euler"): "use ddim(), which on --grid='flow()' is Euler's method on the flow"}
NESTED = "rule"  # the field that may be given without its name


class Spec:
    """Base of dataclasses whose `repr` is their text; to be declared with repr=False."""

    def __repr__(self) -> str:
        return spec(self)


def tree(cls: type) -> type:
    """Returns a dataclass, registered as a tree: its fields are data, except those of metadata {"static": True}.

    `jax.tree_util.register_dataclass` is not used: structures of two classes registered by it are equal (jax 0.10.2),
    so that a jitted function may run the program of one for the other.
    """
    fields = dataclasses.fields(cls)
    data = [field.name for field in fields if not field.metadata.get("static", False)]
    static = [field.name for field in fields if field.metadata.get("static", False)]

    def flatten(value: Any) -> tuple:
        return [getattr(value, name) for name in data], tuple(getattr(value, name) for name in static)

    def unflatten(meta: tuple, leaves: Any) -> Any:
        return cls(**dict(zip(data, leaves, strict=True)), **dict(zip(static, meta, strict=True)))

    import jax  # here, because reading and writing specs needs no jax

    jax.tree_util.register_pytree_node(cls, flatten, unflatten)
    return cls


def spec(value: Any) -> str:
    """Returns the text of a rule, a sampler or an argument. Fields of metadata {"text": False} are left out."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return _literal(value)
    words = []
    for field in dataclasses.fields(value):
        given = getattr(value, field.name)
        if field.metadata.get("text", True) and not _is_default(given, _default(field)):
            words.append(spec(given) if field.name == NESTED else f"{field.name}={spec(given)}")
    return f"{type(value).__name__}({', '.join(words)})"


def _default(field: dataclasses.Field) -> Any:
    """Returns the default of a field, or dataclasses.MISSING."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _is_default(given: Any, default: Any) -> bool:
    """Whether a field has its default, without comparing arrays."""
    return (type(given) is type(default) or (_is_number(given) and _is_number(default))) and given == default


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _literal(value: Any) -> str:
    """Returns the text of a number, string, None, boolean or tuple of them. Equal numbers have equal text."""
    if isinstance(value, tuple):
        return f"({', '.join(map(spec, value))}{',' * (len(value) == 1)})"
    if not _is_number(value):
        return repr(value)
    if abs(value) < 1e15 and value == int(value):
        return repr(int(value))
    if isinstance(value, numbers.Integral) and int(float(value)) != int(value):
        return repr(int(value))
    return repr(float(value))


def parse(text: str, registry: Mapping[str, Any], what: str = "rule") -> Any:
    """Returns the value that text names: a call of a name of the registry, with literals and such calls as arguments.

    `name` alone is `name()`. Arguments are given by name; the rule that another one wraps may come first without it.
    registry: {name: a dataclass, whose fields are the arguments, or the value itself}.
    what: the kind of value, for messages. Raises UsageError, with one line, for anything else.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise UsageError(f"{what} {_short(text)} is no call such as {_example(registry)}") from None
    if not isinstance(tree, ast.Call | ast.Name):
        raise UsageError(f"{what} {_short(text)} is no call such as {_example(registry)}")
    try:
        return _value(tree, registry, what)
    except RecursionError:
        raise UsageError(f"{what} {_short(text)} is nested too deeply") from None


def shortest(text: str, registry: Mapping[str, Any], what: str) -> str:
    """Returns the shortest text of the value that text names, such as "eps" or "edm(data_std=0.5)".

    Equal values have equal text. Raises UsageError as `parse` does.
    """
    value = parse(text, registry, what)
    names = [name for name, entry in registry.items() if entry is value]
    return names[0] if names else spec(value).removesuffix("()")


def named_arguments(text: str) -> tuple[str, dict[str, Any]]:
    """Returns (name, {argument: value}) of the text of a sampler, without looking the name up.

    Raises UsageError unless its arguments are literals.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        if isinstance(tree, ast.Name):
            return tree.id, {}
        if isinstance(tree, ast.Call) and isinstance(tree.func, ast.Name) and not tree.args:
            return tree.func.id, {str(word.arg): ast.literal_eval(word.value) for word in tree.keywords}
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        pass
    raise UsageError(f"{_short(text)} is no call with literals, such as 'ddim(eta=0.5)'")


def check_choice(name: str, given: Any, known: Collection[str]) -> None:
    """Raises UsageError unless given is one of the known names; names the nearest one."""
    if not isinstance(given, str) or given not in known:
        raise UsageError(f"{name} is {given!r}{nearest(given, known)}")


def _value(node: ast.expr, registry: Mapping[str, Any], what: str) -> Any:
    """Returns the value of a call, or of a name alone."""
    called = node.func if isinstance(node, ast.Call) else node
    if not isinstance(called, ast.Name):
        raise UsageError(f"{_source(called)} is no name of a {what}; known: {', '.join(registry)}")
    if called.id not in registry:
        hint = OTHER_NAMES.get((what, called.id))
        raise UsageError(f"unknown {what} {called.id!r}{nearest(called.id, registry) if hint is None else f': {hint}'}")
    name, make = called.id, registry[called.id]
    is_value = not isinstance(make, type)
    fields = () if is_value else dataclasses.fields(make)
    known = {field.name: field for field in fields if field.metadata.get("text", True)}
    if not known and isinstance(node, ast.Call) and (node.args or node.keywords):
        raise UsageError(f"{name} takes no arguments; given {_source(node)}")
    given: dict[str, Any] = {}
    for key, value in _arguments(node, name, known):
        if key in given:
            raise UsageError(f"{name}: {key} is given twice")
        if key not in known:
            raise UsageError(f"{name} takes no {key!r}{nearest(key, known)}")
        given[key] = _argument(value, registry, what, f"{name}: {key}")
    missing = [key for key, field in known.items() if key not in given and _default(field) is dataclasses.MISSING]
    if missing:
        raise UsageError(f"{name} needs {', '.join(missing)}")
    try:
        return make if is_value else make(**given)
    except ValueError as e:
        raise UsageError(f"{name}: {e}") from None


def _arguments(node: ast.expr, name: str, known: Mapping[str, Any]) -> list[tuple[str, ast.expr]]:
    """Returns (field, expression) of the arguments of a call."""
    if not isinstance(node, ast.Call):
        return []
    if any(keyword.arg is None for keyword in node.keywords):
        raise UsageError(f"{name}: ** is not understood; give arguments by name")
    named = [(str(keyword.arg), keyword.value) for keyword in node.keywords]
    if not node.args:
        return named
    first, *others = node.args
    if NESTED not in known or others or not isinstance(first, ast.Call | ast.Name) or _is_constant(first):
        wrong = first if NESTED not in known or not others else others[0]
        fields = ", ".join(f"{key}=…" for key in known if key != NESTED) or "none"
        raise UsageError(f"{name}: {_source(wrong)} is given without a name; its arguments are {fields}")
    return [(NESTED, first), *named]


def _is_constant(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id in CONSTANTS


def _argument(node: ast.expr, registry: Mapping[str, Any], what: str, where: str) -> Any:
    """Returns the value of an argument: a literal, a tuple of them, or a value of the registry."""
    if isinstance(node, ast.Tuple):
        return tuple(_argument(entry, registry, what, where) for entry in node.elts)
    if isinstance(node, ast.Constant) and (node.value is None or isinstance(node.value, bool | int | float | str)):
        return node.value
    if _is_constant(node):
        return CONSTANTS[node.id]  # type: ignore[attr-defined]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        number = _argument(node.operand, registry, what, where)
        if _is_number(number):
            return -number if isinstance(node.op, ast.USub) else number
    if isinstance(node, ast.Name) and node.id == "nan":
        raise UsageError(f"{where} is nan; need a number")
    if isinstance(node, ast.Call | ast.Name):
        return _value(node, registry, what)
    raise UsageError(f"{where} is {_source(node)}; need a number, a string, None, a tuple of them, or a {what}")


def _source(node: ast.expr) -> str:
    return _short(ast.unparse(node))


def _short(text: str) -> str:
    """Returns text in quotes, on one line, cut to 60 characters."""
    text = repr(text)
    return text if len(text) <= 60 else f"{text[:58]}…'"


def _example(registry: Mapping[str, Any]) -> str:
    return f"'{next(iter(registry), 'name')}()'"


def finite_number(name: str, value: Any) -> float:
    """Returns value as a float. Raises UsageError unless it is a finite number."""
    if not _is_number(value) or not math.isfinite(value):
        raise UsageError(f"{name} is {value!r}; need a finite number")
    return float(value)


def positive_number(name: str, value: Any) -> float:
    """Returns value as a float. Raises UsageError unless it is a finite number above 0."""
    if not _is_number(value) or not 0 < value < math.inf:
        raise UsageError(f"{name} is {value!r}; need a finite number above 0")
    return float(value)


def number(
    name: str, value: Any, least: float = -math.inf, most: float = math.inf, *, without_least: bool = False
) -> Any:
    """Returns value, as a float if it is an int: an int and a float would be two programs.

    Raises UsageError if value is known outside of a program and is no number from least to most. without_least: whether
    least itself is refused too.
    """
    if (
        isinstance(value, str | bool | tuple | Spec)
        or value is None
        or (_is_number(value) and (not least <= value <= most or (without_least and value == least)))
    ):
        opening = "(" if without_least else "["
        bounds = "" if math.isinf(least) and math.isinf(most) else f" in {opening}{least:g}, {most:g}]"
        raise UsageError(f"{name} is {value!r}; need a number{bounds}")
    return float(value) if isinstance(value, int) else value
