# SPDX-License-Identifier: Apache-2.0
"""What is read out of a program's text, against programs whose answers are known."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mambaout_jax.aot.program import (
    array_bytes,
    at_peak,
    collectives,
    live_arrays,
    memory_over_steps,
    sizes,
    thinned,
)

# Written by hand: %big lives from step 2 to 4, %small from 3 to 5, %copy in another memory.
TEXT = """
HloModule jit_f, is_scheduled=true

%body (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %inner = f32[999]{0} add(%p, %p)
}

ENTRY %main (a: bf16[4,8]) -> f32[8] {
  %a = bf16[4,8]{1,0:T(8,128)} parameter(0)
  %zero = f32[] constant(0)
  %big = f32[100,2]{1,0} fusion(%a), kind=kLoop, metadata={op_name="jit(f)/model/big/dot"}
  %small = (f32[10]{0}, s8[5]{0}) custom-call(%big, %zero), metadata={op_name="jit(f)/small"}
  %part = f32[10]{0} get-tuple-element(%small), index=0
  %copy = f32[8]{0:S(1)} fusion(%big, %part), kind=kLoop
  ROOT %sum = f32[8]{0} all-reduce(%copy), to_apply=%add, metadata={op_name="jit(f)/sum"}
}
"""


def test_arrays_are_measured_from_their_text():
    assert array_bytes("f32[100,2]{1,0}") == 800
    assert array_bytes("(bf16[3]{0}, pred[5]{0}, f32[])") == 6 + 5 + 4
    assert array_bytes("f32[8]{0:T(8,128)S(1)}") == 0  # on the chip, not in its memory


def test_live_arrays_are_followed_to_their_last_use():
    arrays, steps = live_arrays(TEXT)
    assert steps == 7
    assert [tuple(array) for array in arrays] == [
        ("model/big/dot", "f32[100,2]", 800, 2, 5),
        ("small", "2 arrays", 45, 3, 5),
        ("sum", "f32[8]", 32, 6, 6),
    ]
    assert memory_over_steps(arrays, steps) == [0, 0, 800, 845, 845, 845, 32]
    assert [array.name for array in at_peak(arrays, steps)] == ["model/big/dot", "small"]


def test_a_text_without_a_program_is_refused():
    with pytest.raises(ValueError, match=r"no ENTRY computation; give that of as_text"):
        live_arrays("HloModule nothing")


def test_collectives_are_counted_with_their_bytes():
    assert collectives(TEXT) == {"all-reduce": {"count": 1, "bytes": 32}}
    started = "%x = (f32[4]{0}, f32[8]{0}) all-gather-start(%a), dimensions={0}"
    assert collectives(started)["all-gather"]["count"] == 1


def test_a_compiled_program_tells_its_memory_and_exchanges():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    batch, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())

    def gradient(w, x):
        return jax.grad(lambda w: (jnp.sin(x @ w) ** 2).sum())(w)

    step = jax.jit(gradient, in_shardings=(whole, batch), out_shardings=whole)
    compiled = step.lower(jnp.ones((16, 32)), jnp.ones((64, 16))).compile()
    found = sizes(compiled)
    assert found["arguments"] == 4 * (16 * 32 + 64 * 16 // 8)
    assert found["outputs"] == 4 * 16 * 32
    assert found["peak"] >= found["arguments"] + found["outputs"] + found["temporaries"]
    assert collectives(compiled.as_text()) == {"all-reduce": {"count": 1, "bytes": 4 * 16 * 32}}


def test_a_thinned_curve_keeps_its_peaks():
    assert thinned([1, 5, 2, 2, 9, 3, 4], 3) == [5, 2, 9]
    assert thinned([1, 5, 2], 3) == thinned([1, 5, 2], 500) == [1, 5, 2]
    assert thinned([], 500) == []
