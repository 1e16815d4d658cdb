# SPDX-License-Identifier: Apache-2.0
"""Our side of the comparison of dense models: compiled calls, and what compiling them planned."""

import abc
import functools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import save_file

from mambaout_jax.benchmarks.dense_inputs import (
    AUXILIARY_WEIGHT,
    LEARNING_RATE,
    WEIGHT_DECAY,
    Inputs,
)
from mambaout_jax.benchmarks.jax_models import compile_call
from mambaout_jax.heads import mask_rcnn, upernet
from mambaout_jax.heads.losses import detection_losses
from mambaout_jax.heads.pixels import cross_entropy_sums, enlarge, likeliest_classes
from mambaout_jax.heads.targets import uniform_draw
from mambaout_jax.models.dense import create_detector, create_segmenter
from mambaout_jax.runtime.compiler_options import to_start_soon
from mambaout_jax.weights.dense import load_dense

_Losses = dict[str, jax.Array]
_REGIONS_PER_IMAGE = 512  # that the box head learns from


class _Ours(abc.ABC):
    """What both models have in common.

    Attributes:
        losses: of the training step that was last run.
    """

    create: Callable[..., nn.Module]
    torch_names: tuple[Any, ...]
    options: Mapping[str, Any] = MappingProxyType({})

    def __init__(
        self, backbone: str, inputs: Inputs, state_dict: Mapping[str, np.ndarray] | None = None
    ):
        """Makes the model.

        Args:
            backbone: one of `list_models()`.
            inputs: what it is given.
            state_dict: weights under the names of mmdetection or mmsegmentation; None: random ones.
        """
        create = type(self).create
        options = {"dtype": jnp.dtype(inputs.dtype), "drop_path": 0.0, **self.options}
        size = inputs.images.shape[1:3]
        self._inputs = inputs
        self._images = jnp.asarray(inputs.images)
        self.losses: dict[str, float] = {}
        if state_dict is None:
            self._model = create(backbone, inputs.classes, image_size=size, **options)
            self._variables: Any = jax.jit(self._model.init)(jax.random.key(0), self._images)
            return
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "weights.safetensors"
            save_file({name: np.ascontiguousarray(x) for name, x in state_dict.items()}, file)
            self._model, variables = load_dense(
                create, file, backbone, torch_names=self.torch_names, image_size=size, **options
            )
        self._variables = jax.device_put(variables)

    def outputs(self) -> dict[str, np.ndarray]:
        """What the heads say, to be compared with a peer's."""
        platform = self._images.device.platform
        read = jax.jit(self._read, compiler_options=to_start_soon(platform))
        found = read(self._variables, self._images)
        return {name: np.asarray(x, np.float32) for name, x in found.items()}

    def calls(self, passed: str) -> tuple[Callable[[], Any], dict[str, Any]]:
        """A compiled call of a pass, "inference" or "training", and what compiling it planned.

        Training steps go on from one another.
        """
        if passed == "inference":
            arguments = (self._variables, self._images)
            compiled, plan = compile_call(self._infer, arguments)
            return functools.partial(compiled, *arguments), plan
        optimizer = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)
        rest = dict(jax.tree.map(jnp.copy, self._variables))
        params = rest.pop("params")
        state = [params, rest, optimizer.init(params)]

        def loss(params, rest, batch):
            losses, rest = self._training_losses({"params": params, **rest}, batch)
            return sum(losses.values()), (losses, rest)

        def step(params, rest, moments, batch):
            gradients, (losses, rest) = jax.grad(loss, has_aux=True)(params, rest, batch)
            updates, moments = optimizer.update(gradients, moments, params)
            return (optax.apply_updates(params, updates), rest, moments), losses

        batch = self._batch()
        compiled, plan = compile_call(step, (*state, batch), donate=(0, 1, 2))

        def train():
            state[:], losses = compiled(*state, batch)
            self.losses = losses
            return state, losses

        return train, plan

    @abc.abstractmethod
    def _read(self, variables: Any, images: jax.Array) -> _Losses: ...

    @abc.abstractmethod
    def _infer(self, variables: Any, images: jax.Array) -> Any: ...

    @abc.abstractmethod
    def _batch(self) -> dict[str, jax.Array]: ...

    @abc.abstractmethod
    def _training_losses(self, variables: Any, batch: Any) -> tuple[_Losses, dict[str, Any]]: ...


class OurDetector(_Ours):
    """Mask R-CNN as `tasks.detection` trains it and finds objects with it."""

    create = staticmethod(create_detector)
    torch_names = mask_rcnn.TORCH_NAMES

    def _infer(self, variables: Any, images: jax.Array) -> Any:
        return self._model.apply(variables, images)

    def _read(self, variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        regions = jnp.asarray(self._inputs.regions)

        def read(detector):
            maps = detector.pyramid(images)
            outputs = detector.rpn_outputs(maps)
            logits, _ = detector.classify(maps, regions)
            masks = detector.segment(maps, regions)
            grid = maps[0].shape[:3]
            return {
                "finest map": maps[0],
                "proposals' scores": outputs.scores[0].reshape(*grid, -1),
                "proposals' deltas": outputs.deltas[0].reshape(*grid, -1),
                "class logits": logits.reshape(-1, logits.shape[-1]),
                "mask logits": masks.reshape(-1, *masks.shape[2:]),
            }

        return nn.apply(read, self._model)(variables)

    def _batch(self) -> dict[str, jax.Array]:
        inputs = self._inputs
        count, *size = inputs.images.shape[:3]
        return {
            "image": self._images,
            "image_shape": jnp.full((count, 2), jnp.array(size, jnp.int32)[None]),
            "boxes": jnp.asarray(inputs.boxes),
            "labels": jnp.asarray(inputs.labels),
            "masks": jnp.asarray(np.packbits(inputs.masks, axis=-1)),
            "key": jax.random.split(jax.random.key(0), count),
        }

    def _training_losses(self, variables: Any, batch: Any) -> tuple[_Losses, dict[str, Any]]:
        def losses(detector):
            maps = detector.pyramid(batch["image"], train=True)
            draw = uniform_draw(batch["key"])
            return detection_losses(detector, maps, batch, draw, _REGIONS_PER_IMAGE)

        mutable = [name for name in variables if name != "params"]
        found: Any = nn.apply(losses, self._model, mutable=mutable)(variables)
        return found


class OurSegmenter(_Ours):
    """UperNet as `tasks.segmentation` trains it, but without dropout; the class of every pixel."""

    create = staticmethod(create_segmenter)
    torch_names = upernet.TORCH_NAMES
    options = MappingProxyType({"dropout": 0.0})

    def _infer(self, variables: Any, images: jax.Array) -> Any:
        logits: Any = self._model.apply(variables, images)
        return likeliest_classes([enlarge(logits, (images.shape[1], images.shape[2]))])[0]

    def _read(self, variables: Any, images: jax.Array) -> dict[str, jax.Array]:
        logits: Any = self._model.apply(variables, images)
        return {"logits": logits}

    def _batch(self) -> dict[str, jax.Array]:
        return {"image": self._images, "labels": jnp.asarray(self._inputs.labels)}

    def _training_losses(self, variables: Any, batch: Any) -> tuple[_Losses, dict[str, Any]]:
        mutable = [name for name in variables if name != "params"]
        found: Any = self._model.apply(variables, batch["image"], train=True, mutable=mutable)
        (both, rest), labels = found, batch["labels"]
        main, auxiliary = (cross_entropy_sums(x, labels).sum() / labels.size for x in both)
        return {"main": main, "auxiliary": AUXILIARY_WEIGHT * auxiliary}, rest


OURS: Mapping[str, Callable[..., Any]] = {
    "detection": OurDetector,
    "segmentation": OurSegmenter,
}
