"""Runs a command in several processes, which start jax together, watch each other and end together."""

import contextlib
import hashlib
import os
import platform
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import cfgjax
from cfgjax.base.errors import UsageError, one_line
from cfgjax.base.exits import BAD_USAGE, FAILED, PREEMPTED, end_process, stopped_line
from cfgjax.base.failures import Failure, expected_failure
from cfgjax.distributed import collectives
from cfgjax.distributed.environment import find_place, local_devices
from cfgjax.distributed.rendezvous import Meeting, call_the_roll
from cfgjax.distributed.watchdog import Watchdog

VERDICT_SECONDS = 3  # within which the watchdog finds the process that made a collective fail
JAX_HEARTBEAT_SECONDS = 100  # minimum: jax's own heartbeat aborts the process, so our watchdog must be faster


@runtime_checkable
class Patience(Protocol):
    """What `taking_part` reads of config.cluster."""

    @property
    def timeout_seconds(self) -> float: ...

    @property
    def start_timeout_seconds(self) -> float: ...


@contextlib.contextmanager
def taking_part(flags: Mapping[str, Any], facts: dict[str, str], patience: Patience) -> Iterator[bool]:
    """Context in which jax is connected to all processes of this run. Yields whether there are several.

    jax must not have been used before. Any exception that one process raises inside the context ends all processes.

    Args:
      flags: {"coordinator", "num_processes", "process_id"}, as in `find_place`.
      facts: {name: text} that must be equal in all processes, in addition to the code.
      patience: config.cluster.

    Raises:
      TimeoutError: the processes do not find each other.
      UsageError: their facts differ.
    """
    place = find_place(flags)
    if place is None:
        yield False
        return
    meeting = call_the_roll(place, facts | code_facts(), patience.start_timeout_seconds)
    watchdog = Watchdog(meeting, patience.timeout_seconds)
    collectives.watched_by(watchdog)
    try:
        import jax

        jax.config.update("jax_enable_preemption_service", False)  # the training loop handles signals
        if meeting.reserved is not None and sys.platform != "linux":
            os.close(meeting.reserved)  # elsewhere jax's service cannot share the port
        try:
            jax.distributed.initialize(
                meeting.jax_address,
                place.num_processes,
                place.process_id,
                local_device_ids=local_devices(),
                cluster_detection_method="deactivate",
                initialization_timeout=int(patience.start_timeout_seconds),
                heartbeat_timeout_seconds=max(JAX_HEARTBEAT_SECONDS, 2 * int(patience.timeout_seconds)),
                shutdown_timeout_seconds=int(patience.timeout_seconds),
            )
        except RuntimeError as e:
            raise OSError(f"jax's service at {meeting.jax_address} cannot be used: {one_line(e)}") from e
        finally:
            if meeting.reserved is not None and sys.platform == "linux":
                os.close(meeting.reserved)
        yield True
        collectives.stage("the end")
        watchdog.leave()
        jax.distributed.shutdown()
    except UsageError as e:
        time.sleep(VERDICT_SECONDS if meeting.own.number else 0)  # process 0 reports an error that all processes have
        watchdog.failed(str(e), BAD_USAGE)
        end_process(f"cfgjax: error: {place_words(meeting)}{e}", BAD_USAGE)
    except KeyboardInterrupt as e:
        name = str(e) or "SIGINT"
        watchdog.failed(f"{name}: stopped", PREEMPTED)
        end_process(stopped_line(name), PREEMPTED)
    except BaseException as e:
        # if another process caused the error, the watchdog ends this one during the sleep
        time.sleep(VERDICT_SECONDS + bool(meeting.own.number))
        failure = expected_failure(e)
        if failure is None:
            traceback.print_exc()
            failure = Failure(one_line(e), FAILED)
        watchdog.failed(failure.reason, failure.code)
        end_process(Failure(f"{place_words(meeting)}{failure.reason}", failure.code).line, failure.code)


def place_words(meeting: Meeting) -> str:
    """Returns a prefix for error messages that names this process, or "" in process 0."""
    return f"{meeting.own}: " if meeting.own.number else ""


def code_facts() -> dict[str, str]:
    """Returns {name: text} of versions that must be equal in all processes of any run."""
    digest = hashlib.sha256()
    package = Path(cfgjax.__file__).parent
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes())
    versions = {name: metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")}
    return {"the code of cfgjax": digest.hexdigest()[:16], "python": platform.python_version(), **versions}
