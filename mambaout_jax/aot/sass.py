# SPDX-License-Identifier: Apache-2.0
"""Loops of a GPU kernel's machine code, and the kinds of instructions in them.

The text is SASS, what NVIDIA's `nvdisasm` prints. Loops are found in the graph of jumps and not by
the order of the text, in which the compiler moves rare blocks to the end.
"""

import re
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import NamedTuple

_LABEL = re.compile(r"^\s*(\.L\w+):")
_INSTRUCTION = re.compile(
    r"/\*[0-9a-f]{4,}\*/\s+(?P<guard>@!?U?P\w+\s+)?(?P<name>[A-Z][A-Z0-9_.]*)"
)
_CONDITION = re.compile(r"BRA\S*\s+!?U[PR]\d|BRA\S*\s+!?P\d")  # of a jump without a guard
_TARGET = re.compile(r"\((\.L\w+)\)")
_ENDS = {"EXIT", "RET", "BRX", "JMX"}  # where a block ends without a jump that the text tells

# By the first word of an instruction; whatever is not here is `other`.
_KINDS = {
    "float32": ("FFMA", "FMUL", "FADD", "FFMA2", "FMUL2", "FADD2"),
    "exp": ("MUFU",),  # the unit of exp2 and other special functions
    "global_load": ("LDG",),
    "global_store": ("STG",),
    "shared_load": ("LDS",),
    "shared_store": ("STS",),
    "spill": ("LDL", "STL"),
    "barrier": ("BAR", "SYNCS"),
    "move": ("MOV",),
}
_KIND = {name: kind for kind, names in _KINDS.items() for name in names}
KINDS = (*_KINDS, "other")


class Loop(NamedTuple):
    """A loop without the loops in it.

    Attributes:
        depth: 0 for an outermost one.
        always: instructions that every iteration issues, by kind.
        sometimes: those of blocks that a jump may pass by, by kind.
    """

    depth: int
    always: Counter[str]
    sometimes: Counter[str]


class _Block(NamedTuple):
    names: list[str]
    next: list[int]


def read_loops(text: str) -> list[Loop]:
    """The loops of the first kernel in a text, in the order of their beginnings.

    Loops that wait, with no arithmetic in float32, are left out: they run once or not at all where
    the data is there in time, and how often otherwise no text tells.

    Raises:
        ValueError: there are no instructions in the text.
    """
    blocks = _blocks(text.splitlines())
    dominators = _dominators(blocks)
    bodies: dict[int, set[int]] = {}  # by header
    tails: dict[int, list[int]] = {}
    for tail in dominators:
        for header in blocks[tail].next:
            if header in dominators[tail]:
                bodies.setdefault(header, {header}).update(_body(blocks, dominators, header, tail))
                tails.setdefault(header, []).append(tail)
    # A loop whose blocks compute nothing waits; it is no part of the loop around it either.
    waits = [h for h, body in bodies.items() if not _count(blocks, body)["float32"]]
    idle = set().union(*(bodies[header] for header in waits))
    headers = sorted(bodies.keys() - set(waits))
    loops = []
    for header in headers:
        depth = sum(header in bodies[h] for h in headers) - 1
        inner = [bodies[h] for h in headers if h != header and h in bodies[header]]
        own = bodies[header].difference(idle, *inner)
        certain = set.intersection(*(set(dominators[tail]) for tail in tails[header]))
        loops.append(Loop(depth, _count(blocks, own & certain), _count(blocks, own - certain)))
    return loops


def instructions(
    loops: list[Loop], trips: Mapping[int, float], share: Mapping[int, float]
) -> dict[str, float]:
    """What one iteration of the outermost of nested loops issues, by kind.

    Args:
        loops: as of `read_loops`.
        trips: how often each loop runs within one iteration of the outermost, by depth; 1 where
            nothing is said.
        share: the part of the iterations in which the blocks that a jump may pass by are run, by
            depth; 1 where nothing is said.
    """
    total = dict.fromkeys(KINDS, 0.0)
    for loop in loops:
        times, part = trips.get(loop.depth, 1.0), share.get(loop.depth, 1.0)
        for kind in KINDS:
            total[kind] += times * (loop.always[kind] + part * loop.sometimes[kind])
    return total


def _blocks(lines: Iterable[str]) -> list[_Block]:
    """Pieces of code without a jump in or out, in the order of the text."""
    starts: dict[str, int] = {}
    pieces: list[tuple[list[str], list[str], bool]] = [([], [], True)]  # names, targets, runs on

    def begin():
        if pieces[-1][0]:
            pieces.append(([], [], True))

    for line in lines:
        if label := _LABEL.match(line):
            begin()
            starts[label[1]] = len(pieces) - 1
        elif found := _INSTRUCTION.search(line):
            name, targets = found["name"].partition(".")[0], _TARGET.findall(line)
            pieces[-1][0].append(name)
            if name == "BRA" or name in _ENDS:
                runs_on = bool(found["guard"] or _CONDITION.search(line))
                pieces[-1] = (pieces[-1][0], targets, runs_on)
                begin()
        elif line.lstrip().startswith(".section") and pieces[0][0]:
            break  # the next kernel, or what is no code
    if not pieces[0][0]:
        raise ValueError("the text has no instructions; give that of nvdisasm")
    if not pieces[-1][0]:
        pieces.pop()
    blocks = []
    for i, (names, targets, runs_on) in enumerate(pieces):
        follows = [starts[t] for t in targets if starts.get(t, len(pieces)) < len(pieces)]
        follows += [i + 1] if runs_on and i + 1 < len(pieces) else []
        blocks.append(_Block(names, follows))
    return blocks


def _dominators(blocks: list[_Block]) -> dict[int, frozenset[int]]:
    """By block that can be reached: all blocks that every way to it goes through, itself too."""
    found: dict[int, frozenset[int]] = {0: frozenset([0])}
    waiting = deque([0])
    while waiting:
        block = waiting.popleft()
        for following in blocks[block].next:
            known = found.get(following)
            through = found[block] if known is None else found[block] & known
            through |= {following}
            if through != known:
                found[following] = through
                waiting.append(following)
    return found


def _body(blocks: list[_Block], reachable: Iterable[int], header: int, tail: int) -> set[int]:
    """The blocks from which the tail is reached without going through the header again."""
    before: dict[int, list[int]] = {}
    for block in reachable:
        for following in blocks[block].next:
            before.setdefault(following, []).append(block)
    body, waiting = {header, tail}, [tail]
    while waiting:
        block = waiting.pop()
        if block == header:
            continue
        new = [b for b in before.get(block, ()) if b not in body]
        body.update(new)
        waiting += new
    return body


def _count(blocks: list[_Block], which: Iterable[int]) -> Counter[str]:
    names = (name for block in which for name in blocks[block].names)
    return Counter(_KIND.get(name, "other") for name in names)
