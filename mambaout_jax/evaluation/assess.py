# SPDX-License-Identifier: Apache-2.0
"""What any weights make of any labelled images: metrics, figures, tables."""

import copy
from pathlib import Path
from typing import NamedTuple

import jax

from mambaout_jax.config import Config, default_config
from mambaout_jax.config_file import load_config
from mambaout_jax.data.sets.sources import Source, open_source
from mambaout_jax.evaluation.evaluator import Evaluator, format_metrics
from mambaout_jax.runtime.mesh import make_mesh, place, replicated
from mambaout_jax.tasks import find_task
from mambaout_jax.tasks.task import Partial, Task
from mambaout_jax.weights.load import describe_source


class Assessment(NamedTuple):
    """What a model makes of a set.

    Attributes:
        metrics: the task's, and `count`, the number of examples.
        partial: the task's partial result over the whole set.
        task: what was asked of the model.
        data: the set.
    """

    metrics: dict[str, float]
    partial: Partial
    task: Task
    data: Source

    def draw(self, folder: Path) -> list[Path]:
        """Writes the task's figures and tables; returns the files."""
        return self.task.draw_evaluation(self.partial, self.data, folder)


def assessment_config(
    source: str | Path, folder: str | Path | None = None, config: Config | None = None
) -> Config:
    """The config that opens and prepares the data on which weights are assessed.

    Args:
        source: weights, as `load_pretrained` takes them.
        folder: class sub-folders, or a folder with a `val` of such; None for the config's data.
        config: instead of that of the run which `source` is.

    Raises:
        ValueError: nothing says what the data are.
    """
    run = Path(source).expanduser() / "config.json"
    if config is not None:
        chosen = copy.deepcopy(config)
    elif run.is_file():
        chosen = load_config(run)
    elif folder is not None:
        chosen = default_config()
        describe_source(source).write_to(chosen.data)
    else:
        raise ValueError(
            f"{source} is not a training run; give the labelled images with --data DIR"
        )
    if folder is not None:
        chosen.data.source, chosen.data.path = "folder", str(folder)
    return chosen


def assess(source: str | Path, config: Config) -> Assessment:
    """Evaluates weights on the validation split of the data that a config names.

    Every example counts once, on any number of devices and processes.

    Args:
        source: weights, as `load_pretrained` takes them.
        config: from `assessment_config`.

    Raises:
        FileNotFoundError, RuntimeError: as `load_pretrained`.
        ValueError: so, too; a setting is wrong, or the weights are for other outputs.
    """
    data = open_source(config.data, "validation")
    task = find_task(config.task).from_config(config, data)
    model, variables = task.load(source, image_size=config.data.image_size)
    mesh = make_mesh(fsdp=1)
    evaluator = Evaluator(model, task, config, mesh)
    weights = {"weights": place(variables, replicated(mesh))}
    partial = evaluator.partials(weights, data)["weights"]
    return Assessment({**task.metrics(partial), "count": len(data)}, partial, task, data)


def report_assessment(source: str | Path, config: Config, figures: Path | None = None) -> None:
    """Assesses weights and prints the metrics, from one process only.

    Args:
        source, config: see `assess`.
        figures: folder for the task's figures and tables, whose names are printed, too.

    Raises:
        As `assess`.
    """
    assessment = assess(source, config)
    if jax.process_index() != 0:
        return
    print(format_metrics(assessment.metrics))
    for file in assessment.draw(figures) if figures else ():
        print(file)
