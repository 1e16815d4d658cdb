# SPDX-License-Identifier: Apache-2.0
"""Models of equal cost: the blocks of each mixer arranged for a task, its gate widened to match."""

import math

from mambaout_jax.ablation.examples import TokenTask
from mambaout_jax.ablation.model import BASELINE, MIXERS, TokenModel
from mambaout_jax.ablation.presets import Preset
from mambaout_jax.analysis.cost import count

SEES_THE_ANSWER = "not applicable: sees the answer"
_TOLERANCE = 0.01  # of MACs


def can_run(mixer: str, task: TokenTask) -> bool:
    """Whether a mixer would not see the answer of a task."""
    return not (task.autoregressive and MIXERS[mixer].looks_ahead)


def build_model(mixer: str, task: TokenTask, preset: Preset) -> TokenModel:
    """The model of a mixer whose MACs are, within 1 %, those of the preset's dearest SSM.

    Where the preset has no SSM that may run, they are those of the gated convolution.

    Depth, states and heads stay. What is dearer gets fewer channels, and all get a wider gate until
    their MACs agree.

    Raises:
        ValueError: no number of channels fits, as where attention is dearer with the fewest.
    """
    ssms = [name for name in preset.mixers if "ssm" in MIXERS[name].token_mixer]
    costs = [macs(arranged(name, task, preset), task) for name in ssms if can_run(name, task)]
    target = max(costs) if costs else macs(arranged(BASELINE, task, preset), task)
    return _fitted(arranged(mixer, task, preset), task, preset, target)


def arranged(mixer: str, task: TokenTask, preset: Preset, depth: int | None = None) -> TokenModel:
    """The model of a mixer at the preset's width, with blocks as its kind arranges them.

    Args:
        depth: blocks, None for what the kind makes of the task.
    """
    kind = MIXERS[mixer]
    dilations, levels = (1,) * preset.depth, 1
    if depth is not None:
        dilations = (1,) * depth
    elif kind.arrangement == "deep":
        dilations = (1,) * _blocks_to_reach(task, preset)
    elif kind.arrangement == "dilated":
        dilations = _dilations(task, preset)
    elif kind.arrangement == "pyramid" and (levels := _levels(task, preset)) > 1:
        dilations = (1,) * (levels + 1)
    return TokenModel(
        kind=mixer,
        sequence=task.autoregressive,
        num_classes=task.num_classes,
        dense=task.dense,
        width=preset.width,
        hidden=int(preset.expansion * preset.width),
        kernel_size=preset.kernel_size,
        state_size=preset.state_size,
        heads=preset.heads,
        dilations=dilations,
        levels=levels,
    )


def macs(model: TokenModel, task: TokenTask) -> int:
    """Of one example."""
    return count(model, (*task.grid, task.features)).macs


def _fitted(model: TokenModel, task: TokenTask, preset: Preset, target: int) -> TokenModel:
    """With as many channels as the target allows, a multiple of the heads, and the gate that fits.

    A gate is a whole number of channels, which in many blocks are more than 1 % of the MACs: then
    a few channels less fit better.
    """
    widths = range(preset.width, 0, -preset.heads)
    for width in widths:
        narrower = model.clone(width=width, hidden=int(preset.expansion * width))
        cost = macs(narrower, task)
        if cost > target:
            continue
        per_channel = macs(narrower.clone(hidden=narrower.hidden + 1), task) - cost
        channels = round((target - cost) / per_channel)
        if abs(cost + channels * per_channel - target) <= _TOLERANCE * target:
            return narrower.clone(hidden=narrower.hidden + channels)
    raise ValueError(
        f"{model.kind} cannot have the {target:,} MACs of the SSM in {task.name} of {task.length} "
        f"tokens: with {widths[-1]} channels it has {macs(model.clone(width=widths[-1]), task):,}; "
        "leave it out of the mixers"
    )


def _taps(task: TokenTask, preset: Preset) -> int:
    """How far one convolution sees."""
    return preset.kernel_size - 1 if task.autoregressive else preset.kernel_size // 2


def _blocks_to_reach(task: TokenTask, preset: Preset) -> int:
    """As many as reach the farthest answer, at least twice the usual, at most the deepest."""
    needed = math.ceil(task.farthest / _taps(task, preset))
    return min(max(needed, 2 * preset.depth), preset.deepest)


def _dilations(task: TokenTask, preset: Preset) -> tuple[int, ...]:
    """Taps ever further apart, without gaps, until the farthest answer is reached."""
    taps, dilations = _taps(task, preset), [1]
    while taps * sum(dilations) < task.farthest:
        rest = math.ceil((task.farthest - taps * sum(dilations)) / taps)
        dilations.append(min(dilations[-1] * preset.kernel_size, rest))
    return (1,) * (preset.depth - len(dilations)) + tuple(dilations)


def _levels(task: TokenTask, preset: Preset) -> int:
    """Until one kernel covers the smallest map."""
    levels, side = 1, max(task.grid)
    while side > preset.kernel_size:
        levels, side = levels + 1, -(-side // 2)
    return levels
