# SPDX-License-Identifier: Apache-2.0
"""Vim: Mamba over the patches of an image in both directions, with a class token in their middle.

Paper: Zhu et al., "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State
Space Model", ICML 2024, arXiv 2401.09417. Sizes and names: vim/models_mamba.py of
github.com/hustvl/Vim at dd0358a, vim_{tiny,small}_patch16_224_bimambav2_final_pool_mean_abs_pos_
embed_with_midclstok_div2.

The multiply-accumulates that the MambaOut paper's Table 1 prints, 1.5 and 5.1 G, are those of the
formula "hand" of `analysis.cost`; "parallel" gives 1.8 and 5.9 G.
"""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax import backbone
from mambaout_jax.backbone import Columnar, Features, Variant
from mambaout_jax.heads.classifier import TokenHead
from mambaout_jax.layers.norms import RMSNorm
from mambaout_jax.layers.positions import patch_grid
from mambaout_jax.layers.residual import DropPath
from mambaout_jax.mixers.mamba import PathMamba
from mambaout_jax.mixers.routes import paths_of
from mambaout_jax.mixers.ssm import SSM_DECAY, STATE_SIZE
from mambaout_jax.published import Weights

EPSILON = 1e-5  # of every norm


class VimBlock(nn.Module):
    """x + mixer(norm(x)); Vim's code puts the sum off until the next norm, which changes nothing.

    Attributes:
        size: (H, W) of the map of patches.
        state_size: states of the SSMs.
        scan_implementation: see `kernels.selective_scan`.
        drop_path: probability of dropping the branch of an example while training.
        dtype: dtype of the computation, None to promote.
    """

    size: tuple[int, int]
    state_size: int
    scan_implementation: str
    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B L C"], train: bool) -> Float[Array, "B L C"]:
        y = RMSNorm(EPSILON, dtype=self.dtype, name="norm")(x)
        y = PathMamba(
            paths_of("bidirectional"),
            self.size,
            state_size=self.state_size,
            implementation=self.scan_implementation,
            dtype=self.dtype,
            token_turns=True,
            name="mixer",
        )(y)
        return x + DropPath(self.drop_path, name="drop_path")(y, train)


class Vim(Columnar):
    """Backbone of one resolution: maps of stride `patch_size`, and a class token.

    Attributes:
        state_size: states of the SSMs.
        scan_implementation: see `kernels.selective_scan`.
    """

    state_size: int = STATE_SIZE
    scan_implementation: str = "auto"

    @property
    def class_token(self) -> str:
        return "middle"

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        """Maps after `out_blocks`, and the class token after the last block, before any norm.

        Raises:
            ValueError: the patches do not fill the images, or a field has a value that is not
                allowed.
        """
        _, height, width, _ = jnp.shape(images)
        size = patch_grid(height, width, self.patch_size)
        block = self.block_class(VimBlock)
        x = self.with_positions(self.patches(images), size)
        maps = []
        for i, rate in enumerate(self.block_rates):
            options = (size, self.state_size, self.scan_implementation, rate, self.layer_dtype)
            x = block(*options, name=f"block_{i:02d}")(x, train)
            if i in self.map_blocks:
                maps.append(without_middle(x).reshape(-1, *size, self.dim))
        return Features(tuple(maps), middle_of(x))


def middle_of(x: Float[Array, "B _ C"]) -> Float[Array, "B C"]:
    """The class token in the middle of a sequence."""
    middle = x.shape[1] // 2
    return x[:, middle : middle + 1].squeeze(1)  # where the length is a symbol, so is an index


def without_middle(x: Float[Array, "B _ C"]) -> Float[Array, "B L C"]:
    """The patches of a sequence with a class token in its middle."""
    middle = x.shape[1] // 2
    return jnp.concatenate((x[:, :middle], x[:, middle + 1 :]), axis=1)


BACKBONE = Vim
HEAD = TokenHead

_HEAD = {"rms_norm": True, "epsilon": EPSILON}

# fmt: off
VARIANTS = {
    "vim_tiny": Variant(
        {"dim": 192, "depth": 24}, _HEAD, 7_148_008, 1_822_858_752, hand_macs=1_485_166_080,
        top1=76.1),
    "vim_small": Variant(
        {"dim": 384, "depth": 24}, _HEAD, 25_796_584, 5_911_526_400, 0.05,
        hand_macs=5_148_994_560, top1=80.5),
}
# fmt: on

DECAY = (*backbone.DECAY, SSM_DECAY, (r"/(cls_token|pos_embed)$", False))

_MIXER = r"backbone/block_0*(\d+)/mixer"
_BACKWARD = (
    (rf"{_MIXER}/path_1/conv", r"layers.\1.mixer.conv1d_b"),
    (rf"{_MIXER}/path_1/selection/(x_proj|dt_proj)", r"layers.\1.mixer.\2_b"),
    (rf"{_MIXER}/path_1/selection/A_log", r"layers.\1.mixer.A_b_log"),
    (rf"{_MIXER}/path_1/selection/D", r"layers.\1.mixer.D_b"),
)
TORCH_NAMES = {
    "official": (
        (r"backbone/(cls_token|pos_embed)", r"\1"),
        (r"backbone/patch_embed", r"patch_embed.proj"),
        (r"backbone/block_0*(\d+)/norm", r"layers.\1.norm"),
        (rf"{_MIXER}/(in_proj|out_proj)", r"layers.\1.mixer.\2"),
        (rf"{_MIXER}/path_0/conv", r"layers.\1.mixer.conv1d"),
        (rf"{_MIXER}/path_0/selection/(\w+)", r"layers.\1.mixer.\2"),
        *_BACKWARD,
        (r"head/norm", r"norm_f"),
        (r"head/classifier", r"head"),
    ),
}

WEIGHTS: dict[str, Weights] = {}
