# SPDX-License-Identifier: Apache-2.0
"""Sizes of the experiment: which tasks in which forms, and how models are trained on them."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

from mambaout_jax.ablation.examples import Sizes, TokenTask
from mambaout_jax.ablation.tasks import TOKEN_TASKS

_OWN_DATA = ("digits", "sequential_digits")  # which have as many examples as there are scans


class Plan(NamedTuple):
    """One form of a task, and how it is trained on.

    Attributes:
        task: a key of `tasks.TOKEN_TASKS`.
        options: arguments of its function, but `sizes`.
        steps: updates.
        learned: accuracy from which on the task counts as learned.
    """

    task: str
    options: Mapping[str, int]
    steps: int
    learned: float = 0.9


@dataclasses.dataclass(frozen=True)
class Preset:
    """A size of the whole experiment.

    Attributes:
        plans: by name, of a task and its form, such as "cue_long".
        mixers: keys of `model.MIXERS`.
        seeds: they decide initialisation and order of the examples; the data are the same for all.
        learning_rates: peaks, after a warm-up of a tenth; a half cosine follows, to 0. Each mixer
            gets the one that is best for it with the first seed on the validation split.
        width: D, channels of a token, of all mixers that do not have to be narrower.
        depth, kernel_size, state_size, heads: see `model.TokenModel`.
        deepest: blocks that the deep convolution may have.
        expansion: channels of the gate over those of the block, before the gates are widened.
        batch_size: examples per update.
        weight_decay: AdamW's; biases, norms, positions and the SSM's rates do not decay.
        held_out: examples of the validation split, and of the test split, where they are generated.
        evaluations: points of a curve.
        depth_study: a plan on which convolutions of growing depth are trained, and the depths; an
            SSM of the usual depth stands beside them. MACs are not matched.
    """

    plans: Mapping[str, Plan]
    mixers: tuple[str, ...]
    seeds: tuple[int, ...]
    learning_rates: tuple[float, ...]
    width: int = 16
    depth: int = 2
    kernel_size: int = 7
    state_size: int = 8
    heads: int = 2
    deepest: int = 8
    expansion: float = 8 / 3
    batch_size: int = 16
    weight_decay: float = 0.05
    held_out: int = 512
    evaluations: int = 4
    depth_study: tuple[str, tuple[int, ...]] | None = None

    def make(self, name: str) -> TokenTask:
        """The data of a plan; generated ones are seen once."""
        plan = self.plans[name]
        options: dict[str, Any] = dict(plan.options)
        if plan.task not in _OWN_DATA:
            options["sizes"] = Sizes(plan.steps * self.batch_size, self.held_out, self.held_out)
        return TOKEN_TASKS[plan.task](**options)

    def settings(self) -> dict[str, Any]:
        """All but the plans, as JSON can hold it."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del fields["plans"]
        return fields


def _forms(task: str, size: str, short: int, long: int, steps: int) -> dict[str, Plan]:
    """Both forms of a task, which differ in one size."""
    return {
        f"{task}_short": Plan(task, {size: short}, steps),
        f"{task}_long": Plan(task, {size: long}, steps),
    }


_CUE = _forms("cue", "side", 6, 14, 2000)
_FLIP_FLOP = _forms("flip_flop", "length", 12, 128, 2000)

PRESETS: dict[str, Preset] = {
    "tiny": Preset(
        {**_forms("cue", "side", 5, 6, 3), **_forms("copying", "length", 10, 16, 3)},
        mixers=("conv", "conv+ssm causal"),
        seeds=(0, 1),
        learning_rates=(1e-3, 4e-3),
        width=8,
        depth=1,
        kernel_size=3,
        state_size=4,
        held_out=32,
        evaluations=1,
        depth_study=("cue_long", (1, 2)),
    ),
    "small": Preset(
        {**_CUE, **_FLIP_FLOP},
        mixers=("conv", "conv+ssm causal", "conv+ssm bidirectional"),
        seeds=(0, 1, 2),
        learning_rates=(1e-3,),
    ),
    "full": Preset(
        {
            **_CUE,
            **_FLIP_FLOP,
            **_forms("sweep", "length", 8, 32, 1500),
            **_forms("legend", "side", 6, 14, 2000),
            **_forms("copying", "length", 12, 128, 2000),
            **_forms("induction", "length", 12, 128, 2000),
            **_forms("recall", "length", 12, 128, 2000),
            **_forms("digits", "side", 8, 28, 500),
            **_forms("sequential_digits", "side", 8, 28, 500),
            **_forms("scenes", "side", 16, 48, 500),
        },
        mixers=("conv", "conv deep", "conv dilated", "conv pyramid", "conv+ssm causal",
                "conv+ssm bidirectional", "conv+ssm cross", "ssm", "attention causal",
                "attention full"),
        seeds=(0, 1, 2, 3, 4),
        learning_rates=(5e-4, 1e-3, 2e-3, 4e-3),
        depth_study=("cue_long", (1, 2, 3, 4, 5, 6, 8)),
    ),
}  # fmt: skip
