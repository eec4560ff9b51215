"""Runs in a bucket are sampled, evaluated, compared, exported and converted, and results are written to buckets."""

import contextlib
import json
import re

import jax
import numpy as np
import pytest
from command import finish, start, wait_until
from PIL import Image
from tiny import digits_config, mixture_config, same_trees, update

import cfgjax
from cfgjax.base import storage
from cfgjax.base.errors import UsageError
from cfgjax.base.files import read_npz
from cfgjax.base.folders import PLANNED_FILES, is_unused, send_folder
from cfgjax.base.storage import place
from cfgjax.cli.convert import CONVERTED
from cfgjax.cli.main import run_command
from cfgjax.convert import guided_diffusion, presets
from cfgjax.convert.layout import shapes_of
from cfgjax.evaluation import held_out_bits
from cfgjax.evaluation.features.foreign import open_samples
from cfgjax.runs.averages import load_params
from cfgjax.runs.checkpoint import Checkpoints
from cfgjax.runs.workdir import Claim, read_settings
from cfgjax.training.run import Run

TINY = presets.Preset(
    "unet",
    dict(
        in_channels=3,
        out_channels=6,
        image_size=8,
        model_channels=32,
        num_res_blocks=1,
        attention_resolutions=[1],
        channel_mult=[1],
        num_head_channels=16,
        num_classes=5,
        use_scale_shift_norm=True,
        resblock_updown=True,
    ),
    "cosine",
    "tiny",
    5,
)

pytest_plugins = ["bucket_servers"]
pytestmark = pytest.mark.e2e

EVALUATE = "--num_samples=64 --guidance=0,1 --num_steps=4"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache folder of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "cache"
    assert not list(tmp_path.glob("[gs][s3]:*")), "a URL was taken for a local path"


def untrained(config, workdir):
    """A run with a checkpoint of its first parameters."""
    run = Run(update(config, {"mesh.data": 1}), devices=jax.devices()[:1])
    with contextlib.closing(Claim(workdir, run.settings, run.dataset.hash, run.dataset.classes)) as claim:
        claim.write_config()
        with Checkpoints(place(workdir) / "checkpoints", run.settings.checkpoint) as checkpoints:
            checkpoints.save(0, run.new_state(), [])
    return workdir


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run on three Gaussians, on the disk."""
    return untrained(mixture_config(), tmp_path_factory.mktemp("points") / "run")


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run on digits, on the disk."""
    return untrained(digits_config(), tmp_path_factory.mktemp("digits") / "run")


@pytest.fixture(scope="module")
def run_url(gcs_server):
    """The run on three Gaussians, in a bucket."""
    return untrained(mixture_config(), "gs://bucket1/trained/run")


def command(text):
    assert run_command(text.split()) == 0


def refused(text):
    with pytest.raises(UsageError) as raised:
        run_command(text.split())
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_pictures_arrays_and_images_are_written_to_a_bucket(bucket, digits, tmp_path):
    for name in ("grid.png", "steps.gif", "x.npz", "images"):
        words = f"sample --workdir={digits} --labels=1,2 --num_steps=3 --guidance=1 --per_cell=2"
        command(f"{words} --out={bucket}/{name}")
        command(f"{words} --out={tmp_path / name}")
        files = [path for path in (tmp_path / name).rglob("*") if path.is_file()] or [tmp_path / name]
        for path in files:
            there = bucket.get(path.relative_to(tmp_path).as_posix())
            if path.suffix == ".npz":
                (tmp_path / "there.npz").write_bytes(there)
                mine, theirs = read_npz(path), read_npz(tmp_path / "there.npz")
                assert all(np.array_equal(mine[key], theirs[key]) for key in mine)
            else:
                assert there == path.read_bytes()
    assert "not empty" in refused(f"{words} --out={bucket}/images")
    command(f"sample --workdir={digits} --labels=1 --num_steps=3 --diagnostics --out={bucket}/d.png")
    assert {"d.png", "d_diagnostics.json", "d_diagnostics.png"} <= set(bucket.names())


def test_an_evaluation_in_a_bucket_has_the_numbers_of_one_on_the_disk(bucket, workdir, tmp_path, capsys):
    command(f"evaluate --workdir={workdir} --out={tmp_path}/e {EVALUATE}")
    command(f"evaluate --workdir={workdir} --out={bucket}/e {EVALUATE}")
    local, there = json.loads((tmp_path / "e/frontier.json").read_text()), json.loads(bucket.get("e/frontier.json"))
    assert local["rows"] == there["rows"]
    assert {"e/frontier.csv", "e/frontier.png"} <= set(bucket.names())
    shards = [name for name in bucket.names() if "/samples/" in name]
    command(f"evaluate --workdir={workdir} --out={bucket}/e --num_samples=64 --guidance=0,1,2 --num_steps=4")
    assert set(shards) < set(bucket.names())  # the samples of the others are read again
    capsys.readouterr()
    command(f"compare {tmp_path}/e {bucket}/e --out={bucket}/table.csv --plot={bucket}/plot.png")
    shown = capsys.readouterr().out
    assert f"wrote {bucket}/table.csv" in shown
    assert {"table.csv", "plot.png"} <= set(bucket.names())
    command(f"compare {bucket} --out={bucket}/table.json")  # finds the evaluation in the folder
    assert json.loads(bucket.get("table.json"))["rows"]
    assert "does not exist" in refused(f"compare {bucket}/no")


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_a_bucket_that_does_not_exist_is_reported_before_the_likelihood_is_measured(
    request, digits, monkeypatch, scheme
):
    def measure(*args, **kwargs):
        raise AssertionError("the likelihood is measured")

    request.getfixturevalue({"gs": "gcs", "s3": "s3"}[scheme])
    monkeypatch.setattr(held_out_bits, "held_out_bits", measure)
    told = refused(f"evaluate --workdir={digits} --bits_per_dim --num_steps=3 --out={scheme}://nobucket/x")
    assert f"there is no bucket {scheme}://nobucket" in told


def test_a_damaged_shard_in_a_bucket_is_drawn_again(bucket, workdir):
    command(f"evaluate --workdir={workdir} --out={bucket}/e {EVALUATE}")
    before = json.loads(bucket.get("e/frontier.json"))["rows"]
    shard = next(name for name in bucket.names() if name.endswith(".npz") and "/samples/" in name and "-" in name)
    metrics = [name for name in bucket.names() if "/metrics-" in name]
    bucket.put(shard, bucket.get(shard)[:-20])
    for name in metrics:
        bucket.put(name, b"{}")
    command(f"evaluate --workdir={workdir} --out={bucket}/e {EVALUATE}")
    assert json.loads(bucket.get("e/frontier.json"))["rows"] == before
    assert any(name.endswith(".damaged") for name in bucket.names())


def test_a_run_in_a_bucket_is_used_as_one_on_the_disk(gcs, run_url, workdir, tmp_path, capsys):
    model, local = cfgjax.load(run_url), cfgjax.load(workdir)
    assert same_trees(model.params, local.params)
    command(f"evaluate --workdir={run_url} {EVALUATE}")
    there = json.loads(place(f"{run_url}/evaluation/frontier.json").read_bytes())["rows"]
    command(f"evaluate --workdir={workdir} --out={tmp_path}/e {EVALUATE}")
    here = json.loads((tmp_path / "e/frontier.json").read_text())["rows"]
    measured = lambda rows: [{name: value for name, value in row.items() if name != "influences"} for row in rows]
    assert measured(there) == measured(here)  # the paths of influences have the digest of the checkpoint's manifest
    command(f"compare {run_url} {tmp_path}/e")
    command(f"sample --workdir={run_url} --out={gcs}/x.npz --num_steps=4 --guidance=1")
    command(f"sample --workdir={run_url} --weak={run_url}@0 --out={gcs}/y.npz --num_steps=4 --guidance=1")
    command(f"export --workdir={run_url} --out={gcs}/exported")
    assert "exported/evaluation/frontier.json" in gcs.names()
    assert same_trees(cfgjax.load(f"{gcs}/exported").params, local.params)
    assert b"# exported" in gcs.get("exported/README.md")


def test_an_exported_model_is_read_from_a_bucket(bucket, workdir, tmp_path):
    command(f"export --workdir={workdir} --out={bucket}/model")
    url = f"{bucket}/model"
    assert same_trees(cfgjax.load(url).params, cfgjax.load(workdir).params)
    command(f"sample --workdir={url} --out={tmp_path}/x.npz --num_steps=4 --guidance=1")
    command(f"evaluate --workdir={url} --out={tmp_path}/e {EVALUATE}")
    assert "not empty" in refused(f"export --workdir={workdir} --out={bucket}/model")
    bucket.put("model/model.safetensors", b"damaged")
    with pytest.raises(UsageError, match="does not match") as raised:
        cfgjax.load(url)
    assert str(bucket) in str(raised.value)


@contextlib.contextmanager
def sending_fails(absent):
    """The upload of a folder ends, and only the files whose names have `absent` are missing of those sent together."""
    send_all = storage.send_all

    def send_others(pairs):
        send_all([pair for pair in pairs if absent not in str(pair[1])])
        raise OSError("the connection is lost")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "send_all", send_others)
        yield


@pytest.mark.parametrize(
    ("words", "mark", "absent"),
    [
        ("export --workdir={points} --out={bucket}/new", "export.json", "model.safetensors"),
        (
            "sample --workdir={digits} --labels=1,2 --num_steps=3 --guidance=1 --out={bucket}/new",
            "protocol.json",
            "000000_label_1",
        ),
    ],
    ids=["model", "images"],
)
def test_a_folder_without_its_last_file_is_completed_by_the_same_command(
    bucket, workdir, digits, words, mark, absent, tmp_path
):
    words = words.format(points=workdir, digits=digits, bucket=bucket)
    with sending_fails(absent), pytest.raises(OSError, match="the connection is lost"):
        run_command(words.split())
    sent = [name for name in bucket.names() if not name.endswith(PLANNED_FILES)]
    assert sent and len(sent) < len(bucket.names()) and f"new/{mark}" not in sent
    bucket.put("new/foreign.txt", b"of another program")
    assert "not empty" in refused(words)
    storage.client(bucket.url).rm_file(f"{bucket}/new/foreign.txt")
    command(words)
    assert set(sent) < set(bucket.names()) and f"new/{mark}" in bucket.names()
    assert "not empty" in refused(words)
    command(words.replace(f"{bucket}/new", f"{tmp_path}/new"))
    assert bucket.names() == sorted(
        p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("new/**/*") if p.is_file()
    )


def test_an_export_that_is_killed_while_it_sends_is_repeated_by_the_same_command(gcs, workdir):
    words = f"export --workdir={workdir} --out={gcs}/new"
    process = start(words)
    assert "exporting" in process.stdout.readline()
    gcs.control(delay=1)
    weights = f"{gcs.url.removeprefix('gs://bucket1/')}/new/model.safetensors"
    wait_until(lambda: weights in gcs.control()["objects"])
    process.kill()
    finish(process)
    gcs.control(delay=0)
    assert "new/model.safetensors" in gcs.names() and "new/export.json" not in gcs.names()
    command(words)
    assert same_trees(cfgjax.load(f"{gcs}/new").params, cfgjax.load(workdir).params)


def test_images_of_an_interrupted_command_are_not_mixed_with_those_of_another(bucket, digits):
    words = f"sample --workdir={digits} --num_steps=3 --guidance=1 --out={bucket}/new"
    with sending_fails("000000_label_1"), pytest.raises(OSError, match="the connection is lost"):
        run_command(f"{words} --labels=1,2".split())
    command(f"{words}/ --labels=5 --num_samples=2")
    assert bucket.names() == ["new/000000_label_5.png", "new/000001_label_5.png", "new/protocol.json"]


def test_the_marks_of_the_parts_of_a_folder_are_sent_after_all_files(bucket, tmp_path):
    marks = ("base/x.json", "upsampler/x.json")
    for name in (*marks, "base/weights", "upsampler/weights"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    url, sent, send = f"{bucket}/new", [], storage.send_file

    def send_one(local, path):
        send(local, path)
        if (name := str(path).removeprefix(f"{url}/")) in marks:
            sent.append((name, set(bucket.names())))
        if len(sent) == 2:
            raise OSError("the connection is lost")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "send_file", send_one)
        with pytest.raises(OSError, match="the connection is lost"):
            send_folder(tmp_path, url, marks)
    assert [name for name, _ in sent] == list(marks)
    assert {"new/base/weights", "new/upsampler/weights"} <= sent[0][1]
    assert is_unused(url)  # all files are there, but not everything was done
    send_folder(tmp_path, url, marks)
    assert not is_unused(url) and f"new/{PLANNED_FILES}" not in bucket.names()


@pytest.mark.parametrize("name", ["README.md", "model.safetensors", "000000_label_1.png"])
def test_files_that_no_interrupted_command_left_are_never_removed(bucket, workdir, digits, name):
    bucket.put(f"new/{name}", b"of the user")
    for words in (
        f"export --workdir={workdir}",
        f"sample --workdir={digits} --labels=1 --num_steps=3 --guidance=1 --num_samples=1",
    ):
        assert "not empty" in refused(f"{words} --out={bucket}/new")
    assert bucket.get(f"new/{name}") == b"of the user" and len(bucket.names()) == 1


def test_a_sampler_as_one_file_is_written_to_a_bucket(bucket, workdir):
    command(f"export --workdir={workdir} --format=stablehlo --platforms=cpu --num_steps=4 --out={bucket}/s.npz")
    assert bucket.get("s.npz")[:2] == b"PK"


def test_a_refusal_to_read_is_told_with_the_path_and_without_a_remedy_for_damage(gcs, run_url):
    from bucket_servers import forget  # at the top it would be imported before pytest rewrites its assertions

    forget("gs")  # nothing has been allowed yet, so that the refusal lasts
    gcs.control(fail=403)
    for text in (f"compare {run_url}", f"sample --workdir={run_url} --out=x.png"):
        assert re.fullmatch(rf"cannot read {run_url}(/config.json)?: Forbidden[^;]*", refused(text))


def test_samples_of_other_programs_are_read_from_buckets(bucket, tmp_path):
    arrays = {"arr_0": np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), np.uint8), "arr_1": np.arange(20) % 3}
    np.savez(tmp_path / "x.npz", **arrays)
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(arrays["arr_0"]):
        Image.fromarray(image[..., 0]).save(folder / f"{i:03}.png")
    for local in (tmp_path / "x.npz", folder):
        there, here = open_samples(bucket.put(local.name, local)), open_samples(local)
        assert (there.digest, there.shape, there.origin) == (here.digest, here.shape, f"{bucket}/{local.name}")
        assert np.array_equal(there.read(0, 20)[0], here.read(0, 20)[0])
    with pytest.raises(UsageError, match="does not exist"):
        open_samples(f"{bucket}/absent")


def test_a_conversion_reads_and_writes_buckets(gcs, s3, tmp_path, monkeypatch):
    monkeypatch.setattr(presets, "PRESETS", {"tiny": TINY})
    net, image_shape = guided_diffusion.MAKERS["unet"](TINY.arguments)
    draw = lambda leaf: np.random.default_rng(0).standard_normal(leaf.shape).astype(np.float32)
    np.savez(tmp_path / "w.npz", **guided_diffusion.state_dict(net, jax.tree.map(draw, shapes_of(net, image_shape))))
    words = "convert openai-adm --preset=tiny"
    assert "s3://" in refused(f"{words} --checkpoint={tmp_path}/w.npz --out={s3}/run")
    command(f"{words} --checkpoint={s3.put('w.npz', tmp_path / 'w.npz')} --out={gcs}/run")
    command(f"{words} --checkpoint={gcs.put('w.npz', tmp_path / 'w.npz')} --out={tmp_path}/run")
    assert same_trees(*(load_params(run, read_settings(run))[0] for run in (f"{gcs}/run", tmp_path / "run")))
    again = f"{words} --checkpoint={tmp_path}/w.npz --out={gcs}/run"
    assert "not empty" in refused(again)
    before, client = gcs.names(), storage.client(gcs.url)
    array = next(name for name in before if "/d/" in name)
    for name in ("run/config.json", array):
        client.rm_file(f"{gcs}/{name}")
    assert "not empty" in refused(again)  # a run that has lost its config.json
    gcs.put(f"run/{PLANNED_FILES}", json.dumps(CONVERTED).encode())  # as if the conversion had been interrupted
    gcs.put("run/other", b"of the user")
    assert "not empty" in refused(again)
    client.rm_file(f"{gcs}/run/other")
    command(again)
    assert same_trees(*(load_params(run, read_settings(run))[0] for run in (f"{gcs}/run", tmp_path / "run")))
    assert "not empty" in refused(again)
    command(f"convert to-openai-adm --workdir={gcs}/run --out={s3}/back.npz")
    (tmp_path / "back.npz").write_bytes(s3.get("back.npz"))
    back, there = read_npz(tmp_path / "back.npz"), read_npz(tmp_path / "w.npz")
    assert all(np.array_equal(back[name], there[name]) for name in there)
    assert f"{s3}/no.npz does not exist" in refused(f"{words} --checkpoint={s3}/no.npz --out={tmp_path}/new")


def test_a_workdir_in_s3_is_refused_before_anything_is_made(s3, digits):
    for text in (
        f"train --config=digits --workdir={s3}/run",
        f"train --data={s3}/images --workdir={s3}/run",
    ):
        assert "checkpoints cannot be kept in s3://" in refused(text)
    assert s3.names() == []


def test_parameters_of_a_run_in_s3_are_refused_in_one_line(s3, workdir):
    url = s3.put("run", workdir)
    read_settings(url)
    with pytest.raises(UsageError, match="s3://"):
        load_params(url, read_settings(url))
