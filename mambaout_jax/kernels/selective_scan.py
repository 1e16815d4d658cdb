# SPDX-License-Identifier: Apache-2.0
"""The selective scan of Mamba (Gu and Dao 2023, arXiv:2312.00752, algorithm 2, "S6").

A linear recurrence per channel and state, whose coefficients depend on the token. Differentiated
automatically it keeps several (B, L, N, D) arrays. `"chunked"` has a gradient of its own: it keeps
one state per chunk of tokens, walks the chunks backwards and rebuilds the states of one at a time;
where channels are few, segments of the sequence run side by side (`selective_scan_lanes`).

Everywhere states are (B, G, N, D/G), channels last: a group's channels of a token are contiguous,
sums over the states become additions of vectors, and products with B and C need no transposes.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from mambaout_jax.kernels.dispatch import (
    Operation,
    by_platform,
    deferred,
    differentiable_once,
    is_known,
    vary_alike,
)
from mambaout_jax.kernels.selective_scan_lanes import cut_of, lane_gradients, lane_values
from mambaout_jax.kernels.selective_scan_pallas import MAX_STATES, STATES, scan_pallas


def selective_scan(
    u: Float[Array, "B L D"],
    delta: Float[Array, "B L D"],
    A: Float[Array, "D N"],
    B: Float[Array, "B L N"] | Float[Array, "B L G N"],
    C: Float[Array, "B L N"] | Float[Array, "B L G N"],
    D: Float[Array, "D"] | None = None,
    *,
    z: Float[Array, "B L D"] | None = None,
    delta_bias: Float[Array, "D"] | None = None,
    delta_softplus: bool = False,
    reverse: bool = False,
    initial_state: Float[Array, "B D N"] | None = None,
    return_state: bool = False,
    implementation: str = "auto",
) -> Float[Array, "B L D"] | tuple[Float[Array, "B L D"], Float[Array, "B D N"]]:
    """Runs the recurrence over the tokens and reads it out.

        δ_t = softplus(delta_t + delta_bias)                       with delta_softplus
        h_t = exp(δ_t A) h_{t-1} + δ_t B_t u_t
        y_t = (Σ_n C_t h_t + D u_t) · silu(z_t)

    Args:
        u, delta: input and step size of each channel.
        A: rates of decay, negative in a stable model.
        B, C: input and output weights. With a group axis, channel d uses group d // (D // G).
        D, z, delta_bias: weights of the skip, gate, and bias of delta; None: there is none.
        delta_softplus: whether softplus is applied to delta, after the bias.
        reverse: run from the last token to the first. `initial_state` then enters at the last
            token, and the returned state is the one after the first.
        initial_state: h before the first step; None: zeros.
        return_state: whether to return the state after the last step too.
        implementation: `"sequential"`, a loop over tokens, and `"associative"`, a parallel prefix
            scan, both differentiated automatically, also in forward mode; `"chunked"`, a loop with
            its own reverse-mode gradient, which needs a fraction of the memory; `"pallas"`, one
            fused kernel for GPUs and TPUs; these two have first derivatives only. `"auto"` is
            `"pallas"` on TPUs, by the model of their compiler (a small part of the cycles;
            `aot.tpu_cycles`), for what it takes; its gradient runs the kernel once more and keeps
            nothing but the arguments. Elsewhere it is `"chunked"`: on CPUs because it is the
            fastest there, on GPUs for its memory, as nothing has been measured there yet. Within
            `plain_implementations` it is `"sequential"`.

    Returns:
        y in the dtype of `u`, or (y, state). The state, and everything else inside, has the
        promoted dtype of all inputs, at least float32. Gradients have the dtypes of the inputs.

    Raises:
        ValueError: unknown implementation, or one that is not plain within
            `plain_implementations`; arguments whose shapes or dtypes do not fit each other or the
            implementation.
    """
    optional = {"D": D, "z": z, "delta_bias": delta_bias, "initial_state": initial_state}
    arrays = {"u": u, "delta": delta, "A": A, "B": B, "C": C}
    arrays |= {name: array for name, array in optional.items() if array is not None}
    _check(arrays)
    y, state = _gated_scan(arrays, delta_softplus, reverse, implementation)
    return (y, state) if return_state else y


def _check(arrays: dict[str, jax.Array]) -> None:
    given = "selective_scan got " + ", ".join(f"{k} {v.dtype}{v.shape}" for k, v in arrays.items())
    u, A, B = arrays["u"], arrays["A"], arrays["B"]
    if u.ndim != 3 or u.shape[1] == 0 or A.ndim != 2 or B.ndim not in (3, 4):
        raise ValueError(
            f"{given}: u must be (B, L, D) with L >= 1, A (D, N), and B (B, L, N) or (B, L, G, N)"
        )
    (batch, L, D), N = u.shape, A.shape[1]
    G = B.shape[2] if B.ndim == 4 else 1
    weights = ((batch, L, G, N), (batch, L, N))[: 2 if G == 1 else 1]
    allowed = {
        **dict.fromkeys(("u", "delta", "z"), ((batch, L, D),)),
        **dict.fromkeys(("D", "delta_bias"), ((D,),)),
        **dict.fromkeys(("B", "C"), weights),
        "A": ((D, N),),
        "initial_state": ((batch, D, N),),
    }
    for name, array in arrays.items():
        if array.shape not in allowed[name]:
            shapes = " or ".join(map(str, allowed[name]))
            raise ValueError(f"{given}: beside u, A and B of these shapes {name} must be {shapes}")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(f"{given}: {name} must have a floating dtype; cast it first")
    if G == 0 or D % G:
        raise ValueError(
            f"{given}: the {G} groups of B and C must divide the {D} channels of u; "
            "give each group as many channels"
        )


def _gated_scan(arrays, delta_softplus, reverse, implementation):
    """Everything around the recurrence: step sizes before it, skip and gate after it."""
    dtype = jnp.promote_types(jnp.result_type(*arrays.values()), jnp.float32)
    # Tokens stay narrow in memory: a core widens what it reads of them.
    tokens = ("u", "delta", "B", "C")
    wide = {name: x.astype(dtype) for name, x in arrays.items() if name not in tokens}
    u, delta, A = arrays["u"], arrays["delta"], wide["A"]
    B, C = (x if x.ndim == 4 else x[:, :, None] for x in (arrays["B"], arrays["C"]))
    if "delta_bias" in wide:
        delta = delta + wide["delta_bias"][None, None]
    state = wide.get("initial_state", jnp.zeros((u.shape[0], *A.shape), dtype))
    options = {"reverse": reverse, "softplus": delta_softplus, "final": "z" not in wide}
    y, state = _OPERATION.run(implementation, u, delta, A, B, C, wide.get("D"), state, **options)
    if "z" in wide:
        y = y * jax.nn.silu(wide["z"])
    return y.astype(u.dtype), state


_SECOND = tuple(  # of the loop alone, and of what runs the kernel on TPUs
    f"selective_scan(implementation={word!r}) has first derivatives only; for second ones, or for "
    "forward mode over reverse mode, choose implementation='sequential' or 'associative', or, for "
    "all operations of a model, plain=True in create_model or plain_implementations()"
    for word in ("chunked", "auto")
)

# The cores below take u, delta (B, L, D), A (D, N), B, C (B, L, G, N), D (D,) or None, a state
# (B, D, N), the direction, whether softplus makes the step sizes of delta, and whether y is final:
# it may have the dtype of u then. They return y (B, L, D) and the last state, and compute in the
# dtype of the state.


def _scan_sequential(u, delta, A, B, C, D, initial_state, reverse, softplus, final):
    G, delta = B.shape[2], _step_sizes(delta, softplus, A)
    A, h = _grouped_rates(A, G), _grouped_state(initial_state, G)

    def token(h, xs):
        u, delta, B, C = (x.reshape(x.shape[0], G, -1) for x in xs)  # (B, G, D/G) or (B, G, N)
        decay, drive = _coefficients(u, delta, A, B)
        h = decay * h + drive
        return h, _read_out(C, h)

    xs = tuple(jnp.moveaxis(x, 1, 0) for x in (u, delta, B, C))  # (L, B, ...)
    h, y = lax.scan(token, h, xs, reverse=reverse)  # y (L, B, G, D/G)
    return _with_skip(jnp.moveaxis(y, 0, 1).reshape(u.shape), D, u), _flat_state(h)


def _scan_associative(u, delta, A, B, C, D, initial_state, reverse, softplus, final):
    G, delta = B.shape[2], _step_sizes(delta, softplus, A)
    grouped = (*u.shape[:2], G, u.shape[2] // G)  # (B, L, G, D/G)
    decay, drive = _coefficients(
        u.reshape(grouped), delta.reshape(grouped), _grouped_rates(A, G), B
    )
    first, last = (-1, 0) if reverse else (0, -1)
    drive = drive.at[:, first].add(decay[:, first] * _grouped_state(initial_state, G))

    def combine(earlier, later):
        return later[0] * earlier[0], later[0] * earlier[1] + later[1]

    _, h = lax.associative_scan(combine, (decay, drive), axis=1, reverse=reverse)
    y = _sum_states(_per_state(C) * h)  # (B, L, G, D/G)
    return _with_skip(y.reshape(u.shape), D, u), _flat_state(h[:, last])


def _scan_auto(u, delta, A, B, C, D, initial_state, reverse, softplus, final):
    """The fused kernel on TPUs, where there is one for such arrays, and else the loop."""
    fused = is_known(*u.shape) and A.dtype == jnp.float32 and A.shape[1] <= MAX_STATES
    return _scan_kept(u, delta, A, B, C, D, initial_state, reverse, softplus, final, fused)


def _scan_chunked(u, delta, A, B, C, D, initial_state, reverse, softplus, final):
    return _scan_kept(u, delta, A, B, C, D, initial_state, reverse, softplus, final, False)


def _scan_kept(u, delta, A, B, C, D, initial_state, reverse, softplus, final, fused):
    arrays, options = (u, delta, A, B, C), (reverse, softplus, fused)
    if final and not cut_of(*u.shape, *B.shape[2:]):
        return _differentiable_chunks(*arrays, _skip_of(D, u, A), initial_state, *options)
    arrays = (u, delta.astype(A.dtype), A, B, C)
    found: Any = _differentiable_chunks(*arrays, None, initial_state, *options)
    return _with_skip(found[0], D, u), found[1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(7, 8, 9))
def _differentiable_chunks(u, delta, A, B, C, D, initial_state, reverse, softplus, fused):
    """y has the dtype of u if D is given, and else that of delta."""
    return _chunks_fwd(u, delta, A, B, C, D, initial_state, reverse, softplus, fused)[0]


def _chunks_fwd(u, delta, A, B, C, D, initial_state, reverse, softplus, fused):
    if delta.dtype == A.dtype:
        delta = _step_sizes(delta, softplus, A)
    values = functools.partial(
        _values_by_platform if fused else _loop_values, reverse=reverse, softplus=softplus
    )
    inputs = (u, delta, A, B, C, D, initial_state)
    y, state, entering = differentiable_once(values, _SECOND[fused])(*inputs)
    start = initial_state if fused else None  # the loop has it among the states that enter
    return (y, state), (*inputs[:6], start, checkpoint_name(entering, STATES))


def _chunks_bwd(reverse, softplus, fused, residuals, cotangents):
    gradients = functools.partial(
        _gradients_by_platform if fused else _loop_gradients, reverse=reverse, softplus=softplus
    )
    return differentiable_once(gradients, _SECOND[fused])(*residuals, *cotangents)


_differentiable_chunks.defvjp(_chunks_fwd, _chunks_bwd)


def _loop_values(u, delta, A, B, C, D, initial_state, *, reverse, softplus):
    if cut := cut_of(*u.shape, *B.shape[2:]):
        return lane_values(u, delta, A, B, C, initial_state, reverse, cut)
    return _chunked_values(u, delta, A, B, C, D, initial_state, reverse, softplus)


def _loop_gradients(u, delta, A, B, C, D, start, *others, reverse, softplus):
    if cut := cut_of(*u.shape, *B.shape[2:]):
        *found, dstate = lane_gradients(u, delta, A, B, C, *others, reverse, softplus, cut)
        return *found, None, dstate
    return _chunked_gradients(u, delta, A, B, C, D, *others, reverse, softplus)


def _fused_values(*inputs, reverse, softplus):
    """What `_loop_values` returns; the states that enter its chunks are not needed: zeros."""
    y, state = _fused(*inputs, reverse=reverse, softplus=softplus)
    loop = functools.partial(_loop_values, reverse=reverse, softplus=softplus)
    *_, entering = jax.eval_shape(loop, *inputs)
    return y, state, jnp.zeros(entering.shape, entering.dtype)


def _fused_gradients(
    u, delta, A, B, C, D, initial_state, entering, dy, dstate, *, reverse, softplus
):
    """Runs the kernel again for the states: kept, they are one number a token and channel."""
    inputs = (u, delta, A, B, C, D, initial_state)
    run = functools.partial(_fused, reverse=reverse, softplus=softplus)
    du, ddelta, *others = jax.vjp(run, *inputs)[1]((dy, dstate))
    if softplus and delta.dtype == A.dtype:
        ddelta = ddelta * -jnp.expm1(-delta)
    return du, ddelta, *others


def _fused(u, delta, A, B, C, D, initial_state, *, reverse, softplus):
    return scan_pallas(
        *(u, delta, A, B, C, _skip_of(D, u, A), initial_state),
        reverse=reverse,
        softplus=softplus and delta.dtype != A.dtype,
        dtype=delta.dtype if D is None else u.dtype,
        platform="tpu",
    )


_values_by_platform = by_platform(
    tpu=deferred(_fused_values, like=_loop_values), default=_loop_values
)
_gradients_by_platform = by_platform(
    tpu=deferred(_fused_gradients, like=_loop_gradients), default=_loop_gradients
)


def _scan_pallas(u, delta, A, B, C, D, initial_state, reverse, softplus, final):
    return scan_pallas(
        *(u, delta, A, B, C, _skip_of(D, u, A), initial_state),
        reverse=reverse,
        softplus=softplus,
        dtype=u.dtype if final else A.dtype,
    )


_OPERATION = Operation(
    "selective_scan",
    {
        "sequential": _scan_sequential,
        "associative": _scan_associative,
        "chunked": _scan_chunked,
        "pallas": _scan_pallas,
    },
    auto=_scan_auto,
    plain=("sequential", "associative"),
)
IMPLEMENTATIONS = _OPERATION.implementations


_LENGTH_OF_UNKNOWN = 28


def _chunk_length(L: int) -> int:
    """√L, rounded up, for the fewest states in memory: one per chunk and those of one chunk.

    Time hardly depends on it: by a tenth between 7 and 14 tokens at L = 196, 28 and 56 at L = 3136.
    """
    return math.isqrt(L - 1) + 1 if is_known(L) else _LENGTH_OF_UNKNOWN


# The two functions below are jitted so that the layers of a model which agree in shape are traced
# once. Their loops count steps, from 0 in either direction, and read and write single tokens of the
# whole (B, L, ...) arrays in place: nothing is transposed, flipped or padded. Loops with bounds
# known only while running let the last chunk be shorter. Step sizes are made of a narrow delta
# here, by tokens and twice, which spares memory; of a wide one before, once, which spares time.


@functools.partial(jax.jit, static_argnums=(7, 8))
def _chunked_values(u, delta, A, B, C, D, initial_state, reverse, softplus):
    """y, the last state, and the states which enter the chunks: (chunks, B, G, N, D/G)."""
    L, G = B.shape[1:3]
    B, C = _flat_weights(B), _flat_weights(C)
    A, h = _grouped_rates(A, G), _grouped_state(initial_state, G)
    length, late = _chunk_length(L), softplus and delta.dtype != A.dtype

    def token(step, carry):
        h, y = carry
        t = L - 1 - step if reverse else step
        u_t, delta_t, B_t, C_t = (_read(x, t, G) for x in (u, delta, B, C))
        decay, drive = _coefficients(u_t, _step_sizes(delta_t, late, A), A, B_t)
        h = decay * h + drive
        y_t = _read_out(C_t, h)
        if D is not None:
            y_t = y_t + D.reshape(1, G, -1) * u_t
        return h, _write(y, t, y_t)

    def chunk(carry, first):
        stop = jnp.minimum(first + length, L)
        return lax.fori_loop(first, stop, token, carry), carry[0]

    y = delta if D is None else u  # every token of it is written over
    (h, y), entering = lax.scan(chunk, (h, y), jnp.arange(0, L, length))
    return y, _flat_state(h), entering


@functools.partial(jax.jit, static_argnums=(9, 10))
def _chunked_gradients(u, delta, A, B, C, D, entering, dy, dstate, reverse, softplus):
    """Gradients of u, delta before softplus, A, B, C, D and the initial state.

    With g_t the gradient of h_t, that of h_{t-1} has the part exp(δ_t A) g_t, and the product of
    this part with h_{t-1} is the gradient of δ_t A. The derivative of softplus is 1 - exp(-δ_t).
    """
    L, G = B.shape[1:3]
    B, C = _flat_weights(B), _flat_weights(C)
    A, dh = _grouped_rates(A, G), _grouped_state(dstate, G)
    length, late = _chunk_length(L), softplus and delta.dtype != A.dtype

    def inputs(step):
        t = L - 1 - step if reverse else step
        u_t, delta_t, B_t, C_t, dy_t = (_read(x, t, G) for x in (u, delta, B, C, dy))
        return t, u_t, _step_sizes(delta_t, late, A), B_t, C_t, dy_t.astype(A.dtype)

    def rebuild_token(slot, carry, first):
        h, before, dC = carry
        t, u_t, delta_t, B_t, _, dy_t = inputs(first + slot)
        decay, drive = _coefficients(u_t, delta_t, A, B_t)
        h = decay * h + drive
        # Written as it is made: keeping the state before the step for it would copy it first.
        before = lax.dynamic_update_index_in_dim(before, h, slot + 1, axis=0)
        return h, before, _write(dC, t, _sum_channels(h, dy_t))

    def chunk(carry, xs):
        *carry, before, dC = carry
        (first, h), count = xs, jnp.minimum(length, L - xs[0])
        rebuild = functools.partial(rebuild_token, first=first)
        before = lax.dynamic_update_index_in_dim(before, h, 0, axis=0)
        _, before, dC = lax.fori_loop(0, count, rebuild, (h, before, dC))

        def differentiate(i, carry):
            slot = count - 1 - i
            h = lax.dynamic_index_in_dim(before, slot, axis=0, keepdims=False)
            return _differentiate(A, D, softplus, inputs(first + slot), h, carry)

        return (*lax.fori_loop(0, count, differentiate, tuple(carry)), before, dC), None

    # dA has one sum per image, so that a batch which is spread over devices stays where it is.
    dA, dB, dC = (jnp.zeros(x.shape, x.dtype) for x in (dh, B, C))
    # Written over; XLA would make zeros early and keep them.
    du, ddelta = dy.astype(u.dtype), dy.astype(delta.dtype)
    # The states before the steps of a chunk, and the last. All chunks use one buffer: zeroing a new
    # one for each costs as much as the recurrence itself.
    before = jnp.zeros((length + 1, *dh.shape), dh.dtype)
    carry = vary_alike((dh, dA, du, ddelta, dB, before, dC), like=u)
    xs = (jnp.arange(0, L, length), entering)
    (dh, dA, du, ddelta, dB, _, dC), _ = lax.scan(chunk, carry, xs, reverse=True)
    dB, dC = (x.reshape(*x.shape[:2], G, -1) for x in (dB, dC))
    dD = None if D is None else jnp.sum(dy.astype(D.dtype) * u, axis=(0, 1))
    return du, ddelta, _flat_state(dA).sum(axis=0), dB, dC, dD, _flat_state(dh)


def _differentiate(A, D, softplus, token, before, carry):
    """The gradient through one token, by the state before it."""
    dh, dA, du, ddelta, dB = carry
    t, u_t, delta_t, B_t, C_t, dy_t = token
    g = dh + _per_state(C_t) * dy_t[:, :, None]
    decay, _ = _coefficients(u_t, delta_t, A, B_t)
    dh = decay * g
    dexponent = dh * before
    dinput = _read_out(B_t, g)  # of δ_t u_t
    dA = dA + dexponent * delta_t[:, :, None]
    du_t = dinput * delta_t
    if D is not None:
        du_t = du_t + D.reshape(1, A.shape[0], -1) * dy_t
    du = _write(du, t, du_t)
    dstep = _sum_states(A[None] * dexponent) + dinput * u_t
    ddelta = _write(ddelta, t, dstep * -jnp.expm1(-delta_t) if softplus else dstep)
    dB = _write(dB, t, _sum_channels(g, delta_t * u_t))
    return dh, dA, du, ddelta, dB


def _step_sizes(delta, softplus, like):
    delta = delta.astype(like.dtype)
    return jax.nn.softplus(delta) if softplus else delta


def _skip_of(D, u, A):
    return jnp.zeros(u.shape[2], A.dtype) if D is None else D


def _with_skip(y, D, u):
    return y if D is None else y + D[None, None] * u


def _read(x, t, G):
    """Token t of (B, L, ...), by group: (B, G, D/G) or (B, G, N)."""
    x = lax.dynamic_index_in_dim(x, t, axis=1, keepdims=False)
    return x.reshape(x.shape[0], G, -1)


def _write(x, t, value):
    """Puts a token, by group, into (B, L, ...)."""
    value = value.reshape(x.shape[0], *x.shape[2:]).astype(x.dtype)
    return lax.dynamic_update_index_in_dim(x, value, t, axis=1)


def _flat_weights(x):
    """(B, L, G, N) → (B, L, G·N): TPUs would keep the last two axes as tiles of 8 x 128."""
    return x.reshape(*x.shape[:2], -1)


def _grouped_rates(A, G):
    D, N = A.shape
    return A.reshape(G, D // G, N).swapaxes(1, 2)  # (G, N, D/G)


def _grouped_state(state, G):
    B, D, N = state.shape
    return state.reshape(B, G, D // G, N).swapaxes(2, 3)  # (B, G, N, D/G)


def _flat_state(h):
    B, G, N, width = h.shape
    return h.swapaxes(2, 3).reshape(B, G * width, N)  # (B, D, N)


def _coefficients(u, delta, A, B):
    """exp(δA) and δBu, (..., G, N, D/G), of tokens u, delta (..., G, D/G) and B (..., G, N)."""
    A = A.reshape((1,) * (delta.ndim - 2) + A.shape)
    decay = jnp.exp(delta[..., None, :] * A)
    return decay, _per_state(B) * (delta * u)[..., None, :]


def _per_state(weights):
    """(..., G, N) → (..., G, N, 1), to multiply states with."""
    return weights[..., None]


def _sum_states(x):
    """(..., G, N, D/G) → (..., G, D/G). XLA:CPU runs a reduction of this axis 10 times slower."""
    return sum(jnp.unstack(x, axis=-2))


def _read_out(weights, h):
    """Σ_n weights h of (B, G, N) and (B, G, N, D/G) → (B, G, D/G)."""
    return jnp.einsum("bgn,bgnd->bgd", weights, h, precision=lax.Precision.HIGHEST)


def _sum_channels(h, x):
    """Σ_d h x of (B, G, N, D/G) and (B, G, D/G) → (B, G, N)."""
    return jnp.einsum("bgnd,bgd->bgn", h, x, precision=lax.Precision.HIGHEST)
