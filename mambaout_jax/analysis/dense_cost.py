# SPDX-License-Identifier: Apache-2.0
"""Parameters and multiply-accumulates of detectors and segmenters on any backbone.

They are counted as in Tables 2 and 3 of the MambaOut paper: Mask R-CNN at 1280 x 800 pixels with 80
classes, 1000 proposals and 100 masks, UperNet at 2048 x 512 with 150 classes, whose auxiliary head
counts among the parameters alone.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import flax.linen as nn

from mambaout_jax.analysis.cost import Cost, count
from mambaout_jax.models import create_detector, create_segmenter


class _Protocol(NamedTuple):
    """What is counted: `create` with so many classes at a size, called so."""

    title: str
    create: Callable[..., nn.Module]
    num_classes: int
    image_shape: tuple[int, int, int]


PROTOCOLS = {
    "detection": _Protocol("Mask R-CNN, 1280 x 800", create_detector, 80, (800, 1280, 3)),
    "segmentation": _Protocol("UperNet, 2048 x 512", create_segmenter, 150, (512, 2048, 3)),
}


def dense_cost(name: str, task: str, **options: Any) -> Cost:
    """What a detector or segmenter costs on a backbone.

    Args:
        name: one of `list_models()`.
        task: a key of `PROTOCOLS`.
        **options: those of `create_model`.

    Raises:
        ValueError: as `create_detector` and `analysis.cost.count`.
    """
    protocol = PROTOCOLS[task]
    model = protocol.create(name, num_classes=protocol.num_classes, **options)
    return count(model, protocol.image_shape)


def dense_table(names: Sequence[str], task: str) -> Iterator[str]:
    """A table of models, line by line, for each takes seconds.

    Args:
        names: of `list_models()`.
        task: a key of `PROTOCOLS`.
    """
    width = max(len("model"), *map(len, names))
    yield f"{'model':{width}}  parameters       MACs  ({PROTOCOLS[task].title})"
    for name in names:
        cost = dense_cost(name, task)
        yield f"{name:{width}}  {cost.parameters / 1e6:8.2f} M  {cost.macs / 1e9:7.1f} G"
