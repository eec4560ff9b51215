"""What each environment says of a process, as its makers document the variables."""

import http.server
import threading

import pytest

from cfgjax.base.errors import UsageError
from cfgjax.distributed import environment as place
from cfgjax.distributed.environment import Place, find_place, first_host, local_devices

NO_FLAGS = {"coordinator": None, "num_processes": None, "process_id": None}
SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[007-015,20],other",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "3",
}
NO_ADDRESS = ["", ":", "a:", ":1", "a:0", "a:-1", "a:65535", "a:65536", "a:99999", "a:1e3", "a:٣", "a:b:1", "a b:1"]
NO_ADDRESS += ["http://a:1", "::1:80", "[::1]", "[::1]:", "[]:1", "[::1:80", "a:1\n", "a\n:1", "a:1 ", "/a:1"]
CASES = {
    "CFGJAX_COORDINATOR": (
        {"CFGJAX_COORDINATOR": "a:1234", "CFGJAX_NUM_PROCESSES": "4", "CFGJAX_PROCESS_ID": "3"},
        ("a:1234", 4, 3),
    ),
    "an indexed job": (
        {"CFGJAX_COORDINATOR": "run-workers-0-0.run:8476", "CFGJAX_NUM_PROCESSES": "4", "JOB_COMPLETION_INDEX": "3"},
        ("run-workers-0-0.run:8476", 4, 3),
    ),
    "Slurm": (SLURM, ("gpu007:61517", 4, 3)),
    "Open MPI on one host": (
        {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"},
        ("localhost:8476", 4, 3),
    ),
    "Open MPI": (
        {
            "OMPI_COMM_WORLD_SIZE": "4",
            "OMPI_COMM_WORLD_RANK": "3",
            "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
            "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
        },
        ("10.96.0.1:8476", 4, 3),
    ),
    "TPU": ({"TPU_WORKER_ID": "3", "TPU_WORKER_HOSTNAMES": "a,b,c,d"}, ("a:8476", 4, 3)),
    "TPU slices": (
        {
            "TPU_WORKER_ID": "1",
            "TPU_WORKER_HOSTNAMES": "c,d",
            "MEGASCALE_NUM_SLICES": "2",
            "MEGASCALE_SLICE_ID": "1",
            "MEGASCALE_COORDINATOR_ADDRESS": "a:8080",
        },
        ("a:8476", 4, 3),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_environment_gives_address_number_and_rank(case):
    environ, (address, count, index) = CASES[case]
    found = find_place(NO_FLAGS, environ)
    assert (found.address, found.num_processes, found.process_id) == (address, count, index)


def test_flags_override_the_environment_and_must_be_given_together():
    flags = {"coordinator": "b:1", "num_processes": 2, "process_id": 1}
    assert find_place(flags, SLURM) == Place("b:1", 2, 1, "the flags")
    with pytest.raises(UsageError, match="--process_id must be given too"):
        find_place({**flags, "process_id": None}, {})


def test_a_single_process_has_no_rank():
    alone = [{}, {**SLURM, "SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"}, {"SLURM_JOB_ID": "77"}]
    assert [find_place(NO_FLAGS, environ) for environ in alone] == [None, None, None]
    assert find_place({"coordinator": "b:1", "num_processes": 1, "process_id": 0}, {}) is None


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (("a:1", 2, 2), "process 2 of 2; need a process in 0 … 1"),
        (("a:1", 0, 0), "0 processes; need 1 … 100000"),
        (("a:1", 10**10, 0), "10000000000 processes; need 1 … 100000"),
        (("a", 2, 1), "coordinator 'a'; need HOST:PORT"),
        *(((address, 2, 1), "the flags: coordinator .*; need HOST:PORT") for address in NO_ADDRESS),
    ],
)
def test_invalid_rank_flags_are_reported(flags, told):
    with pytest.raises(UsageError, match=told):
        find_place(dict(zip(NO_FLAGS, flags, strict=True)), {})


@pytest.mark.parametrize(
    ("address", "host", "port", "jax"),
    [
        ("a:1", "a", 1, "a:2"),
        ("a-b.c_d:65534", "a-b.c_d", 65534, "a-b.c_d:65535"),
        ("127.0.0.1:80", "127.0.0.1", 80, "127.0.0.1:81"),
        ("[fe80::1%eth0]:80", "fe80::1%eth0", 80, "[fe80::1%eth0]:81"),
    ],
)
def test_an_address_has_a_host_and_a_port(address, host, port, jax):
    found = Place(address, 2, 1, "a test")
    assert (found.host, found.port, found.with_port(found.jax_port)) == (host, port, jax)


@pytest.mark.parametrize(
    ("variables", "told"),
    [
        ({"CFGJAX_NUM_PROCESSES": "-1"}, "-1 processes; need 1"),
        ({"CFGJAX_NUM_PROCESSES": "two"}, "CFGJAX_COORDINATOR: .* is incomplete: .*'two'"),
        ({"CFGJAX_PROCESS_ID": "2"}, "process 2 of 2"),
        ({"CFGJAX_PROCESS_ID": "-1"}, "process -1 of 2"),
        ({"CFGJAX_COORDINATOR": None}, "is incomplete: missing CFGJAX_COORDINATOR"),
        ({"CFGJAX_COORDINATOR": None, "CFGJAX_PROCESS_ID": None}, "is incomplete: missing CFGJAX_COORDINATOR"),
        ({"CFGJAX_COORDINATOR": ""}, "coordinator ''; need HOST:PORT"),
    ],
)
def test_invalid_variables_are_errors_and_not_taken_for_a_single_process(variables, told):
    whole = {"CFGJAX_COORDINATOR": "a:1", "CFGJAX_NUM_PROCESSES": "2", "CFGJAX_PROCESS_ID": "1"}
    environ = {name: value for name, value in (whole | variables).items() if value is not None}
    with pytest.raises(UsageError, match=told):
        find_place(NO_FLAGS, environ)


def test_an_incomplete_environment_is_reported():
    with pytest.raises(UsageError, match="CFGJAX_COORDINATOR: .* is incomplete: .*NUM_PROCESSES"):
        find_place(NO_FLAGS, {"CFGJAX_COORDINATOR": "a:1"})
    mpi = {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_RANK": "3", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
    with pytest.raises(UsageError, match="export CFGJAX_COORDINATOR=HOST:PORT"):
        find_place(NO_FLAGS, mpi)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("a", "a"), ("a,b", "a"), ("n[007-015],b", "n007"), ("n[3,5-9]", "n3"), ("n-1.x[02-04]", "n-1.x02")],
)
def test_the_first_host_of_slurms_lists(nodes, first):
    assert first_host(nodes) == first


def test_a_tpu_vm_reads_its_rank_from_the_metadata_server():
    told = {"agent-worker-number": "1", "worker-network-endpoints": "x:8470:10.0.0.2,x:8470:10.0.0.3"}

    class Metadata(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            assert self.headers["Metadata-Flavor"] == "Google"
            self.send_response(200)
            self.end_headers()
            self.wfile.write(told[self.path.rpartition("/")[2]].encode())

        def log_message(self, *args):
            pass

    with http.server.HTTPServer(("localhost", 0), Metadata) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        found = place.tpu({"GCE_METADATA_HOST": f"localhost:{server.server_port}"})
        server.shutdown()
    assert found == ("10.0.0.2:8476", 2, 1)


def test_processes_that_see_all_gpus_of_their_host_use_one_each():
    tasks = {"SLURM_LOCALID": "2", "SLURM_NTASKS_PER_NODE": "4"}
    assert local_devices({**tasks, "CUDA_VISIBLE_DEVICES": "0,1,2,3"}) == [2]
    assert local_devices({**tasks, "CUDA_VISIBLE_DEVICES": "2"}) is None  # bound to its own
    assert local_devices({"SLURM_LOCALID": "0", "SLURM_NTASKS_PER_NODE": "1", "CUDA_VISIBLE_DEVICES": "0,1"}) is None
