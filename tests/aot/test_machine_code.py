# SPDX-License-Identifier: Apache-2.0
"""Reports of a compiler that need not be here, written by hand, and the rules of the hardware."""

import jax
import pytest

from mambaout_jax.aot.machine_code import (
    Launch,
    Resources,
    blocks_per_multiprocessor,
    compile_kernel,
    read_launch,
    read_resources,
)

REPORT = """
ptxas info    : Compiling entry function 'kernel' for 'sm_90a'
ptxas info    : Function properties for kernel
    40 bytes stack frame, 24 bytes spill stores, 36 bytes spill loads
ptxas info    : Used 168 registers, used 2 barriers, 512 bytes smem
"""
LAUNCH = """
  gpu.launch_func @somewhere::@else
  %9 = gpu.launch async [%0] blocks(%arg2, %arg3, %arg4) in (%arg8 = %c8, %arg9 = %c3, \
%arg10 = %c1_0) threads(%arg5, %arg6, %arg7) in (%arg11 = %c128, %arg12 = %c2, %arg13 = %c1_1) \
dynamic_shared_memory_size %c36880_i32 {
"""


def test_the_resources_of_a_kernel_are_read_from_its_report():
    assert read_resources(REPORT) == Resources(registers=168, stack=40, spilled=60, shared=512)
    assert read_resources("ptxas info : Used 32 registers") == Resources(32, 0, 0, 0)


@pytest.mark.parametrize("text", ["", REPORT * 2])
def test_a_report_on_none_or_several_kernels_is_refused(text):
    with pytest.raises(ValueError, match="give that of one, made with ptxas -v"):
        read_resources(text)


def test_the_grid_and_shared_memory_are_read_from_the_launch():
    assert read_launch(LAUNCH) == Launch((8, 3, 1), 256, 36880)
    with pytest.raises(ValueError, match=r"no gpu\.launch of known size"):
        read_launch("module {}")


# As NVIDIA's table of compute capability 9.0 has it: 64 warps, 32 blocks, 65,536 registers and
# 228 KiB of shared memory, of which every block takes 1 KiB more than it asks for.
@pytest.mark.parametrize(
    ("threads", "registers", "shared", "blocks"),
    [
        (128, 32, 0, 16),  # 64 warps
        (32, 32, 0, 32),  # blocks
        (128, 128, 0, 4),
        (128, 168, 0, 3),
        (128, 169, 0, 2),  # registers are given out by eights
        (1024, 64, 0, 1),
        (1024, 65, 0, 0),
        (128, 32, 227 * 1024, 1),
        (128, 32, 113 * 1024, 2),
        (128, 32, 113 * 1024 + 1, 1),
        (128, 32, 228 * 1024, 0),
    ],
)
def test_as_many_blocks_as_warps_registers_and_shared_memory_allow(
    threads, registers, shared, blocks
):
    assert blocks_per_multiprocessor(threads, registers, shared) == blocks


def test_a_program_without_a_kernel_is_refused():
    x = jax.ShapeDtypeStruct((3,), "float32")
    with pytest.raises(RuntimeError, match="0 kernels were compiled where one was expected"):
        compile_kernel(lambda x: x + 1, x, device=jax.devices()[0])
