"""A download is whole and right, or there is no file."""

import hashlib
import http.server
import pathlib
import threading

import pytest

from cfgjax.base import inception_weights
from cfgjax.base.errors import UsageError

CONTENT = b"weights " * 300_000


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/missing":
            self.send_error(404)
            return
        body = {"/good": CONTENT, "/chunked": CONTENT, "/cut": CONTENT[:1000], "/wrong": b"other"}.get(
            self.path, CONTENT
        )
        self.send_response(200)
        if self.path.startswith("/length="):
            self.send_header("Content-Length", self.path.removeprefix("/length="))
        elif self.path != "/chunked":  # then the end of the connection is that of the file
            self.send_header("Content-Length", str(len(CONTENT if self.path == "/cut" else body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server():
    """The address of a server on this machine."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CFGJAX_INCEPTION", raising=False)
    monkeypatch.setattr(inception_weights, "INCEPTION_SHA256", hashlib.sha256(CONTENT).hexdigest()[:8])


def files(path):
    return [p for p in path.rglob("*") if not p.is_dir()]


@pytest.mark.parametrize("page", ["good", "chunked", "length=abc", "length=", "length=-1", "length=1.5", "length=1e9"])
def test_the_downloaded_file_equals_that_of_the_server(server, tmp_path, page):
    out = tmp_path / "new" / "weights.pth"
    assert inception_weights.download_inception(out, f"{server}/{page}") == out
    assert out.read_bytes() == CONTENT
    assert files(tmp_path) == [out]


def test_by_default_the_download_is_written_to_the_path_that_evaluate_reads(server, tmp_path):
    path = inception_weights.download_inception(url=f"{server}/good")
    assert path == tmp_path / "cache" / "cfgjax" / "pt_inception-2015-12-05-6726825d.pth"
    assert inception_weights.find_inception() == path
    path.write_bytes(CONTENT[:-1] + b"S")
    with pytest.raises(UsageError, match=r"its SHA-256 begins with .*; remove it and run `cfgjax download inception`"):
        inception_weights.find_inception()
    assert inception_weights.find_inception(path) == path  # which the user vouches for


def test_the_default_cache_folder_comes_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("CFGJAX_INCEPTION", str(tmp_path / "mine.pth"))
    assert inception_weights.default_inception_path() == tmp_path / "mine.pth"
    monkeypatch.setenv("CFGJAX_INCEPTION", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert inception_weights.default_inception_path().parent == pathlib.Path.home() / ".cache" / "cfgjax"


@pytest.mark.parametrize(
    ("page", "error", "told"),
    [
        (
            "wrong",
            UsageError,
            "/wrong is not the Inception network: its SHA-256 begins with d9298a10, not .*; fetch it",
        ),
        ("cut", OSError, "/cut: the connection ended after 1000 of 2400000 bytes; fetch it"),
        ("missing", OSError, "/missing: HTTP Error 404: Not Found; fetch it"),
    ],
)
def test_a_failure_is_reported_on_one_line_and_leaves_no_files(server, tmp_path, page, error, told):
    out = tmp_path / "weights.pth"
    with pytest.raises(error, match=rf"\A[^\n]*{told} by other means and put it at {out}\Z"):
        inception_weights.download_inception(out, f"{server}/{page}")
    assert not files(tmp_path)


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:abc", "http://[", "http://127.0.0.1:9", "nonsense://x"])
def test_an_unusable_proxy_is_reported_on_one_line(proxy, tmp_path, monkeypatch):
    monkeypatch.delenv("no_proxy")
    monkeypatch.setenv("http_proxy", proxy)
    with pytest.raises(OSError, match=r"\Acannot download http://example\.invalid/x: [^\n]*\Z"):
        inception_weights.download_inception(tmp_path / "weights.pth", "http://example.invalid/x")
    assert not files(tmp_path)


def test_a_server_that_does_not_answer_is_named(tmp_path):
    with pytest.raises(OSError, match=r"cannot download http://127\.0\.0\.1:9/x: .*refused; fetch it by other means"):
        inception_weights.download_inception(tmp_path / "weights.pth", "http://127.0.0.1:9/x")
    assert not files(tmp_path)


def test_an_existing_file_is_kept_without_network_access(tmp_path, caplog):
    out = tmp_path / "weights.pth"
    out.write_bytes(CONTENT)
    with caplog.at_level("INFO", "cfgjax.progress"):
        assert inception_weights.download_inception(out, "http://127.0.0.1:9/x") == out
    assert f"{out} exists already" in caplog.text


def test_a_file_with_another_hash_is_an_error_and_is_not_overwritten(tmp_path):
    out = tmp_path / "weights.pth"
    out.write_bytes(b"mine")
    with pytest.raises(UsageError, match="weights.pth is not the Inception network: .*; remove it or name another"):
        inception_weights.download_inception(out, "http://127.0.0.1:9/x")
    assert out.read_bytes() == b"mine"
    with pytest.raises(UsageError, match="is not a file; remove it or name another"):
        inception_weights.download_inception(tmp_path, "http://127.0.0.1:9/x")


def test_missing_results_are_reported_with_a_remedy(tmp_path):
    (tmp_path / "weights.pth").touch()
    assert inception_weights.find_inception(tmp_path / "weights.pth") == tmp_path / "weights.pth"
    for path in [None, tmp_path / "none.pth", tmp_path]:
        with pytest.raises(UsageError, match=r"\Ano Inception weights at .*: run `cfgjax download inception`, or .*\Z"):
            inception_weights.find_inception(path)
