# SPDX-License-Identifier: Apache-2.0
"""Sentences about weights that do not fit a model: every name and shape, and all at once."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from mambaout_jax.weights.files import listed


def check_floating(name: str, arrays: Mapping[str, Any]) -> None:
    """Raises ValueError, with names and dtypes, where arrays are not floating-point numbers."""
    dtypes = {key: getattr(value, "dtype", type(value)) for key, value in arrays.items()}
    wrong = [f"{key} ({x})" for key, x in dtypes.items() if not jnp.issubdtype(x, jnp.floating)]
    if wrong:
        raise ValueError(
            f"the parameters of {name} are floating-point numbers, and these weights have others: "
            f"{listed(wrong)}; cast them, or undo the quantisation that made them"
        )


def check_names(
    name: str,
    naming: str,
    wanted: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
) -> None:
    """Raises ValueError unless names and shapes are those that a model has.

    Args:
        name: what messages call the model.
        naming: what they call its names.
        wanted, found: shapes by name, of the model and of the weights.
    """
    missing = [key for key in wanted if key not in found]
    unexpected = [key for key in found if key not in wanted]
    wrong = [
        f"{key} (the model has {wanted[key]}, the weights have {found[key]})"
        for key in wanted
        if key in found and wanted[key] != found[key]
    ]
    if not (missing or unexpected or wrong):
        return
    lines = [f"these weights are not those of {name} in {naming} naming"]
    for title, keys in (
        ("missing, the model has them and the weights do not", missing),
        ("unexpected, the weights have them and the model does not", unexpected),
        ("wrong shape", wrong),
    ):
        if keys:
            lines.append(f"  {title} ({len(keys)}): {listed(keys)}")
    lines.append("check the model's name, num_classes, in_chans and options")
    raise ValueError("\n".join(lines))
