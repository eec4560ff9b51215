"""Imports point downwards only."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cfgjax"
TOOLS = {"nets", "network", "data", "diffusion", "sharding", "processes", "workdir", "files", "weights", "download"}
TOOLS |= {"progress", "exits", "config", "errors", "targets", "diffusion_config", "classifier"}
TOOLS |= {"arguments", "finite", "json_files", "metrics_file", "settings", "paths", "devices"}
BELOW = {  # what the modules of a layer may import of cfgjax
    "diffusion": {"diffusion"},
    "errors": set(),
    "caches": set(),
    "compilation": {"caches"},
    "files": {"errors"},
    "json_files": {"files", "errors"},
    "metrics_file": {"files", "json_files"},
    "finite": {"errors"},
    "weights": {"weights", "errors", "files", "json_files"},
    "nets": {"nets", "weights", "files", "errors"},
    "numerals": set(),
    "python_files": {"errors"},
    "settings": {"errors"},
    "overrides": set(),
    "paths": {"errors"},
    "config": {"numerals", "overrides", "paths", "python_files", "settings", "errors"},
    "devices": {"errors"},
    "environment": {"numerals", "paths", "errors"},
    "failures": {"exits", "errors"},
    "sharding": {"numerals", "errors"},
    "data": {"data", "diffusion", "config", "caches", "files", "json_files", "progress", "exits", "errors"},
    "diffusion_config": {"diffusion", "config", "errors"},
    "arguments": {"diffusion", "errors"},
    "network": {"nets", "diffusion", "diffusion_config", "config", "errors"},
    "classifier": {"data", "network", "diffusion_config", "sharding", "workdir", "training.checkpoint", "errors"},
    "cascade": {"data", "model", "errors"},
    "workdir": {"config", "network", "paths", "settings", "processes", "files", "json_files", "metrics_file", "errors"},
    "convert": {"convert", "nets", "weights", "files", "json_files", "finite", "errors"},
    "processes": {"errors"},
    "exits": set(),
    "cluster": {"cluster", "processes", "exits", "failures", "devices", "errors"},
    "progress": set(),
    "download": {"files", "paths", "errors"},
    "model": {"arguments", "classifier", "data", "diffusion", "diffusion_config", "network", "processes", "sharding"}
    | {"training.checkpoint", "workdir", "finite", "progress", "errors"},
    "launch": {"launch", "environment", "files", "paths", "exits", "errors"},
    "sweep": {"sweep", "launch", "files", "json_files", "python_files", "exits", "errors"},
    "evaluation": {"evaluation", "model", *TOOLS, "training.checkpoint", "training.manifest"},
    "training": {"training", "evaluation", "model", "compilation", *TOOLS},
    "preflight": {"preflight", "training", "nets.conv", "evaluation.cells", "sharding", "config", "devices", "progress"}
    | {"errors"},
}
OUTSIDE = {"diffusion": {"jax", "jaxtyping", "numpy"}, "nets": {"jax", "flax", "numpy"}}


def imports(path):
    """The dotted names that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def modules(layer):
    return [PACKAGE / f"{layer}.py"] if (PACKAGE / f"{layer}.py").exists() else sorted((PACKAGE / layer).rglob("*.py"))


@pytest.mark.parametrize("layer", BELOW)
def test_imports_point_downwards(layer):
    for path in modules(layer):
        ours = [name.removeprefix("cfgjax.") for name in imports(path) if name.startswith("cfgjax.")]
        wrong = [name for name in ours if not any(name == b or name.startswith(f"{b}.") for b in BELOW[layer])]
        assert not wrong, f"{path.name} imports {wrong}"


@pytest.mark.parametrize("layer", OUTSIDE)
def test_the_mathematics_and_the_networks_need_few_libraries(layer):
    for path in modules(layer):
        names = {name.partition(".")[0] for name in imports(path)} - {"cfgjax"}
        assert names - set(sys.stdlib_module_names) <= OUTSIDE[layer], path.name


def test_flax_is_in_the_networks_only():
    for path in PACKAGE.rglob("*.py"):
        if path.parent.name != "nets":
            assert not any(name.startswith("flax") for name in imports(path)), path


def test_importing_the_package_does_no_work():
    code = "import sys, cfgjax; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_no_module_outgrows_its_noun():
    long = {path.name: n for path in PACKAGE.rglob("*.py") if (n := len(path.read_text().splitlines())) > 300}
    assert not long
