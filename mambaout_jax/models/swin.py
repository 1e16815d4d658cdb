# SPDX-License-Identifier: Apache-2.0
"""Swin: attention in windows of a map, shifted in every second block.

Paper: Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows", ICCV
2021, arXiv 2103.14030; sizes: Section 3.3 there. Names as in
github.com/huggingface/pytorch-image-models (timm), and those of the authors' release,
github.com/microsoft/Swin-Transformer.

A map that the windows do not fill is padded in each block, so images may have any size.
"""

import flax.linen as nn
import numpy as np
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax import backbone
from mambaout_jax.backbone import Features, Pyramid, Variant
from mambaout_jax.heads.classifier import PooledHead
from mambaout_jax.layers.downsample import ConvNorm, PatchMerging
from mambaout_jax.layers.mlp import Mlp
from mambaout_jax.layers.norms import LayerNorm
from mambaout_jax.layers.positions import height_and_width, relative_position_index
from mambaout_jax.layers.residual import DropPath
from mambaout_jax.mixers.attention import WindowAttention, visible_in_window
from mambaout_jax.published import Weights

EPSILON = 1e-5  # of every norm
_HIDDEN = -100.0  # what PyTorch's table of masks adds to scores of tokens that are not seen


class SwinBlock(nn.Module):
    """Pre-norm transformer block in windows (Eq. 3).

        x = x + attention(norm1(x))
        x = x + mlp(norm2(x))

    Attributes:
        heads: heads of the attention.
        window: side of a window in tokens.
        shift: how far the windows are shifted.
        drop_path: probability of dropping each of the two branches of an example while training.
        dtype: dtype of the computation, None to promote.
    """

    heads: int
    window: int
    shift: int
    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"], train: bool) -> Float[Array, "B H W C"]:
        y = LayerNorm(EPSILON, dtype=self.dtype, name="norm1")(x)
        attention = WindowAttention(
            self.heads, self.window, self.shift, dtype=self.dtype, name="attention"
        )
        x = x + DropPath(self.drop_path, name="drop_path1")(attention(y), train)

        y = LayerNorm(EPSILON, dtype=self.dtype, name="norm2")(x)
        y = Mlp(4 * x.shape[-1], dtype=self.dtype, name="mlp")(y)
        return x + DropPath(self.drop_path, name="drop_path2")(y, train)


class Swin(Pyramid):
    """Backbone of four stages: maps of stride 4, 8, 16 and 32.

    Attributes:
        heads: heads of each stage's attention.
        window: side of a window in tokens.
        image_size: side or (height, width) in pixels for which PyTorch's derived tables are made;
            the model itself takes any size.
    """

    heads: tuple[int, ...]
    window: int = 7
    image_size: int | tuple[int, int] = 224

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        dtype = self.layer_dtype
        block = self.block_class(SwinBlock)
        maps = []
        embed = ConvNorm(self.dims[0], 4, 4, epsilon=EPSILON, dtype=dtype, name="patch_embed")
        x = embed(images)
        for i, rates in enumerate(self.stage_rates):
            if i > 0:
                x = PatchMerging(self.dims[i], EPSILON, dtype, name=f"downsample_{i}")(x)
            for j, rate in enumerate(rates):
                shift = self.shift_of(j)
                name = f"stage_{i}_block_{j:02d}"
                x = block(self.heads[i], self.window, shift, rate, dtype, name=name)(x, train)
            maps.append(x)
        return Features(tuple(maps))

    @nn.nowrap
    def shift_of(self, block: int) -> int:
        """How far the windows of a stage's block are shifted: half of one in every second block."""
        return block % 2 * (self.window // 2)


BACKBONE = Swin
HEAD = PooledHead

_HEAD = {"norm_first": True, "epsilon": EPSILON}
_TINY = {"dims": (96, 192, 384, 768), "depths": (2, 2, 6, 2), "heads": (3, 6, 12, 24)}
_SMALL = {"dims": (96, 192, 384, 768), "depths": (2, 2, 18, 2), "heads": (3, 6, 12, 24)}
_BASE = {"dims": (128, 256, 512, 1024), "depths": (2, 2, 18, 2), "heads": (4, 8, 16, 32)}

# fmt: off
VARIANTS = {
    "swin_tiny_patch4_window7_224": Variant(
        _TINY, _HEAD, 28_288_354, 4_490_566_656, 0.2, top1=81.3),
    "swin_small_patch4_window7_224": Variant(
        _SMALL, _HEAD, 49_606_258, 8_740_875_264, 0.3, top1=83.0),
    "swin_base_patch4_window7_224": Variant(
        _BASE, _HEAD, 87_768_224, 15_430_946_816, 0.5, top1=83.5),
}
# fmt: on

DECAY = (*backbone.DECAY, (r"/relative_position_bias$", False))

_BLOCK = r"backbone/stage_(\d)_block_0*(\d+)"
_BOTH = (
    (r"backbone/patch_embed/conv", r"patch_embed.proj"),
    (r"backbone/patch_embed/norm", r"patch_embed.norm"),
    (
        rf"{_BLOCK}/attention/relative_position_bias",
        r"layers.\1.blocks.\2.attn.relative_position_bias_table",
    ),
    (rf"{_BLOCK}/attention/(\w+)", r"layers.\1.blocks.\2.attn.\3"),
    (rf"{_BLOCK}/(norm\d)", r"layers.\1.blocks.\2.\3"),
    (rf"{_BLOCK}/mlp/(\w+)", r"layers.\1.blocks.\2.mlp.\3"),
    (r"head/norm", r"norm"),
)
TORCH_NAMES = {
    # timm merges patches at the start of a stage, the release at the end of the one before.
    "timm": (
        *_BOTH,
        (r"backbone/downsample_(\d)/(\w+)", r"layers.\1.downsample.\2"),
        (r"head/classifier", r"head.fc"),
    ),
    "official": (
        *_BOTH,
        *((rf"backbone/downsample_{i + 1}/(\w+)", rf"layers.{i}.downsample.\1") for i in range(3)),
        (r"head/classifier", r"head"),
    ),
}


def torch_buffers(backbone: Swin, naming: str) -> dict[str, np.ndarray]:
    """The release's tables of indices and, in shifted blocks, of masks; timm saves none."""
    if naming != "official":
        return {}
    window = backbone.window
    index = relative_position_index(window, window).astype(np.int64)
    tables = {}
    for i, (depth, stride) in enumerate(zip(backbone.depths, backbone.strides, strict=True)):
        height, width = (n // stride for n in height_and_width(backbone.image_size))
        for j in range(depth):
            name = f"layers.{i}.blocks.{j}"
            tables[f"{name}.attn.relative_position_index"] = index
            shift = backbone.shift_of(j)
            if shift and min(height, width) > window:
                counts = (-(-height // window), -(-width // window))
                visible = visible_in_window(counts, window, (shift, shift))
                tables[f"{name}.attn_mask"] = np.where(visible, 0, _HIDDEN).astype(np.float32)
    return tables


WEIGHTS: dict[str, Weights] = {}
