# SPDX-License-Identifier: Apache-2.0
"""VMamba: the selective SSM over a map in four directions.

Paper: Liu et al., "VMamba: Visual State Space Model", NeurIPS 2024, arXiv 2401.10166. Sizes and
names: configs/vssm of github.com/MzeroMiko/VMamba at 2ed52ea.

    v9   vmambav2_{tiny,small,base}_224.yaml, the models of its Table 1: one state per channel, no
         gate, a perceptron behind each SSM
    v0   vmambav0_{tiny,small,base}_224.yaml, those of the first version of the paper and of Table 1
         of the MambaOut paper: sixteen states, a gate, no perceptron, the frame of Swin
"""

import flax.linen as nn
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax import backbone
from mambaout_jax.backbone import Features, Pyramid, Variant
from mambaout_jax.heads.classifier import PooledHead
from mambaout_jax.layers.downsample import ConvNorm, ConvStem, PatchMerging
from mambaout_jax.layers.mlp import Mlp
from mambaout_jax.layers.norms import LayerNorm
from mambaout_jax.layers.residual import DropPath
from mambaout_jax.mixers.routes import paths_of
from mambaout_jax.mixers.ss2d import SS2D
from mambaout_jax.mixers.ssm import SSM_DECAY
from mambaout_jax.published import Weights

EPSILON = 1e-5  # of every norm


class VMambaBlock(nn.Module):
    """x = x + ss2d(norm1(x)), then, with a perceptron, x + mlp(norm2(x)).

    Attributes:
        expand, state_size, scan_implementation, gated: see `SS2D`.
        mlp_ratio: width of the perceptron over that of the block, 0 for none.
        drop_path: probability of dropping each of the branches of an example while training.
        dtype: dtype of the computation, None to promote.
    """

    expand: int
    state_size: int
    scan_implementation: str
    gated: bool
    mlp_ratio: int
    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        dtype = self.dtype
        y = LayerNorm(EPSILON, dtype=dtype, name="norm1")(x)
        scan = (self.expand, self.state_size, self.scan_implementation, self.gated)
        y = SS2D(paths_of("cross"), *scan, dtype, name="ss2d")(y)
        x = x + DropPath(self.drop_path, name="drop_path1")(y, train)
        if self.mlp_ratio == 0:
            return x
        y = LayerNorm(EPSILON, dtype=dtype, name="norm2")(x)
        y = Mlp(self.mlp_ratio * x.shape[-1], dtype=dtype, name="mlp")(y)
        return x + DropPath(self.drop_path, name="drop_path2")(y, train)


class VMamba(Pyramid):
    """Backbone of four stages: maps of stride 4, 8, 16 and 32.

    Attributes:
        expand: width of the SSM over that of the block.
        state_size: states of the SSM.
        scan_implementation: see `kernels.selective_scan`.
        gated: whether the SSM has a gate.
        mlp_ratio: width of the perceptrons over that of their block, 0 for none.
        merging: 4 x 4 patches and merging of them between stages, as in Swin, instead of 3 x 3
            convolutions of stride 2.
    """

    expand: int = 2
    state_size: int = 1
    scan_implementation: str = "auto"
    gated: bool = False
    mlp_ratio: int = 4
    merging: bool = False

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        dtype = self.layer_dtype
        block = self.block_class(VMambaBlock)
        options = (self.expand, self.state_size, self.scan_implementation, self.gated)
        norm = {"epsilon": EPSILON, "dtype": dtype}
        maps = []
        if self.merging:
            x = ConvNorm(self.dims[0], 4, 4, **norm, name="patch_embed")(images)
        else:
            x = ConvStem(self.dims[0], **norm, name="stem")(images)
        for i, rates in enumerate(self.stage_rates):
            if i > 0 and self.merging:
                x = PatchMerging(self.dims[i], **norm, name=f"merging_{i}")(x)
            elif i > 0:
                x = ConvNorm(self.dims[i], 3, 2, 1, **norm, name=f"downsample_{i}")(x)
            for j, rate in enumerate(rates):
                name = f"stage_{i}_block_{j:02d}"
                x = block(*options, self.mlp_ratio, rate, dtype, name=name)(x, train)
            maps.append(x)
        return Features(tuple(maps))


BACKBONE = VMamba
HEAD = PooledHead

_HEAD = {"norm_first": True, "epsilon": EPSILON}

# fmt: off
_V0 = {"state_size": 16, "gated": True, "mlp_ratio": 0, "merging": True}

VARIANTS = {
    "vmamba_v9_tiny": Variant(
        {"depths": (2, 2, 5, 2), "dims": (96, 192, 384, 768)},
        _HEAD, 30_705_832, 4_824_588_288, 0.2, top1=82.5),
    "vmamba_v9_small": Variant(
        {"depths": (2, 2, 15, 2), "dims": (96, 192, 384, 768)},
        _HEAD, 50_147_752, 8_667_568_128, 0.3, top1=83.6),
    "vmamba_v9_base": Variant(
        {"depths": (2, 2, 15, 2), "dims": (128, 256, 512, 1024)},
        _HEAD, 88_557_800, 15_294_668_800, 0.6, top1=83.9),
    "vmamba_v0_tiny": Variant(
        {"depths": (2, 2, 9, 2), "dims": (96, 192, 384, 768), **_V0},
        _HEAD, 22_893_448, 5_597_700_096, 0.2, top1=82.2),
    "vmamba_v0_small": Variant(
        {"depths": (2, 2, 27, 2), "dims": (96, 192, 384, 768), **_V0},
        _HEAD, 44_417_416, 11_181_987_840, 0.3, top1=83.5),
    "vmamba_v0_base": Variant(
        {"depths": (2, 2, 27, 2), "dims": (128, 256, 512, 1024), **_V0},
        _HEAD, 76_254_056, 17_953_595_392, 0.5, top1=83.7),
}
# fmt: on

DECAY = (*backbone.DECAY, SSM_DECAY)

_BLOCK = r"backbone/stage_(\d)_block_0*(\d+)"
_OP = r"layers.\1.blocks.\2.op"
SS2D_NAMES = (
    (rf"{_BLOCK}/norm1", r"layers.\1.blocks.\2.norm"),
    (rf"{_BLOCK}/ss2d/(in_proj|out_proj)", rf"{_OP}.\3"),
    (rf"{_BLOCK}/ss2d/conv", rf"{_OP}.conv2d"),
    (rf"{_BLOCK}/ss2d/norm", rf"{_OP}.out_norm"),
    (rf"{_BLOCK}/ss2d/ssm/path_\d/x_proj/kernel", rf"{_OP}.x_proj_weight", "stacked"),
    (rf"{_BLOCK}/ss2d/ssm/path_\d/dt_proj/kernel", rf"{_OP}.dt_projs_weight", "stacked"),
    (rf"{_BLOCK}/ss2d/ssm/path_\d/dt_proj/bias", rf"{_OP}.dt_projs_bias", "stacked"),
    (rf"{_BLOCK}/ss2d/ssm/path_\d/A_log", rf"{_OP}.A_logs", "concatenated"),
    (rf"{_BLOCK}/ss2d/ssm/path_\d/D", rf"{_OP}.Ds", "concatenated"),
)
MERGING_NAMES = tuple(
    (rf"backbone/merging_{i + 1}/(norm|reduction)", rf"layers.{i}.downsample.\1") for i in range(3)
)
ENDS_NAMES = (
    (r"backbone/patch_embed/conv", r"patch_embed.0"),
    (r"backbone/patch_embed/norm", r"patch_embed.2"),
    (r"head/norm", r"classifier.norm"),
    (r"head/classifier", r"classifier.head"),
)
TORCH_NAMES = {
    "official": (
        *ENDS_NAMES,
        (r"backbone/stem/conv1", r"patch_embed.0"),
        (r"backbone/stem/norm1", r"patch_embed.2"),
        (r"backbone/stem/conv2", r"patch_embed.5"),
        (r"backbone/stem/norm2", r"patch_embed.7"),
        *((rf"backbone/downsample_{i + 1}/conv", f"layers.{i}.downsample.1") for i in range(3)),
        *((rf"backbone/downsample_{i + 1}/norm", f"layers.{i}.downsample.3") for i in range(3)),
        *MERGING_NAMES,
        *SS2D_NAMES,
        (rf"{_BLOCK}/norm2", r"layers.\1.blocks.\2.norm2"),
        (rf"{_BLOCK}/mlp/(\w+)", r"layers.\1.blocks.\2.mlp.\3"),
    ),
}

WEIGHTS: dict[str, Weights] = {}
