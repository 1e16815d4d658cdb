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

import copy
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mambaout_jax.config import Config, default_config, validate
from mambaout_jax.config_file import load_config, override
from mambaout_jax.data.sets.suites import (
    CORRUPTIONS,
    SEVERITIES,
    SUITES,
    Suite,
    find_suites,
)
from mambaout_jax.data.views.crops import EvaluationView
from mambaout_jax.evaluation.evaluator import Evaluator
from mambaout_jax.imagenet_classes import CLASS_NAMES, SYNSETS
from mambaout_jax.preprocessing import Preprocessing
from mambaout_jax.runtime.mesh import make_mesh, place, replicated
from mambaout_jax.tasks.classification import Classification
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

# (suite, preparation of its images) → (metrics, how many images they are over)
Measure = Callable[[Suite, Preprocessing], tuple[dict[str, float], int]]


class SuiteResult(NamedTuple):
    """One row of the evaluation.

    Attributes:
        name: one of `SUITES`, or "c/<corruption>".
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
        source: where the weights are, see `weights.load`.
        overrides: settings such as "--config.data.image_size=288".
        config: to be used as it is, but for the overrides.

    Raises:
        As `describe_source` and `override`.
    """
    run = Path(source).expanduser() / "config.json"
    made = copy.deepcopy(config)
    if made is None:
        made = load_config(run) if run.is_file() else default_config()
    made.data.source, made.data.path = "folder", "suites"  # nothing reads them
    if config is not None:
        return override(made, overrides)
    made.data.image_size = describe_source(source).image_size
    size = override(copy.deepcopy(made), overrides).data.image_size
    describe_source(source, image_size=size).write_to(made.data)
    return override(made, overrides)


def evaluate_suites(
    source: str | Path, config: Config, root: str | Path, names: Sequence[str] = SUITES
) -> Iterator[SuiteResult]:
    """Evaluates weights on the suites that are there, one after the other.

    Every image counts once, on any number of devices and processes.

    Args:
        source: where weights with the 1000 classes of ImageNet-1k are, see `weights.load`.
        config: `suite_config`'s; `data`, `evaluation.batch_size`, `mesh`, `model.dtype`
            and `model.options` count.
        root: folder of the suites.
        names: some of `SUITES`.

    Raises:
        ValueError: a setting is wrong, the weights have other classes, or a suite has another
            layout; `UnreadableImageError` where an image cannot be decoded.
        FileNotFoundError: the folder holds none of the suites.
    """
    validate(config, jax.device_count())
    present, absent = find_suites(root, names, config.data.channels)
    measure = _make_measure(source, config)
    preprocessing = Preprocessing.of(config.data)
    published = _published(source, preprocessing)
    for name in names:
        if name in absent:
            yield SuiteResult(name, 0, {}, {}, (f"absent: {absent[name]}",))
        elif name == "c":
            opened = {key: present[key] for key in present if key.startswith("c/")}
            yield from _corruption_results(opened, preprocessing, measure)
        else:
            suite = present[name]()
            metrics, count = measure(suite, preprocessing)
            if name == "real":  # it defines no loss
                metrics.pop("loss")
            yield SuiteResult(name, count, metrics, published.get(name, {}), suite.notes)


def report_suites(
    source: str | Path,
    config: Config,
    root: str | Path,
    names: Sequence[str] = SUITES,
    out: Path | None = None,
) -> None:
    """Evaluates and prints a row per suite as soon as it is there.

    Args:
        source, config, root, names: see `evaluate_suites`.
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


class SuiteView:
    """Image and label of a suite → image, and which classes are right and which compete.

    So that examples of all suites have the same shapes, and one compiled program serves them.
    """

    def __init__(self, suite: Suite, preprocessing: Preprocessing):
        self._view, self._answers = EvaluationView(preprocessing), suite.answers
        self._classes = np.arange(len(CLASS_NAMES))
        self._competing = np.isin(self._classes, suite.classes)

    def __call__(self, example: dict) -> dict:
        """PIL image and int → uint8 (image_size, image_size, C), and bool (1000,) twice.

        Raises:
            ValueError: there is no answer for the label.
        """
        label = example["label"]
        if label >= len(self._answers):
            raise ValueError(
                f"an image has label {label}, and there are answers for {len(self._answers)} only; "
                "get the labels and the images again"
            )
        return {
            "image": self._view.pixels(example["image"]),
            "right": np.isin(self._classes, self._answers[label]),
            "competing": self._competing,
        }


def _make_measure(source: str | Path, config: Config) -> Measure:
    model, variables = load_pretrained(
        source,
        image_size=config.data.image_size,
        dtype=jnp.dtype(config.model.dtype),
        **config.model.options,
    )
    class_names = describe_source(source, image_size=config.data.image_size).class_names
    _check_classes(source, model.head.num_classes, class_names)
    mesh, task = make_mesh(config.mesh.fsdp), Classification(config, CLASS_NAMES)
    evaluator = Evaluator(model, task, config, mesh)
    weights = {"weights": place(variables, replicated(mesh))}

    def measure(suite: Suite, preprocessing: Preprocessing) -> tuple[dict[str, float], int]:
        view = SuiteView(suite, preprocessing)
        partial = evaluator.partials(weights, suite.source, view)["weights"]
        count = round(float(partial["sums"]["count"]))
        if not count:
            raise ValueError("no image of the suite has a label; get its labels again")
        return task.metrics(partial), count

    return measure


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


def _published(source: str | Path, preprocessing: Preprocessing) -> dict[str, dict[str, float]]:
    """Published metrics of each suite, for these weights and this preparation of the images."""
    result = published_result(str(source), preprocessing)
    if result is None:
        return {}
    rows = {name: {"top1": getattr(result, name)} for name in ("real", "v2", "a", "r", "sketch")}
    rows["val"] = {"top1": result.top1, "top5": result.top5}
    return {
        name: {metric: value for metric, value in row.items() if value is not None}
        for name, row in rows.items()
    }


def _corruption_results(
    present: dict[str, Callable[[], Suite]], preprocessing: Preprocessing, measure: Measure
) -> Iterator[SuiteResult]:
    """A row for each corruption, and one for all of them."""
    # They are central crops already.
    preprocessing = dataclasses.replace(preprocessing, crop_fraction=1.0, crop_mode="center")
    rows, total = {}, 0
    for corruption in CORRUPTIONS:
        errors = {}
        notes = {}
        count = 0
        for severity in SEVERITIES:
            if (key := f"c/{corruption}/{severity}") in present:
                suite = present[key]()
                metrics, images = measure(suite, preprocessing)
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
