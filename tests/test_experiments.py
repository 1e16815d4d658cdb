# SPDX-License-Identifier: Apache-2.0
"""Every recipe can be trained as it stands, and the quickstart keeps its promise."""

import ast
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mambaout_jax.config import resolve, validate
from mambaout_jax.models import list_models
from mambaout_jax.train.writer import read_metrics

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "experiments").glob("**/*.py"))
RECIPES = [path for path in FILES if "\ndef get_config(" in path.read_text(encoding="utf-8")]
QUICKSTART = ROOT / "experiments" / "quickstart.py"


def docstring(path):
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


def recipe(path):
    config = runpy.run_path(str(path))["get_config"]()
    if config.data.source != "digits":
        config.data.path = config.data.path or "images"  # the user's
    return config


def test_there_are_recipes():
    assert QUICKSTART in RECIPES


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipe_is_valid_on_one_device_and_on_eight(path):
    config = recipe(path)
    assert config.is_locked
    assert config.model.name in list_models()
    for devices in (1, 8):
        validate(config, devices)
    resolved = resolve(config, 50_000)
    assert 0 < resolved.warmup_steps < resolved.total_steps


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_experiment_tells_its_command_and_result(path):
    text, name = docstring(path), path.relative_to(ROOT).as_posix()
    commands = re.findall(r"^    (\S.*)$", text, re.MULTILINE)
    assert any(
        words[:2] == ["python", name] or words[:3] == ["mambaout", "train", "--config"]
        for words in map(shlex.split, commands)
    ), commands
    assert any(name in command for command in commands)
    assert re.search(r"^Result: ", text, re.MULTILINE)


def test_quickstart_is_what_its_docstring_says():
    config, text = recipe(QUICKSTART), docstring(QUICKSTART)
    assert f"upscaled to {config.data.image_size}" in text
    assert (config.data.source, config.data.channels) == ("digits", 1)
    assert "1,438 to train, 359 to" in text
    resolved = resolve(config, 1438)
    assert (resolved.steps_per_epoch, resolved.total_steps, resolved.warmup_steps) == (22, 660, 66)
    assert (resolved.evaluate_every, resolved.checkpoint_every) == (110, 110)
    assert (resolved.learning_rate, config.augment.flip_probability) == (4e-3, 0)


@pytest.mark.optimised
@pytest.mark.slow
def test_quickstart_reads_98_percent_of_the_digits_on_one_device(tmp_path):
    result = subprocess.run(
        [sys.executable, str(QUICKSTART), "--workdir", str(tmp_path / "run")],
        cwd=ROOT,
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stderr
    last = read_metrics(tmp_path / "run")[-1]
    assert last["step"] == 660
    assert last["eval/top1"] >= 98
    assert f"eval/top1 {last['eval/top1']:.4g}" in result.stdout.strip().split("\n")[-1]


@pytest.mark.optimised
@pytest.mark.slow
def test_gpu_suite_keeps_what_it_measured_and_counts_what_failed(tmp_path):
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(tmp_path),
    }
    (tmp_path / "timm.py").write_text('raise ImportError("timm stays away")')
    command = ["bash", "experiments/gpu_suite.sh", str(tmp_path / "out"), "cpu", "--quick"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "timm stays away; pip install torch timm" in done.stderr
    assert "== throughput FAILED" in done.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"conv.json", "scan.json"}
