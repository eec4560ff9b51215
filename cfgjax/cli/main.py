"""The command line: `cfgjax COMMAND --flag=value …`."""

import gc
import inspect
import logging
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import NoReturn

import cfgjax
from cfgjax.base.compilation import keep_programs
from cfgjax.base.environment_variables import check_environment
from cfgjax.base.errors import HelpAsked, UsageError, choose
from cfgjax.base.exits import BAD_USAGE, DONE, PREEMPTED, end_process, leave, stop_by_exception, stopped_line
from cfgjax.base.failures import expected_failure
from cfgjax.base.progress import show_progress
from cfgjax.base.streams import keep_going, lost_output
from cfgjax.cli.compare import compare
from cfgjax.cli.convert import convert
from cfgjax.cli.demo import demo
from cfgjax.cli.doctor import doctor
from cfgjax.cli.download import download
from cfgjax.cli.evaluate import evaluate
from cfgjax.cli.export import export
from cfgjax.cli.launch import launch
from cfgjax.cli.preflight import preflight
from cfgjax.cli.prepare import prepare
from cfgjax.cli.sample import sample
from cfgjax.cli.sweep import sweep
from cfgjax.cli.train import train
from cfgjax.runs.config import HELP

NEW_OBJECTS = (
    200_000  # between garbage collections; at Python's default of 700 they take a third of tracing and lowering
)
COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "train": train,
    "sample": sample,
    "evaluate": evaluate,
    "launch": launch,
    "sweep": sweep,
    "compare": compare,
    "prepare": prepare,
    "download": download,
    "convert": convert,
    "export": export,
    "demo": demo,
    "preflight": preflight,
    "doctor": doctor,
}


PRINT_ONLY = {"help", "h", "print_config", "dry_run"}  # flags with which a command only prints
WRITE_FILES = set(COMMANDS) - {"compare", "preflight", "doctor"}


def main() -> NoReturn:
    """Runs the command line and exits with 0 (done), 2 (bad usage), 75 (preempted and saved) or 1 (failed)."""
    keep_going()
    logging.basicConfig(format="%(levelname)s: %(message)s", stream=sys.stderr)
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # Orbax logs errors that it also raises
    threading.excepthook = lambda failed: logging.warning("a background thread failed: %s", failed.exc_value)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ["MPLBACKEND"] = "agg"  # figures are written to files; a notebook's backend may not be installed
    show_progress(sys.stdout)
    gc.set_threshold(NEW_OBJECTS)
    try:
        stop_by_exception()
        keep_programs()
        code = run_command(sys.argv[1:])
        if prints_its_result(sys.argv[1:]) and (lost := lost_output()) is not None:
            raise OSError(f"the output cannot be written: {lost.strerror}")
        leave(code)
    except UsageError as e:
        print(expected_failure(e).line, file=sys.stderr)
        leave(BAD_USAGE)
    except KeyboardInterrupt as e:
        end_process(stopped_line(str(e) or "SIGINT"), PREEMPTED)
    except Exception as e:
        if (failure := expected_failure(e)) is None:
            raise
        end_process(failure.line, failure.code)


def prints_its_result(arguments: Sequence[str]) -> bool:
    """Returns whether the result of `cfgjax ARGUMENTS` is what it prints; otherwise that is a log of its work."""
    flags = {argument.partition("=")[0].replace("-", "_").lstrip("_") for argument in arguments if argument[:1] == "-"}
    return not arguments or arguments[0] not in WRITE_FILES or bool(flags & PRINT_ONLY)


def run_command(arguments: Sequence[str]) -> int:
    """Runs `cfgjax ARGUMENTS`. Returns the exit code."""
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return DONE if arguments else BAD_USAGE
    if arguments[0] == "--version":
        print(f"cfgjax {cfgjax.__version__}")
        return DONE
    command = choose("command", arguments[0], COMMANDS)
    try:
        if not HELP & set(arguments):
            check_environment()
        return command([f"cfgjax {arguments[0]}", *arguments[1:]])
    except HelpAsked as asked:
        print(f"{description_of(arguments[0], inspect.getdoc(command) or '')}\n\n{asked}".rstrip())
        return DONE


def description_of(name: str, docstring: str) -> str:
    """Returns `cfgjax NAME FLAGS: what it does`. docstring: `FLAGS: What it does`, or `What it does` without flags."""
    return (
        f"cfgjax {name} {docstring}" if ": " in docstring else f"cfgjax {name}: {docstring[:1].lower()}{docstring[1:]}"
    )


def usage() -> str:
    """Returns the list of commands with the first line of each docstring."""
    lines = [f"  {description_of(name, (command.__doc__ or '').splitlines()[0])}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["cfgjax: classifier-free guidance in JAX", "", *lines, "", "cfgjax COMMAND --help: lists its flags"]
    )
