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

import flax.linen as nn
from flax.typing import Dtype
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax import backbone
from mambaout_jax.backbone import Features, Pyramid, Variant
from mambaout_jax.heads.classifier import HiddenHead
from mambaout_jax.kernels.selective_scan_pallas import STATES
from mambaout_jax.layers.activations import activation
from mambaout_jax.layers.block_loop import run_blocks
from mambaout_jax.layers.conv import DepthwiseConv
from mambaout_jax.layers.downsample import ConvNorm, ConvStem
from mambaout_jax.layers.linear import JoinDense, SplitDense
from mambaout_jax.layers.norms import LayerNorm
from mambaout_jax.layers.residual import DropPath, LayerScale
from mambaout_jax.mixers.attention import MultiHeadSelfAttention
from mambaout_jax.mixers.conv import CausalConv
from mambaout_jax.mixers.routes import paths_of
from mambaout_jax.mixers.ssm import SSM_DECAY, STATE_SIZE, MapSSM, dt_rank_of
from mambaout_jax.published import released_weights, timm_weights

TOKEN_MIXERS = ("conv", "conv+ssm", "ssm", "attention")
DEFAULT_ROUTES = "cross"  # of the SSM, where none is asked for

# Of a block's results those that its gradient keeps where blocks loop: a compiler that sees the
# loop alone cannot tell that norms, activations and products are cheaper to compute again.
_KEPT = "gated_cnn_block"


@dataclasses.dataclass(frozen=True)
class BlockOptions:
    """What a `GatedCNNBlock` is made of. Each field is an option of `create_model`.

    Attributes:
        expansion_ratio: width of the gate over that of the block, rounded down to channels.
        conv_ratio: channels that are mixed over those of the block.
        kernel_size: side of the convolution's kernel, odd where it is a depthwise one.
        dilation: pixels from one tap of the kernel to the next.
        activation: a key of `layers.activations.ACTIVATIONS`.
        layer_scale: initial factor on the branch, None for no layer scale.
        token_mixer: one of `TOKEN_MIXERS`: "conv", a depthwise convolution; "conv+ssm", with a
            selective SSM behind it; "ssm", the SSM alone; "attention", softmax attention.
        routes: routes of the SSM over the map, a key of `mixers.routes.ROUTES`; None: "cross".
        state_size: states of the SSM.
        heads: heads of the attention.
        causal: the map is a sequence, row by row, in which neither convolution nor attention looks
            ahead. (What an SSM sees is decided by `routes`.)
        conv_implementation: see `kernels.depthwise_conv`.
        scan_implementation: see `kernels.selective_scan`.

    Raises:
        ValueError: a field has a value that is not allowed, or that another one contradicts.
    """

    expansion_ratio: float = 8 / 3
    conv_ratio: float = 1.0
    kernel_size: int = 7
    dilation: int = 1
    activation: str = "gelu"
    layer_scale: float | None = None
    token_mixer: str = "conv"
    routes: str | None = None
    state_size: int = STATE_SIZE
    heads: int = 1
    causal: bool = False
    conv_implementation: str = "auto"
    scan_implementation: str = "auto"

    def __post_init__(self) -> None:
        if self.token_mixer not in TOKEN_MIXERS:
            raise ValueError(
                f"token_mixer={self.token_mixer!r} is not known; allowed are "
                f"{', '.join(map(repr, TOKEN_MIXERS))}"
            )
        if self.routes is not None and "ssm" not in self.token_mixer:
            raise ValueError(
                f"routes={self.routes!r} is for an SSM, and token_mixer={self.token_mixer!r} has "
                "none; set token_mixer='conv+ssm' or leave routes out"
            )
        if self.dilation != 1 and "conv" not in self.token_mixer:
            raise ValueError(
                f"dilation={self.dilation} is for a convolution, and token_mixer="
                f"{self.token_mixer!r} has none; set token_mixer='conv' or leave dilation out"
            )
        if self.conv_ratio > self.expansion_ratio:
            raise ValueError(
                f"conv_ratio={self.conv_ratio} is larger than expansion_ratio="
                f"{self.expansion_ratio}; the mixed channels are a part of the gated ones"
            )


class GatedCNNBlock(nn.Module):
    """Gated CNN block, or Mamba block (paper, Algorithm 1 and Eq. 8, 10, 11).

        g, i, c = split(fc1(norm(x)))
        y = x + fc2(act(g) * concat(i, mix(c)))

    The token mixer works on a part `c` of the channels only. It is all that the two blocks differ
    in: "conv" is a depthwise convolution, mix(c) = conv(c); "conv+ssm" has a selective SSM behind
    it, mix(c) = ssm(act(conv(c))); "ssm" leaves the convolution out, mix(c) = ssm(act(c)).

    Attributes:
        options: the block's parts and sizes.
        drop_path: probability of dropping the branch of an example while training.
        dtype: dtype of the computation, None to promote.
    """

    options: BlockOptions
    drop_path: float | Float[Array, ""] = 0.0
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        options = self.options
        dim = x.shape[-1]
        hidden = int(options.expansion_ratio * dim)
        mixed = int(options.conv_ratio * dim)
        if mixed < 1:
            raise ValueError(
                f"conv_ratio={options.conv_ratio} of {dim} channels leaves none to mix; it must be "
                f"at least 1 / {dim}"
            )
        rest = hidden - mixed
        act = activation(options.activation)

        y = LayerNorm(dtype=self.dtype, name="norm")(x)
        parts = SplitDense((rest, mixed, rest, mixed), self.dtype, name="fc1")(y)
        gate_i, gate_c, i, c = (checkpoint_name(part, _KEPT) for part in parts)
        y = JoinDense(dim, self.dtype, name="fc2")(act(gate_i) * i, act(gate_c) * self._mix(c))
        if options.layer_scale is not None:
            y = LayerScale(options.layer_scale, dtype=self.dtype, name="layer_scale")(y)
        return x + DropPath(self.drop_path, name="drop_path")(y, train)

    def _mix(self, c: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """The token mixer."""
        options = self.options
        tokens = (c.shape[0], -1, c.shape[-1])  # (B, L, C)
        if options.token_mixer == "attention":
            attention = MultiHeadSelfAttention(
                options.heads, options.causal, dtype=self.dtype, name="attention"
            )
            return attention(c.reshape(tokens)).reshape(c.shape)
        if options.token_mixer != "ssm":
            c = checkpoint_name(self._convolve(c), _KEPT)
        if options.token_mixer == "conv":
            return c
        return MapSSM(
            paths_of(options.routes or DEFAULT_ROUTES),
            options.state_size,
            dt_rank_of(c.shape[-1]),
            options.scan_implementation,
            self.dtype,
            name="ssm",
        )(activation(options.activation)(c))

    def _convolve(self, c: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        options = self.options
        if options.causal:
            conv = CausalConv(options.kernel_size, self.dtype, options.dilation, name="conv")
            return conv(c.reshape(c.shape[0], -1, c.shape[-1])).reshape(c.shape)
        return DepthwiseConv(
            options.kernel_size,
            options.conv_implementation,
            dtype=self.dtype,
            dilation=options.dilation,
            name="conv",
        )(c)


class MambaOut(Pyramid):
    """Backbone of four stages: maps of stride 4, 8, 16 and 32.

    Attributes:
        stem_mid_norm: normalise between the two convolutions of the stem.
        downsample_norm_first: normalise before the convolution between stages, not after it.
        loop_blocks: compile the blocks of a stage as one that loops, which takes a compiler less
            time the more blocks there are; see `layers.block_loop`.
        block: what the blocks are made of.
    """

    stem_mid_norm: bool = True
    downsample_norm_first: bool = False
    loop_blocks: bool = False
    block: BlockOptions = BlockOptions()

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        dtype = self.layer_dtype
        block = self.block_class(GatedCNNBlock)
        maps = []
        x = ConvStem(
            self.dims[0], self.stem_mid_norm, self.block.activation, dtype=dtype, name="stem"
        )(images)
        for i, rates in enumerate(self.stage_rates):
            if i > 0:
                first = self.downsample_norm_first
                name = f"downsample_{i}"
                x = ConvNorm(self.dims[i], 3, 2, 1, norm_first=first, dtype=dtype, name=name)(x)
            blocks = [
                block(self.block, rate, dtype, name=f"stage_{i}_block_{j:02d}")
                for j, rate in enumerate(rates)
            ]
            x = run_blocks(blocks, x, train, loop=self.loop_blocks, keep=self._kept)
            maps.append(x)
        return Features(tuple(maps))

    @property
    def _kept(self) -> tuple[str, ...]:
        """What the gradient of blocks that loop keeps; see `run_blocks`."""
        if self.remat:
            return ()
        return (STATES,) if "ssm" in self.block.token_mixer else (_KEPT,)


BACKBONE = MambaOut
HEAD = HiddenHead

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
        {"depths": (3, 3, 9, 3), "dims": _SMALL_DIMS},
        {}, 7_304_536, 1_147_984_992, 0.025, top1=78.9),
    "mambaout_kobe": Variant(
        {"depths": (3, 3, 15, 3), "dims": _SMALL_DIMS},
        {}, 9_141_208, 1_505_865_312, 0.025, top1=80.0),
    "mambaout_tiny": Variant(
        {"depths": (3, 3, 9, 3), "dims": _TINY_DIMS},
        {}, 26_545_096, 4_469_655_744, 0.2, top1=82.7),
    "mambaout_small": Variant(
        {"depths": (3, 4, 27, 3), "dims": _TINY_DIMS},
        {}, 48_488_072, 8_936_423_616, 0.4, top1=84.1),
    "mambaout_base": Variant(
        {"depths": (3, 4, 27, 3), "dims": _BASE_DIMS},
        {}, 84_813_092, 15_794_325_760, 0.6, top1=84.2),
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

DECAY = (*backbone.DECAY, SSM_DECAY)

# See `weights.convert`.
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


def _released(model, top1):
    url = f"https://github.com/yuweihao/MambaOut/releases/download/model/{model}.pth"
    return released_weights(model, url, "Apache-2.0", (224, 1.0, top1))


_IMAGENET_12K = 11821  # classes

# Names, sizes, crops and classes: timm/models/mambaout.py of huggingface/pytorch-image-models; its
# accuracies: results/results-imagenet.csv there at aa4b585, and on other test sets
# results-{imagenet-real,imagenetv2-matched-frequency,imagenet-a,imagenet-r,sketch}.csv beside it;
# official files and top-1: README.md of yuweihao/MambaOut at 9f2f234. Licences: the model cards on
# huggingface.co, and LICENSE of MambaOut, of whose weights timm's femto, tiny and small are copies.
# `test_mambaout` and the variants that are this project's own have no published weights.
# fmt: off
WEIGHTS = dict((
    timm_weights("mambaout_femto.in1k", "Apache-2.0",
                 (224, 1.0, 78.880, 94.408, 85.580, 67.570, 11.400, 41.093, 28.704),
                 (288, 1.0, 79.912, 95.134, 86.558, 69.090, 16.827, 39.710, 27.652)),
    timm_weights("mambaout_kobe.in1k", "Apache-2.0",
                 (224, 1.0, 79.986, 94.982, 86.192, 68.640, 14.800, 42.233, 30.191),
                 (288, 1.0, 81.064, 95.682, 87.091, 70.190, 21.227, 40.630, 28.798)),
    timm_weights("mambaout_tiny.in1k", "Apache-2.0",
                 (224, 1.0, 82.742, 96.098, 87.689, 71.830, 25.613, 46.963, 34.685),
                 (288, 1.0, 83.452, 96.540, 88.486, 72.540, 33.000, 45.530, 33.099)),
    timm_weights("mambaout_small.in1k", "Apache-2.0",
                 (224, 1.0, 84.094, 96.626, 88.266, 73.970, 34.307, 50.140, 37.674),
                 (288, 1.0, 84.512, 96.970, 88.740, 74.970, 41.853, 48.863, 36.193)),
    timm_weights("mambaout_base.in1k", "Apache-2.0",
                 (224, 1.0, 84.194, 96.668, 88.270, 73.760, 36.987, 49.833, 37.539),
                 (288, 1.0, 84.730, 96.934, 88.821, 74.560, 43.840, 48.573, 35.943)),
    timm_weights("mambaout_small_rw.sw_e450_in1k", "Apache-2.0",
                 (224, 1.0, 84.040, 96.742, 88.462, 73.690, 30.107, 51.340, 38.896),
                 (288, 1.0, 84.604, 97.096, 88.962, 74.820, 38.093, 50.367, 37.918)),
    timm_weights("mambaout_base_short_rw.sw_e500_in1k", "Apache-2.0",
                 (224, 0.95, 84.364, 96.944, 88.778, 74.430, 38.533, 52.623, 40.810),
                 (288, 1.0, 84.842, 97.286, 89.297, 75.240, 46.107, 51.763, 39.851),
                 crop_fraction=0.95),
    timm_weights("mambaout_base_tall_rw.sw_e500_in1k", "Apache-2.0",
                 (224, 0.95, 84.436, 96.956, 88.733, 74.400, 39.040, 52.653, 40.431),
                 (288, 1.0, 84.988, 97.334, 89.276, 74.950, 46.507, 52.037, 39.337),
                 crop_fraction=0.95),
    timm_weights("mambaout_base_wide_rw.sw_e500_in1k", "Apache-2.0",
                 (224, 0.95, 84.448, 96.872, 88.787, 74.640, 36.240, 54.027, 42.312),
                 (288, 1.0, 84.966, 97.222, 89.286, 75.170, 43.893, 53.447, 41.669),
                 crop_fraction=0.95),
    timm_weights("mambaout_base_plus_rw.sw_e150_in12k_ft_in1k", "Apache-2.0",
                 (224, 1.0, 86.642, 98.150, 89.908, 77.670, 59.720, 65.307, 51.056),
                 (288, 1.0, 86.916, 98.238, 90.149, 77.610, 64.960, 64.800, 50.294)),
    timm_weights("mambaout_base_plus_rw.sw_e150_r384_in12k_ft_in1k", "Apache-2.0",
                 (384, 1.0, 87.508, 98.428, 90.520, 78.150, 68.493, 66.997, 52.111),
                 image_size=384, crop_mode="squash"),
    timm_weights("mambaout_base_plus_rw.sw_e150_in12k", None, num_classes=_IMAGENET_12K),
    _released("mambaout_femto", 78.9),
    _released("mambaout_kobe", 80.0),
    _released("mambaout_tiny", 82.7),
    _released("mambaout_small", 84.1),
    _released("mambaout_base", 84.2),
))
# fmt: on
