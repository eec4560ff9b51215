"""Data sets in buckets: copied once per host, with the same content and hash as on a disk; prepared into buckets."""

import logging
import shutil
import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from command import run, wait_until
from PIL import Image
from tiny import open_source

from cfgjax.base import staging, storage
from cfgjax.base.errors import UsageError
from cfgjax.base.failures import expected_failure
from cfgjax.base.files import read_npz
from cfgjax.cli.main import run_command
from cfgjax.data.prepare_own import own_experiment
from cfgjax.data.sources.prepared import verify
from cfgjax.runs.config import load_config

pytest_plugins = ["bucket_servers"]
pytestmark = pytest.mark.e2e

STAGE = "import sys; from cfgjax.base.staging import staged; print(staged(sys.argv[1]))"
KEYS = {"num_classes": 3, "image_shape": (8, 8, 3)}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "cache"
    assert not list(tmp_path.glob("[gs][s3]:*")), "a URL was taken for a local path"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder class/image.png of 30 images, and files that are none."""
    root, rng = tmp_path_factory.mktemp("data") / "images", np.random.default_rng(0)
    for i in range(30):
        path = root / "abc"[i % 3] / f"a name with ü and {i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    (root / "a" / "notes.txt").write_text("no image")
    return root


@pytest.fixture(scope="module")
def arrays(images):
    """An .npz of the same kind of images."""
    path = images.with_name("train.npz")
    rng = np.random.default_rng(1)
    np.savez(path, image=rng.integers(0, 256, (40, 8, 8, 3), np.uint8), label=np.arange(40) % 3)
    return path


@pytest.fixture(scope="module")
def prepared(images):
    """The prepared set of the folder."""
    out = images.with_name("prepared")
    assert run_command(f"prepare folder {images} {out} --size=8 --workers=1".split()) == 0
    return out


def content(data):
    """All images and labels of a data set, and its hash."""
    return data.images(np.arange(len(data))).tobytes(), data.label.tobytes(), data.hash


def refused(action, *arguments, **options):
    with pytest.raises(UsageError) as raised:
        action(*arguments, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def copies(caplog):
    """How often something was copied."""
    return sum(record.getMessage().startswith("copying") for record in caplog.records)


@pytest.mark.parametrize("source", ["folder", "npz", "prepared"])
def test_a_data_set_in_a_bucket_is_the_one_on_the_disk(source, bucket, images, arrays, prepared, caplog):
    caplog.set_level(logging.INFO, "cfgjax.progress")
    local = {"folder": images, "npz": arrays, "prepared": prepared}[source]
    url = bucket.put(local.name, local)
    there = open_source(source=source, path=url, **KEYS)
    assert content(there) == content(open_source(source=source, path=str(local), **KEYS))
    assert copies(caplog) == 1
    open_source(source=source, path=url, **KEYS)
    assert copies(caplog) == 1, "it was copied twice"


def test_data_that_have_changed_are_copied_again(bucket, arrays, tmp_path):
    url = bucket.put("train.npz", arrays)
    before = content(open_source(source="npz", path=url, **KEYS))
    other = {name: array[::-1] for name, array in read_npz(arrays).items()}
    np.savez(tmp_path / "other.npz", **other)
    bucket.put("train.npz", tmp_path / "other.npz")
    assert content(open_source(source="npz", path=url, **KEYS)) != before


def test_a_copy_that_was_killed_is_continued(gcs, images, cache):
    url = gcs.put("images", images)
    gcs.control(delay=0.2)
    process = subprocess.Popen([sys.executable, "-c", STAGE, url])
    arrived = lambda: list(cache.glob("cfgjax/buckets/*.part/**/*.png"))
    wait_until(arrived)
    process.send_signal(signal.SIGKILL)
    process.wait()
    gcs.control(delay=0)
    whole = {path: path.stat().st_mtime_ns for path in arrived()}
    folder = staging.staged(url)
    same = lambda path: folder / path.relative_to(next(p for p in path.parents if p.name == "images"))
    assert all(same(path).stat().st_mtime_ns == written for path, written in whole.items())
    assert {str(path.relative_to(folder)) for path in folder.rglob("*.*")} == {
        str(path.relative_to(images)) for path in images.rglob("*.*")
    }
    assert not list(cache.glob("cfgjax/buckets/*.part"))


def test_one_process_copies_and_the_others_wait(gcs, images):
    url = gcs.put("images", images)
    count = lambda: gcs.control()["requests"].get("GET object", 0)
    before = count()
    gcs.control(delay=0.05)
    processes = [subprocess.Popen([sys.executable, "-c", STAGE, url], stdout=subprocess.PIPE) for _ in range(3)]
    paths = {process.communicate(timeout=120)[0] for process in processes}
    assert len(paths) == 1
    assert all(process.returncode == 0 for process in processes)
    files = len(list(images.rglob("*.*")))
    assert count() - before < 3 * files  # the client asks for the size of each before it reads it


def test_a_server_that_fails_for_a_while_delays_a_copy(gcs, images):
    url = gcs.put("images", images)
    gcs.control(fail=503)
    recovers = threading.Timer(3, gcs.control, kwargs={"fail": 0})
    recovers.start()
    assert len(list(staging.staged(url).rglob("*.png"))) == 30
    recovers.join()


def test_names_that_no_file_can_have_are_refused(gcs):
    gcs.put("odd/x//y", b"content")
    assert "no file can have" in refused(staging.staged, f"{gcs}/odd")


def test_objects_that_change_during_the_copy_are_refused(gcs, arrays, monkeypatch):
    url, fetch = gcs.put("train.npz", arrays), staging.fetch_objects

    def changed(*arguments):
        fetch(*arguments)
        gcs.put("train.npz", b"x" * arrays.stat().st_size)

    monkeypatch.setattr(staging, "fetch_objects", changed)
    assert "was changed while it was copied" in refused(staging.staged, url)


def test_a_full_disk_is_reported_before_the_copy(bucket, arrays, monkeypatch):
    monkeypatch.setattr(storage, "free_bytes", lambda path: 10)
    error = refused(open_source, source="npz", path=bucket.put("train.npz", arrays), **KEYS)
    assert "XDG_CACHE_HOME" in error


def test_errors_name_the_url(bucket, images, arrays, tmp_path, cache):
    assert refused(open_source, source="npz", path=f"{bucket}/no.npz", **KEYS).startswith(f"{bucket}/no.npz ")
    absent = f"{bucket.url.partition('://')[0]}://absent1/x"
    assert absent in refused(staging.staged, absent)
    url = bucket.put("train.npz", b"nothing")
    error = refused(open_source, source="npz", path=url, **KEYS)
    assert url in error and str(cache) not in error
    url = bucket.put("images", images)
    error = refused(open_source, source="folder", path=url, num_classes=4, image_shape=(8, 8, 3))
    assert url in error and str(cache) not in error
    bucket.put("images/a/broken.png", b"broken")
    data = open_source(source="folder", path=url, split="all", **KEYS)
    with pytest.raises(OSError, match="broken") as raised:
        data.images(np.arange(len(data)))
    line = expected_failure(raised.value).line  # what a command prints
    assert f"{url}: cannot decode a/broken.png" in line and str(cache) not in line


def test_prepare_reads_and_writes_buckets(bucket, images, prepared, capsys):
    url, out = bucket.put("images", images), f"{bucket}/out"
    command = f"prepare folder {url} {out} --size=8 --workers=1".split()
    assert run_command(command) == 0
    assert f"data.path='{out}'" in capsys.readouterr().out
    names = [name.removeprefix("out/") for name in bucket.names() if name.startswith("out/")]
    assert names == sorted(path.name for path in prepared.iterdir() if path.name != ".lock")
    for name in names:
        assert bucket.get(f"out/{name}") == (prepared / name).read_bytes()
    assert run_command(command) == 0  # it is complete
    assert run_command(["prepare", "--verify", out]) == 0
    assert "another prepared set" in refused(run_command, [*command[:-2], "--size=16"])
    assert "other content" in refused(run_command, f"prepare folder {images} {url} --size=8".split())
    assert "is inside" in refused(run_command, f"prepare folder {url} {url}/out --size=8".split())
    data = open_source(source="prepared", path=out, **KEYS)
    assert content(data) == content(open_source(source="prepared", path=str(prepared), **KEYS))


def test_a_set_that_could_not_be_sent_is_sent_by_the_same_command(gcs, images, prepared, monkeypatch):
    out = f"{gcs}/out"
    command = f"prepare folder {images} {out} --size=8 --workers=1".split()
    sent = storage.send_file

    def fails(local, path):
        if local.name == "label.npy":
            raise OSError("the network is down")
        sent(local, path)

    monkeypatch.setattr(storage, "send_file", fails)
    with pytest.raises(OSError, match="network"):
        run_command(command)
    assert "out/dataset.json" not in gcs.names()
    assert "not complete" in refused(open_source, source="prepared", path=out, **KEYS)
    monkeypatch.setattr(storage, "send_file", sent)
    assert run_command(command) == 0
    assert verify(staging.staged(out))["hash"] == verify(prepared)["hash"]


def test_own_images_in_a_bucket_become_an_experiment(gcs, images, prepared):
    url = gcs.put("images", images)
    name = own_experiment(url, f"{gcs}/run")
    config = load_config(name)
    assert config.data.path == f"{gcs}/run_data"
    data = open_source(source="prepared", path=config.data.path, **KEYS)
    assert data.label.tolist() == open_source(source="prepared", path=str(prepared), **KEYS).label.tolist()
    assert own_experiment(gcs.put("prepared", prepared), f"{gcs}/run") == f"own_images:{gcs}/prepared"
    assert "s3://" in refused(own_experiment, url, "s3://bucket1/run")


def test_idx_files_are_prepared_from_a_bucket(bucket, tmp_path):
    folder = tmp_path / "idx"
    folder.mkdir()
    image = np.random.default_rng(0).integers(0, 256, (12, 8, 8), np.uint8)
    header = lambda kind, shape: bytes([0, 0, 8, kind]) + b"".join(size.to_bytes(4, "big") for size in shape)
    (folder / "train-images-idx3-ubyte").write_bytes(header(3, image.shape) + image.tobytes())
    (folder / "train-labels-idx1-ubyte").write_bytes(header(1, (12,)) + bytes(i % 3 for i in range(12)))
    words = "--size=8 --channels=1 --workers=1"
    assert run_command(f"prepare idx {bucket.put('idx', folder)} {tmp_path}/a {words}".split()) == 0
    assert run_command(f"prepare idx {folder} {tmp_path}/b {words}".split()) == 0
    assert verify(tmp_path / "a") == verify(tmp_path / "b")


def test_a_command_reports_data_that_do_not_exist_in_one_line(gcs):
    code, out, err = run(f"prepare npz {gcs}/no.npz out --size=8")
    assert (code, err.count("\n"), f"{gcs}/no.npz" in err) == (2, 1, True), out + err
    shutil.rmtree("out", ignore_errors=True)
