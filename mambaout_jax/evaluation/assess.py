# SPDX-License-Identifier: Apache-2.0
"""What any weights make of any labelled images: metrics, figures, tables."""

import copy
from pathlib import Path
from typing import NamedTuple

import jax

from mambaout_jax.config import Config, default_config, validate_evaluation_batch
from mambaout_jax.config_file import load_config
from mambaout_jax.data.sets.identity import identity
from mambaout_jax.data.sets.sources import Source, open_source, set_of_folder
from mambaout_jax.evaluation.evaluator import Evaluator, check_finite, format_metrics
from mambaout_jax.preprocessing import Preprocessing
from mambaout_jax.runtime.checkpoint import read_meta
from mambaout_jax.runtime.files import check_destination
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
        folder: for classification class sub-folders, of which all images count, or a folder with a
            `val` of such; the folder that a run was trained on keeps the run's split. For detection
            one like COCO's, for segmentation one like ADE20K's (`sources.SETS`), whose validation
            split counts. None for the config's data.
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
        word = set_of_folder(chosen.task)
        same_path = chosen.data.source == word and _is_same(chosen.data.path, folder)
        chosen.data.source, chosen.data.path = word, str(folder)
        if word == "folder" and not same_path and not _was_trained_on(Path(source), chosen):
            chosen.data.validation_fraction = 1.0
    return chosen


def assess(source: str | Path, config: Config) -> Assessment:
    """Evaluates weights on the validation split of the data that a config names.

    Every example counts once, on any number of devices and processes.

    Args:
        source: weights, as `load_pretrained` takes them.
        config: from `assessment_config`.

    Raises:
        FileNotFoundError, RuntimeError: as `load_pretrained`.
        ValueError: so, too; a setting is wrong, or the data have classes that the weights do not
            have (`sets.renumbered`).
        FloatingPointError: a metric is not finite.
    """
    validate_evaluation_batch(config, jax.device_count())
    data = open_source(config.data, "validation", config.task)
    size = config.data.image_size
    names = describe_source(source, image_size=size).class_names
    task, model, variables = find_task(config.task).from_weights(
        source, None, Preprocessing.of(config.data, names), config, image_size=size
    )
    data = task.aligned(data)
    mesh = make_mesh(fsdp=1)
    evaluator = Evaluator(model, task, config, mesh)
    weights = {"weights": place(variables, replicated(mesh))}
    partial = evaluator.partials(weights, data)["weights"]
    metrics = task.measured_on(data).metrics(partial)
    check_finite(metrics, source)
    return Assessment({**metrics, "count": len(data)}, partial, task, data)


def report_assessment(
    source: str | Path, config: Config, figures: Path | None = None, force: bool = False
) -> None:
    """Assesses weights and prints the metrics, from one process only.

    Args:
        source, config: see `assess`.
        figures: folder for the task's figures and tables, whose names are printed, too.
        force: whether figures that are there may be replaced.

    Raises:
        As `assess`; before any work OSError, such as FileExistsError, where figures cannot be
        written.
    """
    if figures and jax.process_index() == 0:
        _check_figures(figures, find_task(config.task).evaluation_files(), force)
    assessment = assess(source, config)
    if jax.process_index() != 0:
        return
    print(format_metrics(assessment.metrics))
    for file in assessment.draw(figures) if figures else ():
        print(file)


def _is_same(one: str, other: str | Path) -> bool:
    paths = [Path(path).expanduser() for path in (one, other)]
    return all(path.exists() for path in paths) and paths[0].samefile(paths[1])


def _was_trained_on(workdir: Path, config: Config) -> bool:
    """Whether a run's training images are those of the folder, wherever it lies."""
    if not (workdir / "config.json").is_file():
        return False
    try:
        now = identity(open_source(config.data, "train", config.task))
    except ValueError:  # there is nothing to train on
        return False
    meta = read_meta(workdir / "checkpoints")
    return meta is not None and now == meta.get("data")


def _check_figures(folder: Path, names: tuple[str, ...], force: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotADirectoryError(f"{folder} cannot be made a folder: {error.strerror}") from error
    for name in names:
        check_destination(folder / name, force)
