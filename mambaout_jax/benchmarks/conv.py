# SPDX-License-Identifier: Apache-2.0
"""How much faster is the shift form of the depthwise convolution than XLA's own and PyTorch's?

Measured at the four stages of MambaOut-Tiny (224 pixels, 7x7 kernels), or in a sweep over maps,
channels, kernels and dilations, on which the choice of "auto" is based; the forward pass alone and
with gradients. PyTorch takes part if it is installed, channels last and on the same device; the
Pallas kernel takes part on GPUs, up to 13x13 taps. All of ours are compiled with the options that
this library uses for its models.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from mambaout_jax.benchmarks.timing import (
    call_seconds,
    environment,
    find_device,
    ignore,
    interleaved_milliseconds,
    plan_turns,
    report_progress,
    save_json,
    speedup,
    summary,
)
from mambaout_jax.benchmarks.torch_peer import Queued, find_torch, torch_device
from mambaout_jax.kernels.depthwise_conv import depthwise_conv
from mambaout_jax.runtime.compiler_options import to_run_fast

SHAPES = {  # side of the map, channels, side of the kernel, dilation
    "stages": ((56, 96, 7, 1), (28, 192, 7, 1), (14, 384, 7, 1), (7, 576, 7, 1)),
    "sweep": (
        *((28, 64, kernel, 1) for kernel in (1, 3, 5, 7, 9, 11, 13, 21, 31)),
        *((14, channels, 7, 1) for channels in (1, 3, 8, 32, 128, 512, 1024)),
        *((side, 96, 7, 1) for side in (1, 2, 4, 7, 14, 56, 112)),
        *((224, 3, 3, 1), (56, 3, 13, 1), (56, 8, 31, 1), (14, 384, 31, 1), (7, 768, 3, 1)),
        *((56, 64, 7, 3), (28, 128, 7, 3), (14, 320, 7, 3), (7, 512, 7, 3)),  # as in VAN
        *((28, 64, 5, 2), (28, 64, 7, 2), (28, 64, 21, 3)),
    ),
}
PASSES = ("forward", "forward+backward")
QUICK = {
    "shapes": SHAPES["stages"][2:],
    "batch_size": 2,
    "rounds": 2,
}  # arguments of `run` for a trial

_BATCH_SIZE = {"cpu": 8, "gpu": 128, "tpu": 128}
_MAX_PALLAS_SIDE = 13  # the kernel refuses more taps
_MAX_DIFFERENCE = {"float32": 1e-4, "bfloat16": 0.05}  # relative to the largest value

save = save_json


def run(
    *,
    shapes: str | Sequence[tuple[int, int, int, int]] = "stages",
    batch_size: int | None = None,
    dtype: str = "float32",
    rounds: int = 7,
    device: str | None = None,
    keep: Callable[[dict[str, Any]], object] = ignore,
) -> dict[str, Any]:
    """Times `"shift"` against `"lax"`, `"pallas"` on GPUs, and PyTorch where it is installed.

    Progress is printed to the standard error.

    Args:
        shapes: "stages" or "sweep", keys of `SHAPES`, or a list of shapes: side of the map,
            channels, side of the kernel, dilation.
        batch_size: images per call; None: 8 on CPUs, otherwise 128.
        dtype: precision of maps and kernels, "float32" or "bfloat16".
        rounds: how many turns each contender has; the numbers reported are medians over them.
        device: "cpu", "gpu" or "tpu"; None: JAX's default.
        keep: called after every row with the result so far.

    Returns:
        A dict ready for JSON: `environment`, the arguments, and `rows`, one per shape and pass.
        A row has milliseconds by contender, `compile_seconds` of ours, `speedup`, how many times
        faster shift is than each other contender (median, min and max over rounds), and
        `difference`, the largest difference of a contender's results from those of lax, relative to
        the largest value.

    Raises:
        ValueError: the device is not there, PyTorch is installed but does not see it, or a
            contender computes something else.
    """
    jax_device = find_device(device)
    torch = find_torch()
    batch_size = _BATCH_SIZE[jax_device.platform] if batch_size is None else batch_size
    peer = None if torch is None else functools.partial(_torch_call, torch, jax_device)
    rows = []
    result = {
        "environment": environment(jax_device) | {"torch": torch and torch.__version__},
        "batch_size": batch_size,
        "dtype": dtype,
        "rounds": rounds,
        "rows": rows,
    }
    with jax.default_device(jax_device):
        for *size, kernel_side, dilation in SHAPES[shapes] if isinstance(shapes, str) else shapes:
            shape = (batch_size, size[0], *size)
            row = {"shape": list(shape), "kernel_side": kernel_side, "dilation": dilation}
            for name in PASSES:
                report_progress(f"{_describe(row)} {name}")
                arrays = _draw(shape, kernel_side, dtype)
                race = _race(name, arrays, dilation, rounds, jax_device.platform, peer)
                rows.append(row | {"pass": name} | race)
                keep(result)
    return result


def print_table(result: dict[str, Any]) -> None:
    """Prints the result of `run`: median milliseconds, and how many times faster shift is."""
    where = result["environment"]
    versions = f"jax {where['jax']}, torch {where['torch'] or 'not installed'}"
    print(f"{where['device']} ({where['platform']}), {versions}, {result['dtype']}")
    for row in result["rows"]:
        times = "  ".join(f"{k} {v['median']:.2f} ms" for k, v in row["milliseconds"].items())
        ratios = "  ".join(
            "shift over {}: {median:.1f}x ({min:.1f}-{max:.1f})".format(name, **ratio)
            for name, ratio in row["speedup"].items()
        )
        print(f"{_describe(row):<24}{row['pass']:<18}{times}  {ratios}")


def _describe(row: dict[str, Any]) -> str:
    apart = f", {row['dilation']} apart" if row["dilation"] > 1 else ""
    return f"{'x'.join(map(str, row['shape']))} by {row['kernel_side']}{apart}"


def _forward(x, kernel, dy, **options):
    return depthwise_conv(x, kernel, **options)


def _forward_backward(x, kernel, dy, **options):
    y, vjp = jax.vjp(functools.partial(depthwise_conv, **options), x, kernel)
    return y, *vjp(dy)


_FUNCTIONS: dict[str, Callable] = dict(zip(PASSES, (_forward, _forward_backward), strict=True))


def _draw(shape: tuple[int, ...], kernel_side: int, dtype: str) -> tuple[jax.Array, ...]:
    """Maps, kernel and the maps' cotangent."""
    keys = jax.random.split(jax.random.key(0), 3)
    x, dy = (jax.random.normal(key, shape, dtype) for key in keys[:2])
    return x, jax.random.normal(keys[2], (kernel_side, kernel_side, shape[-1]), dtype), dy


def _race(
    pass_name: str,
    arrays: tuple[jax.Array, ...],
    dilation: int,
    rounds: int,
    platform: str,
    peer: Callable[..., tuple[Callable, Callable]] | None,
) -> dict[str, Any]:
    x, kernel, dy = arrays
    calls = {}
    results = {}
    compile_seconds = {}
    with_pallas = platform == "gpu" and kernel.shape[0] <= _MAX_PALLAS_SIDE
    for name in ("lax", "shift", "pallas")[: 3 if with_pallas else 2]:
        start = time.perf_counter()
        options = {"implementation": name, "dilation": dilation}
        function = functools.partial(_FUNCTIONS[pass_name], **options)
        jitted = jax.jit(function, compiler_options=to_run_fast(platform))
        compiled = jitted.lower(x, kernel, dy).compile()
        compile_seconds[name] = time.perf_counter() - start
        calls[name] = functools.partial(compiled, x, kernel, dy)
        results[name] = jax.tree.leaves(jax.tree.map(_wide, calls[name]()))
    if peer is not None:
        calls["torch"], read = peer(x, kernel, dy, dilation, pass_name)
        results["torch"] = read()
    expected = results.pop("lax")
    differences = {name: _difference(expected, actual) for name, actual in results.items()}
    limit = _MAX_DIFFERENCE[x.dtype.name]
    if wrong := [name for name, value in differences.items() if not value <= limit]:
        raise ValueError(
            f"at {x.shape} by {kernel.shape}, {dilation=}, {pass_name}, {wrong} differ from lax by "
            f"{differences}, relative to the largest value; they do not compute the same"
        )
    turns = plan_turns({name: call_seconds(call) for name, call in calls.items()})
    times = interleaved_milliseconds(calls, rounds=rounds, **turns)
    others = [name for name in calls if name != "shift"]
    return {
        "milliseconds": {name: summary(values) for name, values in times.items()},
        "compile_seconds": compile_seconds,
        "speedup": {name: speedup(times[name], times["shift"]) for name in others},
        "difference": differences,
    }


def _torch_call(
    torch: Any, jax_device: Any, x: Any, kernel: Any, dy: Any, dilation: int, pass_name: str
) -> tuple[Callable[[], Queued], Callable[[], list[np.ndarray]]]:
    """A function to be timed, and one that returns its results in our layout."""
    device = torch_device(torch, jax_device)
    dtype = getattr(torch, x.dtype.name)
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
        padding = kernel.shape[0] // 2 * dilation
        options = {"padding": padding, "dilation": dilation, "groups": x.shape[-1]}
        y = torch.nn.functional.conv2d(maps, weight, **options)
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
