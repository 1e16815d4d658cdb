# SPDX-License-Identifier: Apache-2.0
"""Which implementation of an operation runs: by name, by platform, or the plain one."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

# A part of the key of every cache of traced and compiled programs, so that a jitted function which
# has run outside of `plain_implementations` is traced again inside.
_plain = jax.make_user_context(default_value=False)


@contextlib.contextmanager
def plain_implementations() -> Iterator[None]:
    """Within it, every operation is traced in its plain form.

    Plain forms consist of ordinary JAX operations: they can be differentiated forwards, backwards
    and any number of times, and exported, where the fast forms have a gradient of their own and
    can be differentiated in reverse mode only. The values are the same up to rounding.

    What counts is where a function is traced. Inside, `implementation="auto"` means the plain form
    on every platform; naming an implementation that is not differentiable in every way is an error.
    """
    with _plain(True):
        yield


@dataclasses.dataclass(frozen=True)
class Operation:
    """An operation and its implementations, which take the same arguments and return the same.

    Attributes:
        name: the name of the public function, for messages.
        bodies: the implementations by the word that selects them.
        auto: what `"auto"` runs: one of the bodies, or one for each platform (`by_platform`).
        plain: words of the implementations that can be differentiated in every way; the first is
            what `"auto"` runs within `plain_implementations`.
    """

    name: str
    bodies: Mapping[str, Callable]
    auto: Callable
    plain: tuple[str, ...]

    @property
    def implementations(self) -> tuple[str, ...]:
        """The words that `implementation=` may be."""
        return ("auto", *self.bodies)

    def run(self, implementation: str, *args: Any, **options: Any) -> Any:
        """Runs an implementation.

        Args:
            implementation: one of `implementations`.
            *args: trees of arrays.
            **options: hashable values that a program is specialised to.

        Raises:
            ValueError: an unknown word, or within `plain_implementations` one that is not plain.
        """
        self._check(implementation)
        args = vary_alike(args)
        if implementation != "auto":
            return self.bodies[implementation](*args, **options)
        body = self.bodies[self.plain[0]] if _plain.value else self.auto
        return body(*args, **options)

    def _check(self, implementation):
        if implementation not in self.implementations:
            raise ValueError(
                f"{self.name} has no implementation={implementation!r}; "
                f"allowed are {', '.join(map(repr, self.implementations))}"
            )
        if _plain.value and implementation not in ("auto", *self.plain):
            raise ValueError(
                f"{self.name}(implementation={implementation!r}) can be differentiated in reverse "
                "mode only and has no second form for plain=True or plain_implementations(); "
                f"allowed there are {', '.join(map(repr, ('auto', *self.plain)))}"
            )


def vary_alike(arrays: Any, like: Any = ()) -> Any:
    """The arrays of a tree, each marked as varying over all axes that any of them varies over.

    Inside `jax.shard_map` values are the same on all devices of a mesh axis, or vary over it, and
    loops and hand-written gradients do not mix the two. Elsewhere nothing changes.

    Args:
        arrays: tree of arrays.
        like: tree of arrays whose axes count too.
    """

    def varying(x):
        return jax.typeof(x).manual_axis_type.varying

    axes = frozenset().union(*map(varying, jax.tree.leaves((arrays, like))))

    def mark(x):
        missing = tuple(sorted(axes - varying(x)))
        return lax.pcast(x, missing, to="varying") if missing else x

    return jax.tree.map(mark, arrays)


def is_known(*sizes: Any) -> bool:
    """Whether all sizes of an array are numbers; `jax.export` may have symbols in their place."""
    return all(isinstance(size, int) for size in sizes)


def numpy_for(*sizes: Any) -> Any:
    """The module that computes tables of such sizes.

    It is numpy, whose tables are constants of the program, or where a size is a symbol of
    `jax.export` jax.numpy, whose tables the program computes when it runs.
    """
    return np if is_known(*sizes) else jnp


def differentiable_once(rule: Callable, message: str) -> Callable:
    """A rule of a `custom_vjp`, which cannot be differentiated again and says so.

    Args:
        rule: its forward or backward pass, of arrays.
        message: text of the ValueError where a second derivative is asked for, in either mode.
    """
    guarded = jax.custom_jvp(rule)

    @guarded.defjvp
    def _refuse_second(primals, tangents):
        raise ValueError(message)

    return guarded


def by_platform(**bodies: Callable) -> Callable:
    """A function that runs the body of the platform that the program is lowered for.

    It follows the program and not the default device, so that the choice is right in ahead-of-time
    compilation and export, also for several platforms at once. Positional arguments are trees of
    arrays, keyword arguments hashable options. Differentiated automatically it keeps what each of
    the bodies would keep: where that is more than the arguments, let a `custom_vjp` surround it.

    Args:
        **bodies: by platform (`cpu`, `cuda`, `tpu`, …), and as `default` for the others.
    """

    # Jitted so that the layers of a model which agree in shape are traced once.
    @functools.partial(jax.jit, static_argnums=0)
    def run(options, *args):
        specialised = {
            platform: functools.partial(body, **dict(options)) for platform, body in bodies.items()
        }
        return lax.platform_dependent(*args, **specialised)

    return lambda *args, **options: run(tuple(options.items()), *args)


def deferred(body: Callable, like: Callable) -> Callable:
    """A body of `by_platform` that is traced only where a program is lowered for its platform.

    The bodies of all platforms are traced in every program. One that takes long to trace, such as
    a Pallas kernel, would cost the programs that never run it.

    Args:
        body: of trees of arrays and hashable options, to a tree of arrays. It cannot be
            differentiated: let a `custom_vjp` surround `by_platform`.
        like: takes the same and returns arrays of the same shapes and dtypes. A program that is
            lowered for several platforms at once runs it in place of `body`.
    """

    def run(*args, **options):
        leaves, tree = jax.tree.flatten(args)

        def of_leaves(function, *leaves):
            return function(*jax.tree.unflatten(tree, leaves), **options)

        shown, shapes = jax.make_jaxpr(functools.partial(of_leaves, like), return_shape=True)(
            *leaves
        )
        found = _deferred.bind(
            *leaves,
            body=functools.partial(of_leaves, body),
            like=functools.partial(of_leaves, like),
            results=tuple(shown.out_avals),
        )
        return jax.tree.unflatten(jax.tree.structure(shapes), found)

    return run


def plain_gradients(function: Callable) -> Callable:
    """The backward pass of a `custom_vjp` that is the ordinary one of `function`.

    Args:
        function: of arrays, and options by keyword.

    Returns:
        (arguments of `function`, gradient of its result, options) to the arguments' gradients.
    """

    def gradients(arrays, dy, **options):
        return jax.vjp(functools.partial(function, **options), *arrays)[1](dy)

    return gradients


def run_where_lowered(bodies: Mapping[str, Callable], message: str, *args: jax.Array) -> Any:
    """Runs the body of the platform that the program is lowered for.

    Args:
        bodies: by platform (`"cuda"`, `"tpu"`, …), functions of `args` with results of the same
            shapes and dtypes.
        message: the text of the error below; `{platforms}` in it stands for those of the program.
        *args: arrays.

    Raises:
        ValueError: where the program is lowered, for a platform without a body.
    """

    def refuse(*args):
        nothing = _refuse.bind(message=message)
        outs = jax.eval_shape(next(iter(bodies.values())), *args)
        return jax.tree.map(lambda out: jnp.full(out.shape, nothing, out.dtype), outs)

    return lax.platform_dependent(*args, **bodies, default=refuse)


_deferred = Primitive("deferred")
_deferred.multiple_results = True
_deferred.def_abstract_eval(lambda *args, results, **_: results)
_deferred.def_impl(lambda *args, **of: jax.jit(functools.partial(_deferred.bind, **of))(*args))


def _lower_deferred(ctx, *args, body, like, results):
    chosen = body if len(ctx.module_context.platforms) == 1 else like
    run = mlir.lower_fun(lambda *args: jax.tree.leaves(chosen(*args)), multiple_results=True)
    return run(ctx, *args)


def _batch_deferred(args, axes, *, body, like, results):
    size = next(x.shape[axis] for x, axis in zip(args, axes, strict=True) if axis is not None)
    body, like = (jax.vmap(function, in_axes=axes) for function in (body, like))
    wider = tuple(x.update(shape=(size, *x.shape)) for x in results)
    found = _deferred.bind(*args, body=body, like=like, results=wider)
    return found, (0,) * len(found)


mlir.register_lowering(_deferred, _lower_deferred)
batching.primitive_batchers[_deferred] = _batch_deferred

# Every branch of platform_dependent is traced, whatever the platform, so that an error can only be
# raised where the branch is lowered.
_refuse = Primitive("refuse_platform")
_refuse.def_abstract_eval(lambda *, message: jax.core.ShapedArray((), jnp.float32))
_refuse.def_impl(lambda **message: jax.jit(functools.partial(_refuse.bind, **message))())


def _refuse_lowering(ctx, *, message):
    raise ValueError(message.format(platforms=" and ".join(ctx.module_context.platforms)))


mlir.register_lowering(_refuse, _refuse_lowering)
