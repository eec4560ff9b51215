"""Failures of the machine and of the input are one line; bugs keep their traceback."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from command import ROOT

from cfgjax.base.errors import UsageError
from cfgjax.base.exits import BAD_USAGE, FAILED
from cfgjax.base.failures import expected_failure


def too_deep():
    return too_deep()


def backend_missing():
    raise RuntimeError("Unable to initialize backend 'cuda': no device")


def exhausted():
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate\n 123 bytes")


RAISED = {
    "too many bytes for numpy": (lambda: np.empty(1 << 60, np.uint8), FAILED, "memory"),
    "MemoryError without a text": (lambda: exec("raise MemoryError"), FAILED, "memory"),
    "the device's memory": (exhausted, FAILED, "RESOURCE_EXHAUSTED"),
    "no backend": (backend_missing, FAILED, "cuda"),
    "recursion": (too_deep, FAILED, "nested"),
    "bytes that are no UTF-8": (lambda: b"\xff".decode(), BAD_USAGE, "utf-8"),
    "a name that is no UTF-8": (lambda: "\udcff".encode(), BAD_USAGE, "utf-8"),
    "no home": (lambda: Path("~no-such-user/x").expanduser(), BAD_USAGE, "HOME"),
    "NUL in a path": (lambda: open("a\0b"), BAD_USAGE, "NUL"),
    "NUL in a folder": (lambda: os.listdir("a\0b"), BAD_USAGE, "NUL"),
    "a file that is not there": (lambda: open("/nonexistent/x"), FAILED, "/nonexistent/x"),
    "division by 0": (lambda: 1 / 0, FAILED, "zero"),
    "bad usage": (lambda: exec("raise UsageError('two\\nlines')", {"UsageError": UsageError}), BAD_USAGE, "two lines"),
}


def error_of(function):
    """What function() raises."""
    try:
        function()
    except Exception as e:
        return e


BUGS = [KeyError("a"), TypeError("b"), ValueError("c"), RuntimeError("d"), AssertionError(), AttributeError("backend")]
BUGS += [jax.errors.JaxRuntimeError("INVALID_ARGUMENT: shapes")]


@pytest.mark.parametrize(("raises", "code", "word"), RAISED.values(), ids=RAISED)
def test_a_failure_is_reported_on_one_line_with_its_exit_code(raises, code, word):
    failure = expected_failure(error_of(raises))
    assert failure.code == code
    assert word in failure.line and "\n" not in failure.line


@pytest.mark.parametrize("error", BUGS, ids=repr)
def test_a_programming_error_is_not_an_expected_failure(error):
    assert expected_failure(error) is None


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("raised", "code", "word"),
    [
        ("MemoryError()", FAILED, "out of memory"),
        ("UnicodeEncodeError('utf-8', chr(0xdcff), 0, 1, 'no')", BAD_USAGE, "utf-8"),
        ("OSError('disk ' + chr(0xdcff))", FAILED, r"disk \udcff"),
        ("KeyError('bug')", FAILED, "Traceback"),
    ],
)
def test_the_command_line_ends_with_the_line_or_the_traceback(raised, code, word):
    program = f"""
import sys
from cfgjax.cli import main as cli
def raises(argv):
    print("name", chr(0xdcff))
    raise {raised}
cli.COMMANDS["compare"] = raises
sys.argv[1:] = ["compare"]
cli.main()
"""
    environ = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, "-c", program], env=environ, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (code, "name \\udcff\n"), done.stderr
    assert word in done.stderr
    assert done.stderr.count("\n") == 1 or word == "Traceback"
