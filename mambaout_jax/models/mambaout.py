# SPDX-License-Identifier: Apache-2.0
"""MambaOut: a stack of Gated CNN blocks, which are Mamba blocks without their SSM.

`token_mixer="conv+ssm"` puts the SSM back, and changes nothing else.

Paper: Yu and Wang, "MambaOut: Do We Really Need Mamba for Vision?", CVPR 2025, arXiv 2405.07992.
Sizes: Table 4 there for femto, tiny, small and base; kobe from github.com/yuweihao/MambaOut; the
`_rw` variants and `test_mambaout` from github.com/huggingface/pytorch-image-models (timm).
`mambaout_micro`, for images of 32 pixels, and the `_ssm` variants are this project's.

Deviation: timm's blocks start every layer scale at 1e-5, whatever value a variant asks for; here
the value asked for is used. It matters only when training from scratch.
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax.backbone import Features, Variant
from mambaout_jax.layers.linear import (
    Dense,
    DepthwiseConv,
    DropPath,
    JoinDense,
    LayerNorm,
    LayerScale,
    SplitDense,
    StridedConv,
    activation,
    compute_dtype,
    drop_path_rates,
)
from mambaout_jax.mixers.ssm import STATE_SIZE, MapSSM, dt_rank_of

TOKEN_MIXERS = ("conv", "conv+ssm")
DEFAULT_ROUTES = "cross"  # of the SSM, where none is asked for


class Stem(nn.Module):
    """Two convolutions of stride 2: images to a map of a quarter of their size.

    Attributes:
        dim: channels of the map; the first convolution makes half of them.
        mid_norm: normalise between the convolutions.
    """

    dim: int
    mid_norm: bool
    activation: str
    dtype: Dtype | None

    @nn.compact
    def __call__(self, images: Float[ArrayLike, "B H W I"]) -> Float[Array, "B _ _ C"]:
        x = StridedConv(self.dim // 2, dtype=self.dtype, name="conv1")(images)
        if self.mid_norm:
            x = LayerNorm(dtype=self.dtype, name="norm1")(x)
        x = activation(self.activation)(x)
        x = StridedConv(self.dim, dtype=self.dtype, name="conv2")(x)
        return LayerNorm(dtype=self.dtype, name="norm2")(x)


class Downsample(nn.Module):
    """Convolution of stride 2 between two stages, with a norm after it, or before it.

    Attributes:
        dim: channels that come out.
        norm_first: normalise what comes in instead of what comes out.
    """

    dim: int
    norm_first: bool
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B _ _ C"]:
        norm = LayerNorm(dtype=self.dtype, name="norm")
        conv = StridedConv(self.dim, dtype=self.dtype, name="conv")
        return conv(norm(x)) if self.norm_first else norm(conv(x))


class GatedCNNBlock(nn.Module):
    """Gated CNN block, or Mamba block (paper, Algorithm 1 and Eq. 8, 10, 11).

        g, i, c = split(fc1(norm(x)))
        y = x + fc2(act(g) * concat(i, mix(c)))

    The token mixer works on a part `c` of the channels only. It is all that the two blocks differ
    in: "conv" is a depthwise convolution, mix(c) = conv(c); "conv+ssm" has a selective SSM behind
    it, mix(c) = ssm(act(conv(c))).

    Attributes:
        expansion_ratio: width of the gate over that of the block, rounded down to channels.
        conv_ratio: channels that are mixed over those of the block.
        kernel_size: odd side of the depthwise kernel.
        layer_scale: initial factor on the branch, None for no layer scale.
        drop_path: probability of dropping the branch of an example while training.
        token_mixer: "conv" or "conv+ssm".
        routes: of the SSM over the map, a key of `mixers.routes.ROUTES`; None: "cross".
        state_size: of the SSM.
    """

    expansion_ratio: float = 8 / 3
    conv_ratio: float = 1.0
    kernel_size: int = 7
    activation: str = "gelu"
    layer_scale: float | None = None
    drop_path: float = 0.0
    token_mixer: str = "conv"
    routes: str | None = None
    state_size: int = STATE_SIZE
    conv_implementation: str = "auto"
    scan_implementation: str = "auto"
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        dim = x.shape[-1]
        hidden = int(self.expansion_ratio * dim)
        mixed = int(self.conv_ratio * dim)
        if mixed > hidden:
            raise ValueError(
                f"conv_ratio={self.conv_ratio} is larger than expansion_ratio="
                f"{self.expansion_ratio}; the mixed channels are a part of the gated ones"
            )
        if self.token_mixer not in TOKEN_MIXERS:
            raise ValueError(
                f"token_mixer={self.token_mixer!r} is not known; allowed are "
                f"{', '.join(map(repr, TOKEN_MIXERS))}"
            )
        if self.token_mixer == "conv" and self.routes is not None:
            raise ValueError(
                f"routes={self.routes!r} is for an SSM, and token_mixer='conv' has none; set "
                "token_mixer='conv+ssm' or leave routes out"
            )

        act = activation(self.activation)
        y = LayerNorm(dtype=self.dtype, name="norm")(x)
        rest = hidden - mixed
        gate_i, gate_c, i, c = SplitDense((rest, mixed, rest, mixed), self.dtype, name="fc1")(y)
        c = DepthwiseConv(
            self.kernel_size, self.conv_implementation, dtype=self.dtype, name="conv"
        )(c)
        if self.token_mixer == "conv+ssm":
            c = MapSSM(
                self.routes or DEFAULT_ROUTES,
                self.state_size,
                dt_rank_of(mixed),
                self.scan_implementation,
                self.dtype,
                name="ssm",
            )(act(c))
        y = JoinDense(dim, self.dtype, name="fc2")(act(gate_i) * i, act(gate_c) * c)
        if self.layer_scale is not None:
            y = LayerScale(self.layer_scale, dtype=self.dtype, name="layer_scale")(y)
        return x + DropPath(self.drop_path, name="drop_path")(y, train)


def block_fields(backbone: nn.Module) -> dict[str, Any]:
    """The fields of its blocks that a backbone has under the same name, but for its depth's."""
    own = {"drop_path", "dtype", "parent", "name"}
    fields = (field.name for field in dataclasses.fields(GatedCNNBlock))
    return {name: getattr(backbone, name) for name in fields if name not in own}


class MambaOut(nn.Module):
    """Backbone of four stages: maps of stride 4, 8, 16 and 32.

    Attributes:
        depths: blocks of each stage.
        dims: channels of each stage.
        stem_mid_norm: normalise between the two convolutions of the stem.
        downsample_norm_first: normalise before the convolution between stages, not after it.
        drop_path: rate of the last block; linear over the depth from 0.
        remat: recompute each block in the backward pass instead of keeping its activations.
        dtype: of the computation; float32 means at least float32.

    The other fields are those of `GatedCNNBlock`.
    """

    depths: tuple[int, ...]
    dims: tuple[int, ...]
    expansion_ratio: float = 8 / 3
    conv_ratio: float = 1.0
    kernel_size: int = 7
    activation: str = "gelu"
    layer_scale: float | None = None
    stem_mid_norm: bool = True
    downsample_norm_first: bool = False
    drop_path: float = 0.0
    token_mixer: str = "conv"
    routes: str | None = None
    state_size: int = STATE_SIZE
    conv_implementation: str = "auto"
    scan_implementation: str = "auto"
    remat: bool = False
    dtype: Dtype = jnp.float32

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple(self.dims)

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(4 * 2**i for i in range(len(self.dims)))

    @nn.compact
    def features(self, images: Float[ArrayLike, "B H W I"], train: bool = False) -> Features:
        """Maps of all stages, finest first."""
        dtype = compute_dtype(self.dtype)
        block_class = nn.remat(GatedCNNBlock, static_argnums=(2,)) if self.remat else GatedCNNBlock
        if len(self.depths) != len(self.dims):
            raise ValueError(
                f"depths={self.depths} and dims={self.dims} must have one entry per stage each"
            )
        rates = drop_path_rates(self.drop_path, self.depths)

        maps = []
        x = Stem(self.dims[0], self.stem_mid_norm, self.activation, dtype, name="stem")(images)
        for i, dim in enumerate(self.dims):
            if i > 0:
                x = Downsample(dim, self.downsample_norm_first, dtype, name=f"downsample_{i}")(x)
            for j, rate in enumerate(rates[i]):
                x = block_class(
                    **block_fields(self),
                    drop_path=rate,
                    dtype=dtype,
                    name=f"stage_{i}_block_{j:02d}",
                )(x, train)
            maps.append(x)
        return Features(tuple(maps))

    def __call__(
        self, images: Float[ArrayLike, "B H W I"], train: bool = False
    ) -> tuple[Float[Array, "B _ _ _"], ...]:
        return self.features(images, train).maps


class MlpHead(nn.Module):
    """Mean over the last map, norm, hidden layer of four times the width, linear classifier.

    Attributes:
        num_classes: 0 returns what the classifier would read.
        hidden_norm: normalise the hidden layer (the paper's head does, timm's `_rw` heads do not).
        dropout: rate, before the classifier, while training.
    """

    num_classes: int = 1000
    hidden_norm: bool = True
    dropout: float = 0.0
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, features: Features, train: bool = False) -> Float[Array, "B _"]:
        dtype = compute_dtype(self.dtype)
        x = features.maps[-1].mean(axis=(1, 2))  # (B, C)
        x = LayerNorm(dtype=dtype, name="norm")(x)
        x = Dense(4 * x.shape[-1], dtype=dtype, name="hidden")(x)
        x = activation("gelu")(x)  # also where the blocks use another activation
        if self.hidden_norm:
            x = LayerNorm(dtype=dtype, name="hidden_norm")(x)
        x = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(x)
        if self.num_classes == 0:
            return x
        return Dense(self.num_classes, dtype=dtype, name="classifier")(x)


BACKBONE = MambaOut
HEAD = MlpHead

_SMALL_DIMS = (48, 96, 192, 288)
_TINY_DIMS = (96, 192, 384, 576)
_BASE_DIMS = (128, 256, 512, 768)
_RW = {"stem_mid_norm": False, "downsample_norm_first": True, "layer_scale": 1e-6}
_RW_HEAD = {"hidden_norm": False}


def _rw(depths, dims, **fields):
    return {"depths": depths, "dims": dims, **_RW, **fields}


def _ssm(depths, dims):
    """With the SSM, and so much narrower that the MACs are those of the model without, within 1 %.

    To compare at equal widths instead: `create_model("mambaout_tiny", token_mixer="conv+ssm")`.
    """
    return {"depths": depths, "dims": dims, "token_mixer": "conv+ssm", "routes": DEFAULT_ROUTES}


# fmt: off
VARIANTS = {
    "mambaout_femto": Variant(
        {"depths": (3, 3, 9, 3), "dims": _SMALL_DIMS}, {}, 7_304_536, 1_147_984_992, 0.025),
    "mambaout_kobe": Variant(
        {"depths": (3, 3, 15, 3), "dims": _SMALL_DIMS}, {}, 9_141_208, 1_505_865_312, 0.025),
    "mambaout_tiny": Variant(
        {"depths": (3, 3, 9, 3), "dims": _TINY_DIMS}, {}, 26_545_096, 4_469_655_744, 0.2),
    "mambaout_small": Variant(
        {"depths": (3, 4, 27, 3), "dims": _TINY_DIMS}, {}, 48_488_072, 8_936_423_616, 0.4),
    "mambaout_base": Variant(
        {"depths": (3, 4, 27, 3), "dims": _BASE_DIMS}, {}, 84_813_092, 15_794_325_760, 0.6),
    "mambaout_small_rw": Variant(
        _rw((3, 4, 27, 3), _TINY_DIMS), _RW_HEAD, 48_495_560, 8_936_423_616),
    "mambaout_base_short_rw": Variant(
        _rw((3, 3, 25, 3), _BASE_DIMS, expansion_ratio=3.0, conv_ratio=1.25),
        _RW_HEAD, 88_827_688, 16_280_785_216),
    "mambaout_base_tall_rw": Variant(
        _rw((3, 4, 30, 3), _BASE_DIMS, expansion_ratio=2.5, conv_ratio=1.25),
        _RW_HEAD, 86_481_448, 16_116_684_608),
    "mambaout_base_wide_rw": Variant(
        _rw((3, 4, 27, 3), _BASE_DIMS, expansion_ratio=3.0, conv_ratio=1.5, activation="silu"),
        _RW_HEAD, 94_448_104, 17_751_798_144),
    "mambaout_base_plus_rw": Variant(
        _rw((3, 4, 30, 3), _BASE_DIMS, expansion_ratio=3.0, conv_ratio=1.5, activation="silu"),
        _RW_HEAD, 101_656_552, 19_161_191_808),
    "test_mambaout": Variant(
        _rw((1, 1, 3, 1), (16, 32, 48, 64), expansion_ratio=3.0, activation="silu",
            layer_scale=1e-4),
        _RW_HEAD, 447_560, 47_945_856, image_size=160),
    "mambaout_micro": Variant(
        {"depths": (1, 1, 1, 1), "dims": (24, 48, 96, 128)}, {}, 991_578, 90_975_872, 0.05,
        image_size=32),
    "mambaout_micro_ssm": Variant(
        _ssm((1, 1, 1, 1), (14, 28, 55, 73)), {}, 493_961, 91_165_098, 0.05, image_size=32),
    "mambaout_femto_ssm": Variant(
        _ssm((3, 3, 9, 3), (34, 68, 136, 202)), {}, 4_492_562, 1_151_193_002, 0.025),
    "mambaout_tiny_ssm": Variant(
        _ssm((3, 3, 9, 3), (80, 160, 316, 476)), {}, 20_297_528, 4_484_576_880, 0.2),
    "mambaout_small_ssm": Variant(
        _ssm((3, 4, 27, 3), (80, 164, 324, 488)), {}, 39_136_696, 8_934_790_000, 0.4),
    "mambaout_base_ssm": Variant(
        _ssm((3, 4, 27, 3), (112, 224, 448, 668)), {}, 71_755_170, 15_803_697_808, 0.6),
}
# fmt: on

# Module paths here to module names there, the first that matches the whole path; `weights.convert`
# knows how leaves are called and laid out.
TORCH_NAMES = {
    "timm": (
        (r"backbone/stem/(\w+)", r"stem.\1"),
        (r"backbone/downsample_(\d+)/(\w+)", r"stages.\1.downsample.\2"),
        (r"backbone/stage_(\d+)_block_0*(\d+)/layer_scale", r"stages.\1.blocks.\2.ls"),
        (r"backbone/stage_(\d+)_block_0*(\d+)/(\w+)", r"stages.\1.blocks.\2.\3"),
        (r"head/norm", r"head.norm"),
        (r"head/hidden", r"head.pre_logits.fc"),
        (r"head/hidden_norm", r"head.pre_logits.norm"),
        (r"head/classifier", r"head.fc"),
    ),
    "official": (
        (r"backbone/stem/(\w+)", r"downsample_layers.0.\1"),
        (r"backbone/downsample_(\d+)/(\w+)", r"downsample_layers.\1.\2"),
        (r"backbone/stage_(\d+)_block_0*(\d+)/(norm|fc1|conv|fc2)", r"stages.\1.\2.\3"),
        (r"head/norm", r"norm"),
        (r"head/hidden", r"head.fc1"),
        (r"head/hidden_norm", r"head.norm"),
        (r"head/classifier", r"head.fc2"),
    ),
}
