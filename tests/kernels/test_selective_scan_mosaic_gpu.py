# SPDX-License-Identifier: Apache-2.0
"""The GPU kernels of the selective scan: interpreted against the oracle, and lowered."""

import pytest
from support import scan_kernels
from support.interpreters import force_gpu_interpret_mode


@pytest.mark.parametrize("case", scan_kernels.by_default("groups-one-state-reverse"))
def test_gpu_kernels_match_oracle(rng, case):
    with force_gpu_interpret_mode():
        scan_kernels.check(rng, scan_kernels.CASES[case], "cuda", chunk=4)


@pytest.mark.slow
@pytest.mark.parametrize("reverse", [False, True])
def test_gpu_kernels_match_oracle_with_whole_chunks(rng, reverse):
    with force_gpu_interpret_mode():
        scan_kernels.check(rng, ((1, 33, 258, 2, 2), "bfloat16", reverse, True), "cuda", chunk=16)


@pytest.mark.parametrize("case", scan_kernels.by_default("vim", scan_kernels.LOWERED))
def test_gpu_kernels_lower_to_one_call_each_way(case):
    forward, gradients = scan_kernels.lower("cuda", *scan_kernels.LOWERED[case])
    assert forward.count("custom_call @mosaic_gpu") == 1
    assert gradients.count("custom_call @mosaic_gpu") == 2
