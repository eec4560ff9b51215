"""Imports point downwards only, and a name has one meaning."""

import ast
import collections
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "cfgjax"
LAYERS = (  # a folder imports itself and those before it
    *("base", "diffusion", "nets", "distributed", "runs", "data", "models", "evaluation", "training", "convert"),
    *("jobs", "api", "cli"),
)
OUTSIDE = {"diffusion": {"jax", "numpy", "jaxtyping"}, "nets": {"jax", "flax", "numpy", "jaxtyping"}}

CONTRACTS = {  # name: the contract that it implements in each of its modules
    "T": "a type variable",
    "load": "public: loads a network, of a run or Inception",
    "log": "the package's logger",
    "main": "the main function of a program",
    "define_flags": "the flags of a command or a launcher",
    "launch": "starts a job: the command, and each of its launchers",
    "train": "the command, and the public function",
    "evaluate": "the command, and the public function",
    "sample": "the command, and sampling",
    "prepare": "the command, and the function that it calls",
    "download": "the command, and the download of a data set",
    "unet": "converts a U-Net of either library",
    "make_unet": "builds the U-Net of a config of either library",
    "params_of": "the parameters in a state dict of either library",
    "slots": "where parameters lie in a state dict of either library",
    "DEFAULTS": "defaults of a config of either library",
    "INSIDE": "names in blocks, of either library",
    "OUTSIDE": "names outside of blocks, of either library",
    "KINDS": "names of arrays, of either library",
    "edm": "of EDM: the parametrisation, the weighting of its loss, and the grid of sampling",
    "uniform": "equal distances in λ: the schedule of training, and the grid of sampling",
    "classifier": "public: the rule of guidance, and the conversion of its network",
}
MODULE_CONTRACTS = {  # name of a module's file: why it stands in two folders
    "prepare": "the command, and what it calls",
}


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


def test_orbax_is_in_one_module():
    users = {path.stem for path in PACKAGE.rglob("*.py") if any(name.startswith("orbax") for name in imports(path))}
    assert users == {"checkpoint"}


def test_importing_the_package_does_no_work():
    code = "import sys, cfgjax; sys.exit('jax' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_no_module_outgrows_its_noun():
    long = {path.name: n for path in PACKAGE.rglob("*.py") if (n := len(path.read_text().splitlines())) > 300}
    assert not long


def public_names(path):
    """The functions, classes and constants that a module defines, without those of a leading underscore."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names = [node.name]
        else:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            names = [leaf.id for target in targets if target for leaf in ast.walk(target) if isinstance(leaf, ast.Name)]
        yield from (name for name in names if not name.startswith("_"))


def in_several(names_of):
    """{name: paths} of the names that stand in several modules."""
    places = collections.defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        for name in names_of(path):
            places[name].add(path.relative_to(PACKAGE))
    return {name: sorted(map(str, paths)) for name, paths in places.items() if len(paths) > 1}


def test_no_name_has_two_meanings():
    found = in_several(public_names)
    assert not {name: paths for name, paths in found.items() if name not in CONTRACTS}


def test_no_two_modules_have_the_same_name():
    found = in_several(lambda path: {path.stem} - {"__init__", "__main__"})
    assert not {name: paths for name, paths in found.items() if name not in MODULE_CONTRACTS}
