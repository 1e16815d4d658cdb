# SPDX-License-Identifier: Apache-2.0
"""Softmax attention (Vaswani et al. 2017, Eq. 1): fully visible, causal, in windows of a map."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.typing import Dtype
from jax import Array as JaxArray
from jaxtyping import Array, Bool, Float, Int

from mambaout_jax.kernels.dispatch import is_known, numpy_for
from mambaout_jax.layers.initializers import normal_init
from mambaout_jax.layers.linear import Dense
from mambaout_jax.layers.positions import relative_bias


def scaled_dot_product_attention(
    query: Float[Array, "B heads L width"],
    key: Float[Array, "B heads S width"],
    value: Float[Array, "B heads S width"],
    mask: Bool[Array, "#B #heads L S"] | None = None,
    bias: Float[Array, "#B heads L S"] | None = None,
    scale: float | None = None,
) -> Float[Array, "B heads L width"]:
    """softmax(query keyᵀ / √width + bias) value.

    The softmax is computed in at least float32, the rest in the dtype of the arguments.

    Args:
        query: queries of the L tokens that look.
        key, value: keys and values of the S tokens that they look at.
        mask, bias, scale: see `attention_weights`.
    """
    weights = attention_weights(query, key, mask, bias, scale).astype(value.dtype)
    return jnp.einsum("bhls,bhsd->bhld", weights, value)


def attention_weights(
    query: Float[Array, "B heads L width"],
    key: Float[Array, "B heads S width"],
    mask: Bool[Array, "#B #heads L S"] | None = None,
    bias: Float[Array, "#B heads L S"] | None = None,
    scale: float | None = None,
) -> Float[Array, "B heads L S"]:
    """softmax(query keyᵀ / √width + bias), in at least float32.

    Args:
        query: queries of the L tokens that look.
        key: keys of the S tokens that they look at.
        mask: [..., i, j]: does token i see token j? Each must see one; None: each sees all.
        bias: added to the scores before the softmax.
        scale: factor of the scores, None for 1 / √width.
    """
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bhld,bhsd->bhls", query, key, preferred_element_type=dtype)
    scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    if bias is not None:
        scores = scores + bias.astype(dtype)
    if mask is not None:
        scores = jnp.where(mask, scores, -jnp.inf)
    return jax.nn.softmax(scores, axis=-1)


def check_heads(heads: int, channels: int) -> None:
    """Raises ValueError where the heads do not divide the channels."""
    if channels % heads:
        raise ValueError(
            f"heads={heads} does not divide the {channels} channels; allowed are "
            f"{[n for n in range(1, channels + 1) if channels % n == 0]}"
        )


def to_heads(x: Float[Array, "B L C"], heads: int) -> Float[Array, "B heads L width"]:
    """The channels of each head, which stand side by side.

    Raises:
        ValueError: the heads do not divide the channels.
    """
    check_heads(heads, x.shape[-1])
    return x.reshape(*x.shape[:2], heads, -1).swapaxes(1, 2)


def from_heads(x: Float[Array, "B heads L width"]) -> Float[Array, "B L C"]:
    """The reverse of `to_heads`."""
    return x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)


def split_heads(
    qkv: Float[Array, "B L C3"], heads: int
) -> tuple[Float[Array, "B heads L width"], ...]:
    """Query, key and value from one projection, in PyTorch's order (3, heads, width) of channels.

    Raises:
        ValueError: the heads do not divide the channels.
    """
    batch, length, width = qkv.shape
    check_heads(heads, width // 3)
    parts = qkv.reshape(batch, length, 3, heads, -1)
    query, key, value = jnp.moveaxis(parts, (2, 3), (0, 2))  # each (B, heads, L, C / heads)
    return query, key, value


class MultiHeadSelfAttention(nn.Module):
    """Multi-head self-attention.

    Attributes:
        heads: number of heads, a divisor of the channels.
        causal: a token sees itself and those before it, instead of all. The parameters are the
            same.
        dtype: dtype of the computation, None to promote.
        qkv_bias: whether queries, keys and values have biases.
        proj_bias: whether the projection behind them has one.
        scale: factor of the scores, None for 1 over the root of a head's width.
    """

    heads: int
    causal: bool = False
    dtype: Dtype | None = None
    qkv_bias: bool = True
    proj_bias: bool = True
    scale: float | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B L C"]) -> Float[Array, "B L C"]:
        """Mixes tokens.

        Raises:
            ValueError: the heads do not divide the channels.
        """
        _, length, channels = x.shape
        qkv = Dense(3 * channels, self.qkv_bias, self.dtype, name="qkv")(x)
        mask = jnp.tri(length, dtype=bool)[None, None] if self.causal else None
        query, key, value = split_heads(qkv, self.heads)
        y = scaled_dot_product_attention(query, key, value, mask, scale=self.scale)
        y = from_heads(y)  # (B, L, C)
        return Dense(channels, self.proj_bias, self.dtype, name="proj")(y)

    @nn.nowrap
    def macs(self, inputs: tuple, output: JaxArray) -> int:
        return 2 * output.size * output.shape[1]  # the two products; masked pairs count, too


class WindowAttention(nn.Module):
    """Self-attention inside windows of a map, with a relative-position bias (Swin, Eq. 4).

        softmax(query keyᵀ / √width + bias[offset of the key]) value

    A shifted window joins what four windows met at their corners: the map is rolled, and tokens
    that were no neighbours before do not see each other. Maps that windows do not fill are padded
    with zeros, which are seen, as in PyTorch's implementations; along an axis no longer than a
    window there is no shift.

    Attributes:
        heads: number of heads, a divisor of the channels.
        window: side of a window in tokens.
        shift: how far the windows are shifted along both axes, 0 to `window` - 1.
        dtype: dtype of the computation, None to promote.
    """

    heads: int
    window: int
    shift: int
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        """Mixes the tokens of each window.

        Raises:
            ValueError: the heads do not divide the channels.
        """
        (B, H, W, channels), side = x.shape, self.window
        x = jnp.pad(x, ((0, 0), (0, -H % side), (0, -W % side), (0, 0)))
        counts = (-(-H // side), -(-W // side))
        shifts: Any = (self._shift_along(H), self._shift_along(W))
        shifted = any(not is_known(shift) or shift for shift in shifts)
        if shifted:
            x = jnp.roll(x, (-shifts[0], -shifts[1]), axis=(1, 2))
        window = (side, side)
        windows = to_windows(x, counts, window)  # (B · windows, L, C)
        qkv = Dense(3 * channels, dtype=self.dtype, name="qkv")(windows)
        query, key, value = split_heads(qkv, self.heads)
        mask = None
        if shifted:
            visible = visible_in_window(counts, side, shifts)  # (windows, L, L)
            mask = jnp.tile(visible[:, None], (B, 1, 1, 1))
        y = scaled_dot_product_attention(query, key, value, mask, self._bias())
        y = Dense(channels, dtype=self.dtype, name="proj")(from_heads(y))
        y = to_map(y, counts, window)
        if shifted:
            y = jnp.roll(y, shifts, axis=(1, 2))
        return y[:, :H, :W]

    def _shift_along(self, length: int) -> int | Int[Array, ""]:
        """The shift along an axis; where its length is a symbol, the program decides on it."""
        if is_known(length):
            return self.shift if self.window < length else 0
        return jnp.where(jnp.asarray(length) > self.window, self.shift, 0) if self.shift else 0

    def _bias(self) -> Float[Array, "1 heads L L"]:
        shape = ((2 * self.window - 1) ** 2, self.heads)
        table = self.param("relative_position_bias", normal_init, shape, jnp.float32)
        return relative_bias(table, (self.window, self.window), (self.window, self.window))

    @nn.nowrap
    def macs(self, inputs: tuple, output: JaxArray) -> int:
        B, H, W, C = output.shape
        tokens = (H + -H % self.window) * (W + -W % self.window)
        return 2 * B * tokens * C * self.window**2


def visible_in_window(
    counts: tuple[int, int],
    window: int,
    shifts: tuple[int | Int[Array, ""], int | Int[Array, ""]],
) -> Bool[np.ndarray | Array, "windows L L"]:
    """Which tokens of a window of the rolled map see each other: those that were neighbours.

    Args:
        counts: rows and columns of windows.
        window: side of a window.
        shifts: by how much the map was rolled towards its first row and column, 0 only along an
            axis of one window.
    """
    regions = [_region(n * window, window, shift) for n, shift in zip(counts, shifts, strict=True)]
    number = regions[0][:, None] * 3 + regions[1][None]  # (H, W)
    tokens = number.reshape(counts[0], window, counts[1], window).swapaxes(1, 2)
    tokens = tokens.reshape(counts[0] * counts[1], window**2)
    return tokens[:, :, None] == tokens[:, None]


def _region(
    length: int, window: int, shift: int | Int[Array, ""]
) -> Int[np.ndarray | Array, "length"]:
    """Along one axis: 0 before the last window, 1 in it, 2 in its part rolled in from the start."""
    places = numpy_for(length).arange(length)
    return (places >= length - window).astype(int) + (places >= length - shift)


def to_windows(
    x: Float[Array, "B H W C"], counts: tuple[int, int], window: tuple[int, int]
) -> Float[Array, "_ L C"]:
    """The tokens of each window of a map, row by row: B · windows of them.

    Args:
        x: a map that windows fill.
        counts: rows and columns of windows.
        window: rows and columns of a window.
    """
    (B, _, _, C), (down, across), (rows, columns) = x.shape, counts, window
    x = x.reshape(B, down, rows, across, columns, C).swapaxes(2, 3)
    return x.reshape(B * down * across, rows * columns, C)


def to_map(
    windows: Float[Array, "_ L C"], counts: tuple[int, int], window: tuple[int, int]
) -> Float[Array, "B H W C"]:
    """The map whose `to_windows` these are."""
    (down, across), (rows, columns), C = counts, window, windows.shape[-1]
    x = windows.reshape(-1, down, across, rows, columns, C).swapaxes(2, 3)
    return x.reshape(-1, down * rows, across * columns, C)
