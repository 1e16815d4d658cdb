# SPDX-License-Identifier: Apache-2.0
"""The selective scan as one fused kernel, for NVIDIA GPUs (Mosaic GPU) and TPUs (Mosaic).

    h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t        y_t = Σ_n C_t[n] h_t[n]

No array with both tokens and states ever exists in device memory. Tokens are cut into chunks of
`_CHUNK`; the forward kernel walks them in the order of time and saves the state on entry to each,
the backward kernel walks them the other way, rebuilds the states of one chunk from the saved one
and runs the adjoint recurrence

    g_t = C_t dy_t + exp(delta_t+1 A) g_{t+1}

Both are sequential in time and parallel over batch and channels: a parallel scan would evaluate
more exponentials, and these are what the forward kernel is bound by at 16 states (N + 2 per token
and channel, against about 6 bytes); the backward kernel is bound by the issue of float32
instructions, and with one state both are bound by memory. dB and dC are sums over channels: each
tile of channels writes its own partial sums and no atomics are used, so that results are the same
bits in every run.

Not run on an accelerator so far: tests interpret the kernels on CPUs and lower them for both
platforms. On several devices each runs its own images (`partition`). One program cannot be lowered
for GPUs and TPUs at once.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from mambaout_jax.kernels import selective_scan_mosaic_gpu, selective_scan_mosaic_tpu
from mambaout_jax.kernels.dispatch import differentiable_once, run_where_lowered
from mambaout_jax.kernels.partition import split_by_batch

# The name of what the gradient of a scan needs and only the recurrence can make: `jax.checkpoint`
# around a scan that keeps this (`save_only_these_names`) computes again only what is cheap.
STATES = "selective_scan_states"

# 16 tokens: as many exponentials and states of one channel and n as fit in a GPU thread's registers
# together with the chunk's inputs, and one sublane tile of bfloat16 on TPUs. The saved states take
# N / 16 numbers per token and channel.
_CHUNK = 16
_NO_STEP = -1e4  # of which softplus makes 0
_LANES = 128  # channels of a GPU block, one per thread of a warpgroup; lanes of a TPU register
MAX_STATES = 32  # what the shared memory of a Hopper block holds, in the backward kernel


def scan_pallas(
    u: Float[Array, "B L D"],
    delta: Float[Array, "B L D"],
    A: Float[Array, "D N"],
    B: Float[Array, "B L G N"],
    C: Float[Array, "B L G N"],
    D: Float[Array, "D"],
    initial_state: Float[Array, "B D N"],
    reverse: bool,
    softplus: bool = False,
    dtype: Any = jnp.float32,
    platform: str | None = None,
) -> tuple[Float[Array, "B L D"], Float[Array, "B D N"]]:
    """Runs the recurrence above and adds D u; channel d uses group d // (D // G) of B and C.

    Args:
        u: inputs, of any float dtype up to float32.
        delta: step sizes, or what softplus makes them of; bias added; of any dtype up to float32.
        A: float32.
        B, C: of any float dtype up to float32.
        D: float32.
        initial_state: the state before the first token, or after the last with `reverse`, float32.
        reverse: run from the last token to the first.
        softplus: whether softplus is applied to delta.
        dtype: of y.
        platform: "cuda" or "tpu", where it is known; None: what the program is lowered for.

    Returns:
        y, and the last state in float32. Gradients have the dtypes of the arguments; states and
        sums are float32 throughout. Differentiable in reverse mode, once.

    Raises:
        ValueError: float64 arguments, more than 32 states, or, when the program is lowered, a
            platform that is neither an NVIDIA GPU nor a TPU. (GPUs older than Hopper are told apart
            by their compiler only.)
    """
    arrays = {
        "u": u,
        "delta": delta,
        "A": A,
        "B": B,
        "C": C,
        "D": D,
        "initial_state": initial_state,
    }
    for name, array in arrays.items():
        if array.dtype == jnp.float64:
            raise ValueError(
                f'implementation="pallas" got {name} in float64, but its kernels keep states and '
                'sums in float32; cast the arguments, or use implementation="chunked"'
            )
    if A.shape[1] > MAX_STATES:
        raise ValueError(
            f'implementation="pallas" got N = {A.shape[1]} states and has shared memory for '
            f'{MAX_STATES}; use implementation="chunked"'
        )
    how = How(reverse, softplus, jnp.dtype(dtype), _CHUNK, platform)
    return _scan(u, delta, A, B, C, D, initial_state, how)


class How(NamedTuple):
    """What a kernel is specialised to.

    Attributes:
        reverse, softplus, dtype, platform: as of `scan_pallas`.
        chunk: tokens of a chunk. Tests, which interpret kernels on CPUs, take shorter ones.
    """

    reverse: bool = False
    softplus: bool = False
    dtype: Any = jnp.dtype("float32")
    chunk: int = _CHUNK
    platform: str | None = None


@functools.partial(jax.custom_vjp, nondiff_argnums=(7,))
def _scan(u, delta, A, B, C, D, initial_state, how):
    return _scan_fwd(u, delta, A, B, C, D, initial_state, how)[0]


# Jitted, so that the layers of a model which agree in shape are traced once, and because the
# platform is only known where a program is lowered.
@functools.partial(jax.jit, static_argnames=("how",))
def _scan_fwd(u, delta, A, B, C, D, initial_state, how):
    L, channels, G = *u.shape[1:], B.shape[2]
    state = _tile_channels(_states_first(initial_state), G)
    tiles = _tile(how, u, delta, A, B, C, D)
    y, last, entries = _dispatch("forward", how, *tiles, state)
    y = _untile_channels(y, channels, G)[:, :L].astype(how.dtype)
    last = _states_first(_untile_channels(last, channels, G))
    return (y, last), (u, delta, A, B, C, D, entries)


@functools.partial(jax.jit, static_argnums=0)
def _scan_bwd(how, residuals, gradients):
    u, delta, A, B, C, D, entries = residuals
    dy, dlast = gradients
    L, channels, G = *u.shape[1:], B.shape[2]
    dy, dlast = _tile_tokens(how, _without_float16(dy), G), _tile_channels(_states_first(dlast), G)
    tiles = _tile(how, u, delta, A, B, C, D)
    found = _dispatch("backward", how, *tiles, entries, dy, dlast)
    du, ddelta, dA, dB, dC, dstate = found
    du, ddelta = (_untile_channels(x, channels, G)[:, :L] for x in (du, ddelta))
    dA, dstate = (_states_first(_untile_channels(x, channels, G)) for x in (dA, dstate))
    dB, dC = (jnp.moveaxis(x, (2, 4), (1, 2)) for x in (dB, dC))  # (B, chunks, T, G, N)
    dB, dC = (x.reshape(x.shape[0], -1, *x.shape[3:])[:, :L] for x in (dB, dC))  # (B, L, G, N)
    return (
        du.astype(u.dtype),
        ddelta.astype(delta.dtype),
        dA.sum(axis=0).astype(A.dtype),
        dB.astype(B.dtype),
        dC.astype(C.dtype),
        jnp.sum(gradients[0].astype(D.dtype) * u, axis=(0, 1)),
        dstate,
    )


_SECOND = (
    "selective_scan(implementation='pallas') has first derivatives only; for second ones, or for "
    "forward mode over reverse mode, choose implementation='sequential' or 'associative'"
)


def _scan_fwd_once(*args):
    *arrays, how = args
    run = functools.partial(_scan_fwd, how=how)
    results, (*inputs, entries) = differentiable_once(run, _SECOND)(*arrays)
    return results, (*inputs, checkpoint_name(entries, STATES))


def _scan_bwd_once(how, *arrays):
    return differentiable_once(functools.partial(_scan_bwd, how), _SECOND)(*arrays)


_scan.defvjp(_scan_fwd_once, _scan_bwd_once)


# The kernels for GPUs take step sizes and gradients in float32 and give results so.


def _forward_gpu(u, delta, a, b, c, skip, state, *, reverse, softplus, dtype):
    steps = _step_sizes(delta, softplus)
    y, *states = selective_scan_mosaic_gpu.forward(u, steps, a, b, c, state, reverse=reverse)
    return (y + skip[None] * u).astype(dtype), *states


def _backward_gpu(u, delta, a, b, c, skip, entries, dy, dlast, *, reverse, softplus):
    steps, dy = _step_sizes(delta, softplus), dy.astype(jnp.float32)
    du, dsteps, *others = selective_scan_mosaic_gpu.backward(
        u, steps, a, b, c, entries, dy, dlast, reverse=reverse
    )
    ddelta = dsteps * -jnp.expm1(-steps) if softplus else dsteps
    return (du + skip[None] * dy).astype(u.dtype), ddelta.astype(delta.dtype), *others


def _step_sizes(delta, softplus):
    delta = delta.astype(jnp.float32)
    return jax.nn.softplus(delta) if softplus else delta


_KERNELS = {
    "forward": {"cuda": _forward_gpu, "tpu": selective_scan_mosaic_tpu.forward},
    "backward": {"cuda": _backward_gpu, "tpu": selective_scan_mosaic_tpu.backward},
}
_MESSAGE = (
    'selective_scan(implementation="pallas") was lowered for {platforms}, but needs an NVIDIA GPU '
    '(Hopper or newer) or a TPU; use implementation="chunked" or "auto"'
)


def _dispatch(direction, how, *args):
    options = {"reverse": how.reverse, "softplus": how.softplus}
    if direction == "forward":
        options["dtype"] = jnp.dtype(jnp.float32) if how.dtype == jnp.float16 else how.dtype
    bodies = {
        name: functools.partial(kernel, **options) for name, kernel in _KERNELS[direction].items()
    }

    def run(*args):
        if how.platform is not None:
            return bodies[how.platform](*args)
        return run_where_lowered(bodies, _MESSAGE, *args)

    return split_by_batch(run, whole=(2, 5))(*args)  # A and D have no batch


# Tiles: tokens padded to whole chunks, the channels of each group to whole multiples of 128. The
# step size of a padded token is 0, which leaves states alone, and u = dy = 0; in a padded channel
# u, A and the states are zeros.


def _tile(how, u, delta, A, B, C, D):
    G, u, delta = B.shape[2], _without_float16(u), _without_float16(delta)
    a = _tile_channels(A.T * math.log2(math.e), G)  # both platforms have exp2, not exp
    u = _tile_tokens(how, u, G)
    delta = _tile_tokens(how, delta, G, _NO_STEP if how.softplus else 0.0)
    return u, delta, a, _tile_states(how, B), _tile_states(how, C), _tile_channels(D[None], G)


def _without_float16(x):
    """TPUs do not have it."""
    return x.astype(jnp.float32) if x.dtype == jnp.float16 else x


def _states_first(x):
    return jnp.swapaxes(x, 1, 2)


def _tile_tokens(how, x, groups, filler=0.0):
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % how.chunk), (0, 0)), constant_values=filler)
    return _tile_channels(x, groups)


def _tile_channels(x, groups):
    *lead, D = x.shape
    x = x.reshape(*lead, groups, D // groups)
    x = jnp.pad(x, (*((0, 0),) * (x.ndim - 1), (0, -x.shape[-1] % _LANES)))
    return x.reshape(*lead, -1)


def _untile_channels(x, D, groups):
    *lead, padded = x.shape
    return x.reshape(*lead, groups, padded // groups)[..., : D // groups].reshape(*lead, D)


def _tile_states(how, x):
    """(B, L, G, N) → float32 (B, G, chunks, N, T): a chunk is one block, aligned for any N."""
    chunk = how.chunk
    x = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, -x.shape[1] % chunk), (0, 0), (0, 0)))
    x = x.reshape(x.shape[0], -1, chunk, *x.shape[2:])  # (B, chunks, T, G, N)
    return jnp.moveaxis(x, (1, 2), (2, 4))
