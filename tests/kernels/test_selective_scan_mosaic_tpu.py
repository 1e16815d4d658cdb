# SPDX-License-Identifier: Apache-2.0
"""The TPU kernels of the selective scan: interpreted against the oracle, and lowered."""

import pytest
from jax.experimental.pallas import tpu as pltpu
from support import scan_kernels

# 640 channels are five tiles of a TPU, and 32 chunks of 4 tokens one group of chunks.
CASES = scan_kernels.CASES | {
    "tiles-reverse": ((1, 3, 640, 2, 1), "float32", True, True),
    "groups-of-chunks": ((2, 137, 3, 2, 1), "float32", False, False),
    "groups-of-chunks-reverse": ((1, 260, 4, 3, 2), "float32", True, False),
}


@pytest.mark.parametrize("case", scan_kernels.by_default("groups-one-state-reverse", CASES))
def test_tpu_kernels_match_oracle(rng, case):
    with pltpu.force_tpu_interpret_mode():
        scan_kernels.check(rng, CASES[case], "tpu", chunk=4)


@pytest.mark.slow
@pytest.mark.parametrize("reverse", [False, True])
def test_tpu_kernels_match_oracle_with_whole_chunks(rng, reverse):
    with pltpu.force_tpu_interpret_mode():
        scan_kernels.check(rng, ((1, 33, 258, 2, 2), "bfloat16", reverse, True), "tpu", chunk=16)


@pytest.mark.parametrize("case", scan_kernels.by_default("vim", scan_kernels.LOWERED))
def test_tpu_kernels_lower_to_one_call_each_way(case):
    forward, gradients = scan_kernels.lower("tpu", *scan_kernels.LOWERED[case])
    assert forward.count("custom_call @tpu_custom_call") == 1
    assert gradients.count("custom_call @tpu_custom_call") == 2
