# SPDX-License-Identifier: Apache-2.0
"""What tells one set of labelled images from another, and how two of them differ.

A run keeps the identity of its training set: update k reads examples by their numbers, and a label
is the number of a class, so both mean something else once files or classes have changed.
"""

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from mambaout_jax.data.sets.listing import listed


@runtime_checkable
class Fingerprinted(Protocol):
    """A set that knows what it holds."""

    def images_per_class(self) -> dict[str, int | None]:
        """By class name, in the order of the labels; None where counting would read the records."""
        ...

    def fingerprint(self) -> str:
        """Changes with any file name or label, on every machine alike; pixels are not read."""
        ...


def identity(source: Any) -> dict[str, Any]:
    """What a set is, as JSON could hold it; `fingerprint` and `classes` where it knows them."""
    known: dict[str, Any] = {"kind": type(source).__name__, "examples": len(source)}
    if isinstance(source, Fingerprinted):
        known |= {"classes": source.images_per_class(), "fingerprint": source.fingerprint()}
    return known


def fingerprint(names: Iterable[str], labels: Iterable[int]) -> str:
    """SHA-256 of the pairs of relative file name and label, in their order."""
    digest = hashlib.sha256()
    for name, label in zip(names, labels, strict=True):
        digest.update(b"%s\0%d\n" % (os.fsencode(name), label))
    return digest.hexdigest()


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """How two identities differ, in words; "" where they are the same."""
    if before == now:
        return ""
    words = []
    if before["kind"] != now["kind"]:
        words.append(f"it was a {before['kind']} and is a {now['kind']}")
    old, new = before.get("classes") or {}, now.get("classes") or {}
    if difference := class_changes(tuple(old), tuple(new)):
        words.append(difference)
    counts = [
        f"{name!r} had {old[name]:,} images and has {new[name]:,}"
        for name in old
        if name in new and None not in (old[name], new[name]) and old[name] != new[name]
    ]
    words += counts[:3]
    if len(counts) > 3:
        words.append(f"{len(counts) - 3:,} more classes have another number of images")
    if before["examples"] != now["examples"]:
        words.append(f"it had {before['examples']:,} examples and has {now['examples']:,}")
    return "; ".join(words) or "it has as many examples, of other names or with other labels"


def class_changes(before: Sequence[str], now: Sequence[str]) -> str:
    """How two lists of class names differ, in words; "" where they are the same."""
    gone = [name for name in before if name not in set(now)]
    new = [name for name in now if name not in set(before)]
    words = []
    if gone:
        words.append(f"classes that are gone: {listed(gone)}")
    if new:
        words.append(f"new classes: {listed(new)}")
    if not words and tuple(before) != tuple(now):
        words.append("the classes have another order")
    if gone and len(gone) == len(new):
        words.append("they may have been renamed")
    return "; ".join(words)
