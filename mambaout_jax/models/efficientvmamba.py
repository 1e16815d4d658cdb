# SPDX-License-Identifier: Apache-2.0
"""EfficientVMamba: SSMs over every second row and column first, inverted residuals after them.

Paper: Pei et al., "EfficientVMamba: Atrous Selective Scan for Light Weight Visual Mamba", 2024,
arXiv 2403.09977. Names: classification/models/vmamba_efficient.py of
github.com/TerryPei/EfficientVMamba at 0bc5ee2; sizes: Table 1 there, and vssm_efficient_*.yaml.
That file of the small model has the tiny one's depths and dims of 96, which are 24.8 M parameters;
the paper's 11 M are those of dims of 64.
"""

import flax.linen as nn
import jax
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax import backbone
from mambaout_jax.backbone import Features, Pyramid, Variant
from mambaout_jax.heads.classifier import PooledHead
from mambaout_jax.layers.activations import activation
from mambaout_jax.layers.channel_gates import NormGate, SqueezeExcite
from mambaout_jax.layers.conv import DepthwiseConv
from mambaout_jax.layers.downsample import ConvNorm, PatchMerging
from mambaout_jax.layers.linear import Dense
from mambaout_jax.layers.norms import BatchNorm, LayerNorm
from mambaout_jax.layers.residual import DropPath
from mambaout_jax.mixers.routes import paths_of
from mambaout_jax.mixers.ss2d import SS2D
from mambaout_jax.mixers.ssm import SSM_DECAY, STATE_SIZE
from mambaout_jax.models.vmamba import ENDS_NAMES, MERGING_NAMES, SS2D_NAMES
from mambaout_jax.published import Weights

EPSILON = 1e-5  # of every norm
_SCANNED_STAGES = 2  # the first ones
_Rules = tuple[tuple[str, ...], ...]


class ScanBlock(nn.Module):
    """y = norm1(x);  x + gate(ss2d(y)) + gate(conv(y)), with one gate for both ("EVSS").

    Attributes:
        state_size, scan_implementation: see `SS2D`.
        drop_path: probability of dropping the branches of an example while training.
        dtype: dtype of the computation, None to promote.
    """

    state_size: int
    scan_implementation: str
    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        dtype = self.dtype
        gate = NormGate(dtype=dtype, name="gate")
        y = LayerNorm(EPSILON, dtype=dtype, name="norm1")(x)
        scanned = SS2D(
            paths_of("phases"),
            expand=2,
            state_size=self.state_size,
            scan_implementation=self.scan_implementation,
            gated=True,
            dtype=dtype,
            name="ss2d",
        )(y)
        y = DepthwiseConv(3, dtype=dtype, name="conv")(y)
        y = activation("gelu")(BatchNorm(EPSILON, dtype=dtype, name="conv_norm")(y, train))
        y = Dense(x.shape[-1], dtype=dtype, name="conv_proj")(y)
        return x + DropPath(self.drop_path, name="drop_path")(gate(scanned) + gate(y), train)


class InvertedResidual(nn.Module):
    """x + norm3(fc2(se(relu(norm2(conv(relu(norm1(fc1(x)))))))) (Sandler et al. 2018, with SE).

    Attributes:
        drop_path: probability of dropping the branch of an example while training.
        dtype: dtype of the computation, None to promote.
    """

    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        channels, dtype = x.shape[-1], self.dtype
        hidden = 4 * channels
        y = Dense(hidden, use_bias=False, dtype=dtype, name="fc1")(x)
        y = jax.nn.relu(BatchNorm(EPSILON, dtype=dtype, name="norm1")(y, train))
        y = DepthwiseConv(3, use_bias=False, dtype=dtype, name="conv")(y)
        y = jax.nn.relu(BatchNorm(EPSILON, dtype=dtype, name="norm2")(y, train))
        y = SqueezeExcite(hidden // 8, dtype=dtype, name="se")(y)
        y = Dense(channels, use_bias=False, dtype=dtype, name="fc2")(y)
        y = BatchNorm(EPSILON, dtype=dtype, name="norm3")(y, train)
        return x + DropPath(self.drop_path, name="drop_path")(y, train)


class EfficientVMamba(Pyramid):
    """Backbone of four stages: maps of stride 4, 8, 16 and 32.

    Attributes:
        state_size: states of the SSMs.
        scan_implementation: see `kernels.selective_scan`.
    """

    state_size: int = STATE_SIZE
    scan_implementation: str = "auto"

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        dtype = self.layer_dtype
        scanned, residual = self.block_class(ScanBlock), self.block_class(InvertedResidual)
        norm = {"epsilon": EPSILON, "dtype": dtype}
        maps = []
        x = ConvNorm(self.dims[0], 4, 4, **norm, name="patch_embed")(images)
        for i, rates in enumerate(self.stage_rates):
            if i > 0:
                x = PatchMerging(self.dims[i], **norm, name=f"merging_{i}")(x)
            for j, rate in enumerate(rates):
                name = f"stage_{i}_block_{j:02d}"
                if i < _SCANNED_STAGES:
                    options = (self.state_size, self.scan_implementation, rate, dtype)
                    x = scanned(*options, name=name)(x, train)
                else:
                    x = residual(rate, dtype, name=name)(x, train)
            maps.append(x)
        return Features(tuple(maps))


BACKBONE = EfficientVMamba
HEAD = PooledHead

# fmt: off
_HEAD = {"norm_first": True, "epsilon": EPSILON}

VARIANTS = {
    "efficientvmamba_tiny": Variant(
        {"depths": (2, 2, 4, 2), "dims": (48, 96, 192, 384)},
        _HEAD, 6_493_660, 787_921_152, 0.2, top1=76.5),
    "efficientvmamba_small": Variant(
        {"depths": (2, 2, 4, 2), "dims": (64, 128, 256, 512)},
        _HEAD, 11_273_688, 1_317_888_000, 0.2, top1=78.7),
    "efficientvmamba_base": Variant(
        {"depths": (2, 2, 9, 2), "dims": (96, 192, 384, 768)},
        _HEAD, 33_717_136, 3_951_363_072, 0.2, top1=81.8),
}
# fmt: on

DECAY = (*backbone.DECAY, SSM_DECAY)

_SCANNED = r"backbone/stage_([01])_block_0*(\d+)"
_BLOCK = r"layers.\1.blocks.\2"


def _residual_names(stage: int, block: int) -> _Rules:
    """Those of one inverted residual; a permutation stands before the first of a stage."""
    ours, theirs = rf"backbone/stage_{stage}_block_{block:02d}", f"layers.{stage}.{block + 1}"
    return (
        (rf"{ours}/fc1", f"{theirs}.conv_pw.0", "pointwise"),
        (rf"{ours}/norm1", f"{theirs}.conv_pw.1"),
        (rf"{ours}/conv", f"{theirs}.conv_dw.0"),
        (rf"{ours}/norm2", f"{theirs}.conv_dw.1"),
        (rf"{ours}/se/(reduce|expand)", rf"{theirs}.se.conv_\1", "pointwise"),
        (rf"{ours}/fc2", f"{theirs}.conv_pw2.0", "pointwise"),
        (rf"{ours}/norm3", f"{theirs}.conv_pw2.1"),
    )


def _torch_names(variant: Variant) -> dict[str, _Rules]:
    """Stages of inverted residuals are lists, in which the number of what follows them depends on
    their depth."""
    depths = variant.backbone["depths"]
    merging = f"layers.2.{depths[2] + 2}"  # a permutation stands before it, too
    return {
        "official": (
            *ENDS_NAMES,
            *(
                rule
                for stage in (2, 3)
                for block in range(depths[stage])
                for rule in _residual_names(stage, block)
            ),
            *MERGING_NAMES[:_SCANNED_STAGES],
            (r"backbone/merging_3/(norm|reduction)", rf"{merging}.\1"),
            *SS2D_NAMES,
            (rf"{_SCANNED}/conv", rf"{_BLOCK}.conv_branch.0"),
            (rf"{_SCANNED}/conv_norm", rf"{_BLOCK}.conv_branch.1"),
            (rf"{_SCANNED}/conv_proj", rf"{_BLOCK}.conv_branch.3", "pointwise"),
            (rf"{_SCANNED}/gate/norm", rf"{_BLOCK}.se.norm"),
            (rf"{_SCANNED}/gate/reduce", rf"{_BLOCK}.se.global_reduce"),
            (rf"{_SCANNED}/gate/expand", rf"{_BLOCK}.se.channel_select"),
        )
    }


TORCH_NAMES = _torch_names

WEIGHTS: dict[str, Weights] = {}
