# SPDX-License-Identifier: Apache-2.0
"""What NVIDIA's compiler makes of the Mosaic GPU kernels in a program; no GPU is needed.

Registers, spills, shared memory and the machine code itself are the compiler's. How many blocks fit
on a multiprocessor follows from them by the rules of the hardware (`blocks_per_multiprocessor`).
Nothing is run, and nothing here says how long anything takes.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import SingleDeviceSharding

from mambaout_jax.aot.program import sizes
from mambaout_jax.aot.sass import Loop, read_loops

# A multiprocessor of compute capability 9.0 (CUDA C++ Programming Guide, "Compute Capabilities").
_WARP = 32  # threads
_MAX_WARPS, _MAX_BLOCKS = 64, 32
_REGISTERS, _REGISTER_UNIT = 65_536, 256  # given out to warps, in units
_SHARED, _SHARED_UNIT, _SHARED_OF_SYSTEM = 233_472, 128, 1024  # bytes; the last for every block

_DUMP_TO = "MOSAIC_GPU_DUMP_TO"  # the folder that Mosaic GPU writes what it compiles to
_SASS_SUFFIXES = (".sass_ctrl", ".sass")


class Resources(NamedTuple):
    """What a thread or a block of a kernel takes, in `ptxas -v`.

    Attributes:
        registers: of a thread, 32 bits each.
        stack: bytes of a thread's local memory.
        spilled: bytes that a thread stores to or loads from local memory for want of registers.
        shared: bytes of a block's shared memory that the code names; what is asked for at the
            launch comes on top.
    """

    registers: int
    stack: int
    spilled: int
    shared: int


class Launch(NamedTuple):
    """How a kernel is started: blocks in each direction, threads of one, its shared memory."""

    grid: tuple[int, int, int]
    threads: int
    shared: int


class Kernel(NamedTuple):
    """A compiled kernel.

    Attributes:
        resources: of a thread and a block.
        launch: its grid.
        loops: of its machine code, empty without a disassembler.
        temporaries: bytes of device memory that the program around it holds beside arguments and
            results, such as padded copies of them.
        moved: bytes of the program's arguments and results.
    """

    resources: Resources
    launch: Launch
    loops: list[Loop]
    temporaries: int
    moved: int


def read_resources(text: str) -> Resources:
    """The resources of the one kernel that a report of `ptxas -v` is about.

    Raises:
        ValueError: it is about none, or about several.
    """
    registers = re.findall(r"Used (\d+) registers", text)
    if len(registers) != 1:
        raise ValueError(
            f"the report of ptxas has registers of {len(registers)} kernels; give that of one, "
            "made with ptxas -v"
        )

    def number(what: str) -> int:
        found = re.search(rf"(\d+) bytes {what}", text)
        return int(found[1]) if found else 0

    return Resources(
        registers=int(registers[0]),
        stack=number("stack frame"),
        spilled=number("spill stores") + number("spill loads"),
        shared=number("smem"),
    )


def read_launch(text: str) -> Launch:
    """The first launch in a text of MLIR, whose sizes are constants (`%c128`, `%c1_0`).

    Raises:
        ValueError: there is none.
    """
    for line in text.splitlines():
        if "gpu.launch " not in line or "threads(" not in line:
            continue
        blocks, threads = line.split("threads(", 1)
        sizes = [[int(n) for n in re.findall(r"= %c(\d+)", part)] for part in (blocks, threads)]
        shared = re.search(r"dynamic_shared_memory_size %c(\d+)", line)
        if len(sizes[0]) == len(sizes[1]) == 3:
            x, y, z = sizes[0]
            width, height, depth = sizes[1]
            return Launch((x, y, z), width * height * depth, int(shared[1]) if shared else 0)
    raise ValueError("the text has no gpu.launch of known size; give Mosaic GPU's log of passes")


def blocks_per_multiprocessor(threads: int, registers: int, shared: int) -> int:
    """How many blocks of a kernel are on a multiprocessor of an H100 at a time; 0: not even one.

    Args:
        threads: of a block.
        registers: of a thread.
        shared: bytes of a block, all kinds of shared memory together.
    """
    warps = _whole(threads, _WARP) // _WARP
    of_warp = _whole(registers * _WARP, _REGISTER_UNIT)
    by_registers = _REGISTERS // of_warp // warps
    by_shared = _SHARED // _whole(shared + _SHARED_OF_SYSTEM, _SHARED_UNIT)
    return min(_MAX_BLOCKS, _MAX_WARPS // warps, by_registers, by_shared)


def compile_kernel(function: Callable, *arguments: jax.ShapeDtypeStruct, device: Any) -> Kernel:
    """Compiles a function with one Mosaic GPU kernel in it, and reads what became of the kernel.

    A kernel that this process has compiled before is not compiled again, and cannot be read.

    Args:
        function: of arrays.
        *arguments: shapes and dtypes.
        device: one of an NVIDIA target (`targets.devices_of`).

    Raises:
        RuntimeError: not exactly one kernel was compiled, or Mosaic GPU wrote no report on it.
    """
    sharding = SingleDeviceSharding(device)
    placed = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding) for a in arguments]
    with _dumped() as folder:
        compiled = jax.jit(function).lower(*placed).compile()
        reports = sorted(folder.glob("*.ptxas"))
        if len(reports) != 1:
            raise RuntimeError(
                f"{len(reports)} kernels were compiled where one was expected; give a function "
                "with one kernel, that this process has not compiled before"
            )
        stem = reports[0].with_suffix("")
        log = Path(f"{stem}.mlir-passes.log")
        if not log.exists():
            raise RuntimeError("Mosaic GPU wrote no log of its passes; compile with jax 0.10")
        code = [path for suffix in _SASS_SUFFIXES if (path := Path(f"{stem}{suffix}")).exists()]
        held = sizes(compiled)
        return Kernel(
            read_resources(reports[0].read_text()),
            read_launch(log.read_text()),
            read_loops(code[0].read_text()) if code else [],
            held["temporaries"],
            held["arguments"] + held["outputs"],
        )


@contextlib.contextmanager
def _dumped() -> Iterator[Path]:
    """An empty folder to which Mosaic GPU writes what it compiles meanwhile."""
    before = os.environ.get(_DUMP_TO)
    with tempfile.TemporaryDirectory() as folder:
        os.environ[_DUMP_TO] = folder
        try:
            yield Path(folder)
        finally:
            del os.environ[_DUMP_TO]
            if before is not None:
                os.environ[_DUMP_TO] = before


def _whole(size: int, unit: int) -> int:
    return -(-size // unit) * unit
