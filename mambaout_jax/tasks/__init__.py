# SPDX-License-Identifier: Apache-2.0
"""What a batch means, one file per task: views, loss, evaluation, prediction and pictures.

`task.py` says what every task answers. To add one, write its file and name it in `TASKS`.
"""

from mambaout_jax.tasks.classification import Classification
from mambaout_jax.tasks.detection import Detection
from mambaout_jax.tasks.segmentation import Segmentation
from mambaout_jax.tasks.task import Task

TASKS: dict[str, type[Task]] = {
    "classification": Classification,
    "detection": Detection,
    "segmentation": Segmentation,
}


def find_task(name: str) -> type[Task]:
    """The task that `config.task` names.

    Raises:
        ValueError: there is no such task.
    """
    if name not in TASKS:
        allowed = ", ".join(map(repr, TASKS))
        raise ValueError(f"task={name!r} is not known; allowed are {allowed}")
    return TASKS[name]
