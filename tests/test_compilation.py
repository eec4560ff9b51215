"""Laws of the cache of compiled programs."""

import os
import subprocess
import sys

import pytest

from cfgjax.base.compilation import cache_folder, keep_programs, prune


def test_programs_are_cached_below_the_cache_folder_of_the_user(tmp_path):
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    folder = keep_programs(environ)
    assert folder.is_dir() and folder.is_relative_to(tmp_path / "cfgjax" / "jax")
    assert environ["JAX_COMPILATION_CACHE_DIR"] == str(folder)


@pytest.mark.e2e
def test_a_command_caches_its_compiled_programs_for_the_next_one(tmp_path):
    code = """
import sys, cfgjax.cli.main as cli
def run(arguments):
    import jax
    jax.monitoring.register_event_listener(lambda event, **_: print(event))
    jax.jit(lambda x: x * 2 + 1)(1.0).block_until_ready()
cli.run_command = run
cli.main()
"""
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_COMP", "JAX_PERS"))}
    environ |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-c", code]
    first, again = (subprocess.run(command, env=environ, capture_output=True, text=True, check=True) for _ in range(2))
    assert list(tmp_path.glob("cfgjax/jax/*/*"))
    assert "cache_hits" in again.stdout and "cache_hits" not in first.stdout


@pytest.mark.parametrize(
    "given",
    [{"JAX_COMPILATION_CACHE_DIR": ""}, {"JAX_COMPILATION_CACHE_DIR": "/x"}, {"JAX_ENABLE_COMPILATION_CACHE": "0"}],
)
def test_settings_of_jax_in_the_environment_are_not_changed(given, tmp_path):
    environ = given | {"XDG_CACHE_HOME": str(tmp_path)}
    before = dict(environ)
    assert keep_programs(environ) is None
    assert environ == before and not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["file", "missing home"])
def test_a_folder_that_cannot_be_created_is_not_an_error(kind, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    environ = {"XDG_CACHE_HOME": str(tmp_path / "file")}
    if kind == "missing home":
        environ = {"XDG_CACHE_HOME": "~nobody-by-this-name/x"}
    before = dict(environ)
    assert keep_programs(environ) is None
    assert environ == before


def test_a_folder_that_cannot_be_written_is_not_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # tests may run as root, who may write anywhere
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    assert keep_programs(environ) is None
    assert "JAX_COMPILATION_CACHE_DIR" not in environ


def test_a_full_cache_retains_the_most_recently_used_programs(tmp_path):
    folder = cache_folder({"XDG_CACHE_HOME": str(tmp_path)})
    folder.mkdir(parents=True)
    for age, name in enumerate("dcba"):
        (folder / name).write_bytes(bytes(10))
        os.utime(folder / name, (1e9 - age, 1e9 - age))
    prune(folder.parent, most=40, left=20)
    assert sorted(path.name for path in folder.iterdir()) == ["a", "b", "c", "d"]
    prune(folder.parent, most=39, left=20)
    assert sorted(path.name for path in folder.iterdir()) == ["c", "d"]
