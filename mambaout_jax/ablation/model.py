# SPDX-License-Identifier: Apache-2.0
"""One small model for every task, whose blocks differ in the token mixer alone.

The block is `models.mambaout.GatedCNNBlock`, with attention as a further mixer, and, for sequences,
a convolution that does not look ahead.
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
from mambaout_jax.layers.linear import Dense, DepthwiseConv, LayerNorm, activation, normal_init
from mambaout_jax.mixers.attention import MultiHeadSelfAttention
from mambaout_jax.mixers.conv import CausalConv
from mambaout_jax.mixers.ssm import MapSSM, dt_rank_of
from mambaout_jax.models.mambaout import MlpHead


class Kind(NamedTuple):
    """What a token mixer is made of.

    Attributes:
        conv: whether it has a depthwise convolution.
        routes: of an SSM behind it, None: there is no SSM.
        attention: "causal", "full" or None.
    """

    conv: bool = False
    routes: str | None = None
    attention: str | None = None

    @property
    def looks_ahead(self) -> bool:
        """Whether it sees what follows a token, whatever the task."""
        return self.routes == "bidirectional" or self.attention == "full"


MIXERS: dict[str, Kind] = {
    "conv": Kind(conv=True),
    "conv+ssm causal": Kind(conv=True, routes="raster"),
    "conv+ssm bidirectional": Kind(conv=True, routes="bidirectional"),
    "attention causal": Kind(attention="causal"),
    "attention full": Kind(attention="full"),
}


class Mixer(nn.Module):
    """A token mixer on a map; a sequence is a map of one row.

    The convolution is (K, K) and centred on maps, as in MambaOut, so that "conv+ssm causal" is
    causal in its scan alone; in a sequence it sees a token and the K - 1 before it.

    Attributes:
        kind: a key of `MIXERS`.
        sequence: whether nothing may look ahead.
        kernel_size: K.
        state_size: of the SSM.
        heads: of the attention.
    """

    kind: str
    sequence: bool
    kernel_size: int
    state_size: int
    heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        kind, tokens = MIXERS[self.kind], (x.shape[0], -1, x.shape[-1])  # (B, L, C)
        if kind.attention:
            attention = MultiHeadSelfAttention(
                self.heads, causal=kind.attention == "causal", name="attention"
            )
            return attention(x.reshape(tokens)).reshape(x.shape)
        if self.sequence:
            x = CausalConv(self.kernel_size, name="conv")(x.reshape(tokens)).reshape(x.shape)
        else:
            x = DepthwiseConv(self.kernel_size, name="conv")(x)
        if kind.routes is None:
            return x
        ssm = MapSSM(kind.routes, self.state_size, dt_rank_of(x.shape[-1]), name="ssm")
        return ssm(activation("gelu")(x))


class GatedBlock(nn.Module):
    """g, i, c = split(fc1(norm(x)));  y = x + fc2(gelu(g) · concat(i, mixer(c))).

    Attributes:
        hidden: channels of the gate, at least those of the block.

    The other fields are those of `Mixer`.
    """

    kind: str
    sequence: bool
    hidden: int
    kernel_size: int
    state_size: int
    heads: int

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        width, hidden = x.shape[-1], self.hidden
        y = Dense(2 * hidden, name="fc1")(LayerNorm(name="norm")(x))
        g, i, c = jnp.split(y, (hidden, 2 * hidden - width), axis=-1)
        c = Mixer(
            self.kind, self.sequence, self.kernel_size, self.state_size, self.heads, name="mixer"
        )(c)
        y = activation("gelu")(g) * jnp.concatenate((i, c), axis=-1)  # (B, H, W, hidden)
        return x + Dense(width, name="fc2")(y)


class TokenModel(nn.Module):
    """Linear embedding, learned positions, gated blocks; MambaOut's head, or one answer per token.

    Attributes:
        width: D, channels of a token.
        depth: blocks.
        num_classes: answers.
        dense: answer at each token instead of once.

    The other fields are those of `GatedBlock`.
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
            x = GatedBlock(
                self.kind,
                self.sequence,
                self.hidden,
                self.kernel_size,
                self.state_size,
                self.heads,
                name=f"block_{number:02d}",
            )(x)
        if not self.dense:
            return MlpHead(self.num_classes, name="head")(Features((x,)))
        x = LayerNorm(name="norm")(x.reshape(x.shape[0], -1, self.width))  # (B, L, C)
        return Dense(self.num_classes, name="classifier")(x)


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
