# SPDX-License-Identifier: Apache-2.0
"""Table 1 is what the paper prints."""

from mambaout_jax.models import find_variant, list_models
from mambaout_jax.report.printed import MIXERS, PARAMETERS, TABLE_1, WHICH

# Model, token mixer, parameters (M), MACs (G), top-1 (%): the left and the right half of the
# printed table in turns.
PRINTED = """
VAN-B0,Conv,4,0.9,75.4
ConvNeXt-S,Conv,50,8.7,83.1
MogaNet-T,Conv,5,1.1,79.0
VAN-B3,Conv,45,9.0,83.9
FasterNet-T1,Conv,8,0.9,76.2
ConvFormer-S36,Conv,40,7.6,84.1
InceptionNeXt-A,Conv,4,0.5,75.3
InternImage-S,Conv,50,8,84.2
DeiT-Ti,Attn,6,1.3,72.2
MogaNet-B,Conv,44,9.9,84.3
T2T-ViT-7,Attn,4,1.1,71.7
T2T-ViT-19,Attn,39,8.5,81.9
PVTv2-B0,Conv + Attn,3,0.6,70.5
Swin-S,Attn,50,8.7,83.0
MobileViTv3-XS,Conv + Attn,3,0.9,76.7
Focal-Small,Attn,51,9.1,83.5
EMO-6M,Conv + Attn,6.5,1.0,79.0
CSWin-S,Attn,35,6.9,83.6
Vim-Ti,Conv + SSM,7,1.5,76.1
MViTv2-S,Attn,35,7.0,83.6
LocalVim-T,Conv + SSM,8,1.5,76.2
CoAtNet-1,Conv + Attn,42,8.4,83.3
EfficientVMamba-T,Conv + SSM,6,0.8,76.5
UniFormer-B,Conv + Attn,50,8.3,83.9
EfficientVMamba-S,Conv + SSM,11,1.3,78.7
CAFormer-S36,Conv + Attn,39,8.0,84.5
MambaOut-Femto,Conv,7,1.2,78.9
SG-Former-M,Conv + Attn,39,7.5,84.1
PoolFormer-S24,Pool,21,3.4,80.3
TransNeXt-Small,Conv + Attn,50,10.3,84.7
ConvNeXt-T,Conv,29,4.5,82.1
VMamba-S,Conv + SSM,44,11.2,83.5
VAN-B2,Conv,27,5.0,82.8
LocalVMamba-S,Conv + SSM,50,11.4,83.7
ConvFormer-S18,Conv,27,3.9,83.0
PlainMamba-L2,Conv + SSM,25,8.1,81.6
MogaNet-S,Conv,25,5.0,83.4
VMambaV9-S,Conv + SSM,50,8.7,83.6
InternImage-T,Conv,30,5,83.5
MambaOut-Small,Conv,48,9.0,84.1
InceptionNeXt-T,Conv,28,4.2,82.3
ConvNeXt-B,Conv,89,15.4,83.8
DeiT-S,Attn,22,4.6,79.8
RepLKNet-31B,Conv,79,15.3,83.5
T2T-ViT-14,Attn,22,4.8,81.5
ConvFormer-M36,Conv,57,12.8,84.5
Swin-T,Attn,29,4.5,81.3
HorNet-B,Conv,88,15.5,84.3
Focal-Tiny,Attn,29,4.9,82.2
MogaNet-L,Conv,83,15.9,84.7
CSWin-T,Attn,23,4.3,82.7
InternImage-B,Conv,97,16,84.9
CoAtNet-0,Conv + Attn,25,4.2,81.6
DeiT-B,Attn,86,17.5,81.8
iFormer-S,Conv + Attn,20,4.8,83.4
T2T-ViT-24,Attn,64,13.8,82.3
MOAT-0,Conv + Attn,28,5.7,83.3
Swin-B,Attn,88,15.4,83.5
CAFormer-S18,Conv + Attn,26,4.1,83.6
CSwin-B,Attn,78,15.0,84.2
SG-Former-S,Conv + Attn,23,4.8,83.2
MViTv2-B,Attn,52,10.2,84.4
TransNeXt-Tiny,Conv + Attn,28,5.7,84.0
CoAtNet-2,Conv + Attn,75,15.7,84.1
Vim-S,Conv + SSM,26,5.1,80.5
iFormer-L,Conv + Attn,87,14.0,84.8
VMamba-T,Conv + SSM,22,5.6,82.2
MOAT-2,Conv + Attn,73,17.2,84.7
Mamba-2D-S,Conv + SSM,24,-,81.7
CAFormer-M36,Conv + Attn,56,13.2,85.2
LocalVim-S,Conv + SSM,28,4.8,81.2
TransNeXt-Base,Conv + Attn,90,18.4,84.8
LocalVMamba-T,Conv + SSM,26,5.7,82.7
VMamba-B,Conv + SSM,75,18.0,83.7
EfficientVMamba-B,Conv + SSM,33,4.0,81.8
Mamba-2D-B,Conv + SSM,92,-,83.0
PlainMamba-L1,Conv + SSM,7,3.0,77.9
PlainMamba-L3,Conv + SSM,50,14.4,82.3
VMambaV9-T*,Conv + SSM,31,4.9,82.5
VMambaV9-B,Conv + SSM,89,15.4,83.9
"""


def test_rows_are_the_printed_ones_in_the_papers_order():
    rows = [",".join(row[:5]).replace(" ", "") for row in TABLE_1]
    assert rows == PRINTED.replace(" ", "").split()
    assert len(rows) == 80


def test_every_row_is_another_model_of_this_library():
    assert len({row.name for row in TABLE_1}) == 80
    assert set(list_models()) >= {row.name for row in TABLE_1}


def test_mixers_and_notes_are_of_the_table():
    assert {row.token_mixer for row in TABLE_1} == set(MIXERS)
    assert {row.model for row in TABLE_1} >= {*WHICH, *PARAMETERS}


def test_accuracies_are_those_of_the_families_tables():
    for row in TABLE_1:
        assert float(row.top1) == find_variant(row.name)[1].top1, row.model
