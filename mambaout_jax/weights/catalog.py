# SPDX-License-Identifier: Apache-2.0
"""Published weights by name: what the families' `WEIGHTS` hold, and a table of all models."""

import dataclasses
import fnmatch

from mambaout_jax.models import FAMILIES, find_variant, list_models
from mambaout_jax.preprocessing import Preprocessing
from mambaout_jax.published import Result, Weights

CATALOG: dict[str, Weights] = {
    key: weights for family in FAMILIES for key, weights in family.WEIGHTS.items()
}


def find_weights(pattern: str = "*") -> dict[str, Weights]:
    """Published weights whose key matches a shell-style pattern, in the catalog's order."""
    return {key: CATALOG[key] for key in fnmatch.filter(CATALOG, pattern)}


def published_result(source: str, preprocessing: Preprocessing) -> Result | None:
    """What is published for weights whose images are prepared so, None where nothing is.

    Args:
        source: key of the catalog, or where the weights of one are.
        preprocessing: the evaluation's; its `class_names` do not matter.
    """
    for key, weights in CATALOG.items():
        if source not in (key, weights.source, weights.source.replace("hf_hub:", "hf-hub:")):
            continue
        for result in weights.results:
            published = weights.preprocessing(result.image_size)
            if (
                dataclasses.replace(published, class_names=preprocessing.class_names)
                == preprocessing
            ):
                return result
    return None


def weights_of(model: str) -> dict[str, Weights]:
    """Published weights of one of `list_models()`; the first are those to start from."""
    return {key: weights for key, weights in CATALOG.items() if weights.model == model}


def matching_models(pattern: str = "*", family: str | None = None) -> list[str]:
    """Names of models, in the families' own order.

    Args:
        pattern: a shell-style pattern that they match.
        family: the family that they are of, None: all.

    Raises:
        ValueError: no model matches, or there is no such family.
    """
    families = {module.__name__.rsplit(".", 1)[-1]: module for module in FAMILIES}
    if family is not None and family not in families:
        raise ValueError(f"no family is called {family!r}; there are {', '.join(families)}")
    of_family = families[family].VARIANTS if family else list_models()
    names = [name for name in list_models(pattern) if name in of_family]
    if not names:
        raise ValueError(f"no model matches {pattern!r}; there are {', '.join(of_family)}")
    return names


def model_table(pattern: str = "*", family: str | None = None) -> str:
    """Parameters, MACs and published accuracies of models, as text.

    Args:
        pattern, family: see `matching_models`, as for what is raised.
    """
    names = matching_models(pattern, family)
    lines = [("model", "parameters", "MACs at 224", "by hand", "top-1", "weights")]
    for name in names:
        _, variant = find_variant(name)
        hand = f"{variant.hand_macs / 1e9:.2f} G" if variant.hand_macs else ""
        cost = (f"{variant.parameters / 1e6:.2f} M", f"{variant.macs / 1e9:.2f} G", hand)
        rows = [
            (f"{weights.results[0].top1:g}" if weights.results else "-", key)
            for key, weights in weights_of(name).items()
        ] or [(f"{variant.top1:g}" if variant.top1 else "-", "none known here")]
        lines.append((name, *cost, *rows[0]))
        lines.extend(("", "", "", "", *row) for row in rows[1:])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    table = "\n".join(
        "  ".join(
            cell.ljust(width) if i in (0, 5) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
    return (
        f"{table}\ntop-1: published ImageNet-1k accuracy in percent at the size of training\n"
        "by hand: the formula of Vim's and LocalMamba's code, which counts the projections of one "
        "path alone"
    )
