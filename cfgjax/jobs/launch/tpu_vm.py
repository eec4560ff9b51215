"""A slice of Cloud TPU VMs, as a queued resource: created, filled, and the command started on every worker.

Slices are made, watched and deleted by gcloud. The command runs in the background of each worker and outlives ssh; one
that was preempted and saved is started again where it was.
"""

import functools
from pathlib import Path

from absl import flags

from cfgjax.base.errors import UsageError, choose
from cfgjax.base.exits import DONE
from cfgjax.base.paths import define_path
from cfgjax.jobs.launch.job import argv_of, check_name, check_python, dns_name, shell_lines
from cfgjax.jobs.launch.programs import output_of
from cfgjax.jobs.launch.quoting import check_shell_line, here_document

SOURCE = ("cfgjax", "experiments", "pyproject.toml", "setup.py", "README.md", "LICENSE")
SETUP = "sudo apt-get install -y -q python3.11-venv && python3.11 -m venv .venv && .venv/bin/pip install -q -e '.[tpu]'"
GRACE_SECONDS = 30  # that a spot VM has


def define_flags(given):
    """Adds the flags of this launcher."""
    text = functools.partial(flags.DEFINE_string, flag_values=given)
    text("action", "run", f"What to do: {', '.join(ACTIONS)}.")
    text("name", None, "Name of the queued resource; made from the workdir by default.")
    text("zone", None, "Zone.")
    text("project", None, "Project; gcloud's own by default.")
    text("accelerator_type", None, "For create: such as v5litepod-64.")
    text("runtime_version", None, "For create: such as v2-alpha-tpuv5-lite.")
    what = "Slices, joined over the data-centre network."
    flags.DEFINE_integer("node_count", 1, what, lower_bound=1, flag_values=given)
    flags.DEFINE_bool("spot", False, "For create: cheaper, and preempted at any time.", flag_values=given)
    text("setup", SETUP, "For run: what installs cfgjax, in the folder that copy made.")
    define_path("python", ".venv/bin/python", "For run: interpreter on the workers.", flag_values=given)


def launch(given, job):
    """Calls gcloud for one of the ACTIONS."""
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


def create(given, name, job):
    """The calls that ask for the slice."""
    for flag in ("accelerator_type", "runtime_version"):
        if not given[flag].value:
            raise UsageError(f"--{flag} must be given to create a slice")
    nodes = [f"--node-count={given.node_count}"] if given.node_count > 1 else [f"--node-id={name}"]
    kind = [f"--accelerator-type={given.accelerator_type}", f"--runtime-version={given.runtime_version}"]
    return [gcloud(given, "queued-resources", "create", name, *nodes, *kind, *(["--spot"] if given.spot else []))]


def copy(given, name, job):
    """The calls that put the source, from this folder, on every worker."""
    if absent := [name for name in SOURCE if not Path(name).exists()]:
        raise UsageError(
            f"there is no {absent[0]} here; --action=copy sends the source of cfgjax, run it in its folder"
        )
    sent = gcloud(given, *of_slice(given, "scp"), "--recurse", *SOURCE, f"{name}:cfgjax/", *workers(given))
    return [ssh(given, name, "mkdir -p cfgjax"), sent]


def run(given, name, job):
    """The calls that install and start the command on every worker."""
    return [ssh(given, name, start_text(given.setup, argv_of(given.python, job.words)))]


def stop(given, name, job):
    """The calls that make the command save and end."""
    return [ssh(given, name, "kill -TERM $(cat cfgjax/job.pid)")]


def status(given, name, job):
    """The calls that say how the queued resource stands."""
    return [gcloud(given, "queued-resources", "describe", name, "--format=value(state.state)")]


def logs(given, name, job):
    """The calls that show the last lines of every worker."""
    return [ssh(given, name, "tail -n 20 cfgjax/job.log")]


def delete(given, name, job):
    """The calls that give the slice back."""
    return [gcloud(given, "queued-resources", "delete", name, "--force")]


ACTIONS = dict(create=create, copy=copy, run=run, stop=stop, status=status, logs=logs, delete=delete)


def gcloud(given, *words):
    """The words of a call of gcloud."""
    where = [f"--zone={given.zone}", *([f"--project={given.project}"] if given.project else [])]
    return ["gcloud", "compute", "tpus", *words, *where]


def of_slice(given, verb):
    """The group of gcloud that reaches the workers, of one slice or of several."""
    return ("tpu-vm" if given.node_count == 1 else "queued-resources", verb)


def workers(given):
    """The flags that mean every worker."""
    return ["--worker=all", *(["--node=all"] if given.node_count > 1 else [])]


def ssh(given, name, text):
    """The words of a call that runs text on every worker."""
    return gcloud(given, *of_slice(given, "ssh"), name, *workers(given), f"--command={text}")


def start_text(setup, argv):
    """Returns the worker's script: it installs cfgjax, then writes and starts the job, unless one is running."""
    script = [
        "#!/usr/bin/env bash",
        "# 75 is preempted and saved: start it again, unless it was stopped by `kill -TERM $(cat job.pid)`",
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
            'if [ -e job.pid ] && kill -0 "$(cat job.pid)" 2> /dev/null; then echo "a job runs already"; exit 1; fi',
            setup,
            here_document("cat > job.sh", "\n".join([*script, ""])),
            "nohup bash job.sh >> job.log 2>&1 < /dev/null &",
            "echo $! > job.pid",
        ]
    )
