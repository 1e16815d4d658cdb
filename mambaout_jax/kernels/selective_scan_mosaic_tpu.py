# SPDX-License-Identifier: Apache-2.0
"""Selective scan kernels for TPUs, in Mosaic.

`selective_scan_pallas` has the recurrence, the layout of the arrays and the gradient's definition.

The states of a tile of channels are an (N, channels) array, N on sublanes and channels on lanes.
The grid runs over batch, tiles and chunks; chunks are innermost and in the order of the recurrence,
and the state lives in scratch memory from one to the next. Index maps run the other way where time
does, so that no array is ever reversed.

In the device's memory an array's last axis takes multiples of 128 numbers. So B, C and their
gradients have several chunks side by side there, with states before them, and a kernel turns the
block of the one that it needs to the front.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

_LANES = 128
_MAX_TILE = 512  # channels of a block: enough work per grid step, little enough memory
_PARAMS = pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary"))


def forward(u, delta, a, b, c, skip, state, *, reverse, softplus, dtype):
    """Returns y (B, L, D), the last state (B, N, D) and each chunk's first (B, chunks, N, D)."""
    (batches, L, D), (G, chunks, N, T) = u.shape, b.shape[1:]
    tile = _tile(D // G)
    specs = _specs(tile, u, b, reverse)
    return pl.pallas_call(
        functools.partial(_forward_kernel, reverse, softplus, T),
        out_shape=(
            jax.ShapeDtypeStruct((batches, L, D), dtype),
            _float32(batches, N, D),
            _float32(batches, chunks, N, D),
        ),
        grid=(batches, D // tile, chunks),
        in_specs=[specs[name] for name in ("u", "delta", "a", "b", "c", "skip", "state")],
        out_specs=[specs[name] for name in ("y", "state", "entry")],
        scratch_shapes=(_buffer(N, tile), _buffer(T, tile)),
        compiler_params=_PARAMS,
    )(u, delta, a, _side_by_side(b), _side_by_side(c), skip, state)


# fmt: off
def _forward_kernel(reverse, softplus, T, u, delta, a, b, c, skip, state,
                    y, last, entry, h_buffer, y_buffer):
    # fmt: on
    @pl.when(pl.program_id(2) == 0)
    def _():
        h_buffer[...] = state[...]

    h = h_buffer[...]
    entry[...] = h
    u, steps = u[...].astype(jnp.float32), _step_sizes(delta[...], softplus)
    inputs = steps * u
    b, c = (_turned(x[...], -_place(T, reverse)) for x in (b, c))
    for t in _order(T, reverse):
        at = slice(t, t + 1)
        h = jnp.exp2(steps[at] * a[...]) * h + b[:, at] * inputs[at]
        y_buffer[at] = jnp.sum(h * c[:, at], axis=0, keepdims=True)
    y[...] = (y_buffer[...] + skip[...] * u).astype(y.dtype)
    h_buffer[...] = h
    last[...] = h


def backward(u, delta, a, b, c, skip, entries, dy, dlast, *, reverse, softplus):
    """Returns du, ddelta (B, L, D), dA (B, N, D), dB, dC (B, G, chunks, N, T), dstate (B, N, D)."""
    (batches, _, D), (G, chunks, N, T) = u.shape, b.shape[1:]
    tile = _tile(D // G)
    specs = _specs(tile, u, b, not reverse)
    state = _float32(batches, N, D)
    partial_sums = _float32(batches, D // tile, N, _groups_of(chunks, T) * _LANES)
    tokens, states = _buffer(T, tile), _buffer(T, N, tile)
    du, ddelta, dA, dB, dC, dstate = pl.pallas_call(
        functools.partial(_backward_kernel, reverse, softplus, T),
        out_shape=(
            jax.ShapeDtypeStruct(u.shape, u.dtype),
            jax.ShapeDtypeStruct(delta.shape, delta.dtype),
            state,
            partial_sums,
            partial_sums,
            state,
        ),
        grid=(batches, D // tile, chunks),
        in_specs=[specs[x] for x in ("u", "delta", "a", "b", "c", "skip", "entry", "y", "state")],
        out_specs=[specs[x] for x in ("u", "delta", "state", "sums", "sums", "state")],
        scratch_shapes=(_buffer(N, tile), states, states, tokens, tokens),
        compiler_params=_PARAMS,
    )(u, delta, a, _side_by_side(b), _side_by_side(c), skip, entries, dy, dlast)
    dB, dC = (x.reshape(batches, G, -1, *x.shape[2:]).sum(axis=2) for x in (dB, dC))
    dB, dC = (_one_by_one(x, chunks, T) for x in (dB, dC))
    return du, ddelta, dA, dB, dC, dstate


# fmt: off
def _backward_kernel(reverse, softplus, T, u, delta, a, b, c, skip, entry, dy, dlast,
                     du, ddelta, dA, dB, dC, dstate,
                     g_buffer, decays, decayed, du_buffer, ddelta_buffer):
    # fmt: on
    place = _place(T, not reverse)
    b, c = (_turned(x[...], -place) for x in (b, c))
    lanes = jax.lax.broadcasted_iota(jnp.int32, b.shape, 1)
    dB_chunk = dC_chunk = jnp.zeros_like(b)

    @pl.when(pl.program_id(2) == 0)
    def _():
        g_buffer[...] = dlast[...]
        dA[...] = jnp.zeros_like(dA)

    u, dy, steps = *(x[...].astype(jnp.float32) for x in (u, dy)), _step_sizes(delta[...], softplus)
    inputs = steps * u
    h = entry[...]
    for t in _order(T, reverse):
        at = slice(t, t + 1)
        decays[t] = jnp.exp2(steps[at] * a[...])
        decayed[t] = decays[t] * h
        h = decayed[t] + b[:, at] * inputs[at]
        dC_chunk = jnp.where(lanes == t, jnp.sum(h * dy[at], axis=1, keepdims=True), dC_chunk)

    g = g_buffer[...]
    for t in reversed(_order(T, reverse)):
        at = slice(t, t + 1)
        g = g + c[:, at] * dy[at]
        dB_chunk = jnp.where(lanes == t, jnp.sum(g * inputs[at], axis=1, keepdims=True), dB_chunk)
        dinput = jnp.sum(g * b[:, at], axis=0, keepdims=True)
        dexponent = g * decayed[t]  # the derivative in delta A
        dA[...] += dexponent * steps[at]
        dstep = jnp.sum(dexponent * a[...], axis=0, keepdims=True) * math.log(2)
        ddelta_buffer[at] = dinput * u[at] + dstep
        du_buffer[at] = dinput * steps[at]
        g = g * decays[t]
    du[...] = (du_buffer[...] + skip[...] * dy).astype(du.dtype)
    slope = 1 - jnp.exp(-steps) if softplus else 1.0
    ddelta[...] = (ddelta_buffer[...] * slope).astype(ddelta.dtype)
    g_buffer[...] = g
    dstate[...] = g
    here = (lanes >= place) & (lanes < place + T)
    for sums, chunk in ((dB, dB_chunk), (dC, dC_chunk)):
        sums[...] = jnp.where(here, _turned(chunk, place), sums[...])


def _groups_of(chunks, T):
    """How many groups of chunks there are, each of as many as fit into 128 lanes."""
    return -(-chunks // (_LANES // T))


def _side_by_side(x):
    """(B, G, chunks, N, T) → (B, G, N, groups · 128): chunks from the first lane of a group on."""
    B, G, chunks, N, T = x.shape
    groups, each = _groups_of(chunks, T), _LANES // T
    x = jnp.pad(x, ((0, 0), (0, 0), (0, groups * each - chunks), (0, 0), (0, 0)))
    x = jnp.moveaxis(x.reshape(B, G, groups, each, N, T), 4, 2)
    x = x.reshape(B, G, N, groups, each * T)
    return jnp.pad(x, (*((0, 0),) * 4, (0, _LANES - each * T))).reshape(B, G, N, -1)


def _one_by_one(x, chunks, T):
    """The inverse of `_side_by_side`."""
    B, G, N, _ = x.shape
    groups, each = _groups_of(chunks, T), _LANES // T
    x = x.reshape(B, G, N, groups, _LANES)[..., : each * T].reshape(B, G, N, groups * each, T)
    return jnp.moveaxis(x[:, :, :, :chunks], 2, 3)


def _place(T, descending):
    """The first lane of this step's chunk in its group."""
    step = pl.program_id(2)
    chunk = pl.num_programs(2) - 1 - step if descending else step
    return jax.lax.rem(chunk, _LANES // T) * T


def _turned(x, by):
    """x (N, 128), each number so many lanes further on, around the end."""
    return pltpu.roll(x, jax.lax.rem(by + _LANES, _LANES), 1)


def _step_sizes(delta, softplus):
    delta = delta.astype(jnp.float32)
    return jax.nn.softplus(delta) if softplus else delta


def _order(T, reverse):
    """Tokens of a chunk in the order of the recurrence."""
    return range(T)[::-1] if reverse else range(T)


def _tile(channels):
    """The largest tile of at most 512 channels that cuts a group's channels evenly."""
    return max(t for t in range(_LANES, _MAX_TILE + 1, _LANES) if channels % t == 0)


def _specs(tile, u, b, descending):
    """Block specs by the name of an array, or of another of its shape."""
    (G, chunks, N, T), D = b.shape[1:], u.shape[2]
    tiles_per_group = D // G // tile

    def at(step):
        return chunks - 1 - step if descending else step

    def group(d):
        return jax.lax.div(d, tiles_per_group)

    token = pl.BlockSpec((None, T, tile), lambda i, d, k: (i, at(k), d))
    each = _LANES // T
    block = (None, None, N, _LANES)
    by_state = pl.BlockSpec(block, lambda i, d, k: (i, group(d), 0, jax.lax.div(at(k), each)))
    return {
        "u": token,
        "delta": token,
        "y": token,
        "a": pl.BlockSpec((N, tile), lambda i, d, k: (0, d)),
        "skip": pl.BlockSpec((1, tile), lambda i, d, k: (0, d)),
        "b": by_state,
        "c": by_state,
        "sums": pl.BlockSpec(block, lambda i, d, k: (i, d, 0, jax.lax.div(at(k), each))),
        "state": pl.BlockSpec((None, N, tile), lambda i, d, k: (i, 0, d)),
        "entry": pl.BlockSpec((None, None, N, tile), lambda i, d, k: (i, at(k), 0, d)),
    }


def _float32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _buffer(*shape):
    return pltpu.VMEM(shape, jnp.float32)
