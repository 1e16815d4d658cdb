# SPDX-License-Identifier: Apache-2.0
"""What a compiled program says of itself: memory, collectives, the arrays that are alive.

The compiler's own numbers are sizes, FLOPs and bytes. What is alive when follows from the text of
the program (`live_arrays`), in which arrays have no padding and parts of loops do not show: it
tells where memory goes, not how much there is of it.
"""

import itertools
import math
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16, "f16": 16,
    "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
_ARRAY = re.compile(r"\b([a-z]+[0-9]*)\[([0-9,]*)\](\{[^}]*\})?")
_INSTRUCTION = re.compile(
    r"^\s*(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<shape>\(.*?\)|\S+) (?P<op>[\w\-]+)\((?P<rest>.*)$"
)
_NAMED = re.compile(r'op_name="([^"]*)"')
_ELSEWHERE = re.compile(r"S\([1-9]")  # a memory that is not the device's main one
# Instructions whose result is the memory of their operands, or lies in another memory.
_SAME_MEMORY = {
    "bitcast", "get-tuple-element", "tuple", "while", "conditional", "optimization-barrier",
    "dynamic-update-slice", "copy-start", "slice-start", "async-start",
}  # fmt: skip


class Live(NamedTuple):
    """An array that the program holds for a while.

    Attributes:
        name: where it comes from in the model, as the compiler names it.
        shape: as in the program's text.
        size: bytes, without padding.
        first, last: the program's steps at which it is written and last read.
    """

    name: str
    shape: str
    size: int
    first: int
    last: int


def array_bytes(shape: str) -> int:
    """Bytes of all arrays in the text of a shape that lie in the main memory, without padding."""
    total = 0
    for kind, sides, layout in _ARRAY.findall(shape):
        if kind not in _BITS or _ELSEWHERE.search(layout):
            continue
        numbers = math.prod(int(side) for side in sides.split(",") if side)
        total += numbers * _BITS[kind] // 8
    return total


def collectives(text: str) -> dict[str, dict[str, int]]:
    """How often each kind of exchange between devices stands in a program, and its bytes.

    Returns:
        By kind: `count`, and `bytes` of the results on one device, each counted once, as often as
        it stands in the text; one in a loop runs more often than that.
    """
    found: dict[str, dict[str, int]] = {}
    for line in text.splitlines():
        instruction = _INSTRUCTION.match(line)
        if not instruction:
            continue
        kind = instruction["op"].removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        size = sum(
            math.prod(int(side) for side in sides.split(",") if side) * _BITS.get(dtype, 0) // 8
            for dtype, sides, _ in _ARRAY.findall(instruction["shape"])
        )
        if instruction["op"].endswith("-start") and instruction["shape"].startswith("("):
            size //= 2  # operands stand beside the results
        entry = found.setdefault(kind, {"count": 0, "bytes": 0})
        entry["count"] += 1
        entry["bytes"] += size
    return found


def live_arrays(text: str) -> tuple[list[Live], int]:
    """The arrays that the main computation writes, from its text, and how many steps it has.

    Raises:
        ValueError: the text has no scheduled main computation.
    """
    lines = list(_entry(text.splitlines()))
    if not lines:
        raise ValueError("the program's text has no ENTRY computation; give that of as_text()")
    roots: dict[str, frozenset[str]] = {}  # by name of an instruction: whose memory its result is
    made: dict[str, tuple[int, str, str]] = {}
    last: dict[str, int] = {}
    for step, line in enumerate(lines):
        instruction = _INSTRUCTION.match(line)
        if not instruction:
            continue
        name, op = instruction["name"], instruction["op"]
        used = [x for x in _operands(instruction["rest"]) if x in roots]
        for operand in used:
            last.update(dict.fromkeys(roots[operand], step))
        if op in _SAME_MEMORY or op.endswith("-done"):
            roots[name] = frozenset().union(*(roots[x] for x in used))
        elif op in ("parameter", "constant"):
            roots[name] = frozenset()
        else:
            roots[name] = frozenset([name])
            named = _NAMED.search(instruction["rest"])
            made[name] = (step, instruction["shape"], _origin(named[1]) if named else name)
            last[name] = step
    alive = [
        Live(label, _plain(shape), array_bytes(shape), first, last[name])
        for name, (first, shape, label) in made.items()
    ]
    return [array for array in alive if array.size], len(lines)


def memory_over_steps(arrays: Iterable[Live], steps: int) -> list[int]:
    """Bytes alive at each step."""
    change = [0] * (steps + 1)
    for array in arrays:
        change[array.first] += array.size
        change[array.last + 1] -= array.size
    total, curve = 0, []
    for step in range(steps):
        total += change[step]
        curve.append(total)
    return curve


def thinned(curve: list[int], points: int) -> list[int]:
    """A curve with no more than so many points: the most of each of that many equal parts."""
    points = min(points, len(curve))
    bounds = [len(curve) * i // points for i in range(points + 1)] if points else []
    return [max(curve[first:end]) for first, end in itertools.pairwise(bounds)]


def at_peak(arrays: list[Live], steps: int) -> list[Live]:
    """The arrays alive where most is, the largest first."""
    curve = memory_over_steps(arrays, steps)
    peak = max(range(steps), key=curve.__getitem__)
    alive = [array for array in arrays if array.first <= peak <= array.last]
    return sorted(alive, key=lambda array: -array.size)


def sizes(compiled: Any) -> dict[str, int]:
    """Bytes on one device, as the compiler states them.

    Returns:
        `arguments`, `outputs` beside them, `temporaries`, and `peak`, the most at any time.
    """
    memory = compiled.memory_analysis()
    arguments, aliased = memory.argument_size_in_bytes, memory.alias_size_in_bytes
    outputs, temporaries = memory.output_size_in_bytes - aliased, memory.temp_size_in_bytes
    together = arguments + outputs + temporaries
    return {
        "arguments": arguments,
        "outputs": outputs,
        "temporaries": temporaries,
        "peak": max(together, getattr(memory, "peak_memory_in_bytes", 0)),
    }


def _entry(lines: list[str]) -> Iterable[str]:
    inside = False
    for line in lines:
        if line.startswith("ENTRY"):
            inside = True
        elif inside and line.startswith("}"):
            return
        elif inside:
            yield line


def _operands(rest: str) -> list[str]:
    """Names in the parentheses of an instruction, whose opening one is left out."""
    depth = 1
    for end, character in enumerate(rest):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if not depth:
            rest = rest[:end]
            break
    return re.findall(r"%([\w.\-]+)", rest)


def _plain(shape: str) -> str:
    arrays = [f"{kind}[{sides}]" for kind, sides, _ in _ARRAY.findall(shape)]
    return arrays[0] if len(arrays) == 1 else f"{len(arrays)} arrays"


def _origin(name: str) -> str:
    """Of several operations that became one the first, without what all names have."""
    name = re.sub(r"^jit\(\w+\)/", "", name.partition(":")[0].lstrip("("))
    return re.sub(
        r"backbone\.(features|forward)/",
        "",
        name.rstrip(")") if name.count(")") > name.count("(") else name,
    )
