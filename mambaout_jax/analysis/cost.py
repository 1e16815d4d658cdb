# SPDX-License-Identifier: Apache-2.0
"""Parameters and multiply-accumulates of a model, from shapes alone: nothing is computed.

The count is the literature's: one multiply-accumulate per kernel tap of every output of a
convolution, taps that fall on padding included, per weight of a linear layer, and per pair of
tokens and channel of the two matrix products of attention, masked pairs included; norms,
activations, softmax and pooling are free. (XLA's own cost analysis leaves padded taps out and
counts additions and multiplications apart, so it does not give the published figures.)

A selective scan is counted by one of two formulas that papers use, see `SCAN_FORMULAS`.
"""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mambaout_jax.layers.linear import Dense, DepthwiseConv, JoinDense, SplitDense, StridedConv
from mambaout_jax.mixers.attention import MultiHeadSelfAttention
from mambaout_jax.mixers.conv import CausalConv
from mambaout_jax.mixers.routes import paths_of
from mambaout_jax.mixers.ssm import SSM, MapSSM

# Multiply-accumulates of one scan over L tokens of D channels with N states.
#   parallel  9·L·D·N for the recurrence and L·D for the skip, the most used; a gate is L·D more
#   hand      5·L·D·N + 2·L·D, of LocalMamba's and Vim's code; there the projections of the first
#             path are counted, and those of further paths are not
SCAN_FORMULAS: dict[str, Callable[[int, int, int], int]] = {
    "parallel": lambda L, D, N: 9 * L * D * N + L * D,
    "hand": lambda L, D, N: 5 * L * D * N + 2 * L * D,
}


class Cost(NamedTuple):
    """Attributes:
    parameters: learned numbers, frozen tables included.
    macs: multiply-accumulates of one image.
    """

    parameters: int
    macs: int


def count(model: nn.Module, image_shape: tuple[int, ...], scan_formula: str = "parallel") -> Cost:
    """Counts the parameters of a model and the multiply-accumulates of one image.

    Args:
        model: any linen module that maps images (1, H, W, C).
        image_shape: (H, W, C).
        scan_formula: a key of `SCAN_FORMULAS`.

    Raises:
        ValueError: `image_shape` is not (H, W, C), or there is no such formula.
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
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    return Cost(parameters, counter.macs)


def block_flops(L: int, D: int) -> int:
    """Operations of a transformer block: 24·D²·L + 4·D·L² (paper, Eq. 6), two per MAC.

    Args:
        L: tokens.
        D: channels.
    """
    return 24 * D * D * L + 4 * D * L * L


def length_ratio(L: int, D: int) -> float:
    """L / (6·D): above 1 attention costs more than all that is linear in L, and the sequence is
    long in the paper's sense (Eq. 6 there; 2,304 tokens at ViT-S's width, 4,608 at ViT-B's).
    """
    return L / (6 * D)


def activation_bytes(model: nn.Module, image_shape: tuple[int, ...], batch_size: int) -> int:
    """Bytes that a forward pass in training mode keeps for the backward pass.

    These are the residuals as JAX traces them, so an upper estimate: XLA fuses some away and needs
    some space for its own work. Parameters are not counted.

    Args:
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
    """Interceptor that adds up the layers it knows while a model is traced."""

    def __init__(self, scan_formula: str) -> None:
        self.macs = 0
        self._scan_formula = scan_formula

    def __call__(
        self,
        next_function: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        module = context.module
        counts = next((rule for kind, rule in _MACS.items() if isinstance(module, kind)), None)
        outputs = next_function(*args, **kwargs)
        if context.method_name != "__call__":
            return outputs
        if isinstance(module, SSM | MapSSM):
            self.macs += self._scan_macs(module, args)
        elif counts is not None and not self._is_free(module):
            self.macs += counts(module, args, outputs)
        return outputs

    def _scan_macs(self, module: SSM | MapSSM, args: tuple[Any, ...]) -> int:
        """Of all paths, without the projections, which are linear layers inside."""
        shape = args[0].shape
        L, D = math.prod(shape[:-1]), shape[-1]
        paths = len(paths_of(module.routes)) if isinstance(module, MapSSM) else 1
        gate = L * D if len(args) > 1 else 0
        return paths * SCAN_FORMULAS[self._scan_formula](L, D, module.state_size) + gate

    def _is_free(self, module: nn.Module) -> bool:
        further_path = any(re.fullmatch(r"path_[1-9]\d*", name) for name in module.path)
        return self._scan_formula == "hand" and further_path


def _conv_macs(module: nn.Conv, args: tuple[Any, ...], output: Any) -> int:
    kernel = (module.kernel_size,) if isinstance(module.kernel_size, int) else module.kernel_size
    return output.size * math.prod(kernel) * args[0].shape[-1] // module.feature_group_count


def _strided_conv_macs(module: StridedConv, args: tuple[Any, ...], output: Any) -> int:
    return output.size * 3 * 3 * args[0].shape[-1]


def _depthwise_macs(module: DepthwiseConv, args: tuple[Any, ...], output: Any) -> int:
    return output.size * module.kernel_size**2


def _causal_conv_macs(module: CausalConv, args: tuple[Any, ...], output: Any) -> int:
    return output.size * module.kernel_size


def _dense_macs(module: Dense | nn.Dense, args: tuple[Any, ...], output: Any) -> int:
    return output.size * args[0].shape[-1]


def _split_dense_macs(module: SplitDense, args: tuple[Any, ...], outputs: Any) -> int:
    return args[0].size * sum(module.features)


def _join_dense_macs(module: JoinDense, args: tuple[Any, ...], output: Any) -> int:
    return sum(part.size for part in args) * module.features


def _attention_macs(module: MultiHeadSelfAttention, args: tuple[Any, ...], output: Any) -> int:
    """Without the projections, which are linear layers inside."""
    return 2 * output.size * args[0].shape[1]


_MACS: dict[type[nn.Module], Callable[..., int]] = {
    nn.Conv: _conv_macs,
    StridedConv: _strided_conv_macs,
    Dense: _dense_macs,
    nn.Dense: _dense_macs,
    SplitDense: _split_dense_macs,
    JoinDense: _join_dense_macs,
    DepthwiseConv: _depthwise_macs,
    CausalConv: _causal_conv_macs,
    MultiHeadSelfAttention: _attention_macs,
}
