"""A watchdog in every process: if one process dies, freezes, fails or diverges, all others end with an error.

Collectives wait forever for a missing process. A background thread sends heartbeats with the main thread's progress to
process 0. Process 0 judges them, and its verdict ends every process.
"""

import dataclasses
import faulthandler
import math
import threading
import time
from collections.abc import Mapping
from typing import NoReturn

from cfgjax.base.exits import FAILED, end_process
from cfgjax.distributed.rendezvous import Meeting

STEPS = "step "  # prefix of training steps, whose duration is measured
SAVES = ("saving ", "waiting for the save ")
TOGETHER = (STEPS, *SAVES)  # stages that take equally long in all processes, unlike compiling or sampling
STALLED_STEPS = 10  # all processes are stuck if a step takes this many times the longest step

Fault = tuple[int | None, str]  # (index of the faulty process or None, reason)


@dataclasses.dataclass
class Seen:
    """What process 0 knows about a process. Times are of process 0's clock.

    heard: time of its last message. count: number of stages it has entered. what: its last stage. at: time at which
    process 0 learned of that stage. leaving: whether the process has announced its end.
    """

    heard: float
    at: float
    count: int = 0
    what: str = "the start"
    leaving: bool = False

    def update(self, now: float, count: int, what: str) -> None:
        """Records a heartbeat."""
        self.heard = now
        if count != self.count:
            self.count, self.what, self.at = count, what, now


def judge(now: float, seen: Mapping[int, Seen], patience: float, longest_step: float | None = None) -> Fault | None:
    """Returns (index of the faulty process or None, reason), or None if there is no fault.

    seen: {index: Seen}. patience: seconds. longest_step: seconds of the longest step; None before one has ended.
    """
    for index, process in seen.items():
        if now - process.heard > patience:
            return index, f"{unheard(now - process.heard)} (at {process.what})"
    leader = max(seen.values(), key=lambda process: process.count)
    index, last = min(seen.items(), key=lambda item: item[1].count)
    if last.count < leader.count:
        waited = now - max(last.at, leader.at)
        if waited > patience and last.what.startswith(TOGETHER):
            return index, f"is stuck at {last.what}; the others have waited {waited:.0f} s for it"
    elif longest_step is not None and all(process.what.startswith(STEPS) for process in seen.values()):
        waited = now - max(process.at for process in seen.values())
        if waited > max(patience, STALLED_STEPS * longest_step):
            return None, f"no process has got past {last.what} in {waited:.0f} s"
    return None


def unheard(seconds: float) -> str:
    """Returns the reason for blaming a silent process."""
    return f"has sent nothing for {seconds:.0f} s: it is frozen or disconnected"


class Watchdog:
    """Watches the processes of a `Meeting` until `leave`. Detects a fault within timeout_seconds."""

    def __init__(self, meeting: Meeting, timeout_seconds: float) -> None:
        self._own, self._members, self._links = meeting.own, meeting.members, meeting.links
        self.timeout_seconds, self._interval = timeout_seconds, min(1.0, timeout_seconds / 10)
        self._patience = timeout_seconds - 2 * self._interval
        now = time.monotonic()
        self._seen = {member.number: Seen(now, now) for member in meeting.members}
        self._mine = self._seen[meeting.own.number]
        self._stages: dict[int, str] = {}  # of process 0: {count: what}
        # (index, count, what) of other processes' stages that process 0 has not reached
        self._pending: list[tuple[int, int, str]] = []
        self._longest_step: float | None = None
        self._lock, self._leaving = threading.Lock(), False
        self._ending = threading.Lock()  # taken by the first thread that ends the process
        for index in self._links:
            threading.Thread(target=self._read, args=(index,), daemon=True, name=f"watch-{index}").start()
        threading.Thread(target=self._beat, daemon=True, name="watchdog").start()

    def stage(self, what: str) -> None:
        """Records that the main thread enters a stage. All processes enter the same stages in the same order."""
        now, mine = time.monotonic(), self._mine
        with self._lock:
            if mine.what.startswith(STEPS) and what.startswith(STEPS):
                self._longest_step = max(self._longest_step or 0.0, now - mine.at)
            mine.update(now, mine.count + 1, what)
            if self._own.number == 0:
                self._stages[mine.count] = what
                self._stages.pop(mine.count - 10_000, None)

    def failed(self, reason: str, code: int = FAILED) -> None:
        """Reports to the others that this process failed. The caller ends the process; further verdicts are ignored."""
        self._only_one_ends()
        message = {"verdict": f"{self._own} failed: {reason}", "code": code}
        for link in self._links.values():
            link.send(message)

    def leave(self) -> None:
        """Announces the end of this process. From now on the end of any process is not a fault."""
        self._leaving = self._mine.leaving = True
        for link in self._links.values():
            link.send({"leaving": True})

    def _read(self, index: int) -> None:
        """Handles the messages of a link until it closes."""
        process, link = self._seen[index], self._links[index]
        while (message := link.receive()) is not None:
            process.heard = time.monotonic()
            if "beat" in message:
                with self._lock:
                    process.update(time.monotonic(), *message["beat"])
                    self._pending.append((index, process.count, process.what))
            process.leaving = process.leaving or "leaving" in message
            if "verdict" in message:
                self._end(message["verdict"], message["code"], message.get("blamed"))
        if process.leaving or self._leaving:
            process.heard = math.inf
        else:
            self._end(f"{self._members[index]} has died (at {process.what})", FAILED)

    def _beat(self) -> None:
        """Sends heartbeats. Process 0 judges all processes; the others only check that process 0 is alive."""
        while True:
            time.sleep(self._interval)
            now, mine = time.monotonic(), self._mine
            if now - mine.heard > self._patience:  # while this process was frozen it could not hear the others
                self._end(f"was itself frozen for {now - mine.heard:.0f} s", FAILED)
            mine.heard = now
            for link in self._links.values():
                link.send({"beat": [mine.count, mine.what]})
            if self._own.number != 0:
                hub = self._seen[0]
                silent = now - hub.heard
                if silent > self._patience + self._interval and not self._leaving:  # process 0's verdicts come first
                    self._end(f"{self._members[0]} {unheard(silent)}", FAILED)
                continue
            with self._lock:
                found = self._other_way() or judge(now, self._seen, self._patience, self._longest_step)
            if found is not None:
                index, why = found
                who = "" if index is None else f"{self._members[index]} "
                self._end(f"{who}{why}", FAILED, index)

    def _other_way(self) -> Fault | None:
        """Returns (index, reason) of a process whose stages differ from process 0's, or None."""
        reached = [item for item in self._pending if item[1] <= self._mine.count]
        self._pending = [item for item in self._pending if item[1] > self._mine.count]
        for index, count, what in reached:
            if what != (ours := self._stages.get(count, what)):
                return index, f"diverged: it is at {what}, process 0 was at {ours}"
        return None

    def _end(self, verdict: str, code: int, blamed: int | None = None) -> NoReturn:
        """Sends the verdict to the others and ends this process with the verdict as its last line."""
        self._only_one_ends()
        if self._own.number == 0:
            for link in self._links.values():
                link.send({"verdict": verdict, "code": code, "blamed": blamed})
        if blamed == self._own.number:
            faulthandler.dump_traceback(all_threads=True)
        end_process(f"cfgjax: failed: {self._own}: {verdict}", code)

    def _only_one_ends(self) -> None:
        """Returns in the first thread that calls it. Other threads sleep until the process ends."""
        if not self._ending.acquire(blocking=False):
            time.sleep(60)
