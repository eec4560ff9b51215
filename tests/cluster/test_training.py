"""Training in several real processes, with real signals and real kills."""

import json
import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from command import end_all, finish_all, free_port, run, start, start_several
from disks import small_disk
from test_cli import metrics, state, wait_for_step
from tiny import same_trees

pytestmark = pytest.mark.e2e
STEPS = 300
TRAIN = (
    "train --config=experiments/mixture.py --config.data.num_examples=256 --config.model.width=128 "
    "--config.model.depth=1 --config.train.batch_size=16 --config.train.steps_per_dispatch=5 "
    f"--config.train.num_steps={STEPS} --config.train.log_every_steps=10 --config.checkpoint.every_steps=50 "
    "--config.checkpoint.keep_last=100 --config.sample.every_steps=300 --config.sample.per_cell=2 "
    "--config.sample.num_steps=4 --config.cluster.timeout_seconds=20 --workdir={workdir}"
)


@pytest.fixture(autouse=True)
def nothing_is_left_running():
    yield
    end_all()


def train(workdir, *flags):
    return " ".join([TRAIN.format(workdir=workdir), *flags])


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The workdir of a run of one process."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    code, _, err = run(train(workdir))
    assert code == 0, err
    return workdir


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """The workdir of a run of two processes."""
    workdir = tmp_path_factory.mktemp("together") / "run"
    for code, _, err in finish_all(start_several(train(workdir), 2)):
        assert code == 0, err
    return workdir


def assert_close(found, expected, rtol):
    """That two runs logged the same losses, up to rounding."""
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=rtol)
        assert a.get("drop_rate") == b.get("drop_rate")  # the very same examples lost their label


def distance(a, b):
    """Of two trees of arrays, relative to their size."""
    import jax

    norm = lambda tree: np.sqrt(sum(np.sum(np.square(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(tree)))
    return norm(jax.tree.map(np.subtract, a, b)) / norm(b)


def test_two_processes_write_the_files_of_one(alone, together):
    early = 50  # rounding grows from step to step
    assert_close(metrics(together)[: early // 10], metrics(alone)[: early // 10], rtol=1e-6)
    assert distance(state(together, early)["params"], state(alone, early)["params"]) < 1e-6
    assert_close(metrics(together), metrics(alone), rtol=1e-4)
    assert sorted(path.name for path in together.glob("samples/*")) == ["step_00000300.png"]
    assert len(list(together.glob("events.out.tfevents.*"))) == 1


def test_a_signal_to_any_process_stops_all_at_one_step_and_the_run_resumes_elsewhere(alone, tmp_path):
    workdir = tmp_path / "run"
    saved = None
    for count, victim, number, flags in [
        (2, 1, signal.SIGTERM, []),
        (4, 2, signal.SIGUSR1, ["--config.mesh.fsdp=2"]),
    ]:
        processes = start_several(train(workdir, *flags), count)
        wait_for_step(workdir, 40 + (int(saved[1]) if saved else 0))  # so that these processes have logged it
        asked = time.monotonic()
        processes[victim].send_signal(number)
        ends = finish_all(processes)
        assert [code for code, _, _ in ends] == [75] * count, ends
        assert time.monotonic() - asked < 100
        saved = re.search(rf"{number.name}: saved step (\d+); the same command resumes$", ends[0][1].strip())
        assert saved and (workdir / "checkpoints" / saved[1]).is_dir()
        for _, out, _ in ends[1:]:  # the first alone speaks
            assert [line for line in out.splitlines() if not line.startswith("[Gloo]")] == []
    code, out, err = run(train(workdir))
    assert code == 0, err
    assert f"resumed at step {saved[1]}" in out
    assert_close(metrics(workdir), metrics(alone), rtol=1e-4)
    assert distance(state(workdir, STEPS)["params"], state(alone, STEPS)["params"]) < 1e-4


def test_a_signal_to_any_process_ends_an_evaluation(tmp_path):
    workdir, evaluates = tmp_path / "run", "--config.evaluate.every_steps=50 --config.evaluate.every_num_samples=500000"
    processes = start_several(train(workdir, evaluates), 2)
    wait_for_step(workdir, 50)
    processes[1].send_signal(signal.SIGTERM)
    ends = finish_all(processes)
    assert [code for code, _, _ in ends] == [75, 75], ends
    assert ends[0][1].strip().endswith("SIGTERM: saved step 50; the same command resumes")


@pytest.mark.parametrize("victim", [0, pytest.param(1, marks=pytest.mark.soak)])
def test_a_killed_process_ends_the_other_and_no_saved_step_is_lost(together, tmp_path, victim):
    workdir = tmp_path / "run"
    processes = start_several(train(workdir), 2)
    wait_for_step(workdir, 120)
    processes[victim].kill()
    killed = time.monotonic()
    code, _, err = finish_all(processes)[1 - victim]
    assert code == 1
    assert time.monotonic() - killed < 20
    assert re.search(rf"process {victim} on \S+ \(pid {processes[victim].pid}\) has died", err.strip().splitlines()[-1])
    ends = finish_all(start_several(train(workdir), 2))
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert int(re.search(r"resumed at step (\d+)", ends[0][1])[1]) >= 50
    assert metrics(workdir) == metrics(together)
    assert same_trees(state(workdir, STEPS), state(together, STEPS))


def test_a_frozen_process_is_named(tmp_path):
    workdir = tmp_path / "run"
    processes = start_several(train(workdir, "--config.train.num_steps=100000 --config.cluster.timeout_seconds=15"), 2)
    wait_for_step(workdir, 20)
    processes[1].send_signal(signal.SIGSTOP)
    frozen = time.monotonic()
    code, _, err = finish_all(processes[:1])[0]
    assert code == 1
    assert time.monotonic() - frozen < 16
    assert re.search(r"process 1 on \S+ \(pid \d+\) has sent nothing for \d+ s: it is frozen", err.splitlines()[-1])
    processes[1].send_signal(signal.SIGCONT)
    assert finish_all(processes[1:])[0][0] == 1


def test_damaged_steps_and_leftovers_of_a_crash_are_skipped(together, tmp_path):
    import shutil

    workdir = tmp_path / "run"
    shutil.copytree(together, workdir)
    newest = workdir / "checkpoints" / str(STEPS)
    (newest / "manifest.json").unlink()
    (workdir / "checkpoints" / str(STEPS + 50)).mkdir()
    ends = finish_all(start_several(train(workdir), 2))
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert f"resumed at step {STEPS - 50}" in ends[0][1]
    assert f"step {STEPS} is damaged" in ends[0][2] and not ends[1][2]
    assert sorted(path.name for path in (workdir / "damaged").iterdir()) == [str(STEPS), str(STEPS + 50)]
    assert same_trees(state(workdir, STEPS), state(together, STEPS))


def test_an_error_common_to_all_processes_is_reported_once_and_leaves_no_files(tmp_path):
    ends = finish_all(start_several(train(tmp_path / "run", "--config.train.batch_size=15"), 2))
    assert [code for code, _, _ in ends] == [2, 2]
    assert ends[0][2].strip() == "cfgjax: error: batch_size 15 is not divisible by 2 devices; use 14 or 16"
    assert not (tmp_path / "run").exists()


def test_processes_with_different_configs_are_reported_at_the_start(tmp_path):
    place = {"CFGJAX_COORDINATOR": f"localhost:{free_port()}", "CFGJAX_NUM_PROCESSES": "2"}
    flags = ["--config.train.batch_size=32", "--config.train.batch_size=16"]
    ends = finish_all(
        [start(train(tmp_path / "run", flags[i]), environ={**place, "CFGJAX_PROCESS_ID": str(i)}) for i in range(2)]
    )
    for code, _, err in ends:
        assert code == 2
        assert "train.batch_size is 16, in process 0 it is 32" in err
        assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_an_unreachable_coordinator_is_an_error_with_its_address(tmp_path):
    flags = f"--coordinator=localhost:{free_port()} --num_processes=2 --process_id=1"
    code, _, err = run(train(tmp_path / "run", flags, "--config.cluster.start_timeout_seconds=2"))
    assert code == 1
    assert re.search(r"process 1 on \S+ cannot reach process 0 at localhost:\d+ within 2 s: Connection refused", err)
    assert len(err.strip().splitlines()) == 1


def test_all_processes_refuse_a_workdir_in_use(tmp_path):
    flags = "--config.train.num_steps=100000"
    first = start(train(tmp_path / "run", flags))
    wait_for_step(tmp_path / "run", 10)
    ends = finish_all(start_several(train(tmp_path / "run", flags), 2))
    first.send_signal(signal.SIGTERM)
    assert finish_all([first])[0][0] == 75
    assert [code for code, _, _ in ends] == [2, 2]
    assert ends[0][2].strip().endswith(f"is in use by process {first.pid}")


def test_a_workdir_that_is_invisible_to_another_host_is_refused(tmp_path):
    place = {"CFGJAX_COORDINATOR": f"localhost:{free_port()}", "CFGJAX_NUM_PROCESSES": "2"}
    (tmp_path / "elsewhere").mkdir()
    root = Path(__file__).parents[2]
    command = TRAIN.format(workdir="run").replace("experiments/", f"{root}/experiments/")
    own = lambda i: {**place, "CFGJAX_PROCESS_ID": str(i), "PYTHONPATH": str(root)}
    folders = [tmp_path, tmp_path / "elsewhere"]
    ends = finish_all([start(command, environ=own(i), cwd=folders[i]) for i in range(2)])
    assert [code for code, _, _ in ends] == [2, 2], ends
    assert "process 1 does not see the workdir run of process 0" in ends[0][2]


def test_the_other_processes_report_the_error_of_one(tmp_path):
    data = tmp_path / "data.npz"
    rng = np.random.default_rng(0)
    np.savez(data, image=rng.integers(0, 256, (16, 8, 8, 1), np.uint8), label=rng.integers(0, 10, 16))
    place = {"CFGJAX_COORDINATOR": f"localhost:{free_port()}", "CFGJAX_NUM_PROCESSES": "2"}
    (tmp_path / "elsewhere").mkdir()
    config = tmp_path / "config.py"
    experiments = Path(__file__).parents[2] / "experiments"
    (tmp_path / "base.py").write_text((experiments / "base.py").read_text())
    text = (experiments / "digits.py").read_text()
    config.write_text(text.replace('source="digits"', 'source="npz", path="data.npz"'))
    own = lambda i: {**place, "CFGJAX_PROCESS_ID": str(i), "PYTHONPATH": str(Path(__file__).parents[2])}
    command = f"train --config={config} --workdir={tmp_path / 'run'}"
    folders = [tmp_path, tmp_path / "elsewhere"]
    ends = finish_all([start(command, environ=own(i), cwd=folders[i]) for i in range(2)])
    assert [code for code, _, _ in ends] == [2, 2], ends
    assert re.search(r"process 1 on \S+ \(pid \d+\) failed: cannot read data.npz", ends[0][2])


@pytest.mark.soak
def test_all_processes_report_a_full_disk_of_the_first(tmp_path):
    with small_disk(tmp_path, "4m") as grow:
        flags = "--config.checkpoint.every_steps=10 --config.sample.every_steps=3000 --config.train.num_steps=3000"
        ends = finish_all(start_several(train(tmp_path / "run", flags), 2))
        whole = int(re.search(r"No space left on device.*; step (\d+) is complete$", ends[0][2].strip())[1])
        for code, _, err in ends:
            assert code == 1
            assert f"step {whole} is complete" in err.strip().splitlines()[-1]
        grow("100m")
        ends = finish_all(start_several(train(tmp_path / "run", f"--config.train.num_steps={whole + 10}"), 2))
        assert [code for code, _, _ in ends] == [0, 0], ends
        assert f"resumed at step {whole}" in ends[0][1]


@pytest.mark.soak
@pytest.mark.parametrize(("count", "kills", "steps"), [(2, 35, STEPS), (4, 15, 100)])
def test_after_kills_at_random_moments_no_process_hangs_and_no_complete_step_is_lost(tmp_path, count, kills, steps):
    flags = "--config.checkpoint.every_steps=20 --config.cluster.start_timeout_seconds=20"
    flags += f" --config.train.num_steps={steps}"
    straight, workdir = tmp_path / "straight", tmp_path / "run"
    for code, _, err in finish_all(start_several(train(straight, flags), count), timeout=600):
        assert code == 0, err
    rng, done, newest = np.random.default_rng(count), 0, 0
    while done < kills:
        processes = start_several(train(workdir, flags), count)
        if done % 3:  # most moments are of training, some of the start
            while len(metrics(workdir)) <= newest // 10 and all(process.poll() is None for process in processes):
                time.sleep(0.05)
        time.sleep(rng.uniform(0.1, 6))
        victim = processes[int(rng.integers(count))]
        running = victim.poll() is None
        victim.kill()
        killed = time.monotonic()
        ends = finish_all(processes)
        assert time.monotonic() - killed < 60
        resumed = re.search(r"resumed at step (\d+)", ends[0][1])
        assert resumed is None or int(resumed[1]) == newest, ends[0]
        saved = [path for path in (workdir / "checkpoints").glob("*") if path.name.isdecimal()]
        newest = max([int(path.name) for path in saved if (path / "manifest.json").exists()], default=0)
        done += running
        if not running:  # the run was through: another one
            assert all(code == 0 for code, _, _ in ends), ends
            assert same_trees(state(workdir, steps), state(straight, steps))
            workdir, newest = tmp_path / f"run{done}", 0
    for code, _, err in finish_all(start_several(train(workdir, flags), count), timeout=600):
        assert code == 0, err
    assert same_trees(state(workdir, steps), state(straight, steps))
    assert metrics(workdir) == metrics(straight)


def test_evaluation_and_sampling_in_two_processes_equal_those_in_one(alone, tmp_path):
    options = "--num_samples=60 --guidance=0,1 --num_steps=4 --batch_size=8"
    command = f"evaluate --workdir={alone} {options} --out="
    ends = [run(command + str(tmp_path / "one")), *finish_all(start_several(command + str(tmp_path / "two"), 2))]
    assert [code for code, _, _ in ends] == [0, 0, 0], ends
    one, two = (json.loads((tmp_path / name / "frontier.json").read_text())["rows"] for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        for name, value in a.items():
            close = np.allclose(value, b[name], rtol=1e-5) if isinstance(value, float) else value == b[name]
            assert close, (name, value, b[name])
    draw = f"sample --workdir={alone} --num_steps=4 --mesh=fsdp=2 --out="
    for code, _, err in finish_all(start_several(draw + str(tmp_path / "two.png"), 2)):
        assert code == 0, err
    code, _, err = run(draw.replace("--mesh=fsdp=2 ", "") + str(tmp_path / "one.png"))
    assert code == 0, err
    assert (tmp_path / "one.png").stat().st_size > 0 and (tmp_path / "two.png").stat().st_size > 0
