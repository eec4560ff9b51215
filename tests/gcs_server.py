"""A server of Google Cloud Storage's interface on this machine, with faults on demand.

The emulator's in-memory store, and what it lacks: objects that are created only if absent, requests served at the same
time, a count of them, and failures. `python gcs_server.py PORT` serves until it is killed.

POST /_control?delay=0.05&fail=503&read_only=1 sets the seconds before each answer, the status that every request gets
(0: none), and whether changes are refused with 403. GET /_control returns {"requests": …, "objects": …}.
"""

import json
import logging
import sys
import threading
import time
from functools import partial
from http import server
from urllib.parse import parse_qs, unquote, urlparse

from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

FAULTS = {"delay": 0.0, "fail": 0.0, "read_only": 0.0, "refuse_arrays": 0.0}
ONE_AT_A_TIME = threading.Lock()  # the emulator's store is not safe for threads
COUNTS: dict[str, int] = {}


class Handler(RequestHandler):
    """Answers as the emulator does, after the faults."""

    def handle_method(self, answer):
        url = urlparse(self.path)
        if url.path == "/_control":
            FAULTS.update({name: float(values[0]) for name, values in parse_qs(url.query).items()})
            return self.reply(200, {"requests": COUNTS, "objects": sorted(self.generations())})
        kind = f"{self.command} {'object' if '/o/' in url.path or 'upload' in url.path else 'list'}"
        COUNTS[kind] = COUNTS.get(kind, 0) + 1
        time.sleep(FAULTS["delay"])
        if FAULTS["fail"]:
            return self.reply(int(FAULTS["fail"]), {"error": {"message": "the server is failing", "errors": []}})
        if FAULTS["refuse_arrays"] and self.command != "GET" and "%2Fd%2F" in self.path.replace("/d/", "%2Fd%2F"):
            return self.reply(403, {"error": {"message": "the token has expired", "errors": []}})
        if FAULTS["read_only"] and self.command != "GET":
            return self.reply(403, {"error": {"message": "storage.objects.create denied", "errors": []}})
        with ONE_AT_A_TIME:
            query = parse_qs(url.query)
            name = self.object_name(url)
            generation = self.generations().get(name, "0")
            if query.get("ifGenerationMatch", [generation]) != [generation]:
                return self.reply(412, {"error": {"message": "At least one precondition did not hold", "errors": []}})
            if query.get("ifGenerationNotMatch") == [generation]:
                return self.reply(304, None)
            self.generation = generation if self.command == "GET" and generation != "0" else None
            return answer()

    def end_headers(self):
        if getattr(self, "generation", None):
            self.send_header("x-goog-generation", self.generation)
        super().end_headers()

    def object_name(self, url):
        """The name of the object that a request is about, None for a list."""
        if "/o/" in url.path:
            return unquote(url.path.partition("/o/")[2])
        if self.command != "POST" or "/upload/" not in url.path:
            return None
        if names := parse_qs(url.query).get("name"):
            return names[0]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.rfile = Again(body)
        return json.JSONDecoder().raw_decode(body[body.index(b"{") :].decode("latin1"))[0]["name"]

    def generations(self):
        return {
            name: str(about["generation"]) for bucket in self.storage.objects.values() for name, about in bucket.items()
        }

    def reply(self, status, value):
        if length := int(self.headers.get("Content-Length", 0)):
            self.rfile.read(length)
        body = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):  # noqa: N802
        self.handle_method(super().do_GET)

    def do_POST(self):  # noqa: N802
        self.handle_method(super().do_POST)

    def do_DELETE(self):  # noqa: N802
        self.handle_method(super().do_DELETE)

    def do_PUT(self):  # noqa: N802
        self.handle_method(super().do_PUT)

    def do_PATCH(self):  # noqa: N802
        self.handle_method(super().do_PATCH)


class Again:
    """A file that returns what was read from it once more."""

    def __init__(self, content):
        self._content = content

    def read(self, size=-1):
        return self._content if size < 0 else self._content[:size]

    def close(self):
        pass


def main():
    logging.disable(logging.CRITICAL)
    storage = Storage(use_memory_fs=True)
    storage.create_bucket("bucket1", {"name": "bucket1"})
    server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), partial(Handler, storage)).serve_forever()


if __name__ == "__main__":
    main()
