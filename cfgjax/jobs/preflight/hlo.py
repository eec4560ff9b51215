"""Reads the collectives of a compiled program from its HLO text."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from math import prod

import numpy as np
from jaxtyping import Int

OPCODES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
BITS_OF_TYPE = {"pred": 8, "c64": 64, "c128": 128}  # of types whose names do not contain them
COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
INSTRUCTION = re.compile(r"^(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\(")
CALLED = re.compile(r"\b(?:body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)")
BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
COMMENT = re.compile(r"/\*.*?\*/")


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective instruction.

    bytes: size of the whole array on a device, which is the result, or the operand of a reduce-scatter. group: the
    devices in its first group. times: how often it runs, including loops.
    """

    kind: str
    bytes: int
    group: tuple[int, ...]
    times: int

    @property
    def wire_bytes(self) -> float:
        """Bytes that each device sends in all runs together, if the group is a ring."""
        return self.times * self.bytes * ring_share(self.kind, len(self.group))


CollectivesOf = dict[str | None, list[Collective]]  # by computation; None: before the first
CallsOf = dict[str | None, list[tuple[str, int | None]]]  # [(called computation, times or None)] of each


def ring_share(kind: str, size: int) -> float:
    """Returns the bytes that each of `size` devices in a ring sends, as a fraction of the array's bytes."""
    if kind == "collective-permute":
        return 1.0
    return (2 if kind == "all-reduce" else 1) * (size - 1) / size


def find_collectives(text: str) -> list[Collective]:
    """Returns the list of `Collective`s in the text of a compiled program (`compiled.as_text()`).

    Loop bodies are counted known_trip_count times. Raises ValueError for a loop of unknown length that contains
    collectives.
    """
    own, calls, entry = parse_computations(text)
    counted: dict[str | None, list[Collective]] = {}

    def inside(name: str | None) -> list[Collective]:
        """Returns the collectives of a computation and of all that it calls."""
        if name not in counted:
            found = list(own.get(name, ()))
            for called, times in calls.get(name, ()):
                inner = inside(called)
                if not inner:
                    continue
                if times is None:
                    raise ValueError(f"{called} has collectives and runs an unknown number of times")
                found += [dataclasses.replace(c, times=c.times * times) for c in inner]
            counted[name] = found
        return counted[name]

    return inside(entry)


def parse_computations(text: str) -> tuple[CollectivesOf, CallsOf, str | None]:
    """Returns ({computation: [Collective]}, {computation: [(called, times or None)]}, the entry computation)."""
    own: CollectivesOf = {}
    calls: CallsOf = {}
    entry = name = None
    for line in text.splitlines():
        if header := COMPUTATION.match(line):
            name = header[2]
            entry = name if header[1] else entry
        elif line.startswith(" ") and (instruction := INSTRUCTION.match(line.strip())):
            result, opcode = instruction.groups()
            if opcode.removesuffix("-start") in OPCODES:
                own.setdefault(name, []).append(collective(opcode, result, line))
                continue  # its to_apply is only an addition
            branches = BRANCHES.search(line)
            called = CALLED.findall(line) + (re.findall(r"[\w.\-]+", branches[1]) if branches else [])
            known = TRIP_COUNT.search(line)
            times = (int(known[1]) if known else None) if opcode == "while" else 1
            calls.setdefault(name, []).extend((inner, times) for inner in called)
    return own, calls, entry


def collective(opcode: str, result: str, line: str) -> Collective:
    """Returns the Collective of an instruction's line."""
    if opcode.endswith("-start"):
        raise ValueError(f"{opcode}: asynchronous collectives are not supported; compile for CPU devices")
    group = first_pair(line) if opcode == "collective-permute" else first_group(line)
    size = array_bytes(result) * (len(group) if opcode == "reduce-scatter" else 1)
    return Collective(opcode, size, group, 1)


def array_bytes(shape: str) -> int:
    """Returns the bytes of an array or a tuple of arrays in XLA's notation: f32[8,3]{1,0}, (s32[], bf16[4])."""
    arrays = ARRAY.findall(COMMENT.sub("", shape))
    return sum(prod(integers_of(lengths)) * bits(kind) // 8 for kind, lengths in arrays)


def bits(kind: str) -> int:
    """Returns the bits per element of an XLA type: 16 for bf16, 8 for f8e4m3."""
    if kind in BITS_OF_TYPE:
        return BITS_OF_TYPE[kind]
    found = re.match(r"[a-z]+(\d+)", kind)
    if not found:
        raise ValueError(f"unknown element type {kind}")
    return int(found[1])


def first_group(line: str) -> tuple[int, ...]:
    """Returns the first of the replica_groups, in any of XLA's notations."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return tuple(integers_of(listed[1]))
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        return tuple(device_ids(iota[2], iota[3]).reshape(integers_of(iota[1]))[0].tolist())
    if mesh := re.search(r"replica_groups=@?mesh\[(.*?)\](?:, device_ids=\((.*?)\))? ?\{([^:]*?)\}", line):
        axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", mesh[1])}
        order = re.match(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", mesh[2] or f"[{prod(axes.values())}]")
        along = re.findall(r"'(\w+)'", mesh[3])
        if order and along:
            ids = device_ids(*order.groups()).reshape(tuple(axes.values()))
            return tuple(ids[tuple(slice(None) if name in along else 0 for name in axes)].ravel().tolist())
    raise ValueError(f"cannot read the groups of {line.strip()[:200]}")


def first_pair(line: str) -> tuple[int, int]:
    """Returns (source, target) of the first pair of a collective-permute."""
    pair = re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", line)
    if not pair:
        raise ValueError(f"cannot read the pairs of {line.strip()[:200]}")
    return int(pair[1]), int(pair[2])


def device_ids(lengths: str, order: str | None) -> Int[np.ndarray, "..."]:
    """Returns 0, 1, … as an array of shape `lengths`, transposed by `order` unless it is None. Both are XLA's text."""
    shape = integers_of(lengths)
    ids = np.arange(prod(shape)).reshape(shape)
    return ids.transpose(integers_of(order)) if order else ids


def integers_of(text: str) -> list[int]:
    """Returns [1, 2] for "1,2"."""
    return [int(word) for word in text.split(",") if word]


def by_kind(collectives: Sequence[Collective]) -> dict[str, dict[str, int]]:
    """Returns {kind: {count, bytes, wire_bytes}} per device for one run of the program."""
    sums = {}
    for kind in OPCODES:
        ours = [c for c in collectives if c.kind == kind]
        sizes = {"bytes": sum(c.times * c.bytes for c in ours), "wire_bytes": int(sum(c.wire_bytes for c in ours))}
        sums[kind] = {"count": sum(c.times for c in ours), **sizes}
    return sums


def by_group(collectives: Iterable[Collective], node: int = 8) -> list[dict[str, str | int]]:
    """Returns [{kind, size, in_node, bytes}]: the bytes of each kind of collective, by the size of its groups.

    in_node: devices of a group that are on the node of its first device. node: devices per node; device i is on node
    i // node.
    """
    sums: dict[tuple[str, int, int], int] = {}
    for c in collectives:
        key = c.kind, len(c.group), sum(i // node == c.group[0] // node for i in c.group)
        sums[key] = sums.get(key, 0) + c.times * c.bytes
    return [{"kind": kind, "size": size, "in_node": near, "bytes": sent} for (kind, size, near), sent in sums.items()]
