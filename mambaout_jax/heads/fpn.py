# SPDX-License-Identifier: Apache-2.0
"""Feature pyramid: coarse maps, rich in meaning, added to fine ones (Lin et al., CVPR 2017)."""

import flax.linen as nn
import jax.numpy as jnp
from flax.typing import Dtype
from jaxtyping import Array, Float

from mambaout_jax.kernels.dispatch import numpy_for
from mambaout_jax.layers.conv import Conv
from mambaout_jax.layers.initializers import xavier_init
from mambaout_jax.layers.precision import compute_dtype


class FPN(nn.Module):
    """Maps of strides 4, 8, 16, 32 to five of one width: P2 to P5 of those strides and P6 of 64.

        M5 = lateral(C5),  Mi = lateral(Ci) + enlarged M(i+1),  Pi = output(Mi),  P6 = P5[::2, ::2]

    with convolutions 1x1 and 3x3, without norms or activations. As mmdet 3.3.0's `FPN` with
    `num_outs=5`.

    Attributes:
        channels: of every map that comes out.
        dtype: dtype of the computation; float32 means at least float32.
    """

    channels: int = 256
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, maps: tuple[Float[Array, "B _ _ _"], ...]
    ) -> tuple[Float[Array, "B _ _ F"], ...]:
        options = {"dtype": compute_dtype(self.dtype), "kernel_init": xavier_init}
        merged = []
        for i in reversed(range(len(maps))):
            lateral = Conv(self.channels, 1, **options, name=f"lateral_{i}")(maps[i])
            if merged:
                lateral = lateral + enlarge(merged[0], (lateral.shape[1], lateral.shape[2]))
            merged.insert(0, lateral)
        outputs = [
            Conv(self.channels, 3, padding=1, **options, name=f"output_{i}")(x)
            for i, x in enumerate(merged)
        ]
        return (*outputs, outputs[-1][:, ::2, ::2])


def enlarge(x: Float[Array, "B H W C"], size: tuple[int, int]) -> Float[Array, "B _ _ C"]:
    """A map at a larger size, each new pixel i that of floor(i · old size / new size).

    As `torch.nn.functional.interpolate(mode="nearest")`.
    """
    for axis, new in zip((1, 2), size, strict=True):
        old = x.shape[axis]
        if new == 2 * old:  # its gradient is a sum and not a scatter
            x = jnp.repeat(x, 2, axis)
        elif new != old:
            x = x.take(numpy_for(new, old).arange(new) * old // new, axis=axis)
    return x
