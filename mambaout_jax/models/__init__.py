# SPDX-License-Identifier: Apache-2.0
"""Model families and the three functions that make models from their tables.

A family is one file with `BACKBONE` and `HEAD` (linen modules), `VARIANTS` (name to `Variant`) and
`TORCH_NAMES`. To add one, write the file and name it in `FAMILIES`.
"""

import dataclasses
import difflib
import fnmatch
from types import ModuleType
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from mambaout_jax.backbone import Classifier, Variant
from mambaout_jax.config import Config
from mambaout_jax.models import deit, isotropic, mambaout

FAMILIES: tuple[ModuleType, ...] = (mambaout, isotropic, deit)

# Set by the named arguments of `create_model`, or by linen itself.
_RESERVED = {"num_classes", "dtype", "drop_path", "remat", "parent", "name", "image_size"}


def list_models(pattern: str = "*") -> list[str]:
    """Names of all models that match a shell-style pattern, in the families' own order."""
    names = [name for family in FAMILIES for name in family.VARIANTS]
    return fnmatch.filter(names, pattern)


def find_variant(name: str) -> tuple[ModuleType, Variant]:
    """The family and the row of its table that make the model `name`.

    Raises:
        ValueError: there is no such model.
    """
    for family in FAMILIES:
        if name in family.VARIANTS:
            return family, family.VARIANTS[name]
    close = difflib.get_close_matches(name, list_models(), n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else f"there are {list_models()}"
    raise ValueError(f"no model is called {name!r}; {hint}")


def create_backbone(
    name: str,
    image_size: int | tuple[int, int] | None = None,
    in_chans: int = 3,
    dtype: Any = jnp.float32,
    drop_path: float | int | None = None,
    remat: bool = False,
    **options: Any,
) -> nn.Module:
    """Makes a backbone; see `create_model` for the arguments and `backbone` for the contract."""
    return create_model(
        name,
        image_size=image_size,
        in_chans=in_chans,
        dtype=dtype,
        drop_path=drop_path,
        remat=remat,
        **options,
    ).backbone


def create_model(
    name: str,
    num_classes: int = 1000,
    image_size: int | tuple[int, int] | None = None,
    in_chans: int = 3,
    dtype: Any = jnp.float32,
    drop_path: float | int | None = None,
    remat: bool = False,
    **options: Any,
) -> Classifier:
    """Makes a classifier of NHWC images.

    Args:
        name: one of `list_models()`.
        num_classes: 0 returns the features that the last layer would read.
        image_size: side or (height, width) in pixels of position tables, None for the published
            size; families without such tables take any size at any call.
        in_chans: image channels.
        dtype: of the computation; float32 means at least float32, parameters are float32.
        drop_path: rate of the last block while training, None for the published rate.
        remat: recompute blocks in the backward pass: less memory, more time.
        **options: fields of the family's backbone or head.

    Raises:
        ValueError: no such model.
        TypeError: an option that is no field of the family.
    """
    family, variant = find_variant(name)
    backbone_options, head_options = _split_options(name, family, options)
    fields = {
        **variant.backbone,
        "drop_path": variant.drop_path if drop_path is None else drop_path,
        **backbone_options,
    }
    if "image_size" in _fields(family.BACKBONE):
        fields["image_size"] = variant.image_size if image_size is None else image_size
    return Classifier(
        backbone=family.BACKBONE(dtype=dtype, remat=remat, **fields),
        head=family.HEAD(num_classes=num_classes, dtype=dtype, **{**variant.head, **head_options}),
        in_chans=in_chans,
    )


def model_options(config: Config) -> dict[str, Any]:
    """The options of `create_model` that a config stands for, without `num_classes`."""
    options: dict[str, Any] = dict(config.model.options)
    if config.model.conv_implementation != "auto":  # families without the choice take only "auto"
        options["conv_implementation"] = config.model.conv_implementation
    return {
        "image_size": config.data.image_size,
        "in_chans": config.data.channels,
        "dtype": jnp.dtype(config.model.dtype),
        "drop_path": config.model.drop_path,
        "remat": config.model.remat,
        **options,
    }


def _fields(module: type[nn.Module]) -> set[str]:
    return {field.name for field in dataclasses.fields(module)}


def _split_options(
    name: str, family: ModuleType, options: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    of_backbone = _fields(family.BACKBONE) - _RESERVED
    of_head = _fields(family.HEAD) - _RESERVED
    for option in options:
        if option not in of_backbone | of_head:
            close = difflib.get_close_matches(option, of_backbone | of_head, n=1)
            raise TypeError(
                f"{name} has no option {option!r}{f'; did you mean {close[0]}?' if close else ''} "
                f"Fields of its backbone: {sorted(of_backbone)}; of its head: {sorted(of_head)}"
            )
    return (
        {key: value for key, value in options.items() if key in of_backbone},
        {key: value for key, value in options.items() if key in of_head - of_backbone},
    )
