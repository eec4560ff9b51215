"""The roll call, over real sockets, a thread for each process."""

import concurrent.futures
import os
import socket
import time

import pytest
from command import free_port

from cfgjax.base.errors import UsageError
from cfgjax.distributed.environment import Place
from cfgjax.distributed.rendezvous import call_the_roll

FACTS = {"config.train.batch_size": "64", "jax": "0.10.2"}


def meet(*called, seconds=5.0, address=None):
    """The meetings, or errors, of processes called as (num_processes, process_id, facts)."""
    address = address or f"localhost:{free_port()}"
    with concurrent.futures.ThreadPoolExecutor() as threads:
        place = lambda n, i: Place(address, n, i, "a test")
        calls = [threads.submit(call_the_roll, place(n, i), facts, seconds) for n, i, facts in called]
        return [call.exception() or call.result() for call in calls]


def close(meetings):
    for meeting in meetings:
        for link in meeting.links.values():
            link.close()
        if meeting.reserved is not None:
            os.close(meeting.reserved)


def test_all_processes_receive_all_facts_and_one_address_for_jax():
    meetings = meet(*[(4, i, FACTS) for i in range(4)])
    assert [meeting.own.number for meeting in meetings] == [0, 1, 2, 3]
    assert all(meeting.members == meetings[0].members for meeting in meetings)
    assert len({meeting.jax_address for meeting in meetings}) == 1
    assert set(meetings[0].links) == {1, 2, 3}
    assert all(set(meeting.links) == {0} for meeting in meetings[1:])
    meetings[0].links[2].send({"word": [1, "é"]})
    assert meetings[2].links[0].receive() == {"word": [1, "é"]}
    close(meetings)


def test_processes_with_different_configs_or_code_end_with_the_difference():
    other = {**FACTS, "config.train.batch_size": "32"}
    for error in meet((3, 0, FACTS), (3, 1, FACTS), (3, 2, other)):
        assert isinstance(error, UsageError)
        assert "process 2 on" in str(error)
        assert "config.train.batch_size is 32, in process 0 it is 64" in str(error)


def test_a_process_started_with_another_num_processes_is_named():
    for error in meet((2, 0, FACTS), (3, 1, FACTS)):
        assert "process 1 on" in str(error) and "has num_processes 3, process 0 has 2" in str(error)


def test_two_processes_of_equal_rank_are_reported():
    errors = meet((3, 0, FACTS), (3, 1, FACTS), (3, 1, FACTS))
    assert all("are both process 1" in str(error) for error in errors)


def test_a_process_that_does_not_connect_is_named_in_bounded_time():
    start = time.monotonic()
    for error in meet((4, 0, FACTS), (4, 2, FACTS), seconds=1.0):
        assert "of 4 processes 1, 3 did not connect to localhost:" in str(error)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("host", ["localhost", "no-such-host.invalid"])
def test_an_unreachable_process_0_is_an_error_with_its_address(host):
    address, start = f"{host}:{free_port()}", time.monotonic()
    (error,) = meet((2, 1, FACTS), seconds=1.0, address=address)
    assert f"process 1 on {socket.gethostname()} cannot reach process 0 at {address} within 1 s" in str(error)
    assert time.monotonic() - start < 10


def test_a_port_in_use_is_reported():
    with socket.create_server(("", 0)) as server:
        (error,) = meet((2, 0, FACTS), address=f"localhost:{server.getsockname()[1]}")
    assert "process 0 cannot listen on port" in str(error)


@pytest.mark.parametrize("host", ["", "127.0.0.1", "::1", "::"])
def test_a_port_of_jax_in_use_is_reported_to_all_at_once(host):
    port, begun = free_port(), time.monotonic()
    with socket.create_server((host, port + 1), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
        errors = meet((2, 0, FACTS), (2, 1, FACTS), address=f"localhost:{port}")
    for error in errors:
        assert isinstance(error, UsageError)
        assert f"process 0 cannot listen on port {port + 1}, which jax needs: Address already in use" in str(error)
    assert time.monotonic() - begun < 3


def test_the_port_of_jax_is_reserved_until_it_is_used():
    meetings = meet((2, 0, FACTS), (2, 1, FACTS))
    address = meetings[0].jax_address
    for host in ("", "127.0.0.1"):
        with pytest.raises(OSError, match="Address already in use"):
            socket.create_server((host, int(address.rpartition(":")[2])))
    close(meetings)


def test_connections_of_a_run_that_has_ended_do_not_hold_the_port_of_jax():
    port = free_port()
    with socket.create_server(("", port + 1)) as server:
        client = socket.create_connection(("localhost", port + 1))
        server.accept()[0].close()  # the side that closes first keeps the connection for a minute
        client.close()
    meetings = meet((2, 0, FACTS), (2, 1, FACTS), address=f"localhost:{port}")
    for host in ("", "127.0.0.1"):
        with pytest.raises(OSError, match="Address already in use"):
            socket.create_server((host, port + 1))
    close(meetings)


def test_tasks_of_slurm_do_not_use_the_same_ports():
    port = free_port()
    with socket.create_server(("", port + 1)), concurrent.futures.ThreadPoolExecutor() as threads:
        place = lambda i: Place(f"localhost:{port}", 2, i, "Slurm")
        meetings = list(threads.map(lambda i: call_the_roll(place(i), FACTS, 5.0), range(2)))
    assert meetings[0].jax_address == meetings[1].jax_address != f"localhost:{port + 1}"
    close(meetings)


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="there is no IPv6 here")
def test_an_address_of_ipv6_keeps_its_brackets():
    port = free_port()
    meetings = meet((2, 0, FACTS), (2, 1, FACTS), address=f"[::1]:{port}")
    assert [meeting.jax_address for meeting in meetings] == 2 * [f"[::1]:{port + 1}"]
    close(meetings)


def test_a_connection_from_another_program_is_rejected():
    address = f"localhost:{free_port()}"
    with concurrent.futures.ThreadPoolExecutor() as threads:
        first = threads.submit(call_the_roll, Place(address, 2, 0, "a test"), FACTS, 10.0)
        while True:
            try:
                stranger = socket.create_connection(("localhost", int(address.rpartition(":")[2])))
                break
            except ConnectionRefusedError:
                time.sleep(0.01)
        with stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            second = threads.submit(call_the_roll, Place(address, 2, 1, "a test"), FACTS, 10.0)
            close([first.result(), second.result()])
