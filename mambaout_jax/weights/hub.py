# SPDX-License-Identifier: Apache-2.0
"""What timm writes beside weights: a `config.json`, on the hub or in a folder.

Of it the model's name, its options and how its images are prepared are understood. An option that
changes the model and is not known here is an error.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mambaout_jax.heads.classifier import TokenHead
from mambaout_jax.models import create_model, find_variant, list_models
from mambaout_jax.preprocessing import Preprocessing

CONFIG = "config.json"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that is there
_OPTIONS = {"img_size": "image_size"}  # ours where timm's has another name
_OF_TRAINING = ("drop_rate", "drop_path_rate")  # how these names end


def read_config(path: Path) -> dict[str, Any] | None:
    """The settings in a `config.json`, None where it is not of timm or not there.

    Raises:
        ValueError: it is not JSON.
    """
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}; write or download it again") from error
    return config if isinstance(config, dict) and "architecture" in config else None


def weights_file(file: Callable[[str], Path]) -> Path:
    """The file of weights.

    Args:
        file: path of the file of a name; raises FileNotFoundError where there is none.
    """
    try:
        return file(_WEIGHTS[0])
    except FileNotFoundError as error:
        try:
            return file(_WEIGHTS[1])
        except FileNotFoundError:
            raise error from None


def file_in(folder: Path, name: str) -> Path:
    """Path of a file in a folder.

    Raises:
        FileNotFoundError: it is not there.
    """
    if not (folder / name).is_file():
        raise FileNotFoundError(f"{folder} has no {name}; allowed are {' and '.join(_WEIGHTS)}")
    return folder / name


def model_of(config: Mapping[str, Any], where: str) -> tuple[str, dict[str, Any]]:
    """Name and options of the model; the number of classes is left to the weights.

    Raises:
        ValueError: it is not one of ours, or has an option that is not known.
    """
    name: str = config["architecture"]
    arguments: dict[str, Any] = dict(config.get("model_args") or {})
    told = f"config.json of {where} has architecture={name!r} and model_args={arguments}"
    if name not in list_models():
        raise ValueError(
            f"{told}, which is none of {list_models()}; where the weights are of one, give name="
        )
    allowed = "token" if find_variant(name)[0].HEAD is TokenHead else "avg"
    pool = arguments.pop("global_pool", config.get("global_pool", allowed))
    if pool != allowed:
        raise ValueError(
            f"{told} and global_pool={pool!r}; {name} has {allowed!r} here and no other"
        )
    arguments.pop("num_classes", None)
    options: dict[str, Any] = {
        _OPTIONS.get(key, key): tuple(value) if isinstance(value, list) else value
        for key, value in arguments.items()
        if not key.endswith(_OF_TRAINING)
    }
    try:
        create_model(name, **options)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{told}: {error}; or give name= and the options yourself") from error
    return name, options


def preprocessing_of(
    config: Mapping[str, Any], where: str, other: Preprocessing, image_size: int | None
) -> Preprocessing:
    """How images are prepared.

    Args:
        config: of `read_config`.
        where: the folder or repository, for messages.
        other: what holds where the config says nothing.
        image_size: pixels, None for the config's own.

    Raises:
        ValueError: mean and std are not those of the model's channels.
    """
    given, names = config.get("pretrained_cfg") or config, config.get("label_names")
    mean, std = (tuple(given.get(key, getattr(other, key))) for key in ("mean", "std"))
    channels = (config.get("model_args") or {}).get("in_chans", len(mean))
    if not len(mean) == len(std) == channels:
        raise ValueError(
            f"config.json of {where} has mean={mean} and std={std} for a model of {channels} "
            "channels; write one number for each channel"
        )
    return Preprocessing(
        image_size=image_size or given.get("input_size", [other.image_size])[-1],
        crop_fraction=given.get("crop_pct", other.crop_fraction),
        crop_mode=given.get("crop_mode", other.crop_mode),
        interpolation=given.get("interpolation", other.interpolation),
        mean=mean,
        std=std,
        class_names=tuple(names) if isinstance(names, list) else None,
    )
