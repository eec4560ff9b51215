"""The roll call: all processes of a run connect to process 0 and compare their settings before they start jax.

Without it, jax aborts the process if anything is wrong when it starts. The messages are JSON lines over TCP. The
connections stay open for the watchdog.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from cfgjax.base.errors import UsageError
from cfgjax.distributed.environment import Place

RETRY_SECONDS = 0.5
GREETING_SECONDS = 10  # within which a new connection must introduce itself
TURNED_AWAY_SECONDS = 5  # within which late processes still get the error


class Member(NamedTuple):
    """A process of the run, as named in messages."""

    number: int
    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.number} on {self.host} (pid {self.pid})"


class Link:
    """A connection that sends and receives dicts. `receive` may be called from one thread, `send` from any."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._lines, self._lock = connection, connection.makefile("rb"), threading.Lock()

    def send(self, message: dict[str, Any]) -> None:
        """Sends a dict. A lost connection is ignored here; `receive` detects it."""
        with self._lock, contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> Any:
        """Returns the next dict, or None if the connection has ended."""
        try:
            line = self._lines.readline()
            return json.loads(line) if line.endswith(b"\n") else None
        except (OSError, ValueError, RecursionError):
            return None

    def set_timeout(self, seconds: float | None) -> None:
        """Sets the seconds after which `receive` and `send` give up; None for never."""
        self._connection.settimeout(seconds)

    def close(self) -> None:
        """Closes the connection."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._lines.close()
        self._connection.close()


class Meeting(NamedTuple):
    """Result of a roll call.

    members: all processes, by number. links: {number: Link}; process 0 has a link to every other process, the others
    have one to process 0. jax_address: HOST:PORT of jax's service, which process 0 starts. reserved: in process 0, the
    descriptor of the socket that reserves this port until the service starts.
    """

    own: Member
    members: list[Member]
    links: dict[int, Link]
    jax_address: str
    reserved: int | None = None


def call_the_roll(place: Place, facts: dict[str, str], seconds: float) -> Meeting:
    """Waits for all processes of a `Place`, compares their facts, {name: text}, and returns the `Meeting`.

    Every connected process raises UsageError if the numbers of processes or the facts differ, and TimeoutError if
    process 0 cannot be reached or a process is missing after `seconds`. The error names the process and its host.
    """
    own = Member(place.process_id, socket.gethostname(), os.getpid())
    return (host_meeting if own.number == 0 else join_meeting)(place, own, facts, time.monotonic() + seconds, seconds)


def host_meeting(place: Place, own: Member, facts: dict[str, str], deadline: float, seconds: float) -> Meeting:
    """Implements `call_the_roll` in process 0."""
    links: dict[int, Link] = {}
    members = {0: own}
    with listening(place) as server:
        try:
            while len(members) < place.num_processes:
                try:
                    link, hello = greet(server, deadline)
                except TimeoutError:
                    missing = [str(i) for i in range(place.num_processes) if i not in members]
                    present = ", ".join(str(members[i]) for i in sorted(members))
                    raise TimeoutError(
                        f"of {place.num_processes} processes {', '.join(missing)} did not connect to {place.address} "
                        f"within {seconds:g} s; connected: {present}"
                    ) from None
                member = Member(*hello["member"])
                links[member.number if member.number not in members else -1] = link
                check_member(place, members, member, hello, facts)
                members[member.number] = member
            port, reserved = reserve(place.jax_port)
        except (UsageError, TimeoutError) as e:
            turn_away(server, links.values(), place.num_processes - 1, e)
            raise
    everyone = [members[i] for i in range(place.num_processes)]
    for link in links.values():
        link.send({"members": everyone, "port": port})
        link.set_timeout(None)
    return Meeting(own, everyone, links, place.with_port(port), reserved)


def greet(server: socket.socket, deadline: float) -> tuple[Link, dict[str, Any]]:
    """Returns (link, hello) of the next process that connects. Raises TimeoutError if none does before the deadline."""
    while True:
        server.settimeout(max(deadline - time.monotonic(), 0.01))
        link = Link(server.accept()[0])
        link.set_timeout(GREETING_SECONDS)
        hello = link.receive()
        if isinstance(hello, dict) and "member" in hello:
            return link, hello
        link.close()  # not a process of cfgjax


def turn_away(server: socket.socket, links: Iterable[Link], count: int, error: Exception) -> None:
    """Sends the error to at most `count` processes: those of the links and, for a UsageError, late ones too."""
    message = {"refused": str(error), "late": not isinstance(error, UsageError)}
    refused, deadline = list(links), time.monotonic() + TURNED_AWAY_SECONDS
    for number in range(count):
        if number == len(refused):
            if message["late"]:
                return
            try:
                refused.append(greet(server, deadline)[0])
            except TimeoutError:
                return
        refused[number].send(message)
        refused[number].close()


def listening(place: Place) -> socket.socket:
    """Returns the socket on which process 0 listens."""
    both: dict[str, Any] = {"family": socket.AF_INET6, "dualstack_ipv6": True} if socket.has_dualstack_ipv6() else {}
    try:
        return socket.create_server(("", place.port), backlog=place.num_processes, **both)
    except OSError as e:
        raise UsageError(f"process 0 cannot listen on port {place.port}: {e.strerror}") from e


def reserve(port: int | None) -> tuple[int, int]:
    """Reserves a port, or any free port for None, for jax's service. Returns (port, descriptor of a bound socket).

    The socket does not listen. The service, which starts seconds later, can share the port; other programs cannot.
    Raises UsageError if the port is in use.
    """
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    reserved = socket.socket(family)
    try:
        if family == socket.AF_INET6:
            reserved.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # a run that ended up to a minute ago leaves closed connections, beside which bind needs this option
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("", port or 0))
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # or other programs could listen on it
    except OSError as e:
        reserved.close()
        need = "use a coordinator port whose next port is free too"
        raise UsageError(f"process 0 cannot listen on port {port}, which jax needs: {e.strerror}; {need}") from e
    if sys.platform == "linux":
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # after bind, or others could share it too
    return reserved.getsockname()[1], reserved.detach()


def check_member(
    place: Place, members: Mapping[int, Member], member: Member, hello: Mapping[str, Any], facts: Mapping[str, str]
) -> None:
    """Raises UsageError unless a connecting process belongs to the run and agrees with process 0."""
    if hello["num_processes"] != place.num_processes:
        numbers = f"num_processes {hello['num_processes']}, process 0 has {place.num_processes}"
        raise UsageError(f"{member} has {numbers}; all processes need the same")
    if member.number in members:
        raise UsageError(f"{member} and {members[member.number]} are both process {member.number}")
    if differing := differing_facts(facts, hello["facts"]):
        raise UsageError(f"{member} does not belong to the run of process 0: {'; '.join(differing)}")


def differing_facts(ours: Mapping[str, str], theirs: Mapping[str, str]) -> list[str]:
    """Returns a list of texts, one for each name whose texts differ between two dicts {name: text}."""
    names = sorted(ours.keys() | theirs.keys())
    get = lambda facts, name: facts.get(name, "absent")
    return [
        f"{name} is {get(theirs, name)}, in process 0 it is {get(ours, name)}"
        for name in names
        if get(ours, name) != get(theirs, name)
    ]


def join_meeting(place: Place, own: Member, facts: dict[str, str], deadline: float, seconds: float) -> Meeting:
    """Implements `call_the_roll` in the other processes."""
    link = Link(connected(place, own, deadline, seconds))
    link.set_timeout(max(deadline - time.monotonic(), 0) + GREETING_SECONDS)  # process 0 gives up first
    link.send({"member": own, "num_processes": place.num_processes, "facts": facts})
    broken = f"process 0 at {place.address} closed the connection before all {place.num_processes} processes connected"
    answer = link.receive() or {"refused": broken, "late": True}
    if "refused" in answer:
        link.close()
        raise (TimeoutError if answer["late"] else UsageError)(answer["refused"])
    link.set_timeout(None)
    members = [Member(*member) for member in answer["members"]]
    return Meeting(own, members, {0: link}, place.with_port(answer["port"]))


def connected(place: Place, own: Member, deadline: float, seconds: float) -> socket.socket:
    """Returns a connection to process 0. Retries until the deadline."""
    while True:
        try:
            return socket.create_connection((place.host, place.port), timeout=max(deadline - time.monotonic(), 0.01))
        except OSError as e:
            if time.monotonic() + RETRY_SECONDS > deadline:
                reason = e.strerror or e
                raise TimeoutError(
                    f"process {own.number} on {own.host} cannot reach process 0 at {place.address} within "
                    f"{seconds:g} s: {reason} ({place.origin})"
                ) from e
            time.sleep(RETRY_SECONDS)
