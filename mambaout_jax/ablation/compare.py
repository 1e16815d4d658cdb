# SPDX-License-Identifier: Apache-2.0
"""One config trained once per token mixer and seed, by the ordinary trainer.

The folder of a comparison holds a working directory for each run, `<mixer>/seed_<n>`, as `mambaout
train` would make it, and what was found, `compare.json` and `compare.md`. The same call again goes
on where it was stopped: runs that have ended are read, the others resume.
"""

import contextlib
import functools
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from mambaout_jax.ablation.findings import as_markdown, compared
from mambaout_jax.ablation.gates import Contender
from mambaout_jax.ablation.statistics import mean_and_error
from mambaout_jax.benchmarks.timing import environment
from mambaout_jax.config import Config
from mambaout_jax.config_file import changed_settings
from mambaout_jax.data.sets.identity import changes, identity
from mambaout_jax.paths import local_path
from mambaout_jax.runtime.checkpoint import read_meta
from mambaout_jax.runtime.files import read_json, write_json, write_text
from mambaout_jax.runtime.lock import DirectoryLock
from mambaout_jax.runtime.processes import in_first_process
from mambaout_jax.runtime.streams import say
from mambaout_jax.settings import check_settings
from mambaout_jax.tasks.setup import Setup
from mambaout_jax.train.loop import train
from mambaout_jax.train.record import CHECKPOINTS, FREE, SETTINGS, check_nothing_foreign
from mambaout_jax.train.writer import read_metrics

RESULT, TABLE = "compare.json", "compare.md"

# What may change between two calls: as for a run, but for what decides its result.
_FREE = tuple(name for name in FREE if name != "schedule.")


class Comparison(NamedTuple):
    """What is compared.

    Attributes:
        name: of the config, for people.
        setup: of the config.
        contenders: at least two; the others are held against the first.
        equal: how their gates were chosen, see `gates.contenders`.
    """

    name: str
    setup: Setup
    contenders: Sequence[Contender]
    equal: str

    @property
    def metric(self) -> str:
        """That of the averaged weights where a run keeps them: they are what it is used with."""
        weights = "eval_ema" if self.setup.config.ema.decay > 0 else "eval"
        return f"{weights}/{self.setup.task.score().name}"


class Run(NamedTuple):
    """Attributes:
    contender: what is trained.
    config: with the seed.
    workdir: where it is kept.
    """

    contender: Contender
    config: Config
    workdir: Path


def compare(comparison: Comparison, seeds: int, out: Path | str) -> dict[str, Any]:
    """Trains every contender with every seed and says what that shows.

    Seed by seed all contenders have their turn, and the files are written after each seed.

    Args:
        seeds: how many, from that of the config on.
        out: the folder of the comparison.

    Returns:
        What `compare.json` holds, see `_result`.

    Raises:
        ValueError: as `train`; or the folder holds runs with other settings or on other data.
        FileExistsError: it holds files of another origin under the names of its own.
        FloatingPointError: a run has diverged.
        RuntimeError, SaveError, UnreadableImageError, Preempted: as `train`.
    """
    out = local_path(out).absolute()
    first = comparison.setup.config.seed
    runs = [
        _run(contender, seed, out)
        for seed in range(first, first + seeds)
        for contender in comparison.contenders
    ]
    _check_folder(comparison, runs, out)
    with contextlib.ExitStack() as stack:
        lock = DirectoryLock(out)
        in_first_process(lock.acquire)
        stack.callback(lock.release)
        result: dict[str, Any] = {}
        metrics: list[dict[str, float]] = []
        for number, run in enumerate(runs, start=1):
            metrics.append(_trained(comparison, run, f"run {number} of {len(runs)}"))
            if number % len(comparison.contenders) == 0:
                result = _result(comparison, runs[:number], metrics, out)
                in_first_process(functools.partial(_write, result, out))
    return result


def _run(contender: Contender, seed: int, out: Path) -> Run:
    config = contender.config.copy_and_resolve_references()
    config.seed = seed
    check_settings(config)  # there is a largest seed
    return Run(contender, config, out / contender.mixer.folder / f"seed_{seed}")


def _check_folder(comparison: Comparison, runs: Sequence[Run], out: Path) -> None:
    """Refuses a folder whose runs or files are of something else, before anything is trained.

    Raises:
        ValueError, FileExistsError: as `compare`.
    """
    if any((out / name).exists() for name in (RESULT, TABLE)):
        _check_settings(out, _compared_before(out), comparison.setup.config)
    data = identity(comparison.setup.train)
    for run in runs:
        meta = read_meta(run.workdir / CHECKPOINTS)
        if meta is None:
            check_nothing_foreign(run.workdir, comparison.setup.task.record())
            continue
        _check_settings(run.workdir, meta[SETTINGS], run.config)
        if difference := changes(meta["data"], data):
            raise ValueError(
                f"{run.workdir} holds a run on other training data: {difference}. Bring the data "
                "back, or compare into another --out"
            )


def _compared_before(out: Path) -> dict[str, Any]:
    """The settings of the comparison that the folder holds."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        settings = read_json(out / RESULT)["settings"]
        if isinstance(settings, dict):
            return settings
    raise FileExistsError(
        f"{out} holds a {RESULT} or {TABLE} that is of no comparison; nothing is replaced: compare "
        "into another --out, or move them away"
    )


def _check_settings(folder: Path, before: dict[str, Any], now: Config) -> None:
    changed = [
        f"{name} is {old!r} there and {new!r} now"
        for name, (old, new) in changed_settings(ConfigDict(before), now).items()
        if not name.startswith(_FREE)
    ]
    if changed:
        raise ValueError(
            f"{folder} holds another comparison: {'; '.join(changed)}. Compare into another --out, "
            "or set these back to go on with that one"
        )


def _trained(comparison: Comparison, run: Run, place: str) -> dict[str, float]:
    """The final metrics of a run, trained where it is not yet.

    Raises:
        FloatingPointError: the compared one is not finite.
    """
    metrics = _found(comparison, run)
    state = "" if metrics is None else ", has been trained"
    if jax.process_index() == 0:
        say(f"{run.contender.mixer.name}, seed {run.config.seed}: {place}{state}")
    if metrics is None:
        metrics = {k: x for k, x in train(run.config, run.workdir).items() if k != "step"}
    value = metrics[comparison.metric]
    if not math.isfinite(value):
        raise FloatingPointError(
            f"{comparison.metric} of {run.workdir} is {value}: the run has diverged, so nothing "
            "can be compared; lower --config.optimizer.learning_rate, into another --out"
        )
    return metrics


def _found(comparison: Comparison, run: Run) -> dict[str, float] | None:
    """The final metrics of a run that has ended, None of one that has not.

    The metrics of an update are written before its checkpoint is.
    """
    last = comparison.setup.resolved.total_steps
    if not (run.workdir / CHECKPOINTS / str(last)).is_dir():
        return None
    with contextlib.suppress(OSError, ValueError):  # damaged or lost: it is evaluated again
        for line in read_metrics(run.workdir):
            if line["step"] == last and comparison.metric in line:
                return {name: value for name, value in line.items() if name != "step"}
    return None


def _result(
    comparison: Comparison, runs: Sequence[Run], metrics: Sequence[dict[str, float]], out: Path
) -> dict[str, Any]:
    """What there is so far, as JSON could hold it.

    Returns:
        `config`, its `settings`, `equal`, `updates` of a run, the `metric` with its `unit` and
        `higher_is_better`, the `seeds`, the `environment` of this call; `mixers`, with their
        `runs`, mean and costs; and `comparisons`, of `findings.compared`.
    """
    setup, score, count = (
        comparison.setup,
        comparison.setup.task.score(),
        len(comparison.contenders),
    )
    mixers = [
        _summary(contender, comparison.metric, runs[i::count], metrics[i::count], out)
        for i, contender in enumerate(comparison.contenders)
    ]
    return {
        "config": comparison.name,
        "settings": setup.config.to_dict(),
        "equal": comparison.equal,
        "updates": setup.resolved.total_steps,
        "metric": comparison.metric,
        "unit": score.unit,
        "higher_is_better": score.higher_is_better,
        "seeds": [run.config.seed for run in runs[::count]],
        "environment": environment(),
        "mixers": mixers,
        "comparisons": compared(mixers, comparison.metric, score),
    }


def _summary(
    contender: Contender,
    metric: str,
    runs: Sequence[Run],
    metrics: Sequence[dict[str, float]],
    out: Path,
) -> dict[str, Any]:
    mean, error = mean_and_error([values[metric] for values in metrics])
    lines = [line for run in runs for line in _lines(run.workdir)]
    return {
        "mixer": contender.mixer.name,
        "expansion_ratio": contender.expansion_ratio,
        "parameters": contender.cost.parameters,
        "macs": contender.cost.macs,
        "images_per_second": _median(lines, "train/images_per_second"),
        "seconds_per_update": _median(lines, "train/step_milliseconds", 1e-3),
        "mean": mean,
        "error": None if math.isnan(error) else error,
        "runs": [
            {
                "seed": run.config.seed,
                "workdir": str(run.workdir.relative_to(out)),
                "metrics": {k: x if math.isfinite(x) else None for k, x in values.items()},
            }
            for run, values in zip(runs, metrics, strict=True)
        ],
    }


def _lines(workdir: Path) -> list[dict[str, float]]:
    with contextlib.suppress(OSError, ValueError):  # only speeds are lost
        return read_metrics(workdir)
    return []


def _median(lines: Sequence[dict[str, float]], name: str, factor: float = 1.0) -> float | None:
    """Of the intervals between reports; None where a run was too short for one."""
    values = [line[name] for line in lines if name in line]
    return factor * statistics.median(values) if values else None


def _write(result: dict[str, Any], out: Path) -> None:
    write_json(out / RESULT, result)
    write_text(out / TABLE, as_markdown(result))
