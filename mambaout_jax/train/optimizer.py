# SPDX-License-Identifier: Apache-2.0
"""AdamW and its schedule, as one flat optax chain; layers that learn slower, and frozen ones."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from mambaout_jax.config import Config, Resolved
from mambaout_jax.models import ParameterRules

LayerOf = Callable[[str], tuple[float, int] | None]


def make_schedule(config: Config, resolved: Resolved) -> optax.Schedule:
    """Learning rate of update 0, 1, ...: linear warm-up, then a decay, then the final rate.

    With p, from 0 to 1, the share of the decay that is over, "cosine" is final + (peak - final)
    (1 + cos πp) / 2, "linear" is final + (peak - final) (1 - p), and "steps" is the peak times
    decay_factor for each milestone passed, whatever p. `warmup_reaches_peak` makes the numbers of
    mmengine's LinearLR, whose warm-up of n updates rises in n - 1 steps.

    Args:
        config: the section `schedule`.
        resolved: durations in updates and the peak rate.
    """
    peak, final = resolved.learning_rate, config.final_learning_rate
    rise_from, warmup = config.warmup_learning_rate, resolved.warmup_steps
    risen = warmup - 1 if config.warmup_reaches_peak else warmup
    end = resolved.total_steps - resolved.cooldown_steps
    start = warmup if config.warmup_prefix else 0
    hold = resolved.steps_per_epoch if config.per_epoch else 1

    def decayed(t: jax.Array) -> jax.Array:
        if config.decay == "steps":
            passed = sum((t >= milestone).astype(int) for milestone in resolved.milestones)
            return peak * config.decay_factor ** jnp.asarray(passed, float)
        duration = max(1, end - start)
        if config.decay == "linear":
            return final + (peak - final) * jnp.clip((end - t) / duration, 0, 1)
        progress = jnp.clip((t - start) / duration, 0, 1)
        # cos²(x / 2) is (1 + cos x) / 2 without its cancellation near the final rate.
        return final + (peak - final) * jnp.cos(jnp.pi / 2 * progress) ** 2

    def schedule(step: ArrayLike) -> jax.Array:
        t = jnp.asarray(step) // hold * hold
        rise = rise_from + (peak - rise_from) * t / max(1, risen)
        return jnp.where(t < warmup, rise, decayed(t))

    return schedule


def make_optimizer(
    config: Config, schedule: optax.Schedule, rules: ParameterRules
) -> optax.GradientTransformation:
    """Clipping by global norm, Adam, decoupled weight decay (Loshchilov and Hutter 2019).

    With `layer_decay` below 1 the rate of a parameter, and with it its weight decay, is multiplied
    by layer_decay^(last layer - its layer); see `layer_depths`. What `freeze` names has no moments,
    does not count in the norm that is clipped, and keeps its bits.

    Args:
        config: the section `optimizer`; its `decay_rules` come before those of the family.
        schedule: update count to learning rate.
        rules: which parameters decay, and to which layer each belongs.

    Raises (when the optimiser meets the parameters):
        ValueError: as `decay_mask`, `layer_depths`, `frozen_mask`.
    """
    steps = [
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        optax.scale_by_adam(config.b1, config.b2, config.epsilon),
        optax.add_decayed_weights(
            config.weight_decay,
            mask=lambda params: decay_mask(params, (*config.decay_rules, *rules.decay)),
        ),
        optax.scale_by_learning_rate(schedule),
    ]
    if config.layer_decay != 1:
        steps.append(_scale_by_layer(config.layer_decay, rules.layer_of))
    trained = optax.chain(*steps)
    if not config.freeze:
        return trained

    def labels(params):
        mask = frozen_mask(params, config.freeze)
        return jax.tree.map(lambda frozen: "frozen" if frozen else "trained", mask)

    return optax.partition({"trained": trained, "frozen": _stay()}, labels)


def decay_mask(params: Any, rules: tuple[tuple[str, bool], ...]) -> Any:
    """Which parameters decay: for each, what the first rule found in its path says.

    Args:
        params: nested dicts.
        rules: (regular expression, decays?) in order; paths look like
            "/backbone/stage_0_block_00/fc1/kernel".

    Raises:
        ValueError: a parameter that no rule covers.
    """
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    mask = {}
    uncovered = []
    for path in flat:
        found = [decays for pattern, decays in rules if re.search(pattern, f"/{path}")]
        mask[path] = bool(found and found[0])
        if not found:
            uncovered.append(path)
    if uncovered:
        raise ValueError(
            f"no rule says whether these parameters decay: {uncovered}; add a (regular "
            "expression, True or False) for them to optimizer.decay_rules in the config file, or "
            "to DECAY of the model's family"
        )
    return flax.traverse_util.unflatten_dict(mask, sep="/")


def layer_depths(params: Any, layer_of: LayerOf) -> Any:
    """The layer of each parameter, counted from the image.

    Layer 0 is what stands before the first block. Each block is a layer of its own, together with
    the downsampling in front of it. All that is outside the backbone is the last layer.

    Args:
        params: nested dicts, {"backbone": ..., "head": ...}.
        layer_of: path below the backbone to stage and block, see `backbone.layer_of`.

    Raises:
        ValueError: a part of the backbone of which the name does not tell where it stands.
    """
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    inside = {path: path.removeprefix("backbone/") for path in flat if path.startswith("backbone/")}
    layers = {
        path: (math.inf, 0) if path not in inside else layer_of(inside[path]) for path in flat
    }
    unknown = [path for path, layer in layers.items() if layer is None]
    if unknown:
        raise ValueError(
            f"optimizer.layer_decay cannot tell to which layer these parameters belong: {unknown}; "
            "set it to 1, or give the model's family a `layer_of` that knows them"
        )
    order: list[Any] = sorted(set(layers.values()))
    depths = {layer: depth for depth, layer in enumerate(order)}
    return flax.traverse_util.unflatten_dict(
        {path: depths[layer] for path, layer in layers.items()}, sep="/"
    )


def frozen_mask(params: Any, patterns: Sequence[str]) -> Any:
    """Which parameters are frozen: those in whose path one of the patterns is found.

    Args:
        params: nested dicts.
        patterns: regular expressions; paths look like "/backbone/stage_0_block_00/fc1/kernel".

    Raises:
        ValueError: a pattern that is not a regular expression or is found nowhere, or nothing is
            left to train.
    """
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    mask = dict.fromkeys(flat, False)
    for pattern in patterns:
        try:
            found = [path for path in flat if re.search(pattern, f"/{path}")]
        except re.error as error:
            raise ValueError(
                f"optimizer.freeze: {pattern!r} is not a regular expression: {error}"
            ) from error
        if not found:
            raise ValueError(
                f"optimizer.freeze: {pattern!r} is found in no parameter; their paths look like "
                f"{[f'/{path}' for path in list(flat)[:: max(1, len(flat) // 4)]]}"
            )
        mask.update(dict.fromkeys(found, True))
    if all(mask.values()):
        raise ValueError(
            f"optimizer.freeze={tuple(patterns)} leaves no parameter to train; '/backbone/' would "
            "leave the head"
        )
    return flax.traverse_util.unflatten_dict(mask, sep="/")


def _scale_by_layer(decay: float, layer_of: LayerOf) -> optax.GradientTransformation:
    """Multiplies updates by decay^(last layer - layer)."""

    def scale(updates, _):
        depths = layer_depths(updates, layer_of)
        last = max(jax.tree.leaves(depths))
        return jax.tree.map(
            lambda depth, update: optax.tree.scale(decay ** (last - depth), update),
            depths, updates,
        )  # fmt: skip

    return optax.stateless(scale)


def _stay() -> optax.GradientTransformation:
    """Updates that change no bit: x + 0 would turn -0 into 0."""
    return optax.stateless(
        lambda updates, _: jax.tree.map(lambda update: jnp.full_like(update, -0.0), updates)
    )
