# SPDX-License-Identifier: Apache-2.0
"""A tiny model of any family: two blocks of few channels, by the names that backbones share."""

import dataclasses

from mambaout_jax.models import FAMILIES, find_variant

SMALL = {
    "depths": (1, 1),
    "dims": (8, 16),
    "heads": (2, 2),
    "depth": 1,
    "dim": 8,
    "state_size": 2,
    "conv_implementation": "lax",  # quicker to trace than those written for speed
}
FAMILY_NAMES = [next(iter(family.VARIANTS)) for family in FAMILIES]  # a model of each
IMAGE = (1, 64, 32, 3)  # every stride divides it


# What the fields above do not reach.
# fmt: off
OWN = {
    "local_vim_tiny": {"directions": ("h v_flip w2 w7_flip",)},
    "local_vmamba_tiny": {"directions": ("h v_flip w2 w7_flip",) * 2},
    "efficientvmamba_tiny": {"depths": (1, 1, 1), "dims": (8, 16, 24)},  # of both kinds of stages
    "mamba2d_small": {"merging": 0},
    "caformer_s18": {"token_mixers": ("conv", "attention")},
    "hornet_base_gf": {"token_mixers": ("conv", "filter")},
    "emo_6m": {"depths": (2, 2), "token_mixers": ("conv", "attention")},
    "coatnet_0_224": {"depths": (1, 1, 1), "dims": (8, 16, 24), "head_width": 8},
    "moat_0": {"depths": (1, 1, 1), "dims": (8, 16, 24), "head_width": 8},
    "mobilevitv3_xs": {"transformer_dims": (8,)},
    "iformer_small": {
        "depths": (1, 1, 1), "dims": (8, 16, 24), "attention_heads": (1, 2, 3), "head_dim": 4,
        "table_size": 64,
    },
    "sgformer_s": {"depths": (2, 1)},  # of both kinds of blocks
    "transnext_tiny": {"reductions": (8, 1)},  # of both kinds of attention
    "uniformer_base": {
        "depths": (1, 1, 1), "dims": (8, 16, 24), "head_dim": 8, "layer_scale": True,
    },
}
# fmt: on


def small_options(name):
    """Options of `create_model` that make a model of the family of `name` as small as can be."""
    family, _ = find_variant(name)
    fields = {field.name: field.type for field in dataclasses.fields(family.BACKBONE)}
    options = {option: value for option, value in SMALL.items() if option in fields}
    if fields.get("heads") is int:
        options["heads"] = 2
    if "image_size" in fields:
        options["image_size"] = IMAGE[1:3]
    return {"num_classes": 3, **options, **OWN.get(name, {})}
