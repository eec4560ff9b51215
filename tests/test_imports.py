"""Imports point downwards only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cfgjax"
LAYERS = (  # a folder imports itself and those before it
    *("base", "diffusion", "nets", "distributed", "runs", "data", "models", "evaluation", "training", "convert"),
    *("jobs", "cli"),
)
OUTSIDE = {"diffusion": {"jax", "jaxtyping", "numpy"}, "nets": {"jax", "flax", "numpy"}}


def imports(path):
    """The dotted names that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def modules(layer):
    return sorted((PACKAGE / layer).rglob("*.py"))


def test_every_module_is_in_a_layer():
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}
    assert {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()} == set(LAYERS)


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_downwards(layer):
    below = LAYERS[: LAYERS.index(layer) + 1]
    for path in modules(layer):
        ours = [name.split(".")[1] for name in imports(path) if name.startswith("cfgjax.")]
        assert set(ours) <= set(below), path.relative_to(PACKAGE)


@pytest.mark.parametrize("layer", OUTSIDE)
def test_the_mathematics_and_the_networks_need_few_libraries(layer):
    for path in modules(layer):
        names = {name.partition(".")[0] for name in imports(path)} - {"cfgjax"}
        assert names - set(sys.stdlib_module_names) <= OUTSIDE[layer], path.name


def test_flax_is_in_the_networks_only():
    for path in PACKAGE.rglob("*.py"):
        if "nets" not in path.parts:
            assert not any(name.startswith("flax") for name in imports(path)), path


def test_importing_the_package_does_no_work():
    code = "import sys, cfgjax; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_no_module_outgrows_its_noun():
    long = {path.name: n for path in PACKAGE.rglob("*.py") if (n := len(path.read_text().splitlines())) > 300}
    assert not long
