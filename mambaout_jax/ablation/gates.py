# SPDX-License-Identifier: Apache-2.0
"""The contenders of a comparison: one config, token mixers exchanged, gates as wide as MACs allow.

The gate is a linear layer of each block beside the token mixer. Its width, `expansion_ratio`, is
all that is changed to give two models equal multiply-accumulates.
"""

import bisect
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mambaout_jax.analysis.cost import Cost, count
from mambaout_jax.config import Config
from mambaout_jax.models import list_models, model_options, takes_option
from mambaout_jax.models.mambaout import DEFAULT_ROUTES, BlockOptions
from mambaout_jax.tasks.setup import Setup

TOLERANCE = 0.01  # of the MACs that are to be equal


class Mixer(NamedTuple):
    """A token mixer as it is asked for, "conv+ssm" or "conv+ssm:bidirectional".

    Attributes:
        token_mixer, routes: see `models.mambaout.BlockOptions`; routes None: those of the config.
    """

    token_mixer: str
    routes: str | None = None

    @property
    def has_ssm(self) -> bool:
        return "ssm" in self.token_mixer

    @property
    def name(self) -> str:
        return self.token_mixer if self.routes is None else f"{self.token_mixer}:{self.routes}"

    @property
    def folder(self) -> str:
        return self.name.replace(":", "_")  # a colon parts machine and path for scp and rsync


class Contender(NamedTuple):
    """Attributes:
    mixer: its token mixer.
    config: the compared one with the options of this model.
    expansion_ratio: width of the gate over that of the block.
    cost: parameters, and MACs of one image.
    """

    mixer: Mixer
    config: Config
    expansion_ratio: float
    cost: Cost


def parse_mixers(text: str) -> tuple[Mixer, ...]:
    """The mixers of "conv,conv+ssm:bidirectional".

    Raises:
        ValueError: they are fewer than two, or one comes twice.
    """
    mixers = []
    for name in text.split(","):
        token_mixer, _, routes = name.strip().partition(":")
        mixers.append(Mixer(token_mixer, routes or None))
    if len(set(mixers)) < max(2, len(mixers)):
        raise ValueError(
            f"mixers={text!r} must be at least two different token mixers divided by commas, such "
            "as conv,conv+ssm or conv+ssm:raster,conv+ssm:cross"
        )
    return tuple(mixers)


def contenders(setup: Setup, mixers: Sequence[Mixer], equal: str) -> list[Contender]:
    """The config once with each mixer, at the image size that it trains with.

    With equal "macs" the dearest keeps the gate of the config, and the others get wider ones, which
    bring them nearest to its MACs; with "width" all keep that of the config.

    Args:
        setup: of the config.
        mixers: at least two.
        equal: "macs" or "width".

    Raises:
        ValueError: the model has no token mixer to exchange or starts from trained weights, there
            is no such mixer, two are the same, or MACs cannot be equal within `TOLERANCE`.
    """
    _check_model(setup.config)
    variations = _Variations(setup)
    _check_different(mixers, variations.block)
    models = [variations.options(mixer) for mixer in mixers]
    ratios = [variations.block.expansion_ratio] * len(models)
    costs = [variations.count(options) for options in models]
    if equal == "macs":
        dearest = max(range(len(models)), key=lambda i: costs[i].macs)
        for i in (i for i in range(len(models)) if i != dearest):
            ratios[i] = variations.nearest_ratio(models[i], costs[dearest].macs)
            costs[i] = variations.count(models[i], ratios[i])
        _check_equal([mixer.name for mixer in mixers], [cost.macs for cost in costs], dearest)
    found = []
    for mixer, options, ratio, cost in zip(mixers, models, ratios, costs, strict=True):
        if ratio != variations.block.expansion_ratio:
            options = {**options, "expansion_ratio": ratio}
        found.append(Contender(mixer, _with_options(setup.config, options), ratio, cost))
    return found


class _Variations:
    """Counts what variations of a config's model cost; nothing is computed but shapes.

    Attributes:
        block: what the blocks are made of as configured.
    """

    def __init__(self, setup: Setup):
        self._setup = setup
        self.block: BlockOptions = setup.model.backbone.block
        self._dims: tuple[int, ...] = setup.model.backbone.channels

    def options(self, mixer: Mixer) -> dict[str, Any]:
        """The options that a mixer changes; none where it is that of the config."""
        kept = self.block.routes if mixer.has_ssm else None
        wanted = {"token_mixer": mixer.token_mixer, "routes": mixer.routes or kept}
        return {name: value for name, value in wanted.items() if value != getattr(self.block, name)}

    def count(self, options: dict[str, Any], expansion_ratio: float | None = None) -> Cost:
        """The cost of the model with these options, by default with the gate of the config."""
        config, task = self._setup.config, self._setup.task
        if expansion_ratio is not None:
            options = {**options, "expansion_ratio": expansion_ratio}
        model = task.build(config.model.name, **{**model_options(config), **options})
        return count(model, self._setup.image_shape)

    def nearest_ratio(self, options: dict[str, Any], target: int) -> float:
        """The gate with which the model with these options comes nearest to MACs."""
        least = self.block.conv_ratio
        return nearest_ratio(
            lambda ratio: self.count(options, ratio).macs, self._dims, least, target
        )


def nearest_ratio(
    macs: Callable[[float], int], dims: Sequence[int], least: float, target: int
) -> float:
    """The ratio whose MACs are nearest to `target`, of all that give other widths.

    A gate has `int(ratio * dim)` channels, so that widths change at multiples of 1 / dim, all of
    which lie on a grid, and MACs are linear in them. Two ratios at which nothing is rounded give
    the line that the steps stay below, by less than a channel: a bisection does the rest.

    Args:
        macs: by ratio, rising.
        dims: channels of the blocks, of all stages.
        least: the smallest ratio.
        target: MACs.
    """
    grid = math.lcm(*dims)
    whole = math.ceil(least)
    slope = macs(whole + 1) - macs(whole)
    root = whole + (target - macs(whole)) / slope  # of the line
    first = math.floor(least * grid)
    low = max(first, math.floor(root * grid) - 1)
    high = max(low, math.ceil((root + 1 / min(dims)) * grid) + 1)

    def ratio_of(n: int) -> float:
        return max(least, (n + 0.5) / grid)  # between two changes, where rounding does no harm

    at = functools.cache(lambda n: macs(ratio_of(n)))
    n = low + bisect.bisect_left(range(low, high), target, key=at)
    return ratio_of(min(range(max(first, n - 1), n + 1), key=lambda n: abs(at(n) - target)))


def _check_model(config: Config) -> None:
    name = config.model.name
    if not takes_option(name, "token_mixer"):
        others = ", ".join(model for model in list_models() if takes_option(model, "token_mixer"))
        raise ValueError(
            f"model.name={name!r} has no token mixer to exchange; set --config.model.name to one "
            f"of {others}"
        )
    if config.model.pretrained:
        raise ValueError(
            f"model.pretrained={config.model.pretrained!r} fits one token mixer and one width, and "
            "a comparison starts all of them afresh: set --config.model.pretrained=''"
        )


def _check_different(mixers: Sequence[Mixer], block: BlockOptions) -> None:
    """Refuses two names for one thing, such as "conv+ssm" and the routes that it has anyway."""
    seen: dict[tuple[str, str | None], str] = {}
    for mixer in mixers:
        usual = (block.routes or DEFAULT_ROUTES) if mixer.has_ssm else None
        known = seen.setdefault((mixer.token_mixer, mixer.routes or usual), mixer.name)
        if known != mixer.name:
            raise ValueError(
                f"mixers {known} and {mixer.name} are the same under this config; name each once"
            )


def _check_equal(names: Sequence[str], macs: Sequence[int], dearest: int) -> None:
    """Refuses MACs that differ from those of the dearest by more than `TOLERANCE`."""
    target = macs[dearest]
    for name, cost in zip(names, macs, strict=True):
        if abs(cost - target) > TOLERANCE * target:
            raise ValueError(
                f"{name} comes to {cost:,} MACs where {names[dearest]} has {target:,}, and no "
                "nearer: one channel of the gate is more than that; compare a wider model, or "
                "leave the MACs different with --equal width"
            )


def _with_options(config: Config, options: dict[str, Any]) -> Config:
    """A copy with further options of the model."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.model.options = ConfigDict({**dict(config.model.options), **options})
    return config
