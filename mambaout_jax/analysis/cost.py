# SPDX-License-Identifier: Apache-2.0
"""Parameters and multiply-accumulates of a model, from shapes alone: nothing is computed.

The count is the literature's: one multiply-accumulate per kernel tap of every output of a
convolution, taps that fall on padding included, and per weight of a linear layer; norms,
activations and pooling are free. (XLA's own cost analysis leaves padded taps out and counts
additions and multiplications apart, so it does not give the published figures.)
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from mambaout_jax.layers import Dense, DepthwiseConv


class Cost(NamedTuple):
    """Attributes:
    parameters: learned numbers, frozen tables included.
    macs: multiply-accumulates of one image.
    """

    parameters: int
    macs: int


def count(model: nn.Module, image_shape: tuple[int, ...]) -> Cost:
    """Counts the parameters of a model and the multiply-accumulates of one image.

    Args:
        model: any linen module that maps images (1, H, W, C).
        image_shape: (H, W, C).

    Raises:
        ValueError: `image_shape` is not (H, W, C).
    """
    if len(image_shape) != 3:
        raise ValueError(f"image_shape={image_shape} must be (H, W, C), without a batch axis")
    counter = _Counter()
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    with nn.intercept_methods(counter):
        variables = jax.eval_shape(model.init, jax.random.key(0), image)
    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variables["params"]))
    return Cost(parameters, counter.macs)


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

    def __init__(self) -> None:
        self.macs = 0

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
        if counts is not None and context.method_name == "__call__":
            self.macs += counts(module, args[0].shape, outputs.shape)
        return outputs


def _conv_macs(module: nn.Conv, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> int:
    kernel = (module.kernel_size,) if isinstance(module.kernel_size, int) else module.kernel_size
    return math.prod(outputs) * math.prod(kernel) * inputs[-1] // module.feature_group_count


def _depthwise_macs(
    module: DepthwiseConv, inputs: tuple[int, ...], outputs: tuple[int, ...]
) -> int:
    return math.prod(outputs) * module.kernel_size**2


def _dense_macs(module: Dense | nn.Dense, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> int:
    return math.prod(outputs) * inputs[-1]


_MACS: dict[type[nn.Module], Callable[..., int]] = {
    nn.Conv: _conv_macs,
    Dense: _dense_macs,
    nn.Dense: _dense_macs,
    DepthwiseConv: _depthwise_macs,
}
