"""The collectives of a compiled program, read from its text."""

import dataclasses
import re
from math import prod

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BITS = {"pred": 8, "c64": 64, "c128": 128}  # of the types whose names do not end in them
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
INSTRUCTION = re.compile(r"^(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\(")
CALLED = re.compile(r"\b(?:body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
COMMENT = re.compile(r"/\*.*?\*/")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One instruction, each time it runs.

    bytes: of its result on a device; of a reduce-scatter the operand, which is larger: the whole array in each case.
    group: devices that take part together. times: how often it runs, in loops.
    """

    kind: str
    bytes: int
    group: int
    times: int

    @property
    def wire_bytes(self):
        """Bytes that each device sends when the group is a ring, all times together."""
        n = self.group
        share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}.get(self.kind, (n - 1) / n)
        return self.times * self.bytes * share


def find_collectives(text):
    """[Collective] of the text of a compiled program (`compiled.as_text()`).

    The bodies of loops count as often as XLA knows them to run (known_trip_count). Raises ValueError for a loop of
    unknown length that has collectives in it.
    """
    own, calls, entry = parse(text)
    counted: dict = {}

    def inside(name):
        """The collectives of a computation and of all it calls."""
        if name not in counted:
            found = list(own.get(name, ()))
            for called, times in calls.get(name, ()):
                inner = inside(called)
                if inner and times is None:
                    raise ValueError(f"{called} has collectives and runs an unknown number of times")
                found += [dataclasses.replace(c, times=c.times * times) for c in inner]
            counted[name] = found
        return counted[name]

    return inside(entry)


def parse(text):
    """({computation: [Collective, once each]}, {computation: [(called, times or None)]}, the entry's name)"""
    own: dict = {}
    calls: dict = {}
    entry = name = None
    for line in text.splitlines():
        if header := COMPUTATION.match(line):
            name = header[2]
            entry = name if header[1] else entry
        elif line.startswith(" ") and (instruction := INSTRUCTION.match(line.strip())):
            result, opcode = instruction.groups()
            if opcode.removesuffix("-start") in KINDS:
                own.setdefault(name, []).append(collective(opcode, result, line))
                continue  # what it applies is an addition
            branches = BRANCHES.search(line)
            called = CALLED.findall(line) + (re.findall(r"[\w.\-]+", branches[1]) if branches else [])
            known = TRIP_COUNT.search(line)
            times = (int(known[1]) if known else None) if opcode == "while" else 1
            calls.setdefault(name, []).extend((inner, times) for inner in called)
    return own, calls, entry


def collective(opcode, result, line):
    """The Collective of an instruction's line."""
    if opcode.endswith("-start"):
        raise ValueError(f"{opcode}: asynchronous collectives are not read; compile for CPU devices")
    group = 2 if opcode == "collective-permute" else group_size(line)
    size = array_bytes(result) * (group if opcode == "reduce-scatter" else 1)
    return Collective(opcode, size, group, 1)


def array_bytes(shape):
    """Bytes of an array or a tuple of arrays as XLA writes them: f32[8,3]{1,0}, (s32[], bf16[4])."""
    arrays = ARRAY.findall(COMMENT.sub("", shape))
    return sum(prod(map(int, filter(None, lengths.split(",")))) * bits(kind) // 8 for kind, lengths in arrays)


def bits(kind):
    """Bits of an element of XLA's type: 16 of bf16, 8 of f8e4m3."""
    if kind in BITS:
        return BITS[kind]
    found = re.match(r"[a-z]+(\d+)", kind)
    if not found:
        raise ValueError(f"unknown element type {kind}")
    return int(found[1])


def group_size(line):
    """Devices in each group of replica_groups, in any of the ways that XLA writes them."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(listed[1].split(","))
    if iota := re.search(r"replica_groups=\[\d+,(\d+)\]<=", line):
        return int(iota[1])
    if mesh := re.search(r"replica_groups=@?mesh\[(.*?)\](?:, device_ids=\(.*?\))? ?\{(.*?)\}", line):
        axes = {axis: int(size) for axis, size in re.findall(r"'?([\w]+)'?=(\d+)", mesh[1])}
        named = re.findall(r"'?([A-Za-z_]\w*)'?(?::\(\d+\)(\d+))?", mesh[2])
        return prod(int(part) if part else axes[axis] for axis, part in named)
    raise ValueError(f"cannot read the groups of {line.strip()[:200]}")


def bytes_by_kind(collectives):
    """{kind: bytes per device of one run of the program}, of every kind."""
    return {kind: sum(c.bytes * c.times for c in collectives if c.kind == kind) for kind in KINDS}
