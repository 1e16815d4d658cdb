# SPDX-License-Identifier: Apache-2.0
"""iFormer: some channels of a block go to a convolution, some to max pooling, some to attention.

Paper: Si et al., "Inception Transformer", NeurIPS 2022, arXiv 2205.12956; sizes: Table 8 there.
Names and epsilon as in models/inception_transformer.py of github.com/sail-sg/iFormer at 725d8e7.
Not to be taken for other models called iFormer.

Each stage begins with a table of positions. Tables are made for images of `table_size`, the
published one, and interpolated linearly for those of another size, so that images may have any.
"""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jax import Array as JaxArray
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax import backbone
from mambaout_jax.backbone import Features, Pyramid, Variant
from mambaout_jax.heads.classifier import PooledHead
from mambaout_jax.layers.activations import activation
from mambaout_jax.layers.conv import Conv, DepthwiseConv
from mambaout_jax.layers.downsample import max_pool, mean_pool
from mambaout_jax.layers.initializers import normal_init
from mambaout_jax.layers.linear import Dense
from mambaout_jax.layers.mlp import Mlp
from mambaout_jax.layers.norms import BatchNorm, LayerNorm
from mambaout_jax.layers.positions import map_size
from mambaout_jax.layers.residual import DropPath, LayerScale
from mambaout_jax.layers.resize import resize_linear
from mambaout_jax.mixers.attention import from_heads, scaled_dot_product_attention, split_heads
from mambaout_jax.published import Weights, released_weights

_POOLED_STAGES = 2  # in so many of the first, attention sees means of 2 x 2 tokens


class PatchEmbed(nn.Module):
    """Convolutions of stride 2 with batch norms, one or with GELU between them two; positions.

    Attributes:
        features: channels that come out.
        double: whether there are two convolutions.
        grid: rows and columns of the table of positions.
        dtype: dtype of the computation, None to promote.
    """

    features: int
    double: bool
    grid: tuple[int, int]
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[ArrayLike, "B H W I"], train: bool) -> Float[Array, "B _ _ C"]:
        if self.double:
            x = Conv(self.features // 2, 3, 2, 1, dtype=self.dtype, name="conv1")(x)
            x = activation("gelu")(BatchNorm(dtype=self.dtype, name="norm1")(x, train))
        x = Conv(self.features, 3, 2, 1, dtype=self.dtype, name="conv2")(x)
        x = BatchNorm(dtype=self.dtype, name="norm2")(x, train)
        shape = (1, *self.grid, self.features)
        table = jnp.asarray(self.param("pos_embed", normal_init, shape, jnp.float32))
        table = resize_linear(table, (x.shape[1], x.shape[2]))
        x, table = nn.dtypes.promote_dtype(x, table, dtype=self.dtype)
        return jnp.asarray(x) + table

    @nn.nowrap
    def macs(self, inputs: tuple, output: JaxArray) -> int:
        return 0  # positions are added; the convolutions state their own


class HighMixer(nn.Module):
    """What is local: gelu(conv(expand(x₁))) and gelu(expand(max(x₂))), of twice the channels each.

    Attributes:
        conv_implementation: see `kernels.depthwise_conv`.
        dtype: dtype of the computation, None to promote.
    """

    conv_implementation: str
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C2"]:
        dtype, gelu = self.dtype, activation("gelu")
        x1, x2 = jnp.split(x, 2, axis=-1)
        y1 = Dense(2 * x1.shape[-1], use_bias=False, dtype=dtype, name="expand1")(x1)
        conv = DepthwiseConv(3, self.conv_implementation, False, dtype, name="conv")
        y2 = Dense(2 * x2.shape[-1], dtype=dtype, name="expand2")(max_pool(x2))
        return jnp.concatenate((gelu(conv(y1)), gelu(y2)), axis=-1)


class LowMixer(nn.Module):
    """What is global: attention between all tokens, or all means of 2 x 2 of them.

    Attributes:
        heads: heads of the attention.
        pooled: attend to means, and give each token what its mean gets.
        dtype: dtype of the computation, None to promote.
    """

    heads: int
    pooled: bool
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        B, H, W, C = x.shape
        if self.pooled:
            x = mean_pool(x)
        qkv = Dense(3 * C, dtype=self.dtype, name="qkv")(x.reshape(B, -1, C))
        query, key, value = split_heads(qkv, self.heads)
        y = from_heads(scaled_dot_product_attention(query, key, value)).reshape(x.shape)
        if self.pooled:
            y = jnp.repeat(jnp.repeat(y, 2, axis=1), 2, axis=2)[:, :H, :W]
        return y

    @nn.nowrap
    def macs(self, inputs: tuple, output: JaxArray) -> int:
        B, H, W, C = output.shape
        tokens = -(-H // 2) * -(-W // 2) if self.pooled else H * W
        return 2 * B * C * tokens**2


class InceptionMixer(nn.Module):
    """proj(y + fuse(y)) of what the mixers of high and of low frequencies make (Section 3.1).

    Attributes:
        low: channels of the attention, the last ones.
        heads, pooled: see `LowMixer`.
        conv_implementation: see `kernels.depthwise_conv`.
        dtype: dtype of the computation, None to promote.
    """

    low: int
    heads: int
    pooled: bool
    conv_implementation: str
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        channels, dtype = x.shape[-1], self.dtype
        high, low = jnp.split(x, (channels - self.low,), axis=-1)
        high = HighMixer(self.conv_implementation, dtype, name="high")(high)
        low = LowMixer(self.heads, self.pooled, dtype, name="low")(low)
        y = jnp.concatenate((high, low), axis=-1)
        fuse = DepthwiseConv(3, self.conv_implementation, False, dtype, name="fuse")
        return Dense(channels, dtype=dtype, name="proj")(y + fuse(y))


class IFormerBlock(nn.Module):
    """x + gamma1 · mixer(norm1(x)), then x + gamma2 · mlp(norm2(x)).

    Attributes:
        mixer: fields of `InceptionMixer`, dtype excepted.
        layer_scale: whether there are gamma1 and gamma2.
        drop_path: probability of dropping each of the two branches of an example while training.
        dtype: dtype of the computation, None to promote.
    """

    mixer: tuple[int, int, bool, str]
    layer_scale: bool
    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        dtype = self.dtype

        def branch(y, number):
            if self.layer_scale:
                y = LayerScale(1e-6, dtype=dtype, name=f"layer_scale{number}")(y)
            return DropPath(self.drop_path, name=f"drop_path{number}")(y, train)

        y = LayerNorm(dtype=dtype, name="norm1")(x)
        x = x + branch(InceptionMixer(*self.mixer, dtype, name="mixer")(y), 1)
        y = LayerNorm(dtype=dtype, name="norm2")(x)
        return x + branch(Mlp(4 * x.shape[-1], dtype=dtype, name="mlp")(y), 2)


class InceptionTransformer(Pyramid):
    """Backbone of four stages: maps of stride 4, 8, 16 and 32.

    Attributes:
        attention_heads: heads of each block's attention, from the first block to the last.
        head_dim: channels of a head.
        table_size: side or (height, width) in pixels that the tables of positions are made for.
        conv_implementation: see `kernels.depthwise_conv`.
    """

    attention_heads: tuple[int, ...]
    head_dim: int = 32
    table_size: int | tuple[int, int] = 224
    conv_implementation: str = "auto"

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        """Maps of all stages.

        Raises:
            ValueError: `attention_heads` has not one entry per block, or one that leaves a block no
                even number of channels beside the attention.
        """
        dtype = self.layer_dtype
        self._check_heads()
        block = self.block_class(IFormerBlock)
        heads = iter(self.attention_heads)
        maps, x = [], images
        for i, (dim, rates) in enumerate(zip(self.dims, self.stage_rates, strict=True)):
            grid = map_size(self.table_size, self.strides[i])
            name = "patch_embed" if i == 0 else f"downsample_{i}"
            x = PatchEmbed(dim, i == 0, grid, dtype, name=name)(x, train)
            for j, rate in enumerate(rates):
                count, pooled = next(heads), i < _POOLED_STAGES
                mixer = (count * self.head_dim, count, pooled, self.conv_implementation)
                name = f"stage_{i}_block_{j:02d}"
                x = block(mixer, not pooled, rate, dtype, name=name)(x, train)
            maps.append(x)
        return Features(tuple(maps))

    def _check_heads(self) -> None:
        dims = [dim for dim, rates in zip(self.dims, self.stage_rates, strict=True) for _ in rates]
        low = [heads * self.head_dim for heads in self.attention_heads]
        fits = len(dims) == len(low) and all(
            n < dim and (dim - n) % 2 == 0 for dim, n in zip(dims, low, strict=True)
        )
        if not fits:
            raise ValueError(
                f"attention_heads={self.attention_heads} must have one entry for each of the "
                f"{len(dims)} blocks and leave an even number of channels beside the heads of "
                f"{self.head_dim} channels; the blocks have {dims} channels"
            )


BACKBONE = InceptionTransformer
HEAD = PooledHead

# Rates of drop path: checkpoint/iformer_{small,large}/args.yaml.
# fmt: off
VARIANTS = {
    "iformer_small": Variant(
        {"depths": (3, 3, 9, 3), "dims": (96, 192, 320, 384),
         "attention_heads": (1,) * 3 + (3,) * 3 + (7,) * 4 + (9,) * 5 + (11,) * 3},
        {"norm_first": True}, 19_866_344, 4_825_828_736, 0.2, top1=83.4),
    "iformer_large": Variant(
        {"depths": (4, 6, 18, 8), "dims": (96, 192, 448, 640),
         "attention_heads": (1,) * 4 + (3,) * 6 + (10,) * 9 + (12,) * 9 + (19,) * 8},
        {"norm_first": True}, 86_637_096, 14_004_159_488, 0.5, top1=84.8),
}
# fmt: on

DECAY = (*backbone.DECAY, (r"/pos_embed$", False))


def _names_of_stage(i: int) -> tuple[tuple[str, ...], ...]:
    block, theirs = rf"backbone/stage_{i}_block_0*(\d+)", rf"blocks{i + 1}.\1"
    embed = (
        (rf"backbone/downsample_{i}/conv2", f"patch_embed{i + 1}.proj"),
        (rf"backbone/downsample_{i}/norm2", f"patch_embed{i + 1}.norm"),
        (rf"backbone/downsample_{i}/pos_embed", f"pos_embed{i + 1}"),
    )
    return (
        *(embed if i else ()),
        (rf"{block}/(norm\d)", rf"{theirs}.\2"),
        (rf"{block}/mixer/high/expand1", f"{theirs}.attn.high_mixer.conv1", "pointwise"),
        (rf"{block}/mixer/high/conv", f"{theirs}.attn.high_mixer.proj1"),
        (rf"{block}/mixer/high/expand2", f"{theirs}.attn.high_mixer.proj2", "pointwise"),
        (rf"{block}/mixer/low/qkv", f"{theirs}.attn.low_mixer.qkv"),
        (rf"{block}/mixer/fuse", f"{theirs}.attn.conv_fuse"),
        (rf"{block}/mixer/proj", f"{theirs}.attn.proj", "pointwise"),
        (rf"{block}/mlp/(\w+)", rf"{theirs}.mlp.\2"),
        (rf"{block}/layer_scale(\d)/gamma", rf"{theirs}.layer_scale_\2"),
    )


TORCH_NAMES = {
    "official": (
        (r"backbone/patch_embed/conv(\d)", r"patch_embed.proj\1"),
        (r"backbone/patch_embed/(norm\d)", r"patch_embed.\1"),
        (r"backbone/patch_embed/pos_embed", "pos_embed1"),
        *(rule for i in range(4) for rule in _names_of_stage(i)),
        (r"head/norm", "norm"),
        (r"head/classifier", "head"),
    ),
}


def _released(model: str) -> tuple[str, Weights]:
    url = f"https://huggingface.co/sail/dl2/resolve/main/iformer/{model}.pth"
    result = (224, 0.9, VARIANTS[model].top1)
    return released_weights(model, url, "Apache-2.0", result, crop_fraction=0.9)


# README.md of the release, with these accuracies.
WEIGHTS = dict(map(_released, VARIANTS))
