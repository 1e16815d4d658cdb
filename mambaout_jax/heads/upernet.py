# SPDX-License-Identifier: Apache-2.0
"""UperNet (Xiao et al. 2018): a class for every pixel out of the four maps of a backbone.

The numbers are those of mmsegmentation 1.2.2 (`UPerHead` and an auxiliary `FCNHead`), with which
MambaOut, VMamba and Swin were compared on ADE20K: pyramid pooling of the coarsest map, a feature
pyramid over all four, one convolution over them put together. All resizing is bilinear between
outer edges, and pooling is PyTorch's adaptive one, whose windows may overlap: maps have any sizes.

    maps C1 … C4 ──► laterals, top down ──► fpn 0 … 2 ─► at the size of C1 ─► fusion ─► classifier
                     C4: means of 1, 2, 3, 6 squares ─► bottleneck ┘
    map C3 ──► auxiliary head, for a second loss in training
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Dtype
from jax import Array as JaxArray
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax.backbone import Backbone
from mambaout_jax.heads.neck import PyramidNeck, SimplePyramidNeck
from mambaout_jax.layers.conv import Conv
from mambaout_jax.layers.conv_norm import ConvBatchNorm
from mambaout_jax.layers.initializers import normal_fan_out_init
from mambaout_jax.layers.norms import BatchNorm
from mambaout_jax.layers.precision import at_least_float32, compute_dtype
from mambaout_jax.layers.resize import mean_pool_to, resize_linear

# mmsegmentation's names of what is put on a backbone; see `weights.torch_names`.
TORCH_NAMES = (
    (r"head/pool_(\d)/conv", r"decode_head.psp_modules.\1.1.conv"),
    (r"head/pool_(\d)/norm", r"decode_head.psp_modules.\1.1.bn"),
    (r"head/(lateral|fpn)_(\d)/conv", r"decode_head.\1_convs.\2.conv"),
    (r"head/(lateral|fpn)_(\d)/norm", r"decode_head.\1_convs.\2.bn"),
    (r"head/bottleneck/conv", "decode_head.bottleneck.conv"),
    (r"head/bottleneck/norm", "decode_head.bottleneck.bn"),
    (r"head/fusion/conv", "decode_head.fpn_bottleneck.conv"),
    (r"head/fusion/norm", "decode_head.fpn_bottleneck.bn"),
    (r"head/classifier", "decode_head.conv_seg"),
    (r"auxiliary/conv", "auxiliary_head.convs.0.conv"),
    (r"auxiliary/norm", "auxiliary_head.convs.0.bn"),
    (r"auxiliary/classifier", "auxiliary_head.conv_seg"),
)


class UperNetHead(nn.Module):
    """Four maps, finest first, to the logits of each pixel of the finest.

    Attributes:
        num_classes: classes.
        channels: width of every layer in it.
        pool_sizes: squares along a side that the coarsest map is averaged over.
        dropout: rate at which whole channels are dropped before the classifier in training.
        dtype: dtype of the computation; float32 means at least float32.
    """

    num_classes: int = 150
    channels: int = 512
    pool_sizes: tuple[int, ...] = (1, 2, 3, 6)
    dropout: float = 0.1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, maps: tuple[Float[Array, "B _ _ _"], ...], train: bool = False
    ) -> Float[Array, "B H W K"]:
        levels = [self._conv(f"lateral_{i}", x, 1, train) for i, x in enumerate(maps[:-1])]
        levels.append(self._pooled(maps[-1], train))
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] += resize_linear(levels[i], levels[i - 1].shape[1:3])
        levels[:-1] = [self._conv(f"fpn_{i}", x, 3, train) for i, x in enumerate(levels[:-1])]
        size = levels[0].shape[1:3]
        x = jnp.concatenate([resize_linear(level, size) for level in levels], axis=-1)
        x = self._conv("fusion", x, 3, train)
        return _classify(Conv, x, self.num_classes, self.dropout, self.dtype, train)

    def _pooled(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W _"]:
        """Pyramid pooling (Zhao et al. 2017): what is around a pixel, at several scales."""
        parts = [x]
        for i, pooled in enumerate(self.pool_sizes):
            mean = self._conv(f"pool_{i}", mean_pool_to(x, (pooled, pooled)), 1, train)
            parts.append(resize_linear(mean, x.shape[1:3]))
        return self._conv("bottleneck", jnp.concatenate(parts, axis=-1), 3, train)

    def _conv(
        self, name: str, x: Float[Array, "B H W _"], side: int, train: bool
    ) -> Float[Array, "B H W _"]:
        conv = ConvBatchNorm(
            self.channels,
            side,
            padding=side // 2,
            dtype=compute_dtype(self.dtype),
            kernel_init=normal_fan_out_init(self.channels * side**2),
            name=name,
        )
        return jax.nn.relu(conv(x, train))


class _Unused(Conv):
    """A convolution that only training computes: it counts among parameters, and not in MACs."""

    @nn.nowrap
    def macs(self, inputs: tuple, output: JaxArray) -> int:
        return 0


class AuxiliaryHead(nn.Module):
    """One map to the logits of each of its pixels, for a second loss in training alone.

    Attributes:
        num_classes: classes.
        channels: width of the layer before the classifier.
        dropout: rate at which whole channels are dropped before the classifier in training.
        dtype: dtype of the computation; float32 means at least float32.
    """

    num_classes: int = 150
    channels: int = 256
    dropout: float = 0.1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool = False) -> Float[Array, "B H W K"]:
        dtype = compute_dtype(self.dtype)
        x = _Unused(
            self.channels,
            3,
            padding=1,
            use_bias=False,
            dtype=dtype,
            kernel_init=normal_fan_out_init(9 * self.channels),
            name="conv",
        )(x)
        x = jax.nn.relu(BatchNorm(dtype=dtype, name="norm")(x, train))
        return _classify(_Unused, x, self.num_classes, self.dropout, self.dtype, train)


def _classify(
    layer: type[Conv],
    x: Float[Array, "B H W C"],
    num_classes: int,
    dropout: float,
    dtype: Dtype,
    train: bool,
) -> Float[Array, "B H W K"]:
    """The last layers of a head, to be called inside it: whole channels dropped, the classifier."""
    x = nn.Dropout(dropout, broadcast_dims=(1, 2), deterministic=not train, name="dropout")(x)
    dtype = compute_dtype(dtype)
    init = nn.initializers.normal(0.01)
    return layer(num_classes, 1, dtype=dtype, kernel_init=init, name="classifier")(x)


class Segmenter(nn.Module):
    """Images to the logits of each pixel at stride 4.

    Attributes:
        backbone: maps images to stage maps.
        neck: makes of them four maps of strides 4, 8, 16 and 32.
        head: maps those to logits.
        auxiliary: maps the one of stride 16 to logits, in training only.
    """

    backbone: Backbone
    neck: PyramidNeck | SimplePyramidNeck
    head: UperNetHead
    auxiliary: AuxiliaryHead

    @property
    def num_classes(self) -> int:
        """K."""
        return self.head.num_classes

    def __call__(
        self, images: Float[ArrayLike, "B H W C"], train: bool = False
    ) -> Float[Array, "B _ _ K"] | tuple[Float[Array, "B _ _ K"], Float[Array, "B _ _ K"]]:
        """Logits, at least float32.

        Args:
            images: normalised, of any size.
            train: training mode.

        Returns:
            (B, ceil(H / 4), ceil(W / 4), K); in training mode a pair of those and the auxiliary
            logits (B, ceil(H / 16), ceil(W / 16), K). (A backbone that rounds sizes down has
            smaller maps.)

        Raises:
            ValueError: as `Backbone.features`.
        """
        features = self.backbone.features(images, train)
        with self.backbone.implementations():
            maps = self.neck(features.maps)
            logits = self.head(maps, train)
            if not train and not self.is_initializing():
                return at_least_float32(logits)
            auxiliary = self.auxiliary(maps[2], train)
        both = at_least_float32(logits), at_least_float32(auxiliary)
        return both if train else both[0]
