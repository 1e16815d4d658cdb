# SPDX-License-Identifier: Apache-2.0
"""DeiT: the vision transformer, with the option of causal attention.

Paper: Touvron et al., "Training data-efficient image transformers & distillation through
attention", ICML 2021, arXiv 2012.12877; sizes: Table 1 there. Without the distillation token.

`attention="causal"` is the experiment of Figure 3 of the MambaOut paper, on whether recognition
loses by causal token mixing. Patches are read row by row, and patch i sees the patches
j <= i. The paper does not say where the class token stands: in front, where DeiT has it, it would
see no patch at all. Here it stands last, so that it sees all patches and none sees it. Without a
mask the order of the tokens makes no difference, so that both modes have the same parameters and
differ in visibility alone.

Initial values are those of DeiT's own code; timm starts the class token nearer to zero.
"""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax import backbone
from mambaout_jax.backbone import Backbone, Features, Variant
from mambaout_jax.heads.classifier import TokenHead
from mambaout_jax.kernels.dispatch import is_known
from mambaout_jax.layers.conv import Conv
from mambaout_jax.layers.initializers import normal_init, uniform_fan_in_init
from mambaout_jax.layers.mlp import Mlp
from mambaout_jax.layers.norms import LayerNorm
from mambaout_jax.layers.positions import height_and_width, resize_positions
from mambaout_jax.layers.residual import DropPath, drop_path_rates
from mambaout_jax.mixers.attention import MultiHeadSelfAttention
from mambaout_jax.published import timm_weights

ATTENTIONS = ("full", "causal")


def patch_grid(height: int, width: int, patch_size: int) -> tuple[int, int]:
    """Rows and columns of the patches of an image.

    Raises:
        ValueError: the patches do not fill the image, or its size is a symbol of `jax.export` and
            not known to be a multiple of theirs.
    """
    if not is_known(height % patch_size, width % patch_size):
        raise ValueError(
            f"images of {height} x {width} pixels are not known to divide into patches of "
            f"{patch_size}; write the symbols as multiples, such as {patch_size}*h"
        )
    if height % patch_size or width % patch_size:
        heights, widths = (
            " or ".join(
                str(patch_size * k) for k in sorted({max(1, n // patch_size), -(-n // patch_size)})
            )
            for n in (height, width)
        )
        raise ValueError(
            f"images of {height} x {width} pixels do not divide into patches of {patch_size}; the "
            f"nearest heights are {heights}, the nearest widths {widths}: resize or pad the images"
        )
    return height // patch_size, width // patch_size


class TransformerBlock(nn.Module):
    """Pre-norm transformer block.

        x = x + attention(norm1(x))
        x = x + mlp(norm2(x))

    Attributes:
        heads: heads of the attention.
        causal: see `MultiHeadSelfAttention`.
        drop_path: probability of dropping each of the two branches of an example while training.
    """

    heads: int
    causal: bool
    drop_path: float
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: Float[Array, "B L C"], train: bool) -> Float[Array, "B L C"]:
        y = LayerNorm(dtype=self.dtype, name="norm1")(x)
        y = MultiHeadSelfAttention(self.heads, self.causal, dtype=self.dtype, name="attention")(y)
        x = x + DropPath(self.drop_path, name="drop_path1")(y, train)

        y = LayerNorm(dtype=self.dtype, name="norm2")(x)
        y = Mlp(4 * x.shape[-1], dtype=self.dtype, name="mlp")(y)
        return x + DropPath(self.drop_path, name="drop_path2")(y, train)


class VisionTransformer(Backbone):
    """Backbone of one resolution: maps of stride `patch_size`, and a class token.

    Attributes:
        image_size: side or (height, width) in pixels that the position table is made for; for
            images of another size the table is interpolated.
        patch_size: side in pixels of the patches.
        dim: channels.
        depth: blocks.
        heads: heads of each block's attention.
        attention: "full" or "causal", see the top of this file.
        out_blocks: blocks, from 0 and in rising order, whose tokens become maps; None: the last.
    """

    dim: int
    depth: int
    heads: int
    image_size: int | tuple[int, int] = 224
    patch_size: int = 16
    attention: str = "full"
    out_blocks: tuple[int, ...] | None = None

    @property
    def channels(self) -> tuple[int, ...]:
        return (self.dim,) * len(self._out_blocks)

    @property
    def strides(self) -> tuple[int, ...]:
        return (self.patch_size,) * len(self._out_blocks)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the position table."""
        return patch_grid(*height_and_width(self.image_size), self.patch_size)

    @property
    def prefix_tokens(self) -> int:
        """Entries of the position table before those of the patches: the class token's."""
        return 1

    @property
    def _out_blocks(self) -> tuple[int, ...]:
        if self.out_blocks is None:
            return (self.depth - 1,)
        return tuple(self.out_blocks)

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        """Maps after `out_blocks`, and the class token after the last block, before any norm.

        Raises:
            ValueError: the patches do not fill the images, or a field has a value that is not
                allowed.
        """
        self._check_fields()
        dtype = self.layer_dtype
        block = self.block_class(TransformerBlock)
        causal = self.attention == "causal"
        _, height, width, _ = jnp.shape(images)
        rows, columns = patch_grid(height, width, self.patch_size)
        x = self._tokens(images, (rows, columns), dtype)  # (B, L + 1, C), the class token last
        maps = []
        for i, rate in enumerate(drop_path_rates(self.drop_path, (self.depth,))[0]):
            x = block(self.heads, causal, rate, dtype, name=f"block_{i:02d}")(x, train)
            if i in self._out_blocks:
                maps.append(x[:, :-1].reshape(-1, rows, columns, self.dim))  # (B, H, W, C)
        return Features(tuple(maps), x[:, -1])

    @nn.nowrap
    def macs(self, inputs: tuple, output: object) -> int:
        return 0  # positions and the class token are added

    def _tokens(
        self, images: Float[ArrayLike, "B H W I"], grid: tuple[int, int], dtype: Dtype | None
    ) -> Float[Array, "B _ C"]:
        """Patches row by row, then the class token, each with its position added."""
        batch, *_, in_chans = jnp.shape(images)
        init = uniform_fan_in_init(self.patch_size**2 * in_chans)
        patches = Conv(
            self.dim,
            self.patch_size,
            self.patch_size,
            dtype=dtype,
            kernel_init=init,
            bias_init=init,
            name="patch_embed",
        )(images)
        patches = patches.reshape(batch, -1, self.dim)  # (B, L, C)

        # As published: the class token and its position are the first of theirs.
        rows, columns = self.grid
        cls_token = self.param("cls_token", normal_init, (1, 1, self.dim), jnp.float32)
        pos_embed = self.param(
            "pos_embed", normal_init, (1, 1 + rows * columns, self.dim), jnp.float32
        )
        positions = resize_positions(pos_embed, self.grid, grid)
        patches, cls_token, positions = nn.dtypes.promote_dtype(
            patches, cls_token, positions, dtype=dtype
        )
        token = jnp.broadcast_to(cls_token + positions[:, :1], (batch, 1, self.dim))
        return jnp.concatenate((patches + positions[:, 1:], token), axis=1)

    def _check_fields(self) -> None:
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention={self.attention!r} is not known; allowed are {ATTENTIONS}")
        blocks = self._out_blocks
        if not blocks or list(blocks) != sorted(set(blocks) & set(range(self.depth))):
            raise ValueError(
                f"out_blocks={blocks} must be blocks from 0 to {self.depth - 1}, in rising order"
            )


BACKBONE = VisionTransformer
HEAD = TokenHead

# fmt: off
VARIANTS = {
    "deit_tiny_patch16_224": Variant(
        {"dim": 192, "depth": 12, "heads": 3}, {}, 5_717_416, 1_253_683_200, 0.1),
    "deit_small_patch16_224": Variant(
        {"dim": 384, "depth": 12, "heads": 6}, {}, 22_050_664, 4_598_882_304, 0.1),
    "deit_base_patch16_224": Variant(
        {"dim": 768, "depth": 12, "heads": 12}, {}, 86_567_656, 17_563_828_224, 0.1),
}
# fmt: on

DECAY = (*backbone.DECAY, (r"/(cls_token|pos_embed)$", False))

# See `weights.convert`. DeiT's own files have the same names.
TORCH_NAMES = {
    "timm": (
        (r"backbone/(cls_token|pos_embed)", r"\1"),
        (r"backbone/patch_embed", r"patch_embed.proj"),
        (r"backbone/block_0*(\d+)/(norm\d)", r"blocks.\1.\2"),
        (r"backbone/block_0*(\d+)/attention/(\w+)", r"blocks.\1.attn.\2"),
        (r"backbone/block_0*(\d+)/mlp/(fc\d)", r"blocks.\1.mlp.\2"),
        (r"head/norm", r"norm"),
        (r"head/classifier", r"head"),
    ),
}

# timm/models/deit.py of huggingface/pytorch-image-models, and results/results-imagenet.csv there at
# 0173a13; the licence is that of facebookresearch/deit, whose weights these are.
# fmt: off
WEIGHTS = dict((
    timm_weights("deit_tiny_patch16_224.fb_in1k", "Apache-2.0",
                 (224, 0.9, 72.172, 91.112), crop_fraction=0.9),
    timm_weights("deit_small_patch16_224.fb_in1k", "Apache-2.0",
                 (224, 0.9, 79.844, 95.044), crop_fraction=0.9),
    timm_weights("deit_base_patch16_224.fb_in1k", "Apache-2.0",
                 (224, 0.9, 81.992, 95.736), crop_fraction=0.9),
))
# fmt: on
