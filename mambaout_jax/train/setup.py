# SPDX-License-Identifier: Apache-2.0
"""What a config stands for: mesh, data, model and task, before any array is made."""

import dataclasses

import jax
from jax.sharding import Mesh

from mambaout_jax.backbone import Classifier
from mambaout_jax.config import Config, Resolved, resolve, validate
from mambaout_jax.data.sources import Source, open_source
from mambaout_jax.models import create_model
from mambaout_jax.tasks.classification import Classification
from mambaout_jax.train.mesh import make_mesh
from mambaout_jax.weights.locate import model_options


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
    return Setup(
        config=config,
        resolved=resolve(config, len(train)),
        mesh=make_mesh(config.mesh.fsdp),
        train=train,
        validation=open_source(config.data, "validation"),
        model=create_model(
            config.model.name, num_classes=train.num_classes, **model_options(config)
        ),
        task=Classification(train.num_classes),
        image_shape=(config.data.image_size, config.data.image_size, config.data.channels),
    )
