# SPDX-License-Identifier: Apache-2.0
"""Parameters and multiply-accumulates of a model, from shapes alone: nothing is computed.

Multiply-accumulates are counted as in the literature:

- convolutions: one per kernel tap of every output, including taps that fall on padding;
- linear layers: one per weight and token;
- attention: one per channel and pair of tokens in each of its two matrix products, including masked
  pairs;
- norms, activations, softmax and pooling: none;
- selective scans: by one of two formulas that papers use, see `SCAN_FORMULAS`.

(XLA's own cost analysis leaves padded taps out and counts additions and multiplications separately,
so it does not give the published figures.)
"""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from mambaout_jax.mixers.ssm import ScanSize

_SHOWN = 4  # how many modules an error lists

# Multiply-accumulates of one scan over L tokens of D channels with N states.
#   parallel  the most widely used: 9·L·D·N for the recurrence and L·D for the skip; a gate adds L·D
#   hand      that of LocalMamba's and Vim's code: 5·L·D·N + 2·L·D; it counts the projections of the
#             first path and not those of further paths
SCAN_FORMULAS: dict[str, Callable[[int, int, int], int]] = {
    "parallel": lambda L, D, N: 9 * L * D * N + L * D,
    "hand": lambda L, D, N: 5 * L * D * N + 2 * L * D,
}


class Cost(NamedTuple):
    """Attributes:
    parameters: numbers in `params`, including frozen tables.
    macs: multiply-accumulates for one image.
    """

    parameters: int
    macs: int


def count(model: nn.Module, image_shape: tuple[int, ...], scan_formula: str = "parallel") -> Cost:
    """Counts the parameters of a model and its multiply-accumulates for one image.

    Args:
        model: any linen module whose input is images (1, H, W, C).
        image_shape: (H, W, C).
        scan_formula: a key of `SCAN_FORMULAS`.

    Raises:
        ValueError: `image_shape` is not (H, W, C), `scan_formula` is unknown, or a module has
            parameters but does not state its multiply-accumulates.
    """
    if len(image_shape) != 3:
        raise ValueError(f"image_shape={image_shape} must be (H, W, C), without a batch axis")
    if scan_formula not in SCAN_FORMULAS:
        raise ValueError(
            f"scan_formula={scan_formula!r} is not known; allowed are {', '.join(SCAN_FORMULAS)}"
        )
    counter = _Counter(scan_formula)
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with nn.intercept_methods(counter):
        variables = jax.eval_shape(model.init, jax.random.key(0), image)
    flat: dict[tuple[str, ...], Any] = flatten_dict(variables.get("params", {}))
    counter.check({path[:-1] for path in flat})
    return Cost(sum(math.prod(leaf.shape) for leaf in flat.values()), counter.macs)


def block_flops(L: int, D: int) -> int:
    """Operations of a transformer block, two per MAC: 24·D²·L + 4·D·L² (paper, Eq. 6).

    Args:
        L: tokens.
        D: channels.
    """
    return 24 * D * D * L + 4 * D * L * L


def length_ratio(L: int, D: int) -> float:
    """L / (6·D), from Eq. 6 of the paper.

    Above 1, attention costs more than everything that is linear in L, and the paper calls the
    sequence long. The threshold is 2,304 tokens at the width of ViT-S and 4,608 at that of ViT-B.

    Args:
        L: tokens.
        D: channels.
    """
    return L / (6 * D)


def activation_bytes(model: nn.Module, image_shape: tuple[int, ...], batch_size: int) -> int:
    """Bytes that a forward pass in training mode keeps for the backward pass.

    These are the residuals as JAX traces them. XLA fuses some of them away and needs some space of
    its own, so that this is an upper estimate. Parameters are not counted.

    Args:
        model: any linen module whose input is images (B, H, W, C) and which takes `train=`.
        image_shape: (H, W, C).
        batch_size: images on one device.
    """
    images = jax.ShapeDtypeStruct((batch_size, *image_shape), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = jax.eval_shape(model.init, key, images)

    def backward(params, rest, images, key):
        def forward(params):
            return model.apply(
                {**rest, "params": params},
                images,
                train=True,
                rngs={"dropout": key},
                mutable=list(rest),
            )[0]

        residuals = {id(leaf): leaf for leaf in jax.tree.leaves(jax.vjp(forward, params)[1])}
        inputs = {id(leaf) for leaf in jax.tree.leaves(params)}
        return [leaf for name, leaf in residuals.items() if name not in inputs]

    rest = {name: tree for name, tree in variables.items() if name != "params"}
    kept = jax.eval_shape(backward, variables["params"], rest, images, key)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in kept)


class _Counter:
    """Interceptor that adds up the costs that modules state, while a model is traced."""

    def __init__(self, scan_formula: str) -> None:
        self.macs = 0
        self._scan_formula = scan_formula
        self._types: dict[tuple[str, ...], type[nn.Module]] = {}  # by path
        self._stated: set[tuple[str, ...]] = set()

    def __call__(
        self,
        next_function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        module = context.module
        output = next_function(*args, **kwargs)
        kind = type(module)
        self._types[module.path] = kind
        macs = getattr(kind, "macs", None) or _FLAX_MACS.get(kind)
        if macs is not None:
            self._stated.add(module.path)
        if context.method_name != "__call__":
            return output
        if macs is not None and not self._is_free(module):
            self.macs += macs(module, args, output)
        if hasattr(kind, "scan_size"):
            self.macs += self._scan_macs(module.scan_size(args))
        return output

    def check(self, owners: set[tuple[str, ...]]) -> None:
        """Raises ValueError if a module with parameters of its own does not state its cost."""
        unknown = sorted(owners - self._stated)
        if unknown:
            kinds = {self._types[path].__name__ for path in unknown if path in self._types}
            raise ValueError(
                f"nobody states the multiply-accumulates of {', '.join(sorted(kinds))}, whose "
                f"parameters are at {['/'.join(path) for path in unknown[:_SHOWN]]}; give the "
                "module a method macs(self, inputs, output) -> int, 0 where the literature counts "
                "none"
            )

    def _scan_macs(self, scan: ScanSize) -> int:
        """All paths of a scan, without the projections, which are linear layers inside it."""
        L = scan.tokens
        D = scan.channels
        gate = L * D if scan.gated else 0
        return scan.paths * (SCAN_FORMULAS[self._scan_formula](L, D, scan.states) + gate)

    def _is_free(self, module: nn.Module) -> bool:
        further_path = any(re.fullmatch(r"path_[1-9]\d*", name) for name in module.path)
        return self._scan_formula == "hand" and further_path


def _conv_macs(module: nn.Conv, inputs: tuple[Any, ...], output: Any) -> int:
    kernel = (module.kernel_size,) if isinstance(module.kernel_size, int) else module.kernel_size
    return output.size * math.prod(kernel) * inputs[0].shape[-1] // module.feature_group_count


def _dense_macs(module: nn.Dense, inputs: tuple[Any, ...], output: Any) -> int:
    return output.size * inputs[0].shape[-1]


def _no_macs(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> int:
    return 0


# Modules of flax, for models that use them.
_FLAX_MACS: dict[type[nn.Module], Callable[..., int]] = {
    nn.Conv: _conv_macs,
    nn.Dense: _dense_macs,
    nn.LayerNorm: _no_macs,
    nn.RMSNorm: _no_macs,
    nn.GroupNorm: _no_macs,
    nn.BatchNorm: _no_macs,
}
