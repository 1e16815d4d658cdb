# SPDX-License-Identifier: Apache-2.0
"""Activation functions by name."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from mambaout_jax.kernels.gelu import gelu

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "squared_relu": lambda x: jnp.square(jax.nn.relu(x)),
}


def activation(name: str) -> Callable[[Array], Array]:
    """The activation function called `name`.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation={name!r} is not known; allowed are {sorted(ACTIVATIONS)}")
    return ACTIVATIONS[name]
