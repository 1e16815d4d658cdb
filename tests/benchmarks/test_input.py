# SPDX-License-Identifier: Apache-2.0
"""The benchmark of the input pipeline: what it reports is what it measured."""

import json

import numpy as np
import pytest
from PIL import Image

from mambaout_jax.benchmarks import input as input_benchmark
from mambaout_jax.cli.main import main

CONTENDERS = ["ours pillow", "ours opencv", "decode pillow", "decode opencv"]


@pytest.fixture(scope="module")
def kept():
    """How many rows `run` has kept, after each of them."""
    return []


@pytest.fixture(scope="module")
def result(kept):
    without_timm = {"torch": None, "timm": None}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(input_benchmark, "_versions", lambda: without_timm)
        patch.setattr(input_benchmark, "_BATCH", 8)
        patch.setattr(input_benchmark, "_WAIT_BATCHES", 4)
        return input_benchmark.run(
            images=16, rounds=2, keep=lambda partial: kept.append(len(partial["rows"]))
        )


def test_rows_are_kept_as_they_come(result, kept):
    assert kept == [1, 2]


def test_rows_hold_speeds_ratios_and_cores(result):
    result = json.loads(json.dumps(result))
    assert [row["recipe"] for row in result["rows"]] == list(input_benchmark.RECIPES)
    for row in result["rows"]:
        speeds = row["images_per_second_and_core"]
        assert list(speeds) == CONTENDERS
        assert row["over_timm"] == {}
        for decoder in ("pillow", "opencv"):
            ours, limit = speeds[f"ours {decoder}"], speeds[f"decode {decoder}"]
            ratio = row["over_decode"][f"ours {decoder}"]["median"]
            assert ours["min"] / limit["max"] <= ratio <= ours["max"] / limit["min"]
            # A loader decodes, too. Short turns are noisy, but not by a batch or the cores.
            assert 0.05 < ratio < 4
            assert row["cores"][f"ours {decoder}"] == 10_000 / ours["median"]
    assert all(0 <= share < 1 for share in result["wait"].values())


def test_files_are_real_photographs_of_the_usual_size(tmp_path):
    root = input_benchmark._write_images(tmp_path)
    files = sorted((root / "train").rglob("*.jpg"))
    assert len(files) == 64 * 64
    assert len({file.stat().st_ino for file in files}) == 64
    images = [np.asarray(Image.open(file)) for file in files[::700]]
    assert {image.shape for image in images} == {(375, 500, 3)}
    assert len({image.tobytes() for image in images}) == len(images) == 6
    assert 20_000 < np.mean([file.stat().st_size for file in files]) < 120_000


def test_table_prints_the_medians(result, capsys):
    input_benchmark.print_table(result)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 2 * len(CONTENDERS) + 3
    speed = result["rows"][0]["images_per_second_and_core"]["ours pillow"]["median"]
    assert lines[1].split()[:4] == ["crop+flip", "ours", "pillow", f"{speed:.0f}"]
    assert lines[-1] == "timm's loader is not compared: pip install torch torchvision timm"


def test_verb_passes_its_arguments(result, monkeypatch, tmp_path):
    given = {}
    monkeypatch.setattr(
        input_benchmark, "run", lambda **arguments: given.update(arguments) or result
    )
    out = tmp_path / "input.json"
    command = ["bench", "input", "--data", "photos", "--images", "64", "--out", str(out)]
    assert main([*command, "--images-per-second", "5000"]) == 0
    assert given.pop("keep")
    assert given == {"data": "photos", "images": 64, "images_per_second": 5000.0}
    assert json.loads(out.read_text()) == json.loads(json.dumps(result))
