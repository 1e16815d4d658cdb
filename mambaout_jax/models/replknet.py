# SPDX-License-Identifier: Apache-2.0
"""RepLKNet: depthwise convolutions of up to 31 x 31 pixels, trained with small ones beside them.

After training both kernels and their norms are one kernel: `merge` makes the variables of
`replknet_31b_merged` from those of `replknet_31b`; both compute the same.

Paper: Ding et al., "Scaling Up Your Kernels to 31x31: Revisiting Large Kernel Design in CNNs", CVPR
2022, arXiv 2203.06717. Sizes, names and initial values: github.com/DingXiaoH/RepLKNet-pytorch at
b76808a.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax import backbone
from mambaout_jax.backbone import Features, Pyramid, Variant
from mambaout_jax.heads.classifier import BatchNormHead
from mambaout_jax.layers.activations import activation
from mambaout_jax.layers.conv import DepthwiseConv
from mambaout_jax.layers.conv_norm import ConvBatchNorm, DepthwiseConvBatchNorm
from mambaout_jax.layers.initializers import torch_inits, uniform_fan_in_init
from mambaout_jax.layers.norms import BatchNorm
from mambaout_jax.layers.residual import DropPath
from mambaout_jax.published import Weights

_EPSILON = 1e-5  # of every norm


def _pointwise(features: int, inputs: int, dtype: Dtype | None, name: str) -> ConvBatchNorm:
    init = uniform_fan_in_init(inputs)
    return ConvBatchNorm(features, 1, dtype=dtype, kernel_init=init, name=name)


def _depthwise(
    side: int, implementation: str, dtype: Dtype | None, name: str, stride: int = 1
) -> DepthwiseConvBatchNorm:
    init = uniform_fan_in_init(side**2)
    return DepthwiseConvBatchNorm(
        side, stride, implementation, dtype=dtype, kernel_init=init, name=name
    )


class LargeKernelBlock(nn.Module):
    """x + pointwise2(relu(large(y) + small(y))),  y = relu(pointwise1(norm(x))).

    All four convolutions have norms behind them; merged, large and small are one with a bias.

    Attributes:
        kernel_size: side of the large kernel.
        small_kernel: side of the small one.
        merged: whether they are one.
        conv_implementation: see `kernels.depthwise_conv`.
        drop_path: probability of dropping the branch of an example while training.
        dtype: dtype of the computation, None to promote.
    """

    kernel_size: int
    small_kernel: int
    merged: bool
    conv_implementation: str
    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        channels, dtype, conv = x.shape[-1], self.dtype, self.conv_implementation
        y = BatchNorm(_EPSILON, dtype=dtype, name="norm")(x, train)
        y = jax.nn.relu(_pointwise(channels, channels, dtype, "pointwise1")(y, train))
        if self.merged:
            inits = torch_inits(self.kernel_size**2)
            y = DepthwiseConv(self.kernel_size, conv, dtype=dtype, **inits, name="merged")(y)
        else:
            large = _depthwise(self.kernel_size, conv, dtype, "large")(y, train)
            y = large + _depthwise(self.small_kernel, conv, dtype, "small")(y, train)
        y = _pointwise(channels, channels, dtype, "pointwise2")(jax.nn.relu(y), train)
        return x + DropPath(self.drop_path, name="drop_path")(y, train)


class FeedForwardBlock(nn.Module):
    """x + pointwise2(gelu(pointwise1(norm(x)))), each convolution with a norm behind it.

    Attributes:
        drop_path: probability of dropping the branch of an example while training.
        dtype: dtype of the computation, None to promote.
    """

    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        channels, dtype = x.shape[-1], self.dtype
        y = BatchNorm(_EPSILON, dtype=dtype, name="norm")(x, train)
        y = _pointwise(4 * channels, channels, dtype, "pointwise1")(y, train)
        y = activation("gelu")(y)
        y = _pointwise(channels, 4 * channels, dtype, "pointwise2")(y, train)
        return x + DropPath(self.drop_path, name="drop_path")(y, train)


class RepLKNetStem(nn.Module):
    """Four convolutions, each with a norm and ReLU: a map of a quarter of the images' size.

    Attributes:
        features: channels of the map.
        conv_implementation: see `kernels.depthwise_conv`.
        dtype: dtype of the computation, None to promote.
    """

    features: int
    conv_implementation: str
    dtype: Dtype | None

    @nn.compact
    def __call__(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Float[Array, "B _ _ F"]:
        width, dtype, conv = self.features, self.dtype, self.conv_implementation
        init = uniform_fan_in_init(3**2 * jnp.shape(images)[-1])
        x = ConvBatchNorm(width, 3, 2, 1, dtype=dtype, kernel_init=init, name="conv_0")(
            images, train
        )
        x = _depthwise(3, conv, dtype, "conv_1")(jax.nn.relu(x), train)
        x = _pointwise(width, width, dtype, "conv_2")(jax.nn.relu(x), train)
        x = _depthwise(3, conv, dtype, "conv_3", stride=2)(jax.nn.relu(x), train)
        return jax.nn.relu(x)


class Transition(nn.Module):
    """relu(halve(relu(widen(x)))), each convolution with a norm behind it.

    Attributes:
        features: channels that come out.
        conv_implementation: see `kernels.depthwise_conv`.
        dtype: dtype of the computation, None to promote.
    """

    features: int
    conv_implementation: str
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B _ _ F"]:
        x = _pointwise(self.features, x.shape[-1], self.dtype, "widen")(x, train)
        halve = _depthwise(3, self.conv_implementation, self.dtype, "halve", stride=2)
        return jax.nn.relu(halve(jax.nn.relu(x), train))


class RepLKNet(Pyramid):
    """Backbone of four stages: maps of stride 4, 8, 16 and 32.

    A depth counts pairs of a block with a large kernel and one without.

    Attributes:
        kernel_sizes: side of the large kernels of each stage.
        small_kernel: side of the kernels beside them.
        merged: whether both are one, see `merge`.
        conv_implementation: see `kernels.depthwise_conv`.
    """

    kernel_sizes: tuple[int, ...] = (31, 29, 27, 13)
    small_kernel: int = 5
    merged: bool = False
    conv_implementation: str = "auto"

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        dtype, conv = self.layer_dtype, self.conv_implementation
        large, feed_forward = map(self.block_class, (LargeKernelBlock, FeedForwardBlock))
        maps = []
        x = RepLKNetStem(self.dims[0], conv, dtype, name="stem")(images, train)
        for i, rates in enumerate(self.stage_rates):
            if i > 0:
                x = Transition(self.dims[i], conv, dtype, name=f"downsample_{i}")(x, train)
            options = (self.kernel_sizes[i], self.small_kernel, self.merged, conv)
            for j, rate in enumerate(rates):
                first, second = (f"stage_{i}_block_{k:02d}" for k in (2 * j, 2 * j + 1))
                x = large(*options, rate, dtype, name=first)(x, train)
                x = feed_forward(rate, dtype, name=second)(x, train)
            maps.append(x)
        return Features(tuple(maps))


def merge(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables of the model with `merged=True` that computes the same.

    Args:
        variables: those of a model, or of a backbone, with `merged=False`.

    Raises:
        ValueError: no block has a large kernel and a small one.
    """
    flat = flatten_dict(dict(variables))
    blocks = [path[1:-3] for path in flat if path[-3:] == ("large", "conv", "kernel")]
    if not blocks:
        raise ValueError("there is nothing to merge: no block has the kernels 'large' and 'small'")
    for block in blocks:
        kernel, bias = _folded(flat, (*block, "large"))
        small, small_bias = _folded(flat, (*block, "small"))
        around = (kernel.shape[0] - small.shape[0]) // 2
        padding = ((around, around), (around, around), (0, 0), (0, 0))
        flat["params", *block, "merged", "kernel"] = kernel + jnp.pad(small, padding)
        flat["params", *block, "merged", "bias"] = bias + small_bias
    return unflatten_dict(flat)


def _folded(flat: dict[tuple[str, ...], Any], path: tuple[str, ...]) -> tuple[Any, Any]:
    """Takes a convolution with its batch norm away; returns them as one kernel and bias."""
    kernel = flat.pop(("params", *path, "conv", "kernel"))
    scale, bias = (flat.pop(("params", *path, "norm", leaf)) for leaf in ("scale", "bias"))
    mean, variance = (flat.pop(("batch_stats", *path, "norm", leaf)) for leaf in ("mean", "var"))
    factor = scale / jnp.sqrt(variance + _EPSILON)
    return kernel * factor[None, None, None], bias - mean * factor


BACKBONE = RepLKNet
HEAD = BatchNormHead

_HEAD = {"torch_init": True}
_31B = {"depths": (2, 2, 18, 2), "dims": (128, 256, 512, 1024)}

# Top-1 is that of both forms.
# fmt: off
VARIANTS = {
    "replknet_31b": Variant(
        _31B, _HEAD, 79_864_168, 15_431_298_048, 0.5, top1=83.5),
    "replknet_31b_merged": Variant(
        {**_31B, "merged": True}, _HEAD, 79_527_272, 15_353_525_248, 0.5, top1=83.5),
}
# fmt: on

DECAY = backbone.DECAY

_BLOCK = r"backbone/stage_(\d)_block_0*(\d+)"
_THEIRS = r"stages.\1.blocks.\2"
_LARGE = rf"{_THEIRS}.large_kernel"


def _layer_names(ours: str, theirs: str) -> tuple[tuple[str, ...], ...]:
    """Rules of a convolution with its norm."""
    return ((f"{ours}/conv", f"{theirs}.conv"), (f"{ours}/norm", f"{theirs}.bn"))


TORCH_NAMES = {
    "official": (
        *_layer_names(r"backbone/stem/conv_(\d)", r"stem.\1"),
        *(
            rule
            for i in range(3)
            for rule in (
                *_layer_names(f"backbone/downsample_{i + 1}/widen", f"transitions.{i}.0"),
                *_layer_names(f"backbone/downsample_{i + 1}/halve", f"transitions.{i}.1"),
            )
        ),
        *_layer_names(rf"{_BLOCK}/pointwise(\d)", rf"{_THEIRS}.pw\3"),
        *_layer_names(rf"{_BLOCK}/large", rf"{_LARGE}.lkb_origin"),
        *_layer_names(rf"{_BLOCK}/small", rf"{_LARGE}.small_conv"),
        (rf"{_BLOCK}/merged", rf"{_LARGE}.lkb_reparam"),
        # Blocks with a large kernel have even numbers.
        (r"backbone/stage_(\d)_block_0*(\d*[02468])/norm", rf"{_THEIRS}.prelkb_bn"),
        (rf"{_BLOCK}/norm", rf"{_THEIRS}.preffn_bn"),
        (r"head/norm", r"norm"),
        (r"head/classifier", r"head"),
    ),
}

WEIGHTS: dict[str, Weights] = {}
