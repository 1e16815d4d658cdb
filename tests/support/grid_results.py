# SPDX-License-Identifier: Apache-2.0
"""Results of the grid, made by hand."""


def cell(mixer, accuracies, *, depth=2, reach=None):
    """A cell whose runs have these accuracies."""
    runs = [
        {"seed": seed, "accuracy": x, "validation": x, "bits": 0.5, "by_distance": None}
        for seed, x in enumerate(accuracies)
    ]
    return {
        "mixer": mixer, "width": 16, "depth": depth, "dilations": [1] * depth, "hidden": 42,
        "reach": reach, "parameters": 12_345, "macs": 1_234_567, "compile_seconds": 2.5,
        "sweep": {"0.001": 0.1, "0.002": 0.9}, "learning_rate": 0.002, "runs": runs,
        "step_milliseconds": {"median": 7.25, "min": 7.0, "max": 9.0},
    }  # fmt: skip


def make_task(name, *, is_long, autoregressive, accuracies):
    """A form of a task with a cell for each mixer."""
    length = 256 if is_long else 36
    return {
        "name": name, "length": length, "length_ratio": length / 96, "long": is_long,
        "autoregressive": autoregressive, "dense": True, "far": 0 if autoregressive else 8,
        "chance": 0.125, "options": {}, "train": 100, "test": 50, "steps": 800, "learned": 0.9,
        "cells": [
            cell(mixer, x, reach=6 if mixer.startswith("conv") and "ssm" not in mixer else None)
            for mixer, x in accuracies.items()
        ],
    }  # fmt: skip


def make_result():
    """One task of each kind, three seeds."""
    both, forward = "conv+ssm bidirectional", "conv+ssm causal"
    tasks = [
        ("digits_short", False, False, {"conv": (0.96, 0.98, 0.97), both: (0.95, 0.97, 0.98)}),
        ("cue_long", True, False, {"conv": (0.25, 0.26, 0.24), both: (0.97, 0.99, 0.98)}),
        ("copying_short", False, True, {"conv": (1.0, 1.0, 1.0), forward: (1.0, 1.0, 1.0)}),
        ("recall_long", True, True, {"conv": (0.1, 0.12, 0.11), forward: (0.91, 0.95, 0.96)}),
    ]
    return {
        "preset": "full",
        "settings": {
            "mixers": ["conv", both, forward, "attention full"], "seeds": [0, 1, 2],
            "learning_rates": [0.001, 0.002], "width": 16, "depth": 2, "kernel_size": 7,
            "state_size": 16, "heads": 2, "batch_size": 16, "depth_study": None,
        },
        "environment": {"device": "cpu", "cpu_count": 2, "jax": "0.10.2"},
        "seconds": 900.0,
        "missing": 2,
        "depths": [],
        "tasks": [
            make_task(name, is_long=is_long, autoregressive=autoregressive, accuracies=accuracies)
            for name, is_long, autoregressive, accuracies in tasks
        ],
    }  # fmt: skip
