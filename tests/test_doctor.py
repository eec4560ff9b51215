"""`cfgjax doctor`: what it finds, and what it calls a problem."""

from collections import namedtuple

import jax
import pytest
from packaging.requirements import Requirement

from cfgjax.cli.main import run_command
from cfgjax.jobs import installation
from cfgjax.jobs.installation import PURPOSES, device_findings, extras, missing, plugin_findings, space


def test_every_extra_has_a_purpose():
    assert extras().keys() == PURPOSES.keys()


def test_an_extra_has_the_requirements_of_those_that_it_contains():
    found = {extra: {r.name for r in requirements} for extra, requirements in extras().items()}
    assert found["test"] >= found["data"] | found["digits"] | found["plots"] | {"pytest"}
    assert "cfgjax" not in found["test"] and "jax" not in found["digits"]


def test_what_is_not_installed_or_too_old_is_missing():
    requirements = [Requirement(text) for text in ("numpy>=1", "numpy>=999", "no-such-package>=2")]
    assert missing("mine", requirements) == ["numpy>=999", "no-such-package>=2"]


def test_a_plugin_of_another_version_than_jaxlib_is_a_problem():
    (found,) = plugin_findings({"jaxlib": "0.10.2", "jax-cuda12-plugin": "0.9.0", "jax-cuda12-pjrt": "0.10.2"})
    assert found.problem
    assert "pip install 'jax-cuda12-plugin==0.10.2'" in found.text


def test_without_a_device_the_reason_is_a_problem(monkeypatch):
    def devices():
        raise RuntimeError("Unable to initialize backend 'cuda'\nno plugin")

    monkeypatch.setattr(jax, "devices", devices)
    (found,) = device_findings()
    assert found.problem and "Unable to initialize backend 'cuda'" in found.text and "\n" not in found.text


def test_a_full_disk_is_a_problem(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(installation.shutil, "disk_usage", lambda path: usage(1e12, 1e12, 1e8))
    assert space("cache", tmp_path / "not" / "there").problem


@pytest.mark.parametrize("full", [False, True])
def test_the_exit_code_says_whether_there_is_a_problem(full, monkeypatch, capsys):
    if full:
        monkeypatch.setattr(installation, "FREE_GB", 1e9)
    assert run_command(["doctor"]) == int(full)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("cfgjax ") and any("digits" in line and "installed" in line for line in lines)
    assert any(line.startswith("! ") for line in lines) == full
    assert lines[-1].startswith("2 problems: ") == full
