# SPDX-License-Identifier: Apache-2.0
"""The mixer of VMamba and of what is built on it: projections, convolution and SSM over a map."""

import flax.linen as nn
import jax
from flax.typing import Dtype
from jaxtyping import Array, Float

from mambaout_jax.layers.conv import DepthwiseConv
from mambaout_jax.layers.linear import Dense
from mambaout_jax.layers.norms import LayerNorm
from mambaout_jax.mixers.mamba import project_in, project_out
from mambaout_jax.mixers.routes import Path
from mambaout_jax.mixers.ssm import MapSSM, dt_rank_of

EPSILON = 1e-5


class SS2D(nn.Module):
    """2D selective scan (Liu et al. 2024, VMamba, Section 4.3 and Figure 3 (d)).

        Y = out_proj(norm(ssm(silu(conv(in_proj(X))))))
        x, z = split(in_proj(X));  Y = out_proj(norm(ssm(silu(conv(x)))) · silu(z))    if gated

    Attributes:
        paths: walks over the map, see `mixers.routes`.
        expand: width of the SSM over that of the block.
        state_size: states of the SSM; its dt_rank is a sixteenth of the block's width.
        scan_implementation: see `kernels.selective_scan`.
        gated: whether there is a gate; the convolution then has a bias.
        dtype: dtype of the computation, None to promote.
        weigh: applied to the result of each path before they are added, None: nothing is.
    """

    paths: tuple[Path, ...]
    expand: int
    state_size: int
    scan_implementation: str
    gated: bool
    dtype: Dtype | None
    weigh: nn.Module | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        width, dtype = x.shape[-1], self.dtype
        z = None
        if self.gated:
            x, z = project_in(x, self.expand, dtype)
        else:
            x = Dense(self.expand * width, use_bias=False, dtype=dtype, name="in_proj")(x)
        x = DepthwiseConv(3, use_bias=self.gated, dtype=dtype, name="conv")(x)
        y = MapSSM(
            self.paths,
            self.state_size,
            dt_rank_of(width),
            self.scan_implementation,
            dtype,
            self.weigh,
            name="ssm",
        )(jax.nn.silu(x))
        y = LayerNorm(EPSILON, dtype=dtype, name="norm")(y)
        return project_out(y if z is None else y * jax.nn.silu(z), width, dtype)
