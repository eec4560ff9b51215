"""Buckets on this machine, as fixtures: `gcs` and `s3`, each a `Bucket` of a real server in a process of its own.

A module gets them by `pytest_plugins = ["bucket_servers"]`. Processes that the tests start inherit the environment.
"""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from command import free_port

from cfgjax.base import bucket_clients, storage

NAME = "bucket1"
SECONDS = 60  # in which a server must answer
PATIENCE = 20  # seconds that clients in the test's own process ask again
PORTS: dict[str, int] = {}  # one for all modules of a process, since clients remember the first address
MOTO = "import sys; from moto.server import main; main(['-H', '127.0.0.1', '-p', sys.argv[1]])"


class Bucket:
    """A folder of a bucket that only one test uses. url: without a slash at its end. address: of the server."""

    def __init__(self, url, address):
        self.url, self.address = url, address

    def __str__(self):
        return self.url

    def put(self, path, content):
        """Writes bytes, or the content of a local file or folder, to a path below the URL, which is returned."""
        client = storage.client(self.url)
        if isinstance(content, bytes):
            client.pipe_file(f"{self.url}/{path}", content)
            return f"{self.url}/{path}"
        files = [content] if content.is_file() else sorted(file for file in content.rglob("*") if file.is_file())
        for file in files:
            below = "" if content.is_file() else f"/{file.relative_to(content).as_posix()}"
            client.put_file(str(file), f"{self.url}/{path}{below}")
        return f"{self.url}/{path}"

    def get(self, path):
        """The bytes of an object below the URL."""
        return storage.client(self.url).cat_file(f"{self.url}/{path}")

    def names(self):
        """The names of all objects below the URL, without those of leases."""
        return sorted(name for name in storage.objects(self.url) if ".lease/" not in name)

    def control(self, **faults):
        """Sets faults of gcs_server.py (delay, fail, read_only) and returns {"requests": …, "objects": …}."""
        query = "&".join(f"{name}={value}" for name, value in faults.items())
        method = "POST" if faults else "GET"
        with urllib.request.urlopen(urllib.request.Request(f"{self.address}/_control?{query}", method=method)) as found:
            return json.load(found)


def needs(*packages):
    """Skips the test if packages are missing."""
    if missing := [name for name in packages if importlib.util.find_spec(name) is None]:
        pytest.skip(f"needs {', '.join(missing)}")


@contextlib.contextmanager
def serving(scheme, argv, variables):
    """A server in a process of its own, with its environment. Yields its address."""
    port = PORTS.setdefault(scheme, free_port())
    address = f"http://127.0.0.1:{port}"
    process = subprocess.Popen([sys.executable, *argv, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(address, process)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {**variables(address), "no_proxy": "127.0.0.1"}.items():
                patch.setenv(name, value)
            bucket_clients.patience(PATIENCE)
            yield address
    finally:
        process.kill()
        process.wait()
        forget(scheme)


def wait_for(address, process):
    """Waits until a server answers, with whatever status."""
    end = time.monotonic() + SECONDS
    while True:
        try:
            urllib.request.build_opener(urllib.request.ProxyHandler({})).open(address, timeout=5).close()
            return
        except urllib.error.HTTPError as e:
            e.close()
            return
        except OSError:
            assert process.poll() is None, "the server has ended"
            assert time.monotonic() < end, f"the server does not answer within {SECONDS} s"
            time.sleep(0.1)


def forget(scheme):
    """Drops clients, which keep connections and what they know of the server."""
    import fsspec

    for name in ("gs", "gcs") if scheme == "gs" else ("s3",):
        with contextlib.suppress(ValueError, ImportError):
            fsspec.get_filesystem_class(name).clear_instance_cache()
    storage._connected.discard(scheme)
    bucket_clients._answered.clear()
    bucket_clients._failing.clear()
    bucket_clients.patience(600)


@pytest.fixture(scope="module")
def gcs_server():
    """The address of a server of Google Cloud Storage's interface."""
    needs("gcsfs", "gcp_storage_emulator")
    variables = lambda address: {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
        "GCE_METADATA_ROOT": "127.0.0.1:1",
        "GCE_METADATA_HOST": "127.0.0.1:1",
    }
    with serving("gs", [str(Path(__file__).parent / "gcs_server.py")], variables) as address:
        yield address


@pytest.fixture(scope="module")
def s3_server():
    """The address of a server of S3's interface."""
    needs("s3fs", "moto", "flask")
    variables = lambda address: {
        "AWS_ENDPOINT_URL": address,
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }
    with serving("s3", ["-c", MOTO], variables) as address:
        urllib.request.urlopen(urllib.request.Request(f"{address}/{NAME}", method="PUT")).close()
        yield address


@pytest.fixture
def gcs(gcs_server, request):
    """A `Bucket` in Google Cloud Storage. Faults end with the test."""
    bucket = Bucket(f"gs://{NAME}/{folder_of(request)}", gcs_server)
    yield bucket
    bucket.control(delay=0, fail=0, read_only=0, refuse_arrays=0)


@pytest.fixture
def s3(s3_server, request):
    """A `Bucket` in S3."""
    return Bucket(f"s3://{NAME}/{folder_of(request)}", s3_server)


@pytest.fixture(params=["gs", "s3"])
def bucket(request):
    """A `Bucket` of either kind."""
    return request.getfixturevalue({"gs": "gcs", "s3": "s3"}[request.param])


def folder_of(request):
    """A name for the folder of a test."""
    return "".join(c if c.isalnum() else "_" for c in request.node.name).strip("_").lower()
