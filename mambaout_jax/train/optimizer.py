# SPDX-License-Identifier: Apache-2.0
"""AdamW and its schedule, as one flat optax chain."""

import re
from typing import Any

import flax.traverse_util
import optax

from mambaout_jax.config import Config, Resolved


def make_schedule(config: Config, resolved: Resolved) -> optax.Schedule:
    """Learning rate of update 0, 1, ...: linear warm-up, then a half cosine.

    Args:
        config: the section `schedule`.
        resolved: durations in updates and the peak rate.
    """
    peak, final = resolved.learning_rate, config.final_learning_rate
    warmup, total = resolved.warmup_steps, resolved.total_steps
    decay = optax.cosine_decay_schedule(
        peak, max(1, total - warmup), alpha=final / peak if peak else 0.0
    )
    if warmup == 0:
        return decay
    rise = optax.linear_schedule(config.warmup_learning_rate, peak, warmup)
    return optax.join_schedules((rise, decay), (warmup,))


def make_optimizer(config: Config, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Clipping by global norm, Adam, decoupled weight decay (Loshchilov and Hutter 2019).

    Args:
        config: the section `optimizer`.
        schedule: update count to learning rate.
    """
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity(),
        optax.scale_by_adam(config.b1, config.b2, config.epsilon),
        optax.add_decayed_weights(
            config.weight_decay, mask=lambda params: decay_mask(params, config.decay_rules)
        ),
        optax.scale_by_learning_rate(schedule),
    )


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
            f"no rule of optimizer.decay_rules says whether these parameters decay: {uncovered}; "
            "add a (regular expression, True or False) for them in the config file"
        )
    return flax.traverse_util.unflatten_dict(mask, sep="/")
