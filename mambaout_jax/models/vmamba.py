# SPDX-License-Identifier: Apache-2.0
"""VMamba: the selective SSM over a map in four directions, with a perceptron behind it.

Paper: Liu et al., "VMamba: Visual State Space Model", NeurIPS 2024, arXiv 2401.10166. Sizes and
names: configs/vssm/vmambav2_{tiny,small,base}_224.yaml of github.com/MzeroMiko/VMamba at 2ed52ea,
the models "v9" of the paper (Table 1): one state per channel, no gate.
"""

import flax.linen as nn
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax import backbone
from mambaout_jax.backbone import Features, Pyramid, Variant
from mambaout_jax.heads.classifier import PooledHead
from mambaout_jax.layers.activations import activation
from mambaout_jax.layers.conv import DepthwiseConv
from mambaout_jax.layers.downsample import ConvNorm, ConvStem
from mambaout_jax.layers.linear import Dense
from mambaout_jax.layers.mlp import Mlp
from mambaout_jax.layers.norms import LayerNorm
from mambaout_jax.layers.residual import DropPath
from mambaout_jax.mixers.ssm import MapSSM, dt_rank_of
from mambaout_jax.published import Weights

EPSILON = 1e-5  # of every norm


class SS2D(nn.Module):
    """2D selective scan without a gate (Section 4.3, and Figure 3 (d)).

        y = out_proj(norm(ssm(silu(conv(in_proj(x))))))

    Attributes:
        expand: width of the SSM over that of the block.
        state_size: states of the SSM.
        scan_implementation: see `kernels.selective_scan`.
        dtype: dtype of the computation, None to promote.
    """

    expand: int
    state_size: int
    scan_implementation: str
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        channels, dtype = x.shape[-1], self.dtype
        x = Dense(self.expand * channels, use_bias=False, dtype=dtype, name="in_proj")(x)
        x = DepthwiseConv(3, use_bias=False, dtype=dtype, name="conv")(x)
        x = MapSSM(
            "cross",
            self.state_size,
            dt_rank_of(channels),
            self.scan_implementation,
            dtype,
            name="ssm",
        )(activation("silu")(x))
        x = LayerNorm(EPSILON, dtype=dtype, name="norm")(x)
        return Dense(channels, use_bias=False, dtype=dtype, name="out_proj")(x)


class VMambaBlock(nn.Module):
    """x = x + ss2d(norm1(x)), then x + mlp(norm2(x)).

    Attributes:
        expand, state_size, scan_implementation: as in `SS2D`.
        drop_path: probability of dropping each of the two branches of an example while training.
        dtype: dtype of the computation, None to promote.
    """

    expand: int
    state_size: int
    scan_implementation: str
    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        dtype = self.dtype
        y = LayerNorm(EPSILON, dtype=dtype, name="norm1")(x)
        y = SS2D(self.expand, self.state_size, self.scan_implementation, dtype, name="ss2d")(y)
        x = x + DropPath(self.drop_path, name="drop_path1")(y, train)
        y = LayerNorm(EPSILON, dtype=dtype, name="norm2")(x)
        y = Mlp(4 * x.shape[-1], dtype=dtype, name="mlp")(y)
        return x + DropPath(self.drop_path, name="drop_path2")(y, train)


class VMamba(Pyramid):
    """Backbone of four stages: maps of stride 4, 8, 16 and 32.

    Attributes:
        expand: width of the SSM over that of the block.
        state_size: states of the SSM.
        scan_implementation: see `kernels.selective_scan`.
    """

    expand: int = 2
    state_size: int = 1
    scan_implementation: str = "auto"

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        dtype = self.layer_dtype
        block = self.block_class(VMambaBlock)
        ssm = (self.expand, self.state_size, self.scan_implementation)
        maps = []
        x = ConvStem(self.dims[0], epsilon=EPSILON, dtype=dtype, name="stem")(images)
        for i, rates in enumerate(self.stage_rates):
            if i > 0:
                name = f"downsample_{i}"
                x = ConvNorm(self.dims[i], 3, 2, 1, epsilon=EPSILON, dtype=dtype, name=name)(x)
            for j, rate in enumerate(rates):
                x = block(*ssm, rate, dtype, name=f"stage_{i}_block_{j:02d}")(x, train)
            maps.append(x)
        return Features(tuple(maps))


BACKBONE = VMamba
HEAD = PooledHead

_HEAD = {"norm_first": True, "epsilon": EPSILON}

# fmt: off
VARIANTS = {
    "vmamba_v9_tiny": Variant(
        {"depths": (2, 2, 5, 2), "dims": (96, 192, 384, 768)},
        _HEAD, 30_705_832, 4_824_588_288, 0.2),
    "vmamba_v9_small": Variant(
        {"depths": (2, 2, 15, 2), "dims": (96, 192, 384, 768)},
        _HEAD, 50_147_752, 8_667_568_128, 0.3),
    "vmamba_v9_base": Variant(
        {"depths": (2, 2, 15, 2), "dims": (128, 256, 512, 1024)},
        _HEAD, 88_557_800, 15_294_668_800, 0.6),
}
# fmt: on

DECAY = (*backbone.DECAY, (r"/(A_log|D)$", False))  # of the SSM: rates, not weights

_BLOCK = r"backbone/stage_(\d)_block_0*(\d+)"
_OP = r"layers.\1.blocks.\2.op"
TORCH_NAMES = {
    "official": (
        (r"backbone/stem/conv1", r"patch_embed.0"),
        (r"backbone/stem/norm1", r"patch_embed.2"),
        (r"backbone/stem/conv2", r"patch_embed.5"),
        (r"backbone/stem/norm2", r"patch_embed.7"),
        *((rf"backbone/downsample_{i + 1}/conv", f"layers.{i}.downsample.1") for i in range(3)),
        *((rf"backbone/downsample_{i + 1}/norm", f"layers.{i}.downsample.3") for i in range(3)),
        (rf"{_BLOCK}/norm1", r"layers.\1.blocks.\2.norm"),
        (rf"{_BLOCK}/norm2", r"layers.\1.blocks.\2.norm2"),
        (rf"{_BLOCK}/mlp/(\w+)", r"layers.\1.blocks.\2.mlp.\3"),
        (rf"{_BLOCK}/ss2d/(in_proj|out_proj)", rf"{_OP}.\3"),
        (rf"{_BLOCK}/ss2d/conv", rf"{_OP}.conv2d"),
        (rf"{_BLOCK}/ss2d/norm", rf"{_OP}.out_norm"),
        (rf"{_BLOCK}/ss2d/ssm/path_\d/x_proj/kernel", rf"{_OP}.x_proj_weight", "stacked"),
        (rf"{_BLOCK}/ss2d/ssm/path_\d/dt_proj/kernel", rf"{_OP}.dt_projs_weight", "stacked"),
        (rf"{_BLOCK}/ss2d/ssm/path_\d/dt_proj/bias", rf"{_OP}.dt_projs_bias", "stacked"),
        (rf"{_BLOCK}/ss2d/ssm/path_\d/A_log", rf"{_OP}.A_logs", "concatenated"),
        (rf"{_BLOCK}/ss2d/ssm/path_\d/D", rf"{_OP}.Ds", "concatenated"),
        (r"head/norm", r"classifier.norm"),
        (r"head/classifier", r"classifier.head"),
    ),
}

WEIGHTS: dict[str, Weights] = {}
