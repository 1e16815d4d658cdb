# SPDX-License-Identifier: Apache-2.0
"""Isotropic MambaOut and Mamba: one resolution, L tokens, blocks that differ in the mixer alone.

After Yu and Wang, MambaOut (arXiv 2405.07992), whose appendix compares isotropic models; no sizes
are given there. Widths and patches here are those of ViT Ti, S and B (DeiT, arXiv 2012.12877), and
18 blocks make as many parameters as 12 of a transformer (ConvNeXt, arXiv 2201.03545, Section 3.4).
With its images cut into patches the sequence has L = (side / 16)² tokens at any stage, so that the
paper's threshold L > 6 D can be crossed by the image size alone.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import ArrayLike, Float

from mambaout_jax.backbone import Backbone, Features, Variant
from mambaout_jax.heads.classifier import PooledHead
from mambaout_jax.kernels.dispatch import is_known
from mambaout_jax.layers.conv import Conv
from mambaout_jax.layers.residual import drop_path_rates
from mambaout_jax.models import mambaout
from mambaout_jax.models.mambaout import BlockOptions, GatedCNNBlock
from mambaout_jax.published import Weights


class IsotropicMambaOut(Backbone):
    """Patches, then Gated CNN or Mamba blocks on one map.

    Attributes:
        dim: channels.
        depth: blocks.
        patch_size: height and width in pixels.
        block: what the blocks are made of.
    """

    dim: int
    depth: int = 18
    patch_size: int = 16
    block: BlockOptions = BlockOptions()

    @property
    def channels(self) -> tuple[int, ...]:
        return (self.dim,)

    @property
    def strides(self) -> tuple[int, ...]:
        return (self.patch_size,)

    @nn.compact
    def forward(self, images: Float[ArrayLike, "B H W I"], train: bool) -> Features:
        """One map, that of the last block.

        Raises:
            ValueError: the image is smaller than a patch.
        """
        dtype, side = self.layer_dtype, self.patch_size
        if any(is_known(n) and n < side for n in jnp.shape(images)[1:3]):
            raise ValueError(
                f"the images have shape {jnp.shape(images)} (B, H, W, C), smaller than a patch of "
                f"{side} pixels; use larger images or a smaller patch_size"
            )
        block = self.block_class(GatedCNNBlock)
        x = Conv(self.dim, side, side, dtype=dtype, name="patch_embed")(images)
        (rates,) = drop_path_rates(self.drop_path, (self.depth,))
        for j, rate in enumerate(rates):
            x = block(self.block, rate, dtype, name=f"block_{j:02d}")(x, train)
        return Features((x,))


BACKBONE = IsotropicMambaOut
HEAD = PooledHead


def _mamba(dim):
    return {"dim": dim, "token_mixer": "conv+ssm", "routes": "bidirectional"}


# fmt: off
VARIANTS = {
    "isotropic_mambaout_tiny": Variant({"dim": 192}, {}, 5_851_048, 1_102_734_336),
    "isotropic_mambaout_small": Variant({"dim": 384}, {}, 22_317_928, 4_286_367_744),
    "isotropic_mambaout_base": Variant({"dim": 768}, {}, 87_102_184, 16_896_331_776),
    "isotropic_mamba_tiny": Variant(_mamba(192), {}, 6_362_536, 1_375_039_488),
    "isotropic_mamba_small": Variant(_mamba(384), {}, 23_672_680, 4_896_006_144),
    "isotropic_mamba_base": Variant(_mamba(768), {}, 91_138_792, 18_375_720_960),
}
# fmt: on

DECAY = mambaout.DECAY

# Nobody has published such weights.
TORCH_NAMES: dict[str, tuple[tuple[str, ...], ...]] = {}
WEIGHTS: dict[str, Weights] = {}
