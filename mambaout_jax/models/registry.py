# SPDX-License-Identifier: Apache-2.0
"""Model families and the functions that make models from their tables.

A family is one file with

    BACKBONE, HEAD   a `backbone.Backbone` and a linen module that maps `Features` to logits
    VARIANTS         name to `backbone.Variant`
    WEIGHTS          key to `published.Weights`
    TORCH_NAMES      naming to rules, see `weights.torch_names`, or a function from the variant to
                     this where names depend on its sizes
    DECAY            which parameters decay: patterns as `backbone.DECAY`
    layer_of         only where `backbone.layer_of` does not know its parts
    FROZEN           only where parameters never change: patterns of those whose gradient is zero
    torch_buffers    only where PyTorch saves tables beside parameters, see `weights.convert`

To add one, write the file and name it in `FAMILIES`.
"""

import dataclasses
import difflib
import fnmatch
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax.numpy as jnp

from mambaout_jax import backbone as contract
from mambaout_jax.backbone import Backbone, Classifier, Variant
from mambaout_jax.config import Config
from mambaout_jax.models import (
    coatnet,
    convnext,
    cswin,
    deit,
    efficientvmamba,
    emo,
    fasternet,
    focal,
    hornet,
    iformer,
    inceptionnext,
    internimage,
    isotropic,
    local_vim,
    local_vmamba,
    mamband,
    mambaout,
    metaformer,
    moat,
    mobilevit_v3,
    moganet,
    mvit_v2,
    plainmamba,
    poolformer,
    pvt_v2,
    replknet,
    sg_former,
    swin,
    t2t_vit,
    transnext,
    uniformer,
    van,
    vim,
    vmamba,
)
from mambaout_jax.settings import refused, rule_of_field, shown

# fmt: off
FAMILIES: tuple[ModuleType, ...] = (
    mambaout, isotropic, deit, convnext, swin, fasternet, vmamba, vim, local_vim, local_vmamba,
    plainmamba, efficientvmamba, mamband,
    van, poolformer, metaformer, inceptionnext, moganet, hornet, replknet, emo,
    cswin, pvt_v2, coatnet, moat, mvit_v2, focal, internimage,
    t2t_vit, mobilevit_v3, uniformer, iformer, sg_former, transnext,
)
# fmt: on

# Set by the named arguments of `create_model`, or by linen itself.
_RESERVED = {
    "num_classes", "in_chans", "dtype", "drop_path", "remat", "plain", "image_size", "parent",
    "name",
}  # fmt: skip


class ParameterRules(NamedTuple):
    """How an optimiser treats a model's parameters.

    Attributes:
        decay: (regular expression, decays?); the first that is found in a parameter's path decides.
        layer_of: path below the backbone to stage and block, see `backbone.layer_of`.
    """

    decay: tuple[tuple[str, bool], ...]
    layer_of: Callable[[str], tuple[float, int] | None]


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


def takes_option(name: str, option: str) -> bool:
    """Whether `create_model(name)` takes an option beside the named ones.

    Raises:
        ValueError: there is no such model.
    """
    family, _ = find_variant(name)
    return option not in _RESERVED and _type_of(option, family) is not None


def head_options(name: str, options: Mapping[str, Any]) -> set[str]:
    """Those of the options of `create_model(name)` that only its head reads.

    Raises:
        ValueError: there is no such model, or an option has a value that is not allowed.
        TypeError: an option that is not a field of the family.
    """
    family, _ = find_variant(name)
    own = {option: value for option, value in options.items() if option not in _RESERVED}
    return set(_split_options(name, family, own)[2])


def parameter_rules(name: str) -> ParameterRules:
    """The family's rules for decay and layers.

    Raises:
        ValueError: there is no such model.
    """
    family, _ = find_variant(name)
    return ParameterRules(family.DECAY, getattr(family, "layer_of", contract.layer_of))


def create_backbone(name: str, **options: Any) -> Backbone:
    """Makes a backbone; see `create_model` for the options and `backbone` for the contract."""
    return create_model(name, **options).backbone


def create_model(
    name: str,
    num_classes: int = 1000,
    image_size: int | tuple[int, int] | None = None,
    in_chans: int = 3,
    dtype: Any = jnp.float32,
    drop_path: float | int | None = None,
    remat: bool = False,
    plain: bool = False,
    **options: Any,
) -> Classifier:
    """Makes a classifier of NHWC images.

    Args:
        name: one of `list_models()`.
        num_classes: 0 returns the features that the last layer would read.
        image_size: side or (height, width) in pixels of position tables, None for the published
            size; families without such tables take any size at any call.
        in_chans: image channels.
        dtype: dtype of the computation; float32 means at least float32, parameters are float32.
        drop_path: rate of the last block while training, None for the published rate.
        remat: recompute blocks in the backward pass: less memory, more time.
        plain: compute with the plain implementations everywhere: slower to train, with derivatives
            of any order and in forward mode (`jax.jvp`, `jax.linearize`, `jax.jacfwd`,
            Hessian-vector products), and ordinary programs to export.
        **options: fields of the family's backbone, of its block options, or of its head.

    Raises:
        ValueError: no such model, or an option has a value that is not allowed.
        TypeError: an option that is not a field of the family.
    """
    family, variant = find_variant(name)
    backbone, block, head = _split_options(name, family, {**variant.backbone, **options})
    fields: dict[str, Any] = {
        "in_chans": in_chans,
        "dtype": dtype,
        "drop_path": variant.drop_path if drop_path is None else drop_path,
        "remat": remat,
        "plain": plain,
        **backbone,
    }
    if block:
        fields["block"] = _block_options(family)(**block)
    if "image_size" in family.BACKBONE.__dataclass_fields__:
        fields["image_size"] = variant.image_size if image_size is None else image_size
    return Classifier(
        backbone=family.BACKBONE(**fields),
        head=family.HEAD(num_classes=num_classes, dtype=dtype, **{**variant.head, **head}),
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


def _fields(cls: Any) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)} - _RESERVED


def _block_options(family: ModuleType) -> Any:
    """The dataclass of the field `block` of a family's backbone, None where there is none."""
    types = {field.name: field.type for field in dataclasses.fields(family.BACKBONE)}
    return types.get("block")


def _type_of(option: str, family: ModuleType) -> Any:
    """The annotated type of an option of a family."""
    for holder in (family.BACKBONE, _block_options(family), family.HEAD):
        for field in dataclasses.fields(holder) if holder else ():
            if field.name == option:
                return field.type
    return None


def _split_options(
    name: str, family: ModuleType, options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Those of the backbone, of its blocks and of the head."""
    block = _block_options(family)
    of_backbone = _fields(family.BACKBONE) - {"block"}
    of_block = _fields(block) if block else set()
    rooms = (of_backbone, of_block, _fields(family.HEAD) - of_backbone - of_block)
    known = set().union(*rooms)
    for option in options:
        if option not in known:
            close = difflib.get_close_matches(option, known, n=1)
            raise TypeError(
                f"{name} has no option {option!r}{f'; did you mean {close[0]}?' if close else ''} "
                f"Fields of its backbone: {sorted(rooms[0] | rooms[1])}; of its head: "
                f"{sorted(rooms[2])}"
            )
        rule = rule_of_field(option, _type_of(option, family))
        if rule and not rule.accepts(options[option]):
            raise ValueError(f"{name}: {refused(option, shown(options[option]), rule)}")
    backbone, blocks, head = (
        {option: value for option, value in options.items() if option in room} for room in rooms
    )
    return backbone, blocks, head
