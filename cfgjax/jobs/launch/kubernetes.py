"""A JobSet of Kubernetes: an indexed Job with a process on each host, which find one another by name.

Exit code 75, preempted and saved, and evicted pods start again without counting; 2, bad usage, ends the set at once;
any other failure starts all hosts again, `--max_restarts` times.
"""

import functools
import math
import re
from pathlib import PurePosixPath

from absl import flags

from cfgjax.base.errors import UsageError, printable
from cfgjax.base.exits import DONE
from cfgjax.base.paths import define_path
from cfgjax.jobs.launch.job import argv_of, check_name, check_python, dns_name
from cfgjax.jobs.launch.programs import output_of
from cfgjax.jobs.launch.quoting import kubernetes_word

GROUP = "workers"


def define_flags(given):
    """Adds the flags of this launcher."""
    text = functools.partial(flags.DEFINE_string, flag_values=given)
    integer = functools.partial(flags.DEFINE_integer, flag_values=given)
    path = functools.partial(define_path, flag_values=given)
    text("name", None, "Name of the JobSet; made from the workdir by default.")
    text("namespace", None, "Namespace; kubectl's own by default.")
    text("image", None, "Container image with cfgjax installed, in whose working folder experiments/ is.")
    text("claim", None, "PersistentVolumeClaim, ReadWriteMany, that holds the workdir.")
    path("mount", "/runs", "Folder in the container at which it is mounted.")
    integer("hosts", None, "Hosts, a process on each.", lower_bound=1)
    integer("gpus_per_host", None, "NVIDIA GPUs of each host.", lower_bound=1)
    integer("tpus_per_host", None, "TPU chips of each host.", lower_bound=1)
    text("tpu_accelerator", None, "GKE's name of the TPU, such as tpu-v5-lite-podslice.")
    text("tpu_topology", None, "GKE's topology of the slice, such as 4x4.")
    integer("port", 12355, "Port of process 0; jax uses the next one.", lower_bound=1, upper_bound=65534)
    integer("grace_seconds", 300, "Seconds between SIGTERM and the end of a pod.", lower_bound=1)
    integer("max_restarts", 3, "How often a failure other than bad usage starts all again.", lower_bound=0)
    path("python", "python", "Interpreter in the image.")


def launch(given, job):
    """Applies the manifest, or prints it."""
    check_flags(given, job)
    import yaml

    text = yaml.safe_dump(manifest(given, job), sort_keys=False, default_flow_style=False, width=120)
    if given.dry_run:
        print(text, end="")
        return DONE
    print(output_of(["kubectl", "apply", "-f", "-"], text))
    return DONE


def check_flags(given, job):
    """Raises UsageError for flags that are missing or do not go together."""
    for name in ("image", "claim", "hosts"):
        if not given[name].value:
            raise UsageError(f"--{name} must be given")
    if not PurePosixPath(job.workdir).is_relative_to(given.mount) or ".." in PurePosixPath(job.workdir).parts:
        raise UsageError(
            f"--workdir={printable(job.workdir)} is not below --mount={given.mount}, and would be lost with its pod"
        )
    check_name(given.name)
    check_python(given.python)
    tpu = {name: given[name].value for name in ("tpus_per_host", "tpu_accelerator", "tpu_topology")}
    if given.gpus_per_host and any(tpu.values()):
        raise UsageError("--gpus_per_host and flags of TPUs are both given; give one")
    if any(tpu.values()) and not all(tpu.values()):
        missing = next(name for name, value in tpu.items() if not value)
        raise UsageError(f"--{missing} must be given with the other flags of TPUs")
    if given.tpu_topology:
        check_topology(given)


def check_topology(given):
    """Raises UsageError unless the topology's chips are those of all hosts."""
    if not re.fullmatch(r"\d{1,6}(x\d{1,6}){1,2}", given.tpu_topology, re.ASCII):
        raise UsageError(f"--tpu_topology={given.tpu_topology}: need numbers with x between them, such as 4x4")
    chips = math.prod(map(int, given.tpu_topology.split("x")))
    if chips != given.hosts * given.tpus_per_host:
        raise UsageError(
            f"--tpu_topology={given.tpu_topology} has {chips} chips, "
            f"{given.hosts} hosts of {given.tpus_per_host} have {given.hosts * given.tpus_per_host}"
        )


def manifest(given, job):
    """The JobSet as nested dicts."""
    name = given.name or dns_name(job.name)
    metadata: dict = {"name": name, **({"namespace": given.namespace} if given.namespace else {})}
    if given.tpu_topology:  # a slice to itself
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


def job_spec(given, name, job):
    """The Job: as many pods as hosts, and what each exit code means."""
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


def pod_spec(given, name, job):
    """The pod of a host."""
    devices = {"nvidia.com/gpu": given.gpus_per_host, "google.com/tpu": given.tpus_per_host}
    resources = {key: str(count) for key, count in devices.items() if count}
    environment = {
        "CFGJAX_COORDINATOR": f"{name}-{GROUP}-0-0.{name}:{given.port}",
        "CFGJAX_NUM_PROCESSES": str(given.hosts),  # the index of a pod is in JOB_COMPLETION_INDEX
        "CFGJAX_GRACE_SECONDS": str(given.grace_seconds),
    }
    mounts = [{"name": "runs", "mountPath": given.mount}]
    volumes: list = [{"name": "runs", "persistentVolumeClaim": {"claimName": given.claim}}]
    if given.gpus_per_host:  # NCCL's shared memory, of which a pod has 64 MB otherwise
        mounts.append({"name": "shared-memory", "mountPath": "/dev/shm"})
        volumes.append({"name": "shared-memory", "emptyDir": {"medium": "Memory"}})
    container: dict = {
        "name": "cfgjax",
        "image": given.image,
        "command": [kubernetes_word(word) for word in argv_of(given.python, job.words)],
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "ports": [{"containerPort": given.port, "protocol": "TCP"}],
        **({"resources": {"limits": resources}} if resources else {}),
        "volumeMounts": mounts,
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
        "volumes": volumes,
    }
