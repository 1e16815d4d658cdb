# SPDX-License-Identifier: Apache-2.0
"""Understands what a source of weights is: its model, where its file is, how images are prepared.

Nothing is read here but names and settings; `weights.load` reads the weights.
"""

import contextlib
import dataclasses
import difflib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from mambaout_jax.config import Config
from mambaout_jax.config_file import load_config
from mambaout_jax.models import find_variant, list_models, model_options
from mambaout_jax.paths import in_bucket, local_path, workdir_path
from mambaout_jax.preprocessing import Preprocessing
from mambaout_jax.published import Weights
from mambaout_jax.runtime.workdir import run_copy
from mambaout_jax.weights import hub
from mambaout_jax.weights.catalog import CATALOG, weights_of
from mambaout_jax.weights.download import hub_file, web_file
from mambaout_jax.weights.files import open_safetensors
from mambaout_jax.weights.formats import format_of

MODEL_KEY = "model"  # of the metadata of our own files
_HUB_PREFIXES = ("hf_hub:", "hf-hub:")  # ours and timm's spelling
_FILES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".npz")  # of weights, by their endings


class Found(NamedTuple):
    """A source that is understood, and not yet read.

    Attributes:
        name: name of the model.
        fetch: gives the file, or the directory of a run; may download.
        preprocessing: gives that for an image size, None for the source's own; may download.
        options: options of `create_model` that the source itself tells.
    """

    name: str
    fetch: Callable[[], Path]
    preprocessing: Callable[[int | None], Preprocessing]
    options: Mapping[str, Any] = {}


@contextlib.contextmanager
def copied_run(source: str | Path) -> Iterator[str | Path]:
    """A source for `locate`: for a run in a bucket a local copy, all else as it is given.

    Args:
        source: see `weights.load`, or the address of a run. One that ends like a file of weights
            is none, and `locate` refuses it.

    Raises:
        As `runtime.workdir.run_copy`.
    """
    if in_bucket(source) and Path(source).suffix not in _FILES:
        with run_copy(workdir_path(source)) as folder:
            yield folder
    else:
        yield source


def locate(source: str | Path, name: str | None = None) -> Found:
    """Understands a source; see `weights.load` for what it may be.

    Args:
        source, name: see `load_pretrained`.

    Raises:
        FileNotFoundError: there is no such source.
        ValueError: it does not say which model it is of, `name` is none, or it is an address that
            nothing can be read from.
        RuntimeError: a repository's `config.json` could not be downloaded.
    """
    if name is not None:
        find_variant(name)
    text = str(source)
    if text in CATALOG:
        return _find_published(CATALOG[text], name)
    if text.startswith(_HUB_PREFIXES):
        return _find_on_hub(text[len(_HUB_PREFIXES[0]) :], name)
    if text.startswith(("http://", "https://")):
        name = name or _checked(_stem(Path(unquote(urlsplit(text).path))), text)
        return Found(name, partial(web_file, text), partial(_published, name))
    path = local_path(source)
    if path.is_dir():
        if hub.read_config(path / hub.CONFIG) is not None:
            return _find_beside(partial(hub.file_in, path), text, name)
        config = load_config(path / "config.json")
        preprocessing = partial(_preprocessing_of_run, config, path)
        return Found(name or config.model.name, lambda: path, preprocessing, model_options(config))
    if path.exists():
        name = name or _checked(_name_of(path), text)
        return Found(name, lambda: path, partial(_published, name))
    raise FileNotFoundError(f"there are no weights {text!r}; {_hint(text)}")


def _hint(text: str) -> str:
    keys = list(weights_of(text)) or difflib.get_close_matches(text, CATALOG, n=3)
    if keys:
        return f"did you mean {' or '.join(keys)}?"
    return (
        "it is neither a file nor a directory nor a key of the catalog. A repository of the hub "
        f"begins with {_HUB_PREFIXES[0]}, an address with https://; the catalog has {list(CATALOG)}"
    )


def _find_published(weights: Weights, name: str | None) -> Found:
    if weights.source.startswith(_HUB_PREFIXES):
        repository = weights.source[len(_HUB_PREFIXES[0]) :]
        fetch = partial(hub_file, repository, "model.safetensors", weights.sha256)
    else:
        fetch = partial(web_file, weights.source, weights.sha256)
    return Found(name or weights.model, fetch, weights.preprocessing)


def _find_on_hub(repository: str, name: str | None) -> Found:
    for weights in CATALOG.values():
        if weights.source == f"{_HUB_PREFIXES[0]}{repository}":
            return _find_published(weights, name)
    return _find_beside(partial(hub_file, repository), repository, name)


def _find_beside(file: Callable[[str], Path], where: str, name: str | None) -> Found:
    """Weights with timm's `config.json` beside them; for a given name it tells no options."""

    def config() -> dict[str, Any]:
        found = hub.read_config(file(hub.CONFIG))
        if found is None:
            raise ValueError(
                f"config.json of {where} names no architecture, as timm's does; where the weights "
                "are of one of our models, give name="
            )
        return found

    def preprocessing(image_size: int | None) -> Preprocessing:
        return hub.preprocessing_of(config(), where, _published(model, image_size), image_size)

    model, options = hub.model_of(config(), where) if name is None else (name, {})
    return Found(model, partial(hub.weights_file, file), preprocessing, options)


def _name_of(path: Path) -> str:
    """The model of a file, by its metadata where it is our own, else by its name."""
    if format_of(path) != "safetensors":
        return _stem(path)
    with open_safetensors(path) as file:
        return (file.metadata() or {}).get(MODEL_KEY, _stem(path))


def _stem(path: Path) -> str:
    return path.name.partition(".")[0]  # what follows is timm's tag, or a suffix


def _checked(name: str, source: str) -> str:
    if name not in list_models():
        raise ValueError(
            f"{source} does not say which model it is of, and {name!r} is none; give name=, one "
            f"of {list_models()}"
        )
    return name


def _published(name: str, image_size: int | None) -> Preprocessing:
    for weights in weights_of(name).values():
        return weights.preprocessing(image_size)
    _, variant = find_variant(name)
    return Preprocessing(image_size or variant.image_size)


def _preprocessing_of_run(config: Config, workdir: Path, image_size: int | None) -> Preprocessing:
    classes = workdir / "classes.json"
    names = _read_names(classes) if classes.is_file() else None
    own = Preprocessing.of(config.data, None if names is None else tuple(names))
    return dataclasses.replace(own, image_size=image_size or own.image_size)


def _read_names(classes: Path) -> list[str]:
    try:
        names = json.loads(classes.read_text(encoding="utf-8"))
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("it is no list of names")
    except ValueError as error:
        raise ValueError(
            f"{classes} is damaged ({error}); put back a copy, or run the command that trained "
            "this run again, which writes the file anew"
        ) from error
    return names
