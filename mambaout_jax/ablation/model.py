# SPDX-License-Identifier: Apache-2.0
"""One small model for every task, whose blocks differ in the token mixer alone.

The block is `models.mambaout.GatedCNNBlock`.
"""

import math
import re
from typing import Any, NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from mambaout_jax.backbone import Features
from mambaout_jax.heads.classifier import HiddenHead
from mambaout_jax.layers.downsample import ConvNorm
from mambaout_jax.layers.initializers import normal_init
from mambaout_jax.layers.linear import Dense
from mambaout_jax.layers.norms import LayerNorm
from mambaout_jax.models.mambaout import BlockOptions, GatedCNNBlock


class Kind(NamedTuple):
    """What a token mixer is made of: options of `models.mambaout.BlockOptions`.

    Attributes:
        token_mixer: as there.
        routes: as there; None: one way in sequences, both ways on maps.
        causal: the attention sees no later token.
        arrangement: of the blocks: "flat", one like the other; the answers of a sceptic to a reach
            that is too short: "deep", many and narrow ones, "dilated", taps further and further
            apart, "pyramid", maps of half the size in between.
    """

    token_mixer: str
    routes: str | None = None
    causal: bool = False
    arrangement: str = "flat"

    @property
    def looks_ahead(self) -> bool:
        """Whether it sees what follows a token, whatever the task."""
        full_attention = self.token_mixer == "attention" and not self.causal
        two_ways = self.routes in ("bidirectional", "cross")
        return two_ways or full_attention or self.arrangement == "pyramid"


BASELINE = "conv"  # the mixer that the others are held against
MIXERS: dict[str, Kind] = {
    "conv": Kind("conv"),
    "conv deep": Kind("conv", arrangement="deep"),
    "conv dilated": Kind("conv", arrangement="dilated"),
    "conv pyramid": Kind("conv", arrangement="pyramid"),
    "conv+ssm causal": Kind("conv+ssm", routes="raster"),
    "conv+ssm bidirectional": Kind("conv+ssm", routes="bidirectional"),
    "conv+ssm cross": Kind("conv+ssm", routes="cross"),
    "ssm": Kind("ssm"),
    "attention causal": Kind("attention", causal=True),
    "attention full": Kind("attention"),
}


class TokenModel(nn.Module):
    """Linear embedding, learned positions, gated blocks; MambaOut's head, or one answer per token.

    The convolution is (K, K) and centred on maps, as in MambaOut, so that "conv+ssm causal" is
    causal in its scan alone; in a sequence it sees a token and the K - 1 before it.

    Attributes:
        kind: a key of `MIXERS`.
        sequence: whether nothing may look ahead.
        num_classes: answers.
        dense: answer at each token instead of once.
        width: D, channels of a token.
        hidden: channels of the gate, at least `width`.
        kernel_size: K.
        state_size: states of the SSM.
        heads: heads of the attention.
        dilations: one block for each, whose taps are so many tokens apart.
        levels: sizes of the map: each has one block and half the side of the one before, their sum
            goes through the last block. With one level, the blocks follow each other.
    """

    kind: str
    sequence: bool
    num_classes: int
    dense: bool
    width: int
    hidden: int
    kernel_size: int
    state_size: int
    heads: int
    dilations: tuple[int, ...]
    levels: int = 1

    @property
    def reach(self) -> int | None:
        """How many tokens away the convolutions see, None where the mixer sees all it may.

        In rows and columns of a map; in a sequence, backwards. Of a pyramid it is what its kernels
        cover at the least.
        """
        if MIXERS[self.kind].token_mixer != "conv":
            return None
        taps = self.kernel_size - 1 if self.sequence else self.kernel_size // 2
        if self.levels == 1:
            return taps * sum(self.dilations)
        return taps * (sum(2**level for level in range(self.levels)) + 1)

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B K"] | Float[Array, "B L K"]:
        """Maps features of tokens to logits of K classes."""
        positions = self.param("positions", normal_init, (1, *x.shape[1:3], self.width))
        x = Dense(self.width, name="embed")(x)
        x = x + jnp.broadcast_to(positions, x.shape)
        blocks = [
            GatedCNNBlock(self._block_options(dilation), name=f"block_{number:02d}")
            for number, dilation in enumerate(self.dilations)
        ]
        if self.levels > 1:
            x = self._pyramid(x, blocks)
        else:
            for block in blocks:
                x = block(x, False)
        if not self.dense:
            return HiddenHead(self.num_classes, name="head")(Features((x,)))
        x = LayerNorm(name="norm")(x.reshape(x.shape[0], -1, self.width))  # (B, L, C)
        return Dense(self.num_classes, name="classifier")(x)

    def _pyramid(
        self, x: Float[Array, "B H W C"], blocks: list[GatedCNNBlock]
    ) -> Float[Array, "B H W C"]:
        maps = []
        for level, block in enumerate(blocks[:-1]):
            if level > 0:
                x = ConvNorm(self.width, 3, 2, 1, name=f"downsample_{level}")(x)
            x = block(x, False)
            maps.append(x)
        for finer in reversed(maps[:-1]):
            larger = x.repeat(2, axis=1).repeat(2, axis=2)
            x = finer + larger[:, : finer.shape[1], : finer.shape[2]]
        return blocks[-1](x, False)

    def _block_options(self, dilation: int) -> BlockOptions:
        kind = MIXERS[self.kind]
        routes = kind.routes
        if kind.token_mixer == "ssm":
            routes = "raster" if self.sequence else "bidirectional"
        return BlockOptions(
            expansion_ratio=(self.hidden + 0.5) / self.width,  # rounded down to `hidden` channels
            kernel_size=self.kernel_size,
            dilation=dilation,
            token_mixer=kind.token_mixer,
            routes=routes,
            state_size=self.state_size,
            heads=self.heads,
            causal=kind.causal or (self.sequence and kind.token_mixer != "attention"),
        )

    @nn.nowrap
    def macs(self, inputs: tuple, output: object) -> int:
        return 0  # positions are added


def encode(
    inputs: Int[Array, "B H W"] | Float[Array, "B H W I"], vocabulary: int
) -> Float[Array, "B H W I"]:
    """Ids as one-hot features; features as they are (vocabulary 0)."""
    return jax.nn.one_hot(inputs, vocabulary) if vocabulary else inputs


def rescale(params: Any) -> Any:
    """Linear and depthwise kernels from the standard deviation 0.02 to 1 / √fan-in.

    0.02 is made for hundreds of channels; with tens of them it leaves the branches of the blocks
    without a signal. The SSM's own layers and the causal convolution start from their fan-in.

    Args:
        params: as initialised.
    """
    flat: dict[str, Any] = flax.traverse_util.flatten_dict(params, sep="/")
    for path, leaf in flat.items():
        if path.endswith("/kernel") and not re.search(r"/selection/|/path_\d/", path):
            fan_in = math.prod(leaf.shape[:-1])
            flat[path] = leaf if leaf.ndim == 3 else leaf * (fan_in**-0.5 / 0.02)
    return flax.traverse_util.unflatten_dict(flat, sep="/")
