# SPDX-License-Identifier: Apache-2.0
"""The selective scan of narrow models: segments of the sequence side by side.

A token of few channels is too little work for a loop over tokens: its cost is that of starting
kernels, whose innermost loops have a handful of numbers. Here the sequence is cut into segments
that run at the same time, each image's as neighbouring lanes, which are the innermost axis of
everything: states are (G, N, D/G, B·S). A first pass finds what each segment makes of a state of
zeros; as the recurrence is linear, the states that enter the segments follow from that (the prefix
sums of Blelloch 1990, over segments only), and a second pass goes on from them. The gradient does
the same from the other end. That is five exponentials per state in place of three, in a fraction of
the time.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mambaout_jax.kernels.dispatch import is_known, vary_alike

# Measured on CPUs: wider groups fill the innermost loops by themselves, unless a token has little
# to do in all, and short sequences do not repay the second pass.
_NARROW, _NARROW_ALONE, _LITTLE, _SHORTEST = 16, 32, 2048, 128
_LANES = 64  # at least this many, as far as segments of a few tokens allow


class Cut(NamedTuple):
    """How a sequence is cut.

    Attributes:
        segments: S, how many.
        tokens: of each; zeros fill up the last one.
        chunk: tokens from one kept state to the next.
    """

    segments: int
    tokens: int
    chunk: int


def cut_of(batch: int, L: int, D: int, G: int, N: int) -> Cut | None:
    """How a scan of these sizes is cut; None: it is not narrow, or a size is not known."""
    if not is_known(batch, L):
        return None
    width = D // G
    alone = width <= _NARROW_ALONE and batch * D * N <= _LITTLE
    if L < _SHORTEST or not (width <= _NARROW or alone):
        return None
    segments = max(2, min(_LANES // batch, L // 32))
    tokens = -(-L // segments)
    return Cut(segments, tokens, math.isqrt(tokens - 1) + 1)


@functools.partial(jax.jit, static_argnums=(6, 7))
def lane_values(u, delta, A, B, C, initial_state, reverse: bool, cut: Cut):
    """The scan of step sizes delta; arguments as the cores of `selective_scan`.

    Returns:
        y (B, L, D), the last state (B, D, N), and the states that enter the chunks of all segments:
        (chunks, G, N, D/G, B·S).
    """
    G = B.shape[2]
    rates, arrays = _rates(A, G), _to_lanes((u, delta, B, C), G, reverse, cut)
    u_lanes, delta_lanes, B_lanes, _ = arrays

    def alone(t, h):
        decay, drive = _coefficients(rates, *(x[t] for x in (u_lanes, delta_lanes, B_lanes)))
        return decay * h + drive

    h = vary_alike(_no_state(rates, u_lanes), like=(u, initial_state))
    ends = lax.fori_loop(0, cut.tokens, alone, h)
    last, h = _through_segments(
        rates, delta_lanes, ends, _state_to_lanes(initial_state, G), cut, reverse=False
    )

    def token(t, carry):
        h, y = carry
        u_t, delta_t, B_t, C_t = (x[t] for x in arrays)
        decay, drive = _coefficients(rates, u_t, delta_t, B_t)
        h = decay * h + drive
        return h, y.at[t].set(_sum(C_t[:, :, None] * h, axis=1))

    def chunk(carry, first):
        stop = jnp.minimum(first + cut.chunk, cut.tokens)
        return lax.fori_loop(first, stop, token, carry), carry[0]

    starts = jnp.arange(0, cut.tokens, cut.chunk)
    (_, y), entering = lax.scan(chunk, (h, delta_lanes), starts)
    return _from_lanes(y, u.shape, reverse, cut), _state_from_lanes(last), entering


@functools.partial(jax.jit, static_argnums=(8, 9, 10))
def lane_gradients(u, delta, A, B, C, entering, dy, dstate, reverse, softplus, cut: Cut):
    """Gradients of u, delta before softplus, A, B, C and the initial state; see `lane_values`."""
    G = B.shape[2]
    rates, arrays = _rates(A, G), _to_lanes((u, delta, B, C, dy), G, reverse, cut)
    u_lanes, delta_lanes, B_lanes, C_lanes, dy_lanes = arrays

    def alone(i, dh):
        t = cut.tokens - 1 - i
        g = dh + C_lanes[t][:, :, None] * dy_lanes[t][:, None]
        return jnp.exp(delta_lanes[t][:, None] * rates) * g

    dh = vary_alike(_no_state(rates, u_lanes), like=(u, dy, dstate))
    starts = lax.fori_loop(0, cut.tokens, alone, dh)
    dfirst, dh = _through_segments(
        rates, delta_lanes, starts, _state_to_lanes(dstate, G), cut, reverse=True
    )

    def chunk(carry, xs):
        *carry, before, dC = carry
        first, h = xs
        count = jnp.minimum(cut.chunk, cut.tokens - first)
        rebuild = functools.partial(_rebuild, rates, arrays, first)
        before = before.at[0].set(h)
        _, before, dC = lax.fori_loop(0, count, rebuild, (h, before, dC))

        def differentiate(i, carry):
            return _differentiate(rates, arrays, softplus, first, before, count - 1 - i, carry)

        return (*lax.fori_loop(0, count, differentiate, tuple(carry)), before, dC), None

    before = jnp.zeros((cut.chunk + 1, *dh.shape), dh.dtype)
    carry = (dh, jnp.zeros_like(dh), u_lanes, delta_lanes, B_lanes, before, C_lanes)
    xs = (jnp.arange(0, cut.tokens, cut.chunk), entering)
    (_, dA, du, ddelta, dB, _, dC), _ = lax.scan(
        chunk, vary_alike(carry, like=(u, dy, dstate)), xs, reverse=True
    )
    du, ddelta = (_from_lanes(x, u.shape, reverse, cut) for x in (du, ddelta))
    dB, dC = (_from_lanes(x, B.shape, reverse, cut) for x in (dB, dC))
    dA = dA.sum(axis=-1).swapaxes(1, 2).reshape(A.shape)
    return du, ddelta, dA, dB, dC, _state_from_lanes(dfirst)


def _rebuild(rates, arrays, first, slot, carry):
    """One token of a chunk once more: its state, and the gradient of C."""
    h, before, dC = carry
    u_t, delta_t, B_t, _, dy_t = (x[first + slot] for x in arrays)
    decay, drive = _coefficients(rates, u_t, delta_t, B_t)
    h = decay * h + drive
    dC_t = _sum(h * dy_t[:, None], axis=2).astype(dC.dtype)
    return h, before.at[slot + 1].set(h), dC.at[first + slot].set(dC_t)


def _differentiate(rates, arrays, softplus, first, before, slot, carry):
    """The gradient through one token, as in `selective_scan._chunked_gradients`."""
    dh, dA, du, ddelta, dB = carry
    t = first + slot
    u_t, delta_t, B_t, C_t, dy_t = (x[t] for x in arrays)
    g = dh + C_t[:, :, None] * dy_t[:, None]
    dh = jnp.exp(delta_t[:, None] * rates) * g
    dexponent = dh * before[slot]
    dinput = _sum(B_t[:, :, None] * g, axis=1)  # of δ_t u_t
    dA = dA + dexponent * delta_t[:, None]
    du = du.at[t].set((dinput * delta_t).astype(du.dtype))
    dstep = _sum(rates * dexponent, axis=1) + dinput * u_t
    ddelta = ddelta.at[t].set(dstep * -jnp.expm1(-delta_t) if softplus else dstep)
    dB_t = _sum(g * (delta_t * u_t)[:, None], axis=2)
    return dh, dA, du, ddelta, dB.at[t].set(dB_t.astype(dB.dtype))


def _coefficients(rates, u, delta, B):
    """exp(δA) and δBu, (G, N, D/G, lanes), of a token's u, delta (G, D/G, lanes), B (G, N, lanes).

    rates: A as (G, N, D/G, 1).
    """
    return jnp.exp(delta[:, None] * rates), B[:, :, None] * (delta * u)[:, None]


def _through_segments(rates, delta, alone, outer, cut, reverse):
    """What enters each segment, from what each makes of zeros and what enters the first of them.

    Args:
        alone: (G, N, D/G, B·S).
        outer: (G, N, D/G, B), enters the first segment, or the last with `reverse`.

    Returns:
        What leaves the other end, as `outer`, and what enters the segments, as `alone`.
    """
    decay = jnp.exp(rates * delta.sum(axis=0)[:, None])  # of a whole segment

    def by_segment(x):
        return jnp.moveaxis(x.reshape(*x.shape[:-1], -1, cut.segments), -1, 0)

    def segment(h, xs):
        decay, alone = xs
        return decay * h + alone, h

    left, entered = lax.scan(
        segment, outer, (by_segment(decay), by_segment(alone)), reverse=reverse
    )
    return left, jnp.moveaxis(entered, 0, -1).reshape(alone.shape)


def _to_lanes(arrays, G, reverse, cut):
    """(B, L, …) each, with G · K numbers per token, to (tokens, G, K, B·S)."""

    def to_lanes(x):
        batch, L = x.shape[:2]
        x = x.reshape(batch, L, G, -1)
        x = x[:, ::-1] if reverse else x
        # Steps of size zero leave the state as it is.
        x = jnp.pad(x, ((0, 0), (0, cut.segments * cut.tokens - L), (0, 0), (0, 0)))
        x = x.reshape(batch, cut.segments, cut.tokens, *x.shape[2:])
        return x.transpose(2, 3, 4, 0, 1).reshape(cut.tokens, G, x.shape[-1], -1)

    return tuple(map(to_lanes, arrays))


def _from_lanes(x, shape, reverse, cut):
    """(tokens, G, K, B·S) to (B, L, …) of a shape."""
    tokens, G, K, _ = x.shape
    x = x.reshape(tokens, G, K, shape[0], cut.segments).transpose(3, 4, 0, 1, 2)
    x = x.reshape(shape[0], cut.segments * tokens, *shape[2:])[:, : shape[1]]
    return x[:, ::-1] if reverse else x


def _rates(A, G):
    D, N = A.shape
    return A.reshape(G, D // G, N).swapaxes(1, 2)[..., None]  # (G, N, D/G, 1)


def _no_state(rates, u):
    return jnp.zeros((*rates.shape[:-1], u.shape[-1]), rates.dtype)


def _state_to_lanes(state, G):
    B, D, N = state.shape
    return state.reshape(B, G, D // G, N).transpose(1, 3, 2, 0)  # (G, N, D/G, B)


def _state_from_lanes(h):
    G, N, width, B = h.shape
    return h.transpose(3, 0, 2, 1).reshape(B, G * width, N)


def _sum(x, axis):
    """XLA:CPU runs a reduction of a short axis further out many times slower than additions."""
    return sum(jnp.unstack(x, axis=axis))
