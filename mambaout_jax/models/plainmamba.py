# SPDX-License-Identifier: Apache-2.0
"""PlainMamba: one resolution, four continuous walks over the map that share their parameters.

Paper: Yang et al., "PlainMamba: Improving Non-Hierarchical Mamba in Visual Recognition", BMVC 2024,
arXiv 2403.17695. Sizes and names: mmcls/plain_mamba_dev and plain_mamba_configs of
github.com/ChenhongyiYang/PlainMamba at 0975a1d.

Three things are as in that code, and not as in the paper: only the inputs of the scan follow the
walk, its step sizes, B and C stay in raster order; the bias of the step sizes is added twice; and
the smallest model has a convolution behind its first block.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax import backbone
from mambaout_jax.backbone import Columnar, Features, Variant
from mambaout_jax.heads.classifier import PooledHead
from mambaout_jax.kernels.dispatch import numpy_for
from mambaout_jax.layers.activations import activation
from mambaout_jax.layers.conv import Conv, DepthwiseConv
from mambaout_jax.layers.initializers import normal_init
from mambaout_jax.layers.norms import BatchNorm, LayerNorm
from mambaout_jax.layers.positions import patch_grid
from mambaout_jax.layers.residual import DropPath
from mambaout_jax.mixers.mamba import project_in, project_out
from mambaout_jax.mixers.routes import Order, flatten, paths_of, restore, walk
from mambaout_jax.mixers.ssm import (
    SSM_DECAY,
    STATE_SIZE,
    ScanSize,
    Selection,
    dt_rank_of,
    scan_together,
    sum_of,
)
from mambaout_jax.published import Weights

PATHS = paths_of("snakes")
_STEM = 64  # channels
_DIRECTIONS = 5  # how a token was reached: at the start, from the left, right, below, above


class PlainMambaMixer(nn.Module):
    """The mixer of a block (Sections 3.2 and 3.3).

        x, z = split(in_proj(X));  u = silu(conv(x))
        Y    = out_proj(Σ_p back_p(SSM(u along p, B + B_direction)) · silu(z))

    Attributes:
        state_size: states of the SSM.
        scan_implementation: see `kernels.selective_scan`.
        dtype: dtype of the computation, None to promote.
    """

    state_size: int
    scan_implementation: str
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        (batch, H, W, width), dtype = x.shape, self.dtype
        u, z = project_in(x, 2, dtype, use_bias=True)
        u = jax.nn.silu(DepthwiseConv(7, dtype=dtype, name="conv")(u))
        select = Selection(
            self.state_size, dt_rank_of(width), dtype, bias_twice=True, name="selection"
        )
        chosen = select(u.reshape(batch, H * W, -1))
        table = self.param(
            "direction_B", normal_init, (_DIRECTIONS, self.state_size), jnp.float32
        ).astype(chosen.B.dtype)
        steps = [table[arrivals(walk(path, H, W), (H, W))][None] for path in PATHS]
        scanned = scan_together(
            [flatten(u, path) for path in PATHS],
            [chosen._replace(B=chosen.B + step) for step in steps],
            self.scan_implementation,
        )
        y = sum_of(restore(y, path, (H, W)) for y, path in zip(scanned, PATHS, strict=True))
        return project_out(y * jax.nn.silu(z), width, dtype, use_bias=True)

    @nn.nowrap
    def macs(self, inputs: tuple, output: object) -> int:
        return 0  # of the directions, which are added

    @nn.nowrap
    def scan_size(self, inputs: tuple) -> ScanSize:
        B, H, W, C = inputs[0].shape
        return ScanSize(len(PATHS), B * H * W, 2 * C, self.state_size, gated=False)


class PlainMambaBlock(nn.Module):
    """x + mixer(norm(x)), and then perhaps gelu(norm(conv(x))).

    Attributes:
        conv: whether there is a convolution behind it.
        state_size: states of the SSM.
        scan_implementation: see `kernels.selective_scan`.
        drop_path: probability of dropping the branch of an example while training.
        dtype: dtype of the computation, None to promote.
    """

    conv: bool
    state_size: int
    scan_implementation: str
    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        dtype = self.dtype
        y = LayerNorm(1e-5, dtype=dtype, name="norm")(x)
        y = PlainMambaMixer(self.state_size, self.scan_implementation, dtype, name="mixer")(y)
        x = x + DropPath(self.drop_path, name="drop_path")(y, train)
        if not self.conv:
            return x
        x = DepthwiseConv(3, use_bias=False, dtype=dtype, name="conv")(x)
        return activation("gelu")(BatchNorm(dtype=dtype, name="conv_norm")(x, train))


class PlainMamba(Columnar):
    """Backbone of one resolution: maps of stride 16.

    Attributes:
        stem_convs: convolutions of the stem, between its first and that of the patches.
        conv_blocks: blocks, from 0, with a convolution behind them.
        state_size: states of the SSMs.
        scan_implementation: see `kernels.selective_scan`.
    """

    stem_convs: int = 2
    conv_blocks: tuple[int, ...] = ()
    state_size: int = STATE_SIZE
    scan_implementation: str = "auto"

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        """Maps after `out_blocks`.

        Raises:
            ValueError: the patches do not fill the images, or a field has a value that is not
                allowed.
        """
        dtype = self.layer_dtype
        _, height, width, _ = jnp.shape(images)
        size = patch_grid(height, width, self.patch_size)
        block = self.block_class(PlainMambaBlock)
        x = self._stem(images, train)
        x = self.with_positions(x.reshape(x.shape[0], -1, self.dim), size)
        x = x.reshape(x.shape[0], *size, self.dim)
        maps = []
        for i, rate in enumerate(self.block_rates):
            options = (self.state_size, self.scan_implementation, rate, dtype)
            x = block(i in self.conv_blocks, *options, name=f"block_{i:02d}")(x, train)
            if i in self.map_blocks:
                maps.append(x)
        return Features(tuple(maps))

    def _stem(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Float[Array, "B _ _ C"]:
        """Convolutions at half of the resolution, then one whose patches do not overlap."""
        dtype = self.layer_dtype
        x = Conv(_STEM, 7, 2, 3, use_bias=False, dtype=dtype, name="stem_conv_0")(images)
        x = jax.nn.relu(BatchNorm(dtype=dtype, name="stem_norm_0")(x, train))
        for i in range(1, self.stem_convs + 1):
            conv = Conv(_STEM, 3, 1, 1, use_bias=False, dtype=dtype, name=f"stem_conv_{i}")
            x = jax.nn.relu(BatchNorm(dtype=dtype, name=f"stem_norm_{i}")(conv(x), train))
        side = self.patch_size // 2
        return Conv(self.dim, side, side, dtype=dtype, name="patch_embed")(x)


def arrivals(order: Order, size: tuple[int, int]) -> Order:
    """How a continuous walk reached each of its tokens: 0 where it starts, and then by a step to
    the right 1, left 2, up 3 or down 4."""
    xp = numpy_for(*size)
    down, right = (xp.diff(places) for places in xp.divmod(order, size[1]))
    moves = xp.where(right != 0, xp.where(right > 0, 1, 2), xp.where(down < 0, 3, 4))
    return xp.concatenate((xp.zeros_like(order[:1]), moves))


BACKBONE = PlainMamba
HEAD = PooledHead

# fmt: off
_HEAD = {"norm_first": True}

VARIANTS = {
    "plainmamba_l1": Variant(
        {"dim": 192, "depth": 24, "stem_convs": 1, "conv_blocks": (0,)},
        _HEAD, 7_551_656, 3_012_897_024, 0.2, top1=77.9),
    "plainmamba_l2": Variant(
        {"dim": 384, "depth": 24}, _HEAD, 26_145_832, 8_074_705_920, 0.2, top1=81.6),
    "plainmamba_l3": Variant(
        {"dim": 448, "depth": 36}, _HEAD, 50_956_456, 14_432_972_288, 0.4, top1=82.3),
}
# fmt: on

DECAY = (*backbone.DECAY, SSM_DECAY, (r"/(pos_embed|direction_B)$", False))


_BLOCK = r"backbone/block_0*(\d+)"
_LAYER = r"backbone.layers.\1"
_EMBED = "backbone.patch_embed"
TORCH_NAMES = {
    "official": (
        (r"backbone/pos_embed", r"backbone.pos_embed"),
        (r"backbone/patch_embed", f"{_EMBED}.projection"),
        (r"backbone/stem_conv_0", f"{_EMBED}.stem.0"),
        (r"backbone/stem_norm_0", f"{_EMBED}.stem.1"),
        *((rf"backbone/stem_conv_{i}", f"{_EMBED}.convs.{3 * i - 3}") for i in (1, 2)),
        *((rf"backbone/stem_norm_{i}", f"{_EMBED}.convs.{3 * i - 2}") for i in (1, 2)),
        (rf"{_BLOCK}/norm", rf"{_LAYER}.norm"),
        (rf"{_BLOCK}/conv", rf"{_LAYER}.dw.0"),
        (rf"{_BLOCK}/conv_norm", rf"{_LAYER}.dw.1"),
        (rf"{_BLOCK}/mixer/(in_proj|out_proj)", rf"{_LAYER}.mamba.\2"),
        (rf"{_BLOCK}/mixer/conv", rf"{_LAYER}.mamba.conv2d"),
        (rf"{_BLOCK}/mixer/direction_B", rf"{_LAYER}.mamba.direction_Bs"),
        (rf"{_BLOCK}/mixer/selection/(\w+)", rf"{_LAYER}.mamba.\2"),
        (r"head/norm", r"backbone.ln1"),
        (r"head/classifier", r"head.fc"),
    ),
}

WEIGHTS: dict[str, Weights] = {}
