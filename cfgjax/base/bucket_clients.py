"""The clients of buckets: gcsfs and s3fs, asked again while a server does not answer.

Every request of this process to a bucket passes through here, those of Orbax and of epath included; only the arrays of
checkpoints are sent by tensorstore, which also asks again.
"""

import asyncio
import importlib.util
import logging
import os
import time

from cfgjax.base.errors import UsageError, one_line

log = logging.getLogger("cfgjax")

CLIENTS = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}  # scheme of a URL: the package, the extra that installs it
FIRST_SECONDS = 10.0  # a server that has not answered yet is asked again for at most so long
LONGEST_WAIT_SECONDS = 16.0
LASTING = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, UsageError)

retry_seconds = 600.0  # how long a server that has answered before is asked again; see `patience`
_answered: set[str] = set()  # schemes whose server has answered


def patience(seconds):
    """Sets how long a server is asked again after it has answered once."""
    global retry_seconds
    retry_seconds = float(seconds)


def missing_client(scheme):
    """Returns the line about the package that a scheme of `CLIENTS` needs, or None if it is installed."""
    package, extra = CLIENTS[scheme]
    if importlib.util.find_spec(package) is not None:
        return None
    return f"{scheme}:// needs {package}, which is not installed: pip install 'cfgjax[{extra}]'"


def connect(scheme):
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


def patient_gcs(gcsfs):
    """Returns gcsfs's file system, which asks again."""
    whole = gcsfs.core.GCSFileSystem
    once = getattr(whole._request, "__wrapped__", whole._request)  # without gcsfs's own six attempts

    once_get = getattr(whole._get_file_request, "__wrapped__", whole._get_file_request)

    class PatientGCS(whole):
        async def _request(self, method, path, *args, **kwargs):
            return await patiently("gs", lambda: once(self, method, path, *args, **kwargs))

        async def _get_file_request(self, *args, **kwargs):  # of a file to the disk
            return await patiently("gs", lambda: once_get(self, *args, **kwargs))

    return PatientGCS


def patient_s3(s3fs):
    """Returns s3fs's file system, which asks again."""

    class PatientS3(s3fs.S3FileSystem):
        async def _call_s3(self, method, *args, **kwargs):
            call = super()._call_s3
            return await patiently("s3", lambda: call(method, *args, **kwargs))

        async def _get_file(self, *args, **kwargs):  # a connection may end after the answer has begun
            get = super()._get_file
            return await patiently("s3", lambda: get(*args, **kwargs))

    return PatientS3


async def patiently(scheme, request):
    """Returns await request(), asked again with growing waits while the server fails or refuses.

    A refusal lasts if the server has never answered; afterwards, credentials may have expired and be renewed.
    Raises OSError with one line.
    """
    since, wait, told = time.monotonic(), 0.5, False
    while True:
        try:
            answer = await request()
        except LASTING:
            _answered.add(scheme)
            raise
        except Exception as e:
            known = scheme in _answered
            lasting = isinstance(e, PermissionError) or is_refusal(e) or isinstance(e, (ValueError, TypeError))
            most = retry_seconds if known else 0.0 if lasting else FIRST_SECONDS
            if time.monotonic() - since + wait > most:
                raise failure(e, time.monotonic() - since) from e
            if not told:
                told = True
                log.warning("%s:// does not answer (%s); asking again for up to %g s", scheme, reason(e), most)
        else:
            _answered.add(scheme)
            if told:
                log.warning("%s:// answers again, after %.0f s", scheme, time.monotonic() - since)
            return answer
        await asyncio.sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT_SECONDS)


def is_refusal(error):
    """Returns whether a server refused a request for lack of permission or credentials."""
    text = str(error)
    return getattr(error, "code", None) in (401, 403) or any(word in text for word in ("Forbidden", "credentials"))


def failure(error, seconds):
    """Returns the OSError with one line for the last of several failed requests."""
    kind = PermissionError if isinstance(error, PermissionError) or is_refusal(error) else OSError
    asked = f", after {seconds:.0f} s" if seconds > 1 else ""
    return kind(f"{reason(error)}{asked}")


def reason(error):
    """Returns the reason of a failed request in one line."""
    return one_line(error, 200)
