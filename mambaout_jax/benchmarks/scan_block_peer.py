# SPDX-License-Identifier: Apache-2.0
"""A whole Mamba mixer on a CPU, against that of transformers in plain PyTorch.

On a CPU transformers' `MambaMixer` walks over the tokens in a loop of Python, its "slow path".
Both sides have the same weights.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from mambaout_jax.benchmarks.scan_peer import collect
from mambaout_jax.benchmarks.timing import (
    call_seconds,
    interleaved_milliseconds,
    plan_turns,
    report_progress,
    speedup,
    summary,
)
from mambaout_jax.mixers.mamba import MambaMixer
from mambaout_jax.runtime.compiler_options import to_run_fast
from mambaout_jax.weights.torch_names import torch_tensors

# Pass, and B, L, C. The time of the peer's backward pass grows with L², because the gradient of
# every token is an array of all tokens.
CASES = (
    ("forward", (2, 196, 192)),
    ("forward", (2, 784, 192)),
    ("forward+backward", (2, 196, 192)),
)

_NAMES = (
    (r"(in_proj|out_proj)", r"\1"),
    (r"conv", r"conv1d"),
    (r"ssm/selection/(\w+)", r"\1"),
)
_MAX_DIFFERENCE = 1e-4  # relative to the largest value


def block_peer(rounds: int) -> dict[str, Any]:
    """Times `mixers.mamba.MambaMixer` against transformers' in float32.

    Args:
        rounds: how many turns each has.

    Returns:
        What `scan_peer.collect` returns, with one row per case of `CASES`. The backward pass has
        the gradients of the tokens and of all parameters; `difference` is that of y or, if it is
        larger, of the gradient of the tokens.
    """
    title = "The Mamba mixer (D=2C, N=16, float32) against transformers' slow path"
    return collect(title, "transformers", _compare_all(rounds))


def _compare_all(rounds: int) -> Iterator[dict[str, Any]]:
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import MambaConfig  # pyright: ignore[reportMissingImports]
    from transformers.models.mamba import modeling_mamba  # pyright: ignore[reportMissingImports]

    mixer = MambaMixer()
    for name, (B, L, width) in CASES:
        report_progress(f"Mamba mixer B={B} L={L} C={width} {name}")
        keys = jax.random.split(jax.random.key(0), 3)
        x, dy = (jax.random.normal(key, (B, L, width)) for key in keys[:2])
        variables = jax.jit(mixer.init)(keys[2], x)
        config = MambaConfig(
            hidden_size=width,
            expand=mixer.expand,
            conv_kernel=mixer.kernel_size,
            state_size=mixer.state_size,
        )
        module = modeling_mamba.MambaMixer(config, layer_idx=0)
        state = {name: torch.from_numpy(value) for name, value in _state_dict(variables).items()}
        module.load_state_dict(state)
        ours = _our_calls(mixer, variables, x, dy)[name]
        theirs = _torch_calls(torch, module, np.array(x), np.array(dy))[name]
        yield {
            "shape": {"B": B, "L": L, "C": width},
            "pass": name,
            "difference": _difference(ours(), theirs()),
            **_race(ours, theirs, rounds),
            "of_bound": None,
        }


def _state_dict(variables: dict[str, Any]) -> dict[str, np.ndarray]:
    """Parameters of `MambaMixer` under transformers' names."""
    flat: dict[Any, Any] = flax.traverse_util.flatten_dict(variables)
    return {
        name: tensor.to_torch([np.asarray(flat[path]) for path in tensor.paths])
        for name, tensor in torch_tensors(_NAMES, flat).items()
    }


def _our_calls(
    mixer: Any, variables: dict[str, Any], x: jax.Array, dy: jax.Array
) -> dict[str, Callable[[], tuple[Any, ...]]]:
    """By pass, a call that returns y, or y and the gradients, that of x first."""

    def forward(variables, x, dy):
        return (mixer.apply(variables, x),)

    def forward_backward(variables, x, dy):
        y, vjp = jax.vjp(mixer.apply, variables, x)
        of_variables, dx = vjp(dy)
        return y, dx, of_variables

    jit = functools.partial(jax.jit, compiler_options=to_run_fast(x.device.platform))
    return {
        "forward": functools.partial(jit(forward), variables, x, dy),
        "forward+backward": functools.partial(jit(forward_backward), variables, x, dy),
    }


def _torch_calls(
    torch: Any, module: Any, x: np.ndarray, dy: np.ndarray
) -> dict[str, Callable[[], tuple[Any, ...]]]:
    """As `_our_calls`."""
    tokens, cotangent = torch.from_numpy(x), torch.from_numpy(dy)
    leaves = (tokens.clone().requires_grad_(), *module.parameters())

    def forward():
        with torch.inference_mode():
            return (module(tokens),)

    def forward_backward():
        y = module(leaves[0])
        return y.detach(), *torch.autograd.grad(y, leaves, cotangent)

    return {"forward": forward, "forward+backward": forward_backward}


def _difference(ours: tuple[Any, ...], theirs: tuple[Any, ...]) -> float:
    """That of y or, if it is there and larger, of the gradient of x.

    Raises:
        ValueError: it is too large for two ways to compute the same.
    """
    pairs = zip(theirs[:2], ours[:2], strict=True)
    arrays = [(np.asarray(a), np.asarray(b)) for a, b in pairs]
    # Not Python's `max`, which passes over NaN.
    difference = float(np.max([np.abs(a - b).max() / np.abs(a).max() for a, b in arrays]))
    if not difference <= _MAX_DIFFERENCE:
        raise ValueError(
            f"the results differ by {difference:.2g} of the largest value, and "
            f"{_MAX_DIFFERENCE:g} is allowed; the two sides do not compute the same"
        )
    return difference


def _race(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> dict[str, Any]:
    calls = {"ours": ours, "transformers": theirs}
    turns = plan_turns({name: call_seconds(call) for name, call in calls.items()})
    times = interleaved_milliseconds(calls, rounds=rounds, **turns)
    return {
        "milliseconds": {name: summary(values) for name, values in times.items()},
        "ratio": speedup(times["transformers"], times["ours"]),
    }
