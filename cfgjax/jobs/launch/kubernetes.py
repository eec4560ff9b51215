"""Launches a Kubernetes JobSet: an indexed Job with one process per host, which find each other by DNS name.

Pods that exit with 75 (preempted and saved) or are evicted restart without counting as a failure. Exit code 2 (bad
usage) ends the JobSet at once. Any other failure restarts all hosts, at most `--max_restarts` times.
"""

import functools
import math
import re
from pathlib import PurePosixPath
from typing import Any

from absl import flags

from cfgjax.base.errors import UsageError, printable
from cfgjax.base.exits import DONE
from cfgjax.base.paths import define_path
from cfgjax.base.storage import is_url
from cfgjax.jobs.launch.job import Job, argv_of, check_name, check_python, dns_name
from cfgjax.jobs.launch.programs import output_of
from cfgjax.jobs.launch.quoting import kubernetes_word

GROUP = "workers"


def define_flags(given: flags.FlagValues) -> None:
    """Adds the flags of this launcher."""
    text = functools.partial(flags.DEFINE_string, flag_values=given)
    integer = functools.partial(flags.DEFINE_integer, flag_values=given)
    path = functools.partial(define_path, flag_values=given)
    text("name", None, "Name of the JobSet; by default derived from the workdir.")
    text("namespace", None, "Kubernetes namespace; by default kubectl's.")
    text("image", None, "Container image with cfgjax installed and experiments/ in its working folder; must be given.")
    what = "PersistentVolumeClaim (ReadWriteMany) that contains the workdir; must be given unless that is in a bucket."
    text("claim", None, what)
    path("mount", "/runs", "Folder in the container where the claim is mounted.", local=True)
    integer("hosts", None, "Number of hosts, with one process each; must be given.", lower_bound=1)
    integer("gpus_per_host", None, "NVIDIA GPUs per host; by default none.", lower_bound=1)
    integer("tpus_per_host", None, "TPU chips per host; by default none.", lower_bound=1)
    text("tpu_accelerator", None, "GKE's name of the TPU type, such as tpu-v5-lite-podslice.")
    text("tpu_topology", None, "GKE's topology of the slice, such as 4x4.")
    integer("port", 12355, "Port of process 0; jax uses the next one.", lower_bound=1, upper_bound=65534)
    integer("grace_seconds", 300, "Seconds that a pod has between SIGTERM and SIGKILL, to save.", lower_bound=1)
    integer(
        "max_restarts", 3, "Maximum number of restarts of all hosts after failures other than bad usage.", lower_bound=0
    )
    path("python", "python", "Python interpreter in the image.", local=True)


def launch(given: flags.FlagValues, job: Job) -> int:
    """Applies the manifest, or prints it with --dry_run."""
    check_jobset_flags(given, job)
    import yaml

    text = yaml.safe_dump(manifest(given, job), sort_keys=False, default_flow_style=False, width=120)
    if given.dry_run:
        print(text, end="")
        return DONE
    print(output_of(["kubectl", "apply", "-f", "-"], text))
    return DONE


def check_jobset_flags(given: flags.FlagValues, job: Job) -> None:
    """Raises UsageError for flags that are missing or contradict each other."""
    for name in ("image", "hosts") if is_url(job.workdir) else ("image", "claim", "hosts"):
        if not given[name].value:
            raise UsageError(f"--{name} must be given")
    mounted = PurePosixPath(job.workdir).is_relative_to(given.mount) and ".." not in PurePosixPath(job.workdir).parts
    if not is_url(job.workdir) and not mounted:  # pods reach a bucket without a mount
        raise UsageError(
            f"--workdir={printable(job.workdir)} is not below --mount={given.mount}; it would be lost with its pod"
        )
    check_name(given.name)
    check_python(given.python)
    tpu = {name: given[name].value for name in ("tpus_per_host", "tpu_accelerator", "tpu_topology")}
    if given.gpus_per_host and any(tpu.values()):
        raise UsageError("--gpus_per_host and TPU flags are both given; give one")
    if any(tpu.values()) and not all(tpu.values()):
        missing = next(name for name, value in tpu.items() if not value)
        raise UsageError(f"--{missing} must be given with the other TPU flags")
    if given.tpu_topology:
        check_topology(given)


def check_topology(given: flags.FlagValues) -> None:
    """Raises UsageError unless the topology has as many chips as all hosts together."""
    if not re.fullmatch(r"\d{1,6}(x\d{1,6}){1,2}", given.tpu_topology, re.ASCII):
        raise UsageError(f"--tpu_topology={given.tpu_topology}: need numbers separated by x, such as 4x4")
    chips = math.prod(map(int, given.tpu_topology.split("x")))
    if chips != given.hosts * given.tpus_per_host:
        raise UsageError(
            f"--tpu_topology={given.tpu_topology} has {chips} chips; "
            f"{given.hosts} hosts with {given.tpus_per_host} each have {given.hosts * given.tpus_per_host}"
        )


def manifest(given: flags.FlagValues, job: Job) -> dict[str, Any]:
    """Returns the JobSet as nested dicts."""
    name = given.name or dns_name(job.name)
    metadata: dict[str, Any] = {"name": name, **({"namespace": given.namespace} if given.namespace else {})}
    if given.tpu_topology:  # one JobSet per slice
        metadata["annotations"] = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    rule = {"name": "badUsage", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True, "subdomain": name},
            "failurePolicy": {"maxRestarts": given.max_restarts, "rules": [rule]},
            "replicatedJobs": [{"name": GROUP, "replicas": 1, "template": {"spec": job_spec(given, name, job)}}],
        },
    }


def job_spec(given: flags.FlagValues, name: str, job: Job) -> dict[str, Any]:
    """Returns the Job: one pod per host, and the policy for each exit code."""
    codes = lambda action, code: {"action": action, "onExitCodes": {"operator": "In", "values": [code]}}
    disrupted = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}
    return {
        "completionMode": "Indexed",
        "completions": given.hosts,
        "parallelism": given.hosts,
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [codes("FailJob", 2), codes("Ignore", 75), disrupted]},
        "template": {"spec": pod_spec(given, name, job)},
    }


def pod_spec(given: flags.FlagValues, name: str, job: Job) -> dict[str, Any]:
    """Returns the pod of a host."""
    devices = {"nvidia.com/gpu": given.gpus_per_host, "google.com/tpu": given.tpus_per_host}
    resources = {key: str(count) for key, count in devices.items() if count}
    environment = {
        "CFGJAX_COORDINATOR": f"{name}-{GROUP}-0-0.{name}:{given.port}",
        "CFGJAX_NUM_PROCESSES": str(given.hosts),  # the index of a pod is in JOB_COMPLETION_INDEX
        "CFGJAX_GRACE_SECONDS": str(given.grace_seconds),
    }
    mounts: list[dict[str, str]] = []
    volumes: list[dict[str, Any]] = []
    if given.claim:
        mounts.append({"name": "runs", "mountPath": given.mount})
        volumes.append({"name": "runs", "persistentVolumeClaim": {"claimName": given.claim}})
    if given.gpus_per_host:  # shared memory for NCCL; the default is 64 MB
        mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})
        volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory"}})
    container: dict[str, Any] = {
        "name": "cfgjax",
        "image": given.image,
        "command": [kubernetes_word(word) for word in argv_of(given.python, job.words)],
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "ports": [{"containerPort": given.port, "protocol": "TCP"}],
        **({"resources": {"limits": resources}} if resources else {}),
        **({"volumeMounts": mounts} if mounts else {}),
    }
    slices = {
        "cloud.google.com/gke-tpu-accelerator": given.tpu_accelerator,
        "cloud.google.com/gke-tpu-topology": given.tpu_topology,
    }
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": given.grace_seconds,
        **({"nodeSelector": slices} if given.tpu_topology else {}),
        "containers": [container],
        **({"volumes": volumes} if volumes else {}),
    }
