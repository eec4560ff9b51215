"""Prepares a data set: worker processes write shards, each complete or absent, then dataset.json describes them all.

Existing shards of the same request are reused. The hash depends on the images, not on the number of workers.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import hashlib
import json
import logging
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import numpy as np

from cfgjax.base.errors import UsageError, choose, one_line, printable
from cfgjax.base.files import sha256, writing
from cfgjax.base.json_files import read_json, write_json
from cfgjax.base.progress import Progress
from cfgjax.base.storage import Place
from cfgjax.data.dataset import Listing
from cfgjax.data.images.decoding import Converter
from cfgjax.data.images.pixels import reason_of
from cfgjax.data.images.records import ENCODINGS, ENDING, WRITER_OPTIONS, array_record, encode_record, hashed_example
from cfgjax.data.sources.folder import synsets_of
from cfgjax.data.sources.prepared import (
    ABOUT,
    FORMAT,
    LABELS,
    REQUEST,
    REQUEST_KEYS,
    OtherSet,
    check_files,
    content_digest,
    read_about,
    read_own,
)
from cfgjax.data.workers import before_workers, enter_worker

MakeProgress = Callable[[int], Progress]  # (total) → a progress bar
SECONDS = 0.2  # between updates of the progress
MAX_LISTED = 20  # errors in a message
WRITTEN_SHARD_KEYS = ("file", "num_examples", "bytes", "file_sha256", "digest")

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Request:
    """Everything that the images of a prepared set depend on. source: {name: value}, JSON."""

    source: dict[str, Any]
    size: int
    crop: str
    channels: int
    encoding: str

    def __post_init__(self) -> None:
        choose("encoding", self.encoding, ENCODINGS)

    def converter(self) -> Converter:
        """Returns the converter from images of the source to images of the set."""
        return Converter(self.size, self.crop, self.channels)


def prepare(
    listing: Listing, out: str | Path, request: Request, *, workers: int, max_errors: int, progress: MakeProgress
) -> dict[str, Any]:
    """Creates or completes the set in folder `out` and returns its dataset.json.

    listing: the examples. max_errors: number of images that may be left out because they cannot be decoded.
    Raises UsageError if `out` has other content or more than max_errors images are broken, and OSError if a file cannot
    be written.
    """
    array_record()
    request.converter()  # raises UsageError if it is invalid
    out = Path(out)
    with claimed(out):
        asked = json.loads(json.dumps({**dataclasses.asdict(request), "num_listed": len(listing)}))
        if (out / ABOUT).exists():
            about = read_about(out)
            check_same_request(out, about["request"], asked)
            check_files(out, about)
            return about
        begin(out, asked)
        size = shard_size(len(listing))
        bounds = [(start, min(start + size, len(listing))) for start in range(0, len(listing), size)]
        names = [f"shard-{i:05}-of-{len(bounds):05}" for i in range(len(bounds))]
        done = {name: shard for name in names if (shard := read_shard(out, name)) is not None}
        todo = [(name, *ends) for name, ends in zip(names, bounds, strict=True) if name not in done]
        with progress(sum(stop - start for _, start, stop in todo)) as bar:
            if done:
                bar.say(f"{out}: resumes, {len(done)} of {len(names)} shards are complete")
            make_shards(listing, out, request, todo, done, workers, max_errors, bar)
        return finish(out, asked, listing.classes, [done[name] for name in names])


def shard_size(count: int) -> int:
    """Returns the examples per file: small sets give work to several processes, and at most 500 files are open."""
    return max(256, min(4096, -(-count // 32)), -(-count // 500))


@contextlib.contextmanager
def claimed(out: Path) -> Iterator[None]:
    """Exclusive lock on the folder `out`, which is created if missing."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = open(out / ".lock", "a")
    except OSError as e:
        raise UsageError(f"{out} cannot be written: {e.strerror}") from e
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another cfgjax prepare is running in {out}") from None
        yield


def begin(out: Path, asked: dict[str, Any]) -> None:
    """Writes the request, or compares it with the one in `out`, and removes partial files of a killed process."""
    if (out / REQUEST).exists():
        check_same_request(out, read_own(out / REQUEST, REQUEST_KEYS), asked)
    elif others := sorted(path.name for path in out.iterdir() if path.name != ".lock" and ".part." not in path.name):
        raise UsageError(f"{out} has other content ({others[0]}); prepare into a new folder")
    for path in out.glob(".*.part.*"):
        path.unlink()
    write_json(out / REQUEST, asked, hashed=True)


def check_same_request(out: str | Place, there: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raises OtherSet naming what differs between the request of the set in `out` and this one."""
    flat = lambda r: {k: v for k, v in r.items() if k != "source"} | {f"source {k}": v for k, v in r["source"].items()}
    there, asked = flat(there), flat(asked)
    differing = [f"{key} is {there.get(key)!r} there, {asked.get(key)!r} here"
                 for key in sorted(there.keys() | asked.keys()) if there.get(key) != asked.get(key)]  # fmt: skip
    if differing:
        raise OtherSet(f"{out} holds another prepared set: {'; '.join(differing)}; prepare into another folder")


def make_shards(
    listing: Listing,
    out: Path,
    request: Request,
    todo: list[tuple[str, int, int]],
    done: dict[str, dict[str, Any]],
    workers: int,
    max_errors: int,
    bar: Progress,
) -> None:
    """Writes the shards `todo`, [(name, start, stop)], and adds their descriptions to `done`."""
    before_workers()
    context = multiprocessing.get_context("spawn")
    seen, stop, told = context.Value("q", 0), context.Event(), 0
    check_errors(out, done.values(), max_errors)
    pool = concurrent.futures.ProcessPoolExecutor(
        max(1, min(workers, len(todo))), context, initializer=start_preparing_worker, initargs=(seen, stop)
    )
    try:
        left = {
            pool.submit(make_shard, listing.part(start, end), str(out), name, request, max_errors)
            for name, start, end in todo
        }
        while left:
            ready, left = concurrent.futures.wait(left, SECONDS, concurrent.futures.FIRST_COMPLETED)
            before, told = told, seen.value
            bar.advance(told - before)
            for shard in (future.result() for future in ready):
                done[shard["name"]] = shard
                check_errors(out, done.values(), max_errors)
    except concurrent.futures.process.BrokenProcessPool as e:
        raise OSError(
            f"{out}: a worker process was killed, perhaps for lack of memory; finished shards are saved, and the "
            "same command resumes (fewer --workers need less memory)"
        ) from e
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def check_errors(out: str | Path, shards: Iterable[dict[str, Any]], max_errors: int) -> None:
    """Raises UsageError if more than max_errors images of the shards are broken."""
    found = [f"{printable(error['name'])} ({error['reason']})" for shard in shards for error in shard["errors"]]
    if len(found) > max_errors:
        more = f" and {len(found) - MAX_LISTED} more" if len(found) > MAX_LISTED else ""
        listed = "; ".join(found[:MAX_LISTED]) + more
        raise UsageError(
            f"{len(found)} images cannot be decoded, --max_errors is {max_errors}: {listed}; "
            f"finished shards are saved in {out}; the same command with a higher --max_errors resumes"
        )


_shared: list = []  # of a worker: the shared count of finished images, and the shared stop event


def start_preparing_worker(seen: Synchronized, stop: Event) -> None:
    """Initialises a worker. seen: the shared count of finished images. stop: the shared stop event."""
    enter_worker()
    _shared[:] = [seen, stop]


def make_shard(part: Listing, out: str, name: str, request: Request, max_errors: int) -> dict[str, Any]:
    """Writes a part of a listing as a shard, in a worker, and returns the description of the shard."""
    converter, digest = request.converter(), hashlib.sha256()
    labels: list = []
    errors: list = []
    converted: collections.Counter = collections.Counter()
    path, (seen, stop) = Path(out) / f"{name}{ENDING}", _shared
    with writing(path) as new:
        try:
            with contextlib.closing(array_record().ArrayRecordWriter(os.fsencode(new), WRITER_OPTIONS)) as writer:
                for i in range(len(part)):
                    if stop.is_set():
                        raise InterruptedError("stopped")
                    example = converted_example(part, i, converter, errors)
                    check_errors(out, [{"errors": errors}], max_errors)
                    if example is not None:
                        image, notes, label = example
                        record = encode_record(image, request.encoding)
                        digest.update(hashed_example(label, record))
                        writer.write(record)
                        labels.append(label)
                        converted.update(notes)
                    with seen.get_lock():
                        seen.value += 1
        except RuntimeError as e:  # of the writer
            raise OSError(f"{out}: {one_line(e)}; finished shards are saved") from e
        about = {"name": name, "file": path.name, "num_examples": len(labels), "bytes": new.stat().st_size}
        about |= {"file_sha256": sha256(new), "digest": digest.hexdigest()}
    about |= {"labels": labels, "errors": errors, "converted": dict(converted)}
    write_json(path.with_suffix(".json"), about, hashed=True)
    return about


def converted_example(
    part: Listing, i: int, converter: Converter, errors: list[dict[str, str]]
) -> tuple[np.ndarray, list[str], int] | None:
    """Returns (image, notes, label) of example i, or None with a new entry in `errors` if it cannot be decoded."""
    try:
        data, label = part[i]
        return *converter(data), label
    except Exception as e:  # decoders raise exceptions of any type
        errors.append({"name": part.name(i), "reason": reason_of(e)})
        return None


def read_shard(out: Path, name: str) -> dict[str, Any] | None:
    """Returns the description of a finished shard; None if it is missing or damaged and must be made again."""
    keys = {"file": str, "num_examples": int, "bytes": int, "labels": list, "errors": list, "converted": dict}
    try:
        about = read_json(out / f"{name}.json", keys=keys | {"file_sha256": str}, hashed=True)
        path = out / about["file"]
        if (size := path.stat().st_size) != about["bytes"]:
            raise UsageError(f"{path} is damaged: it has {size:,} bytes, not {about['bytes']:,}")
        if sha256(path) != about["file_sha256"]:
            raise UsageError(f"{path} is damaged: its content does not match its hash")
    except FileNotFoundError:
        return None
    except UsageError as e:
        log.warning("%s; the shard is made again", e)
        return None
    return about


def finish(out: Path, asked: dict[str, Any], classes: tuple[str, ...], shards: list[dict[str, Any]]) -> dict[str, Any]:
    """Writes label.npy and, last, dataset.json; returns the latter."""
    label = np.array([label for shard in shards for label in shard["labels"]], np.int32)
    if not len(label):
        raise UsageError(f"{out}: no image is left")
    digest = content_digest(asked)
    for shard in shards:
        digest.update(bytes.fromhex(shard["digest"]))
    converted: collections.Counter = collections.Counter()
    for shard in shards:
        converted.update(shard["converted"])
    about = {
        "format": FORMAT,
        "num_examples": len(label),
        "hash": digest.hexdigest(),
        "request": asked,
        "classes": list(classes),
        "synsets": synsets_of(classes),
        "counts": np.bincount(label, minlength=len(classes)).tolist(),
        "converted": dict(sorted(converted.items())),
        "errors": [error for shard in shards for error in shard["errors"]],
        "shards": [{key: shard[key] for key in WRITTEN_SHARD_KEYS} for shard in shards],
    }
    with writing(out / LABELS) as new:
        np.save(new, label)
    write_json(out / ABOUT, about, hashed=True)
    for shard in shards:
        (out / f"{shard['name']}.json").unlink()
    return about
