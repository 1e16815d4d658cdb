# SPDX-License-Identifier: Apache-2.0
"""The machine code of this library's GPU kernels at the sizes of its models, against their bounds.

    JAX_PLATFORMS=cpu python -m mambaout_jax.aot.gpu_kernels --out machine_code_h100.json

compiles each for an H100 and counts what its inner loops issue per element: a number of y, of du,
or of the map whose kernel's gradient is wanted. It needs `pip install 'mambaout-jax[aot-gpu]'`, and
nvidia-cuda-nvdisasm for the counts. Nothing is run: counts become clocks by how many of each kind a
multiprocessor can start, as if nothing ever waited, so that a kernel takes longer than they say.
"""

import argparse
import functools
import importlib.metadata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mambaout_jax.aot.machine_code import Kernel, blocks_per_multiprocessor, compile_kernel
from mambaout_jax.aot.sass import instructions
from mambaout_jax.aot.targets import devices_of, versions
from mambaout_jax.benchmarks.timing import report_progress, save_json
from mambaout_jax.kernels import selective_scan_mosaic_gpu
from mambaout_jax.kernels.depthwise_conv_pallas import conv_pallas, gradients_pallas, tile_of

SCANS = ((8, 784, 384, 16), (2, 3136, 96, 16), (8, 49, 576, 1))  # B, L, D, N
MAPS = (  # B, H, W, C: the stages of MambaOut-Tiny, and first ones of other models
    (64, 56, 56, 96),
    (64, 28, 28, 192),
    (64, 14, 14, 384),
    (64, 7, 7, 576),
    (64, 56, 56, 48),
    (64, 56, 56, 64),
)
_CHUNK, _LANES = 16, 128  # tokens and channels of the scan's tiles
_SIDE, _COLUMNS = 7, 8  # of the convolution's kernel; of a strip, at most

# Of one warp, that a multiprocessor of an H100 starts in a clock: four schedulers, 128 lanes for
# float32, 16 for exp2, 32 for loads and stores.
_PER_CLOCK = {"issue": 4.0, "float32": 4.0, "exp": 0.5, "load_store": 1.0}
_WARP = 32
_BYTES_PER_CLOCK = 3.0e12 / 132 / 1.98e9  # of one of 132 multiprocessors, at what a copy reaches


class Case(NamedTuple):
    """A kernel at one size.

    Attributes:
        name, shape: for the report.
        function, arguments: what is compiled; arrays by shape and dtype.
        total: elements of the result.
        elements: of one thread in one iteration of the loop over rows or chunks.
        inner: iterations of the loop in it, if there is one.
        rows: that the inner loop is the one over rows, within one over strips.
        share: of the inner loop's iterations that run what a jump may pass by.
        used: the part of the threads' elements that are not padding or computed twice.
        needed: instructions per element that the computation cannot do without, by kind, and
            `bytes` of arguments and results in bfloat16.
    """

    name: str
    shape: tuple[int, ...]
    function: Callable
    arguments: tuple[jax.ShapeDtypeStruct, ...]
    total: int
    elements: int
    inner: int
    rows: bool
    share: float
    used: float
    needed: dict[str, float]


def cases() -> Iterator[Case]:
    """Every kernel at every size, in bfloat16 where the models keep it."""
    for shape in SCANS:
        yield from _scans(*shape)
    for shape in MAPS:
        yield from _convolutions(*shape)


def report_on(case: Case, kernel: Kernel) -> dict[str, Any]:
    """A compiled kernel as a JSON-able dict.

    Returns:
        `kernel`, `shape`, what `Resources` and `Launch` say, `blocks` of the launch,
        `blocks_per_multiprocessor`, `temporaries` in bytes; and where the machine code was read
        `per_element`, instructions by kind and `all`, `bytes_per_element` of arguments and results,
        `needed_per_element` as in `Case`, `clocks` that a multiprocessor takes for an
        element by unit, its share of the device's memory among them, `bound`, the clocks for what
        cannot be done without, and `of_bound`, that over the most of `clocks`.
    """
    resources, launch = kernel.resources, kernel.launch
    shared = resources.shared + launch.shared
    row: dict[str, Any] = {
        "kernel": case.name,
        "shape": list(case.shape),
        "registers": resources.registers,
        "spilled_bytes": resources.spilled,
        "stack_bytes": resources.stack,
        "static_shared_bytes": resources.shared,
        "dynamic_shared_bytes": launch.shared,
        "threads": launch.threads,
        "blocks": launch.grid[0] * launch.grid[1] * launch.grid[2],
        "blocks_per_multiprocessor": blocks_per_multiprocessor(
            launch.threads, resources.registers, shared
        ),
        "temporaries": kernel.temporaries,
    }
    if not kernel.loops:
        return row
    nested = max(loop.depth for loop in kernel.loops) > 0
    elements = case.elements * (case.inner if case.rows and nested else 1) * case.used
    found = instructions(kernel.loops, {1: case.inner}, {int(nested): case.share})
    per_element = {kind: count / elements for kind, count in found.items()}
    per_element["all"] = sum(per_element.values())
    moved = kernel.moved / case.total
    clocks = _clocks(per_element) | {"memory": moved / _BYTES_PER_CLOCK}
    needed = [case.needed[kind] / _WARP / _PER_CLOCK[kind] for kind in ("float32", "exp")]
    bound = max(*needed, case.needed["bytes"] / _BYTES_PER_CLOCK)
    return row | {
        "used": round(case.used, 4),
        "per_element": {kind: round(count, 3) for kind, count in per_element.items()},
        "bytes_per_element": round(moved, 3),
        "needed_per_element": case.needed,
        "clocks": {unit: round(count, 4) for unit, count in clocks.items()},
        "bound": round(bound, 4),
        "of_bound": round(bound / max(clocks.values()), 3),
    }


def as_text(rows: Sequence[dict[str, Any]]) -> str:
    """The reports as a table in Markdown."""
    lines = [
        "| kernel | shape | registers | spills, B | shared, B | blocks | on a multiprocessor "
        "| float32 / exp / loads / stores / barriers / all per element | longest unit "
        "| of the bound |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        counts, longest, per = "", "", row.get("per_element")
        if per:
            loads = per["global_load"] + per["shared_load"]
            stores = per["global_store"] + per["shared_store"]
            shown = (per["float32"], per["exp"], loads, stores, per["barrier"], per["all"])
            counts = " / ".join(f"{count:.2f}" for count in shown)
            longest = max(row["clocks"], key=row["clocks"].__getitem__)
        shared = row["static_shared_bytes"] + row["dynamic_shared_bytes"]
        lines.append(
            f"| {row['kernel']} | {'x'.join(map(str, row['shape']))} | {row['registers']} "
            f"| {row['spilled_bytes']} | {shared:,} | {row['blocks']:,} "
            f"| {row['blocks_per_multiprocessor']} | {counts} | {longest} "
            f"| {row.get('of_bound', 0):.0%} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Compiles every case, prints the table, and writes JSON if a file is named."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--out", type=Path, metavar="FILE", help="a JSON file to write")
    out = parser.parse_args(arguments).out
    device, rows = devices_of("h100")[0], []
    for case in cases():
        report_progress(f"{case.name} {case.shape}")
        compiled = compile_kernel(case.function, *case.arguments, device=device)
        rows.append(report_on(case, compiled))
    print(as_text(rows))
    if out is not None:
        save_json({**_about(), "kernels": rows}, out)


def _about() -> dict[str, Any]:
    found = versions()
    for name in ("nvidia-cuda-nvcc", "nvidia-cuda-nvdisasm"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "target": "h100",
        "note": "by NVIDIA's compiler for sm_90a; nothing was run, no time was measured",
        "versions": found,
    }


def _scans(B: int, L: int, D: int, N: int) -> Iterator[Case]:
    """Both kernels, whose arguments are padded to whole tiles as `scan_pallas` does it."""
    chunks, padded = -(-L // _CHUNK), -(-D // _LANES) * _LANES
    tokens = chunks * _CHUNK

    def array(*sides, dtype=jnp.float32):
        return jax.ShapeDtypeStruct(sides, dtype)

    u, delta = array(B, tokens, padded, dtype=jnp.bfloat16), array(B, tokens, padded)
    a, b, state = array(N, padded), array(B, 1, chunks, N, _CHUNK), array(B, N, padded)
    entries = array(B, chunks, N, padded)
    case = functools.partial(
        Case,
        shape=(B, L, D, N),
        total=B * L * D,
        elements=_CHUNK,
        inner=N,
        rows=False,
        used=L * D / tokens / padded,
    )
    # Per state the exponent, the input, the step, and C's product; `delta u` once. Softplus is
    # outside of the kernels.
    yield case(
        name="scan",
        function=functools.partial(selective_scan_mosaic_gpu.forward, reverse=False),
        arguments=(u, delta, a, b, b, state),
        share=1,
        needed={"float32": 4 * N + 1, "exp": N, "bytes": 6},
    )
    # Per state three for the states, eight for the adjoint, two for the sums over channels, which
    # are made for two states at a time; five that are alike for all states.
    yield case(
        name="scan gradient",
        function=functools.partial(selective_scan_mosaic_gpu.backward, reverse=False),
        arguments=(u, delta, a, b, b, entries, delta, state),
        share=0.5 if N > 1 else 1,
        needed={"float32": 13 * N + 5, "exp": N, "bytes": 12},
    )


def _convolutions(B: int, H: int, W: int, C: int) -> Iterator[Case]:
    x = jax.ShapeDtypeStruct((B, H, W, C), jnp.bfloat16)
    kernel = jax.ShapeDtypeStruct((_SIDE, _SIDE, C), jnp.bfloat16)
    strips, lanes = -(-W // _COLUMNS), tile_of(B, C)[1]
    width = -(-W // strips)
    case = functools.partial(
        Case,
        shape=(B, H, W, C),
        total=B * H * W * C,
        elements=width,
        inner=H,
        rows=True,
        share=1,
        used=W / strips / width * C / (-(-C // lanes) * lanes),
        needed={"float32": _SIDE * _SIDE, "exp": 0, "bytes": 4},
    )

    def kernel_gradient(x, kernel, dy):
        return gradients_pallas(x, kernel, dy)[1]

    yield case(name="convolution", function=conv_pallas, arguments=(x, kernel))
    yield case(
        name="convolution, kernel gradient", function=kernel_gradient, arguments=(x, kernel, x)
    )


def _clocks(per_element: dict[str, float]) -> dict[str, float]:
    """Of a multiprocessor for an element, by unit; all instructions go through that of `issue`."""
    memory = ("global_load", "global_store", "shared_load", "shared_store", "spill")
    counts = {
        "issue": per_element["all"],
        "float32": per_element["float32"],
        "exp": per_element["exp"],
        "load_store": sum(per_element[kind] for kind in memory),
    }
    return {unit: count / _WARP / _PER_CLOCK[unit] for unit, count in counts.items()}


if __name__ == "__main__":
    main()
