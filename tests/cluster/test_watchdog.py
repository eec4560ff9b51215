"""The rules of the watchdog, and processes that really die, freeze, fail, get stuck and go another way."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command import free_port

from cfgjax.distributed.watchdog import Seen, judge

ROOT = Path(__file__).parents[2]
TIMEOUT = 4.0
WALKER = """
import sys, time
from cfgjax.distributed.rendezvous import call_the_roll
from cfgjax.distributed.environment import Place
from cfgjax.distributed.watchdog import Watchdog
from cfgjax.base.exits import end_process

port, count, index, fault = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
watchdog = Watchdog(call_the_roll(Place(f"localhost:{port}", count, index, "a test"), {}, 20.0), TIMEOUT)
for i in range(20):
    watchdog.stage(f"step {i}")
    time.sleep(0.05)
    if i == 10 and fault == "stuck":
        print("ready", flush=True)
        time.sleep(1000)
    if i == 10 and fault == "failed":
        watchdog.failed("no space left")
        end_process("cfgjax: failed: no space left", 1)
if fault == "stalled":
    time.sleep(1000)
if fault == "alone":
    watchdog.stage("compiling")
    print("ready", flush=True)
    time.sleep(1.5 * TIMEOUT)
else:
    watchdog.stage("compiling")
watchdog.stage("another exchange" if fault == "another way" else "an exchange")
print("ready", flush=True)
if fault == "leave":
    time.sleep(1)
    watchdog.leave()
    sys.exit(0)
time.sleep(1000)
""".replace("TIMEOUT", str(TIMEOUT))


class Walkers:
    """Processes that go through the same stages and then wait; the one at `faulty` has the fault."""

    def __init__(self, count, faulty, fault):
        port, pipes = free_port(), {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        faults = [fault if faulty in (i, None) else "none" for i in range(count)]
        command = lambda i: [sys.executable, "-c", WALKER, str(port), str(count), str(i), faults[i]]
        self.all = [subprocess.Popen(command(i), cwd=ROOT, **pipes) for i in range(count)]

    def wait_until_ready(self):
        for process in self.all:
            assert process.stdout.readline() == "ready\n", process.communicate()[1]

    def ends(self, *indices):
        """{index: (exit code, stderr)} of those named."""
        ends = {}
        for i in indices:
            _, err = self.all[i].communicate(timeout=3 * TIMEOUT + 10)
            ends[i] = self.all[i].returncode, err
        return ends

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for process in self.all:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.communicate()


@pytest.mark.e2e
@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_process_ends_the_others_at_once_and_is_named(victim):
    with Walkers(3, None, "none") as walkers:
        walkers.wait_until_ready()
        start = time.monotonic()
        walkers.all[victim].kill()
        for code, err in walkers.ends(*{0, 1, 2} - {victim}).values():
            assert code == 1
            assert re.search(rf"process {victim} on \S+ \(pid {walkers.all[victim].pid}\) has died", err)
            assert len(err.splitlines()) == 1
        assert time.monotonic() - start < 2


@pytest.mark.e2e
@pytest.mark.parametrize("victim", [0, 1])
def test_a_frozen_process_is_named_in_time(victim):
    with Walkers(3, None, "none") as walkers:
        walkers.wait_until_ready()
        start = time.monotonic()
        walkers.all[victim].send_signal(signal.SIGSTOP)
        for code, err in walkers.ends(*{0, 1, 2} - {victim}).values():
            assert code == 1
            assert re.search(rf"process {victim} on \S+ \(pid \d+\) has sent nothing for \d s: it is frozen", err)
        assert time.monotonic() - start < TIMEOUT + 1
        walkers.all[victim].send_signal(signal.SIGCONT)
        assert walkers.ends(victim)[victim][0] == 1


@pytest.mark.e2e
def test_a_stuck_process_is_named_and_prints_its_stack():
    with Walkers(3, 1, "stuck") as walkers:
        ends = walkers.ends(0, 1, 2)
        for code, err in ends.values():
            assert code == 1
            assert re.search(r"process 1 on \S+ \(pid \d+\) is stuck at step 10; the others have waited", err)
        assert "most recent call first" in ends[1][1]
        assert "most recent call first" not in ends[2][1]


@pytest.mark.e2e
def test_a_process_that_fails_ends_the_others_with_its_reason():
    with Walkers(3, 2, "failed") as walkers:
        ends = walkers.ends(0, 1, 2)
        assert ends[2] == (1, "cfgjax: failed: no space left\n")
        for i in (0, 1):
            assert re.search(r"process 2 on \S+ \(pid \d+\) failed: no space left$", ends[i][1].strip())


@pytest.mark.e2e
def test_a_process_that_takes_another_branch_is_named():
    with Walkers(3, 2, "another way") as walkers:
        for code, err in walkers.ends(0, 1, 2).values():
            assert code == 1
            assert re.search(r"process 2 .* diverged: it is at another exchange, process 0 was at an", err)


@pytest.mark.e2e
def test_if_no_process_advances_all_report_it():
    with Walkers(2, None, "stalled") as walkers:
        for code, err in walkers.ends(0, 1).values():
            assert code == 1
            assert re.search(r"no process has got past step 19 in \d+ s", err)


@pytest.mark.e2e
def test_waiting_for_announced_work_is_not_a_fault():
    with Walkers(2, 1, "alone") as walkers:
        walkers.wait_until_ready()
        time.sleep(1.5 * TIMEOUT)
        assert [process.poll() for process in walkers.all] == [None, None]


@pytest.mark.e2e
def test_processes_that_exit_normally_are_not_a_fault():
    with Walkers(3, None, "leave") as walkers:
        walkers.wait_until_ready()
        assert walkers.ends(0, 1, 2) == dict.fromkeys(range(3), (0, ""))


def seen(*counts, what="step 1", **options):
    return {i: Seen(heard=100.0, at=0.0, count=count, what=what, **options) for i, count in enumerate(counts)}


def test_only_a_wait_longer_than_patience_is_a_fault():
    assert judge(100.0, seen(5, 4), 101.0) is None
    assert judge(100.0, seen(5, 4), 99.0) == (1, "is stuck at step 1; the others have waited 100 s for it")
    assert judge(100.0, seen(5, 5), 1.0) is None  # a first step may take any time
    assert judge(100.0, seen(5, 5), 1.0, longest_step=11.0) is None
    assert judge(100.0, seen(5, 5), 1.0, longest_step=9.0) == (None, "no process has got past step 1 in 100 s")
    assert judge(100.0, seen(5, 5, what="pictures"), 1.0, longest_step=9.0) is None
    assert judge(100.0, seen(5, 4, what="compiling"), 1.0) is None
    assert judge(100.0, seen(5, 4, what="saving step 5"), 1.0)[0] == 1
