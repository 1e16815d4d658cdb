# SPDX-License-Identifier: Apache-2.0
"""InternImage: convolutions that choose where they look, with weights that follow what they see.

Paper: Wang et al., "InternImage: Exploring Large-Scale Vision Foundation Models with Deformable
Convolutions", CVPR 2023, arXiv 2211.05778; sizes: Table 1 there. Names and options:
classification/models/intern_image.py of github.com/OpenGVLab/InternImage at 31c962d, with
configs/internimage_{t,s,b}_1k_224.yaml: the tiny model normalises before each branch, the others
behind it.

A sample between pixels is computed from gathers, without a kernel of its own.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype
from jax import Array as JaxArray
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax import backbone
from mambaout_jax.backbone import Features, Pyramid, Variant
from mambaout_jax.heads.classifier import classify
from mambaout_jax.kernels.dispatch import numpy_for
from mambaout_jax.layers.activations import activation
from mambaout_jax.layers.conv import DepthwiseConv
from mambaout_jax.layers.downsample import ConvNorm, ConvStem
from mambaout_jax.layers.initializers import torch_inits, uniform_fan_in_init
from mambaout_jax.layers.linear import Dense
from mambaout_jax.layers.mlp import Mlp
from mambaout_jax.layers.norms import BatchNorm, LayerNorm
from mambaout_jax.layers.precision import compute_dtype
from mambaout_jax.layers.residual import DropPath, LayerScale
from mambaout_jax.published import Weights

SIDE = 3  # of the square of points that a convolution looks at
POINTS = SIDE**2
# Multiply-accumulates of a sample, of one channel, as the authors count: four neighbours, a weight.
_MACS_OF_SAMPLE = 5


class DeformableConv(nn.Module):
    """DCNv3 (Eq. 2): at each pixel a weighted mean of nine samples, in groups of channels.

        proj_out(Σₚ weightₚ · value[pixel + pₚ + offsetₚ])    value = proj_in(x)

    Offsets and weights, which a softmax makes sum to one, are linear in gelu(norm(conv(x))), with a
    depthwise convolution. What lies beyond the map is zero.

    Attributes:
        groups: groups of channels, each with offsets and weights of its own.
        conv_implementation: see `kernels.depthwise_conv`.
        dtype: dtype of the computation, None to promote.
    """

    groups: int
    conv_implementation: str
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        (B, H, W, C), dtype = x.shape, self.dtype
        xavier = nn.initializers.xavier_uniform()
        value = Dense(C, dtype=dtype, kernel_init=xavier, name="proj_in")(x)
        conv = {"dtype": dtype, **torch_inits(SIDE**2), "name": "conv"}
        y = DepthwiseConv(SIDE, self.conv_implementation, **conv)(x)
        y = activation("gelu")(LayerNorm(dtype=dtype, name="norm")(y))
        zeros = nn.initializers.zeros
        offsets = Dense(2 * self.groups * POINTS, dtype=dtype, kernel_init=zeros, name="offset")(y)
        weights = Dense(self.groups * POINTS, dtype=dtype, kernel_init=zeros, name="weight")(y)
        y = sampled(
            value.reshape(B, H, W, self.groups, C // self.groups),
            offsets.reshape(B, H, W, self.groups, POINTS, 2),
            jax.nn.softmax(weights.reshape(B, H, W, self.groups, POINTS)),
        ).reshape(x.shape)
        return Dense(C, dtype=dtype, kernel_init=xavier, name="proj_out")(y)

    @nn.nowrap
    def macs(self, inputs: tuple, output: JaxArray) -> int:
        return _MACS_OF_SAMPLE * POINTS * output.size


@jax.jit  # compiled once for all blocks of a stage, also where the model runs uncompiled
def sampled(
    x: Float[Array, "B H W G C"],
    offsets: Float[Array, "B H W G points 2"],
    weights: Float[Array, "B H W G points"],
) -> Float[Array, "B H W G C"]:
    """Σₚ weightₚ · x[pixel + pₚ + offsetₚ] at each pixel, in each group.

    The points pₚ are those of a square around the pixel, column by column. A sample is the bilinear
    mean of the four pixels around it, those beyond the map being zero. Places are computed in at
    least float32.

    Args:
        x: what is looked at.
        offsets: in pixels, to the right and down.
        weights: of the samples.
    """
    B, H, W, G, C = x.shape
    half = SIDE // 2
    steps = np.arange(-half, half + 1)
    right, down = (axis.ravel() for axis in np.meshgrid(steps, steps, indexing="ij"))
    dtype = jnp.promote_types(offsets.dtype, jnp.float32)
    maps = x.reshape(B, H * W, G, C).swapaxes(1, 2)  # (B, G, L, C)
    xp = numpy_for(H, W)
    rows, columns = (axis[None, :, None] for axis in xp.divmod(xp.arange(H * W), W))

    @jax.checkpoint  # what is gathered is four times the map at each point
    def add(total, point):
        offset, weight, right, down = point
        across = columns + right + offset[..., 0].astype(dtype)  # (B, L, G)
        along = rows + down + offset[..., 1].astype(dtype)
        left, top = jnp.floor(across), jnp.floor(along)
        for i, j in np.ndindex(2, 2):
            row, column = top + i, left + j
            share = (1 - jnp.abs(along - row)) * (1 - jnp.abs(across - column)) * weight
            inside = (row >= 0) & (row < H) & (column >= 0) & (column < W)
            at = jnp.clip(row, 0, H - 1) * W + jnp.clip(column, 0, W - 1)
            pixels = _gather(maps, at.astype(jnp.int32).swapaxes(1, 2))
            share = jnp.where(inside, share, 0).astype(x.dtype).swapaxes(1, 2)
            total = total + pixels * share[..., None]  # (B, G, L, C)
        return total, None

    offsets = jnp.moveaxis(offsets.reshape(B, H * W, G, POINTS, 2), 3, 0)
    weights = jnp.moveaxis(weights.reshape(B, H * W, G, POINTS), 3, 0)
    total, _ = jax.lax.scan(add, jnp.zeros_like(maps), (offsets, weights, right, down))
    return total.swapaxes(1, 2).reshape(x.shape)


_gather = jax.vmap(jax.vmap(lambda pixels, at: pixels[at]))  # (B, G, L, C), (B, G, L)


class InternImageBlock(nn.Module):
    """Two residual branches, a deformable convolution and a perceptron (Figure 3).

        pre-norm   x = x + conv(norm1(x));           x + mlp(norm2(x))
        post-norm  x = x + gamma · norm1(conv(x));   x + gamma · norm2(mlp(x))

    Attributes:
        groups, conv_implementation: see `DeformableConv`.
        post_norm: which of the two.
        drop_path: probability of dropping each of the two branches of an example while training.
        dtype: dtype of the computation, None to promote.
    """

    groups: int
    conv_implementation: str
    post_norm: bool
    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        dtype = self.dtype
        branches = (
            DeformableConv(self.groups, self.conv_implementation, dtype, name="conv"),
            Mlp(4 * x.shape[-1], dtype=dtype, name="mlp"),
        )
        for i, branch in enumerate(branches, 1):
            norm = LayerNorm(dtype=dtype, name=f"norm{i}")
            y = norm(branch(x)) if self.post_norm else branch(norm(x))
            if self.post_norm:
                y = LayerScale(1e-5, dtype=dtype, name=f"layer_scale{i}")(y)
            x = x + DropPath(self.drop_path, name=f"drop_path{i}")(y, train)
        return x


class Downsample(nn.Module):
    """Halves a map; behind a pre-norm stage, normalises it first.

    Attributes:
        features: channels that come out.
        norm_first: whether it does.
        dtype: dtype of the computation, None to promote.
    """

    features: int
    norm_first: bool
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B _ _ F"]:
        inits = torch_inits(9 * x.shape[-1])
        if self.norm_first:
            x = LayerNorm(dtype=self.dtype, name="map_norm")(x)
        options = {"use_bias": False, "dtype": self.dtype, "name": "reduce"}
        return ConvNorm(self.features, 3, 2, 1, **options, **inits)(x)


class InternImage(Pyramid):
    """Backbone of four stages: maps of stride 4, 8, 16 and 32.

    Attributes:
        groups: groups of each stage's convolutions.
        post_norm: see `InternImageBlock`.
        conv_implementation: see `kernels.depthwise_conv`.
    """

    groups: tuple[int, ...]
    post_norm: bool = False
    conv_implementation: str = "auto"

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        dtype = self.layer_dtype
        block = self.block_class(InternImageBlock)
        maps = []
        x = ConvStem(self.dims[0], dtype=dtype, torch_init=True, name="stem")(images)
        for i, rates in enumerate(self.stage_rates):
            if i > 0:
                norm_first, name = not self.post_norm, f"downsample_{i}"
                x = Downsample(self.dims[i], norm_first, dtype, name=name)(x)
            options = (self.groups[i], self.conv_implementation, self.post_norm)
            for j, rate in enumerate(rates):
                x = block(*options, rate, dtype, name=f"stage_{i}_block_{j:02d}")(x, train)
            maps.append(x)
        return Features(tuple(maps))


class InternImageHead(nn.Module):
    """Linear layer of one and a half times the width, batch norm, gelu, mean, linear classifier.

    Attributes:
        num_classes: 0 returns what the classifier would read.
        norm_first: normalise the map before all that, as behind a pre-norm stage.
        dtype: dtype of the computation; float32 means at least float32.
    """

    num_classes: int = 1000
    norm_first: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, features: Features, train: bool = False) -> Float[Array, "B _"]:
        dtype, x = compute_dtype(self.dtype), features.maps[-1]
        channels = x.shape[-1]
        if self.norm_first:
            x = LayerNorm(dtype=dtype, name="map_norm")(x)
        init = uniform_fan_in_init(channels)
        hidden = Dense(channels * 3 // 2, False, dtype=dtype, kernel_init=init, name="hidden")
        x = BatchNorm(dtype=dtype, name="norm")(hidden(x), train)
        x = activation("gelu")(x).mean(axis=(1, 2))  # (B, C)
        return classify(x, self.num_classes, dtype)


BACKBONE = InternImage
HEAD = InternImageHead

# Among the multiply-accumulates are those of samples, which fvcore leaves out of its products.
_LARGE = {"depths": (4, 4, 21, 4), "post_norm": True}

# fmt: off
VARIANTS = {
    "internimage_t": Variant(
        {"depths": (4, 4, 18, 4), "dims": (64, 128, 256, 512), "groups": (4, 8, 16, 32)},
        {"norm_first": True}, 29_918_424, 4_885_100_544, 0.1, top1=83.5),
    "internimage_s": Variant(
        {**_LARGE, "dims": (80, 160, 320, 640), "groups": (5, 10, 20, 40)},
        {}, 50_079_880, 8_305_966_080, 0.4, top1=84.2),
    "internimage_b": Variant(
        {**_LARGE, "dims": (112, 224, 448, 896), "groups": (7, 14, 28, 56)},
        {}, 97_461_832, 16_182_426_624, 0.5, top1=84.9),
}
# fmt: on

DECAY = backbone.DECAY

_BLOCK = r"backbone/stage_(\d)_block_0*(\d+)"
_THEIRS = r"levels.\1.blocks.\2"


def _downsample_names(level: int) -> tuple[tuple[str, str], ...]:
    """The code downsamples at the end of a level."""
    ours, theirs = f"backbone/downsample_{level + 1}", f"levels.{level}"
    return (
        (f"{ours}/map_norm", f"{theirs}.norm.0"),
        (f"{ours}/reduce/conv", f"{theirs}.downsample.conv"),
        (f"{ours}/reduce/norm", f"{theirs}.downsample.norm.1"),
    )


TORCH_NAMES = {
    "official": (
        (r"backbone/stem/(conv\d)", r"patch_embed.\1"),
        (r"backbone/stem/(norm\d)", r"patch_embed.\1.1"),
        *(rule for i in range(3) for rule in _downsample_names(i)),
        (r"head/map_norm", r"levels.3.norm.0"),
        (rf"{_BLOCK}/(norm\d)", rf"{_THEIRS}.\3.0"),
        (rf"{_BLOCK}/layer_scale(\d)/gamma", rf"{_THEIRS}.gamma\3"),
        (rf"{_BLOCK}/conv/conv", rf"{_THEIRS}.dcn.dw_conv.0"),
        (rf"{_BLOCK}/conv/norm", rf"{_THEIRS}.dcn.dw_conv.1.1"),
        (rf"{_BLOCK}/conv/offset", rf"{_THEIRS}.dcn.offset"),
        (rf"{_BLOCK}/conv/weight", rf"{_THEIRS}.dcn.mask"),
        (rf"{_BLOCK}/conv/proj_(in|out)", rf"{_THEIRS}.dcn.\3put_proj"),
        (rf"{_BLOCK}/mlp/(fc\d)", rf"{_THEIRS}.mlp.\3"),
        (r"head/hidden", r"conv_head.0", "pointwise"),
        (r"head/norm", r"conv_head.1.0"),
        (r"head/classifier", r"head"),
    ),
}

WEIGHTS: dict[str, Weights] = {}
