"""What is installed, and what is missing for what: the lines of `cfgjax doctor`."""

import importlib.metadata
import os
import platform
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement

import cfgjax
from cfgjax.base.caches import user_cache
from cfgjax.base.cells import aligned
from cfgjax.base.cores import usable_cores
from cfgjax.base.errors import one_line
from cfgjax.base.experiments import experiments_folder, names

SHOWN_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
)
PURPOSES = {  # extras of the package: what a user can do with them
    "digits": "the experiments on digits",
    "data": "prepared data sets",
    "plots": "figures",
    "notebooks": "the notebooks",
    "demo": "cfgjax demo, a page with sliders",
    "export": "cfgjax export",
    "tfds": "reading data sets of TensorFlow Datasets",
    "prepare": "downloading and writing those, with TensorFlow",
    "docs": "building the documentation",
    "wandb": "metrics to Weights & Biases",
    "mlflow": "metrics to MLflow",
    "gcs": "runs and data in Google Cloud Storage",
    "s3": "data and results in S3",
    "cuda12": "NVIDIA GPUs, CUDA 12",
    "cuda13": "NVIDIA GPUs, CUDA 13",
    "tpu": "TPUs",
    "test": "the tests",
    "dev": "development",
}
PLUGINS = {
    "cuda12": "jax-cuda12-plugin",
    "cuda13": "jax-cuda13-plugin",
    "tpu": "libtpu",
}  # of an extra that is jax's own
OF_JAXLIB = ("jax-cuda12-plugin", "jax-cuda12-pjrt", "jax-cuda13-plugin", "jax-cuda13-pjrt")  # have jaxlib's version
FREE_GB = 2.0  # on a disk, below which runs and caches soon fail


class Finding(NamedTuple):
    """A line of the report. problem: whether it explains why something does not work."""

    text: str
    problem: bool = False


def version_of(package: str) -> str | None:
    """Returns the installed version of a package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def extras() -> dict[str, list[Requirement]]:
    """Returns {extra: what it requires on this platform, with that of the extras that it contains}."""
    requirements = [Requirement(text) for text in importlib.metadata.requires("cfgjax") or []]
    metadata = importlib.metadata.metadata("cfgjax")
    known = {
        extra: [r for r in requirements if needed_by(r, extra)] for extra in metadata.get_all("Provides-Extra") or ()
    }

    def expanded(extra: str) -> list[Requirement]:
        own = [r for r in known[extra] if r.name != "cfgjax"]
        return own + [
            found for r in known[extra] if r.name == "cfgjax" for e in sorted(r.extras) for found in expanded(e)
        ]

    return {extra: expanded(extra) for extra in known}


def needed_by(requirement: Requirement, extra: str) -> bool:
    """Returns whether an extra has a requirement that the base installation does not have."""
    marker = requirement.marker
    return marker is not None and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""})


def missing(extra: str, requirements: list[Requirement]) -> list[str]:
    """Returns the packages of an extra that are not installed, or not in the version that it needs."""
    if extra in PLUGINS:
        return [] if version_of(PLUGINS[extra]) else [PLUGINS[extra]]
    wrong = [r for r in requirements if not is_met(r)]
    return list(dict.fromkeys(f"{r.name}{r.specifier}" for r in wrong))


def is_met(requirement: Requirement) -> bool:
    """Returns whether a package is installed in a version that a requirement admits."""
    version = version_of(requirement.name)
    return version is not None and requirement.specifier.contains(version, prereleases=True)


def extras_table() -> list[str]:
    """Returns a line for each extra: what it is for, and what is missing for it."""
    rows = []
    for extra, requirements in extras().items():
        lacking = missing(extra, requirements)
        state = "installed" if not lacking else f"missing {', '.join(lacking)}"
        rows.append([f"  {extra}", PURPOSES.get(extra, ""), state])
    return aligned(rows, right=False)


def plugin_findings(versions: Mapping[str, str | None]) -> list[Finding]:
    """Returns a problem for each plugin of an accelerator whose version is not jaxlib's.

    pip replaces jaxlib under a plugin without more than a warning.
    """
    jaxlib = versions.get("jaxlib")
    return [
        Finding(f"{name} {version} does not fit jaxlib {jaxlib}: pip install '{name}=={jaxlib}'", problem=True)
        for name in OF_JAXLIB
        if (version := versions.get(name)) is not None and version != jaxlib
    ]


def device_findings() -> list[Finding]:
    """Returns the devices of jax, or the reason why there are none."""
    import jax

    try:
        devices = jax.devices()
    except RuntimeError as e:
        return [Finding(f"devices: none: {one_line(e, 200)}", problem=True)]
    found = [Finding(f"devices: {len(devices)} × {devices[0].device_kind} ({devices[0].platform})")]
    if devices[0].platform == "cpu" and Path("/dev/nvidia0").exists():
        what = "this machine has an NVIDIA GPU that jax does not use: pip install 'cfgjax[cuda12]', or cuda13"
        found.append(Finding(what, problem=True))
    return found


def space(name: str, path: Path) -> Finding:
    """Returns how much of a disk is free, a problem below FREE_GB."""
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    free = shutil.disk_usage(existing).free / 1e9
    writable = os.access(existing, os.W_OK)
    text = f"{name}: {path}, {free:,.0f} GB free" + ("" if writable else ", not writable")
    return Finding(text, problem=free < FREE_GB or not writable)


def installation_report() -> list[Finding]:
    """Returns the lines of the report."""
    versions = {name: version_of(name) for name in (*SHOWN_PACKAGES, *OF_JAXLIB)}
    shown = ", ".join(f"{name} {versions[name]}" for name in SHOWN_PACKAGES)
    cached = os.environ.get("JAX_COMPILATION_CACHE_DIR") or "off"
    return [
        Finding(f"cfgjax {cfgjax.__version__} in {Path(cfgjax.__file__).parent}"),
        Finding(f"Python {platform.python_version()} ({sys.executable}), {platform.system()} {platform.machine()}"),
        Finding(shown),
        *plugin_findings(versions),
        *device_findings(),
        Finding(f"CPU cores: {usable_cores()} of {os.cpu_count()} may be used"),
        space("working folder", Path.cwd()),
        space("cache", user_cache()),
        Finding(f"compiled programs: {cached}"),
        Finding(f"experiments: {', '.join(names(experiments_folder()))}"),
        Finding("extras, pip install 'cfgjax[NAME]':"),
        *map(Finding, extras_table()),
    ]
