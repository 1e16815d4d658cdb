# SPDX-License-Identifier: Apache-2.0
"""Trains every token mixer on every task: same data, updates and MACs for all, cell by cell.

What is done stands in the result's file: a run that was stopped goes on with the next cell.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import multiprocessing
import os
import queue
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mambaout_jax.ablation.cells import describe_plan, run_cell, run_depth, time_updates
from mambaout_jax.ablation.model import BASELINE, MIXERS
from mambaout_jax.ablation.presets import PRESETS, Preset
from mambaout_jax.benchmarks.timing import environment, save_json

# Of the study of depths: the mixer that grows deeper, and the one beside it.
DEPTH_MIXERS = (BASELINE, "conv+ssm bidirectional")


class Cell(NamedTuple):
    """What is trained at a time.

    Attributes:
        plan: name of the form of a task.
        mixer: a key of `MIXERS`.
        depth: blocks, in the study of depths; None in the grid.
    """

    plan: str
    mixer: str
    depth: int | None = None


def choose_preset(
    name: str,
    tasks: Sequence[str] | None = None,
    mixers: Sequence[str] | None = None,
    seeds: int | None = None,
) -> Preset:
    """A preset, or the part of it that is asked for.

    Args:
        name: a key of `PRESETS`.
        tasks: plans, or tasks with all their forms; None: all.
        mixers: keys of `MIXERS`; None: the preset's.
        seeds: how many; None: the preset's.

    Raises:
        ValueError: something of it is not known.
    """
    if name not in PRESETS:
        raise ValueError(f"preset={name!r} is not known; allowed are {', '.join(PRESETS)}")
    preset = PRESETS[name]
    plans = preset.plans
    if tasks is not None:
        known = {*plans, *(plan.task for plan in plans.values())}
        _check_known("tasks", tasks, sorted(known))
        plans = {key: x for key, x in plans.items() if key in tasks or x.task in tasks}
    if mixers is not None:
        _check_known("mixers", mixers, list(MIXERS))
    if seeds is not None and seeds < 1:
        raise ValueError(f"seeds={seeds}: at least 1 is needed, and 2 for an error of the mean")
    study = preset.depth_study
    return dataclasses.replace(
        preset,
        plans=plans,
        mixers=preset.mixers if mixers is None else tuple(m for m in MIXERS if m in mixers),
        seeds=preset.seeds if seeds is None else tuple(range(seeds)),
        depth_study=study if study and study[0] in plans else None,
    )


def run_grid(
    name: str,
    preset: Preset,
    path: Path,
    *,
    jobs: int = 1,
    log: Callable[[str], None] = print,
) -> Iterator[dict[str, Any]]:
    """Trains every mixer of a preset on every task, and goes on where a stopped run left off.

    Args:
        name: of the preset.
        preset: see `choose_preset`.
        path: the JSON file that holds the result, written after every cell.
        jobs: cells trained at once, each in a process of its own on one CPU core; 1: in this one.
        log: takes a line after each cell.

    Yields:
        After each cell, and at the end with the times of updates, all that there is so far, a
        JSON-able dict: `preset`, `settings`, `environment`, `seconds`, `tasks`, dicts of
        `cells.describe_plan` with the `cells` that are done; `depths`, cells of the study of depths
        with `study_depth`; and `missing`, how many cells are still to come.

    Raises:
        ValueError: the file holds the result of other settings.
    """
    result = _begin(name, preset, path)
    began = time.perf_counter() - result["seconds"]
    todo = [cell for cell in _cells(preset) if _find(result, cell) is None]
    for cell, found in _run_all(preset, todo, jobs):
        log(_line(cell, found))
        _add(result, preset, cell, found)
        result["seconds"] = time.perf_counter() - began
        save_json(result, path)
        yield result
    _time_all(result, preset, path)
    yield result


def _cells(preset: Preset) -> list[Cell]:
    """Forms of a task come together, and the study of depths at the end."""
    cells = [Cell(plan, mixer) for plan in preset.plans for mixer in preset.mixers]
    if preset.depth_study:
        plan, depths = preset.depth_study
        growing, beside = DEPTH_MIXERS
        cells += [Cell(plan, growing, depth) for depth in depths]
        cells.append(Cell(plan, beside, preset.depth))
    return cells


def _begin(name: str, preset: Preset, path: Path) -> dict[str, Any]:
    """The result in a file, or one in which nothing is done yet."""
    plans = {key: plan._asdict() for key, plan in preset.plans.items()}
    settings = json.loads(json.dumps(preset.settings() | {"plans": plans}))
    if not path.exists():
        tasks = [describe_plan(preset, plan) | {"cells": []} for plan in preset.plans]
        return {
            "preset": name,
            "settings": settings,
            "environment": environment(),
            "seconds": 0.0,
            "tasks": tasks,
            "depths": [],
            "missing": len(_cells(preset)),
        }
    result = json.loads(path.read_text())
    if (found := result.get("settings")) != settings:
        keys: list[str] = sorted({*settings, *(found or {})})
        other = [key for key in keys if (found or {}).get(key) != settings.get(key)]
        raise ValueError(
            f"{path} holds the result of other settings ({', '.join(other)} differ); give another "
            "--out, or remove the file"
        )
    return result


def _find(result: dict[str, Any], cell: Cell) -> dict[str, Any] | None:
    """What was found for a cell, None where it is still to come."""
    if cell.depth is not None:
        key = (cell.mixer, cell.depth)
        done = (x for x in result["depths"] if (x["mixer"], x["study_depth"]) == key)
        return next(done, None)
    (task,) = (task for task in result["tasks"] if task["name"] == cell.plan)
    return next((x for x in task["cells"] if x["mixer"] == cell.mixer), None)


def _add(result: dict[str, Any], preset: Preset, cell: Cell, found: dict[str, Any]) -> None:
    """Puts a finished cell where it belongs, in the order of the preset."""
    if cell.depth is not None:
        result["depths"].append(found | {"study_depth": cell.depth})
        result["depths"].sort(key=lambda x: (x["mixer"], x["study_depth"]))
    else:
        (task,) = (task for task in result["tasks"] if task["name"] == cell.plan)
        task["cells"].append(found)
        task["cells"].sort(key=lambda x: preset.mixers.index(x["mixer"]))
    result["missing"] -= 1


def _run_one(preset: Preset, cell: Cell) -> dict[str, Any]:
    if cell.depth is not None:
        return run_depth(preset, cell.plan, cell.mixer, cell.depth)
    return run_cell(preset, cell.plan, cell.mixer)


def _run_all(
    preset: Preset, cells: Iterable[Cell], jobs: int
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Cells with what was found, as they are done."""
    if jobs == 1:
        yield from ((cell, _run_one(preset, cell)) for cell in cells)
        return
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    for core in sorted(_own_cores())[:jobs]:
        cores.put(core)
    with (
        contextlib.closing(cores),
        concurrent.futures.ProcessPoolExecutor(jobs, context, _take_core, (cores,)) as pool,
    ):
        running = {pool.submit(_run_one, preset, cell): cell for cell in cells}
        try:
            for done in concurrent.futures.as_completed(running):
                yield running[done], done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _own_cores() -> set[int]:
    affinity = getattr(os, "sched_getaffinity", None)
    return affinity(0) if affinity else set(range(os.cpu_count() or 1))


def _take_core(cores: Any) -> None:
    """Binds a worker to a core: two programs of one thread each are faster than two threads for one
    after the other, as the models are too small for threads. More workers than cores share them.
    """
    with contextlib.suppress(queue.Empty):
        core = cores.get(timeout=1)
        if hasattr(os, "sched_setaffinity"):  # Linux has it
            os.sched_setaffinity(0, {core})


def _time_all(result: dict[str, Any], preset: Preset, path: Path) -> None:
    """Times the updates of what has no times yet, task by task."""
    groups = [(task["name"], task["cells"]) for task in result["tasks"]]
    if preset.depth_study:
        groups.append((preset.depth_study[0], result["depths"]))
    for plan, cells in groups:
        if any("runs" in cell and "step_milliseconds" not in cell for cell in cells):
            time_updates(preset, plan, cells)
            save_json(result, path)


def _line(cell: Cell, found: dict[str, Any]) -> str:
    name = cell.mixer if cell.depth is None else f"{cell.mixer}, {cell.depth} blocks"
    if "runs" not in found:
        return f"{cell.plan:24} {name:24} {found['reason']}"
    accuracies = " ".join(f"{100 * run['accuracy']:5.1f} %" for run in found["runs"])
    seconds = sum(run["seconds"] for run in found["runs"])
    rate = f"rate {found['learning_rate']:g}"
    return f"{cell.plan:24} {name:24} {accuracies}  {rate}  {seconds:.0f} s"


def _check_known(what: str, given: Sequence[str], known: list[str]) -> None:
    if unknown := [name for name in given if name not in known]:
        raise ValueError(f"{what}={unknown} are not known; allowed are {', '.join(known)}")
