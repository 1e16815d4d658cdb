# SPDX-License-Identifier: Apache-2.0
"""Which models the comparison of whole models measures, and who takes part beside each of them.

All of it is found out before anything is measured, so that a wrong name costs no time. timm is
imported only where it may take part.
"""

import difflib
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from mambaout_jax.benchmarks.jax_models import has_scan
from mambaout_jax.benchmarks.official_models import REPOSITORIES, check_checkout, official_model
from mambaout_jax.benchmarks.torch_models import Peer, import_timm, timm_model
from mambaout_jax.kernels.selective_scan import IMPLEMENTATIONS
from mambaout_jax.models import find_variant, list_models
from mambaout_jax.weights.convert import namings


class Entry(NamedTuple):
    """A model, and who takes part beside it.

    Attributes:
        name: one of `list_models()`, or of timm's models.
        ours: whether this library has it.
        scans: further implementations of its scan.
        peer: makes the PyTorch model to compare with; None: there is none.
    """

    name: str
    ours: bool
    scans: tuple[str, ...]
    peer: Callable[[], Peer] | None


def line_up(
    models: Sequence[str],
    image_size: int,
    *,
    scans: Sequence[str],
    timm: bool,
    official: Sequence[tuple[str, str]],
) -> list[Entry]:
    """An entry for each model.

    Args:
        models: names, ours or timm's, and patterns of our names.
        image_size: side of the images in pixels.
        scans: implementations of the scan that take part where a model has one.
        timm: whether timm's models take part.
        official: families, and checkouts of their official code.

    Raises:
        ValueError: a name, pattern, scan or checkout is not known, a package is not there, or
            something that is asked for would take no part.
    """
    names = _expand(models)
    for name in names:
        _check_name(name, timm)
    _check_official(names, official)
    if unknown := [scan for scan in scans if scan not in IMPLEMENTATIONS]:
        raise ValueError(f"scans={unknown} are not known; allowed are {', '.join(IMPLEMENTATIONS)}")
    entries = []
    for name in names:
        ours = name in list_models()
        own = tuple(scans) if scans and ours and has_scan(name, image_size) else ()
        entries.append(Entry(name, ours, own, _peer(name, image_size, timm, official)))
    if scans and not any(entry.scans for entry in entries):
        raise ValueError(
            f"scans={list(scans)}: none of the models has a scan; name one that has, such as "
            "vim_tiny, or leave scans out"
        )
    return entries


def _expand(models: Sequence[str]) -> list[str]:
    """Each name once; patterns stand for the names of ours that they match."""
    names = []
    for name in models:
        found = list_models(name) if set(name) & set("*?[") else [name]
        if not found:
            raise ValueError(f"no model matches {name!r}; `mambaout models` lists them")
        names += found
    return list(dict.fromkeys(names))


def _check_name(name: str, timm: bool) -> None:
    """Raises ValueError unless there is such a model, and suggests names that are close."""
    if name in list_models():
        if timm and _may_be_timms(name):
            import_timm()
        return
    if not timm:
        find_variant(name)
    known, missing = list_models(), ""
    try:
        module = import_timm()
    except ValueError as error:
        missing = f" If it is one of timm's: {error}"
    else:
        if module.is_model(name):
            return
        known = [*known, *module.list_models()]
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(close)}?" if close else "`mambaout models` lists ours"
    where = "here" if missing else "here or in timm"
    raise ValueError(f"no model is called {name!r} {where}; {hint}{missing}")


def _check_official(names: Sequence[str], official: Sequence[tuple[str, str]]) -> None:
    families = [family for family, _ in official]
    for family, folder in official:
        if families.count(family) > 1:
            raise ValueError(f"official: {family} is given twice; one checkout can take part")
        check_checkout(family, folder)
        if not set(names) & set(REPOSITORIES[family].models):
            raise ValueError(
                f"official={family}={folder}: none of its models is measured; name one of "
                f"{', '.join(REPOSITORIES[family].models)}"
            )


def _peer(
    name: str, image_size: int, timm: bool, official: Sequence[tuple[str, str]]
) -> Callable[[], Peer] | None:
    """What makes the PyTorch model that a model is compared with."""
    for family, folder in official:
        if name in REPOSITORIES[family].models:
            return functools.partial(official_model, folder, name, image_size)
    if not timm or (name in list_models() and not _may_be_timms(name)):
        return None
    if not import_timm().is_model(name):
        return None
    return functools.partial(timm_model, name, image_size)


def _may_be_timms(name: str) -> bool:
    """Whether this library knows timm's names of the weights of such a model."""
    return bool(find_variant(name)[0].TORCH_NAMES) and "timm" in namings(name)
