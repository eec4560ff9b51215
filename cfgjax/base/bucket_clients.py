"""The clients of buckets: gcsfs and s3fs, asked again while a server does not answer.

Every request of this process to a bucket passes through here, those of Orbax and of epath included; only the arrays of
checkpoints are sent by tensorstore, which also asks again.
"""

import asyncio
import importlib.util
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from cfgjax.base.errors import UsageError, one_line

log = logging.getLogger("cfgjax")
T = TypeVar("T")

CLIENTS = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}  # scheme of a URL: the package, the extra that installs it
FIRST_SECONDS = 10.0  # a server that has not answered yet is asked again for at most so long
LONGEST_PAUSE_SECONDS = 16.0
FORGOTTEN_SECONDS = 60.0  # without a failed request after which the next one is not of the same outage
LASTING = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, UsageError)

retry_seconds = 600.0  # how long a server that has answered before is asked again; see `patience`
# schemes whose server has answered, and (scheme, reads) of what it has allowed
_answered: set[str | tuple[str, bool]] = set()
_failing: dict[tuple[str, bool], tuple[float, float]] = {}  # (scheme, reads): since when; when a request failed last


def patience(seconds: float) -> None:
    """Sets how long a server is asked again after it has answered once."""
    global retry_seconds
    retry_seconds = float(seconds)


def missing_client(scheme: str) -> str | None:
    """Returns the line about the package that a scheme of `CLIENTS` needs, or None if it is installed."""
    package, extra = CLIENTS[scheme]
    if importlib.util.find_spec(package) is not None:
        return None
    return f"{scheme}:// needs {package}, which is not installed: pip install 'cfgjax[{extra}]'"


def connect(scheme: str) -> None:
    """Registers the client for a scheme of `CLIENTS`. Raises UsageError if its package is not installed."""
    if reason := missing_client(scheme):
        raise UsageError(reason)
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")  # one more request for each
    module = importlib.import_module(CLIENTS[scheme][0])
    import fsspec

    names = ("gs", "gcs") if scheme == "gs" else ("s3",)
    client = patient_gcs(module) if scheme == "gs" else patient_s3(module)
    for name in names:
        fsspec.register_implementation(name, client, clobber=True)
        fsspec.config.conf.setdefault(name, {})["use_listings_cache"] = False  # other processes write too


def patient_gcs(gcsfs: Any) -> type:
    """Returns gcsfs's file system, which asks again."""
    whole: Any = gcsfs.core.GCSFileSystem
    once = getattr(whole._request, "__wrapped__", whole._request)  # without gcsfs's own six attempts

    once_get = getattr(whole._get_file_request, "__wrapped__", whole._get_file_request)

    async def request(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await patiently("gs", str(args[0]) == "GET", lambda: once(self, *args, **kwargs))

    async def get_file(self: Any, *args: Any, **kwargs: Any) -> Any:  # of a file to the disk
        return await patiently("gs", True, lambda: once_get(self, *args, **kwargs))

    return type("PatientGCS", (whole,), {"_request": request, "_get_file_request": get_file})


def patient_s3(s3fs: Any) -> type:
    """Returns s3fs's file system, which asks again."""
    whole: Any = s3fs.S3FileSystem

    async def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        reads = str(args[0]).startswith(("get", "head", "list"))
        return await patiently("s3", reads, lambda: whole._call_s3(self, *args, **kwargs))

    async def get_file(self: Any, *args: Any, **kwargs: Any) -> Any:  # a connection may end after the answer has begun
        return await patiently("s3", True, lambda: whole._get_file(self, *args, **kwargs))

    return type("PatientS3", (whole,), {"_call_s3": call, "_get_file": get_file})


async def patiently(scheme: str, reads: bool, request: Callable[[], Awaitable[T]]) -> T:
    """Returns await request(), asked again with growing waits while the server fails or refuses.

    reads: whether the request changes nothing. A refusal lasts if nothing of the kind was ever allowed; afterwards,
    credentials may have expired and be renewed. Requests of a kind share the time for which a server is asked again,
    so that several that fail one after another do not take several times as long. Raises OSError with one line.
    """
    start, wait, kind = time.monotonic(), 0.5, (scheme, reads)
    while True:
        try:
            answer = await request()
        except LASTING:
            _answered.update([scheme, kind])
            _failing.pop(kind, None)
            raise
        except Exception as e:
            refused = isinstance(e, PermissionError) or is_refusal(e)
            if isinstance(e, (ValueError, TypeError)) or (refused and kind not in _answered):
                raise failure(e, scheme, time.monotonic() - start) from e
            now, most = time.monotonic(), retry_seconds if scheme in _answered else FIRST_SECONDS
            since, newest = _failing.get(kind, (start, -math.inf))
            is_new = now - newest > FORGOTTEN_SECONDS
            since = start if is_new else since
            _failing[kind] = since, now
            if now - since + wait > most:
                raise failure(e, scheme, now - since) from e
            if is_new:
                log.warning("%s:// does not answer (%s); asking again for up to %g s", scheme, why(e), most)
        else:
            _answered.update([scheme, kind])
            if kind in _failing:
                since, _ = _failing.pop(kind)
                log.warning("%s:// answers again, after %.0f s", scheme, time.monotonic() - since)
            return answer
        await asyncio.sleep(wait)
        wait = min(2 * wait, LONGEST_PAUSE_SECONDS)


def request_limits() -> dict[str, int | str]:
    """Returns TensorStore's options for repeating a failed request for about as long as `patiently`."""
    repeats = max(1, math.ceil(math.log2(retry_seconds + 1)))
    if 2**repeats > LONGEST_PAUSE_SECONDS:  # the pauses are 1, 2, 4, … seconds, but never longer than this
        repeats = math.ceil(math.log2(LONGEST_PAUSE_SECONDS) + retry_seconds / LONGEST_PAUSE_SECONDS)
    return {"max_retries": repeats, "initial_delay": "1s", "max_delay": f"{LONGEST_PAUSE_SECONDS:g}s"}


def is_refusal(error: Exception) -> bool:
    """Returns whether a server refused a request for lack of permission or credentials."""
    text = str(error)
    return getattr(error, "code", None) in (401, 403) or any(word in text for word in ("Forbidden", "credentials"))


def failure(error: Exception, scheme: str, seconds: float) -> OSError:
    """Returns the OSError with one line for a request that failed, after it was repeated for so many seconds."""
    if isinstance(error, PermissionError) or is_refusal(error):
        return PermissionError(f"{why(error)} (retried for {seconds:.0f} s)" if seconds > 1 else why(error))
    asked = f"has not answered for {seconds:.0f} s" if seconds > 1 else "does not answer"
    return OSError(f"{scheme}:// {asked}: {why(error)}")


def why(error: Exception) -> str:
    """Returns the reason of a failed request in one line."""
    return one_line(error, 200)
