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
_LANES = 128  # channels of a GPU block, one per thread of a warpgroup; lanes of a TPU register
MAX_STATES = 32  # what the shared memory of a Hopper block holds, in the backward kernel


def scan_pallas(
    u: Float[Array, "B L D"],
    delta: Float[Array, "B L D"],
    A: Float[Array, "D N"],
    B: Float[Array, "B L G N"],
    C: Float[Array, "B L G N"],
    initial_state: Float[Array, "B D N"],
    reverse: bool,
    platform: str | None = None,
) -> tuple[Float[Array, "B L D"], Float[Array, "B D N"]]:
    """Runs the recurrence above; channel d uses group d // (D // G) of B and C.

    Args:
        u: inputs, of any float dtype up to float32.
        delta: step sizes, final (bias added, softplus applied), float32.
        A: float32.
        B, C: of any float dtype up to float32.
        initial_state: the state before the first token, or after the last with `reverse`, float32.
        reverse: run from the last token to the first.
        platform: "cuda" or "tpu", where it is known; None: what the program is lowered for.

    Returns:
        y and the last state, both float32. Gradients have the dtypes of the arguments; states and
        sums are float32 throughout. Differentiable in reverse mode, once.

    Raises:
        ValueError: float64 arguments, more than 32 states, or, when the program is lowered, a
            platform that is neither an NVIDIA GPU nor a TPU. (GPUs older than Hopper are told apart
            by their compiler only.)
    """
    arrays = {"u": u, "delta": delta, "A": A, "B": B, "C": C, "initial_state": initial_state}
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
    return _scan(u, delta, A, B, C, initial_state, reverse, _CHUNK, platform)


# Tests interpret the kernels of a given platform on CPUs, mostly with shorter chunks.
@functools.partial(jax.custom_vjp, nondiff_argnums=(6, 7, 8))
def _scan(u, delta, A, B, C, initial_state, reverse, chunk, platform):
    return _scan_fwd(u, delta, A, B, C, initial_state, reverse, chunk, platform)[0]


# Jitted, so that the layers of a model which agree in shape are traced once, and because the
# platform is only known where a program is lowered.
@functools.partial(jax.jit, static_argnames=("reverse", "chunk", "platform"))
def _scan_fwd(u, delta, A, B, C, initial_state, reverse, chunk, platform):
    L, D, G = *u.shape[1:], B.shape[2]
    state = _tile_channels(_states_first(initial_state), G)
    tiles = _tile(chunk, u, delta, A, B, C)
    y, last, entries = _dispatch("forward", reverse, platform, *tiles, state)
    y = _untile_channels(y, D, G)[:, :L]
    last = _states_first(_untile_channels(last, D, G))
    return (y, last), (u, delta, A, B, C, entries)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _scan_bwd(reverse, chunk, platform, residuals, gradients):
    u, delta, A, B, C, entries = residuals
    dy, dlast = gradients
    L, D, G = *u.shape[1:], B.shape[2]
    dy, dlast = _tile_tokens(chunk, dy, G), _tile_channels(_states_first(dlast), G)
    tiles = _tile(chunk, u, delta, A, B, C)
    gradients = _dispatch("backward", reverse, platform, *tiles, entries, dy, dlast)
    du, ddelta, dA, dB, dC, dstate = gradients
    du, ddelta = (_untile_channels(x, D, G)[:, :L] for x in (du, ddelta))
    dA, dstate = (_states_first(_untile_channels(x, D, G)) for x in (dA, dstate))
    dB, dC = (jnp.moveaxis(x, (2, 4), (1, 2)) for x in (dB, dC))  # (B, chunks, T, G, N)
    dB, dC = (x.reshape(x.shape[0], -1, *x.shape[3:])[:, :L] for x in (dB, dC))  # (B, L, G, N)
    return (
        du.astype(u.dtype),
        ddelta.astype(delta.dtype),
        dA.sum(axis=0).astype(A.dtype),
        dB.astype(B.dtype),
        dC.astype(C.dtype),
        dstate,
    )


_SECOND = (
    "selective_scan(implementation='pallas') has first derivatives only; for second ones, or for "
    "forward mode over reverse mode, choose implementation='sequential' or 'associative'"
)


def _scan_fwd_once(*args):
    *arrays, reverse, chunk, platform = args
    run = functools.partial(_scan_fwd, reverse=reverse, chunk=chunk, platform=platform)
    results, (*inputs, entries) = differentiable_once(run, _SECOND)(*arrays)
    return results, (*inputs, checkpoint_name(entries, STATES))


def _scan_bwd_once(reverse, chunk, platform, *arrays):
    gradients = functools.partial(_scan_bwd, reverse, chunk, platform)
    return differentiable_once(gradients, _SECOND)(*arrays)


_scan.defvjp(_scan_fwd_once, _scan_bwd_once)


_MODULES = {"cuda": selective_scan_mosaic_gpu, "tpu": selective_scan_mosaic_tpu}
_MESSAGE = (
    'selective_scan(implementation="pallas") was lowered for {platforms}, but needs an NVIDIA GPU '
    '(Hopper or newer) or a TPU; use implementation="chunked" or "auto"'
)


def _dispatch(direction, reverse, platform, *args):
    bodies = {
        name: functools.partial(getattr(module, direction), reverse=reverse)
        for name, module in _MODULES.items()
    }

    def run(*args):
        if platform is not None:
            return bodies[platform](*args)
        return run_where_lowered(bodies, _MESSAGE, *args)

    return split_by_batch(run, whole=(2,))(*args)  # A has no batch


# Tiles: tokens padded to whole chunks, the channels of each group to whole multiples of 128. A
# padded token has delta = 0, which leaves states alone, and u = dy = 0; a padded channel is all
# zeros.


def _tile(chunk, u, delta, A, B, C):
    G = B.shape[2]
    u = u.astype(jnp.float32) if u.dtype == jnp.float16 else u  # which TPUs do not have
    a = _tile_channels(A.T * math.log2(math.e), G)  # both platforms have exp2, not exp
    u, delta = _tile_tokens(chunk, u, G), _tile_tokens(chunk, delta, G)
    return u, delta, a, _tile_states(chunk, B), _tile_states(chunk, C)


def _states_first(x):
    return jnp.swapaxes(x, 1, 2)


def _tile_tokens(chunk, x, groups):
    x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % chunk), (0, 0)))
    return _tile_channels(x, groups)


def _tile_channels(x, groups):
    *lead, D = x.shape
    x = x.reshape(*lead, groups, D // groups)
    x = jnp.pad(x, (*((0, 0),) * (x.ndim - 1), (0, -x.shape[-1] % _LANES)))
    return x.reshape(*lead, -1)


def _untile_channels(x, D, groups):
    *lead, padded = x.shape
    return x.reshape(*lead, groups, padded // groups)[..., : D // groups].reshape(*lead, D)


def _tile_states(chunk, x):
    """(B, L, G, N) → float32 (B, G, chunks, N, T): a chunk is one block, aligned for any N."""
    x = jnp.pad(x.astype(jnp.float32), ((0, 0), (0, -x.shape[1] % chunk), (0, 0), (0, 0)))
    x = x.reshape(x.shape[0], -1, chunk, *x.shape[2:])  # (B, chunks, T, G, N)
    return jnp.moveaxis(x, (1, 2), (2, 4))
