# SPDX-License-Identifier: Apache-2.0
"""Kernels that exist on some platforms only, and say so on the others."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir


def run_where_lowered(bodies: dict[str, Callable], message: str, *args):
    """Runs the body of the platform that the program is lowered for.

    Args:
        bodies: by platform (`"cuda"`, `"tpu"`, …), functions of `args` with results of the same
            shapes and dtypes.
        message: of the error below; `{platforms}` in it stands for those of the program.
        *args: arrays.

    Raises:
        ValueError: where the program is lowered, for a platform without a body.
    """

    def refuse(*args):
        nothing = _refuse.bind(message=message)
        outs = jax.eval_shape(next(iter(bodies.values())), *args)
        return jax.tree.map(lambda out: jnp.full(out.shape, nothing, out.dtype), outs)

    return lax.platform_dependent(*args, **bodies, default=refuse)


# Every branch of platform_dependent is traced, whatever the platform, so that an error can only be
# raised where the branch is lowered.
_refuse = Primitive("refuse_platform")
_refuse.def_abstract_eval(lambda *, message: jax.core.ShapedArray((), jnp.float32))
_refuse.def_impl(lambda **message: jax.jit(functools.partial(_refuse.bind, **message))())


def _refuse_lowering(ctx, *, message):
    raise ValueError(message.format(platforms=" and ".join(ctx.module_context.platforms)))


mlir.register_lowering(_refuse, _refuse_lowering)
