"""The keys of configs with their defaults and meanings, read from experiments/base.py, where they are written."""

import ast
import difflib
import io
import textwrap
import tokenize

from cfgjax.base.experiments import experiments_folder
from cfgjax.base.storage import Place, place

HELP_WIDTH = 100  # of help


def comments(text: str) -> dict[int, str]:
    """Returns {line number: comment} of Python code."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return {token.start[0]: token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT}


def config_keys(path: str | Place | None = None) -> dict[str, dict[str, tuple[str, str]]]:
    """Returns {section, "" for the top level: {key: (default as written, comment)}} of a reference of configs.

    path: by default experiments/base.py. Raises ValueError for a key without a comment.
    """
    path = experiments_folder() / "base.py" if path is None else place(path)
    text = path.read_text()
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    (function,) = [node for node in functions if node.name == "reference"]
    (returned,) = [node.value for node in function.body if isinstance(node, ast.Return)]
    assert isinstance(returned, ast.Call)
    said = comments(text)
    found: dict[str, dict[str, tuple[str, str]]] = {"": {}}
    for section in returned.keywords:
        value = section.value
        inner = value.keywords if isinstance(value, ast.Call) and ast.unparse(value.func) == "dict" else None
        name = "" if inner is None else str(section.arg)
        for key in [section] if inner is None else inner:
            line = key.end_lineno or 0
            if line not in said:
                raise ValueError(f"{path.name}: the key {name}.{key.arg} has no comment on line {line}")
            found.setdefault(name, {})[str(key.arg)] = (default_text(key.value), said[line])
    return found


def default_text(node: ast.expr) -> str:
    """Returns a default as the user sees it: a placeholder is None, a reference is its value."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "placeholder":
        return "None"
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "FieldReference":
        return ast.unparse(node.args[0])
    return ast.unparse(node)


def config_help() -> str:
    """Returns a line for each key, with its default and its meaning."""
    lines = ["Keys of the config; override one with --config.KEY=VALUE:"]
    for section, keys in config_keys().items():
        for key, (default, meaning) in keys.items():
            name = f"{section}.{key}" if section else key
            text = f"{name} = {default}: {meaning}"
            lines += textwrap.wrap(text, HELP_WIDTH, initial_indent="  ", subsequent_indent="      ")
    return "\n".join(lines)


def key_like(name: str) -> str | None:
    """Returns the key of the config that a wrong flag may mean, such as "train.num_steps" for "num_steps", or None."""
    keys: dict[str, str] = {}
    for section, known in config_keys().items():
        for key in known:
            keys.setdefault(key, f"{section}.{key}" if section else key)  # of train before those of sample
    found = difflib.get_close_matches(name, keys, n=1, cutoff=0.8)
    return keys[found[0]] if found else None
