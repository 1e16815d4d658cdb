# SPDX-License-Identifier: Apache-2.0
"""Mamba-ND on images: plain Mamba blocks, each along one axis of the map and in one direction.

Paper: Li et al., "Mamba-ND: Selective State Space Modeling for Multi-Dimensional Data", ECCV 2024,
arXiv 2402.05892. Sizes and names: image_classification/src/mamba.py and config/mamba2d{,_b}.py of
github.com/jacklishufan/Mamba-ND at 4f70284. In that code the sum of a block starts from the norm of
its input, not from the input.
"""

import re

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax import backbone
from mambaout_jax.backbone import Columnar, Features, Variant
from mambaout_jax.heads.classifier import classify
from mambaout_jax.layers.linear import Dense
from mambaout_jax.layers.norms import LayerNorm
from mambaout_jax.layers.positions import patch_grid
from mambaout_jax.layers.precision import compute_dtype
from mambaout_jax.layers.residual import DropPath
from mambaout_jax.mixers.mamba import MambaMixer
from mambaout_jax.mixers.routes import Path, flatten, restore
from mambaout_jax.mixers.ssm import SSM_DECAY, STATE_SIZE
from mambaout_jax.published import Weights

# Of every four blocks in turn: along rows and back, along columns and back (Section 3.2).
PATHS = (Path("raster"), Path("raster", True), Path("column"), Path("column", True))


class MambaNDBlock(nn.Module):
    """y = norm(x);  y + mixer(y along the route).

    Attributes:
        route: walk over the map.
        state_size: states of the SSM.
        scan_implementation: see `kernels.selective_scan`.
        drop_path: probability of dropping the branch of an example while training.
        dtype: dtype of the computation, None to promote.
    """

    route: Path
    state_size: int
    scan_implementation: str
    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        x = LayerNorm(1e-5, dtype=self.dtype, name="norm")(x)
        mixer = MambaMixer(
            state_size=self.state_size,
            implementation=self.scan_implementation,
            dtype=self.dtype,
            name="mixer",
        )
        y = restore(mixer(flatten(x, self.route)), self.route, (x.shape[1], x.shape[2]))
        return x + DropPath(self.drop_path, name="drop_path")(y, train)


class ConstantMerging(nn.Module):
    """2 x 2 neighbours become one token of as many channels.

    A map of odd sides is padded with zeros at its end.

    Attributes:
        dtype: dtype of the computation, None to promote.
    """

    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B _ _ C"]:
        B, H, W, C = x.shape
        x = jnp.pad(x, ((0, 0), (0, H % 2), (0, W % 2), (0, 0)))
        x = x.reshape(B, -(-H // 2), 2, -(-W // 2), 2, C).transpose(0, 1, 3, 5, 2, 4)
        x = x.reshape(*x.shape[:3], 4 * C)  # all neighbours of a channel before the next channel
        x = LayerNorm(1e-5, dtype=self.dtype, name="norm")(x)
        return Dense(C, use_bias=False, dtype=self.dtype, name="reduction")(x)


class MambaND(Columnar):
    """Backbone of two resolutions: maps of stride `patch_size` and, behind a merging, twice that.

    Attributes:
        merging: the block, from 0, behind which the map is halved.
        state_size: states of the SSMs.
        scan_implementation: see `kernels.selective_scan`.
    """

    patch_size: int = 8
    merging: int = 9
    state_size: int = STATE_SIZE
    scan_implementation: str = "auto"

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(self.patch_size * (1 + (i >= self.merging)) for i in self.map_blocks)

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        """Maps after `out_blocks`, and after the merging where it follows one of them.

        Raises:
            ValueError: the patches do not fill the images, or a field has a value that is not
                allowed.
        """
        dtype = self.layer_dtype
        _, height, width, _ = jnp.shape(images)
        size = patch_grid(height, width, self.patch_size)
        block = self.block_class(MambaNDBlock)
        x = self.with_positions(self.patches(images), size)
        x = x.reshape(x.shape[0], *size, self.dim)
        maps = []
        for i, rate in enumerate(self.block_rates):
            options = (self.state_size, self.scan_implementation, rate, dtype)
            x = block(PATHS[i % len(PATHS)], *options, name=f"block_{i:02d}")(x, train)
            if i == self.merging:
                x = ConstantMerging(dtype, name=f"merging_{i}")(x)
            if i in self.map_blocks:
                maps.append(x)
        return Features(tuple(maps))


class TwoNormHead(nn.Module):
    """Norm of each token, mean, norm of the mean, linear classifier.

    Attributes:
        num_classes: classes, 0 for none.
        dtype: dtype of the computation; float32 means at least float32.
    """

    num_classes: int = 1000
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, features: Features, train: bool = False) -> Float[Array, "B _"]:
        dtype = compute_dtype(self.dtype)
        x = LayerNorm(dtype=dtype, name="token_norm")(features.maps[-1]).mean(axis=(1, 2))
        return classify(LayerNorm(dtype=dtype, name="norm")(x), self.num_classes, dtype)


BACKBONE = MambaND
HEAD = TwoNormHead

# fmt: off
VARIANTS = {
    "mamba2d_small": Variant(
        {"dim": 384, "depth": 24}, {}, 24_505_192, 11_407_395_840, 0.1, top1=81.7),
    "mamba2d_base": Variant(
        {"dim": 768, "depth": 24}, {}, 94_425_832, 42_554_431_488, 0.1, top1=83.0),
}
# fmt: on

DECAY = (*backbone.DECAY, SSM_DECAY, (r"/pos_embed$", False))


def layer_of(path: str) -> tuple[float, int] | None:
    """As `backbone.layer_of`; the merging belongs to the block before it, as in PyTorch."""
    if merging := re.match(r"merging_(\d+)/", path):
        return 0, int(merging[1])
    return backbone.layer_of(path)


_BLOCK = r"backbone/block_0*(\d+)"
_LAYER = r"backbone.layers.\1"
TORCH_NAMES = {
    "official": (
        (r"backbone/pos_embed", r"backbone.pos_embed"),
        (r"backbone/patch_embed", r"backbone.patch_embed.projection"),
        (rf"{_BLOCK}/norm", rf"{_LAYER}.norm"),
        (rf"{_BLOCK}/mixer/(in_proj|out_proj)", rf"{_LAYER}.mixer.\2"),
        (rf"{_BLOCK}/mixer/conv", rf"{_LAYER}.mixer.conv1d"),
        (rf"{_BLOCK}/mixer/ssm/selection/(\w+)", rf"{_LAYER}.mixer.\2"),
        (r"backbone/merging_(\d)/(norm|reduction)", rf"{_LAYER}.down_sample_layer.\2"),
        (r"head/token_norm", r"backbone.ln1"),
        (r"head/norm", r"backbone.ln2"),
        (r"head/classifier", r"head.fc"),
    ),
}

WEIGHTS: dict[str, Weights] = {}
