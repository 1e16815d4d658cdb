# SPDX-License-Identifier: Apache-2.0
"""Blocks of one kind, one after the other: as so many programs, or as one that loops."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float


def run_blocks(
    blocks: Sequence[nn.Module],
    x: Float[Array, "B *S C"],
    train: bool,
    *,
    loop: bool,
    keep: Sequence[str] = (),
) -> Float[Array, "B *S C"]:
    """Runs the blocks of a stage.

    A compiler sees a loop's body once, however many blocks there are, and compiles it once. Each
    block keeps parameters of its own, under its own name: they are stacked for the loop, which
    copies them in each step, and gradients are taken apart again.

    Args:
        blocks: submodules of the module that calls, which differ in nothing but name and
            `drop_path`, have parameters and no other variables, and are called with (x, train).
        x: what the first one gets.
        train: training mode.
        loop: as one program that loops. Values are the same up to rounding; in training other
            branches are dropped, at the same rates.
        keep: names (`checkpoint_name`) of what the gradient of a loop keeps of each block, beside
            what goes in; all else it computes again.

    Raises:
        ValueError: `loop` with blocks that differ, or that have other variables than parameters.
    """
    if not loop or len(blocks) < 2 or blocks[0].is_initializing():
        for block in blocks:
            x = block(x, train)
        return x
    # A body outside of the tree of modules, to which each turn gives what it has of its own.
    body: Any = blocks[0].clone(parent=None, name=None)
    _check(blocks, body)
    parameters = [block.variables["params"] for block in blocks]
    rates = keys = None
    if any(block.drop_path for block in blocks):
        rates = jnp.asarray([block.drop_path for block in blocks])
    if train and blocks[0].has_rng("dropout"):
        keys = jax.random.split(blocks[0].make_rng("dropout"), len(blocks))

    def turn(x, own):
        params, rate, key = own
        rngs = None if key is None else {"dropout": key}
        block = body if rate is None else body.clone(drop_path=rate)
        return block.apply({"params": params}, x, train, rngs=rngs), None

    turn = jax.checkpoint(turn, policy=jax.checkpoint_policies.save_only_these_names(*keep))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *parameters)
    return lax.scan(turn, x, (stacked, rates, keys))[0]


def _check(blocks: Sequence[nn.Module], body: Any) -> None:
    for block in blocks:
        own = block.clone(parent=None, name=None, drop_path=body.drop_path)
        if own != body or set(block.variables) != {"params"}:
            raise ValueError(
                f"{block.name}, a {type(block).__name__} with {', '.join(block.variables)}, cannot "
                "run in a loop: blocks must be alike in all but drop_path and have params alone; "
                "set loop_blocks=False"
            )
