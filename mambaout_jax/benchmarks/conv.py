# SPDX-License-Identifier: Apache-2.0
"""How much faster is the shift form of the depthwise convolution than XLA's own and PyTorch's?

The four stages of MambaOut-Tiny at 224 pixels, 7x7 kernels; forward alone and with gradients.
PyTorch takes part where it is installed, channels last, on the same device; so does the Pallas
kernel on GPUs. All of ours are compiled with the options that this library gives its models.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mambaout_jax.benchmarks.timing import (
    environment,
    find_device,
    interleaved_milliseconds,
    save_json,
    speedup,
    summary,
)
from mambaout_jax.benchmarks.torch_peer import Queued, find_torch, torch_device
from mambaout_jax.compiler_options import to_run_fast
from mambaout_jax.kernels.depthwise_conv import depthwise_conv

STAGES = ((56, 96), (28, 192), (14, 384), (7, 576))  # map side, channels
KERNEL_SIDE = 7
PASSES = ("forward", "forward+backward")
QUICK = {"stages": STAGES[2:], "batch_size": 2, "rounds": 2}  # arguments of `run`, to see it run

_BATCH_SIZE = {"cpu": 8, "gpu": 128, "tpu": 128}
_MAX_DIFFERENCE = {"float32": 1e-4, "bfloat16": 0.05}  # of the largest value
_CALLS = {"cpu": 3, "gpu": 50, "tpu": 50}  # a turn; accelerators hide the dispatch of many

save = save_json


def run(
    *,
    stages: Sequence[tuple[int, int]] = STAGES,
    batch_size: int | None = None,
    dtype: str = "float32",
    rounds: int = 7,
    device: str | None = None,
) -> dict[str, Any]:
    """Times `"shift"` against `"lax"`, `"pallas"` on GPUs, and PyTorch where it is installed.

    Args:
        stages: (side, channels) of the maps.
        batch_size: images per call; None: 8 on CPUs, else 128.
        dtype: of maps and kernels.
        rounds: turns of each contender; the numbers reported are medians over them.
        device: "cpu", "gpu" or "tpu"; None: JAX's default.

    Returns:
        A JSON-able dict: `environment`, the arguments, and `rows`, one per stage and pass, with
        milliseconds by contender, compile seconds of ours, `speedup`: that of shift over each other
        contender (median, min and max over rounds), and `difference`, the largest of a contender's
        results from those of lax, relative to the largest value.

    Raises:
        ValueError: there is no such device, PyTorch is there but does not see it, or a contender
            computes something else.
    """
    place = find_device(device)
    torch = find_torch()
    batch_size = _BATCH_SIZE[place.platform] if batch_size is None else batch_size
    peer = None if torch is None else functools.partial(_torch_call, torch, place)
    rows = []
    with jax.default_device(place):
        for side, channels in stages:
            shape = (batch_size, side, side, channels)
            for name in PASSES:
                race = _race(name, shape, dtype, rounds, place.platform, peer)
                rows.append({"shape": list(shape), "pass": name} | race)
    return {
        "environment": environment(place) | {"torch": torch and torch.__version__},
        "batch_size": batch_size,
        "dtype": dtype,
        "rounds": rounds,
        "rows": rows,
    }


def print_table(result: dict[str, Any]) -> None:
    """Prints what `run` returned: milliseconds, and how much faster shift is; medians."""
    where = result["environment"]
    versions = f"jax {where['jax']}, torch {where['torch'] or 'not installed'}"
    print(f"{where['device']} ({where['platform']}), {versions}, {result['dtype']}")
    for row in result["rows"]:
        times = "  ".join(f"{k} {v['median']:.2f} ms" for k, v in row["milliseconds"].items())
        ratios = "  ".join(
            "shift over {}: {median:.1f}x ({min:.1f}-{max:.1f})".format(name, **ratio)
            for name, ratio in row["speedup"].items()
        )
        print(f"{'x'.join(map(str, row['shape'])):<17}{row['pass']:<18}{times}  {ratios}")


def _forward(x, kernel, dy, *, implementation):
    return depthwise_conv(x, kernel, implementation=implementation)


def _forward_backward(x, kernel, dy, *, implementation):
    y, vjp = jax.vjp(functools.partial(depthwise_conv, implementation=implementation), x, kernel)
    return y, *vjp(dy)


_FUNCTIONS: dict[str, Callable] = dict(zip(PASSES, (_forward, _forward_backward), strict=True))


def _race(
    pass_name: str,
    shape: tuple[int, ...],
    dtype: str,
    rounds: int,
    platform: str,
    peer: Callable[..., tuple[Callable, Callable]] | None,
) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(0), 3)
    x, dy = (jax.random.normal(key, shape, dtype) for key in keys[:2])
    kernel = jax.random.normal(keys[2], (KERNEL_SIDE, KERNEL_SIDE, shape[-1]), dtype)
    calls, results, compile_seconds = {}, {}, {}
    for name in ("lax", "shift", "pallas")[: 3 if platform == "gpu" else 2]:
        start = time.perf_counter()
        function = functools.partial(_FUNCTIONS[pass_name], implementation=name)
        jitted = jax.jit(function, compiler_options=to_run_fast(platform))
        compiled = jitted.lower(x, kernel, dy).compile()
        compile_seconds[name] = time.perf_counter() - start
        calls[name] = functools.partial(compiled, x, kernel, dy)
        results[name] = jax.tree.leaves(jax.tree.map(_wide, calls[name]()))
    if peer is not None:
        calls["torch"], read = peer(x, kernel, dy, pass_name)
        results["torch"] = read()
    expected = results.pop("lax")
    differences = {name: _difference(expected, actual) for name, actual in results.items()}
    if wrong := [
        name for name, value in differences.items() if not value <= _MAX_DIFFERENCE[dtype]
    ]:
        raise ValueError(
            f"at {shape}, {pass_name}, {wrong} differ from lax by {differences}, relative to the "
            "largest value; they do not compute the same"
        )
    times = interleaved_milliseconds(calls, rounds=rounds, calls_per_round=_CALLS[platform])
    others = [name for name in calls if name != "shift"]
    return {
        "milliseconds": {name: summary(values) for name, values in times.items()},
        "compile_seconds": compile_seconds,
        "speedup": {name: speedup(times[name], times["shift"]) for name in others},
        "difference": differences,
    }


def _torch_call(
    torch: Any, place: Any, x: Any, kernel: Any, dy: Any, pass_name: str
) -> tuple[Callable[[], Queued], Callable[[], list[np.ndarray]]]:
    """A call to be timed, and one that returns its results in our layout."""
    device, dtype = torch_device(torch, place), getattr(torch, x.dtype.name)
    queued = Queued(torch, device)

    def put(array, axes):
        tensor = torch.from_numpy(_wide(array)).permute(*axes).to(device, dtype)
        return tensor.contiguous(memory_format=torch.channels_last)

    maps, cotangent = (put(array, (0, 3, 1, 2)) for array in (x, dy))  # (B, C, H, W)
    weight = put(kernel[None], (3, 0, 1, 2))  # (C, 1, K, K)
    with_gradients = pass_name == PASSES[1]
    maps.requires_grad_(with_gradients)
    weight.requires_grad_(with_gradients)

    def compute():
        y = torch.nn.functional.conv2d(maps, weight, padding=KERNEL_SIDE // 2, groups=x.shape[-1])
        return (y, *torch.autograd.grad(y, (maps, weight), cotangent)) if with_gradients else (y,)

    def call():
        compute()
        return queued

    def read():
        arrays = [tensor.detach().float().cpu().numpy() for tensor in compute()]
        maps = [array.transpose(0, 2, 3, 1) for array in arrays[:2]]  # y, dx: (B, H, W, C)
        return maps + [array[:, 0].transpose(1, 2, 0) for array in arrays[2:]]  # dw: (K, K, C)

    return call, read


def _wide(array: Any) -> np.ndarray:
    return np.array(array, np.float32)


def _difference(expected: Sequence[np.ndarray], actual: Sequence[np.ndarray]) -> float:
    pairs = zip(expected, actual, strict=True)
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)
