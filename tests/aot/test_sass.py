# SPDX-License-Identifier: Apache-2.0
"""Loops in machine code, in texts written by hand whose loops are known."""

import pytest

from mambaout_jax.aot.sass import instructions, read_loops

# A loop (.L_x_1) that may skip a store and holds an inner loop (.L_x_2). It may have to wait for
# its data, in .L_x_9 at the end, from where it jumps back into its middle (.L_x_3).
TEXT = """
	.section	.text.kernel,"ax",@progbits
.text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   FADD R9, R9, R9 ;
.L_x_1:
        /*0020*/                   SYNCS.PHASECHK.TRYWAIT P1, [R2], R3 ;
        /*0030*/              @!P1 BRA `(.L_x_9) ;
.L_x_3:
        /*0040*/                   LDS R4, [R2] ;
.L_x_2:
  -:-:1:Y:02        /*0050*/                   LDG.E.U16 R5, desc[UR4][R6.64] 
  1:-:-:-:04        /*0060*/                   FFMA R7, R4.reuse, R5, R7 
  -:-:-:-:04        /*0070*/                   FMUL.FTZ R8, R7, R7 
  -:-:-:Y:02        /*0080*/                   MUFU.EX2 R8, R8 
  -:-:-:Y:05        /*0090*/               @P0 BRA `(.L_x_2) 
        /*00a0*/              @!P2 BRA `(.L_x_4) ;
        /*00b0*/               @P3 STG.E desc[UR4][R6.64], R8 ;
.L_x_4:
        /*00c0*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;
        /*00d0*/                   IADD3 R6, R6, 0x1, RZ ;
        /*00e0*/                   BRA.U UP0, `(.L_x_1) ;
        /*00f0*/                   EXIT ;
.L_x_9:
        /*0100*/                   SYNCS.PHASECHK.TRYWAIT P1, [R2], R3 ;
        /*0110*/              @!P1 BRA `(.L_x_9) ;
        /*0120*/                   BRA `(.L_x_3) ;
.L_x_8:
        /*0130*/                   BRA `(.L_x_8);
.L_x_10:

	.section	.text.another,"ax",@progbits
        /*0000*/                   FADD R9, R9, R9 ;
"""


def test_loops_are_told_apart_with_what_they_may_skip():
    outer, inner = read_loops(TEXT)
    assert (outer.depth, inner.depth) == (0, 1)
    assert outer.always == {"barrier": 2, "shared_load": 1, "other": 4}
    assert outer.sometimes == {"global_store": 1, "other": 1}  # the other: back from waiting
    assert inner.always == {"global_load": 1, "float32": 2, "exp": 1, "other": 1}
    assert not inner.sometimes


def test_an_iteration_counts_inner_loops_as_often_as_they_run():
    found = instructions(read_loops(TEXT), {1: 10}, {0: 0.5})
    assert found["float32"] == 20
    assert found["exp"] == found["global_load"] == 10
    assert found["shared_load"] == 1
    assert found["global_store"] == 0.5
    assert found["other"] == 10 + 4 + 0.5
    assert found["spill"] == 0


def test_code_without_a_loop_has_none_and_a_text_without_code_is_refused():
    assert read_loops("/*0000*/  FADD R1, R1, R1 ;\n/*0010*/  EXIT ;\n") == []
    with pytest.raises(ValueError, match="no instructions; give that of nvdisasm"):
        read_loops(".section .text\n")
