"""The generated parts of the reference, as Markdown: commands, config, experiments, registries and the Python API.

Each is a function of PARTS, whose result replaces the line `<!-- generated: NAME -->` of a page in docs/reference/.
"""

import ast
import importlib
import inspect
import sys
from pathlib import Path

from python_objects import entry, escape, first_paragraph, markdown

import cfgjax
from cfgjax.base.errors import HelpAsked
from cfgjax.base.python_files import load_module
from cfgjax.cli.convert import CONVERSIONS
from cfgjax.cli.main import COMMANDS
from cfgjax.jobs.launch import LAUNCHERS
from cfgjax.runs.changes import rule_of
from cfgjax.runs.config_reference import config_keys

ROOT = Path(__file__).parents[2]
BASE = ROOT / "experiments" / "base.py"
FILES = "https://github.com/cfgjax/cfgjax/blob/main"
KINDS = {
    "string": "text",
    "comma separated list of strings": "list",
}  # absl's name of a type: ours
REGISTRIES = {  # part: its registries as (title, module, name)
    "rules": [("Rules", "cfgjax.diffusion.guidance", "RULES")],
    "samplers": [("Samplers", "cfgjax.diffusion.samplers", "SAMPLERS"), ("Grids", "cfgjax.diffusion.grids", "GRIDS")],
    "objectives": [
        ("Parametrisations", "cfgjax.diffusion.prediction", "PARAMETRISATIONS"),
        ("Weightings", "cfgjax.diffusion.weightings", "WEIGHTINGS"),
        ("Level schedules", "cfgjax.diffusion.schedules", "SCHEDULES"),
    ],
}
LISTED = {"cfgjax.diffusion.guidance": "RULES", "cfgjax.diffusion.samplers": "SAMPLERS"}  # on pages of their own
MODULES = (  # of the Python API, besides `cfgjax` itself
    "cfgjax.diffusion.guidance",
    "cfgjax.diffusion.samplers",
    "cfgjax.diffusion.mixture",
    "cfgjax.diffusion.process",
    "cfgjax.evaluation.metrics",
)
CLASSES = {  # whose methods are described, and the values that they return
    "cfgjax.models.model": ("Model",),
    "cfgjax.models.guide": ("Guide",),
    "cfgjax.models.binding": ("Trajectory",),
    "cfgjax.diffusion.prediction": ("Prediction",),
}


def table(header, rows):
    """Returns a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines)


def cell(text):
    """Returns the text of a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")


def code(text):
    """Returns text as inline code."""
    return f"`{text}`"


def variants_of(name):
    """Returns the words after a command, one list for each form of it that has flags of its own."""
    return [[word] for word in {"launch": LAUNCHERS, "convert": CONVERSIONS}.get(name, ())] or [[]]


def flags_of(name, words=()):
    """Returns the flags of `cfgjax NAME WORDS` as --help has them, sorted by name."""
    try:
        COMMANDS[name]([f"cfgjax {name}", *words, "--help"])
    except HelpAsked as asked:
        return [asked.flags[flag] for flag in sorted(asked.flags)]
    raise ValueError(f"cfgjax {name} --help describes no flags")


def flag_row(flag):
    """Returns the table's row of a flag."""
    name = f"--[no]{flag.name}" if flag.boolean else f"--{flag.name}"
    kind = KINDS.get(flag.flag_type(), flag.flag_type())
    if choices := getattr(flag.parser, "enum_values", None):
        kind = ", ".join(map(code, choices))
    default = "" if flag.default in (None, [], sys.executable) else code(flag.default_as_str.strip("'"))
    return [code(name), kind, default, escape(" ".join((flag.help or "").split()))]


def flag_table(name, words=()):
    """Returns the table of a command's flags, or a sentence if it has none."""
    rows = [flag_row(flag) for flag in flags_of(name, words)]
    return table(["flag", "value", "default", "meaning"], rows) if rows else "This command has no flags."


def synopsis(words, docstring):
    """Returns the usage of a command and what it does, from its docstring `USAGE: what it does`."""
    first, _, rest = inspect.cleandoc(docstring).partition("\n")
    usage, _, what = first.rpartition(": ")
    return f"```text\n{' '.join(['cfgjax', *words, usage]).rstrip()}\n```\n\n{sentence(what)}\n\n{markdown(rest)}"


def sentence(text):
    """Returns text as Markdown that begins with a capital letter."""
    text = escape(text)
    return text[:1].upper() + text[1:]


def commands():
    """Returns the reference of all commands with their flags."""
    parts = []
    for name, function in COMMANDS.items():
        parts += [f"## cfgjax {name}", synopsis([name], function.__doc__)]
        for words in variants_of(name):
            if words:
                parts.append(f"### cfgjax {name} {words[0]}")
                parts.append(about_variant(name, words[0]))
            parts.append(flag_table(name, words))
    return "\n\n".join(parts)


def about_variant(name, word):
    """Returns what a form of a command does."""
    if name == "convert":
        return synopsis([name, word], CONVERSIONS[word].__doc__)
    return markdown(LAUNCHERS[word].__doc__)


def config():
    """Returns the reference of all config keys, with their defaults and comments."""
    parts = []
    for section, keys in config_keys().items():
        if section:
            parts.append(f"## {section}")
        prefix = f"{section}." if section else ""
        row = lambda key, default, said: [code(key), code(default), sentence(said), rule_of(key)]
        rows = [row(prefix + key, default, said) for key, (default, said) in keys.items()]
        parts.append(table(["key", "default", "meaning", "may change"], rows))
    base = load_module(BASE, "config file")
    parts += ["## Keys of each data source", key_table("source", "data", base.SOURCES)]
    parts += ["## Keys of each network", key_table("network", "model", base.NETWORKS)]
    return "\n\n".join(parts)


def key_table(what, section, keys_of):
    """Returns the table of the keys of a section that each source or network takes."""
    rows = [[code(name), ", ".join(map(code, keys))] for name, keys in keys_of.items()]
    return table([what, f"keys of `config.{section}`"], rows)


def experiment_files(folder="experiments"):
    """Returns the experiment files of a folder of the repository, without the reference."""
    return [path for path in sorted((ROOT / folder).glob("*.py")) if path != BASE]


def experiments():
    """Returns the list of experiments and of sweeps, with the first paragraph of each."""
    parts = []
    for title, folder in (("Experiments", "experiments"), ("Sweeps", "experiments/sweeps")):
        rows = []
        for path in experiment_files(folder):
            name = f"{folder}/{path.name}"
            described = first_paragraph(ast.get_docstring(ast.parse(path.read_text())))
            rows.append([f"[`{name}`]({FILES}/{name})", described])
        parts += [f"## {title}", table(["file", "description"], rows)]
    return "\n\n".join(parts)


def registry(part):
    """Returns the entries of the registries of a part."""
    texts = []
    for title, module, name in REGISTRIES[part]:
        texts += [f"## {title}"] * (len(REGISTRIES[part]) > 1)
        known = getattr(importlib.import_module(module), name)
        texts += [registered(key, value, module) for key, value in known.items()]
    return "\n\n".join(texts)


def registered(name, value, module):
    """Returns the entry of one name of a registry: a class, a function, or a value that holds a function."""
    if inspect.isclass(value) or inspect.isfunction(value):
        return entry(value, module, name)
    (held,) = vars(value).values()
    return f"````{{py:data}} {name}\n:module: {module}\n\n{markdown(held.__doc__)}\n````"


def public_names(module):
    """Returns the public names of a module: those of __all__, or the functions and classes that it defines."""
    if hasattr(module, "__all__"):
        return list(module.__all__)
    own = {name: value for name, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__}
    return [name for name in own if not name.startswith("_")]


def api():
    """Returns the reference of the Python API."""
    parts = ["## cfgjax", markdown(cfgjax.__doc__)]
    parts += [entry(getattr(cfgjax, name), "cfgjax") for name in cfgjax.PUBLIC]
    parts += ["## Models and their results"]
    for module, names in CLASSES.items():
        loaded = importlib.import_module(module)
        parts += [entry(getattr(loaded, name), module, methods=True) for name in names]
    for module in MODULES:
        parts += [f"## {module}", *module_entries(importlib.import_module(module))]
    return "\n\n".join(parts)


def module_entries(module):
    """Returns the docstring of a module and the entries of its public names, without those of a registry."""
    listed = LISTED.get(module.__name__)
    others = set(getattr(module, listed)) if listed else set()
    texts = [markdown(module.__doc__)]
    for name in public_names(module):
        value = getattr(module, name)
        if name in others:
            continue
        if inspect.isclass(value) or inspect.isfunction(value):
            texts.append(entry(value, module.__name__, name, methods=True))
        else:
            names = ", ".join(map(code, value))
            texts.append(f"```{{py:data}} {name}\n:module: {module.__name__}\n\nThe registry: {names}.\n```")
    return texts


PARTS = {
    "commands": commands,
    "config": config,
    "experiments": experiments,
    "rules": lambda: registry("rules"),
    "samplers": lambda: registry("samplers"),
    "objectives": lambda: registry("objectives"),
    "api": api,
}
