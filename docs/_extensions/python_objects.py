"""Python objects as Markdown for the reference: signatures as they are written in the source, and docstrings.

The docstrings of cfgjax are Markdown, which Sphinx's autodoc would read as reStructuredText. Annotations are taken from
the source, so that the shape of an array reads as it was written: `Float[Array, "b ..."]`.
"""

import ast
import dataclasses
import inspect
import re
import textwrap

CODE = re.compile(r"(`+[^`]*`+)")
ONE_FLAG = r"--\w+(?:\.\w+)*(?:=[^\s;,]*[^\s;,.:)])?"
FLAG = re.compile(rf"(?<![\w-])({ONE_FLAG}(?: {ONE_FLAG})*)")

NAME = "[a-z][a-z0-9_]*"
DESCRIBED = re.compile(rf"(?:\A|(?<=[.;]\s)){NAME}(?:,\s{NAME})*(?=:\s)")  # "x, y: numbers." at the start of a sentence


def name_as_code(found):
    """Returns the names of parameters as code."""
    return ", ".join(f"`{name}`" for name in re.split(r",\s", found[0]))


def escape(text):
    """Returns the text of a docstring as Markdown: flags are code, and outside of code no character is markup."""
    text = "".join(part if part.startswith("`") else FLAG.sub(r"`\1`", part) for part in CODE.split(text))
    plain = lambda part: re.sub(r"([*_<{\[~$])", r"\\\1", part)
    return "".join(part if part.startswith("`") else plain(part) for part in CODE.split(text))


def markdown(docstring):
    """Returns a docstring as Markdown. Examples (>>>), indented blocks and names of parameters become code."""
    blocks = []
    for block in re.split(r"\n\s*\n", inspect.cleandoc(docstring or "")):
        lines = block.splitlines()
        if lines and lines[0].startswith(">>> "):
            blocks.append("```python\n" + "\n".join(line.removeprefix(">>> ") for line in lines) + "\n```")
        elif lines and all(line.startswith("    ") for line in lines):
            blocks.append("```text\n" + textwrap.dedent(block) + "\n```")
        else:
            blocks.append(escape(DESCRIBED.sub(name_as_code, block)))
    return "\n\n".join(blocks)


def first_paragraph(docstring):
    """Returns the first paragraph of a docstring on one line, as Markdown."""
    return escape(" ".join(inspect.cleandoc(docstring or "").partition("\n\n")[0].split()))


def definition(value):
    """Returns the syntax tree of a function or a class."""
    return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(value)))).body[0]


def unpadded(node):
    """Returns a syntax tree whose strings have no leading spaces. Changes the tree."""
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            part.value = part.value.lstrip()
    return node


def annotation(node):
    """Returns an annotation as text, or "" for none and for Any, which says nothing.

    A shape of one axis begins with a space in the source, so that linters do not take it for a name.
    """
    text = "" if node is None else ast.unparse(unpadded(node))
    return "" if text == "Any" else text


def field_annotations(cls):
    """Returns {field: annotation as text} of a class and its bases."""
    found = {}
    for base in reversed([base for base in cls.__mro__ if base.__module__.startswith("cfgjax")]):
        nodes = [node for node in definition(base).body if isinstance(node, ast.AnnAssign)]
        found |= {node.target.id: annotation(node.annotation) for node in nodes}
    return found


def arguments(node, *, bound):
    """Returns the arguments of a function's syntax tree as text, without the first one if it is bound."""
    given = node.args
    for argument in [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]:
        if argument is not None and not annotation(argument.annotation):  # which removes the spaces too
            argument.annotation = None
    text = ast.unparse(given)
    return re.sub(r"^(self|cls)(, )?", "", text) if bound else text


def signature(value, name=None):
    """Returns "name(arguments) -> result" of a function, or "name(fields)" of a class."""
    name = value.__name__ if name is None else name
    if not inspect.isclass(value):
        node = definition(value)
        returned = annotation(node.returns)
        bound = "." in value.__qualname__ and "<locals>" not in value.__qualname__
        return f"{name}({arguments(node, bound=bound)})" + (f" -> {returned}" if returned else "")
    if dataclasses.is_dataclass(value):
        return f"{name}({', '.join(map(field_text, *fields_of(value)))})"
    if issubclass(value, tuple):
        types, defaults = field_annotations(value), value._field_defaults
        default = lambda field: f" = {defaults[field]!r}" if field in defaults else ""
        return f"{name}({', '.join(f'{field}: {types[field]}{default(field)}' for field in value._fields)})"
    if "__init__" in vars(value):
        return f"{name}({arguments(definition(value.__init__), bound=True)})"
    return name


def fields_of(cls):
    """Returns the fields of a dataclass that its caller gives, and the annotation of each."""
    types, fields = field_annotations(cls), [field for field in dataclasses.fields(cls) if field.init]
    return fields, [types.get(field.name, "") for field in fields]


def field_text(field, written):
    """Returns "name: annotation = default" of a dataclass field."""
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    text = f"{field.name}: {written}" if written else field.name
    if default is dataclasses.MISSING:
        return text
    return f"{text} = {default!r}" if written else f"{text}={default!r}"


def public_methods(cls):
    """Returns {name: function} of the public methods that a class defines, in order."""
    own = {name: value for name, value in vars(cls).items() if not name.startswith("_")}
    return {name: value for name, value in own.items() if inspect.isfunction(value)}


def directive(kind, text, module, body, *, ticks="```"):
    """Returns a MyST directive of Sphinx's Python domain."""
    return f"{ticks}{{py:{kind}}} {text}\n:module: {module}\n\n{body}\n{ticks}"


def entry(value, module, name=None, *, methods=False):
    """Returns the entry of a function or a class of a module. methods: whether those of a class are described too."""
    text = signature(value, name)
    if not inspect.isclass(value):
        return directive("function", text, module, markdown(value.__doc__))
    body = [markdown(value.__doc__)]
    for method, function in public_methods(value).items() if methods else ():
        body.append(directive("method", signature(function, method), module, markdown(function.__doc__)))
    return directive("class", text, module, "\n\n".join(body), ticks="````")
