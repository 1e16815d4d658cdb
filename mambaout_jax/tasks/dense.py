# SPDX-License-Identifier: Apache-2.0
"""What detection and segmentation share: images on canvases, weights, and sets of other classes."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from mambaout_jax.config import Config
from mambaout_jax.data.sets.identity import class_changes
from mambaout_jax.preprocessing import Preprocessing
from mambaout_jax.tasks.augment import normalise
from mambaout_jax.tasks.named import Named, names_of_weights
from mambaout_jax.tasks.task import Batch, prepared_config
from mambaout_jax.weights.dense import load_dense
from mambaout_jax.weights.torch_names import Rules


@dataclasses.dataclass(frozen=True)
class Dense(Named):
    """A task that puts a neck and heads on a backbone.

    Attributes:
        create: `create_detector` or `create_segmenter`; its models have `num_classes`.
        torch_names: PyTorch's names of what is put on the backbone.
    """

    create: ClassVar[Callable[..., nn.Module]]
    torch_names: ClassVar[Rules]

    @classmethod
    def from_weights(
        cls, source: str | Path, name: str | None, preprocessing: Preprocessing,
        config: Config | None = None, **options: Any,
    ) -> tuple["Dense", nn.Module, dict[str, Any]]:  # fmt: skip
        model, variables = load_dense(
            cls.create, source, name, torch_names=cls.torch_names, **options
        )
        names = names_of_weights(source, preprocessing, model.num_classes)
        return cls(prepared_config(preprocessing, config), names), model, variables

    def build(self, name: str, **options: Any) -> nn.Module:
        return self.create(name, self.num_classes, **options)

    def load(
        self, source: str | Path, name: str | None = None, *, reset_head: bool = False,
        **options: Any,
    ) -> tuple[nn.Module, dict[str, Any]]:  # fmt: skip
        return load_dense(
            self.create, source, name, num_classes=self.num_classes, reset_head=reset_head,
            torch_names=self.torch_names, **options,
        )  # fmt: skip

    def aligned(self, source: Any) -> Any:
        """The set itself: its classes have to be those of the weights, in their order."""
        theirs, ours = tuple(source.class_names), self.class_names
        if len(theirs) != len(ours) or (theirs != ours and self.are_named):
            raise ValueError(
                f"the weights' classes are not those of the data: {class_changes(ours, theirs)}; "
                "evaluate weights that were trained on these classes"
            )
        return source

    def normalised(self, batch: Batch) -> Float[Array, "B H W C"]:
        """The images of a loaded batch; what is beyond `image_shape` becomes 0 after that."""
        images = normalise(batch["image"], self.config.data.mean, self.config.data.std)
        if "image_shape" not in batch:
            return images
        rows, columns = (
            jnp.arange(n)[None] < batch["image_shape"][:, axis, None]
            for axis, n in enumerate(images.shape[1:3])
        )
        return jnp.where((rows[:, :, None] & columns[:, None])[..., None], images, 0)
