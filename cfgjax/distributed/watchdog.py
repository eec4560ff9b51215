"""A watchdog in every process: one that dies, freezes, fails or goes another way becomes an error in all the others.

Collectives wait for ever for a process that does not come. A thread beside the main one sends a beat over the link to
process 0, with how far the main thread has come; process 0 judges, and its verdict ends every process.
"""

import dataclasses
import faulthandler
import math
import threading
import time

from cfgjax.base.exits import FAILED, end_process

STEPS = "step "  # what regular steps are called, of which it is known how long they take
SAVES = ("saving ", "waiting for the save ")
TOGETHER = (STEPS, *SAVES)  # stages in which no process is long alone; compiling, measuring and drawing may be uneven
STALLED_STEPS = 10  # as many times the longest step so far, and no step has ended: nobody moves


@dataclasses.dataclass
class Seen:
    """What process 0 knows of a process, times by its own clock.

    heard: when it last said anything. count: how many stages it has entered, the last of them `what`, noticed `at`.
    leaving: whether it has come to its end.
    """

    heard: float
    at: float
    count: int = 0
    what: str = "the start"
    leaving: bool = False

    def update(self, now, count, what):
        """Takes in a beat."""
        self.heard = now
        if count != self.count:
            self.count, self.what, self.at = count, what, now


def judge(now, seen, patience, longest_step=None):
    """(index of the process to blame or None, why) or None where all is well.

    seen: {index: Seen}. patience: seconds. longest_step: seconds, of STEPS; None before one ended.
    """
    for index, process in seen.items():
        if now - process.heard > patience:
            return index, f"{unheard(now - process.heard)} (at {process.what})"
    leader = max(seen.values(), key=lambda process: process.count)
    index, last = min(seen.items(), key=lambda item: item[1].count)
    if last.count < leader.count:
        waited = now - max(last.at, leader.at)
        if waited > patience and last.what.startswith(TOGETHER):
            return index, f"is stuck at {last.what}, where the others have waited {waited:.0f} s for it"
    elif longest_step is not None and all(process.what.startswith(STEPS) for process in seen.values()):
        waited = now - max(process.at for process in seen.values())
        if waited > max(patience, STALLED_STEPS * longest_step):
            return None, f"no process has come further than {last.what} in {waited:.0f} s"
    return None


def unheard(seconds):
    """Why a process is blamed that says nothing."""
    return f"has not been heard of for {seconds:.0f} s: frozen, or cut off"


class Watchdog:
    """Watches the processes of a `Meeting` until `leave`; timeout_seconds is the longest that a fault goes unseen."""

    def __init__(self, meeting, timeout_seconds):
        self._own, self._members, self._links = meeting.own, meeting.members, meeting.links
        self.timeout_seconds, self._interval = timeout_seconds, min(1.0, timeout_seconds / 10)
        self._patience = timeout_seconds - 2 * self._interval
        now = time.monotonic()
        self._seen = {member.number: Seen(now, now) for member in meeting.members}
        self._mine = self._seen[meeting.own.number]
        self._stages: dict = {}  # of process 0: {count: what}
        self._pending: list = []  # (index, count, what) of others that process 0 has not reached
        self._longest_step, self._lock, self._leaving = None, threading.Lock(), False
        self._ending = threading.Lock()  # taken by the first that ends the process
        for index in self._links:
            threading.Thread(target=self._read, args=(index,), daemon=True, name=f"watch-{index}").start()
        threading.Thread(target=self._beat, daemon=True, name="watchdog").start()

    def stage(self, what):
        """The main thread enters a stage that all processes enter in the same order."""
        now, mine = time.monotonic(), self._mine
        with self._lock:
            if mine.what.startswith(STEPS) and what.startswith(STEPS):
                self._longest_step = max(self._longest_step or 0.0, now - mine.at)
            mine.update(now, mine.count + 1, what)
            if self._own.number == 0:
                self._stages[mine.count] = what
                self._stages.pop(mine.count - 10_000, None)

    def failed(self, reason, code=FAILED):
        """Tells the others that this process has failed, which the caller ends: of their verdicts none is heard now."""
        self._only_one_ends()
        told = {"verdict": f"{self._own} failed: {reason}", "code": code}
        for link in self._links.values():
            link.send(told)

    def leave(self):
        """From here on the end of another process, or of this one, is none of a fault."""
        self._leaving = self._mine.leaving = True
        for link in self._links.values():
            link.send({"leaving": True})

    def _read(self, index):
        """Takes in what comes over a link until it ends."""
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

    def _beat(self):
        """Sends beats and, in process 0, judges; in the others, only whether process 0 is there."""
        while True:
            time.sleep(self._interval)
            now, mine = time.monotonic(), self._mine
            if now - mine.heard > self._patience:  # what was not heard meanwhile is no one else's fault
                self._end(f"was frozen itself for {now - mine.heard:.0f} s", FAILED)
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

    def _other_way(self):
        """(index, why) of a process whose stages are others than process 0's, or None."""
        reached = [item for item in self._pending if item[1] <= self._mine.count]
        self._pending = [item for item in self._pending if item[1] > self._mine.count]
        for index, count, what in reached:
            if what != (ours := self._stages.get(count, what)):
                return index, f"went another way: it is at {what}, where process 0 was at {ours}"
        return None

    def _end(self, verdict, code, blamed=None):
        """Tells the others and ends this process, with the verdict as its last line."""
        self._only_one_ends()
        if self._own.number == 0:
            for link in self._links.values():
                link.send({"verdict": verdict, "code": code, "blamed": blamed})
        if blamed == self._own.number:
            faulthandler.dump_traceback(all_threads=True)
        end_process(f"cfgjax: failed: {self._own}: {verdict}", code)

    def _only_one_ends(self):
        """Returns in the first thread that is to end the process; in others the process ends meanwhile."""
        if not self._ending.acquire(blocking=False):
            time.sleep(60)
