"""The roll call: the processes of a run meet at process 0 before any of them starts jax, whose own start aborts the
process where anything is wrong.

JSON lines over TCP. The links stay open: the watchdog goes on with them.
"""

import contextlib
import json
import os
import socket
import sys
import threading
import time
from typing import NamedTuple

from cfgjax.base.errors import UsageError

RETRY_SECONDS = 0.5
GREETING_SECONDS = 10  # in which whoever connects must say who it is
TURNED_AWAY_SECONDS = 5  # in which those that come after it is clear that they are not one run are told so


class Member(NamedTuple):
    """A process of the run, as others name it."""

    number: int
    host: str
    pid: int

    def __str__(self):
        return f"process {self.number} on {self.host} (pid {self.pid})"


class Link:
    """A connection over which dicts go both ways; `receive` is for one thread, `send` for any."""

    def __init__(self, connection):
        self._connection, self._lines, self._lock = connection, connection.makefile("rb"), threading.Lock()

    def send(self, message):
        """Sends a dict. Whether the other side still takes it is for its reader to find out."""
        with self._lock, contextlib.suppress(OSError):
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def receive(self):
        """The next dict, or None where the connection has ended."""
        try:
            line = self._lines.readline()
            return json.loads(line) if line.endswith(b"\n") else None
        except (OSError, ValueError, RecursionError):
            return None

    def set_timeout(self, seconds):
        """Seconds after which `receive` and `send` give up; None for never."""
        self._connection.settimeout(seconds)

    def close(self):
        """Ends the connection."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._lines.close()
        self._connection.close()


class Meeting(NamedTuple):
    """Result of a roll call. members: all, by number. links: {index: Link}, of process 0 to all the others, of the
    others to process 0. jax_address: HOST:PORT of jax's service, which process 0 starts. reserved: in process 0, the
    descriptor of the socket that reserves this port until then.
    """

    own: Member
    members: list
    links: dict
    jax_address: str
    reserved: int | None = None


def call_the_roll(place, facts, seconds):
    """The `Meeting` of all processes of a `Place`, once they are there and their facts, {name: text}, are equal.

    Raises, in every process that is there, UsageError where numbers of processes or facts differ, and TimeoutError
    where process 0 cannot be reached or one is missing after `seconds`; it says which process on which host.
    """
    own = Member(place.process_id, socket.gethostname(), os.getpid())
    return (gather if own.number == 0 else join)(place, own, facts, time.monotonic() + seconds, seconds)


def gather(place, own, facts, deadline, seconds):
    """`call_the_roll` of process 0."""
    links: dict = {}
    members = {0: own}
    with listening(place) as server:
        try:
            while len(members) < place.num_processes:
                try:
                    link, hello = greet(server, deadline)
                except TimeoutError:
                    missing = [str(i) for i in range(place.num_processes) if i not in members]
                    came = ", ".join(str(members[i]) for i in sorted(members))
                    raise TimeoutError(
                        f"of {place.num_processes} processes {', '.join(missing)} did not come to {place.address} "
                        f"in {seconds:g} s; there are {came}"
                    ) from None
                member = Member(*hello["member"])
                links[member.number if member.number not in members else -1] = link
                check(place, members, member, hello, facts)
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


def greet(server, deadline):
    """(link, hello) of the next process that comes. Raises TimeoutError where none does before the deadline."""
    while True:
        server.settimeout(max(deadline - time.monotonic(), 0.01))
        link = Link(server.accept()[0])
        link.set_timeout(GREETING_SECONDS)
        hello = link.receive()
        if isinstance(hello, dict) and "member" in hello:
            return link, hello
        link.close()  # somebody else's


def turn_away(server, links, count, error):
    """Tells `count` processes the error: those of the links, and where it is a UsageError those that come late too."""
    told = {"refused": str(error), "late": not isinstance(error, UsageError)}
    there, deadline = list(links), time.monotonic() + TURNED_AWAY_SECONDS
    for number in range(count):
        if number == len(there):
            if told["late"]:
                return
            try:
                there.append(greet(server, deadline)[0])
            except TimeoutError:
                return
        there[number].send(told)
        there[number].close()


def listening(place):
    """The socket at which process 0 waits."""
    both: dict = {"family": socket.AF_INET6, "dualstack_ipv6": True} if socket.has_dualstack_ipv6() else {}
    try:
        return socket.create_server(("", place.port), backlog=place.num_processes, **both)
    except OSError as e:
        raise UsageError(f"process 0 cannot listen at port {place.port}: {e.strerror}") from e


def reserve(port):
    """Reserves a port for jax's service, any free one for None. Returns (port, descriptor of a bound socket).

    The socket does not listen. The service, which starts seconds later, can share the port; other programs cannot.
    Raises UsageError if the port is in use.
    """
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    reserved = socket.socket(family)
    try:
        if family == socket.AF_INET6:
            reserved.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        reserved.bind(("", port or 0))
    except OSError as e:
        reserved.close()
        need = "use a coordinator with two free ports in a row"
        raise UsageError(f"process 0 cannot listen at port {port}, which jax needs: {e.strerror}; {need}") from e
    if sys.platform == "linux":
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # after bind, or others could share it too
    return reserved.getsockname()[1], reserved.detach()


def check(place, members, member, hello, facts):
    """Raises UsageError unless a process that came belongs to the run and agrees with process 0."""
    if hello["num_processes"] != place.num_processes:
        numbers = f"{hello['num_processes']} processes, process 0 of {place.num_processes}"
        raise UsageError(f"{member} was told of {numbers}; all must be told the same")
    if member.number in members:
        raise UsageError(f"{member} and {members[member.number]} are both process {member.number}")
    if differing := differences(facts, hello["facts"]):
        raise UsageError(f"{member} is not of the same run as process 0: {'; '.join(differing)}")


def differences(ours, theirs):
    """["name is b, not a", …] for two dicts of texts."""
    names = sorted(ours.keys() | theirs.keys())
    get = lambda facts, name: facts.get(name, "absent")
    return [
        f"{name} is {get(theirs, name)} there, {get(ours, name)} at process 0"
        for name in names
        if get(ours, name) != get(theirs, name)
    ]


def join(place, own, facts, deadline, seconds):
    """`call_the_roll` of a process that is not process 0."""
    link = Link(connected(place, own, deadline, seconds))
    link.set_timeout(max(deadline - time.monotonic(), 0) + GREETING_SECONDS)  # process 0 is the first to give up
    link.send({"member": own, "num_processes": place.num_processes, "facts": facts})
    broken = f"process 0 at {place.address} broke off before all {place.num_processes} processes had come"
    answer = link.receive() or {"refused": broken, "late": True}
    if "refused" in answer:
        link.close()
        raise (TimeoutError if answer["late"] else UsageError)(answer["refused"])
    link.set_timeout(None)
    members = [Member(*member) for member in answer["members"]]
    return Meeting(own, members, {0: link}, place.with_port(answer["port"]))


def connected(place, own, deadline, seconds):
    """A connection to process 0, tried again until the deadline."""
    while True:
        try:
            return socket.create_connection((place.host, place.port), timeout=max(deadline - time.monotonic(), 0.01))
        except OSError as e:
            if time.monotonic() + RETRY_SECONDS > deadline:
                reason = e.strerror or e
                raise TimeoutError(
                    f"process {own.number} on {own.host} cannot reach process 0 at {place.address} in {seconds:g} s: "
                    f"{reason} ({place.origin})"
                ) from e
            time.sleep(RETRY_SECONDS)
