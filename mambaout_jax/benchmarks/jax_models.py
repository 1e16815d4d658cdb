# SPDX-License-Identifier: Apache-2.0
"""Our side of the comparison of whole models: compiled calls, and what compiling them planned."""

import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mambaout_jax.models import create_model
from mambaout_jax.runtime.compiler_options import to_run_fast
from mambaout_jax.weights.convert import from_torch, model_variables

OURS = "ours"
LEARNING_RATE, WEIGHT_DECAY = 1e-3, 0.05  # of AdamW, on both sides


def has_scan(name: str, image_size: int) -> bool:
    """Whether a model runs a selective scan; nothing is computed.

    Raises:
        ValueError: there is no such model, or it does not take images of that size.
    """
    found = set()

    def note(next_function, args, kwargs, context):
        found.add(hasattr(type(context.module), "scan_size"))
        return next_function(*args, **kwargs)

    with nn.intercept_methods(note):
        model_variables(create_model(name, image_size=image_size), image_size)
    return True in found


class Ours:
    """One model, and once more for each further implementation of its scan, on the same weights.

    Attributes:
        logits: what each contender makes of the images, (B, 1000), by its title: "ours", and "ours,
            <scan>".
    """

    def __init__(
        self,
        name: str,
        images: np.ndarray,
        labels: np.ndarray,
        dtype: str,
        *,
        scans: Sequence[str] = (),
        state_dict: Mapping[str, Any] | None = None,
    ):
        """Compiles inference.

        Args:
            name: one of `list_models()`.
            images: float32 (B, H, W, 3) of one height and width.
            labels: (B,).
            dtype: of the computation.
            scans: words for `scan_implementation`.
            state_dict: weights of a PyTorch model, None: random ones.
        """
        size = images.shape[1]
        options = {"image_size": size, "dtype": jnp.dtype(dtype), "drop_path": 0.0}
        self._models = {OURS: create_model(name, **options)}
        for scan in scans:
            model = create_model(name, scan_implementation=scan, **options)
            self._models[f"{OURS}, {scan}"] = model
        self._inputs = (jnp.asarray(images), jnp.asarray(labels))
        if state_dict is None:
            init = jax.jit(self._models[OURS].init)
            self._variables = init(jax.random.key(0), self._inputs[0])
        else:
            self._variables = jax.device_put(from_torch(name, state_dict, image_size=size))
        self._inference: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {}
        for title, model in self._models.items():
            arguments = (self._variables, self._inputs[0])
            compiled, plan = compile_call(model.apply, arguments)
            self._inference[title] = functools.partial(compiled, *arguments), plan
        self.logits = {
            title: np.asarray(call(), np.float32) for title, (call, _) in self._inference.items()
        }

    def calls(self, passed: str, plan: dict[str, dict[str, Any]]) -> dict[str, Callable[[], Any]]:
        """A compiled call of each contender, by title.

        Args:
            passed: "inference" or "training".
            plan: `compile_seconds` and `temp_bytes` are written into it by title, where known.
        """
        make = self._inference.__getitem__ if passed == "inference" else self._training
        calls = {}
        for title in self._models:
            calls[title], planned = make(title)
            for key, value in planned.items():
                plan[key][title] = value
        return calls

    def _training(self, title: str) -> tuple[Callable[[], Any], dict[str, Any]]:
        """Training steps that go on from one another, each contender's from the same weights."""
        model = self._models[title]
        optimizer = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        rest = dict(jax.tree.map(jnp.copy, self._variables))
        params = rest.pop("params")
        state = [params, rest, optimizer.init(params)]

        def loss(params, rest, images, labels):
            logits, rest = model.apply(
                {"params": params, **rest}, images, train=True, mutable=list(rest)
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return losses.mean(), rest

        def step(params, rest, moments, images, labels):
            gradients, rest = jax.grad(loss, has_aux=True)(params, rest, images, labels)
            updates, moments = optimizer.update(gradients, moments, params)
            return optax.apply_updates(params, updates), rest, moments

        compiled, plan = compile_call(step, (*state, *self._inputs), donate=(0, 1, 2))

        def train():
            state[:] = compiled(*state, *self._inputs)
            return state

        return train, plan


def compile_call(
    function: Callable[..., Any], arguments: tuple[Any, ...], donate: tuple[int, ...] = ()
) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The compiled function, `compile_seconds`, and `temp_bytes` where the compiler tells them."""
    options = to_run_fast(jax.tree.leaves(arguments)[0].device.platform)
    start = time.perf_counter()
    jitted = jax.jit(function, donate_argnums=donate, compiler_options=options)
    compiled = jitted.lower(*arguments).compile()
    plan: dict[str, Any] = {"compile_seconds": time.perf_counter() - start}
    memory = compiled.memory_analysis()
    if memory is not None:
        plan["temp_bytes"] = memory.temp_size_in_bytes
    return compiled, plan
