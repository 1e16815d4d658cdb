# SPDX-License-Identifier: Apache-2.0
"""The list of tasks."""

from mambaout_jax.ablation.tasks import TOKEN_TASKS


def test_tasks_are_known_by_the_names_they_have():
    assert set(TOKEN_TASKS) == {
        "cue", "sweep", "legend", "digits", "scenes", "flip_flop", "copying", "induction",
        "recall", "sequential_digits",
    }  # fmt: skip
    assert all(task.__name__ == name for name, task in TOKEN_TASKS.items())
