# SPDX-License-Identifier: Apache-2.0
"""ImageNet classifiers on all test sets that a folder holds (`data.suites`), beside what is
published for their weights.

What is measured of each:

    val, v2, sketch   top-1, top-5 and mean cross-entropy
    a, r              the same among the 200 classes of the set: the other logits do not compete
    real              top-1 and top-5; any of an image's labels is right, one without does not count
    c                 error of each corruption over its five severities; mCE, where all are there

The images of ImageNet-C are central crops of 224 pixels already, and are not cropped again.
"""

import contextlib
import copy
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from mambaout_jax.backbone import Classifier
from mambaout_jax.config import Config, default_config, validate
from mambaout_jax.config_file import load_config, override
from mambaout_jax.data.loader import evaluation_batches
from mambaout_jax.data.sets.imagenet_suites import (
    CORRUPTIONS,
    SEVERITIES,
    SUITES,
    Suite,
    find_suites,
)
from mambaout_jax.imagenet_classes import CLASS_NAMES, SYNSETS
from mambaout_jax.preprocessing import Preprocessing
from mambaout_jax.runtime.compiler_options import to_run_fast
from mambaout_jax.runtime.mesh import make_mesh, platform_of, put_batch, replicated
from mambaout_jax.train.augment import normalise
from mambaout_jax.weights.catalog import published_result
from mambaout_jax.weights.load import describe_source, load_pretrained

# Top-1 errors of AlexNet in percent, means over the severities, by which mCE divides: Hendrycks and
# Dietterich 2019, Table 1 (rounded there); these digits from github.com/hendrycks/robustness.
ALEXNET_ERRORS = {
    "gaussian_noise": 88.6428, "shot_noise": 89.4468, "impulse_noise": 92.2640,
    "defocus_blur": 81.9880, "glass_blur": 82.6268, "motion_blur": 78.5948, "zoom_blur": 79.8360,
    "snow": 86.6816, "frost": 82.6572, "fog": 81.9324, "brightness": 56.4592,
    "contrast": 85.3204, "elastic_transform": 64.6056, "pixelate": 71.7840,
    "jpeg_compression": 60.6500,
}  # fmt: skip

# What the terminal shows of a row: heading and metric.
_COLUMNS = (("top-1", "top1"), ("top-5", "top5"), ("loss", "loss"), ("error", "error"),
            ("CE", "ce"), ("mCE", "mce"))  # fmt: skip

SuiteSums = dict[str, Float[Array, ""]]
Evaluator = Callable[[Suite, Config], dict[str, float]]


class SuiteResult(NamedTuple):
    """One row of the evaluation.

    Attributes:
        name: of `SUITES`, or "c/<corruption>".
        count: images that counted; 0 of an absent suite.
        metrics: `top1`, `top5` in percent, `loss`; of a corruption `error` in percent and `ce`;
            of "c" `mce`, both in percent of AlexNet's error. Empty where nothing was measured.
        published: the same of the released weights, by others; never measured here.
        notes: how the copy differs from the published set, or why nothing was measured.
    """

    name: str
    count: int
    metrics: dict[str, float]
    published: dict[str, float]
    notes: tuple[str, ...]


def suite_config(
    source: str | Path, overrides: Sequence[str] = (), config: Config | None = None
) -> Config:
    """How the images of the suites are prepared: as published for the weights at this size.

    Args:
        source: of weights.
        overrides: settings such as "--config.data.image_size=288".
        config: to be used as it is, but for the overrides.

    Raises:
        As `describe_source` and `override`.
    """
    run = Path(source) / "config.json"
    made = copy.deepcopy(config)
    if made is None:
        made = load_config(run) if run.is_file() else default_config()
    made.data.source, made.data.path = "folder", "suites"  # nothing reads them
    if config is not None:
        return override(made, overrides)
    made.data.image_size = describe_source(source).image_size
    size = override(copy.deepcopy(made), overrides).data.image_size
    how = describe_source(source, image_size=size)
    made.data.crop_fraction, made.data.crop_mode = how.crop_fraction, how.crop_mode
    made.data.interpolation, made.data.channels = how.interpolation, len(how.mean)
    made.data.mean, made.data.std = how.mean, how.std
    return override(made, overrides)


def evaluate_suites(
    source: str | Path, config: Config, root: str | Path, names: Sequence[str] = SUITES
) -> Iterator[SuiteResult]:
    """Evaluates weights on the suites that are there, one after the other.

    Every image counts once, on any number of devices and processes.

    Args:
        source: of weights with the 1000 classes of ImageNet-1k.
        config: `suite_config`'s; `data`, `evaluation.batch_size`, `mesh`, `model.dtype`
            and `model.options` count.
        root: folder of the suites.
        names: of `SUITES`.

    Raises:
        ValueError: a setting is wrong, the weights have other classes, or a suite has another
            layout; `UnreadableImageError` where an image cannot be decoded.
        FileNotFoundError: the folder holds none of the suites.
    """
    validate(config, jax.device_count())
    present, absent = find_suites(root, names, config.data.channels)
    model, variables = load_pretrained(
        source,
        image_size=config.data.image_size,
        dtype=jnp.dtype(config.model.dtype),
        **config.model.options,
    )
    how = describe_source(source, image_size=config.data.image_size)
    _check_classes(source, model.head.num_classes, how.class_names)
    sums_of = make_suite_evaluator(model, variables, config)
    targets = _published(source, config)
    for name in names:
        if name in absent:
            yield SuiteResult(name, 0, {}, {}, (f"absent: {absent[name]}",))
        elif name == "c":
            opened = {key: present[key] for key in present if key.startswith("c/")}
            yield from _corruption_results(opened, config, sums_of)
        else:
            suite = present[name]()
            metrics, count = _metrics(sums_of(suite, config), loss=name != "real")
            yield SuiteResult(name, count, metrics, targets.get(name, {}), suite.notes)


def report_suites(
    source: str | Path,
    config: Config,
    root: str | Path,
    names: Sequence[str] = SUITES,
    out: Path | None = None,
) -> None:
    """Evaluates and prints a row per suite as soon as it is there.

    Args:
        source, config, root, names: of `evaluate_suites`.
        out: JSON file, written anew after each suite.

    Raises:
        As `evaluate_suites`.
    """
    data, device = config.data, jax.devices()[0]
    about = {
        "weights": str(source),
        "image_size": data.image_size,
        "crop_fraction": data.crop_fraction,
        "crop_mode": data.crop_mode,
        "interpolation": data.interpolation,
        "dtype": config.model.dtype,
        "devices": f"{jax.device_count()} x {device.device_kind}",
    }
    rows: dict[str, dict[str, Any]] = {}
    is_main = jax.process_index() == 0
    for result in evaluate_suites(source, config, root, names):
        rows[result.name] = {
            "count": result.count,
            **result.metrics,
            "published": result.published,
            "notes": list(result.notes),
        }
        if not is_main:
            continue
        if len(rows) == 1:
            print("  ".join(f"{name} {value}" for name, value in about.items()))
        print(format_result(result), flush=True)
        if out is not None:
            out.write_text(json.dumps({**about, "suites": rows}, indent=2) + "\n")


def format_result(result: SuiteResult) -> str:
    """One line, such as "val  50,000 images  top-1 82.74 (published 82.742)", and its notes."""
    words = [f"{result.name:20}"]
    if result.count:
        words.append(f"{result.count:>9,} images")
    for heading, metric in _COLUMNS:
        if metric in result.metrics:
            word = f"{heading} {result.metrics[metric]:.3f}"
            if metric in result.published:
                word += f" (published {result.published[metric]:.3f})"
            words.append(word)
    return "  ".join(words + list(result.notes))


def make_suite_evaluator(model: Classifier, variables: dict[str, Any], config: Config) -> Evaluator:
    """Makes a function `(suite, config) -> sums` over all of its images.

    Args:
        model, variables: with the 1000 classes of ImageNet-1k.
        config: `mesh`, and `data.mean` and `data.std`; that of the function decides all else of the
            images.
    """
    mesh = make_mesh(config.mesh.fsdp)
    mean, std = tuple(config.data.mean), tuple(config.data.std)
    # A jitted identity is the one way to place host arrays that is right with several processes.
    placed = jax.jit(lambda x: x, out_shardings=replicated(mesh))(variables)
    # Apart from the sums, so that the model is compiled once for all suites.
    forward = jax.jit(
        lambda variables, images: model.apply(variables, normalise(images, mean, std), train=False),
        compiler_options=to_run_fast(platform_of(mesh)),
    )
    add_up = jax.jit(suite_sums, out_shardings=replicated(mesh))

    def evaluator(suite: Suite, config: Config) -> dict[str, float]:
        competing = np.isin(np.arange(len(CLASS_NAMES)), suite.classes)
        sums: list[SuiteSums] = []
        batches = evaluation_batches(
            config,
            suite.source,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        with contextlib.closing(batches):
            for batch in batches:
                if batch["label"].max() >= len(suite.answers):  # which JAX would clamp
                    raise ValueError(
                        f"an image has label {batch['label'].max()}, and there are answers for "
                        f"{len(suite.answers)} only; get the labels and the images again"
                    )
                on_device = put_batch(batch, mesh)
                logits = forward(placed, on_device["image"])
                label, mask = on_device["label"], on_device["mask"]
                sums.append(add_up(logits, label, mask, suite.answers, competing))
                if len(sums) > 1:  # a host that runs further ahead only hoards batches
                    jax.block_until_ready(sums[-2])
        fetched = jax.device_get(sums)
        return {name: sum(float(batch[name]) for batch in fetched) for name in fetched[0]}

    return evaluator


def suite_sums(
    logits: Float[Array, "B K"],
    labels: Int[Array, "B"],
    mask: Bool[Array, "B"],
    answers: Int[ArrayLike, "labels most"],
    competing: Bool[ArrayLike, "K"],
) -> SuiteSums:
    """Sums of hits, of the cross-entropy and of the images that count.

    An image hits where the likeliest, or one of the five likeliest, of the competing classes is
    right. Of equal logits the lower class counts as likelier, and NaN is a miss.

    Args:
        logits: of all classes.
        labels: rows of `answers`.
        mask: False of what only fills the batch up.
        answers: the right classes of each label, filled up with -1; without any an image does not
            count.
        competing: the classes among which the probabilities are distributed.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    classes = jnp.arange(logits.shape[-1])
    right = (jnp.asarray(answers)[labels][:, :, None] == classes[None, None]).any(1)  # (B, K)
    counts = (mask & right.any(-1)).astype(logits.dtype)
    of_right = jnp.where(right, logits, -jnp.inf)
    best = jnp.argmax(of_right, axis=-1, keepdims=True)  # the first of equals
    own = jnp.max(of_right, axis=-1, keepdims=True)
    before = ~(logits <= own) | ((logits == own) & (classes[None] < best))
    among = jnp.asarray(competing)[None]  # (1, K)
    rank = jnp.sum(before & among, axis=-1)  # (B,)
    total = jax.nn.logsumexp(jnp.where(among, logits, -jnp.inf), axis=-1)
    losses = total - jax.nn.logsumexp(of_right, axis=-1)
    return {
        "loss": jnp.sum(jnp.where(counts > 0, losses, 0)),
        "top1": jnp.sum((rank < 1) * counts),
        "top5": jnp.sum((rank < 5) * counts),
        "count": jnp.sum(counts),
    }


def _check_classes(source: str | Path, count: int, names: tuple[str, ...] | None) -> None:
    if count != len(CLASS_NAMES):
        raise ValueError(
            f"{source} has {count} classes; the suites need the {len(CLASS_NAMES):,} of ImageNet-1k"
        )
    if names not in (None, CLASS_NAMES, SYNSETS):
        raise ValueError(
            f"{source} has {count:,} classes that are not ImageNet-1k's in their order, the first "
            f"is {names[0]!r} instead of {SYNSETS[0]!r}"
        )


def _published(source: str | Path, config: Config) -> dict[str, dict[str, float]]:
    """Published metrics of each suite, for these weights and this preparation of the images."""
    data = config.data
    how = Preprocessing(
        data.image_size, data.crop_fraction, data.crop_mode, data.interpolation,
        tuple(data.mean), tuple(data.std),
    )  # fmt: skip
    result = published_result(str(source), how)
    if result is None:
        return {}
    rows = {name: {"top1": getattr(result, name)} for name in ("real", "v2", "a", "r", "sketch")}
    rows["val"] = {"top1": result.top1, "top5": result.top5}
    return {
        name: {metric: value for metric, value in row.items() if value is not None}
        for name, row in rows.items()
    }


def _metrics(sums: dict[str, float], loss: bool) -> tuple[dict[str, float], int]:
    """Percent and means, and the images they are over."""
    count = sums["count"]
    if not count:
        raise ValueError("no image of the suite has a label; get its labels again")
    metrics = {name: 100 * sums[name] / count for name in ("top1", "top5")}
    return ({**metrics, "loss": sums["loss"] / count} if loss else metrics), round(count)


def _corruption_results(
    present: dict[str, Callable[[], Suite]], config: Config, sums_of: Evaluator
) -> Iterator[SuiteResult]:
    """A row for each corruption, and one for all of them."""
    config = copy.deepcopy(config)
    config.data.crop_fraction, config.data.crop_mode = 1.0, "center"
    rows, total = {}, 0
    for corruption in CORRUPTIONS:
        errors, notes, count = {}, {}, 0
        for severity in SEVERITIES:
            if (key := f"c/{corruption}/{severity}") in present:
                suite = present[key]()
                metrics, images = _metrics(sums_of(suite, config), loss=False)
                errors[severity] = 100 - metrics["top1"]
                notes.update({f"severity {severity}: {note}": None for note in suite.notes})
                count += images
        if not errors:
            continue
        missing = [str(severity) for severity in SEVERITIES if severity not in errors]
        row = {f"error/{severity}": error for severity, error in errors.items()}
        row["error"] = sum(errors.values()) / len(errors)
        if missing:
            notes[f"no ce without severity {', '.join(missing)}"] = None
        else:
            row["ce"] = 100 * row["error"] / ALEXNET_ERRORS[corruption]
        rows[corruption], total = row, total + count
        yield SuiteResult(f"c/{corruption}", count, row, {}, tuple(notes))
    errors = [row["ce"] for row in rows.values() if "ce" in row]
    if len(errors) == len(CORRUPTIONS):
        yield SuiteResult("c", total, {"mce": sum(errors) / len(errors)}, {}, ())
    else:
        lacking = [name for name in CORRUPTIONS if "ce" not in rows.get(name, {})]
        note = f"no mCE: it needs five severities of all corruptions; not of {', '.join(lacking)}"
        yield SuiteResult("c", total, {}, {}, (note,))
