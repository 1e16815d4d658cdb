# SPDX-License-Identifier: Apache-2.0
"""What a config stands for: mesh, data, model and task, before any array is made."""

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh

from mambaout_jax.config import Config, Resolved, resolve, validate
from mambaout_jax.data.sets.sources import Source, open_source
from mambaout_jax.models import find_variant, model_options
from mambaout_jax.runtime.mesh import make_mesh
from mambaout_jax.tasks import find_task
from mambaout_jax.tasks.task import Task
from mambaout_jax.weights.load import describe_source
from mambaout_jax.weights.locate import locate

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
    task: Task
    model: nn.Module
    image_shape: tuple[int, int, int]


def set_up(
    config: Config,
    *,
    devices: Sequence[Any] | None = None,
    open_set: Callable[[Config, str, str], Any] = open_source,
) -> Setup:
    """Makes the mesh, opens the data and makes the model.

    Args:
        devices: those of the mesh; None: all that are here.
        open_set: opens a split as `open_source`.

    Raises:
        ValueError: a setting is wrong, or the data do not fit it.
        RuntimeError: an accelerator is required and there is none.
    """
    if config.require_accelerator and devices is None and jax.default_backend() == "cpu":
        raise RuntimeError(
            "require_accelerator=True, but JAX finds only a CPU; install mambaout-jax[cuda13] or "
            "mambaout-jax[tpu] on a machine that has one, or set --config.require_accelerator=False"
        )
    validate(config, jax.device_count() if devices is None else len(devices))
    kind = find_task(config.task)
    _check_model_name(config.model.name)
    train = open_set(config.data, "train", config.task)
    task = kind.from_config(config, train)
    model = task.build(config.model.name, **model_options(config))
    _check_image_size(config.data.image_size, model.backbone.strides[-1])
    return Setup(
        config=config,
        resolved=resolve(config, len(train)),
        mesh=make_mesh(config.mesh.fsdp, devices),
        train=train,
        validation=open_set(config.data, "validation", config.task),
        task=task,
        model=model,
        image_shape=(config.data.image_size, config.data.image_size, config.data.channels),
    )


def check_pretrained(config: Config) -> None:
    """Refuses a `model.pretrained` that names no weights; nothing is downloaded or read.

    Raises:
        FileNotFoundError, ValueError: as `locate`, with the name of the setting.
    """
    if not config.model.pretrained:
        return
    try:
        locate(config.model.pretrained, config.model.name)
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"model.pretrained={config.model.pretrained!r}: {error}") from error


def pretrained_variables(setup: Setup) -> dict[str, Any]:
    """The weights that `config.model.pretrained` names, for the model of this run.

    Returns:
        Nested dict of host arrays.

    Raises:
        As `check_pretrained` and `Task.load`.
    """
    config = setup.config
    check_pretrained(config)
    source = config.model.pretrained
    _, variables = setup.task.load(
        source,
        config.model.name,
        reset_head=config.model.reset_head,
        seed=config.seed,
        **model_options(config),
    )
    published = describe_source(source, config.model.name)
    for name, theirs in (("mean", published.mean), ("std", published.std)):
        if tuple(config.data[name]) != tuple(theirs):
            _LOG.warning(
                "data.%s=%s, but %s was trained with %s; set --config.data.%s to that, unless the "
                "images call for another", name, config.data[name], source, theirs, name
            )  # fmt: skip
    return variables


def _check_model_name(name: str) -> None:
    try:
        find_variant(name)
    except ValueError as error:
        raise ValueError(f"model.name: {error}") from error


def _check_image_size(image_size: int, stride: int) -> None:
    """Warns where the last map has a border that the image only partly covers."""
    if image_size % stride:
        down, up = image_size // stride * stride, -(-image_size // stride) * stride
        _LOG.warning(
            "data.image_size=%d is not a multiple of the model's stride of %d pixels: it computes "
            "at the cost of %d, with padding at the border; set --config.data.image_size to %s",
            image_size, stride, up, f"{down} or {up}" if down else up
        )  # fmt: skip
