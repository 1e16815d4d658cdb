# SPDX-License-Identifier: Apache-2.0
"""What the training step and the evaluation ask of a task.

Metrics are sums and counts: they add up over micro-batches, devices and batches, padded examples
count nothing, and one division at the end gives every example the same weight.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import flax.linen as nn
from jaxtyping import Array, Float

Batch = Mapping[str, Array]
Sums = dict[str, Float[Array, ""]]


@runtime_checkable
class Task(Protocol):
    """A loss to train with and sums to report."""

    def loss(
        self,
        model: nn.Module,
        params: Any,
        collections: Mapping[str, Any],
        batch: Batch,
        key: Array,
    ) -> tuple[Float[Array, ""], tuple[dict[str, Any], Sums]]:
        """Mean loss of a batch in training mode.

        Args:
            params: what the loss is differentiated by.
            collections: the model's other variables, such as batch statistics.
            key: of the random stream "dropout".

        Returns:
            The loss, and the updated collections with the batch's sums.
        """
        ...

    def evaluate(self, model: nn.Module, variables: Mapping[str, Any], batch: Batch) -> Sums:
        """Sums over the examples whose `mask` is set, in evaluation mode."""
        ...

    def metrics(self, sums: Mapping[str, float]) -> dict[str, float]:
        """The metrics that accumulated sums amount to."""
        ...
