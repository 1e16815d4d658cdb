# SPDX-License-Identifier: Apache-2.0
"""What is added up between two reports, and the check that it is finite."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax

Pending = Sequence[tuple[int, Mapping[str, jax.Array]]]  # updates, and their sums on the devices

_PER_UPDATE = ("gradient_norm",)  # all other sums are over examples
_COUNT = "count"


class NotFiniteError(FloatingPointError):
    """A sum of update `step` is NaN or infinite; says which."""

    def __init__(self, name: str, value: float, step: int):
        super().__init__(f"the {name.replace('_', ' ')} is {value} at step {step}")
        self.step = step


@dataclasses.dataclass
class Interval:
    """Sums since the last report; goes into checkpoints, so that a resumed report is complete.

    Attributes:
        updates: how many have been added.
        sums: over these updates, by the names that the training step gives.
    """

    updates: int = 0
    sums: dict[str, float] = dataclasses.field(default_factory=dict)

    def add(self, pending: Pending) -> None:
        """Fetches the sums of updates from the devices and adds them.

        Raises:
            NotFiniteError: a sum is not finite.
        """
        for step, sums in jax.device_get(pending):
            # The losses are of the parameters before the update; only the gradient tells of those
            # after it, which a checkpoint would hold.
            for name, value in sums.items():
                if not math.isfinite(value):
                    raise NotFiniteError(name, float(value), step)
                self.sums[name] = self.sums.get(name, 0.0) + float(value)
            self.updates += 1

    def averages(self) -> dict[str, float]:
        """Each sum over the examples, or over the updates where an update has one value."""
        return {
            name: value / (self.updates if name in _PER_UPDATE else self.sums[_COUNT])
            for name, value in self.sums.items()
            if name != _COUNT
        }
