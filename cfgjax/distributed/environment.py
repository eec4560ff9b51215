"""Finds the rank of this process, the number of processes and the coordinator, from flags or the environment."""

import dataclasses
import os
import re
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cfgjax.base.errors import UsageError
from cfgjax.distributed.devices import TPU_DEVICES

PORT = 8476  # of process 0, if the environment names a host but no port
MAX_PROCESSES = 100_000
MAX_PORT = 65534  # jax uses the next one
ADDRESS = re.compile(r"([\w.-]+|\[[\w:.%]+\]):([0-9]{1,5})")
SLURM = "Slurm"

FoundRank = tuple[str, int | str, int | str]  # (coordinator, number of processes, rank)


@dataclasses.dataclass(frozen=True)
class Place:
    """Rank process_id of num_processes processes, with process 0 at address "host:port". origin: where this was set."""

    address: str
    num_processes: int
    process_id: int
    origin: str

    def __post_init__(self) -> None:
        if not 1 <= self.num_processes <= MAX_PROCESSES:
            raise UsageError(f"{self.origin}: {self.num_processes} processes; need 1 … {MAX_PROCESSES}")
        if not 0 <= self.process_id < self.num_processes:
            given = f"process {self.process_id} of {self.num_processes}"
            raise UsageError(f"{self.origin}: {given}; need a process in 0 … {self.num_processes - 1}")
        found = ADDRESS.fullmatch(self.address)
        if found is None or not 0 < int(found[2]) <= MAX_PORT:
            need = f"need HOST:PORT, an IPv6 address in brackets, port 1 … {MAX_PORT} (jax uses the next one)"
            raise UsageError(f"{self.origin}: coordinator {self.address!r}; {need}")

    @property
    def host(self) -> str:
        """The host of process 0. An IPv6 address has no brackets."""
        return self.address.rpartition(":")[0].strip("[]")

    @property
    def jax_port(self) -> int | None:
        """The port of jax's service in process 0, or None for any free port.

        Tasks of a Slurm array have consecutive ports, so the next port may be another task's.
        """
        return None if self.origin == SLURM else self.port + 1

    def with_port(self, port: int) -> str:
        """Returns HOST:PORT with another port of process 0. An IPv6 address keeps its brackets."""
        return f"{self.address.rpartition(':')[0]}:{port}"

    @property
    def port(self) -> int:
        """The port on which process 0 listens."""
        return int(self.address.rpartition(":")[2])


def find_place(given: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> Place | None:
    """Returns the `Place` of this process, or None if it is the only one.

    given: {"coordinator", "num_processes", "process_id"} from the flags, None for a flag that is not set. Flags take
    precedence over the environment, and earlier ENVIRONMENTS over later ones.
    """
    if any(value is not None for value in given.values()):
        if missing := [f"--{name}" for name, value in given.items() if value is None]:
            raise UsageError(f"{' and '.join(missing)} must be given too: a process needs all three")
        place = Place(given["coordinator"], given["num_processes"], given["process_id"], "the flags")
        return place if place.num_processes > 1 else None
    for origin, find in ENVIRONMENTS.items():
        try:
            if (found := find(environ)) is not None:
                address, count, index = found
                return None if int(count) == 1 else Place(address, int(count), int(index), origin)
        except UsageError:
            raise
        except (KeyError, ValueError) as e:
            reason = f"missing {e.args[0]}" if isinstance(e, KeyError) else str(e)
            raise UsageError(f"{origin}: the environment of this process is incomplete: {reason}") from e
    return None


def explicit(environ: Mapping[str, str]) -> FoundRank | None:
    """Returns (coordinator, count, index) of CFGJAX_*; the index may also come from an indexed Kubernetes job."""
    if not {"CFGJAX_COORDINATOR", "CFGJAX_NUM_PROCESSES", "CFGJAX_PROCESS_ID"} & environ.keys():
        return None
    address = environ["CFGJAX_COORDINATOR"]
    count = int(environ["CFGJAX_NUM_PROCESSES"])
    index = environ.get("CFGJAX_PROCESS_ID", environ.get("JOB_COMPLETION_INDEX"))
    if index is None:
        raise KeyError("CFGJAX_PROCESS_ID or JOB_COMPLETION_INDEX")
    return address, count, index


def slurm(environ: Mapping[str, str]) -> FoundRank | None:
    """Returns (coordinator, count, index) of a task of `srun`. None in a batch script, which is not a task."""
    if "SLURM_STEP_NODELIST" not in environ or "SLURM_PROCID" not in environ:
        return None
    first, job = first_host(environ["SLURM_STEP_NODELIST"]), int(environ["SLURM_JOB_ID"])
    port = (
        61440 + (job + int(environ.get("SLURM_STEP_ID", 0))) % 4094
    )  # differs between jobs on a host; jax uses the next port
    return f"{first}:{port}", environ["SLURM_STEP_NUM_TASKS"], environ["SLURM_PROCID"]


def first_host(nodes: str) -> str:
    """Returns the first host of Slurm's compressed list: node[007-015,20],other → node007."""
    return re.sub(r"\[(\w+).*", r"\1", nodes.partition(",")[0])


def open_mpi(environ: Mapping[str, str]) -> FoundRank | None:
    """Returns (coordinator, count, index) of a process of mpirun. Assumes that process 0 runs on mpirun's host."""
    if "OMPI_COMM_WORLD_SIZE" not in environ:
        return None
    count, index = environ["OMPI_COMM_WORLD_SIZE"], environ["OMPI_COMM_WORLD_RANK"]
    if count == environ.get("OMPI_COMM_WORLD_LOCAL_SIZE"):
        return f"localhost:{PORT}", count, index
    uri = environ.get("OMPI_MCA_orte_hnp_uri", "")
    if not (host := re.search(r"tcp6?://\[?([^,:\]]+)", uri)):
        raise KeyError("mpirun's host; export CFGJAX_COORDINATOR=HOST:PORT of rank 0 to all ranks")
    return f"{host[1]}:{PORT}", count, index


def tpu(environ: Mapping[str, str]) -> FoundRank | None:
    """Returns (coordinator, count, index) of a TPU host, from TPU_WORKER_* variables or the metadata server."""
    worker, hosts = environ.get("TPU_WORKER_ID"), environ.get("TPU_WORKER_HOSTNAMES")
    if worker is None or hosts is None:
        if not any(Path(device).exists() for device in TPU_DEVICES) and "GCE_METADATA_HOST" not in environ:
            return None
        worker = metadata(environ, "agent-worker-number")
        endpoints = metadata(environ, "worker-network-endpoints")
        if not worker or not endpoints:
            return None
        hosts = ",".join(part.split(":")[2] for part in endpoints.split(","))
    names = hosts.split(",")
    slices, own = int(environ.get("MEGASCALE_NUM_SLICES", 1)), int(environ.get("MEGASCALE_SLICE_ID", 0))
    first = names[0]
    if slices > 1:
        first = environ["MEGASCALE_COORDINATOR_ADDRESS"].partition(":")[0]
    return f"{first}:{PORT}", slices * len(names), own * len(names) + int(worker)


def metadata(environ: Mapping[str, str], name: str) -> str | None:
    """Returns an attribute of this virtual machine from Google's metadata server, or None if there is none."""
    host = environ.get("GCE_METADATA_HOST", "metadata.google.internal")
    url = f"http://{host}/computeMetadata/v1/instance/attributes/{name}"
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Metadata-Flavor": "Google"}), timeout=5) as r:
            return r.read().decode()
    except OSError:
        return None


ENVIRONMENTS = {
    "CFGJAX_COORDINATOR": explicit,
    SLURM: slurm,
    "Open MPI": open_mpi,
    "TPU pod": tpu,
}


def local_devices(environ: Mapping[str, str] = os.environ) -> list[int] | None:
    """Returns the indices of the GPUs of this process, or None for all visible ones.

    If a host runs several processes and each sees as many GPUs as there are processes, process i uses GPU i.
    """
    for index, count in (
        ("SLURM_LOCALID", "SLURM_NTASKS_PER_NODE"),
        ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    ):
        visible = [device for device in environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]
        if index in environ and environ.get(count, "1") != "1" and len(visible) == int(environ[count]):
            return [int(environ[index])]
    return None
