# SPDX-License-Identifier: Apache-2.0
"""PoolFormer: blocks of a transformer whose token mixer is average pooling.

Paper: Yu et al., "MetaFormer Is Actually What You Need for Vision", CVPR 2022, arXiv 2111.11418.
Sizes, names and initial values: github.com/sail-sg/poolformer at a075575. (timm's
PoolFormer takes the mean before the last norm, which gives other logits.)
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax import backbone
from mambaout_jax.backbone import Features, Pyramid, Variant
from mambaout_jax.heads.classifier import classify
from mambaout_jax.layers.conv import Conv
from mambaout_jax.layers.initializers import torch_inits
from mambaout_jax.layers.mlp import Mlp
from mambaout_jax.layers.norms import MapNorm
from mambaout_jax.layers.precision import compute_dtype
from mambaout_jax.layers.residual import DropPath, LayerScale
from mambaout_jax.published import released_weights


class PoolFormerBlock(nn.Module):
    """x = x + gamma1 · (pool(y) - y),  y = norm1(x);  x = x + gamma2 · mlp(norm2(x)).

    The pooling takes the mean over the pixels of a window that the map has.

    Attributes:
        pool_size: odd side of the window.
        drop_path: probability of dropping each of the two branches of an example while training.
        dtype: dtype of the computation, None to promote.
    """

    pool_size: int
    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        dtype, side = self.dtype, self.pool_size
        y = MapNorm(dtype=dtype, name="norm1")(x)
        edges: Any = ((side // 2, side // 2),) * 2
        y = nn.avg_pool(y, (side, side), padding=edges, count_include_pad=False) - y
        y = LayerScale(1e-5, dtype=dtype, name="layer_scale1")(y)
        x = x + DropPath(self.drop_path, name="drop_path1")(y, train)

        y = MapNorm(dtype=dtype, name="norm2")(x)
        y = Mlp(4 * x.shape[-1], dtype=dtype, name="mlp")(y)
        y = LayerScale(1e-5, dtype=dtype, name="layer_scale2")(y)
        return x + DropPath(self.drop_path, name="drop_path2")(y, train)


class PoolFormer(Pyramid):
    """Backbone of four stages: maps of stride 4, 8, 16 and 32.

    Attributes:
        pool_size: odd side of the window of the pooling.
    """

    pool_size: int = 3

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        if self.pool_size % 2 == 0:
            raise ValueError(f"pool_size={self.pool_size} must be odd: maps keep their size")
        dtype = self.layer_dtype
        block = self.block_class(PoolFormerBlock)
        maps = []
        x = self._embed(images, self.dims[0], (7, 4, 2), "stem")
        for i, rates in enumerate(self.stage_rates):
            if i > 0:
                x = self._embed(x, self.dims[i], (3, 2, 1), f"downsample_{i}")
            for j, rate in enumerate(rates):
                x = block(self.pool_size, rate, dtype, name=f"stage_{i}_block_{j:02d}")(x, train)
            maps.append(x)
        return Features(tuple(maps))

    def _embed(
        self,
        x: Float[ArrayLike, "B H W I"],
        features: int,
        window: tuple[int, int, int],
        name: str,
    ) -> Float[Array, "B _ _ F"]:
        """Convolution of a window: side, stride and padding."""
        inits = torch_inits(window[0] ** 2 * jnp.shape(x)[-1])
        return Conv(features, *window, dtype=self.layer_dtype, **inits, name=name)(x)


class PoolFormerHead(nn.Module):
    """Norm of the last map, mean, linear classifier.

    Attributes:
        num_classes: 0 returns what the classifier would read.
        dtype: dtype of the computation; float32 means at least float32.
    """

    num_classes: int = 1000
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, features: Features, train: bool = False) -> Float[Array, "B _"]:
        dtype = compute_dtype(self.dtype)
        x = MapNorm(dtype=dtype, name="norm")(features.maps[-1])
        return classify(x.mean(axis=(1, 2)), self.num_classes, dtype)


BACKBONE = PoolFormer
HEAD = PoolFormerHead

# fmt: off
VARIANTS = {
    "poolformer_s24": Variant(
        {"depths": (4, 4, 12, 4), "dims": (64, 128, 320, 512)},
        {}, 21_388_968, 3_392_208_896, 0.1, top1=80.3),
}
# fmt: on

DECAY = backbone.DECAY

_Rules = tuple[tuple[str, ...], ...]


def _stage_names(i: int) -> _Rules:
    """Rules of stage `i`; the authors count stages and what stands between them together."""
    block, theirs = rf"backbone/stage_{i}_block_0*(\d+)", rf"network.{2 * i}.\1"
    return (
        (rf"backbone/downsample_{i}", f"network.{2 * i - 1}.proj"),
        (rf"{block}/layer_scale(\d)/gamma", rf"{theirs}.layer_scale_\2"),
        (rf"{block}/(norm\d)", rf"{theirs}.\2"),
        (rf"{block}/mlp/(fc\d)", rf"{theirs}.mlp.\2", "pointwise"),
    )


TORCH_NAMES = {
    "official": (
        (r"backbone/stem", r"patch_embed.proj"),
        *(rule for i in range(4) for rule in _stage_names(i)),
        (r"head/norm", r"norm"),
        (r"head/classifier", r"head"),
    ),
}

# README.md of the release; its licence is that of the code.
_URL = "https://github.com/sail-sg/poolformer/releases/download/v1.0/poolformer_s24.pth.tar"
WEIGHTS = dict(
    [released_weights("poolformer_s24", _URL, "Apache-2.0", (224, 0.9, 80.3), crop_fraction=0.9)]
)
