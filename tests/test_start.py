"""The first seconds of a command: signals, environment variables, devices, and what it reports before long work."""

import logging
import os
import signal
import subprocess
import sys

import jax
import pytest
from command import ROOT, finish, start
from runs import StopAfter
from tiny import EXPERIMENTS, mixture_config

from cfgjax.base import environment_variables as environment
from cfgjax.base import exits, progress
from cfgjax.base.errors import UsageError
from cfgjax.cli import convert, preflight
from cfgjax.cli import main as cli
from cfgjax.distributed import devices
from cfgjax.training import loop

CONFIG = f"--config={EXPERIMENTS / 'mixture.py'}"


class Reached(Exception):
    """Raised at the point where jax would be imported."""


@pytest.mark.parametrize(
    "words",
    [
        ["train", CONFIG, "--workdir={}/run"],
        ["sample", "--workdir={}/run", "--out={}/grid.png"],
        ["sample", "--base={}/run", "--upsampler={}/run", "--out={}/grid.png"],
        ["evaluate", "--workdir={}/run"],
        ["evaluate", "--workdir={}/run", "--bits_per_dim"],
        ["evaluate", CONFIG, "--make_reference", "--out={}/reference.npz"],
        ["convert", "openai-adm", "--preset=x", f"--checkpoint={sys.executable}", "--out={}/out"],
        ["convert", "diffusers", f"--checkpoint={sys.executable}", "--out={}/out"],
        ["convert", "to-openai-adm", "--workdir={}/run", "--out={}/x.npz"],
    ],
    ids=lambda words: " ".join(words[:2]).replace("{}/", ""),
)
def test_a_command_reports_what_it_does_before_jax_is_imported(words, tmp_path, monkeypatch, caplog):
    def reached():
        raise Reached

    monkeypatch.setattr(devices, "import_jax", reached)
    monkeypatch.setattr(convert, "LARGE_BYTES", 0)
    with caplog.at_level(logging.INFO, "cfgjax.progress"), pytest.raises(Reached):
        cli.run_command([word.format(tmp_path) for word in words])
    assert len(caplog.messages) == 1
    assert not list(tmp_path.iterdir())


def test_preflight_reports_what_it_does_before_it_compiles(monkeypatch, caplog):
    monkeypatch.setattr(preflight, "use_virtual_devices", lambda count: None)
    monkeypatch.setattr(
        "cfgjax.jobs.preflight.step_figures.Program", lambda config, devices: exec("raise KeyboardInterrupt")
    )
    with caplog.at_level(logging.INFO, "cfgjax.progress"), pytest.raises(KeyboardInterrupt):
        cli.run_command(["preflight", CONFIG, "--devices=8"])
    assert "on 8 devices" in caplog.messages[0] and len(caplog.messages) == 2


def test_code_before_the_first_line_does_not_import_jax():
    modules = ["cli.main", "evaluation.report.comparison", "evaluation.report.by_row", "data.prepare"]
    modules += ["jobs.sweep.pool", "base.inception_weights"]
    code = f"import sys, {', '.join(f'cfgjax.{module}' for module in modules)}; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_only_the_first_process_prints(monkeypatch, capsys):
    monkeypatch.setattr(devices, "import_jax", lambda: exec("raise Reached", {"Reached": Reached}))
    monkeypatch.setattr(progress.log, "propagate", True)
    place = ["--coordinator=localhost:1", "--num_processes=2"]
    for number, lines in [(0, 1), (1, 0)]:
        progress.show_progress(sys.stdout)
        with pytest.raises(Reached):
            cli.run_command(["train", CONFIG, "--workdir=x", *place, f"--process_id={number}"])
        assert len(capsys.readouterr().out.splitlines()) == lines
    progress.show_progress(None)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("number", "stage"),
    [
        (signal.SIGTERM, "cfgjax.cli.main"),
        (signal.SIGINT, "cfgjax.cli.train"),
        (signal.SIGUSR1, "cfgjax.runs.config"),
        (signal.SIGHUP, "cfgjax.runs.settings"),
        (signal.SIGUSR2, "jax"),
        (signal.SIGINT, "cfgjax.distributed.devices"),
        (signal.SIGTERM, "jax.numpy"),
        (signal.SIGTERM, "cfgjax.training.run"),
    ],
)
def test_a_signal_during_imports_is_a_preemption(number, stage, tmp_path):
    code = f"""
import os, runpy, sys
class Signalled:
    def find_spec(self, name, path=None, target=None):
        if name == "{stage}":
            sys.meta_path.remove(self)
            os.kill(os.getpid(), {int(number)})
sys.meta_path.insert(0, Signalled())
sys.argv[1:] = ["train", "{CONFIG}", "--workdir={tmp_path}/run"]
runpy.run_module("cfgjax", run_name="__main__")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == exits.PREEMPTED, done.stderr
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if number.name in line]
    assert "again" in line and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_stopped_before_it_begins_leaves_no_workdir(tmp_path):
    assert not loop.train_until_stopped(mixture_config(), tmp_path / "run", StopAfter(1)).done
    assert not list(tmp_path.iterdir())


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("command", "number"),
    [
        ("sample --workdir=x", signal.SIGTERM),
        ("prepare folder x y", signal.SIGHUP),
        ("evaluate --workdir=x", signal.SIGUSR2),
    ],
)
def test_a_stop_signal_ends_a_command_as_preempted_and_removes_temporary_files(command, number, tmp_path):
    program = f"""
import os, signal, sys, tempfile
from cfgjax import __main__
from cfgjax.cli import main as cli
from cfgjax.base.files import writing
def stopped(argv):
    with writing({str(tmp_path / "file")!r}) as new:
        new.write_text("half")
        os.kill(os.getpid(), {int(number)})
        for _ in range(1000):
            pass
cli.COMMANDS[{command.split()[0]!r}] = stopped
sys.argv[1:] = {command.split()!r}
__main__.main()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (exits.PREEMPTED, 1)
    assert number.name in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.e2e
def test_a_stop_signal_in_a_destructor_is_not_lost():
    program = """
import os, signal, sys, time
from cfgjax import __main__
from cfgjax.cli import main as cli
class Ends:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            pass
def runs(argv):
    Ends()
    time.sleep(20)
cli.COMMANDS["compare"] = runs
sys.argv[1:] = ["compare"]
__main__.main()
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (exits.PREEMPTED, 1), done.stderr
    assert "SIGTERM" in done.stderr


@pytest.mark.e2e
def test_a_signal_ends_the_process_during_native_code():
    program = """
import re, sys
from cfgjax import __main__
from cfgjax.base import exits
from cfgjax.cli import main as cli
exits.STUCK_SECONDS = 0.1
def stuck(argv):
    print("ready", flush=True)
    re.match("(a+)+b", "a" * 40)  # for hours
cli.COMMANDS["compare"] = stuck
sys.argv[1:] = ["compare"]
__main__.main()
"""
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    process.send_signal(signal.SIGTERM)
    try:
        code = process.wait(timeout=20)
    finally:
        process.kill()
        process.communicate()
    assert code in (exits.PREEMPTED, -signal.SIGKILL)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("CFGJAX_GRACE_SECONDS", value) for value in ("5m", "", "-1", "nan", "1,5")],
        *[("JAX_NUM_CPU_DEVICES", value) for value in ("abc", "", "2.5", "0", "-3", "²", "1025", "9" * 30)],
        *[(name, value) for name in environment.INTEGERS for value in ("x", "1.5", "-2", "1" * 5000)],
        *[
            ("XLA_FLAGS", f"--a --xla_force_host_platform_device_count{value}")
            for value in ("", "=", "=abc", "=0", "=2.5", "=1000000")
        ],
        *[(name, "fast") for name in environment.DURATIONS],
        *[(name, "maybe") for name in environment.SWITCHES],
        *[(name, " ") for name in environment.PATHS],
    ],
)
def test_an_environment_variable_of_the_wrong_kind_is_named(name, value):
    with pytest.raises(UsageError, match=rf"{name} is {value!r}"):
        environment.check_environment({name: value})


def test_values_that_schedulers_and_jax_accept_are_accepted():
    environment.check_environment({})
    environment.check_environment(
        {
            "CFGJAX_GRACE_SECONDS": "300.5",
            "CFGJAX_INCEPTION": "",
            "JAX_NUM_CPU_DEVICES": "8",
            "JAX_ENABLE_X64": "False",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
            "XLA_FLAGS": "--a=b --xla_force_host_platform_device_count=8 --c",
            "SLURM_PROCID": "0",
            "SLURM_NTASKS_PER_NODE": "4",
        }
    )


@pytest.mark.e2e
@pytest.mark.parametrize("backend", ["foo", "module://not_installed"])
def test_figures_do_not_depend_on_the_matplotlib_backend(backend):
    draws = "cli.COMMANDS['compare'] = lambda argv: __import__('matplotlib.pyplot').pyplot.figure() and 0"
    program = f"import sys; from cfgjax.cli import main as cli; {draws}; sys.argv[1:] = ['compare']; cli.main()"
    environ = {**os.environ, "MPLBACKEND": backend}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_commands_check_the_environment_and_help_does_not(monkeypatch, capsys):
    monkeypatch.setenv("CFGJAX_GRACE_SECONDS", "5m")
    with pytest.raises(UsageError, match="CFGJAX_GRACE_SECONDS is '5m'"):
        cli.run_command(["train", CONFIG, "--workdir=x"])
    assert cli.run_command(["train", "--help"]) == 0


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("variable", "name"), [("JAX_PLATFORMS", "cuad"), ("JAX_PLATFORMS", "cpu,cuad"), ("JAX_PLATFORM_NAME", "gpu")]
)
def test_a_platform_that_cannot_start_is_named_with_the_available_ones(variable, name):
    code = """
from cfgjax.distributed import devices
devices.import_jax()
try:
    devices.open_devices()
except devices.UsageError as e:
    print(e)
"""
    environ = {**os.environ, "JAX_PLATFORMS": "", variable: name}
    ran = subprocess.run([sys.executable, "-c", code], env=environ, cwd=ROOT, capture_output=True, text=True)
    assert ran.stdout.count("\n") == 1, ran.stderr
    assert f"{variable}={name!r}" in ran.stdout and "available here: cpu" in ran.stdout


@pytest.mark.e2e
def test_a_platform_that_cannot_start_is_bad_usage(tmp_path):
    words = f"train {CONFIG} --workdir={tmp_path}/run"
    code, _, err = finish(start(words, environ={"JAX_PLATFORMS": "cuad"}))
    assert (code, err.count("\n")) == (exits.BAD_USAGE, 1), err
    assert not list(tmp_path.iterdir())


@pytest.mark.e2e
def test_a_variable_that_jax_refuses_is_reported_on_one_line(tmp_path):
    words = f"train {CONFIG} --workdir={tmp_path}/run"
    code, _, err = finish(start(words, environ={"JAX_DEFAULT_MATMUL_PRECISION": "abc"}))
    assert (code, err.count("\n")) == (exits.BAD_USAGE, 1)
    assert "jax_default_matmul_precision" in err


@pytest.mark.parametrize("accelerator", [*devices.PACKAGES, None])
@pytest.mark.parametrize("requested", [None, "", "cpu", "cpu,cuda"])
def test_an_unused_accelerator_gives_one_warning(accelerator, requested, monkeypatch, caplog):
    monkeypatch.setattr(devices, "visible_accelerator", lambda: accelerator)
    before = jax.config.values["jax_platforms"]
    jax.config.update("jax_platforms", requested)
    try:
        with caplog.at_level(logging.WARNING):
            devices.open_devices()
    finally:
        jax.config.update("jax_platforms", before)
    warned = [message for message in caplog.messages if "pip install" in message]
    assert len(caplog.messages) == len(warned) == (accelerator is not None and not requested)
    assert all(accelerator in message for message in warned)


def test_an_accelerator_is_visible_by_its_device_files(tmp_path, monkeypatch):
    gpu, tpu = tmp_path / "nvidia0", tmp_path / "accel0"
    monkeypatch.setattr(devices, "NVIDIA_DEVICES", (str(gpu),))
    monkeypatch.setattr(devices, "TPU_DEVICES", (str(tpu),))
    assert devices.visible_accelerator({}) is None
    tpu.touch()
    assert devices.visible_accelerator({}) == "a TPU"
    gpu.touch()
    assert devices.visible_accelerator({}) == "an NVIDIA GPU"
    assert devices.visible_accelerator({"CUDA_VISIBLE_DEVICES": "0"}) == "an NVIDIA GPU"
    for hidden in ("", "-1"):
        assert devices.visible_accelerator({"CUDA_VISIBLE_DEVICES": hidden}) == "a TPU"
