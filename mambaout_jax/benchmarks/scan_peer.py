# SPDX-License-Identifier: Apache-2.0
"""The scan against the CUDA kernel of mamba_ssm, and against the limits of an H100; and how the
comparison with any peer is collected and printed.

The CUDA kernel was not run so far: it needs an NVIDIA GPU, PyTorch and mamba_ssm built with its
kernels.
"""

import functools
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mambaout_jax.benchmarks.scan_bounds import count_work
from mambaout_jax.benchmarks.timing import first_line, interleaved_milliseconds, speedup, summary
from mambaout_jax.kernels.selective_scan import selective_scan

SHAPES = ((64, 3136, 192, 16), (64, 784, 384, 16), (64, 196, 768, 16), (64, 49, 768, 16))
_CALLS = 20  # per turn, with one wait at its end, so that launches overlap on both sides

# What an NVIDIA H100 SXM does per second, with 132 SMs at 1.98 GHz.
_BYTES = 3.0e12  # measured with a copy
_EXPONENTIALS = 4.18e12  # 16 per clock and SM
_INSTRUCTIONS = 33.5e12  # float32, 128 per clock and SM


def bound_microseconds(B: int, L: int, D: int, N: int) -> dict[str, dict[str, float]]:
    """The least time of a fused scan on an H100: bfloat16 arrays, float32 state, softplus inside.

    Exponentials and bytes are those of `scan_bounds.count_work`. Instead of its multiply-adds the
    instructions of a kernel count, with conversions and sums over channels: per token and channel
    4N + 10 in the forward pass and 17N + 30 in the backward pass.

    Returns:
        By pass, "forward" and "backward": the microseconds of each of the three, and the longest of
        them as `bound`.
    """
    instructions = {"forward": 4 * N + 10, "backward": 17 * N + 30}
    bounds = {}
    for name, work in count_work((B, L, D, N, 1), itemsize=2).items():
        times = {
            "bytes": work.bytes / _BYTES * 1e6,
            "exponentials": work.exponentials / _EXPONENTIALS * 1e6,
            "instructions": B * L * D * instructions[name] / _INSTRUCTIONS * 1e6,
        }
        bounds[name] = times | {"bound": max(times.values())}
    return bounds


def cuda_peer(device: Any, rounds: int) -> dict[str, Any]:
    """Times the "pallas" scan against `selective_scan_fn` of mamba_ssm.

    Args:
        device: the first NVIDIA GPU.
        rounds: how many turns each has.

    Returns:
        What `collect` returns, with one row per shape of `SHAPES` and pass; `of_bound` is the
        fraction of the H100's bound that ours reaches, None on other GPUs.
    """
    title = "The bare scan in bfloat16 against mamba_ssm's CUDA kernel"
    return collect(title, "mamba_ssm", _compare_all(device, rounds))


def collect(title: str, peer: str, rows: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """The result of a comparison with a package that may be missing or fail.

    Args:
        title: what is compared with what.
        peer: the package.
        rows: measures as it is iterated. A row has the `shape`, by letter; the `pass`; the
            `milliseconds` of ours and of the peer, in this order; `ratio`, peer / ours (median, min
            and max over rounds; ours is faster above 1); `of_bound`, a fraction or None; and
            `difference`, the largest difference of y, relative to the largest value.

    Returns:
        `title`, with the versions of PyTorch and the peer; `note`, empty or the reason why nothing
        (more) was measured; `rows`.
    """
    measured, note = [], ""
    try:
        for row in rows:
            measured.append(row)
    except ImportError as error:
        note = f"no comparison with {peer}: {first_line(error)}"
    except Exception as error:  # from the peer or from ours; the other results must not be lost
        note = f"comparison with {peer} failed: {first_line(error)}"
    versions = " and ".join(f"{name} {_version(name)}" for name in ("torch", peer))
    return {"title": f"{title}, {versions}", "note": note, "rows": measured}


def print_peer(peer: dict[str, Any]) -> None:
    """Prints the result of `collect`."""
    print(f"\n{peer['title']}")
    for row in peer["rows"]:
        times = "  ".join(f"{k} {v['median']:.3f} ms" for k, v in row["milliseconds"].items())
        ratio = "{median:.2f}x ({min:.2f}-{max:.2f})".format(**row["ratio"])
        share = "" if row["of_bound"] is None else f"{row['of_bound']:.0%} of the H100's bound"
        shape = " ".join(f"{letter}={size}" for letter, size in row["shape"].items())
        print(f"{shape:<28}{row['pass']:<18}{times}  {ratio}  {share}".rstrip())
    if peer["note"]:
        print(peer["note"])


def _compare_all(device: Any, rounds: int) -> Iterator[dict[str, Any]]:
    import torch  # pyright: ignore[reportMissingImports]
    from mamba_ssm.ops.selective_scan_interface import (  # pyright: ignore[reportMissingImports]
        selective_scan_fn,
    )

    for shape in SHAPES:
        yield from _compare(torch, selective_scan_fn, shape, device, rounds)


def _compare(
    torch: Any, peer: Callable, shape: tuple[int, ...], device: Any, rounds: int
) -> Iterator[dict[str, Any]]:
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
        yield {
            "shape": dict(zip("BLDN", shape, strict=True)),
            "pass": name,
            "milliseconds": medians,
            "ratio": speedup(times["mamba_ssm"], times["pallas"]),
            "of_bound": limit[name] / 1e3 / medians["pallas"]["median"] if h100 else None,
            "difference": float(difference),
        }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def _turn(call: Callable[[], Any], wait: Callable[[Any], Any]) -> Callable[[], None]:
    def turn() -> None:
        for _ in range(_CALLS):
            result = call()
        wait(result)

    return turn
