# SPDX-License-Identifier: Apache-2.0
"""Plain float64 numpy versions of what the package computes, for tests to compare with.

They are written from the definitions, as loops, and share nothing with the package.
"""

import jax
import numpy as np
from scipy.special import erf


def depthwise_conv(x, kernel, dilation=1):
    """y[b, h, w, c] = Σ_ij kernel[i, j, c] x[b, h + (i - KH // 2) d, w + (j - KW // 2) d, c]."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    y = np.zeros_like(x)
    for i, j, to, at in _taps(x.shape, kernel.shape, dilation):
        y[to] += kernel[i, j] * x[at]
    return y


def depthwise_conv_gradients(x, kernel, dy, dilation=1):
    """Gradients of Σ dy · depthwise_conv(x, kernel) with respect to x and kernel."""
    x, kernel, dy = (np.asarray(a, np.float64) for a in (x, kernel, dy))
    dx, dkernel = np.zeros_like(x), np.zeros_like(kernel)
    for i, j, to, at in _taps(x.shape, kernel.shape, dilation):
        dx[at] += kernel[i, j] * dy[to]
        dkernel[i, j] = (dy[to] * x[at]).sum(axis=(0, 1, 2))
    return dx, dkernel


def attention(query, key, value, mask):
    """y[..., i, :] = Σ_j softmax_j(query_i · key_j / √width) value_j over the j with mask[i, j]."""
    y = np.zeros((*query.shape[:-1], value.shape[-1]))
    for i in range(query.shape[-2]):
        seen = np.flatnonzero(mask[i])
        scores = [(query[..., i, :] * key[..., j, :]).sum(-1) for j in seen]
        weights = np.exp(np.stack(scores) / np.sqrt(query.shape[-1]))
        for weight, j in zip(weights / weights.sum(0), seen, strict=True):
            y[..., i, :] += weight[..., None] * value[..., j, :]
    return y


def _taps(x_shape, kernel_shape, dilation):
    """Per tap that meets the map: its indices, and the regions of y and x which it connects."""
    (_, height, width, _), (kernel_height, kernel_width, _) = x_shape, kernel_shape
    for i in range(kernel_height):
        for j in range(kernel_width):
            down, right = (i - kernel_height // 2) * dilation, (j - kernel_width // 2) * dilation
            if abs(down) < height and abs(right) < width:
                rows, columns = _overlap(height, down), _overlap(width, right)
                to = (slice(None), rows[0], columns[0])
                yield i, j, to, (slice(None), rows[1], columns[1])


def _overlap(size, offset):
    """Slices of the positions p and p + offset which both lie in [0, size)."""
    start, stop = max(0, -offset), min(size, size - offset)
    return slice(start, stop), slice(start + offset, stop + offset)


def selective_scan(arrays, dy, dstate, *, softplus=False, reverse=False):
    """The selective scan, token by token, with its gradients written out by hand.

    Takes the arguments of the package's function by name; D, z, delta_bias and initial_state may be
    missing. Returns y, the last state, and by name the gradients of Σ dy · y + Σ dstate · state.
    """
    given = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
    u, delta, A = given["u"], given["delta"], given["A"]
    (batch, L, D), N = u.shape, A.shape[1]
    B, C = (_spread_groups(given[name], D) for name in "BC")  # (B, L, D, N)
    skip, bias = given.get("D", np.zeros(D)), given.get("delta_bias", np.zeros(D))
    sigmoid = 1 / (1 + np.exp(-given["z"])) if "z" in given else None
    gate = given["z"] * sigmoid if "z" in given else np.ones_like(u)
    step = np.logaddexp(delta + bias, 0) if softplus else delta + bias
    state = given.get("initial_state", np.zeros((batch, D, N)))

    times = range(L)[::-1] if reverse else range(L)
    states, ungated = {}, np.zeros_like(u)
    for t in times:
        before, d = state, step[:, t, :, None]
        state = np.exp(d * A) * before + d * u[:, t, :, None] * B[:, t]
        states[t] = before, state
        ungated[:, t] = (C[:, t] * state).sum(axis=-1) + skip * u[:, t]

    dungated = np.asarray(dy, np.float64) * gate
    grads = {"u": skip * dungated, "A": np.zeros_like(A), "D": (u * dungated).sum(axis=(0, 1))}
    dstep, dB, dC = np.zeros_like(u), np.zeros_like(B), np.zeros_like(C)
    dh = np.asarray(dstate, np.float64)
    for t in reversed(times):
        before, after = states[t]
        d, x, out = step[:, t, :, None], u[:, t, :, None], dungated[:, t, :, None]
        decay = np.exp(d * A)
        dC[:, t] = out * after
        dh = dh + out * C[:, t]
        dB[:, t] = dh * d * x
        grads["u"][:, t] += (dh * d * B[:, t]).sum(axis=-1)
        dstep[:, t] = (dh * (decay * before * A + x * B[:, t])).sum(axis=-1)
        grads["A"] += (dh * decay * before * d).sum(axis=0)
        dh = dh * decay
    grads["initial_state"] = dh
    grads["B"], grads["C"] = _sum_groups(dB, given["B"].shape), _sum_groups(dC, given["C"].shape)
    grads["delta"] = dstep / (1 + np.exp(-delta - bias)) if softplus else dstep
    grads["delta_bias"] = grads["delta"].sum(axis=(0, 1))
    if "z" in given:
        grads["z"] = dy * ungated * sigmoid * (1 + given["z"] * (1 - sigmoid))
    return ungated * gate, state, {name: grads[name] for name in given}


def _spread_groups(weights, D):
    """(B, L, N) or (B, L, G, N) → (B, L, D, N)."""
    weights = weights if weights.ndim == 4 else weights[:, :, None]
    return np.repeat(weights, D // weights.shape[2], axis=2)


def _sum_groups(gradient, shape):
    """The transpose of `_spread_groups`."""
    batch, L, _, N = gradient.shape
    groups = shape[2] if len(shape) == 4 else 1
    return gradient.reshape(batch, L, groups, -1, N).sum(axis=3).reshape(shape)


def map_ssm(x, params, walks):
    """Σ over paths of a selective SSM along each, of a map (B, H, W, D).

    `params["path_<i>"]` holds the parameters of path i; `walks[i]` its order, the raster numbers of
    the tokens as they are met, -1 for a step that reads zeros, and whether it is walked backwards.
    """
    x = np.asarray(x, np.float64)
    batch, *_, D = x.shape
    tokens = np.concatenate((x.reshape(batch, -1, D), np.zeros((batch, 1, D))), axis=1)
    y = np.zeros_like(tokens)
    for number, (order, reverse) in enumerate(walks):
        y[:, order] += ssm(tokens[:, order], params[f"path_{number}"], reverse)
    return y[:, :-1].reshape(x.shape)


def ssm(u, params, reverse=False):
    """The selective SSM with its projections along sequences (B, L, D)."""
    A = -np.exp(np.asarray(params["A_log"], np.float64))
    D, N = A.shape
    chosen = u @ np.asarray(params["x_proj"]["kernel"], np.float64)
    rank = chosen.shape[-1] - 2 * N
    delta = chosen[..., :rank] @ np.asarray(params["dt_proj"]["kernel"], np.float64)
    arrays = {
        "u": u,
        "delta": delta + np.asarray(params["dt_proj"]["bias"], np.float64),
        "A": A,
        "B": chosen[..., rank : rank + N],
        "C": chosen[..., rank + N :],
        "D": params["D"],
    }
    nothing = np.zeros((len(u), D, N))
    return selective_scan(arrays, u, nothing, softplus=True, reverse=reverse)[0]


def block_in_numpy(params, x, walks=()):
    """A Gated CNN block in float64, written from the paper's Algorithm 1; with an SSM, from Eq. 11.

    `walks` are those of the SSM's paths, see `map_ssm`.
    """
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    y = (x - mean) / np.sqrt(variance + 1e-6) * p["norm"]["scale"] + p["norm"]["bias"]
    y = y @ p["fc1"]["kernel"] + p["fc1"]["bias"]
    dim = x.shape[-1]
    hidden = y.shape[-1] // 2
    gate, identity, mixed = y[..., :hidden], y[..., hidden:-dim], y[..., -dim:]
    mixed = depthwise_conv(mixed, p["conv"]["kernel"][:, :, 0]) + p["conv"]["bias"]
    if walks:
        mixed = map_ssm(gelu(mixed), p["ssm"], walks)
    return (
        x
        + (gelu(gate) * np.concatenate([identity, mixed], -1)) @ p["fc2"]["kernel"]
        + (p["fc2"]["bias"])
    )


def gelu(x):
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))


def layer_norm(x, scale, bias=0.0, epsilon=1e-6):
    x, scale, bias = (np.asarray(a, np.float64) for a in (x, scale, bias))
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon) * scale + bias


def strided_conv(x, kernel, stride, padding):
    """One window of the padded map after the other."""
    x, kernel = np.asarray(x, np.float64), np.asarray(kernel, np.float64)
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    (batch, height, width, _), (KH, KW, _, features) = x.shape, kernel.shape
    rows, columns = (height - KH) // stride + 1, (width - KW) // stride + 1
    y = np.zeros((batch, rows, columns, features))
    for h in range(rows):
        for w in range(columns):
            window = x[:, h * stride : h * stride + KH, w * stride : w * stride + KW]
            y[:, h, w] = np.einsum("bijc,ijcf->bf", window, kernel)
    return y
