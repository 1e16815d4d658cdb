# SPDX-License-Identifier: Apache-2.0
"""Models by name: classifiers and backbones of every family, and what dense heads make of them.

`models.registry` lists the families and says what a family's file holds.
"""

from mambaout_jax.models.dense import create_detector, create_segmenter
from mambaout_jax.models.registry import (
    FAMILIES,
    ParameterRules,
    create_backbone,
    create_model,
    find_variant,
    list_models,
    model_options,
    parameter_rules,
    takes_option,
)

__all__ = [
    "FAMILIES",
    "ParameterRules",
    "create_backbone",
    "create_detector",
    "create_model",
    "create_segmenter",
    "find_variant",
    "list_models",
    "model_options",
    "parameter_rules",
    "takes_option",
]
