"""Groups the kernels of a profile by what they compute.

The trace has the times of kernels and the names of the HLO instructions that launched them. The text of the compiled
program has what these instructions compute, and where in the code they come from.
"""

import collections
import contextlib
import dataclasses
import gzip
import json
import re
import tempfile
from collections import Counter
from pathlib import Path

from cfgjax.jobs.preflight.hlo import CALLED, COMMENT, COMPUTATION, OPCODES

ATTENTION, PRODUCTS, COLLECTIVES = "attention", "convolutions and products", "collectives"
ELEMENTWISE, COPIES, OPTIMIZER = "normalisation and elementwise", "copies and transposes", "optimizer"
GROUPS = (PRODUCTS, ATTENTION, ELEMENTWISE, COPIES, OPTIMIZER, COLLECTIVES)

NAME = re.compile(r"^(?:ROOT )?%?([\w.\-]+) = ")
OPCODE = re.compile(r" = (?:\((?:[^()]|\([^()]*\))*\)|\S+) ([a-z][\w\-]*)\(")
OP_NAME = re.compile(r'op_name="([^"]*)"')
TARGET = re.compile(r'custom_call_target="([^"]*)"')
MOVING = {"parameter", "constant", "copy", "transpose", "bitcast", "reshape", "tuple", "get-tuple-element"}
MOVING |= {"concatenate", "slice", "pad", "broadcast", "fusion"}
LAUNCHERS = {"while", "call", "conditional"}  # their kernels are counted themselves

# Kernels of libraries, by their names, and XLA's own if their instruction is not known.
FUSED_ATTENTION = re.compile(r"fmha|flash|sdpa|attention", re.IGNORECASE)
LAYOUT = re.compile(r"^memcpy|nchwToNhwc|nhwcToNchw", re.IGNORECASE)
MOVING_KERNEL = re.compile(r"^(?:wrapped_|loop_|input_)?(?:copy|transpose|concatenate|slice|pad)")
PRODUCT = re.compile(r"conv(?!ert)|gemm|cutlass|cudnn|xmma|nvjet|dgrad|wgrad|_dot|^dot|matmul", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """An HLO instruction.

    opcodes: its own and those of the computation that it fuses. op_name: the path of scopes in the code. target: the
    function that a custom call calls.
    """

    opcodes: frozenset
    op_name: str
    target: str


def read_instructions(text):
    """Returns {name: `Instruction`} of the text of a compiled program (`compiled.as_text()`)."""
    lines, computation = collections.defaultdict(list), ""
    for line in COMMENT.sub("", text).splitlines():
        if begin := COMPUTATION.match(line):
            computation = begin[2]
        elif NAME.match(line.strip()):
            lines[computation].append(line.strip())
    opcodes = {
        name: frozenset(found[1] for line in body if (found := OPCODE.search(line))) for name, body in lines.items()
    }
    instructions = {}
    for line in (line for body in lines.values() for line in body):
        own = frozenset(found[1] for found in [OPCODE.search(line)] if found)
        fused = [opcodes.get(called, frozenset()) for called in CALLED.findall(line)] if "fusion" in own else []
        texts = [found[1] if (found := pattern.search(line)) else "" for pattern in (OP_NAME, TARGET)]
        instructions[NAME.match(line)[1]] = Instruction(own.union(*fused), *texts)
    return instructions


def group_of(kernel, instruction):
    """Returns the group of a kernel. instruction: the `Instruction` that launched it, or None if it is not known."""
    opcodes, op_name, target = dataclasses.astuple(instruction or Instruction(frozenset(), "", ""))
    if "/optimizer/" in op_name:
        return OPTIMIZER
    if ".mixed_values/" in op_name or any(map(FUSED_ATTENTION.search, (kernel, target))):
        return ATTENTION
    if "nccl" in kernel or any(code.startswith(OPCODES) for code in opcodes):
        return COLLECTIVES
    if LAYOUT.search(kernel) or (opcodes <= MOVING if opcodes else MOVING_KERNEL.search(kernel)):
        return COPIES
    if opcodes & {"convolution", "dot"} or any(map(PRODUCT.search, (kernel, target))):
        return PRODUCTS
    return ELEMENTWISE


@contextlib.contextmanager
def traced_events():
    """Profiles the block. Yields a list that has the events of the trace afterwards."""
    import jax

    events: list = []
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            yield events
        [path] = Path(folder).rglob("*.trace.json.gz")
        events += json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]


def kernel_events(events):
    """Returns [(kernel, HLO instruction or "", milliseconds), …]: of devices, or of the CPU if the trace has no device.

    On CPU the event of an instruction contains those of the instructions that it calls; their time is subtracted.
    """
    named = lambda kind: {(e["pid"], e.get("tid")): e["args"]["name"] for e in events if e.get("name") == kind}
    devices = {pid for (pid, _), name in named("process_name").items() if "/device:" in name}
    streams = {key for key, name in named("thread_name").items() if key[0] in devices and "Stream" in name}
    timed = [e for e in events if e.get("ph") == "X"]
    if streams:
        kept = [e for e in timed if (e["pid"], e["tid"]) in streams]
        return [(e["name"], e.get("args", {}).get("hlo_op", ""), e["dur"] / 1000) for e in kept]
    kept = [e for e in timed if "hlo_op" in e.get("args", {}) and e["name"] == e["args"]["hlo_op"]]
    return [(e["name"], e["args"]["hlo_op"], own / 1000) for e, own in exclusive(kept)]


def exclusive(events):
    """Returns [(event, its duration without that of the events inside it), …], for the events of each thread."""
    threads = collections.defaultdict(list)
    for event in events:
        threads[event["pid"], event["tid"]].append(event)
    found = []
    for of_thread in threads.values():
        open_events: list = []  # [event, its own duration], the outermost first
        for event in sorted(of_thread, key=lambda e: (e["ts"], -e["dur"])):
            while open_events and open_events[-1][0]["ts"] + open_events[-1][0]["dur"] <= event["ts"]:
                found.append(open_events.pop())
            if open_events:
                open_events[-1][1] -= event["dur"]
            open_events.append([event, event["dur"]])
        found += open_events
    return found


def kernel_rows(events, text):
    """Returns [{"kernel", "group", "ms", "count", "known"}, …] of the kinds of kernels of a trace, the slowest first.

    text: the text of the compiled program. known: the share of the time whose HLO instruction was found. Kernels that
    differ only in their number are one kind. Kernels in CUDA graphs have no instruction; XLA's own have its name.
    """
    instructions = read_instructions(text)
    by_kernel = {re.sub(r"\W", "_", name): instruction for name, instruction in instructions.items()}
    spent, count, known = Counter(), Counter(), Counter()
    for kernel, op, ms in kernel_events(events):
        instruction = instructions.get(op) or by_kernel.get(re.sub(r"\W", "_", kernel))
        if instruction and instruction.opcodes & LAUNCHERS and op == kernel:
            continue
        kind = re.sub(r"[._]?\d+", "", kernel)[:60], group_of(kernel, instruction)
        spent[kind] += ms
        count[kind] += 1
        known[kind] += ms if instruction else 0
    rows = [{"kernel": kernel, "group": group} for kernel, group in spent]
    for row in rows:
        kind = row["kernel"], row["group"]
        row |= {"ms": spent[kind], "count": count[kind], "known": known[kind] / spent[kind] if spent[kind] else 0.0}
    return sorted(rows, key=lambda row: -row["ms"])


def group_rows(rows):
    """Returns a row for each of GROUPS, the sum of the rows of its kernels."""
    found = []
    for group in GROUPS:
        members = [row for row in rows if row["group"] == group]
        total = sum(row["ms"] for row in members)
        known = sum(row["known"] * row["ms"] for row in members)
        sums = {"ms": total, "count": sum(row["count"] for row in members), "known": known / total if total else 0.0}
        found.append({"kernel": f"all of: {group}", "group": group} | sums)
    return found
