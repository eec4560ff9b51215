"""Finds and downloads the weights of the Inception network."""

import http.client
import os
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from cfgjax.base.caches import user_cache
from cfgjax.base.errors import UsageError
from cfgjax.base.files import sha256, writing
from cfgjax.base.paths import check_path
from cfgjax.base.progress import log
from cfgjax.base.staging import staged
from cfgjax.base.storage import AnyPath, Place, is_url, place

INCEPTION_NAME = "pt_inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{INCEPTION_NAME}"
INCEPTION_SHA256 = "6726825d"  # its first digits
TIMEOUT_SECONDS = 60
CHUNK_BYTES = 1 << 20


def default_inception_path() -> Place:
    """Returns $CFGJAX_INCEPTION, or the path in the user's cache folder."""
    if path := os.environ.get("CFGJAX_INCEPTION"):
        return place(path)
    return user_cache() / INCEPTION_NAME


def find_inception(path: AnyPath | None = None) -> Path:
    """Returns path, or the default one, if the file exists; a local copy of one in a bucket. Raises UsageError if not.

    The hash of the file in the cache, which `download_inception` downloaded, is checked again.
    """
    check_path("path", path)
    found = place(path) if path else default_inception_path()
    if is_url(found):
        return staged(found)
    if not found.is_file():
        raise UsageError(
            f"no Inception weights at {found}: run `cfgjax download inception`, or name the file by "
            "--inception=PATH or CFGJAX_INCEPTION"
        )
    if not path and not os.environ.get("CFGJAX_INCEPTION"):
        check_inception_hash(found, found, "remove it and run `cfgjax download inception`")
    return found


def download_inception(out: AnyPath | None = None, url: str = INCEPTION_URL) -> Place:
    """Returns the path of the Inception weights, `out` or the default, and downloads them if they are missing.

    The file is written only if it is complete and has the right hash. Raises UsageError for a file with another hash,
    and OSError for errors of the network or the disk.
    """
    check_path("out", out)
    path = place(out) if out else default_inception_path()
    if path.exists():
        check_inception_hash(path, path, "remove it or name another place with --out")
        log.info("%s exists already", path)
        return path
    by_hand = f"fetch it by other means and put it at {path}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path) as temporary:
            fetch_file(url, temporary)
            check_inception_hash(temporary, url, by_hand)
    except UsageError:
        raise
    except (OSError, ValueError, http.client.HTTPException) as e:  # ValueError: from a proxy or a redirection
        reason = str(e).removeprefix("<urlopen error ").removesuffix(">") or type(e).__name__
        raise OSError(f"cannot download {url}: {reason}; {by_hand}") from e
    return path


def check_inception_hash(path: Place, origin: str | Place, advice: str) -> None:
    """Raises UsageError unless the file at path has the Inception network's hash. origin: its source, for the error."""
    if not path.is_file():
        raise UsageError(f"{origin} is not a file; {advice}")
    if not (digest := sha256(path)).startswith(INCEPTION_SHA256):
        start = digest[: len(INCEPTION_SHA256)]
        raise UsageError(
            f"{origin} is not the Inception network: its SHA-256 begins with {start}, not {INCEPTION_SHA256}; {advice}"
        )


def fetch_file(url: str, path: AnyPath) -> None:
    """Downloads url to path. Raises OSError if the connection ends early."""
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, open(path, "wb") as file:
        length = response.headers["Content-Length"] or ""
        total = int(length) if length.isascii() and length.isdecimal() else None  # otherwise unknown; the hash decides
        with tqdm(total=total, unit="B", unit_scale=True, desc="Inception", disable=None) as progress:
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                progress.update(len(chunk))
        if total is not None and file.tell() != total:
            raise OSError(f"the connection ended after {file.tell()} of {total} bytes")
