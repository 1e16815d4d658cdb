# SPDX-License-Identifier: Apache-2.0
"""From the maps of any backbone to the four that dense heads read, of strides 4, 8, 16 and 32.

A neck is a side branch: the backbone's next stage reads its own map without the neck's norm.
"""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, Float

from mambaout_jax.backbone import Backbone
from mambaout_jax.layers.activations import activation
from mambaout_jax.layers.norms import LayerNorm
from mambaout_jax.layers.precision import compute_dtype
from mambaout_jax.layers.transposed_conv import TransposedConv

STRIDES = (4, 8, 16, 32)

_EPSILON = 1e-5  # PyTorch's default, as VMamba, Swin and ConvNeXt have it in front of dense heads


class PyramidNeck(nn.Module):
    """Layer norm of each map of a pyramid: what Swin, ConvNeXt and VMamba put before dense heads.

    Attributes:
        channels: of the four maps, finest first.
        dtype: dtype of the computation; float32 means at least float32.
    """

    channels: tuple[int, ...]
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, maps: tuple[Float[Array, "B _ _ _"], ...]
    ) -> tuple[Float[Array, "B _ _ _"], ...]:
        dtype = compute_dtype(self.dtype)
        return tuple(
            LayerNorm(_EPSILON, dtype=dtype, name=f"norm_{i}")(x) for i, x in enumerate(maps)
        )


class SimplePyramidNeck(nn.Module):
    """A pyramid out of maps of one stride (Li et al. 2022, ViTDet, the simple feature pyramid).

    Finer maps by transposed convolutions 2x2, each of which halves the channels, with layer norm
    and GELU between two; coarser ones by the largest of 2x2 pixels, a last odd row or column
    counting by itself. ViTDet then has a 1x1 and a 3x3 convolution at each level: here those are
    the heads' own laterals and outputs, and each level ends with a layer norm as a pyramid's does.

    Attributes:
        dim: channels of the backbone's maps.
        stride: of the backbone's maps, a power of two.
        dtype: dtype of the computation; float32 means at least float32.

    With four maps, of four blocks, each makes one level (as mmseg's BEiT); with one it makes all.
    """

    dim: int
    stride: int
    dtype: Dtype = jnp.float32

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple(self.dim * stride // max(stride, self.stride) for stride in STRIDES)

    @nn.compact
    def __call__(
        self, maps: tuple[Float[Array, "B _ _ _"], ...]
    ) -> tuple[Float[Array, "B _ _ _"], ...]:
        sources = maps * len(STRIDES) if len(maps) == 1 else maps
        levels = []
        for level, (x, stride) in enumerate(zip(sources, STRIDES, strict=True)):
            x = self._finer(level, x, stride)
            window = (max(1, stride // self.stride),) * 2
            x = nn.max_pool(x, window, window, padding="SAME")
            norm = LayerNorm(_EPSILON, dtype=compute_dtype(self.dtype), name=f"norm_{level}")
            levels.append(norm(x))
        return tuple(levels)

    def _finer(
        self, level: int, x: Float[Array, "B H W C"], stride: int
    ) -> Float[Array, "B _ _ _"]:
        """The map at a finer stride, or itself, with the layers of one level."""
        dtype = compute_dtype(self.dtype)
        for step in range((self.stride // stride).bit_length() - 1):
            if step:
                x = LayerNorm(_EPSILON, dtype=dtype, name=f"up_{level}_norm_{step - 1}")(x)
                x = activation("gelu")(x)
            up = TransposedConv(x.shape[-1] // 2, dtype=dtype, name=f"up_{level}_{step}")
            x = up(x)
        return x


def make_neck(backbone: Backbone, dtype: Dtype = jnp.float32) -> PyramidNeck | SimplePyramidNeck:
    """The neck for a backbone: maps to four maps of strides 4, 8, 16 and 32.

    Its `channels` are those of the four maps, known before initialisation.

    Args:
        backbone: its `channels` and `strides` decide.
        dtype: dtype of the computation; float32 means at least float32.

    Raises:
        ValueError: the backbone's maps are neither of strides 4, 8, 16, 32 nor all of one stride
            that is a power of two, one map or four.
    """
    strides, channels = tuple(backbone.strides), tuple(backbone.channels)
    if strides == STRIDES:
        return PyramidNeck(channels, dtype)
    stride, dim = strides[0], channels[0]
    even = set(strides) == {stride} and set(channels) == {dim} and len(strides) in (1, 4)
    finest = max(1, stride // STRIDES[0])
    if not even or stride & (stride - 1) or dim % finest:
        raise ValueError(
            f"{type(backbone).__name__} has maps of strides {strides} with {channels} channels; "
            f"dense heads take strides {STRIDES}, or one or four maps (out_blocks) of one stride "
            "that is a power of two, with channels that can be halved down to stride 4"
        )
    return SimplePyramidNeck(dim, stride, dtype)
