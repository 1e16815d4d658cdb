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

from mambaout_jax.analysis.cost import count
from mambaout_jax.backbone import Features
from mambaout_jax.heads.classifier import HiddenHead
from mambaout_jax.layers.initializers import normal_init
from mambaout_jax.layers.linear import Dense
from mambaout_jax.layers.norms import LayerNorm
from mambaout_jax.models.mambaout import BlockOptions, GatedCNNBlock


class Kind(NamedTuple):
    """What a token mixer is made of: options of `models.mambaout.BlockOptions`.

    Attributes:
        token_mixer, routes: as there.
        causal: the attention sees no later token.
    """

    token_mixer: str
    routes: str | None = None
    causal: bool = False

    @property
    def looks_ahead(self) -> bool:
        """Whether it sees what follows a token, whatever the task."""
        full_attention = self.token_mixer == "attention" and not self.causal
        return self.routes == "bidirectional" or full_attention


MIXERS: dict[str, Kind] = {
    "conv": Kind("conv"),
    "conv+ssm causal": Kind("conv+ssm", routes="raster"),
    "conv+ssm bidirectional": Kind("conv+ssm", routes="bidirectional"),
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
        depth: blocks.
        hidden: channels of the gate, at least `width`.
        kernel_size: K.
        state_size: states of the SSM.
        heads: heads of the attention.
    """

    kind: str
    sequence: bool
    num_classes: int
    dense: bool
    width: int
    depth: int
    hidden: int
    kernel_size: int
    state_size: int
    heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W I"]) -> Float[Array, "B K"] | Float[Array, "B L K"]:
        """Maps features of tokens to logits of K classes."""
        positions = self.param("positions", normal_init, (1, *x.shape[1:3], self.width))
        x = Dense(self.width, name="embed")(x)
        x = x + jnp.broadcast_to(positions, x.shape)
        for number in range(self.depth):
            x = GatedCNNBlock(self._block_options(), name=f"block_{number:02d}")(x, False)
        if not self.dense:
            return HiddenHead(self.num_classes, name="head")(Features((x,)))
        x = LayerNorm(name="norm")(x.reshape(x.shape[0], -1, self.width))  # (B, L, C)
        return Dense(self.num_classes, name="classifier")(x)

    def _block_options(self) -> BlockOptions:
        kind = MIXERS[self.kind]
        return BlockOptions(
            expansion_ratio=(self.hidden + 0.5) / self.width,  # rounded down to `hidden` channels
            kernel_size=self.kernel_size,
            token_mixer=kind.token_mixer,
            routes=kind.routes,
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


def matched(models: dict[str, TokenModel], shape: tuple[int, int, int]) -> dict[str, TokenModel]:
    """The models, widened in `hidden` until all have the MACs of the costliest.

    Everything else stays: width, depth, channels that are mixed, states, heads.

    Args:
        models: by name.
        shape: (H, W, I) of the inputs.
    """
    macs = {name: count(model, shape).macs for name, model in models.items()}
    target = max(macs.values())
    wider = {}
    for name, model in models.items():
        per_channel = count(model.clone(hidden=model.hidden + 1), shape).macs - macs[name]
        hidden = model.hidden + round((target - macs[name]) / per_channel)
        wider[name] = model.clone(hidden=hidden)
    return wider
