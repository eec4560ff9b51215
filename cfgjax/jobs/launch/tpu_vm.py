"""Creates a slice of Cloud TPU VMs as a queued resource, copies the code to it and runs a command on every worker.

All actions call gcloud. The command runs in the background on each worker and outlives the ssh session. If it is
preempted and saves, it is restarted on the same worker.
"""

import functools
from collections.abc import Sequence
from pathlib import Path

from absl import flags

from cfgjax.base.errors import UsageError, choose
from cfgjax.base.exits import DONE
from cfgjax.base.paths import define_path
from cfgjax.jobs.launch.job import Job, argv_of, check_name, check_python, dns_name, shell_lines
from cfgjax.jobs.launch.programs import output_of
from cfgjax.jobs.launch.quoting import check_shell_line, here_document

SOURCE = ("cfgjax", "experiments", "pyproject.toml", "setup.py", "README.md", "LICENSE")
SETUP = "sudo apt-get install -y -q python3.11-venv && python3.11 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]'"
GRACE_SECONDS = 30  # of a spot VM


def define_flags(given: flags.FlagValues) -> None:
    """Adds the flags of this launcher."""
    text = functools.partial(flags.DEFINE_string, flag_values=given)
    text("action", "run", f"What to do: {', '.join(ACTIONS)}.")
    text("name", None, "Name of the queued resource; by default derived from the workdir.")
    text("zone", None, "Google Cloud zone, such as us-central1-a; must be given.")
    text("project", None, "Google Cloud project; by default gcloud's.")
    text("accelerator_type", None, "For create: TPU type, such as v5litepod-64.")
    text("runtime_version", None, "For create: TPU software, such as v2-alpha-tpuv5-lite.")
    what = "Number of TPU slices, connected by the data-centre network."
    flags.DEFINE_integer("node_count", 1, what, lower_bound=1, flag_values=given)
    flags.DEFINE_bool(
        "spot", False, "For create: a spot VM, which is cheaper and may be preempted at any time.", flag_values=given
    )
    text("setup", SETUP, "For run: shell line that installs cfgjax in the copied folder.")
    what = "For run: Python interpreter on the workers."
    define_path("python", ".venv/bin/python", what, flag_values=given, local=True)


def launch(given: flags.FlagValues, job: Job) -> int:
    """Calls gcloud for the requested action, or prints the calls with --dry_run."""
    action = choose("action", given.action, ACTIONS)
    if not given.zone:
        raise UsageError("--zone must be given")
    check_name(given.name)
    check_python(given.python)
    check_shell_line("setup", given.setup)
    name = given.name or dns_name(job.name)
    commands = action(given, name, job)
    for argv in commands:
        if given.dry_run:
            print(shell_lines(argv))
        else:
            output_of(argv, shown=True)
    return DONE


def create(given: flags.FlagValues, name: str, job: Job) -> list[list[str]]:
    """Returns the gcloud calls that request the slice."""
    for flag in ("accelerator_type", "runtime_version"):
        if not given[flag].value:
            raise UsageError(f"--{flag} must be given to create a slice")
    nodes = [f"--node-count={given.node_count}"] if given.node_count > 1 else [f"--node-id={name}"]
    kind = [f"--accelerator-type={given.accelerator_type}", f"--runtime-version={given.runtime_version}"]
    return [gcloud(given, "queued-resources", "create", name, *nodes, *kind, *(["--spot"] if given.spot else []))]


def copy(given: flags.FlagValues, name: str, job: Job) -> list[list[str]]:
    """Returns the gcloud calls that copy the source in this folder to every worker."""
    if absent := [name for name in SOURCE if not Path(name).exists()]:
        raise UsageError(f"there is no {absent[0]} here; run --action=copy in the source folder of cfgjax")
    sent = gcloud(given, *of_slice(given, "scp"), "--recurse", *SOURCE, f"{name}:cfgjax/", *workers(given))
    return [ssh(given, name, "mkdir -p cfgjax"), sent]


def run_job(given: flags.FlagValues, name: str, job: Job) -> list[list[str]]:
    """Returns the gcloud calls that install cfgjax and start the command on every worker."""
    return [ssh(given, name, start_text(given.setup, argv_of(given.python, job.words)))]


def stop(given: flags.FlagValues, name: str, job: Job) -> list[list[str]]:
    """Returns the gcloud calls that make the command save and exit."""
    return [ssh(given, name, "kill -TERM $(cat cfgjax/job.pid)")]


def status(given: flags.FlagValues, name: str, job: Job) -> list[list[str]]:
    """Returns the gcloud calls that print the state of the queued resource."""
    return [gcloud(given, "queued-resources", "describe", name, "--format=value(state.state)")]


def logs(given: flags.FlagValues, name: str, job: Job) -> list[list[str]]:
    """Returns the gcloud calls that print the last log lines of every worker."""
    return [ssh(given, name, "tail -n 20 cfgjax/job.log")]


def delete(given: flags.FlagValues, name: str, job: Job) -> list[list[str]]:
    """Returns the gcloud calls that delete the slice."""
    return [gcloud(given, "queued-resources", "delete", name, "--force")]


ACTIONS = dict(create=create, copy=copy, run=run_job, stop=stop, status=status, logs=logs, delete=delete)


def gcloud(given: flags.FlagValues, *words: str) -> list[str]:
    """Returns the words of a gcloud call."""
    where = [f"--zone={given.zone}", *([f"--project={given.project}"] if given.project else [])]
    return ["gcloud", "compute", "tpus", *words, *where]


def of_slice(given: flags.FlagValues, verb: str) -> tuple[str, str]:
    """Returns the gcloud command group for the workers of one or several slices, and the verb."""
    return ("tpu-vm" if given.node_count == 1 else "queued-resources", verb)


def workers(given: flags.FlagValues) -> list[str]:
    """Returns the flags that select every worker."""
    return ["--worker=all", *(["--node=all"] if given.node_count > 1 else [])]


def ssh(given: flags.FlagValues, name: str, text: str) -> list[str]:
    """Returns the gcloud call that runs a shell text on every worker."""
    return gcloud(given, *of_slice(given, "ssh"), name, *workers(given), f"--command={text}")


def start_text(setup: str, argv: Sequence[str]) -> str:
    """Returns the worker's script, which installs cfgjax, then writes and starts the job unless one is running."""
    script = [
        "#!/usr/bin/env bash",
        "# 75 means preempted and saved: restart, unless stopped by `kill -TERM $(cat job.pid)`",
        f"export CFGJAX_GRACE_SECONDS={GRACE_SECONDS}",
        "stopped= code=75",
        'trap "stopped=1; kill -TERM \\$child" TERM',
        'while [ "$code" = 75 ] && [ -z "$stopped" ]; do',
        f"    {shell_lines(argv, '    ')} &",
        "    child=$!",
        '    wait "$child"; code=$?',
        '    if [ -n "$stopped" ]; then wait "$child"; code=$?; fi',
        "done",
        'echo "ended with exit code $code"',
        "rm job.pid",
        'exit "$code"',
    ]
    return "\n".join(
        [
            "set -e; cd cfgjax",
            'if [ -e job.pid ] && kill -0 "$(cat job.pid)" 2> /dev/null; then echo "already running"; exit 1; fi',
            setup,
            here_document("cat > job.sh", "\n".join([*script, ""])),
            "nohup bash job.sh >> job.log 2>&1 < /dev/null &",
            "echo $! > job.pid",
        ]
    )
