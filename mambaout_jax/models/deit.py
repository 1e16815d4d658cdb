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
from mambaout_jax.backbone import Columnar, Features, Variant
from mambaout_jax.heads.classifier import TokenHead
from mambaout_jax.layers.mlp import Mlp
from mambaout_jax.layers.norms import LayerNorm
from mambaout_jax.layers.positions import patch_grid
from mambaout_jax.layers.residual import DropPath
from mambaout_jax.mixers.attention import MultiHeadSelfAttention
from mambaout_jax.published import timm_weights

ATTENTIONS = ("full", "causal")


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


class VisionTransformer(Columnar):
    """Backbone of one resolution: maps of stride `patch_size`, and a class token.

    Attributes:
        heads: heads of each block's attention.
        attention: "full" or "causal", see the top of this file.
    """

    heads: int
    attention: str = "full"

    antialias = True

    @property
    def class_token(self) -> str:
        return "first"

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        """Maps after `out_blocks`, and the class token after the last block, before any norm.

        Raises:
            ValueError: the patches do not fill the images, or a field has a value that is not
                allowed.
        """
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention={self.attention!r} is not known; allowed are {ATTENTIONS}")
        dtype = self.layer_dtype
        block = self.block_class(TransformerBlock)
        causal = self.attention == "causal"
        _, height, width, _ = jnp.shape(images)
        rows, columns = patch_grid(height, width, self.patch_size)
        x = self.with_positions(self.patches(images), (rows, columns))
        x = jnp.concatenate((x[:, 1:], x[:, :1]), axis=1)  # (B, L + 1, C), the class token last
        maps = []
        for i, rate in enumerate(self.block_rates):
            x = block(self.heads, causal, rate, dtype, name=f"block_{i:02d}")(x, train)
            if i in self.map_blocks:
                maps.append(x[:, :-1].reshape(-1, rows, columns, self.dim))  # (B, H, W, C)
        return Features(tuple(maps), x[:, -1])


BACKBONE = VisionTransformer
HEAD = TokenHead

# fmt: off
VARIANTS = {
    "deit_tiny_patch16_224": Variant(
        {"dim": 192, "depth": 12, "heads": 3}, {}, 5_717_416, 1_253_683_200, 0.1, top1=72.2),
    "deit_small_patch16_224": Variant(
        {"dim": 384, "depth": 12, "heads": 6}, {}, 22_050_664, 4_598_882_304, 0.1, top1=79.8),
    "deit_base_patch16_224": Variant(
        {"dim": 768, "depth": 12, "heads": 12}, {}, 86_567_656, 17_563_828_224, 0.1, top1=81.8),
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
