# SPDX-License-Identifier: Apache-2.0
"""T2T-ViT: tokens are joined with their neighbours twice before a transformer reads them.

Paper: Yuan et al., "Tokens-to-Token ViT: Training Vision Transformers from Scratch on ImageNet",
ICCV 2021, arXiv 2101.11986; sizes: Table 1 there. Names and epsilon as in models/t2t_vit.py of
github.com/yitu-opensource/T2T-ViT at 0f63dc9; of its token transformers these are the "performer"
ones, which the paper's MACs and the released files of these names belong to.

The positions are those of sines and cosines and never change, nor do the random features of the
performers: they are parameters, in number and in files, whose gradient is zero.

The released weights were trained with scores multiplied by 1 / √dim, while the code's own default,
and the one here, is 1 over the root of a head's width: load them with `attention_scale=dim**-0.5`.

`_kqv025` are the same models. Under the rule that fills the references of the tests their random
features are too small to be seen; in the references of these names they are larger.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import Dtype
from jax import Array as JaxArray
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax import backbone
from mambaout_jax.backbone import Columnar, Features, Variant
from mambaout_jax.heads.classifier import TokenHead
from mambaout_jax.layers.conv import unfold
from mambaout_jax.layers.linear import Dense
from mambaout_jax.layers.mlp import Mlp
from mambaout_jax.layers.norms import LayerNorm
from mambaout_jax.layers.positions import patch_grid
from mambaout_jax.layers.residual import DropPath
from mambaout_jax.mixers.attention import MultiHeadSelfAttention
from mambaout_jax.published import Weights

EPSILON = 1e-5  # of every norm
_TOKEN_DIM = 64  # channels of the tokens before the transformer
_SMALLEST = 1e-8  # added to what the performer divides by


class RandomFeatureAttention(nn.Module):
    """Attention in linear time, with positive random features (Performer, arXiv 2009.14794).

        value + proj(φ(query) (φ(key)ᵀ value) / φ(query) Σ φ(key))
        φ(x) = exp(w x - |x|² / 2) / √m, m = C / 2 features

    Attributes:
        dropout: rate, of what is added to the values while training.
        dtype: dtype of the computation, None to promote; features and sums are at least float32.
    """

    dropout: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B L I"], train: bool) -> Float[Array, "B L C"]:
        dim, count = _TOKEN_DIM, _TOKEN_DIM // 2
        key, query, value = jnp.split(Dense(3 * dim, dtype=self.dtype, name="kqv")(x), 3, axis=-1)
        orthogonal = nn.initializers.orthogonal(count**0.5)
        w = self.param("random_features", orthogonal, (count, dim), jnp.float32)
        w = jax.lax.stop_gradient(w)
        key, query = self._features(key, w), self._features(query, w)  # (B, L, m)
        wide = value.astype(key.dtype)
        total = jnp.einsum("blm,bm->bl", query, key.sum(axis=1))[..., None]  # (B, L, 1)
        y = jnp.einsum("blm,bmc->blc", query, jnp.einsum("blm,blc->bmc", key, wide))
        y = (y / (total + _SMALLEST)).astype(value.dtype)
        y = Dense(dim, dtype=self.dtype, name="proj")(y)
        return value + nn.Dropout(self.dropout, deterministic=not train, name="dropout")(y)

    def _features(
        self, x: Float[Array, "B L C"], w: Float[ArrayLike, "M C"]
    ) -> Float[Array, "B L M"]:
        w = jnp.asarray(w)
        x = x.astype(jnp.promote_types(x.dtype, w.dtype))
        exponent = jnp.einsum("blc,mc->blm", x, w) - (x * x).sum(axis=-1, keepdims=True) / 2
        return jnp.exp(exponent) / w.shape[0] ** 0.5

    @nn.nowrap
    def macs(self, inputs: tuple, output: JaxArray) -> int:
        tokens, dim = output.size // output.shape[-1], output.shape[-1]
        return tokens * (dim // 2) * (4 * dim + 1)  # features twice, two products, the divisor


class TokenTransformer(nn.Module):
    """Attention and perceptron over tokens of any width, which leave 64 channels.

        x = attention(norm1(x))
        x = x + mlp(norm2(x))

    Attributes:
        dropout: rate, of both branches while training.
        dtype: dtype of the computation, None to promote.
    """

    dropout: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"], train: bool) -> Float[Array, "B H W C"]:
        B, H, W, channels = x.shape
        x = LayerNorm(EPSILON, dtype=self.dtype, name="norm1")(x.reshape(B, H * W, channels))
        x = RandomFeatureAttention(self.dropout, self.dtype, name="attention")(x, train)
        y = LayerNorm(EPSILON, dtype=self.dtype, name="norm2")(x)
        y = Mlp(_TOKEN_DIM, dtype=self.dtype, name="mlp")(y)
        x = x + nn.Dropout(self.dropout, deterministic=not train, name="dropout")(y)
        return x.reshape(B, H, W, _TOKEN_DIM)


class TokensToToken(nn.Module):
    """Images to tokens of a sixteenth of their size (Figure 4): split softly, attend, three times.

    Attributes:
        dim: channels of the tokens.
        dropout: rate of the token transformers.
        dtype: dtype of the computation, None to promote.
    """

    dim: int
    dropout: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Float[Array, "B L C"]:
        x = jnp.asarray(images)
        for i, split in enumerate(((7, 4, 2), (3, 2, 1), (3, 2, 1))):
            x = unfold(x, *split)
            x = x.reshape(*x.shape[:3], -1)  # (B, H, W, channels · pixels of a neighbourhood)
            if i < 2:
                transformer = TokenTransformer(self.dropout, self.dtype, name=f"attention{i + 1}")
                x = transformer(x, train)
        x = Dense(self.dim, dtype=self.dtype, name="project")(x)
        return x.reshape(x.shape[0], -1, self.dim)


class T2TBlock(nn.Module):
    """Pre-norm transformer block: x + attention(norm1(x)), then x + mlp(norm2(x)).

    Attributes:
        heads, attention_scale: see `MultiHeadSelfAttention`.
        mlp_ratio: width of the perceptron over that of the block.
        drop_path: probability of dropping each of the two branches of an example while training.
        dtype: dtype of the computation, None to promote.
    """

    heads: int
    attention_scale: float | None
    mlp_ratio: int
    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B L C"], train: bool) -> Float[Array, "B L C"]:
        y = LayerNorm(EPSILON, dtype=self.dtype, name="norm1")(x)
        options = {"qkv_bias": False, "scale": self.attention_scale, "dtype": self.dtype}
        y = MultiHeadSelfAttention(self.heads, **options, name="attention")(y)
        x = x + DropPath(self.drop_path, name="drop_path1")(y, train)

        y = LayerNorm(EPSILON, dtype=self.dtype, name="norm2")(x)
        y = Mlp(self.mlp_ratio * x.shape[-1], dtype=self.dtype, name="mlp")(y)
        return x + DropPath(self.drop_path, name="drop_path2")(y, train)


class T2TViT(Columnar):
    """Backbone of one resolution: maps of stride 16, and a class token.

    Attributes:
        heads: heads of each block's attention.
        mlp_ratio: width of the perceptrons over that of their block.
        attention_scale: factor of the blocks' scores, None for 1 over the root of a head's width;
            see the top of this file.
        token_dropout: rate of the two token transformers while training.
    """

    heads: int
    mlp_ratio: int = 3
    attention_scale: float | None = None
    token_dropout: float = 0.1

    @property
    def class_token(self) -> str:
        return "first"

    @nn.nowrap
    def init_positions(
        self, key: Array, shape: tuple[int, ...], dtype: Dtype
    ) -> Float[ArrayLike, "1 L C"]:
        return jnp.asarray(sinusoids(*shape[1:])[None], dtype)

    @nn.nowrap
    def resize_positions(
        self, table: Float[ArrayLike, "1 L C"], grid: tuple[int, int], new_grid: tuple[int, int]
    ) -> Float[ArrayLike, "1 _ C"]:
        return super().resize_positions(jax.lax.stop_gradient(table), grid, new_grid)

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        """Maps of the blocks asked for, and the class token.

        Raises:
            ValueError: the patches do not fill the images, or a field has a value that is not
                allowed.
        """
        dtype = self.layer_dtype
        if self.patch_size != 16:
            raise ValueError(
                f"patch_size={self.patch_size} is not possible: three splits of strides 4, 2 and 2 "
                "make tokens of 16 pixels"
            )
        _, height, width, _ = jnp.shape(images)
        rows, columns = patch_grid(height, width, self.patch_size)
        block = self.block_class(T2TBlock)
        options = (self.heads, self.attention_scale, self.mlp_ratio)
        tokens = TokensToToken(self.dim, self.token_dropout, dtype, name="patch_embed")
        x = self.with_positions(tokens(images, train), (rows, columns))
        maps = []
        for i, rate in enumerate(self.block_rates):
            x = block(*options, rate, dtype, name=f"block_{i:02d}")(x, train)
            if i in self.map_blocks:
                maps.append(x[:, 1:].reshape(-1, rows, columns, self.dim))  # (B, H, W, C)
        return Features(tuple(maps), x[:, 0])


def sinusoids(length: int, channels: int) -> Float[np.ndarray, "L C"]:
    """Positions of a sequence as sines and cosines (Vaswani et al. 2017, Section 3.5)."""
    rates = 10000.0 ** (-2 * (np.arange(channels) // 2) / channels)
    angles = np.arange(length)[:, None] * rates
    return np.where(np.arange(channels) % 2, np.cos(angles), np.sin(angles))


BACKBONE = T2TViT
HEAD = TokenHead

_HEAD = {"epsilon": EPSILON}
_7 = {"dim": 256, "depth": 7, "heads": 4, "mlp_ratio": 2}
_14 = {"dim": 384, "depth": 14, "heads": 6}

# fvcore, which rounds those of einsums to four digits, counts 7,020 multiply-accumulates more.
# fmt: off
VARIANTS = {
    "t2t_vit_7": Variant(_7, _HEAD, 4_310_222, 1_146_863_616, 0.1, top1=71.7),
    "t2t_vit_14": Variant(_14, _HEAD, 21_545_550, 4_783_468_544, 0.1, top1=81.5),
    "t2t_vit_19": Variant(
        {"dim": 448, "depth": 19, "heads": 7}, _HEAD, 39_177_422, 8_479_682_176, 0.1, top1=81.9),
    "t2t_vit_24": Variant(
        {"dim": 512, "depth": 24, "heads": 8}, _HEAD, 64_105_934, 13_661_874_688, 0.1, top1=82.3),
    "t2t_vit_7_kqv025": Variant(_7, _HEAD, 4_310_222, 1_146_863_616, 0.1),
    "t2t_vit_14_kqv025": Variant(_14, _HEAD, 21_545_550, 4_783_468_544, 0.1),
}
# fmt: on

DECAY = (*backbone.DECAY, (r"/(cls_token|pos_embed|random_features)$", False))

# What training leaves as it is: the gradient is zero.
FROZEN = (r"/(pos_embed|random_features)$",)

_SPLIT = r"backbone/patch_embed/(attention\d)"
TORCH_NAMES = {
    "official": (
        (r"backbone/(cls_token|pos_embed)", r"\1"),
        (rf"{_SPLIT}/attention/random_features", r"tokens_to_token.\1.w"),
        (rf"{_SPLIT}/attention/(\w+)", r"tokens_to_token.\1.\2"),
        (rf"{_SPLIT}/(norm\d)", r"tokens_to_token.\1.\2"),
        (rf"{_SPLIT}/mlp/fc1", r"tokens_to_token.\1.mlp.0"),
        (rf"{_SPLIT}/mlp/fc2", r"tokens_to_token.\1.mlp.2"),
        (r"backbone/patch_embed/project", r"tokens_to_token.project"),
        (r"backbone/block_0*(\d+)/(norm\d)", r"blocks.\1.\2"),
        (r"backbone/block_0*(\d+)/attention/(\w+)", r"blocks.\1.attn.\2"),
        (r"backbone/block_0*(\d+)/mlp/(fc\d)", r"blocks.\1.mlp.\2"),
        (r"head/norm", r"norm"),
        (r"head/classifier", r"head"),
    ),
}

WEIGHTS: dict[str, Weights] = {}
