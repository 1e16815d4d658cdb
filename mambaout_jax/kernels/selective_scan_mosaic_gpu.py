# SPDX-License-Identifier: Apache-2.0
"""Selective scan kernels for NVIDIA GPUs, Hopper or newer, in Mosaic GPU.

`selective_scan_pallas` has the recurrence, the layout of the arrays and the gradient's definition.

A block is one warpgroup, one thread a channel. Loops over the T tokens of a chunk are unrolled: a
channel's values at T tokens are T vectors of shape (128,), that is T registers of each thread. The
loop over n is not. A pipeline of TMA copies stages chunks in shared memory, B and C once per block,
where all threads read their numbers as scalars.

Lane semantics give every (128,) vector the layout "element i in thread i". So an element of a state
buffer in shared memory belongs to one thread and needs no barriers, which would otherwise stand
around every access; where threads do meet, `commit_smem` is the barrier.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

_LANES = 128
_PARAMS = plgpu.CompilerParams(
    approx_math=True,  # exp2 as one instruction, 2 ulp; decays below 2^-126 become 0
    unsafe_no_auto_barriers=True,
    lowering_semantics=plgpu.LoweringSemantics.Lane,
)


def forward(u, delta, a, b, c, state, *, reverse):
    """Returns y (B, L, D), the last state (B, N, D) and each chunk's first (B, chunks, N, D)."""
    (batches, L, D), chunks, N = u.shape, b.shape[2], a.shape[0]
    b, c = _even_states(b), _even_states(c)
    return plgpu.kernel(
        functools.partial(_forward_kernel, reverse),
        out_type=(
            _float32(batches, L, D),
            _float32(batches, N, D),
            _float32(batches, chunks, N, D),
        ),
        scratch_types=(plgpu.SMEM((N, _LANES), jnp.float32),),
        grid=(D // _LANES, batches),
        grid_names=("tile", "batch"),
        compiler_params=_PARAMS,
    )(u, delta, a, b, c, state)


def _forward_kernel(reverse, u, delta, a, b, c, state, y, last, entries, h_buffer):
    N, T = a.shape[0], b.shape[4]
    order = range(T)[::-1] if reverse else range(T)
    batch, channels = _position()[1:]

    @pl.loop(0, N)
    def _(n):
        h_buffer[n] = state[batch, n, channels]

    def scan_chunk(chunk, u_chunk, delta_chunk, b_chunk, c_chunk):
        deltas = [delta_chunk[t] for t in range(T)]
        inputs = [deltas[t] * u_chunk[t].astype(jnp.float32) for t in range(T)]

        def scan_state(n, outputs):
            outputs, h, a_n = list(outputs), h_buffer[n], a[n, channels]
            entries[batch, chunk, n, channels] = h
            for t in order:
                h = jnp.exp2(deltas[t] * a_n) * h + inputs[t] * b_chunk[n, t]
                outputs[t] = outputs[t] + h * c_chunk[n, t]
            h_buffer[n] = h
            return tuple(outputs)

        # Zeros made from data have the layout that the loop expects.
        outputs = lax.fori_loop(0, N, scan_state, tuple(x * 0 for x in inputs))
        for t in range(T):
            y[batch, chunk * T + t, channels] = outputs[t]

    _pipeline(scan_chunk, reverse, (u, delta), (b, c))

    @pl.loop(0, N)
    def _(n):
        last[batch, n, channels] = h_buffer[n]


def backward(u, delta, a, b, c, entries, dy, dlast, *, reverse):
    """Returns du, ddelta (B, L, D), dA (B, N, D), dB, dC (B, G, chunks, N, T), dstate (B, N, D)."""
    (batches, L, D), (G, chunks, N, T) = u.shape, b.shape[1:]
    b, c = _even_states(b), _even_states(c)
    state, rows = plgpu.SMEM((N, _LANES), jnp.float32), 4 * T
    du, ddelta, dA, dBC, dstate = plgpu.kernel(
        functools.partial(_backward_kernel, reverse),
        out_type=(
            _float32(batches, L, D),
            _float32(batches, L, D),
            _float32(batches, N, D),
            _float32(batches, D // _LANES, chunks, -(-N // 2), 2, rows),
            _float32(batches, N, D),
        ),
        # The odd pitch keeps threads that write a column, or read a row, in separate banks.
        scratch_types=(state, state, plgpu.SMEM((_LANES, rows + 1), jnp.float32)),
        grid=(D // _LANES, batches),
        grid_names=("tile", "batch"),
        compiler_params=_PARAMS,
    )(u, delta, a, b, c, entries, dy, dlast)
    dBC = dBC.reshape(batches, G, -1, chunks, dBC.shape[3], 2, 2, 2, T)
    dBC = dBC.sum(axis=(2, 5)).reshape(batches, G, chunks, -1, 2, T)
    # With an odd N the rows after the last state were never written.
    dB, dC = dBC[:, :, :, :N, 0], dBC[:, :, :, :N, 1]
    return du, ddelta, dA, dB, dC, dstate


# fmt: off
def _backward_kernel(reverse, u, delta, a, b, c, entries, dy, dlast,
                     du, ddelta, dA, dBC, dstate, g_buffer, dA_buffer, terms):
    # fmt: on
    N, T = a.shape[0], b.shape[4]
    order = range(T)[::-1] if reverse else range(T)
    tile, batch, channels = _position()

    @pl.loop(0, N)
    def _(n):
        g_buffer[n] = dlast[batch, n, channels]
        dA_buffer[n] = dlast[batch, n, channels] * 0

    def scan_chunk(chunk, u_chunk, delta_chunk, dy_chunk, b_chunk, c_chunk, entry):
        deltas, dys = ([x[t] for t in range(T)] for x in (delta_chunk, dy_chunk))
        inputs = [deltas[t] * u_chunk[t].astype(jnp.float32) for t in range(T)]

        def scan_state(n, sums):
            dinputs, dexponents = map(list, sums)
            row = lax.rem(n, 2) * (2 * T)
            a_n, h, g, dA_n = a[n, channels], entry[n], g_buffer[n], dA_buffer[n]
            decays, decayed = [None] * T, [None] * T
            for t in order:
                decays[t] = jnp.exp2(deltas[t] * a_n)
                decayed[t] = decays[t] * h
                h = decayed[t] + inputs[t] * b_chunk[n, t]
                terms[:, row + T + t] = h * dys[t]
            for t in reversed(order):
                g = g + dys[t] * c_chunk[n, t]
                terms[:, row + t] = g * inputs[t]
                dinputs[t] = dinputs[t] + g * b_chunk[n, t]
                dexponent = g * decayed[t]  # the derivative in delta A
                dexponents[t] = dexponents[t] + dexponent * a_n
                dA_n = dA_n + dexponent * deltas[t]
                g = g * decays[t]
            g_buffer[n], dA_buffer[n] = g, dA_n
            pl.when((row > 0) | (n == N - 1))(
                lambda: _sum_over_channels(terms, dBC.at[batch, tile, chunk, lax.div(n, 2)])
            )
            return tuple(dinputs), tuple(dexponents)

        zeros = tuple(x * 0 for x in inputs)
        dinputs, dexponents = lax.fori_loop(0, N, scan_state, (zeros, zeros))
        for t in range(T):
            du[batch, chunk * T + t, channels] = dinputs[t] * deltas[t]
            dstep = dinputs[t] * u_chunk[t].astype(jnp.float32) + dexponents[t] * math.log(2)
            ddelta[batch, chunk * T + t, channels] = dstep

    _pipeline(scan_chunk, not reverse, (u, delta, dy), (b, c), (entries,))

    @pl.loop(0, N)
    def _(n):
        dA[batch, n, channels] = dA_buffer[n]
        dstate[batch, n, channels] = g_buffer[n]


def _sum_over_channels(terms, sums):
    """Adds up terms[channel, row]: a row is two states x (B, C) x T tokens.

    Every thread has written its channel, now it reads other threads': thread i adds up row i % rows
    over half of the channels, so that no shuffles are needed. The halves meet outside.
    """
    plgpu.commit_smem()  # all terms are written
    rows = pl.ds(0, sums.shape[1])
    pairs = (terms[pl.ds(channel, 2), rows] for channel in range(0, _LANES, 2))
    sums[...] = functools.reduce(jnp.add, pairs)
    plgpu.commit_smem()  # all are read


def _even_states(x):
    """Of (B, G, chunks, N, T): a chunk of 16 tokens then is whole copies of 128 bytes."""
    return jnp.pad(x, ((0, 0),) * 3 + ((0, x.shape[3] % 2), (0, 0)))


def _position():
    """Of this block: its tile of channels, its batch, and the slice of its channels."""
    tile, batch = lax.axis_index("tile"), lax.axis_index("batch")
    return tile, batch, pl.ds(tile * _LANES, _LANES)


def _pipeline(scan_chunk, descending, by_token, by_state, saved=()):
    """Calls `scan_chunk(chunk, *blocks)` for one chunk after the other.

    Arrays are (B, L, D) in `by_token`, (B, G, chunks, N, T) in `by_state`, and (B, chunks, N, D) in
    `saved`. Index maps run the other way where time does, so that no array is ever reversed.
    """
    (G, chunks, N, T), D = by_state[0].shape[1:], by_token[0].shape[2]
    tile, batch, _ = _position()
    group, one = lax.div(tile, D // G // _LANES), pl.Squeezed()

    def at(step):
        return chunks - 1 - step if descending else step

    token = pl.BlockSpec((one, T, _LANES), lambda k: (batch, at(k), tile))
    state = pl.BlockSpec((one, one, one, N, T), lambda k: (batch, group, at(k), 0, 0))
    entries = [
        pl.BlockSpec((one, one, x.shape[2], _LANES), lambda k: (batch, at(k), 0, tile))
        for x in saved
    ]

    def step(indices, *blocks):
        scan_chunk(at(indices[0]), *blocks)
        plgpu.commit_smem()  # all have read the chunk: another may be copied over it

    plgpu.emit_pipeline(
        step,
        grid=(chunks,),
        in_specs=(*(token for _ in by_token), *(state for _ in by_state), *entries),
        max_concurrent_steps=2,
    )(*by_token, *by_state, *saved)


def _float32(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)
