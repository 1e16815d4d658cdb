# SPDX-License-Identifier: Apache-2.0
"""How fast are Mask R-CNN and UperNet here, against torchvision's and transformers'?

Measured are inference and a training step with AdamW, of whole models on the same backbone, with
the same weights, images and objects; nothing is timed before the outputs of all heads have been
compared, and every row tells the losses of both sides. PyTorch's models take part where torch, timm
and torchvision (detection) or transformers (segmentation) are installed, channels last; all take
turns, so that a busy machine slows them equally.

Both detectors do the same work: 1000 proposals, of which 512 regions and 128 masks of an image are
learned from, or 100 objects found; masks stay at 28 x 28. torchvision keeps its cheaper RoIAlign of
2 x 2 samples, where here samples follow the box as in mmdetection.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from mambaout_jax.benchmarks.dense_inputs import Inputs, make_inputs
from mambaout_jax.benchmarks.dense_models import OURS
from mambaout_jax.benchmarks.dense_peers import PACKAGES, THEIRS, missing_packages
from mambaout_jax.benchmarks.jax_models import OURS as TITLE
from mambaout_jax.benchmarks.timing import (
    environment,
    find_device,
    ignore,
    interleaved_milliseconds,
    report_progress,
    save_json,
    speedup,
    summary,
)
from mambaout_jax.benchmarks.torch_peer import torch_device

PASSES = ("inference", "training")
SIZES = {"detection": (800, 1344), "segmentation": (512, 512)}  # one of COCO's, ADE20K's crops
TASKS = tuple(SIZES)
QUICK = {"backbone": "test_mambaout", "size": (64, 96), "rounds": 1}

# Between outputs, in standard deviations, and between losses of a first step, relative. Those of a
# detector are of other samples, drawn at random, and torchvision's of boxes are of another form.
_MAX_DIFFERENCE = {"float32": 1e-3, "bfloat16": 0.2}
_MAX_LOSS_DIFFERENCE = {"detection": 0.3, "segmentation": 1e-2}
_COMPARED_LOSSES = {"detection": ("rpn_class", "class"), "segmentation": ("main", "auxiliary")}
_OBJECTS = 100

save = save_json


def run(
    *,
    tasks: Sequence[str] = TASKS,
    backbone: str = "mambaout_tiny",
    batch_size: int = 2,
    size: tuple[int, int] | Sequence[int] | None = None,
    dtype: str = "float32",
    rounds: int = 3,
    passes: Sequence[str] = PASSES,
    device: str | None = None,
    keep: Callable[[dict[str, Any]], object] = ignore,
) -> dict[str, Any]:
    """Times models; progress is printed to the standard error.

    Args:
        tasks: those of `TASKS` to measure.
        backbone: one of `list_models()`, for peers one that timm has, with four maps.
        batch_size: images per call; to train UperNet PyTorch needs at least 2.
        size: (H, W) of the images; None: `SIZES` of each task.
        dtype: precision of the computation on both sides; parameters are float32.
        rounds: how many turns each contender has; the numbers reported are medians over them.
        passes: those of `PASSES` to measure.
        device: "cpu", "gpu" or "tpu", None: JAX's default; PyTorch has the same, for a TPU the CPU.
        keep: called after every row with the result so far.

    Returns:
        A dict ready for JSON: `environment`, the arguments, and `rows`, one for a task and a pass.
        A row has `images_per_second` and `milliseconds` of each contender, `speedup`, how many
        times faster ours is (round by round: median, min, max), `compile_seconds` and `temp_bytes`
        of ours, `differences` between outputs in standard deviations, and in training `losses` of
        the first step.

    Raises:
        ValueError: a task or pass is not known, the device is not there, or the two sides do not
            compute the same.
    """
    for name, values, known in (("tasks", tasks, TASKS), ("passes", passes, PASSES)):
        if unknown := [value for value in values if value not in known]:
            raise ValueError(f"{name}={unknown} are not known; allowed are {', '.join(known)}")
    jax_device = find_device(device)
    rows = []
    result: dict[str, Any] = {
        "environment": environment(jax_device) | _versions(tasks),
        "backbone": backbone,
        "batch_size": batch_size,
        "dtype": dtype,
        "rounds": rounds,
        "missing": {task: list(missing_packages(task)) for task in tasks},
        "rows": rows,
    }
    with jax.default_device(jax_device):
        for task in tasks:
            height, width = SIZES[task] if size is None else size
            inputs = make_inputs(task, (height, width), batch_size, dtype)
            for row in _measure(task, backbone, inputs, passes, rounds, jax_device):
                rows.append(row)
                keep(result)
    return result


def print_table(result: dict[str, Any]) -> None:
    """Prints the result of `run`: speeds, ours over the peer, losses, compilation and memory."""
    where = result["environment"]
    names = ("jax", "torch", "torchvision", "transformers", "timm")
    versions = ", ".join(f"{key} {where[key]}" for key in names if where.get(key))
    print(
        f"{where['device']} ({where['platform']}), {versions}; {result['backbone']}, "
        f"{result['dtype']}, batch {result['batch_size']}; seconds, medians"
    )
    for row in result["rows"]:
        seconds = "  ".join(
            f"{name} {value['median'] / 1e3:.3g}" for name, value in row["milliseconds"].items()
        )
        ratios = "  ".join(
            "ours / {}: {median:.2f}x ({min:.2f}-{max:.2f})".format(name, **ratio)
            for name, ratio in row["speedup"].items()
        )
        size = "x".join(map(str, row["size"]))
        print(f"{row['task']:14}{size:10}{row['pass']:11}{seconds}  {ratios}")
        memory = row.get("temp_bytes")
        print(
            f"  compilation {row['compile_seconds']:.1f} s"
            + (f"; temporary memory {memory / 2**20:,.0f} MiB" if memory is not None else "")
        )
        for name, losses in row["losses"].items():
            print(f"  losses, {name}: " + ", ".join(f"{k} {v:.4g}" for k, v in losses.items()))
    for task, missing in result["missing"].items():
        if missing:
            print(f"{task} is compared with no peer: pip install {' '.join(PACKAGES[task])}")


def _measure(
    task: str, backbone: str, inputs: Inputs, passes: Sequence[str], rounds: int, device: Any
) -> Iterator[dict[str, Any]]:
    """Rows of a task, one for a pass."""
    theirs = None
    if not missing_packages(task):
        torch = importlib.import_module("torch")
        torch.manual_seed(0)
        theirs = THEIRS[task](backbone, inputs, torch_device(torch, device))
    ours = OURS[task](backbone, inputs, None if theirs is None else theirs.state_dict())
    differences = {}
    if theirs is not None:
        report_progress(f"{task}: comparing outputs")
        differences = _compare(theirs.outputs(), ours.outputs(), inputs.dtype)
        if task == "detection" and (found := theirs.found()) < _OBJECTS:
            report_progress(f"{theirs.title} finds {found} objects, ours computes {_OBJECTS}")
    for passed in passes:
        report_progress(f"{task} {passed}")
        call, plan = ours.calls(passed)
        calls, losses = {TITLE: call}, {}
        if theirs is not None:
            calls[theirs.title] = theirs.calls(passed)
        if passed == "training":
            for name, side in ((TITLE, ours), *(((theirs.title, theirs),) if theirs else ())):
                jax.block_until_ready(calls[name]())
                losses[name] = {key: float(value) for key, value in side.losses.items()}
            _check_losses(task, losses)
        times = interleaved_milliseconds(calls, rounds=rounds, calls_per_round=1, untimed=False)
        yield {
            "task": task,
            "pass": passed,
            "size": list(inputs.images.shape[1:3]),
            "images_per_second": {
                name: summary([1e3 * len(inputs.images) / value for value in values])
                for name, values in times.items()
            },
            "milliseconds": {name: summary(values) for name, values in times.items()},
            "speedup": {
                name: speedup(values, times[TITLE])
                for name, values in times.items()
                if name != TITLE
            },
            "differences": differences,
            "losses": losses,
            **plan,
        }


def _compare(
    theirs: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray], dtype: str
) -> dict[str, float]:
    """The largest difference of each output, in standard deviations.

    Raises:
        ValueError: one is larger than rounding explains.
    """
    found = {}
    for name, expected in theirs.items():
        found[name] = float(np.abs(ours[name] - expected).max() / expected.std())
    if not all(value <= _MAX_DIFFERENCE[dtype] for value in found.values()):
        raise ValueError(
            "the two sides do not compute the same: their outputs differ, in standard deviations, "
            "by " + ", ".join(f"{value:.2g} ({name})" for name, value in found.items())
        )
    return found


def _check_losses(task: str, losses: Mapping[str, Mapping[str, float]]) -> None:
    """Raises ValueError where the losses of two sides differ by more than their samples may."""
    for name in _COMPARED_LOSSES[task]:
        values = [side[name] for side in losses.values()]
        if not max(values) - min(values) <= _MAX_LOSS_DIFFERENCE[task] * max(values):
            raise ValueError(
                f"the two sides do not compute the same: losses of {task} are {dict(losses)}"
            )


def _versions(tasks: Sequence[str]) -> dict[str, Any]:
    names = {name for task in tasks if not missing_packages(task) for name in PACKAGES[task]}
    versions = {name: importlib.import_module(name).__version__ for name in sorted(names)}
    if "torch" in names:
        versions["torch_threads"] = importlib.import_module("torch").get_num_threads()
    return versions
