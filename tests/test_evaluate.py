"""`cfgjax evaluate` as a user meets it: whole, killed, stopped, out of space, and given bad input."""

import json
import shutil
import signal
import time

import numpy as np
import pytest
import runs
from command import finish, run, start
from disks import small_disk
from tiny import mixture_config

from cfgjax.base.errors import UsageError
from cfgjax.base.files import read_npz
from cfgjax.cli.main import run_command as run_here

EVALUATE = "evaluate --workdir={0} --out={1} --guidance=0,1,3 --num_samples=1000 --num_steps=300 --batch_size=96"
FILES = ("frontier.csv", "frontier.json", "frontier.png", "differences.png", "per_class.csv")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A run on three Gaussians, trained for a moment."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    runs.train(mixture_config(**{"mesh.data": 1}), workdir)
    return workdir


@pytest.fixture(scope="module")
def whole(workdir, tmp_path_factory):
    """The folder of an evaluation that was left alone."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    code, out, err = run(EVALUATE.format(workdir, folder))
    assert code == 0, err
    assert "FD-mixture is smallest at w = " in out
    return folder


def shards(folder):
    """{path below folder: its arrays} of all samples."""
    return {str(path.relative_to(folder)): read_npz(path) for path in folder.glob("samples/*/[0-9]*.npz")}


def same(folder, other):
    """Whether two evaluations left the same files: reports byte for byte, shards array for array."""
    a, b = shards(folder), shards(other)
    equal = a.keys() == b.keys() and all(np.array_equal(a[p][name], b[p][name]) for p in a for name in a[p])
    return equal and all((folder / name).read_bytes() == (other / name).read_bytes() for name in FILES)


def wait_for_shards(folder, count):
    """Until so many shards are there."""
    deadline = time.monotonic() + 300
    while len(list(folder.glob("samples/*/[0-9]*.npz"))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.e2e
def test_an_evaluation_that_is_killed_and_resumed_writes_the_same_files(workdir, whole, tmp_path):
    for count, number, expected in [(3, signal.SIGKILL, -9), (14, signal.SIGHUP, 75), (25, signal.SIGTERM, 75)]:
        process = start(EVALUATE.format(workdir, tmp_path / "out"))
        wait_for_shards(tmp_path / "out", count)
        process.send_signal(number)
        code, out, err = finish(process)
        assert code == expected, err
        if expected == 75:
            assert "the same command resumes" in out
        assert not (tmp_path / "out" / "frontier.csv").exists()
    drawn = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("samples/*/[0-9]*.npz")}
    code, _, err = run(EVALUATE.format(workdir, tmp_path / "out"))
    assert code == 0, err
    assert same(tmp_path / "out", whole)
    assert all(path.stat().st_mtime_ns == at for path, at in drawn.items())  # what was there was not drawn again


@pytest.mark.e2e
def test_a_full_disk_is_reported_on_one_line_and_drawn_samples_are_retained(workdir, whole, tmp_path):
    with small_disk(tmp_path, "160k") as grow:
        code, _, err = run(EVALUATE.format(workdir, tmp_path / "out"))
        assert code == 1
        assert "No space left on device" in err.splitlines()[-1]
        assert not list(tmp_path.rglob("*.part.*"))
        grow("100m")
        assert run(EVALUATE.format(workdir, tmp_path / "out"))[0] == 0
        assert same(tmp_path / "out", whole)


@pytest.mark.e2e
def test_two_evaluations_in_one_folder_are_refused(workdir, tmp_path):
    first = start(EVALUATE.format(workdir, tmp_path / "out"))
    wait_for_shards(tmp_path / "out", 1)
    code, _, err = run(EVALUATE.format(workdir, tmp_path / "out"))
    first.kill()
    finish(first)
    assert code == 2
    assert "another evaluation is running" in err


def test_the_report_has_every_part(workdir, tmp_path):
    words = f"evaluate --workdir={workdir} --out={tmp_path} --guidance=0,1,3 --num_samples=60 --num_steps=4"
    assert run_here(words.split()) == 0
    found = json.loads((tmp_path / "frontier.json").read_text())
    assert [(row["scores"], row["guidance_weight"]) for row in found["rows"]] == [
        (scores, w) for scores in ("learned", "exact") for w in (0, 1, 3)
    ]
    assert [point["guidance_weight"] for point in found["tilted"]] == [0, 1, 3]
    assert len((tmp_path / "frontier.csv").read_text().splitlines()) == 7
    assert (tmp_path / "per_class.csv").read_text().startswith("class,w=0 scores=learned,")


@pytest.mark.slow
def test_samples_can_be_deleted_after_measuring(workdir, tmp_path):
    command = f"evaluate --workdir={workdir} --out={tmp_path} --guidance=0 --num_samples=50 --num_steps=4"
    assert run_here(f"{command} --nokeep_samples".split()) == 0
    assert not list(tmp_path.rglob("samples/*/[0-9]*.npz"))
    before = (tmp_path / "frontier.json").read_bytes()
    assert run_here(command.split()) == 0  # the metrics are known: nothing is drawn
    assert not list(tmp_path.rglob("samples/*/[0-9]*.npz"))
    assert (tmp_path / "frontier.json").read_bytes() == before


@pytest.mark.slow
def test_a_reference_can_be_made_and_used(workdir, tmp_path):
    path = tmp_path / "reference.npz"
    assert run_here(["evaluate", "--make-reference", f"--workdir={workdir}", f"--out={path}"]) == 0
    command = f"evaluate --workdir={workdir} --out={tmp_path} --guidance=0 --num_samples=50 --num_steps=4"
    assert run_here([*command.split(), f"--reference={path}"]) == 0
    own = json.loads((tmp_path / "frontier.json").read_text())
    assert run_here(command.split()) == 0
    again = json.loads((tmp_path / "frontier.json").read_text())
    assert own["reference"]["digest"] == again["reference"]["digest"]
    assert own["rows"] == again["rows"]


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ("--num_samples=1", "--num_samples=1"),
        ("--guidance=nan", "is not finite"),
        ("--guidance=0 --scale=1", "are both given"),
        ("--guidance=", "--guidance=: need numbers"),
        ("--num_steps=8,1", "num_steps is 1; need an integer of at least 2"),
        ("--seed=0,-1", "seed is -1"),
        ("--ema=0.999,0.5", "ema 0.5 is neither a rate of the run (0.999, 0) nor a width"),
        ("--sampler=ancestral(v=2)", "v is 2"),
        ("--sampler=ddim(v=0.1)", "ddim takes no 'v'"),
        ("--label_policy=balancd", "label_policy is 'balancd'; need 'balanced' or 'random'"),
        ("--features=classifier", "features 'classifier' are for images"),
        ("--features=clasifier", "features 'clasifier' are for images"),
        ("--reference=nowhere.npz", "cannot read nowhere.npz"),
        ("--step=3", "there is no step 3"),
        ("--bits_per_dim", "--bits_per_dim needs 8-bit images"),
        ("--bits_per_dim --guidance=1", "guidance (w = 1) defines no likelihood"),
        ("--make_reference --bits_per_dim", "are both given"),
        ("--config=experiments/mixture.py", "--config has no effect without --make_reference or --samples"),
        ("--num-smaples=7", "Unknown command line flag 'num_smaples'. Did you mean: num_samples"),
        ("now", "takes only flags"),
    ],
)
def test_bad_input_is_a_one_line_error_before_sampling(workdir, tmp_path, flags, told):
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    with pytest.raises(UsageError) as raised:
        run_here(["evaluate", f"--workdir={workdir}", f"--out={tmp_path / 'out'}", *flags.split()])
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.rglob("*.npz"))
