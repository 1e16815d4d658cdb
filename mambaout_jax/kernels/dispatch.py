# SPDX-License-Identifier: Apache-2.0
"""Which implementation of an operation runs: by name, by platform, or the plain one."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir

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
    """An operation and its implementations, which take the same arrays and return the same.

    Attributes:
        name: of the public function, for messages.
        bodies: the implementations by the word that selects them.
        fastest: the word that `"auto"` stands for by platform (`"cpu"`, `"cuda"`, `"tpu"`, …), and
            as `"default"` for all other platforms.
        plain: words of the implementations that can be differentiated in every way; the first is
            what `"auto"` stands for within `plain_implementations`.
    """

    name: str
    bodies: Mapping[str, Callable]
    fastest: Mapping[str, str]
    plain: tuple[str, ...]

    @property
    def implementations(self) -> tuple[str, ...]:
        """The words that `implementation=` may be."""
        return ("auto", *self.bodies)

    def check(self, implementation: str) -> None:
        """Refuses an implementation that does not exist or may not run here.

        Raises:
            ValueError: an unknown word, or one without a plain form in `plain_implementations`.
        """
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

    def run(self, implementation: str, *args: Any, **options: Any) -> Any:
        """Runs an implementation. `"auto"` asks for the platform that the program is lowered for.

        Args:
            implementation: one of `implementations`.
            *args: trees of arrays.
            **options: Python values that a program is specialised to.

        Raises:
            ValueError: see `check`.
        """
        self.check(implementation)
        bodies = {
            word: functools.partial(body, **options) if options else body
            for word, body in self.bodies.items()
        }
        if implementation != "auto":
            return bodies[implementation](*args)
        if _plain.value:
            return bodies[self.plain[0]](*args)
        words = set(self.fastest.values())
        if len(words) == 1:
            return bodies[words.pop()](*args)
        platforms = {platform: bodies[word] for platform, word in self.fastest.items()}
        return lax.platform_dependent(*args, **platforms)


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


# Every branch of platform_dependent is traced, whatever the platform, so that an error can only be
# raised where the branch is lowered.
_refuse = Primitive("refuse_platform")
_refuse.def_abstract_eval(lambda *, message: jax.core.ShapedArray((), jnp.float32))
_refuse.def_impl(lambda **message: jax.jit(functools.partial(_refuse.bind, **message))())


def _refuse_lowering(ctx, *, message):
    raise ValueError(message.format(platforms=" and ".join(ctx.module_context.platforms)))


mlir.register_lowering(_refuse, _refuse_lowering)
