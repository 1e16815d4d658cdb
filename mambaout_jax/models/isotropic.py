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
from flax.typing import Dtype
from jaxtyping import Array, ArrayLike, Float

from mambaout_jax.backbone import Features, Variant
from mambaout_jax.layers.linear import Dense, LayerNorm, compute_dtype, drop_path_rates, normal_init
from mambaout_jax.mixers.ssm import STATE_SIZE
from mambaout_jax.models.mambaout import GatedCNNBlock, block_fields


class IsotropicMambaOut(nn.Module):
    """Patches, then Gated CNN or Mamba blocks on one map.

    Attributes:
        dim: channels.
        depth: blocks.
        patch_size: pixels, height and width.
        drop_path: rate of the last block; linear over the depth from 0.
        remat: recompute each block in the backward pass instead of keeping its activations.
        dtype: of the computation; float32 means at least float32.

    The other fields are those of `models.mambaout.GatedCNNBlock`.
    """

    dim: int
    depth: int = 18
    patch_size: int = 16
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
    remat: bool = False
    dtype: Dtype = jnp.float32

    @property
    def channels(self) -> tuple[int, ...]:
        return (self.dim,)

    @property
    def strides(self) -> tuple[int, ...]:
        return (self.patch_size,)

    @nn.compact
    def features(self, images: Float[ArrayLike, "B H W I"], train: bool = False) -> Features:
        """One map, of the last block.

        Raises:
            ValueError: the image is smaller than a patch.
        """
        dtype, side = compute_dtype(self.dtype), self.patch_size
        if min(jnp.shape(images)[1:3]) < side:
            raise ValueError(
                f"the images have shape {jnp.shape(images)} (B, H, W, C), smaller than a patch of "
                f"{side} pixels; use larger images or a smaller patch_size"
            )
        block_class = nn.remat(GatedCNNBlock, static_argnums=(2,)) if self.remat else GatedCNNBlock
        x = nn.Conv(
            self.dim,
            (side, side),
            (side, side),
            padding="VALID",
            dtype=dtype,
            kernel_init=normal_init,
            name="patch_embed",
        )(images)
        (rates,) = drop_path_rates(self.drop_path, (self.depth,))
        for j, rate in enumerate(rates):
            x = block_class(
                **block_fields(self), drop_path=rate, dtype=dtype, name=f"block_{j:02d}"
            )(x, train)
        return Features((x,))

    def __call__(
        self, images: Float[ArrayLike, "B H W I"], train: bool = False
    ) -> tuple[Float[Array, "B _ _ _"], ...]:
        return self.features(images, train).maps


class NormHead(nn.Module):
    """Mean over the last map, norm, linear classifier.

    Attributes:
        num_classes: 0 returns what the classifier would read.
    """

    num_classes: int = 1000
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, features: Features, train: bool = False) -> Float[Array, "B _"]:
        dtype = compute_dtype(self.dtype)
        x = LayerNorm(dtype=dtype, name="norm")(features.maps[-1].mean(axis=(1, 2)))  # (B, C)
        if self.num_classes == 0:
            return x
        return Dense(self.num_classes, dtype=dtype, name="classifier")(x)


BACKBONE = IsotropicMambaOut
HEAD = NormHead


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

TORCH_NAMES: dict[str, tuple[tuple[str, str], ...]] = {}  # nobody has published such weights
