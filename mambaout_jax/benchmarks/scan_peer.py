# SPDX-License-Identifier: Apache-2.0
"""The scan against the CUDA kernel of mamba_ssm, and against the limits of an H100.

Not run so far: it needs an NVIDIA GPU, PyTorch and mamba_ssm built with its CUDA kernels.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mambaout_jax.benchmarks.timing import first_line, interleaved_milliseconds, speedup, summary
from mambaout_jax.kernels.selective_scan import selective_scan

SHAPES = ((64, 3136, 192, 16), (64, 784, 384, 16), (64, 196, 768, 16), (64, 49, 768, 16))
_CALLS = 20  # per turn, with one wait at its end, so that launches overlap on both sides

# What an NVIDIA H100 SXM does per second, with 132 SMs at 1.98 GHz.
_BYTES = 3.0e12  # measured with a copy
_EXPONENTIALS = 4.18e12  # 16 per clock and SM
_INSTRUCTIONS = 33.5e12  # float32, 128 per clock and SM
_CHUNK = 64  # tokens from one saved float32 state to the next


def bound_microseconds(B: int, L: int, D: int, N: int) -> dict[str, dict[str, float]]:
    """The least time of a fused scan on an H100: bfloat16 arrays, float32 state, softplus inside.

    Work per token and channel, of which there are E = B·L·D:

                  bytes                     exponentials   instructions
        forward   6:  u, delta, y           N + 2          4N + 10
        backward  10: u, delta, dy, du, dδ  N + 4          17N + 30

    and bytes for B, C (4·B·L·N), in the backward pass for their float32 gradients (8·B·L·N), and
    for one state per 64 tokens (4·E·N/64), written in the forward pass and read in the backward
    pass.

    Returns:
        By pass, "forward" and "backward": the microseconds of each of the three, and the longest of
        them as `bound`.
    """
    E = B * L * D
    states = 4 * E * N / _CHUNK
    work = {
        "forward": (6 * E + 4 * B * L * N + states, (N + 2) * E, (4 * N + 10) * E),
        "backward": (10 * E + 12 * B * L * N + states, (N + 4) * E, (17 * N + 30) * E),
    }
    rates = {"bytes": _BYTES, "exponentials": _EXPONENTIALS, "instructions": _INSTRUCTIONS}
    bounds = {}
    for name, amounts in work.items():
        times = {
            kind: amount / rate * 1e6
            for (kind, rate), amount in zip(rates.items(), amounts, strict=True)
        }
        bounds[name] = times | {"bound": max(times.values())}
    return bounds


def cuda_peer(device: Any, rounds: int) -> dict[str, Any]:
    """Times the "pallas" scan against `selective_scan_fn` of mamba_ssm.

    Args:
        device: the first NVIDIA GPU.
        rounds: how many turns each has.

    Returns:
        `note`, empty or the reason why nothing (more) was measured, and `rows`, one per shape of
        `SHAPES` and pass. A row has the milliseconds of both, the ratio peer / ours (median, min
        and max over rounds; ours is faster above 1), the fraction of the H100's bound that ours
        reaches (None on other GPUs), and the largest difference of y, relative to the largest
        value.
    """
    rows = []
    try:
        import torch  # pyright: ignore[reportMissingImports]
        from mamba_ssm.ops.selective_scan_interface import (  # pyright: ignore[reportMissingImports]
            selective_scan_fn,
        )

        for shape in SHAPES:
            rows += _compare(torch, selective_scan_fn, shape, device, rounds)
    except ImportError as error:
        return {"note": f"no comparison with mamba_ssm: {first_line(error)}", "rows": rows}
    except Exception as error:  # from its kernels or ours; the other results must not be lost
        return {"note": f"comparison with mamba_ssm failed: {first_line(error)}", "rows": rows}
    return {"note": "", "rows": rows}


def print_peer(peer: dict[str, Any]) -> None:
    """Prints the result of `cuda_peer`."""
    print("\nThe bare scan in bfloat16 against mamba_ssm's CUDA kernel")
    for row in peer["rows"]:
        ours, theirs = (row["milliseconds"][name]["median"] for name in ("pallas", "mamba_ssm"))
        ratio = "{median:.2f}x ({min:.2f}-{max:.2f})".format(**row["ratio"])
        share = "" if row["of_bound"] is None else f"{row['of_bound']:.0%} of the H100's bound"
        shape = "B={} L={} D={} N={}".format(*row["shape"])
        print(f"{shape:<28}{row['pass']:<18}{ours:>8.3f}{theirs:>8.3f} ms  {ratio:<20}{share}")
    if peer["note"]:
        print(peer["note"])


def _compare(
    torch: Any, peer: Callable, shape: tuple[int, ...], device: Any, rounds: int
) -> list[dict[str, Any]]:
    B, L, D, N = shape
    generator = np.random.default_rng(0)
    sizes = {"u": (B, L, D), "delta": (B, L, D), "B": (B, L, N), "C": (B, L, N), "dy": (B, L, D)}
    arrays = {name: generator.standard_normal(size, np.float32) for name, size in sizes.items()}
    rates = -np.broadcast_to(np.arange(1, N + 1, dtype=np.float32), (D, N)).copy()

    ours = {name: jnp.asarray(array, jnp.bfloat16) for name, array in arrays.items()}
    inputs = (ours["u"], ours["delta"], jnp.asarray(rates), ours["B"], ours["C"])
    scan = functools.partial(selective_scan, delta_softplus=True, implementation="pallas")
    forward = functools.partial(jax.jit(scan), *inputs)
    step = jax.jit(lambda *arrays: jax.vjp(scan, *arrays[:-1])[1](arrays[-1]))
    both = functools.partial(step, *inputs, ours["dy"])

    # mamba_ssm has the tokens last: (B, D, L) and (B, N, L).
    theirs = [
        torch.tensor(arrays[name].swapaxes(1, 2).copy(), dtype=torch.bfloat16, device="cuda")
        for name in ("u", "delta", "B", "C", "dy")
    ]
    *leaves, dy = theirs
    leaves.insert(2, torch.tensor(rates, device="cuda"))

    def peer_forward():
        with torch.no_grad():
            return peer(*leaves, delta_softplus=True)

    def peer_both():
        wanted = [leaf.detach().requires_grad_() for leaf in leaves]
        return torch.autograd.grad(peer(*wanted, delta_softplus=True), wanted, dy)

    expected = peer_forward().float().cpu().numpy().swapaxes(1, 2)
    difference = np.abs(np.asarray(forward(), np.float32) - expected).max() / np.abs(expected).max()
    bounds = bound_microseconds(*shape)
    limit = {"forward": bounds["forward"]["bound"]}
    limit["forward+backward"] = limit["forward"] + bounds["backward"]["bound"]
    h100 = "H100" in device.device_kind
    rows = []
    for name, ours_call, peer_call in (
        ("forward", forward, peer_forward),
        ("forward+backward", both, peer_both),
    ):
        calls = {
            "pallas": _turn(ours_call, jax.block_until_ready),
            "mamba_ssm": _turn(peer_call, lambda _: torch.cuda.synchronize()),
        }
        times = interleaved_milliseconds(calls, rounds=rounds, calls_per_round=1)
        times = {key: [value / _CALLS for value in values] for key, values in times.items()}
        medians = {key: summary(values) for key, values in times.items()}
        row = {
            "shape": list(shape),
            "pass": name,
            "milliseconds": medians,
            "ratio": speedup(times["mamba_ssm"], times["pallas"]),
            "of_bound": limit[name] / 1e3 / medians["pallas"]["median"] if h100 else None,
            "difference": float(difference),
        }
        rows.append(row)
    return rows


def _turn(call: Callable[[], Any], wait: Callable[[Any], Any]) -> Callable[[], None]:
    def turn() -> None:
        for _ in range(_CALLS):
            result = call()
        wait(result)

    return turn
