# SPDX-License-Identifier: Apache-2.0
"""Cycles of the scan and of the depthwise convolution on a TPU, by the model of its compiler.

    JAX_PLATFORMS=cpu python -m mambaout_jax.aot.tpu_cycles --out cycles_v5e.json

compiles each implementation, alone and with its gradients, for one chip of a v5e. It needs
`pip install 'mambaout-jax[aot-tpu]'`. Nothing is run. The compiler states cycles for each of its
own kernels; those in a loop count as often as it turns. Of a Pallas kernel it states the bundles of
instructions that it scheduled, one a cycle, which count once for each step of the grid; waits for
memory are not among them, nor are regions left out that most steps skip.
"""

import argparse
import functools
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from mambaout_jax.aot.program import sizes
from mambaout_jax.aot.targets import devices_of, versions
from mambaout_jax.benchmarks.timing import first_line, report_progress, save_json
from mambaout_jax.kernels.depthwise_conv import depthwise_conv
from mambaout_jax.kernels.selective_scan import selective_scan

TARGET = "v5e-8"
SCANS = (  # B, L, D, N, G: as of machine_code_h100.json, then of conv+ssm in MambaOut-Tiny
    (8, 784, 384, 16, 1),
    (2, 3136, 96, 16, 1),
    (8, 49, 576, 1, 1),
    (128, 3136, 384, 16, 4),
    (128, 196, 1536, 16, 4),
)
MAPS = ((128, 56, 56, 96), (128, 28, 28, 192), (128, 14, 14, 384), (128, 7, 7, 576))
_SIDE = 7  # of the convolution's kernel
_LARGEST = 2**33  # bytes of states (B, L, D, N) that "associative" may keep several times over
_CHUNK, _TILE = 16, 128  # tokens and channels of the scan's kernel

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_LOOP = re.compile(r" while\(.*condition=%?(?P<condition>[\w.\-]+), body=%?(?P<body>[\w.\-]+)")
_BRANCHES = re.compile(r" conditional\(.*branch_computations=\{([^}]*)\}")
_BOUND = re.compile(r"ROOT .* compare\(.*, %?([\w.\-]+)\), direction=LT")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_KERNEL = re.compile(r'%?([\w.\-]+) = .*custom_call_target="tpu_custom_call"')
_BUNDLES = re.compile(r"total scheduled bundles:\s+(\d+)")


class Case(NamedTuple):
    """An implementation at one size.

    Attributes:
        operation, implementation, shape: for the report.
        function, arguments: what is compiled, and the shapes and dtypes of its arrays.
        trips: turns of loops whose number the program does not tell, from the outside inwards.
        steps: of the grid of a Pallas kernel.
    """

    operation: str
    implementation: str
    shape: tuple[int, ...]
    function: Callable
    arguments: tuple[jax.ShapeDtypeStruct, ...]
    trips: tuple[float, ...] = ()
    steps: int = 0


def cases() -> Iterator[Case]:
    """Every implementation at every size, in bfloat16 where the models keep it."""
    for shape in SCANS:
        yield from _scans(*shape)
    for shape in MAPS:
        x = jax.ShapeDtypeStruct(shape, jnp.bfloat16)
        kernel = jax.ShapeDtypeStruct((_SIDE, _SIDE, shape[-1]), jnp.bfloat16)
        for word in ("lax", "shift"):
            run = functools.partial(depthwise_conv, implementation=word)
            yield Case("depthwise_conv", word, shape, run, (x, kernel))


def count_cycles(text: str, trips: Sequence[float] = ()) -> tuple[float, dict[str, float]]:
    """Cycles that a compiled program states, and how often each of its Pallas kernels runs.

    Of the branches of a condition the longest counts.

    Args:
        text: the program.
        trips: turns of loops whose number is not in it, by their depth, from the outside inwards.

    Raises:
        ValueError: a loop of unknown length lies deeper than `trips` tell.
    """
    bodies, entry = _computations(text)
    kernels: dict[str, float] = {}

    def walk(name: str, times: float, depth: int) -> float:
        total = 0.0
        for line in bodies[name]:
            if found := _CYCLES.search(line):
                total += times * int(found[1])
            if found := _KERNEL.search(line):
                kernels[found[1]] = times
            if found := _BRANCHES.search(line):
                names = (name.strip(" %") for name in found[1].split(","))
                total += max(walk(name, times, depth) for name in names)
            if found := _LOOP.search(line):
                turns = _turns(line, bodies[found["condition"]], trips, depth)
                total += walk(found["body"], times * turns, depth + 1)
        return total

    return walk(entry, 1.0, 0), kernels


def bundles(folder: Path, kernel: str) -> int:
    """Bundles that the compiler scheduled for a kernel, of what it wrote into a folder.

    Raises:
        ValueError: it wrote nothing about it.
    """
    for file in folder.rglob(f"*-{kernel}-*-schedule-analysis_final_bundles.txt"):
        if found := _BUNDLES.search(file.read_text()):
            return int(found[1])
    raise ValueError(
        f"the compiler wrote no schedule of {kernel} into {folder}; libtpu must be loaded after "
        "LIBTPU_INIT_ARGS is set: run the program in a process of its own"
    )


def measure(case: Case, device: Any, folder: Path) -> dict[str, Any]:
    """What the compiler states of a case, JSON-able.

    Returns:
        `operation`, `implementation`, `shape`; and for `forward` and `training` (forward and all
        gradients) `cycles`, of which `in_kernels` are those of Pallas kernels, and `temporaries`
        in bytes; or the `error`.
    """
    row: dict[str, Any] = {
        "operation": case.operation,
        "implementation": case.implementation,
        "shape": list(case.shape),
    }
    place = SingleDeviceSharding(device)
    arguments = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for x in case.arguments]

    def training(dy, *arrays):
        y, vjp = jax.vjp(case.function, *arrays)
        return y, vjp(dy)

    runs = {
        "forward": (case.function, arguments),
        "training": (training, [arguments[0], *arguments]),
    }
    for name, (function, arrays) in runs.items():
        try:
            compiled: Any = jax.jit(function).lower(*arrays).compile()
        except jax.errors.JaxRuntimeError as error:  # it does not fit
            row[name] = {"error": first_line(error)}
            continue
        cycles, kernels = count_cycles(compiled.as_text(), case.trips)
        inside = sum(n * case.steps * bundles(folder, kernel) for kernel, n in kernels.items())
        row[name] = {
            "cycles": round(cycles + inside),
            "in_kernels": round(inside),
            "temporaries": sizes(compiled)["temporaries"],
        }
    return row


def as_text(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table in Markdown; cycles are millions."""
    lines = [
        "| operation | shape | implementation | forward | with gradients | temporaries, MiB |",
        "|---|---|---|---:|---:|---:|",
    ]
    for row in rows:
        name = f"{row['operation']} | {'x'.join(map(str, row['shape']))} | {row['implementation']}"
        runs = [row["forward"], row["training"]]
        cycles = " | ".join(
            f"{run['cycles'] / 1e6:.2f}" if "cycles" in run else "–" for run in runs
        )
        memory = runs[1].get("temporaries")
        shown = "–" if memory is None else f"{memory / 2**20:,.0f}"
        lines.append(f"| {name} | {cycles} | {shown} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compiles every case, prints the table, and writes JSON if a file is named."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, metavar="FILE", help="a JSON file to write")
    out, rows = parser.parse_args(arguments).out, []
    with tempfile.TemporaryDirectory() as folder:
        dump = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {dump}".strip()
        device = devices_of(TARGET)[0]
        for case in cases():
            report_progress(f"{case.operation} {case.implementation} {case.shape}")
            rows.append(measure(case, device, Path(folder)))
            for file in Path(folder).iterdir():  # the next program has kernels of the same names
                file.unlink()
            if out is not None:
                save_json(
                    {"target": TARGET, "note": _NOTE, "versions": versions(), "rows": rows}, out
                )
    print(as_text(rows))


_NOTE = "by the model of a TPU's compiler; nothing was run, no time was measured"


def _scans(B: int, L: int, D: int, N: int, G: int) -> Iterator[Case]:
    tokens = jax.ShapeDtypeStruct((B, L, D), jnp.bfloat16)
    weights = jax.ShapeDtypeStruct((B, L, G, N), jnp.bfloat16)
    A = jax.ShapeDtypeStruct((D, N), jnp.float32)
    length = math.isqrt(L - 1) + 1  # tokens of a chunk of "chunked"
    tiles = G * -(-D // G // _TILE)
    tile = max(n for n in (1, 2, 3, 4) if tiles // G % n == 0)
    for word in ("chunked", "associative", "pallas", "auto"):
        if word == "associative" and 4 * B * L * D * N > _LARGEST:
            continue
        yield Case(
            "selective_scan",
            word,
            (B, L, D, N, G),
            functools.partial(selective_scan, delta_softplus=True, implementation=word),
            (tokens, tokens, A, weights, weights),
            trips=(-(-L // length), L / -(-L // length)),
            steps=B * tiles // tile * -(-L // _CHUNK),
        )


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of every computation of a program, and the name of the one that it starts with."""
    found: dict[str, list[str]] = {}
    lines, entry = [], ""
    for line in text.splitlines():
        if line.rstrip().endswith("{") and not line.startswith(" "):
            words = line.split()
            name = words[words[0] == "ENTRY"].lstrip("%").split("(")[0]
            lines = found[name] = []
            if words[0] == "ENTRY":
                entry = name
        else:
            lines.append(line)
    return found, entry


def _turns(line: str, condition: Sequence[str], trips: Sequence[float], depth: int) -> float:
    if found := _TRIPS.search(line):
        return int(found[1])
    bound = next((found[1] for text in condition if (found := _BOUND.search(text))), None)
    for text in condition:
        if found := re.search(rf"%?{re.escape(str(bound))} = s32\[\].* constant\((\d+)\)", text):
            return int(found[1])
    if depth >= len(trips):
        raise ValueError(
            f"a loop at depth {depth} has no length in the program, and trips={tuple(trips)} have "
            f"{len(trips)}; give one for each depth"
        )
    return trips[depth]


if __name__ == "__main__":
    main()
