# SPDX-License-Identifier: Apache-2.0
"""What a config stands for: mesh, data, model and task, before any array is made."""

import dataclasses
import logging
from typing import Any

import jax
from jax.sharding import Mesh

from mambaout_jax.backbone import Classifier
from mambaout_jax.config import Config, Resolved, resolve, validate
from mambaout_jax.data.sets.sources import Source, open_source
from mambaout_jax.models import create_model, model_options
from mambaout_jax.runtime.mesh import make_mesh
from mambaout_jax.tasks.classification import Classification
from mambaout_jax.weights.load import describe_source, load_pretrained

_LOG = logging.getLogger("mambaout_jax")


@dataclasses.dataclass(frozen=True)
class Setup:
    """Everything that follows from a config and a data set.

    Attributes:
        resolved: durations in updates, scaled rates.
        train, validation: sources of examples.
        image_shape: (H, W, C) of what the model reads.
    """

    config: Config
    resolved: Resolved
    mesh: Mesh
    train: Source
    validation: Source
    model: Classifier
    task: Classification
    image_shape: tuple[int, int, int]

    @property
    def num_classes(self) -> int:
        return self.train.num_classes


def set_up(config: Config) -> Setup:
    """Makes the mesh, opens the data and makes the model.

    Raises:
        ValueError: a setting is wrong, or the data do not fit it.
        RuntimeError: an accelerator is required and there is none.
    """
    if config.require_accelerator and jax.default_backend() == "cpu":
        raise RuntimeError(
            "require_accelerator=True, but JAX finds only a CPU; install mambaout-jax[cuda13] or "
            "mambaout-jax[tpu] on a machine that has one, or set --config.require_accelerator=False"
        )
    validate(config, jax.device_count())
    train = open_source(config.data, "train")
    model = create_model(config.model.name, num_classes=train.num_classes, **model_options(config))
    _check_image_size(config.data.image_size, model.backbone.strides[-1])
    return Setup(
        config=config,
        resolved=resolve(config, len(train)),
        mesh=make_mesh(config.mesh.fsdp),
        train=train,
        validation=open_source(config.data, "validation"),
        model=model,
        task=Classification(train.num_classes),
        image_shape=(config.data.image_size, config.data.image_size, config.data.channels),
    )


def pretrained_variables(config: Config, num_classes: int) -> dict[str, Any]:
    """The weights that `config.model.pretrained` names, for a model of `num_classes`.

    Returns:
        Nested dict of host arrays.

    Raises:
        As `weights.load.load_pretrained`.
    """
    source = config.model.pretrained
    _, variables = load_pretrained(
        source,
        config.model.name,
        reset_head=config.model.reset_head,
        seed=config.seed,
        num_classes=num_classes,
        **model_options(config),
    )
    how = describe_source(source, config.model.name)
    for name, theirs in (("mean", how.mean), ("std", how.std)):
        if tuple(config.data[name]) != tuple(theirs):
            _LOG.warning(
                "data.%s=%s, but %s was trained with %s; set --config.data.%s to that, unless the "
                "images call for another", name, config.data[name], source, theirs, name
            )  # fmt: skip
    return variables


def _check_image_size(image_size: int, stride: int) -> None:
    """Warns where the last map has a border that the image only partly covers."""
    if image_size % stride:
        down, up = image_size // stride * stride, -(-image_size // stride) * stride
        _LOG.warning(
            "data.image_size=%d is no multiple of the model's stride of %d pixels: it computes at "
            "the cost of %d, with padding at the border; set --config.data.image_size to %s",
            image_size, stride, up, f"{down} or {up}" if down else up
        )  # fmt: skip
